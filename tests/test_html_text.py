"""The text that is read out of HTML: what it is, and what it may cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from clocks import little_work
from inscriptis import get_text
from inscriptis.model.config import ParserConfig

from email_services.html_text import MAX_ATTRIBUTES, MAX_TAGS, read_plainly, text_of_html

NEWSLETTERS = sorted((Path(__file__).parent / "newsletters").glob("*.html"))


@pytest.mark.parametrize("page", NEWSLETTERS, ids=lambda page: page.stem)
def test_a_newsletter_is_laid_out_in_lines_and_columns(page):
    html = page.read_text(encoding="utf-8")
    assert text_of_html(html) == page.with_suffix(".txt").read_text(encoding="utf-8")


SHAPES = {
    "each style that inscriptis knows": (
        "<html><div style='padding-left:3em;margin-top:16px;margin-bottom:2em'>a"
        "<p style='-webkit-padding-start:16px; DISPLAY : inline'>b</p></div>"
        "<span style='white-space:pre'>c   d\ne</span><b style='display:none'>f</b>"
    ),
    "a style with no number, or a negative one": "<p style='margin-top:auto;padding-left:-2em'>a",
    "cells that are aligned": (
        "<table><tr><th align=right>a</th><td style='vertical-align:top'>b<br>c</td></tr>"
        "<tr><td>long text</td><td valign=bottom>d</td></tr></table>"
    ),
    "a table in an indented list": "<ul><li>a<table><tr><td>b<td>c</table><li value=7>d</ul>",
    "numbers of items": "<ol><li value=4>a<li>b<li value=x>c<li value='٣'>d</ol>",
    "tags in quotes, comments and code": (
        "<html><a title='>' href=x>a</a><!-- <p> --><style><p></style><script>'<p>'</script>b"
    ),
    "nothing but a comment": "<!-- a -->",
    "an XML declaration": "<?xml version='1.0'?><p>a</p>",
    "a table of 1,000 rows": "<table>" + "<tr><td>12<td>345<td>6" * 1000 + "</table>",
    "an image of 2 MB in the HTML": f"<p>a<img alt=b src='data:image/png,{'A' * 2_000_000}'>",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_within_the_bounds_has_the_text_of_inscriptis(shape):
    html = SHAPES[shape]
    as_text = ParserConfig(display_links=True, display_images=True)
    assert text_of_html(html) == get_text(html, as_text).strip()


def filled(part: str, before: str = "", after: str = "", size: int = 1_000_000) -> str:
    return before + part * (size // len(part)) + after


CROWDED = " ".join(f"a{number}=1" for number in range(50_000))
HOSTILE = {
    "links in one line": filled("<a href='http://example.org/'>l</a> "),
    "rows": filled("<tr><td>a</td></tr>", "<table>", "</table>"),
    "cells": filled("<td>a</td>", "<table><tr>", "</table>"),
    "a wide cell above many rows": filled("<tr><td>a", "<table><tr><td>" + "w " * 50_000),
    "a wide row above many rows": filled("<tr>", "<table>" + "<td>" * 9_000, size=30_000),
    "a tall cell beside many": filled("<td>b", "<table><td>" + "a<br>" * 9_000, size=30_000),
    "a tall text beside many cells": filled(
        "<td>b", "<table><td><pre>" + "a\n" * 200_000 + "</pre>"
    ),
    "a tall text in tables in tables": filled("\na", "<table><tr><td>" * 60 + "<pre>"),
    "margins": filled("<p style='margin-top:100000em'>a"),
    "indents": filled("<p style='padding-left:100000em'>a</p>"),
    "indents in indents": filled("<p>a", "<div style='padding-left:100000em'>" * 200),
    "30 kB of indents in indents": filled(
        "<p>a", "<div style='padding-left:400em'>" * 200, size=20_000
    ),
    "an indented text of many lines": filled("\na", "<pre style='padding-left:100000em'>"),
    "attributes": f"<a {CROWDED}>b</a>",
    "attributes in tags that quotes hide": f"<b ' \" x={CROWDED}>b</b>",
    "attributes after an element of style": f"<style/><i {CROWDED}></style>b",
    "attributes in a script that does not end": (
        f"<script><!--<script></script><a b=' --></script><i {CROWDED}>c"
    ),
    "styles in a style": f"<p style='{'style:' * 100_000}'>a",
    "an endless number in a style": f"<p style='margin-top:{'9' * 400}em'>a",
    "an endless number of an item": f"<ol><li value='{'9' * 5000}'>a</ol>",
    "a number that is none of an item": "<ol><li value='²'>a</ol>",
    "spans": filled("<td rowspan=100000 colspan=100000>a</td>", "<table><tr>"),
    "tables in tables": filled("<table><tr><td>a"),
    "elements in elements": filled("<div>a"),
    "inline elements that never end": filled("<b>a"),
    "lists in lists": filled("<ul><li>a"),
    "lines": filled("a<br>"),
    "tags that never end": filled("<a "),
    "quotes that never end": filled("<a b=' "),
    "comments": filled("<!--[if mso]><table><td><![endif]-->"),
    "comments that never end": filled("<!-- "),
    "code that never ends": filled("<style>"),
    "entities": filled("&lt;"),
    "less-than signs": filled("<"),
    "one word": "x" * 1_000_000,
    "an address in many links": filled("</a><b>", f"<a href='{'u' * 500_000}'>"),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_no_html_costs_more_than_its_length_explains(shape):
    html = HOSTILE[shape]
    # Milliseconds; each of the first twenty took minutes, gigabytes, or ended in an error.
    with little_work():
        text = text_of_html(html)
    assert len(text) <= 20 * len(html) + 500_000


@pytest.mark.parametrize(
    "html",
    [
        "<b>a</b> " * (MAX_TAGS // 2 + 1),
        "<p><br>a<br></p>" * MAX_TAGS,
        f"<ul {'a ' * (MAX_ATTRIBUTES + 1)}><li>a</ul>",
        "<ul " + CROWDED.replace("=1", "='>'") + "><li>a</ul>",
        "<script><!-- x</script><ul><li>a</ul>",
        "<table><tr><td>" + "w" * 5_000 + "<tr><td>a<tr>" * 1_000 + "</table>",
    ],
    ids=range(6),
)
def test_what_is_beyond_the_bounds_is_read_plainly_each_time(html):
    assert text_of_html(html) == read_plainly(html)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        (" \n", ""),
        ("<p>One</p><p>two  three</p>", "One\ntwo three"),
        ("a<br>b<BR/>c\r\nd", "a\nb\nc d"),
        ("<h1>a</h1>\n<p>\n<p>\n<p>b", "a\nb"),
        ("<b>bo</b>ld &amp; &lt;b&gt; 1 < 2", "bold & <b> 1 < 2"),
        (
            "<a class=x href='https://a.example/?b=1&amp;c=2'>d</a>",
            "[d](https://a.example/?b=1&c=2)",
        ),
        ('<A HREF="x" title="a > b"><img src=y ALT=z></A><a name=u>v</a>', "[[z]](x)v"),
        ("<tr><td>a</td><td>b</td></tr><tr><td>c</td></tr>", "a  b\nc"),
        ("<style>p {}</style><SCRIPT>x</Script><title>y</title><!-- a --> b", "b"),
        ("<abbr>a</abbr><pre>b</pre>", "a\nb"),
        ("a<a href=x", "a["),
    ],
)
def test_a_plain_reading_has_the_words_and_the_addresses(html, text):
    assert read_plainly(html) == text
