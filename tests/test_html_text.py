"""The text that is read out of HTML: as a browser would lay it out, up to a bound."""

from __future__ import annotations

from pathlib import Path

import pytest
from inscriptis import get_text
from inscriptis.model.config import ParserConfig

from email_services.html_text import MAX_LAID_OUT, read_plainly, text_of_html

NEWSLETTERS = sorted((Path(__file__).parent / "newsletters").glob("*.html"))


@pytest.mark.parametrize("file", NEWSLETTERS, ids=lambda file: file.stem)
def test_mail_as_people_send_it_is_laid_out_whole(file):
    html = file.read_text(encoding="utf-8")
    laid_out = get_text(html, ParserConfig(display_links=True, display_images=True)).strip()
    assert text_of_html(html) == laid_out
    assert text_of_html(html) != read_plainly(html), "so the bounds are above it"


@pytest.mark.parametrize(
    "html",
    [
        "<p>a</p>" * (MAX_LAID_OUT // 8 + 1),
        "<p style='margin-top:100000em'>a</p><b>b</b>",
        "<p style='color: red; PADDING-LEFT :100000em'>a</p> <i> b</i>",
        "<table><tr><td>" + "w " * 5000 + "</td></tr>" + "<tr><td>a</td></tr>" * 1000 + "</table>",
        "<table><tr>" + "<td>a" * 1000 + "</tr>" + "<tr><td>b</tr>" * 1000 + "</table>",
        "<table><tr><td>" * 60 + "<p>abcdefgh" * 9000 + "</table>" * 60,
        "<a " + " ".join(f"a{n}=1" for n in range(1000)) + ">x</a><ul><li>y</ul>",
        "<a " + " ".join(f"a{n}" for n in range(1000)) + ">x</a><ul><li>y</ul>",
        "<a " + " ".join(f'a{n}="<>"' for n in range(1000)) + ">x</a><ul><li>y</ul>",
        "<ol><li value='" + "9" * 5000 + "'>a</ol>",
        "<ol><li value='²'>a</ol>",
        "<p style='margin-top:" + "9" * 400 + "em'>x",
        "<p style='" + "style:" * 5000 + "'>x",
        "<?xml " + "a" * 1000 + "><p>b</p>",
    ],
    ids=range(14),
)
def test_what_costs_too_much_to_lay_out_is_read_plainly(html):
    assert text_of_html(html) == read_plainly(html)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("  ", ""),
        ("<p>One</p><p>two  three</p>", "One\ntwo three"),
        ("a<br>b<BR/>c", "a\nb\nc"),
        ("<b>bo</b>ld &amp; &lt;b&gt;", "bold & <b>"),
        (
            '<a class=x href="https://a.example/?b=1&amp;c=2">Here</a>',
            "[https://a.example/?b=1&c=2] Here",
        ),
        ("<a href='x'>Here</a>", "[x] Here"),
        ("<style>p {}</style><SCRIPT>x</Script><!-- a --> b", "b"),
        ("a <!-- without an end", "a <!-- without an end"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("a\r\nb", "a b"),
        ("<p>İ</p><script>x</script>", "İ"),
        ("<pretty>a</pretty>", "a"),
    ],
)
def test_a_plain_reading_has_the_words_and_the_links(html, text):
    assert read_plainly(html) == text
