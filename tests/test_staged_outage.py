"""An outage on the pages: what somebody on call sees first, on any screen, and stays current."""

from __future__ import annotations

import re

import pytest
import requests
from conftest import ROOT, ROOT_KEY
from playwright.sync_api import Page, expect
from staged import CANNOT_SEND, NEVER_USED, ON_BACKUP, staged_outage
from test_pages import look_at_colours, look_for_barriers, opened_page, press, sign_in, unfold

SCREENS = {
    "phone": {"width": 360, "height": 740},
    "tablet": {"width": 768, "height": 1024},
    "desk": {"width": 1280, "height": 900},
}


@pytest.fixture(scope="module")
def outage(tmp_path_factory):
    with staged_outage(tmp_path_factory.mktemp("outage")) as server:
        yield server


@pytest.fixture(scope="module")
def root_cookies(browser, outage):
    context = browser.new_context(base_url=outage.url)
    sign_in(context.new_page(), ROOT_KEY)
    yield context.cookies()
    context.close()


@pytest.fixture
def on_call(browser, outage, root_cookies):
    """A page of the administrator, on a screen of a desk."""
    with opened_page(browser, outage, viewport=SCREENS["desk"]) as page:
        page.context.add_cookies(root_cookies)
        yield page


def first_screen(page: Page) -> str:
    """What is to be read without moving anything."""
    return page.evaluate(
        """() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          const range = document.createRange(); const found = [];
          while (walk.nextNode()) {
            range.selectNodeContents(walk.currentNode);
            const { top, bottom, height } = range.getBoundingClientRect();
            if (height && top >= 0 && bottom <= innerHeight) found.push(walk.currentNode.data);
          }
          return found.join("").replace(/\\s+/g, " "); }"""
    )


@pytest.mark.parametrize("screen", SCREENS)
def test_the_first_screen_answers_the_questions_of_who_is_on_call(
    screen, browser, outage, root_cookies
):
    with opened_page(browser, outage, viewport=SCREENS[screen]) as page:
        page.context.add_cookies(root_cookies)
        page.goto("/")
        seen = first_screen(page)
    assert "2 of 10 domains need you" in seen
    assert re.search(rf"{CANNOT_SEND} cannot send for \d+ min, since \d\d:\d\d UTC", seen)
    assert "mailgun: key refused (HTTP 401); sendgrid: connection was refused, 4 in a row" in seen
    assert "No mail goes out. In the last hour:" in seen
    assert "What to do: mailgun: renew its key in the configuration" in seen
    assert f"{ON_BACKUP} works only thanks to sendgrid and backup" in seen


def test_ten_domains_of_three_services_are_two_screens_and_trouble_is_first(on_call):
    on_call.goto("/")
    domains = on_call.locator("section.domain")
    assert domains.count() == 10
    assert domains.locator(".services > li").count() == 30
    last = domains.last.bounding_box()
    assert last["y"] + last["height"] <= 2 * 900
    names = on_call.locator("section.domain h2").all_inner_texts()
    assert names[:2] == [CANNOT_SEND, ON_BACKUP]


def test_unknown_messages_are_one_step_away(on_call):
    on_call.goto("/")
    on_call.get_by_role("link", name=f"3 messages of {ON_BACKUP} are unknown").click()
    on_call.wait_for_url("**/messages?outcome=unknown&period=hour")
    assert on_call.locator("tbody tr").count() == 3


def test_a_chart_is_told_in_words_too(on_call):
    on_call.goto(f"/{ON_BACKUP}")
    charts = on_call.locator(".chart")
    assert re.fullmatch(
        r"Last hour: \d+ sent, \d+ failed over, 3 unknown", charts.first.inner_text().strip()
    )
    unfold(on_call)
    assert on_call.locator("#by-hour tbody tr").count() == 24


def test_what_is_to_be_done_with_a_service_is_behind_its_row(on_call):
    on_call.goto(f"/{CANNOT_SEND}")
    row = on_call.locator(".services > li", has_text="mailgun")
    button = row.get_by_role("button", name="Try it again")
    assert not button.is_visible()
    row.locator("summary").click()
    button.click()
    on_call.wait_for_url("**/mailgun/health")
    assert on_call.get_by_text("Due: the next message tries it.").is_visible()
    on_call.goto("/")
    state = on_call.locator(".services > li", has_text="mailgun").first.locator(".state")
    assert state.get_attribute("class") == "state odd", "no message was accepted yet"


def switch(server, wanted: bool) -> None:
    """A simulated failure of a domain that sends nothing."""
    url = f"{server.url}/{NEVER_USED}/mailgun/fail"
    body = {"simulated_failure": wanted}
    requests.post(url, json=body, headers=ROOT, timeout=30).raise_for_status()


@pytest.fixture
def rehearsal(outage):
    """Give a switch; it is off in the end."""
    yield lambda wanted: switch(outage, wanted)
    switch(outage, False)


def test_a_simulated_failure_is_never_green(on_call, rehearsal):
    rehearsal(True)
    on_call.goto(f"/{NEVER_USED}")
    row = on_call.locator(".services > li", has_text="mailgun")
    assert row.locator(".state").get_attribute("class") == "state odd"
    assert on_call.locator(".lead .state").get_attribute("class") == "state odd"
    assert on_call.locator(".good").count() == 0


def test_a_service_is_made_to_fail_on_a_page_of_its_own_and_for_a_quarter_of_an_hour(
    on_call, rehearsal
):
    on_call.goto("/")
    unfold(on_call)
    assert on_call.locator("form[action$='/fail']").count() == 0, "no click on the way does it"
    on_call.locator(f"a[href='/{NEVER_USED}/mailgun/fail']").click()
    expect(on_call.locator("#minutes")).to_have_value("15")
    assert on_call.locator("main form button").all_inner_texts() == ["Start the rehearsal"]
    on_call.locator("#kind").select_option("key_refused")
    on_call.locator("#share").select_option("0.5")
    press(on_call, "Start the rehearsal")
    on_call.goto("/sign-in")
    told = on_call.locator(".banner").inner_text()
    assert re.match(
        rf"Rehearsal: mailgun of {NEVER_USED}, simulated failure: key refused, for 50 % of its "
        r"messages, until \d\d:\d\d UTC\.",
        told,
    )
    on_call.locator(".banner").get_by_role("link").click()
    assert on_call.locator("main form button").all_inner_texts() == ["End the rehearsal"]
    press(on_call, "End the rehearsal")
    on_call.reload()
    expect(on_call.locator("main form button")).to_have_text("Start the rehearsal")
    assert on_call.locator(".banner").count() == 0


def test_on_paper_there_are_all_services_and_nothing_to_press(on_call):
    on_call.goto("/")
    on_call.emulate_media(media="print")
    rows = on_call.locator(".services summary")
    assert rows.count() == 30
    assert all(row.is_visible() for row in rows.all())
    assert on_call.locator(".troubles li").first.is_visible()
    assert [b for b in on_call.locator("button").all() if b.is_visible()] == []


# The page keeps itself current


def pass_seconds(page: Page, seconds: int) -> None:
    page.clock.fast_forward(seconds * 1000)


def test_the_page_keeps_itself_current_and_lets_everything_be_that_stays(on_call, rehearsal):
    on_call.clock.install()
    on_call.goto("/")
    expect(on_call.locator("#current")).to_contain_text("The page keeps itself current.")
    row = on_call.locator(f"[id='service/{ON_BACKUP}/mailgun']")
    row.locator("summary").click()
    row.get_by_role("link", name="Health").focus()
    rehearsal(True)
    pass_seconds(on_call, 15)
    on_call.get_by_text(f"{NEVER_USED} works only thanks to sendgrid and backup").first.wait_for()
    expect(on_call).to_have_title("3 of 10 domains need you · Mailpool")
    names = on_call.locator("section.domain h2").all_inner_texts()
    assert NEVER_USED in names[:3], "it has moved up"
    assert row.evaluate("d => d.open")
    assert on_call.locator(":focus").get_attribute("href") == f"/{ON_BACKUP}/mailgun/health"
    rehearsal(False)
    pass_seconds(on_call, 15)
    expect(on_call).to_have_title("2 of 10 domains need you · Mailpool")
    assert row.evaluate("d => d.open")


def test_while_nothing_is_new_no_page_is_made(on_call, outage):
    on_call.clock.install()
    asked = []
    on_call.goto(f"/{NEVER_USED}", wait_until="networkidle")
    on_call.on("response", lambda got: asked.append((got.request.url, got.status)))
    for number in (1, 2):
        with on_call.expect_response(lambda got: got.status == 304):
            pass_seconds(on_call, 15)
        assert asked == [(f"{outage.url}/{NEVER_USED}?format=json", 304)] * number


def test_times_count_on_by_themselves(on_call):
    on_call.clock.install()
    on_call.goto(f"/{ON_BACKUP}")
    time = on_call.locator(".troubles time").first
    before = int(time.inner_text().removesuffix(" min"))
    pass_seconds(on_call, 120)
    expect(time).to_have_text(re.compile(f"({before + 2}|{before + 3}) min"))


def test_once_a_time_that_was_told_has_come_the_page_asks_what_is_now(on_call, outage):
    on_call.clock.install()
    on_call.goto(f"/{ON_BACKUP}", wait_until="networkidle")
    with on_call.expect_response(f"{outage.url}/{ON_BACKUP}"):
        pass_seconds(on_call, 15 * 60)  # no rest of a service is as long


def test_a_page_that_cannot_be_kept_current_says_so(on_call):
    on_call.clock.install()
    on_call.goto(f"/{ON_BACKUP}")
    expect(on_call.locator("#current")).to_contain_text("The page keeps itself current.")
    on_call.route("**/*format=json", lambda route: route.fulfill(status=503))
    pass_seconds(on_call, 15)
    expect(on_call.locator("#current")).to_contain_text("the server does not answer since")
    on_call.unroute("**/*format=json")
    pass_seconds(on_call, 30)
    expect(on_call.locator("#current")).to_contain_text("The page keeps itself current.")


def test_a_page_whose_session_is_over_says_so_and_asks_no_more(browser, outage):
    with opened_page(browser, outage) as page:
        page.clock.install()
        page.route("**/*format=json", lambda route: route.fulfill(status=401))
        page.goto("/")
        pass_seconds(page, 15)
        expect(page.locator("#current")).to_have_text("No longer current: you are signed out.")


def test_what_is_typed_stays_while_the_page_changes(browser, outage):
    with opened_page(browser, outage) as page:
        page.clock.install()
        page.goto(f"/{ON_BACKUP}/mailgun/health")
        page.locator("#root_api_key").fill("half of a k")
        # What comes before the form may be more or less then.
        page.evaluate("document.getElementById('form').before(document.createElement('section'))")
        url = f"{outage.url}/{ON_BACKUP}/mailgun/health"
        requests.post(url, headers=ROOT, timeout=30).raise_for_status()
        pass_seconds(page, 15)
        page.get_by_text("Due: the next message tries it.").wait_for()
        assert page.locator("#root_api_key").input_value() == "half of a k"
        assert page.locator(":focus").get_attribute("id") == "root_api_key"


def test_without_scripts_the_page_says_of_when_it_is(browser, outage):
    with opened_page(browser, outage, java_script_enabled=False) as page:
        page.goto("/")
        assert re.fullmatch(r"As of \d\d:\d\d UTC", page.locator("#current").inner_text())


# What every page keeps to

PAGES = (
    "/",
    f"/{CANNOT_SEND}",
    f"/{ON_BACKUP}",
    f"/{NEVER_USED}",
    f"/{CANNOT_SEND}/backup/health",
    f"/{NEVER_USED}/backup/fail",
    f"/{NEVER_USED}/mailgun/fail",
    "/example.org",
)


@pytest.mark.parametrize("screen", SCREENS)
def test_no_page_of_an_outage_has_a_barrier(screen, browser, outage, root_cookies, rehearsal):
    rehearsal(True)
    with opened_page(browser, outage, viewport=SCREENS[screen]) as page:
        page.context.add_cookies(root_cookies)
        for path in PAGES:
            page.goto(path)
            unfold(page)
            look_for_barriers(page, path)
            look_at_colours(page, path)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SCREENS[screen]["width"], f"{path} is wider than the screen"
