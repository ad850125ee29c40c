"""The list of messages in a real browser: two lines a message on a phone, one at a desk."""

from __future__ import annotations

import pytest
import requests
from conftest import POOL, POOL_KEY, make_config
from messages import PLAIN
from servers import Server

RIGHT_TO_LEFT = "مرحبا بالعالم طلبك رقم اثنان وأربعون في الطريق إليك الآن " * 3
MIXED = f"Re: {RIGHT_TO_LEFT}"
SUBJECTS = [
    "Short",
    "A subject of many words, which tells all that happened today and will tomorrow " * 3,
    "x" * 300,
    RIGHT_TO_LEFT,
    MIXED,
    "😀🚀 Emoji 👩‍👩‍👧‍👦 " * 20,
]
LONG = f"{'a' * 60}@{'b' * 60}.example.org"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    running = Server(folder, make_config(folder))
    for subject in SUBJECTS:
        message = {**PLAIN, "subject": subject, "to_recipients": [LONG, "b@example.org", "c@d.org"]}
        sent = requests.post(
            f"{running.url}/example.com/send", json=message, headers=POOL, timeout=30
        )
        sent.raise_for_status()
    yield running
    running.kill()


IS_CUT = "e => e.scrollHeight > e.clientHeight || e.scrollWidth > e.clientWidth"
IS_SEEN_AT = """(element, [start, length]) => {
    const word = document.createRange();
    word.setStart(element.firstChild, start);
    word.setEnd(element.firstChild, start + length);
    const [at, box] = [word.getBoundingClientRect(), element.getBoundingClientRect()];
    return box.left <= at.left && at.right <= box.right && at.top < box.bottom;
}"""


@pytest.mark.parametrize(("width", "least", "most"), [(360, 45, 75), (1280, 25, 45)])
def test_each_message_has_its_lines_whatever_its_subject(width, least, most, browser, server):
    context = browser.new_context(base_url=server.url, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto("/sign-in")
    page.get_by_label("key").fill(POOL_KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{server.url}/")
    page.goto("/example.com/messages")
    rows = page.locator(".messages tbody tr")
    heights = [row.bounding_box()["height"] for row in rows.all()]
    assert len(heights) == len(SUBJECTS)
    assert all(least <= height <= most for height in heights), heights
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is cut off is the end, and not what people read first.
    first, _, _ = RIGHT_TO_LEFT.partition(" ")
    for subject in (RIGHT_TO_LEFT, MIXED):
        cut = page.get_by_role("link", name=subject.strip(), exact=True)
        assert cut.evaluate(IS_SEEN_AT, [subject.index(first), len(first)]), subject
        assert cut.evaluate(IS_CUT), subject
    context.close()
