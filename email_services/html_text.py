"""The text of an HTML body, for mail programs that show text.

`inscriptis` lays it out as a browser would, tables and lists and all. That costs what the layout
costs, and a hostile page's can be anything: a cell as wide as a book in a table as long as one. So
it gets pages of the size and shape that mail has, up to bounds that are counted and not timed: the
same HTML has the same text each time. Any other page gets a plainer reading, in time proportional
to its length.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import unescape
from typing import Any, Final

from inscriptis.html_engine import Inscriptis
from inscriptis.model.config import ParserConfig
from inscriptis.model.html_document_state import HtmlDocumentState
from inscriptis.model.tag import CustomHtmlTagHandlerMapping
from inscriptis.model.tag.table_tag import table_end_handler
from lxml.etree import LxmlError
from lxml.html import HtmlElement, document_fromstring

MAX_CACHED: Final = 100_000
"""Characters of HTML whose text is remembered."""

MAX_LAID_OUT: Final = 300_000
"""Characters of HTML that are laid out; mail programs cut a message off after a third of that."""

MAX_ATTRIBUTES: Final = 500
"""Of one element: libxml2 compares each with each."""

MAX_LENGTH: Final = 400
"""A margin or a padding, in whatever unit: each is written out in spaces or line breaks."""

MAX_AREA: Final = 4_000_000
"""Characters of all tables with their padding. A table in a table counts twice."""

MAX_CELLS: Final = 200_000
"""Rows times columns of one table, whether there are such cells or not."""

_ATTRIBUTES = re.compile(
    r"""[\s/]*[^\s/>=][^\s/>=]*(?:\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>"'][^\s>]*)?)?"""
)
_TAG = re.compile(r"<[a-zA-Z][^\s/>]*")
_LENGTH = re.compile(r"(?:margin|padding)[^;:]{0,20}:[^;]{0,20}?(\d+)", re.IGNORECASE)

_HIDDEN: Final = ("script", "style", "head", "title", "template")
_COMMENT: Final = ("<!--", "-->")
_LINK = re.compile(r"""<a\s[^<>]*?\bhref\s*=\s*(["'])([^"'<>]{1,2000})\1[^<>]*>""", re.IGNORECASE)
_BLOCK = re.compile(
    r"<(?:br|hr|/?(?:p|div|tr|table|li|ul|ol|h[1-6]|section|article|blockquote|pre|center|dd|dt))"
    r"(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
_ANY_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>")


class _TooMuch(Exception):
    """The layout of a page costs more than it is worth."""


def text_of_html(html: str) -> str:
    """What a person reads in `html`, or "" where there is nothing."""
    return _remembered_text(html) if len(html) <= MAX_CACHED else _text(html)


@lru_cache(maxsize=16)  # the messages of a batch often have one HTML
def _remembered_text(html: str) -> str:
    return _text(html)


def _text(html: str) -> str:
    try:
        return _laid_out(html)
    # What inscriptis raises on numbers and nesting that nobody means; libxml2 on what is no HTML.
    except (_TooMuch, ValueError, OverflowError, RecursionError, AttributeError, LxmlError):
        return read_plainly(html)


def _laid_out(html: str) -> str:
    """Raises _TooMuch where it would cost too much."""
    html = html.strip()
    if not html:
        return ""
    if len(html) > MAX_LAID_OUT or html.startswith("<?xml") or _has_crowded_tag(html):
        raise _TooMuch
    tree = document_fromstring(html)
    _refuse_wide_margins(tree)
    return str(_Layout(tree).get_text()).strip()


def _has_crowded_tag(html: str) -> bool:
    for tag in _TAG.finditer(html):
        position, attributes = tag.end(), 0
        while found := _ATTRIBUTES.match(html, position):
            position, attributes = found.end(), attributes + 1
            if attributes > MAX_ATTRIBUTES:
                return True
    return False


def _refuse_wide_margins(tree: HtmlElement) -> None:
    for element in tree.iter():
        style = element.get("style") if isinstance(element.tag, str) else None
        if style and any(int(length) > MAX_LENGTH for length in _LENGTH.findall(style[:2000])):
            raise _TooMuch


class _Layout:
    """One page, with a bound on what its tables take."""

    def __init__(self, tree: HtmlElement) -> None:
        self._area = 0
        handlers = CustomHtmlTagHandlerMapping(
            start_tag_mapping={}, end_tag_mapping={"table": self._end_table}
        )
        # A link is kept with its address: without it, half of all mail makes no sense as text.
        config = ParserConfig(
            display_links=True, display_images=True, custom_html_tag_handler_mapping=handlers
        )
        self._page = Inscriptis(tree, config)

    def get_text(self) -> str:
        text: str = self._page.get_text()
        return text

    def _end_table(self, state: HtmlDocumentState) -> None:
        if state.current_table:
            self._area += _area(state.current_table[-1])
            if self._area > MAX_AREA:
                raise _TooMuch
        table_end_handler(state)


def _area(table: Any) -> int:
    """Characters of the table once each cell is as large as its row and column."""
    columns = max((len(row) for row in table.rows), default=0)
    if columns * len(table.rows) > MAX_CELLS:
        raise _TooMuch
    widths = [0] * columns
    height = 0
    for row in table.rows:
        lines = 1
        for number, cell in enumerate(row.columns):
            cell_lines = [line for block in cell.blocks for line in block.split("\n")]
            cell_lines.append(cell.current_block.content)
            widths[number] = max(widths[number], *map(len, cell_lines))
            lines = max(lines, len(cell_lines))
        height += lines
    return height * (sum(widths) + 2 * columns)


def read_plainly(html: str) -> str:
    """The text between the tags, a line for each block, and the address before a link's words."""
    html = _without(html, *_COMMENT)
    for tag in _HIDDEN:
        html = _without(html, f"<{tag}", f"</{tag}>")
    html = _LINK.sub(r" [\2] ", html.replace("\r", "").replace("\n", " "))
    text = unescape(_ANY_TAG.sub("", _BLOCK.sub("\n", html)))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _without(html: str, begin: str, end: str) -> str:
    """`html` without what stands between the two, in whatever case; what has no end stays."""
    lower = html.lower()
    if len(lower) != len(html):  # a few letters have more than one in lower case
        lower = html
    kept, position = [], 0
    while (start := lower.find(begin, position)) >= 0:
        stop = lower.find(end, start)
        if stop < 0:
            break
        kept.append(html[position:start])
        position = stop + len(end)
    return "".join([*kept, html[position:]])
