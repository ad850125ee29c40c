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
    if framed:
        # The page that will hold the frame, with the policy and the frame of ours.
        page.goto("/example.com/messages")
        page.evaluate(
            """address => new Promise(loaded => {
                const frame = document.createElement("iframe")
                frame.sandbox = ""
                frame.onload = loaded
                frame.src = address
                document.body.append(frame)
            })""",
            address,
        )
        page.evaluate("document.title = 'before'")
    asked = []
    page.context.on("requestfinished", lambda sent: asked.append(sent.url))
    # Those that the policy stops are reported as failed for that reason, and never leave.
    page.context.on(
        "requestfailed", lambda sent: None if sent.failure == "csp" else asked.append(sent.url)
    )
    if framed:
        page.evaluate("document.querySelector('iframe').src += '?again'")
        page.wait_for_event("framenavigated", lambda frame: frame.url.endswith("?again"))
    else:
        page.goto(address)
    frame = page.frames[1] if framed else page.main_frame
    frame.wait_for_load_state("load")
    assert frame.locator("#shown").inner_text() == "It is shown."
    assert frame.locator("#shown").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert frame.locator("#inside").evaluate("image => image.naturalWidth") == 1
    for clicked in ("#form button", "#away", "#link"):
        frame.locator(clicked).click()
    assert frame.locator("#shown").inner_text() == "It is shown."
    assert page.title() in {"before", ""}
    fetched = {url.removesuffix("?again") for url in asked if not url.startswith("data:")}
    assert fetched - {address, "about:srcdoc"} == set()
    assert not is_connected(elsewhere)


def test_another_site_cannot_show_a_message_in_a_frame(page, server, elsewhere):
    address = send_hostile(page, elsewhere)
    other = server.url.replace("127.0.0.1", "localhost")
    trap = f'<iframe src="{address}"></iframe>'
    page.route(f"{other}/trap", lambda to: to.fulfill(body=trap, content_type="text/html"))
    page.goto(f"{other}/trap")
    assert page.frames[1].locator("#shown").count() == 0


def test_the_partial_shows_a_message_without_leaving_the_page(page, make_app, config):
    app = make_app(config)
    captured = {
        "headers": [{"name": "Subject", "value": "<script>alert(1)</script>"}],
        "text": "\n<b>text</b>",
        "content_url": "/content",
        "source_url": "/source",
        "attachments": [
            {"filename": '"><b>x', "content_type": "text/<b>", "bytes": 2000, "url": "/files/1"}
        ],
    }
    with app.test_request_context():
        html = app.jinja_env.get_template("captured.html").render(captured=captured)
    page.context.route("**/content", lambda to: to.fulfill(body="", content_type="text/html"))
    page.set_content(html)
    assert page.locator("iframe").get_attribute("sandbox") == ""
    assert page.locator("pre").text_content() == "\n<b>text</b>"
    assert page.locator("dd").text_content() == "<script>alert(1)</script>"
    assert page.get_by_role("link", name='"><b>x').get_attribute("href") == "/files/1"
    assert page.locator("li .quiet").inner_text() == "text/<b>, 2.0 kB"
    assert page.locator("script, b, [style]").count() == 0
