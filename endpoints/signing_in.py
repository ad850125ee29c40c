"""Signing in: a key is typed once, and the forms of pages need none for an hour."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from flask import current_app, redirect
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.wrappers import Response

from browsable_api import Asked, Form, request
from browsable_api.errors import told
from browsable_api.operations import operations_here
from email_services.api_keys import Role
from email_services.exceptions import KeyRefused, StoreUnavailable, TooManyWrongKeys
from endpoints.access import does_for
from endpoints.addresses import PREVIEW, SIGN_IN, SIGN_OUT, path_of
from endpoints.captured import html_answer
from endpoints.messages import Time, iso
from endpoints.rooms import Endpoints, Fields
from endpoints.sessions import (
    Session,
    comes_from_here,
    current_session,
    forget_cookie,
    local_address,
    may_sign_out,
    open_session,
    refuse_unless,
    set_cookie,
)


class SignIn(Fields):
    """A key to sign in with, and where to go then."""

    key: str = Field(
        description="The root key, or a key of a domain.",
        json_schema_extra={"pattern": r"\S"},  # in a form, blank is none
    )
    next: str = Field("/", description="The page of this server to go to then.")


class Preview(Fields):
    """HTML to be looked at."""

    html: str = Field("", description="The HTML.")


class SessionState(TypedDict):
    """Who is signed in."""

    signed_in: Annotated[str | None, told('"root", or the email domain of a key.')]
    key_name: Annotated[str | None, told("The key's name in the configuration.")]
    role: Annotated[Role | None, told("What the key may: root, send, read or metrics.")]
    until: Annotated[Time | None, told("When the session ends.")]


_STATE: Final = {HTTPStatus.OK: (SessionState,)}

room = Endpoints(
    "signing in",
    __name__,
    "For people with a browser; programs show a key with every request.",
    {
        SessionState: {
            "signed_in": "example.com",
            "key_name": "shop",
            "role": "send",
            "until": "2026-11-24T13:00:00.000+00:00",
        }
    },
)


@room.operation("GET", SIGN_IN, page="sign_in.html", raises=(StoreUnavailable,))
def get_session() -> SessionState:
    """Sign in.

    Type a key once, and the forms of this server need none for an hour, or until you sign out.
    The pool key of a domain lets you send from it and read its messages, a read key only the
    latter; the root key lets you do all that, and what the administrator may. Where a form asks for
    another key than you signed in with, type it there, or sign in with that one.

    * **GET** says who is signed in, and until when.
    * **POST** a `key`; `next` is the page to go to then, on this server.

    Programs need no session: they show a key with every request.
    """
    return _state(current_session())


@room.operation(
    "POST",
    SIGN_IN,
    page="sign_in.html",
    form=Form("Sign in", fields={"key": Asked("password", is_first=True), "next": Asked("none")}),
    answers=_STATE,
    raises=(KeyRefused, TooManyWrongKeys, StoreUnavailable, HTTPStatus.FORBIDDEN),
    examples={"key": {"key": "YOUR-KEY"}},
)
def sign_in(body: SignIn) -> Response:
    """Sign in with a key."""
    session = open_session(body.key)
    return set_cookie(_page_or(body.next, _state(session)), session)


@room.operation("GET", SIGN_OUT, page="sign_out.html", raises=(StoreUnavailable,))
def get_session_to_end() -> SessionState:
    """Sign out.

    **POST** here, as the button at the top of each page does, and this browser forgets the session.
    """
    return _state(current_session())


@room.operation(
    "POST",
    SIGN_OUT,
    form=Form("Sign out"),
    reads=lambda fields, **_: None,  # noqa: ARG005 - there is a way out, whatever else is sent
    answers=_STATE,
    raises=(HTTPStatus.FORBIDDEN,),
)
def sign_out() -> Response:
    """Sign out of this browser."""
    is_to_be_forgotten = may_sign_out()
    answer = _page_or(path_of(SIGN_IN), _state(None))
    return forget_cookie(answer) if is_to_be_forgotten else answer


@room.operation(
    "POST", PREVIEW, answers={HTTPStatus.OK: ("text/html",)}, raises=(HTTPStatus.FORBIDDEN,)
)
def preview_html(body: Preview) -> Response:
    """Preview.

    What the send form shows of a message's HTML while it is typed: `html` as it was given, in a
    policy under which nothing in it runs and nothing is fetched. For pages of this server only.
    """
    refuse_unless(comes_from_here() is True)
    return html_answer(body.html)


def page_variables() -> dict[str, Any]:
    """What templates know: who is signed in, and what forms hold against other sites' forms.

    signed_in: the session, where it stands for the key that the form on this page asks for.
    may_switch: whether it stands for the root key. may_send: whether for one that sends.
    """
    try:
        session = current_session()
    except StoreUnavailable:
        session = None
    here = operations_here()
    post = here.get("POST")
    asks_for_any = post is not None and SignIn in post.bodies
    wanted = request.form.get("next", request.args.get("next", "/"))
    back = local_address(str(wanted)) if asks_for_any else _this_page()
    stands = session and not asks_for_any and (post is None or does_for(post.access, session))
    return {
        "signed_in": {"level": session.words} if session and stands else None,
        "session_level": session.words if session else "",
        "may_send": session is not None and session.key.role in {"send", "root"},
        "may_switch": session is not None and session.key.role == "root",
        "csrf_token": session.token if session else "",
        "return_to": back if asks_for_any else "",
        "sign_in_url": path_of(SIGN_IN, {"next": back}),
        "sign_out_url": path_of(SIGN_OUT),
    }


def _this_page() -> str:
    """Where to come back to; of the query only what a filter may hold, since a key may be in it."""
    get = operations_here().get("GET")
    names = get.query_names if get else ()
    wanted = {name: value for name, value in request.args.items() if name in names}
    return quote(request.path) + (f"?{urlencode(wanted)}" if wanted else "")


def _state(session: Session | None) -> SessionState:
    """Who is signed in, and until when."""
    return {
        "signed_in": session.key.place if session else None,
        "key_name": session.key.name if session else None,
        "role": session.key.role if session else None,
        "until": iso(session.until) if session else None,
    }


def _page_or(address: str, answer: SessionState) -> Response:
    """For a person the way to a page of this server, for a program the answer."""
    if request.accepted_media_type == "text/html":
        return redirect(local_address(address), HTTPStatus.SEE_OTHER)
    return current_app.make_response(dict(answer))
