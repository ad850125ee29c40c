"""The service: configuration, pools and endpoints, wired together by `create_app`.

A view's docstring is the page its address shows to a person, in Markdown.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial
from typing import Final

from flask import Blueprint, current_app
from flask.typing import ResponseReturnValue
from werkzeug.routing import BaseConverter

from browsable_api import (
    BrowsableAPI,
    filtered_by,
    gives_files,
    kept_by_clients,
    request,
    shown_in,
    takes,
)
from browsable_api.clients import trusted_proxies
from email_services.config import Config, load_config
from email_services.exceptions import EmailServicesError
from email_services.message import EmailMessage
from email_services.pool import MANY
from email_services.store import ServiceState, Store
from endpoints.access import (
    knows_sender,
    readable_message,
    visible_domain,
    visible_domains,
    with_pool_key,
    with_reading_key,
    with_root_key,
)
from endpoints.answers import (
    addresses,
    answer_error,
    changes_of,
    domain_as_dict,
    failure_answer,
    health_as_dict,
    how_to_send,
    log_query,
    message_as_dict,
    next_page,
    send_answer,
    session_as_dict,
    sign_in_answer,
    sign_out_answer,
)
from endpoints.bodies import (
    KEY_FIELDS,
    MAX_JSON,
    TOKEN_FIELD,
    AnyKey,
    Batch,
    Failure,
    MessageFilter,
    Nothing,
    PoolKey,
    Preview,
    RootKey,
    SignIn,
    checked,
    max_body_bytes,
)
from endpoints.captured import (
    captured_as_dict,
    content_answer,
    file_answer,
    html_answer,
    source_answer,
)
from endpoints.context import Mailpool, mailpool, pool_of
from endpoints.guesses import Guesses
from endpoints.openapi import as_json, described, operations_as_html
from endpoints.sessions import (
    comes_from_here,
    current_session,
    page_variables,
    refuse_unless,
    vary_by_cookie,
)

DESCRIPTION: Final = "/openapi.json"


class DomainConverter(BaseConverter):
    """A part of an address that may be an email domain: it has a dot, as one other word here."""

    regex = rf"(?!{re.escape(DESCRIPTION[1:])}$)[^/]+\.[^/]*"


views = Blueprint("mailpool", __name__, template_folder="endpoints/templates")


def create_app(config: Config | None = None) -> BrowsableAPI:
    """Make the WSGI application.

    config: by default what `load_config` finds. Raises ConfigError, which ends a start with one
    line, where it is not usable.
    """
    config = config or load_config()
    store = Store(config.state_url, config.message_retention_days * 24 * 3600)
    threads = int(os.environ.get("WEB_THREADS", MANY))  # gunicorn.conf.py says so
    if len(config.domains) > 1:
        threads = max(1, threads // 2)  # one of them has no more than that (lanes.py)
    pools = {name: domain.pool(store, threads) for name, domain in config.domains.items()}
    app = BrowsableAPI(
        __name__,
        max_body_bytes(config.max_message_bytes),
        description=DESCRIPTION,
        cors_origins=config.cors_origins,
        max_json=MAX_JSON,
        knows_sender=knows_sender,
        trusted_proxies=trusted_proxies(),
    )
    if trusted := os.environ.get("TRUSTED_HOSTS"):
        app.config["TRUSTED_HOSTS"] = trusted.split(",")
    app.url_map.converters["domain"] = DomainConverter
    app.extensions["mailpool"] = Mailpool(config, store, pools, Guesses(store))
    app.register_blueprint(views)
    app.register_error_handler(EmailServicesError, answer_error)
    app.config["EMAIL_DOMAINS"] = len(pools)  # which share the threads (server.py)
    app.config["SECRET_FIELDS"] = (*KEY_FIELDS, TOKEN_FIELD)
    app.jinja_env.globals["operations"] = partial(operations_as_html, app)
    app.context_processor(page_variables)
    app.context_processor(addresses)
    app.after_request(vary_by_cookie)
    return app


@views.route("/", methods=["GET", "POST"])
@takes(RootKey, button="Show them")
@shown_in("home.html")
def home() -> ResponseReturnValue:
    """Email domains.

    This server sends email through whichever provider works. Here are its email domains, and for
    each the services that are tried, the highest `priority_value` first.

    * **GET** lists them. On a production server this needs a key, and a pool key sees its own
      domain only.
    * **POST** does the same with a key in the body.

    The root key sees the API keys too, unless the server is in production.

    To send, go to a domain and follow its `send_url`.
    """
    domains = visible_domains()
    checked(Nothing)
    return {
        "production": mailpool.config.production,
        "email_services": [domain_as_dict(domain) for domain in domains],
    }


@views.route("/<domain:email_domain>", methods=["GET", "POST"])
@takes(RootKey, button="Show it")
@shown_in("domain.html")
def show_domain(email_domain: str) -> ResponseReturnValue:
    """An email domain.

    Its services in the order they are tried, and the addresses of what can be done.

    * `send_url` sends a message through the pool, with failover.
    * A service's own `send_url` sends through that service alone.
    * A service's `fail_url` switches its simulated failure, to rehearse an outage.

    **GET** and **POST** are as one level up. The root key sees the API keys, outside production.
    """
    domain = visible_domain(email_domain)
    checked(Nothing)
    return {**domain_as_dict(domain), "changes": changes_of(domain)}


@views.route("/<domain:email_domain>/send", methods=["GET", "POST"])
@takes(PoolKey, EmailMessage, once=True, also=(Batch,))
@shown_in("send.html")
def send(email_domain: str) -> ResponseReturnValue:
    """Send a message.

    The services of this domain are tried in order, until one accepts the message.

    **POST** it here, with the pool key of the domain as `Authorization: Bearer KEY` or as
    `pool_api_key` in the body.

    | field | what it is |
    |---|---|
    | `from_email` | the sender, an address at this domain; required |
    | `from_name` | the sender's display name |
    | `to_recipients`, `to_cc`, `to_bcc` | an address or a list; 1 to 1,000 in all |
    | `reply_to` | where answers go: up to 10 addresses |
    | `subject` | required |
    | `raw_text_body`, `html_body` | one of them or both; without a text, the HTML is read |
    | `attachments` | files: `filename`, `content` in base64, `content_type`; or files of a form |
    | `inline` | images that the HTML shows as `cid:NAME`: the same with `content_id` |
    | `headers` | further headers by name, up to 50, in ASCII |
    | `tags` | up to 10, of 1 to 128 ASCII characters, for the provider's statistics |
    | `metadata` | up to 20 values of 1 to 500 characters, for the provider's events |
    | `track_opens`, `track_clicks` | `true` or `false`; without them, as the provider does |
    | `send_at` | when the provider should send it: `2026-11-24T12:00:00Z` |
    | `substitutions` | what to put for each `{{name}}` in the subject and the bodies |
    | `on_unknown` | `failover` or `stop`, after an attempt that may have been accepted |
    | `dry_run` | `true`: send nothing, say which services would be tried |

    A service that cannot carry something in a message is passed by, and `attempts` says why.
    Nothing is ever left out.

    An `Idempotency-Key` header makes a request safe to repeat: the same key gets the same answer.

    | answer | means |
    |---|---|
    | 200 | **sent**: `service_used` accepted it; `partial` where not for all `recipients` |
    | 400 | nothing was tried: `problems` names every field at fault |
    | 413 | nothing was tried: it is too large |
    | 422 | **not sent**: every service refused the message itself, or cannot carry it |
    | 503 | **not sent**: no service could send it |
    | 504 | **unknown**: a service took it and did not answer; it may have been sent |

    Each lists all `attempts`. `possible_duplicate` is true where a message was sent after an
    attempt whose outcome is unknown.

    **Many at once:** `{"messages": [...]}` takes up to 1,000, each with all its fields, and answers
    with `results` in the same order: 200 when all were sent, 207 when some, 503 when none.
    """
    if request.method == "POST":
        pool = pool_of(with_pool_key(email_domain))
        return send_answer(pool)
    return how_to_send(pool_of(visible_domain(email_domain)))


@views.route("/<domain:email_domain>/<service>/send", methods=["GET", "POST"])
@takes(PoolKey, EmailMessage, once=True, also=(Batch,))
@shown_in("send.html")
def send_through(email_domain: str, service: str) -> ResponseReturnValue:
    """Send through one service.

    The same as sending through the pool, but no other service is tried.
    It is how to find out whether one provider works. Fields and answers are the same.
    """
    if request.method == "POST":
        pool = pool_of(with_pool_key(email_domain))
        return send_answer(pool, pool.service(service))
    pool = pool_of(visible_domain(email_domain))
    return how_to_send(pool, pool.service(service))


@views.route("/<domain:email_domain>/<service>/fail", methods=["GET", "POST"])
@takes(RootKey, Failure, button="")
@shown_in("fail.html")
def fail(email_domain: str, service: str) -> ResponseReturnValue:
    """Simulated failure.

    While it is on, messages meet a fault at this service, so that you can see them fail over.

    | `kind` | what each message meets |
    |---|---|
    | `unavailable` | the service cannot be used (the default) |
    | `timeout` | it waits its whole timeout; the outcome is unknown |
    | `answer_lost` | the provider accepts it, and the answer is lost: the outcome is unknown |
    | `rate_limited` | too many requests |
    | `key_refused` | the account's key is refused |
    | `slow` | it is sent 3 s later |

    `share` is the part of messages that meets it, `minutes` when it ends by itself.

    **POST** with the root key switches it over; with any of these fields, on. With
    `{"simulated_failure": true}` or `false` it ends as you say, however often you say it. Every
    worker sees the change at once, and it stays after a restart.
    """
    if request.method == "POST":
        pool = pool_of(with_root_key(email_domain))
        pool.breakers.set_drill(pool.service(service), checked(Failure).drill)
    else:
        pool = pool_of(visible_domain(email_domain))
    return failure_answer(pool, pool.service(service))


@views.route("/<domain:email_domain>/<service>/health", methods=["GET", "POST"])
@takes(RootKey, button="Try it again at once")
@shown_in("health.html")
def health(email_domain: str, service: str) -> ResponseReturnValue:
    """Health of a service.

    A service that fails several times in a row, or whose account or rate limit is at fault, rests:
    messages pass it by at no cost. After the rest one message tries it; if that is accepted, it is
    back at its place in the order.

    **POST** with the root key resets it: the service is tried again at once.
    """
    if request.method == "POST":
        pool = pool_of(with_root_key(email_domain))
        checked(Nothing)
        pool.breakers.reset(pool.service(service))
    else:
        pool = pool_of(visible_domain(email_domain))
    name = pool.service(service).name
    state = mailpool.store.service_states(pool.email_domain).get(name, ServiceState())
    return {"service_name": name, **health_as_dict(pool, state)}


@views.get("/<domain:email_domain>/messages")
@filtered_by(MessageFilter)
@shown_in("messages.html")
def messages(email_domain: str) -> ResponseReturnValue:
    """Messages.

    What was sent, newest first. The log keeps no bodies; a `maildir` service keeps the mail itself.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.

    | in the URL | what it is |
    |---|---|
    | `recipient` | an address, or a part of one: `ada`, `@example.org` |
    | `outcome` | `sent`, `not sent`, `unknown` or `in progress` |
    | `service` | one that was tried or passed by |
    | `since`, `until` | times, ISO 8601 with a zone: `2026-11-24T12:00:00Z` |
    | `limit` | how many at once, 50 by default and at most 500 |

    `next` is the address of the following page, or null. A message that was cut off by a crash is
    `unknown`.
    """
    domain = with_reading_key(email_domain)
    wanted = MessageFilter.read(request.query)
    found = mailpool.store.messages(domain.email_domain, time.time(), **log_query(wanted))
    return {
        "messages": [message_as_dict(message) for message in found],
        "next": next_page(domain.email_domain, found, wanted),
    }


@views.get("/<domain:email_domain>/messages/<message_id>")
@shown_in("message.html")
def message(email_domain: str, message_id: str) -> ResponseReturnValue:
    """A message.

    What became of it: every service in order, what it did and how long it took.

    `captured` is the mail itself, where the service that sent it keeps it on this server, as a
    `maildir` does: its headers, text and attachments, and where to see it as its reader does. Else
    it is null.

    It takes the pool key of the domain, or the root key, as `Authorization: Bearer KEY`.
    """
    found = readable_message(email_domain, message_id)
    return {**message_as_dict(found), "captured": captured_as_dict(found)}


@views.get("/<domain:email_domain>/messages/<message_id>/content")
@gives_files
def message_content(email_domain: str, message_id: str) -> ResponseReturnValue:
    """Content of a message.

    The HTML of a message that this server keeps (`maildir`), as its reader sees it, or else its
    text. Nothing in it runs, and nothing is fetched.
    """
    return content_answer(readable_message(email_domain, message_id))


@views.get("/<domain:email_domain>/messages/<message_id>/source")
@gives_files
def message_source(email_domain: str, message_id: str) -> ResponseReturnValue:
    """Source of a message.

    A message that this server keeps (`maildir`), byte by byte, with all its headers.
    """
    return source_answer(readable_message(email_domain, message_id))


@views.get("/<domain:email_domain>/messages/<message_id>/files/<number>")
@gives_files
def message_file(email_domain: str, message_id: str, number: str) -> ResponseReturnValue:
    """A file in a message.

    One of the `attachments` of a message that this server keeps (`maildir`), counted from 1; to be
    saved.
    """
    return file_answer(readable_message(email_domain, message_id), number)


@views.route("/sign-in", methods=["GET", "POST"])
@takes(AnyKey, button="Sign in")
def sign_in() -> ResponseReturnValue:
    """Sign in.

    Type a key once, and the forms of this server need none for an hour, or until you sign out.
    The pool key of a domain lets you send from it and read its messages; the root key lets you do
    what the administrator may. Where a form asks for another key than you signed in with, type it
    there, or sign in with that one.

    * **GET** says who is signed in, and until when.
    * **POST** a `key`; `next` is the page to go to then, on this server.

    Programs need no session: they show a key with every request.
    """
    if request.method == "POST":
        return sign_in_answer(checked(SignIn))
    return session_as_dict(current_session())


@views.route("/sign-out", methods=["GET", "POST"])
@takes(button="Sign out")
def sign_out() -> ResponseReturnValue:
    """Sign out.

    **POST** here, as the button at the top of each page does, and this browser forgets the session.
    """
    if request.method == "POST":
        return sign_out_answer()
    return session_as_dict(current_session())


@views.post("/preview")
@takes(Preview)
@gives_files
def preview() -> ResponseReturnValue:
    """Preview.

    What the send form shows of a message's HTML while it is typed: `html` as it was given, in a
    policy under which nothing in it runs and nothing is fetched. For pages of this server only.
    """
    wanted = checked(Preview)
    refuse_unless(comes_from_here() is True)
    return html_answer(wanted.html)


@views.get(DESCRIPTION)
@gives_files
def openapi() -> ResponseReturnValue:
    """Description for programs.

    All of this in one document, OpenAPI 3.1, from which tools make clients and tests.
    """
    return kept_by_clients(as_json(described(current_app)), "application/json")


@views.get("/reference")
@shown_in("reference.html")
def reference() -> ResponseReturnValue:
    """Reference.

    Every operation with its fields and answers. Programs find the same at `/openapi.json`.
    """
    return described(current_app)


@views.get("/healthz")
def healthz() -> ResponseReturnValue:
    """Health.

    200 while the process answers. For load balancers; it needs no key and touches nothing.
    """
    return {"status": "ok"}


@views.get("/readyz")
def readyz() -> ResponseReturnValue:
    """Readiness.

    200 while the state database answers, else 503. Messages are sent in either case.
    """
    mailpool.store.check()
    return {"status": "ready"}
