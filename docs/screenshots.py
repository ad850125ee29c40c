"""Make the pictures of the pages in docs/screenshots: the service as it is, in Chromium.

    .venv/bin/python docs/screenshots.py

Needs what the tests need (`make test` installs it) and Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import POOL_KEY, ROOT_KEY, make_config
from servers import Server

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
        server = Server(Path(folder), make_config(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for scheme in ("light", "dark"):
                for screen in SCREENS:
                    take(browser, server.url, scheme, screen)
        finally:
            browser.close()
            server.kill()


def take(browser: Browser, url: str, scheme: str, screen: str) -> None:
    """Walk through the pages as a person does, with a picture of each."""
    context = browser.new_context(
        base_url=url, viewport=SCREENS[screen], color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()

    def picture(name: str) -> None:
        page.screenshot(path=HERE / "screenshots" / f"{name}-{screen}-{scheme}.png")

    sign_in(page, ROOT_KEY)
    switch(page, "Simulate a failure of primary")
    page.goto("/")
    picture("home")
    sign_in(page, POOL_KEY)
    page.goto("/example.com/send")
    write(page)
    picture("send")
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("heading", name="It was sent").wait_for()
    picture("result")
    page.frame_locator("iframe").get_by_text("order 42").wait_for()
    picture("message")
    page.goto("/example.com")
    picture("domain")
    sign_in(page, ROOT_KEY)
    switch(page, "End the failure of primary")
    context.close()


def sign_in(page: Page, key: str) -> None:
    """As whoever has the key."""
    page.goto("/sign-in")
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Signed in").wait_for()


def switch(page: Page, name: str) -> None:
    """A simulated failure on or off."""
    page.goto("/example.com")
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
