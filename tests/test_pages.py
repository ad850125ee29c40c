"""The pages in a real browser: sending and switching, with and without JavaScript."""

from __future__ import annotations

import os
import shutil

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from playwright.sync_api import Page, sync_playwright
from servers import Server

NO_NETWORK = ["--disable-background-networking", "--disable-component-update", "--no-sandbox"]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI has a browser")
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=NO_NETWORK)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    running = Server(folder, make_config(folder))
    yield running
    running.kill()


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def page(request, browser, server):
    """A page that must load nothing from elsewhere and complain of nothing."""
    context = browser.new_context(java_script_enabled=request.param, base_url=server.url)
    opened = context.new_page()
    complaints = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    elsewhere = []
    opened.on(
        "request",
        lambda sent: None if sent.url.startswith(server.url) else elsewhere.append(sent.url),
    )
    yield opened
    context.close()
    # A browser reports a 4xx or 5xx of a page as an error of the page; those are asked for here.
    assert [text for text in complaints if "the server responded with a status" not in text] == []
    assert elsewhere == []


def answer_of(page: Page) -> str:
    return page.locator("pre").first.inner_text()


def test_a_person_finds_the_way_from_home_to_a_form_and_sends(page):
    page.goto("/")
    assert page.title() == "Email domains · Mailpool"
    page.get_by_role("link", name="/example.com", exact=False).first.click()
    assert page.locator("h1").inner_text() == "An email domain"
    page.get_by_role("link", name="/example.com/send", exact=False).first.click()
    page.get_by_label("pool_api_key").fill(POOL_KEY)
    page.get_by_label("from_email").fill("me@example.com")
    page.get_by_label("to_recipients").fill('"Doe, Jane" <jane@example.org>, b@example.org')
    page.get_by_label("subject").fill("Grüße <b>")
    page.get_by_label("raw_text_body").fill("One\n\nTwo")
    page.get_by_role("button", name="POST").click()
    assert "200 OK" in page.locator("#answer").inner_text()
    assert '"service_used": "primary"' in answer_of(page)


def test_a_problem_is_at_its_field_and_what_was_typed_stays(page):
    page.goto("/example.com/send")
    page.get_by_label("pool_api_key").fill(POOL_KEY)
    page.get_by_label("from_email").fill("me@example.net")
    page.get_by_label("raw_text_body").fill("\n<script>alert(1)</script>")
    page.get_by_role("button", name="POST").click()
    assert "400 BAD REQUEST" in page.locator("#answer").inner_text()
    assert "an address at example.com" in page.locator("#from_email-problem").inner_text()
    assert page.locator("#subject-problem").inner_text() == "Required."
    assert page.get_by_label("from_email").input_value() == "me@example.net"
    assert page.get_by_label("raw_text_body").input_value() == "\n<script>alert(1)</script>"
    assert page.get_by_label("pool_api_key").input_value() == ""


def test_a_failure_is_switched_on_seen_and_off_again(page):
    for choice, enabled, used in (("on", "true", "backup"), ("off", "false", "primary")):
        page.goto("/example.com/primary/fail")
        page.get_by_label("root_api_key").fill(ROOT_KEY)
        page.get_by_label("simulated_failure").select_option(label=choice)
        page.get_by_role("button", name="POST").click()
        assert f'"simulated_failure_enabled": {enabled}' in answer_of(page)
        page.goto("/example.com/send")
        for label, value in {
            "pool_api_key": POOL_KEY,
            "from_email": "me@example.com",
            "to_recipients": "ada@example.org",
            "subject": "Hello",
            "html_body": "<p>Hello</p>",
        }.items():
            page.get_by_label(label).fill(value)
        page.get_by_role("button", name="POST").click()
        assert f'"service_used": "{used}"' in answer_of(page)


def test_a_form_that_is_left_alone_switches_over_and_back(page):
    for enabled in ("true", "false"):
        page.goto("/example.com/backup/fail")
        page.get_by_label("root_api_key").fill(ROOT_KEY)
        page.get_by_role("button", name="POST").click()
        assert f'"simulated_failure_enabled": {enabled}' in answer_of(page)


def test_a_person_signs_in_sends_without_a_key_and_signs_out(page, server):
    page.goto("/example.com/send")
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("key").fill(POOL_KEY)
    page.get_by_role("button", name="POST").click()
    assert page.url == f"{server.url}/example.com/send", "back where it was"
    assert page.get_by_text("Signed in for example.com").is_visible()
    for label in ("from_email", "to_recipients"):
        page.get_by_label(label).fill("me@example.com")
    page.get_by_label("subject").fill("Hello")
    page.get_by_label("raw_text_body").fill("Hello")
    page.get_by_role("button", name="POST").click()
    assert "200 OK" in page.locator("#answer").inner_text()
    page.goto("/example.com/messages")
    assert '"subject": "Hello"' in answer_of(page)
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    assert page.get_by_role("link", name="Sign in").is_visible()
    page.goto("/example.com/messages")
    assert "401 UNAUTHORIZED" in page.locator("#answer").inner_text()
    assert POOL_KEY not in server.log


def test_another_sites_form_changes_nothing_though_the_person_is_signed_in(browser, server):
    page = browser.new_context(base_url=server.url).new_page()
    page.goto("/sign-in")
    page.get_by_label("key").fill(ROOT_KEY)
    page.get_by_role("button", name="POST").click()
    page.goto("/example.com/primary/fail")
    token = page.locator('input[name="csrf_token"]').first.get_attribute("value")
    state = answer_of(page)
    trap = f"""<form method="post" action="{server.url}/example.com/primary/fail">
      <input name="csrf_token" value="{token}"><button>Win</button></form>"""
    for site in ("http://evil.example", server.url.replace("127.0.0.1", "localhost")):
        page.route(f"{site}/trap", lambda to: to.fulfill(body=trap, content_type="text/html"))
        page.goto(f"{site}/trap")
        page.get_by_role("button", name="Win").click()
        assert "401 UNAUTHORIZED" in page.locator("#answer").inner_text()
        page.goto("/example.com/primary/fail")
        assert page.get_by_text("Signed in as administrator").is_visible()
        assert answer_of(page) == state
    page.context.close()


def test_a_wrong_key_is_told(page):
    page.goto("/")
    page.get_by_label("root_api_key").fill("wrong")
    page.get_by_role("button", name="POST").click()
    assert "401 UNAUTHORIZED" in page.locator("#answer").inner_text()


def test_the_form_is_used_with_the_keyboard_alone(page):
    page.goto("/example.com/primary/fail")
    page.get_by_label("root_api_key").focus()
    page.keyboard.type(ROOT_KEY)
    page.keyboard.press("Tab")
    page.keyboard.type("off")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_load_state()
    assert '"simulated_failure_enabled": false' in answer_of(page)


def test_an_error_page_is_a_page(page):
    page.goto("/nothing/here")
    assert "404 NOT FOUND" in page.locator("#answer").inner_text()
    page.get_by_role("link", name="Mailpool").click()
    assert page.locator("h1").inner_text() == "Email domains"
