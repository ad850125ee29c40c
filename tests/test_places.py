"""Where somebody is: pages that tell apart, and what is said where nothing is."""

from __future__ import annotations

import html
import re

import pytest
from conftest import POOL, ROOT_KEY, make_config

PAGE = {"Accept": "text/html"}
PATHS = (
    "/", "/example.com", "/example.net", "/example.com/send", "/example.net/send",
    "/example.com/primary/send", "/example.com/backup/send", "/example.com/messages",
    "/example.net/messages", "/messages", "/example.com/queue", "/example.com/primary/fail",
    "/example.com/primary/health", "/example.com/backup/health", "/example.net/maildir/health",
    "/sign-in", "/sign-out", "/keys", "/reference", "/healthz", "/readyz", "/nothing",
    "/example.org",
)  # fmt: skip


def said(page: str, element: str) -> str:
    found = re.search(rf"<{element}[^>]*>(.*?)</{element}>", page, re.DOTALL)
    return html.unescape(re.sub(r"<.*?>", "", found[1])).strip()


@pytest.fixture
def root(client):
    client.post("/sign-in", json={"key": ROOT_KEY})
    return client


def test_tabs_tell_apart_and_begin_with_what_they_are(root):
    titles = {path: said(root.get(path, headers=PAGE).text, "title") for path in PATHS}
    assert len({*titles.values()}) == len(PATHS), titles
    assert all(title.endswith(" · Mailpool") for title in titles.values())
    assert titles["/example.com/primary/send"] == (
        "Send through one service · primary · example.com · Mailpool"
    )
    assert titles["/example.com"] == "example.com, working · Mailpool"


@pytest.mark.parametrize(
    ("path", "heading", "listed_at"),
    [
        ("/example.org", "There is no email domain 'example.org' here", "/"),
        ("/example.org/send", "There is no email domain 'example.org' here", "/"),
        (
            "/example.com/nobody/health",
            "The email domain 'example.com' has no service 'nobody'",
            "/example.com",
        ),
        (
            "/example.com/messages/0123",
            "There is no message '0123' in the log of this email domain",
            "/example.com/messages",
        ),
    ],
)
def test_what_is_not_there_is_named_and_leads_to_what_is(path, heading, listed_at, root):
    answer = root.get(path, headers=PAGE)
    assert answer.status_code == 404
    assert said(answer.text, "h1") == heading
    assert said(answer.text, "title") == f"{heading} · Mailpool"
    assert f'<a href="{listed_at}">This page</a> lists those there are.' in answer.text
    main = answer.text.partition("<main")[2].partition("</main>")[0]
    assert "<form" not in main
    assert "How it works" not in main


def test_what_is_named_in_an_address_is_text(root):
    page = root.get("/<b>GET %20/x.example", headers=PAGE).text
    assert "<b>" not in page
    page = root.get("/example.com/messages/<b>GET /x", headers=PAGE).text
    assert "<b>" not in page


def test_where_a_key_is_missing_signing_in_is_the_way_and_no_form_asks_for_it(make_app, tmp_path):
    client = make_app(make_config(tmp_path, production=True)).test_client()
    for path in ("/", "/example.com"):
        page = client.get(path, headers=PAGE).text
        assert "Sign in</a> to go on here" in page
        assert "<form" not in page


def test_who_is_not_signed_in_cannot_sign_out(client):
    assert "<form" not in client.get("/sign-out", headers=PAGE).text


def test_the_sign_in_the_tab_is_our_own(client):
    page = client.get("/", headers=PAGE).text
    (icon,) = re.findall(r'<link rel="icon" href="([^"]+)"', page)
    with client.get(icon) as answer:
        assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml")


@pytest.mark.parametrize("path", ["/", "/example.com"])
def test_what_the_docs_say_of_an_address_is_in_its_foot(path, client):
    foot = client.get(path, headers={**PAGE, **POOL}).text.partition('<div class="foot">')[2]
    lead = "This server sends email" if path == "/" else "Its services in the order they are tried"
    assert lead in foot
