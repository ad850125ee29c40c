"""The pages in a real browser: what a person does, with and without JavaScript, on any screen."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator

import pytest
import requests
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from conftest import OTHER_POOL_KEY, POOL_KEY, ROOT_KEY, make_config
from playwright.sync_api import Browser, Page, expect
from servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    running = Server(folder, make_config(folder))
    yield running
    running.kill()


@contextlib.contextmanager
def opened_page(browser: Browser, server: Server, **options) -> Iterator[Page]:
    """A page that must load nothing from elsewhere and complain of nothing."""
    context = browser.new_context(base_url=server.url, **options)
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    asked = []
    opened.on("request", lambda sent: asked.append(sent.url))
    yield opened
    context.close()
    # A browser reports a 4xx or 5xx of a page as an error of the page; those are asked for here.
    assert [text for text in complaints if "the server responded with a status" not in text] == []
    assert [url for url in asked if not url.startswith((f"{server.url}/", "data:"))] == []


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def page(request, browser, server):
    with opened_page(browser, server, java_script_enabled=request.param) as opened:
        yield opened


WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 740}


def answer_of(page: Page) -> str:
    return page.locator("#json").text_content()


def status_of(page: Page) -> str:
    return page.locator("#status").text_content()


def press(page: Page, name: str) -> None:
    with page.expect_navigation():  # else what was there before might be looked at
        page.get_by_role("button", name=name, exact=True).click()


def follow(page: Page, name: str) -> None:
    with page.expect_navigation():
        page.get_by_role("link", name=name, exact=True).first.click()


def write(page: Page, **fields: str) -> None:
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)


HELLO = {
    "from_email": "me@example.com",
    "to_recipients": '"Doe, Jane" <jane@example.org>, b@example.org',
    "subject": "Grüße <b>",
    "raw_text_body": "One\n\nTwo",
}


def sign_in(page: Page, key: str) -> None:
    page.goto("/sign-in")
    page.locator("#key").fill(key)
    press(page, "Sign in")


@pytest.mark.parametrize("has_scripts", [True, False], ids=["JavaScript", "no JavaScript"])
@pytest.mark.parametrize("screen", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_person_rehearses_an_outage_from_signing_in_to_signing_out(
    screen, has_scripts, browser, tmp_path
):
    server = Server(tmp_path, make_config(tmp_path))
    options = {"viewport": screen, "java_script_enabled": has_scripts}
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        page = stack.enter_context(opened_page(browser, server, **options))
        page.goto("/")
        follow(page, "example.com")
        follow(page, "Send a message")
        follow(page, "Sign in")
        page.locator("#key").fill(POOL_KEY)
        press(page, "Sign in")
        page.get_by_text("Signed in for example.com").wait_for()

        # A problem at its field, and mended
        write(page, **{**HELLO, "from_email": "me@example.net"})
        press(page, "Send")
        assert "an address at example.com" in page.locator("#from_email-problem").inner_text()
        assert page.locator("#subject").input_value() == HELLO["subject"]
        write(page, from_email="me@example.com", html_body="<p>Hello <b>there</b></p>")
        page.locator("#attachments").set_input_files(
            {"name": "a.txt", "mimeType": "text/plain", "buffer": b"attached"}
        )
        press(page, "Send")
        page.get_by_role("heading", name="It was sent").wait_for()
        assert page.locator(".timeline li").all_inner_texts()[0].startswith("primary sent")

        # A failure on, by the administrator
        sign_in(page, ROOT_KEY)
        page.goto("/example.com/primary/fail")
        press(page, "Start the rehearsal")
        page.get_by_role("heading", name="primary is failing, on purpose").wait_for()

        # Sent again: it fails over
        sign_in(page, POOL_KEY)
        page.goto("/example.com/send")
        write(page, **HELLO, html_body="<p>Hello <b>again</b></p>")
        press(page, "Send")
        first, second = page.locator(".timeline li").all_inner_texts()
        assert first.startswith("primary not sent")
        assert "Simulated failure." in first
        assert second.startswith("backup sent")

        # The captured mail
        assert page.locator("h1").inner_text() == HELLO["subject"]
        mail = page.frame_locator("iframe").locator("body")
        assert mail.inner_text() == "Hello again"

        # The failure off
        sign_in(page, ROOT_KEY)
        page.goto("/example.com/primary/fail")
        press(page, "End the rehearsal")
        page.get_by_role("heading", name="primary is not made to fail").wait_for()
        press(page, "Sign out")
        page.get_by_role("link", name="Sign in").wait_for()
        page.goto("/example.com/messages")
        assert status_of(page) == "401 UNAUTHORIZED"
        assert page.locator(".notice").get_by_role("link", name="Sign in").is_visible()


def test_a_person_finds_the_way_from_home_to_a_form_and_sends(page):
    page.goto("/")
    assert page.title() == "All 2 domains work · Mailpool"
    follow(page, "example.com")
    assert page.locator("h1").inner_text() == "example.com"
    follow(page, "Send a message")
    write(page, pool_api_key=POOL_KEY, **HELLO)
    press(page, "Send")
    assert status_of(page) == "200 OK"
    assert '"service_used": "primary"' in answer_of(page)
    assert page.locator("form", has_text="Subject").count() == 0, "nothing to send twice by mistake"


def test_a_problem_is_at_its_field_and_what_was_typed_stays(page):
    page.goto("/example.com/send")
    page.locator("main form").first.evaluate("form => { form.noValidate = true; }")
    hostile = "\n<script>alert(1)</script>"
    write(page, pool_api_key=POOL_KEY, from_email="me@example.net", raw_text_body=hostile)
    press(page, "Send")
    assert status_of(page) == "400 BAD REQUEST"
    assert "an address at example.com" in page.locator("#from_email-problem").inner_text()
    assert page.locator("#subject-problem").inner_text() == "Required."
    assert page.locator("#from_email").input_value() == "me@example.net"
    assert page.locator("#raw_text_body").input_value() == hostile
    assert page.locator("#pool_api_key").input_value() == ""
    page.get_by_role("alert").get_by_role("link", name="subject").click()
    assert page.url.endswith("#subject")


def test_a_problem_of_a_folded_field_unfolds_it(page):
    page.goto("/example.com/send")
    page.get_by_text("More fields").click()
    write(page, pool_api_key=POOL_KEY, **HELLO, tags="tag, täg")
    press(page, "Send")
    assert page.locator("#tags-problem").is_visible()
    assert page.locator("#tags").input_value() == "tag, täg"


def test_a_dry_run_says_what_would_happen_and_sends_nothing(page):
    page.goto("/example.com/send")
    write(page, pool_api_key=POOL_KEY, **{**HELLO, "subject": "Never sent"})
    press(page, "Only say what would happen")
    page.get_by_role("heading", name="What would happen").wait_for()
    assert page.locator(".timeline strong").all_inner_texts() == ["primary", "backup"]
    assert page.locator("#subject").input_value() == "Never sent"
    sign_in(page, POOL_KEY)
    page.goto("/example.com/messages")
    assert page.locator("tbody a", has_text="Never sent").count() == 0


def test_a_message_is_written_as_json_too(page):
    page.goto("/example.com/send")
    page.get_by_text("Write it as JSON instead").click()
    page.locator("#json-pool_api_key").fill(POOL_KEY)
    example = page.locator("#_json").input_value()
    page.locator("#_json").fill(example.replace('"subject": "Hello",', '"subject": ,'))
    press(page, "Send this JSON")
    assert "not JSON" in page.locator("#_json-problem").inner_text()
    assert '"subject": ,' in page.locator("#_json").input_value()
    page.locator("#_json").fill(example)
    page.locator("#json-pool_api_key").fill(POOL_KEY)
    press(page, "Send this JSON")
    page.get_by_role("heading", name="It was sent").wait_for()


def test_html_is_previewed_as_it_is_typed(browser, server):
    with opened_page(browser, server) as page:
        page.goto("/example.com/send")
        page.locator("#html_body").fill('<p style="color: rgb(0, 128, 128)">Teal</p>')
        shown = page.frame_locator("iframe").locator("p")
        assert shown.inner_text() == "Teal"
        assert shown.evaluate("p => getComputedStyle(p).color") == "rgb(0, 128, 128)"
        page.locator("#html_body").fill("<p>Another</p>")
        page.frame_locator("iframe").get_by_text("Another").wait_for()
        page.go_back()
        assert page.url == "about:blank", "previews are no steps of the way here"


ATTACK = """<script>parent.document.title = 'won'</script><img src="EVIL/img">
<img src=x onerror="parent.document.title = 'won'"><iframe src="EVIL/frame"></iframe>
<form action="EVIL/form"><button id="go">Go</button></form>
<link rel="stylesheet" href="EVIL/css"><style>@import "EVIL/import";
body { background: url(EVIL/background) }</style>
<meta http-equiv="refresh" content="0;url=EVIL/refresh">
<video src="EVIL/video" autoplay></video>
<a id="away" href="EVIL/away" target="_top">Away</a>"""


def test_a_preview_runs_and_fetches_nothing(browser, server, stand_in):
    evil = stand_in()
    page = browser.new_context(base_url=server.url).new_page()
    page.goto("/example.com/send")
    page.locator("#html_body").fill(ATTACK.replace("EVIL", evil.url))
    inside = page.frame_locator("iframe")
    inside.locator("#go").click()
    inside.locator("#away").click()
    assert page.title() == "Send a message · example.com · Mailpool"
    assert evil.requests == []
    page.context.close()


def test_a_failure_is_switched_on_seen_and_off_again(page):
    for choice, enabled, used in (
        ("Start the rehearsal", "true", "backup"),
        ("End the rehearsal", "false", "primary"),
    ):
        page.goto("/example.com/primary/fail")
        page.locator("#root_api_key").fill(ROOT_KEY)
        press(page, choice)
        assert f'"simulated_failure_enabled": {enabled}' in answer_of(page)
        page.goto("/example.com/send")
        write(page, pool_api_key=POOL_KEY, **HELLO)
        press(page, "Send")
        assert f'"service_used": "{used}"' in answer_of(page)


def test_what_was_sent_is_loaded_again_and_gone_back_from_without_sending_again(page):
    sign_in(page, POOL_KEY)
    page.goto("/example.com/send")
    write(page, **{**HELLO, "subject": (subject := f"Once {secrets.token_hex(4)}")})
    press(page, "Send")
    page.get_by_role("heading", name="It was sent").wait_for()
    address = page.url
    page.reload()
    assert page.get_by_role("heading", name="It was sent").is_visible()
    page.go_back()
    assert page.locator("#to_recipients").is_visible()
    page.go_forward()
    assert page.url == address
    page.goto("/example.com/messages")
    assert page.locator("tbody a", has_text=subject).count() == 1


def test_the_keyboard_alone_signs_in_and_says_who_sends(browser, server):
    with opened_page(browser, server) as page:
        page.goto("/sign-in")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(POOL_KEY)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{server.url}/")
        page.goto("/example.com/send")
        write(page, **{**HELLO, "from_email": "shop"})
        press(page, "Send")
        page.get_by_role("heading", name="It was sent").wait_for()
        assert page.locator("dd", has_text="shop@example.com").first.is_visible()


def test_files_that_have_to_be_chosen_again_are_named(page):
    page.goto("/example.com/send")
    write(page, pool_api_key=POOL_KEY, **{**HELLO, "from_email": "me@example.net"})
    page.locator("#attachments").set_input_files(
        {"name": "ä <b>.txt", "mimeType": "text/plain", "buffer": b"x"}
    )
    press(page, "Send")
    assert page.locator("#attachments-problem").inner_text() == "Choose again: ä <b>.txt."


def test_a_session_comes_back_to_where_it_began_and_no_script_can_read_it(page, server):
    page.goto("/example.com/send")
    follow(page, "Sign in")
    page.locator("#key").fill(POOL_KEY)
    press(page, "Sign in")
    assert page.url == f"{server.url}/example.com/send"
    assert page.evaluate("document.cookie") == ""
    assert POOL_KEY not in server.log


def test_the_log_is_filtered_paged_and_opened(page):
    sign_in(page, OTHER_POOL_KEY)
    run = f"r{secrets.token_hex(4)}"  # which does not begin as a number does that is looked for
    for number in range(3):
        page.goto("/example.net/send")
        sender = {
            "from_email": "me@example.net",
            "to_recipients": f"{run}@example.org, {run}.{number}@example.org",
        }
        write(page, **{**HELLO, **sender, "subject": f"Number {number}"})
        press(page, "Send")
    page.goto("/example.net/messages")
    write(page, q=f"number {run}.1")
    press(page, "Search")
    assert page.locator("tbody a").all_inner_texts() == ["Number 1"]
    page.goto(f"/example.net/messages?limit=2&recipient={run}@example.org")
    assert page.locator("tbody a").all_inner_texts() == ["Number 2", "Number 1"]
    follow(page, "Older messages")
    assert page.locator("tbody a").all_inner_texts() == ["Number 0"]
    follow(page, "Number 0")
    assert page.locator("h1").inner_text() == "Number 0"
    assert page.locator(".timeline li").count() == 1
    page.goto("/example.net/messages?outcome=wrong&since=yesterday")
    assert page.locator("#outcome-problem").is_visible()
    assert page.locator("#since").input_value() == "yesterday"


def test_another_sites_form_changes_nothing_though_the_person_is_signed_in(browser, server):
    page = browser.new_context(base_url=server.url).new_page()
    sign_in(page, ROOT_KEY)
    page.goto("/example.com/primary/fail")
    token = page.locator('input[name="csrf_token"]').first.get_attribute("value")
    state = answer_of(page)
    trap = f"""<form method="post" action="{server.url}/example.com/primary/fail">
      <input name="csrf_token" value="{token}"><button>Win</button></form>"""
    for site in ("http://evil.example", server.url.replace("127.0.0.1", "localhost")):
        page.route(f"{site}/trap", lambda to: to.fulfill(body=trap, content_type="text/html"))
        page.goto(f"{site}/trap")
        press(page, "Win")
        assert status_of(page) == "401 UNAUTHORIZED"
        page.goto("/example.com/primary/fail")
        page.get_by_text("Signed in as administrator").wait_for()
        assert answer_of(page) == state
    page.context.close()


def test_the_form_is_used_with_the_keyboard_alone(page):
    for button, is_on, tabs in (
        ("Start the rehearsal", "true", 4),
        ("End the rehearsal", "false", 1),
    ):
        page.goto("/example.com/backup/fail")
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the content"
        page.locator("#root_api_key").focus()
        page.keyboard.type(ROOT_KEY)
        for _ in range(tabs):
            page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == button
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert f'"simulated_failure_enabled": {is_on}' in answer_of(page)


def test_an_error_page_is_a_page(page):
    page.goto("/nothing/here")
    assert status_of(page) == "404 NOT FOUND"
    follow(page, "Mailpool")
    assert page.locator("h1").inner_text() == "All 2 domains work"


def test_the_command_shown_gives_the_answer_shown(page, server):
    page.goto("/example.com/send")
    write(page, pool_api_key=POOL_KEY, **{**HELLO, "subject": 'It\'s $HOME, `id` & "quotes"'})
    press(page, "Only say what would happen")
    command = page.locator("#curl").text_content()
    assert POOL_KEY not in command
    environment = {**os.environ, "POOL_KEY": POOL_KEY}
    done = subprocess.run(
        ["bash", "-c", f"{command} --silent"], capture_output=True, env=environment, check=True
    )
    assert json.loads(done.stdout) == json.loads(answer_of(page))


def test_the_command_and_the_json_are_copied(browser, server):
    with opened_page(browser, server) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto("/healthz")
        for button, part in (("Copy the command", "#curl"), ("Copy the JSON", "#json")):
            page.get_by_role("button", name=button).click()
            page.get_by_text("Copied").first.wait_for()
            copied = page.evaluate("navigator.clipboard.readText()")
            assert copied == page.locator(part).inner_text()


# What every page keeps to

PAGES = (
    "/",
    "/example.com",
    "/example.com/send",
    "/example.com/primary/send",
    "/example.com/primary/fail",
    "/example.com/primary/health",
    "/example.com/messages",
    "/example.com/messages?outcome=wrong",
    "/sign-in",
    "/sign-out",
    "/keys",
    "/config/versions",
    "/reference",
    "/healthz",
    "/nothing/here",
)


@pytest.fixture(scope="module")
def used_server(browser, tmp_path_factory):
    """One that has something of everything to show."""
    folder = tmp_path_factory.mktemp("used")
    running = Server(folder, make_config(folder))
    pool, root = ({"Authorization": f"Bearer {key}"} for key in (POOL_KEY, ROOT_KEY))
    message = {"from_email": "me@example.com", "to_recipients": "ada@example.org", "html_body": "x"}

    def send(subject: str) -> None:
        body = {**message, "subject": subject}
        requests.post(f"{running.url}/example.com/send", json=body, headers=pool, timeout=30)

    def switch(service: str, kind: str) -> None:
        url = f"{running.url}/example.com/{service}/fail"
        requests.post(url, json={"kind": kind}, headers=root, timeout=30)

    send("One")
    switch("primary", "key_refused")
    send("Two")
    switch("backup", "answer_lost")
    send("Three")
    switch("backup", "unavailable")
    send("Four")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def signed_in(browser, used_server):
    """The cookies of someone who reads messages and switches failures."""
    context = browser.new_context(base_url=used_server.url)
    sign_in(context.new_page(), ROOT_KEY)
    yield context.cookies()
    context.close()


def pages_of(page: Page) -> Iterator[str]:
    """Each page in turn: those of `PAGES`, a message, and what forms answer."""
    for path in PAGES:
        page.goto(path)
        yield path
    page.goto("/example.com/messages")
    follow(page, "Two")
    yield "a message"
    page.goto("/example.com/send")
    page.get_by_text("More fields").click()
    write(page, **{**HELLO, "from_email": "me@example.net"}, tags="täg")
    page.get_by_text("Write it as JSON instead").click()
    press(page, "Only say what would happen")
    yield "problems"
    write(page, **HELLO, tags="tag")
    press(page, "Only say what would happen")
    yield "a dry run"
    press(page, "Send")
    yield "a result"


def look_for_barriers(page: Page, name: str) -> None:
    """All but those of colours; what is folded is not looked at."""
    look(page, name, {"rules": {"color-contrast": {"enabled": False}}})


def look_at_colours(page: Page, name: str) -> None:
    """In light and in dark, which differ in nothing else."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        look(page, f"{name}, {scheme}", {"runOnly": ["color-contrast"]})


def look(page: Page, name: str, options: dict) -> None:
    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    # To describe all that is well as well takes longer than to find it.
    options = {**options, "resultTypes": ["violations"]}
    found = AxeResults(page.evaluate("options => axe.run(options)", options))
    assert found.violations_count == 0, f"{name}: {found.generate_report()}"


@pytest.mark.parametrize("screen", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_page_has_a_barrier(screen, browser, used_server, signed_in):
    with opened_page(browser, used_server, viewport=screen) as page:
        page.context.add_cookies(signed_in)
        for name in pages_of(page):
            unfold(page)
            look_for_barriers(page, name)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= screen["width"], f"{name} is wider than the screen"
            if page.url.endswith("/reference"):  # whose many parts have the same colours
                unfold(page, A_PART)
            look_at_colours(page, name)


A_PART = "details:has(#send_message, #schema-NotSent)"


def unfold(page: Page, which: str = "details") -> None:
    """Open what is folded, and fold the rest."""
    script = "w => { for (const d of document.querySelectorAll('details')) d.open = d.matches(w); }"
    page.evaluate(script, which)


def is_shown(page: Page, selector: str) -> bool:
    """Whether it is to be seen, and not folded away."""
    script = "e => e.checkVisibility({contentVisibilityAuto: true})"
    return page.locator(selector).evaluate(script)


@pytest.mark.parametrize(("screen", "most"), [(WIDE, 7_500), (NARROW, 12_500)])
def test_the_reference_is_folded_and_each_part_opens_where_a_link_leads_to_it(
    screen, most, browser, used_server
):
    with opened_page(browser, used_server, viewport=screen, java_script_enabled=False) as page:
        page.goto("/reference")
        assert page.evaluate("document.documentElement.scrollHeight") < most
        links = page.locator("nav[aria-labelledby=index] a")
        assert links.first.inner_text() == "Send a message"
        assert not is_shown(page, "#send_message")
        links.first.press("Enter")
        assert is_shown(page, "#send_message")
        assert page.locator("details:has(#send_message) > summary").bounding_box()["y"] >= 0
        page.locator("#send_message a[href='#schema-NotSent']").first.press("Enter")
        assert is_shown(page, "#schema-NotSent")
        summary = page.locator("details:has(> #get_domain) > summary")
        summary.press("Enter")
        assert is_shown(page, "#get_domain")
        summary.press("Enter")
        assert not is_shown(page, "#get_domain")


def test_on_paper_the_whole_reference_is_shown(browser, used_server):
    with opened_page(browser, used_server) as page:
        page.goto("/reference")
        page.emulate_media(media="print")
        for id_ in ("send_message", "get_domain", "schema-NotSent"):
            assert is_shown(page, f"#{id_}")
            assert page.locator(f"#{id_}").bounding_box()["height"] > 100


def test_every_page_weighs_little(browser, used_server, signed_in):
    options = {"viewport": {"width": 1280, "height": 5000}}  # all is in sight, and loaded
    with opened_page(browser, used_server, **options) as page:
        page.context.add_cookies(signed_in)
        asked = []

        def note(sent) -> None:
            if sent.is_navigation_request() and sent.frame == page.main_frame:
                asked.clear()
            if not sent.url.endswith("/favicon.svg"):  # which browsers ask for once
                asked.append(sent)

        page.on("request", note)
        for name in pages_of(page):
            page.wait_for_load_state("networkidle")
            assert sum(sum(sent.sizes().values()) for sent in asked) <= 60 * 1024, name
            assert 1 <= len(asked) <= 4, f"{name}: {[sent.url for sent in asked]}"


NOTE_FOCUS = """() => { window.outlines = new Map(); addEventListener('focusin',
    ({target}) => outlines.set(target, getComputedStyle(target).outlineStyle)); }"""
FOCUSABLE = "'a[href], button, input:not([type=hidden]), select, textarea, summary'"
MISSED = f"""() => {{
    const all = [...document.querySelectorAll({FOCUSABLE})].filter(e => e.checkVisibility());
    return [...new Set([...all, ...outlines.keys()])]
        .filter(e => (outlines.get(e) ?? 'none') === 'none').map(e => e.outerHTML); }}"""


def test_everything_is_reached_by_keyboard_and_seen_to_be(browser, used_server, signed_in):
    with opened_page(browser, used_server) as page:
        page.context.add_cookies(signed_in)
        for path in PAGES:
            page.goto(path)
            unfold(page, A_PART if path == "/reference" else "details")
            page.evaluate(NOTE_FOCUS)
            wanted = missed = page.evaluate(MISSED)
            assert wanted
            pressed = 0
            while missed and pressed < 3 * len(wanted):  # a date has several stops
                for _ in range(lap := max(len(missed), 10)):
                    page.keyboard.press("Tab")
                pressed += lap
                missed = page.evaluate(MISSED)
            assert missed == [], path
