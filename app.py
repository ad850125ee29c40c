"""The service: configuration, pools and rooms of endpoints, wired together by `create_app`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from gunicorn.http.errors import ParseException
from werkzeug.wrappers import Response

from browsable_api import BrowsableAPI, request
from email_services import traces
from email_services.config import Config, load_config, newest_config
from email_services.counters import note_reload
from email_services.exceptions import EmailServicesError
from email_services.kafka import KafkaQueue
from email_services.logs import about, event, only_about
from email_services.pool import MANY
from email_services.queue import CALLS, Dispatcher
from email_services.store import Store
from endpoints import configuration, keys, log, operating, queue, services, signing_in
from endpoints.access import KEY_FIELDS, knows_sender
from endpoints.addresses import DESCRIPTION, DomainConverter, MessageConverter, page_addresses
from endpoints.context import Mailpool
from endpoints.guesses import Guesses
from endpoints.key_uses import KeyUses
from endpoints.rooms import answer_error
from endpoints.sending import views as sending
from endpoints.sending.bodies import MAX_JSON, max_body_bytes
from endpoints.sessions import TOKEN_FIELD, vary_by_cookie
from endpoints.upkeep import Upkeep
from server.proxies import trusted_proxies
from server.traffic import count_answer

logger = logging.getLogger(__name__)

ROOMS = (sending, log, queue, services, signing_in, keys, configuration, operating)
"""In the order in which a person would look for them."""


def create_app(config: Config | None = None, before: Mailpool | None = None) -> BrowsableAPI:
    """Make the WSGI application.

    config: by default what `load_config` finds. Raises ConfigError, which ends a start with one
    line, where it is not usable. before: of the application that it takes over from, whose database
    and connections it goes on with.
    """
    config = config or load_config()
    store = before.store if before else config.store()
    copies = before.copies if before else config.copies(store)
    if before:
        config.go_on_from(before.config, store, copies)
    threads = int(os.environ.get("WEB_THREADS", MANY))  # gunicorn.conf.py says so
    if len(config.domains) > 1:
        threads = max(1, threads // 2)  # one of them has no more than that (server/lanes.py)
    queue = KafkaQueue(config.queue, store, config.streams) if config.queue else None
    pools = {n: d.pool(store, threads, queue, copies) for n, d in config.domains.items()}
    app = BrowsableAPI(
        __name__,
        max_body_bytes(config.max_message_bytes),
        title="Mailpool",
        description=DESCRIPTION,
        cors_origins=config.cors_origins,
        max_json=MAX_JSON,
        knows_sender=knows_sender,
        trusted_proxies=trusted_proxies(),
        unreadable=(ParseException,),
        on_request=_begin_request,
    )
    if trusted := os.environ.get("TRUSTED_HOSTS"):
        app.config["TRUSTED_HOSTS"] = trusted.split(",")
    app.config["EMAIL_DOMAINS"] = len(pools)  # which share the threads (server/worker.py)
    app.config["SECRET_FIELDS"] = (*KEY_FIELDS, TOKEN_FIELD)
    app.config["COUNTING_FIELDS"] = ("oldest_seconds",)
    calls = int(os.environ.get("QUEUE_CALLS", CALLS)) or 1  # gunicorn.conf.py says so
    uses = before.key_uses if before else KeyUses(store)
    app.extensions["mailpool"] = Mailpool(
        config,
        store,
        pools,
        before.guesses if before else Guesses(store),
        uses,
        before.upkeep if before else Upkeep(partial(_keep_up, store, uses)),
        Dispatcher.of(config, store, calls, copies),
        copies,
    )
    app.url_map.converters["domain"] = DomainConverter
    app.url_map.converters["message"] = MessageConverter
    for module in ROOMS:
        app.register_blueprint(module.room)
    app.register_error_handler(EmailServicesError, answer_error)
    app.jinja_env.globals["operations"] = partial(operating.operations_as_html, app)
    app.context_processor(signing_in.page_variables)
    app.context_processor(page_addresses)
    app.context_processor(sending.page_services)
    app.after_request(vary_by_cookie)
    app.after_request(count_answer)
    app.after_request(_note_request)
    app.teardown_request(lambda _: traces.end_request())
    if before is None:  # it was read from the file; of an upload, who takes it over says so
        note_reload(is_in_use=True)
    return app


def _begin_request(request_id: str, environ: Mapping[str, Any]) -> None:
    only_about(request_id=request_id)
    if trace_id := traces.begin_request(environ):
        about(trace_id=trace_id)


def _note_request(response: Response) -> Response:
    rule = request.url_rule
    traces.note_request(request.method, rule.rule if rule else "", response.status_code)
    return response


def renewed(app: BrowsableAPI) -> BrowsableAPI | None:
    """The application that takes over from `app`, with what was uploaded since; None without.

    Raises ConfigError where that is not usable here, and StoreUnavailable.
    """
    before: Mailpool = app.extensions["mailpool"]
    config = newest_config(before.config, before.store)
    if config is None:
        return None
    after = create_app(config, before)
    words = "The configuration is version %d now, by the %s."
    said = event("config", is_taken_over=True, version=config.version)
    author = config.uploaded.author if config.uploaded else ""
    logger.info(words, config.version, author, extra=said)
    return after


def _keep_up(store: Store, uses: KeyUses) -> None:
    uses.write()
    store.remove_when_due(time.time())
