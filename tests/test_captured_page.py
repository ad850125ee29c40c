"""A captured message in a real browser, in a frame and alone: nothing runs, nothing is fetched."""

from __future__ import annotations

import base64
import socket

import pytest
from conftest import PLAIN, POOL, POOL_KEY, make_config
from servers import Server

DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")  # fmt: skip # noqa: E501

HOSTILE = """<html><head>
<base href="{elsewhere}/">
<meta http-equiv="refresh" content="0; url={elsewhere}/refresh">
<link rel="stylesheet" href="{elsewhere}/style"><LINK/rel="preconnect" href="{elsewhere}">
<link
rel="dns-prefetch" href="{elsewhere}"><link rel="prefetch" href="{elsewhere}/prefetch">
<link rel="icon" href="{elsewhere}/icon"><link rel="preload" as="image" href="{elsewhere}/pre">
<style>@import url("{elsewhere}/import"); p {{ background: url({elsewhere}/background) }}
@font-face {{ font-family: f; src: url({elsewhere}/font) }} p {{ font-family: f }}</style>
<script>document.title = "ran"; new Image().src = "{elsewhere}/script"</script>
<script src="{elsewhere}/script"></script><script src="/static/style.css"></script>
</head><body onload="document.title = 'ran'; top.location = '{elsewhere}/top'">
<p id="shown" style="color: rgb(1, 2, 3)">It is shown.</p>
<img id="inside" src="cid:dot"><img src="{elsewhere}/image" onerror="document.title = 'ran'">
<img src="/healthz"><svg onload="document.title = 'ran'"><image href="{elsewhere}/svg"/></svg>
<iframe src="{elsewhere}/frame"></iframe><iframe src="/"></iframe>
<iframe srcdoc="<script>top.document.title = 'ran'</script><img src='{elsewhere}/doc'>"></iframe>
<object data="{elsewhere}/object"></object><embed src="{elsewhere}/embed">
<video src="{elsewhere}/video" poster="{elsewhere}/poster" autoplay></video>
<audio src="{elsewhere}/audio" autoplay></audio>
<form id="form" action="/example.com/primary/fail" method="post"><button>Send</button></form>
<form action="{elsewhere}/form" method="post"><button id="away">Send</button></form>
<a id="link" href="javascript:document.title='ran'">Click</a>
</body></html>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captured")
    running = Server(folder, make_config(folder))
    yield running
    running.kill()


@pytest.fixture
def elsewhere():
    """A server that nobody should connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def page(browser, server):
    """A page of someone who has signed in."""
    context = browser.new_context(base_url=server.url)
    opened = context.new_page()
    opened.goto("/sign-in")
    opened.get_by_label("key").fill(POOL_KEY)
    opened.get_by_role("button", name="Sign in").click()
    yield opened
    context.close()


def is_connected(listener) -> bool:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return False
    connection.close()
    return True


def send_hostile(page, elsewhere) -> str:
    """The address of its content."""
    html = HOSTILE.format(elsewhere=f"http://127.0.0.1:{elsewhere.getsockname()[1]}")
    dot = {"filename": "dot.png", "content": base64.b64encode(DOT).decode(), "content_id": "dot"}
    message = {**PLAIN, "html_body": html, "inline": [dot]}
    sent = page.request.post("/example.com/send", data=message, headers=POOL)
    assert sent.status == 200, sent.text()
    path = f"/example.com/messages/{sent.json()['message_id']}"
    return page.request.get(path, headers=POOL).json()["captured"]["content_url"]


@pytest.mark.parametrize("framed", [True, False], ids=["in a frame", "alone"])
def test_nothing_in_a_message_runs_or_is_fetched(framed, page, server, elsewhere):
    address = send_hostile(page, elsewhere)
    asked = []
    page.context.on("requestfinished", lambda sent: asked.append(sent.url))
    # Those that the policy stops are reported as failed for that reason, and never leave.
    page.context.on(
        "requestfailed", lambda sent: None if sent.failure == "csp" else asked.append(sent.url)
    )
    opened = address.removesuffix("/content") if framed else address
    page.goto(opened)
    page.wait_for_load_state("load")
    title = page.title()
    frame = page.frames[1] if framed else page.main_frame
    frame.wait_for_load_state("load")
    assert frame.locator("#shown").inner_text() == "It is shown."
    assert frame.locator("#shown").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert frame.locator("#inside").evaluate("image => image.naturalWidth") == 1
    for clicked in ("#form button", "#away", "#link"):
        frame.locator(clicked).click()
    assert frame.locator("#shown").inner_text() == "It is shown."
    assert page.title() == title
    assert title in {"Hello · Mailpool", ""}
    fetched = {url for url in asked if not url.startswith(("data:", f"{server.url}/static/"))}
    assert fetched - {opened, address, "about:srcdoc"} == set()
    assert not is_connected(elsewhere)


def test_another_site_cannot_show_a_message_in_a_frame(page, server, elsewhere):
    address = send_hostile(page, elsewhere)
    other = server.url.replace("127.0.0.1", "localhost")
    trap = f'<iframe src="{address}"></iframe>'
    page.route(f"{other}/trap", lambda to: to.fulfill(body=trap, content_type="text/html"))
    page.goto(f"{other}/trap")
    assert page.frames[1].locator("#shown").count() == 0


LONG = "<p>Line</p>" * 100


@pytest.mark.parametrize("screen", [{"width": 1280, "height": 900}, {"width": 360, "height": 740}])
def test_the_frame_is_as_high_as_the_mail_and_as_wide_as_is_wanted(screen, page):
    page.set_viewport_size(screen)
    message = {**PLAIN, "html_body": f'<img src="https://e.example/a.png">{LONG}'}
    sent = page.request.post("/example.com/send", data=message, headers=POOL).json()
    page.goto(f"/example.com/messages/{sent['message_id']}")
    frame = page.locator("iframe")
    inside = page.frames[1]
    inside.wait_for_load_state("load")
    page.wait_for_function("document.querySelector('iframe').style.height > '1'")
    left = inside.evaluate("document.documentElement.scrollHeight - innerHeight")
    assert left <= 0, "nothing is to be scrolled in it"
    assert frame.bounding_box()["height"] > 2000
    assert page.get_by_text("Remote images are not shown.").is_visible()
    page.get_by_role("link", name="Phone").click()
    page.wait_for_load_state()
    assert page.locator("iframe").bounding_box()["width"] <= 375
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]


def test_the_tabs_show_all_of_a_mail_without_a_script(browser, server):
    context = browser.new_context(base_url=server.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/sign-in")
    page.get_by_label("key").fill(POOL_KEY)
    page.get_by_role("button", name="Sign in").click()
    dot = {"filename": "dot.png", "content": base64.b64encode(DOT).decode(), "content_id": "dot"}
    message = {
        **PLAIN,
        "from_email": "Shop <me@example.com>",
        "to_cc": "Bob <bob@example.org>",
        "to_bcc": "eve@example.org",
        "tags": ["welcome"],
        "raw_text_body": "<b>text</b>",
        "html_body": '<p>Seen</p><img src="cid:dot">',
        "inline": [dot],
        "attachments": [{"filename": "<b>x.txt", "content": "eA=="}],
        "headers": {"X-Odd": "<script>alert(1)</script>"},
    }
    sent = page.request.post("/example.com/send", data=message, headers=POOL).json()
    page.goto(f"/example.com/messages/{sent['message_id']}")
    told = page.locator("section[aria-label='The mail'] dl").first.inner_text()
    for line in ("Shop <me@example.com>", "Bob <bob@example.org>", "eve@example.org", "welcome"):
        assert line in told
    assert page.frame_locator("iframe").locator("p").inner_text() == "Seen"
    page.get_by_role("link", name="Text", exact=True).click()
    assert page.get_by_role("region", name="Text").text_content().strip() == "<b>text</b>"
    page.get_by_role("link", name="Headers", exact=True).click()
    assert page.get_by_text("<script>alert(1)</script>").first.is_visible()
    page.get_by_role("link", name="Source", exact=True).click()
    assert "X-Odd" in page.frame_locator("iframe").locator("body").inner_text()
    page.get_by_role("link", name="Files 1", exact=True).click()
    files = page.locator(".files")
    assert files.nth(0).get_by_role("link").all_inner_texts() == ["<b>x.txt"]
    assert files.nth(1).get_by_role("link").all_inner_texts() == ["dot.png"]
    context.close()
