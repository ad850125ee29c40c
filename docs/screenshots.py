"""Make the pictures of the pages in docs/screenshots: the service as it is, in Chromium.

    .venv/bin/python docs/screenshots.py

Needs what the tests need (`make test` installs it) and Chromium.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import POOL_KEY, ROOT_KEY, make_config
from servers import Server
from staged import ON_BACKUP, staged_outage

HERE: Final = Path(__file__).parent
SCREENS: Final = {"wide": {"width": 1100, "height": 760}, "narrow": {"width": 360, "height": 740}}
HTML: Final = """<h1 style="color: #0b50b8">Your order is on its way</h1>
<p>Hello Ada,</p><p>we have handed <b>order 42</b> to the carrier.</p>"""
TEXT: Final = "Hello Ada,\n\nwe have handed order 42 to the carrier."


def main() -> None:
    """Make every picture anew."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("There is no chromium.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder), keeping_copies(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for scheme in ("light", "dark"):
                for screen in SCREENS:
                    look_at_an_outage(browser, scheme, screen)
                    send(browser, server.url, scheme, screen)
        finally:
            browser.close()
            server.kill()


def keeping_copies(folder: str) -> dict[str, Any]:
    """A configuration under which messages can be sent again."""
    config = make_config(folder)
    config["email_services"][0]["keep_content_days"] = 7
    return config


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, scheme: str, screen: str
) -> Iterator[tuple[Page, Callable[[str], None]]]:
    """A page, and what makes a picture of it."""
    context = browser.new_context(
        base_url=url, viewport=SCREENS[screen], color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()

    def picture(name: str) -> None:
        page.screenshot(path=HERE / "screenshots" / f"{name}-{screen}-{scheme}.png")

    yield page, picture
    context.close()


def look_at_an_outage(browser: Browser, scheme: str, screen: str) -> None:
    """As somebody on call does, with a picture of each page."""
    with (
        tempfile.TemporaryDirectory() as folder,
        staged_outage(Path(folder)) as server,
        opened(browser, server.url, scheme, screen) as (page, picture),
    ):
        sign_in(page, ROOT_KEY)
        for name, path in (
            ("home", "/"),
            ("domain", f"/{ON_BACKUP}"),
            ("log", "/messages"),
            ("rehearsal", "/example.com/mailgun/fail"),
        ):
            page.goto(path)
            picture(name)


def send(browser: Browser, url: str, scheme: str, screen: str) -> None:
    """Send a message that fails over, with a picture of each page."""
    with opened(browser, url, scheme, screen) as (page, picture):
        send_one(page, picture)


def send_one(page: Page, picture: Callable[[str], None]) -> None:
    """The way of it."""
    sign_in(page, ROOT_KEY)
    switch(page, "Start the rehearsal")
    sign_in(page, POOL_KEY)
    page.goto("/example.com/send")
    write(page)
    picture("send")
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("heading", name="It was sent").wait_for()
    picture("result")
    page.goto(page.url.partition("?")[0])
    page.frame_locator("iframe").get_by_text("order 42").wait_for()
    picture("message")
    sign_in(page, ROOT_KEY)
    switch(page, "End the rehearsal")


def sign_in(page: Page, key: str) -> None:
    """As whoever has the key."""
    page.goto("/sign-in")
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Signed in").wait_for()


def switch(page: Page, name: str) -> None:
    """A simulated failure on or off."""
    page.goto("/example.com/primary/fail")
    page.get_by_role("button", name=name).click()
    page.wait_for_url("**/fail")


def write(page: Page) -> None:
    """A message into the form."""
    fields = {
        "from_email": "shop@example.com",
        "to_recipients": "Ada <ada@example.org>",
        "subject": "Your order is on its way",
        "raw_text_body": TEXT,
        "html_body": HTML,
    }
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.frame_locator("iframe").get_by_text("order 42").wait_for()
    page.evaluate("window.scrollTo(0, 0)")


if __name__ == "__main__":
    main()
