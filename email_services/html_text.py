"""The text of an HTML body, laid out as a browser would, at a cost that its length bounds.

inscriptis lays tables, lists and indents out in characters, as mail wants it. What it costs is up
to whoever wrote the HTML: 300 kB can become gigabytes of spaces, or take minutes. HTML beyond the
bounds below, which no newsletter comes near, is read more plainly: each block on a line of its own,
no columns. All bounds are counts, so that the same HTML always has the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from html import unescape
from itertools import zip_longest
from typing import Any, Final

from inscriptis.html_engine import Inscriptis
from inscriptis.model.attribute import DEFAULT_ATTRIBUTE_MAP
from inscriptis.model.config import ParserConfig
from inscriptis.model.css import CssParse
from inscriptis.model.tag import CustomHtmlTagHandlerMapping
from inscriptis.model.tag.list_tag import li_start_handler
from inscriptis.model.tag.table_tag import table_end_handler
from lxml.etree import ParserError
from lxml.html import HtmlElement, document_fromstring

MAX_LAID_OUT: Final = 5_000_000
"""Characters of HTML that are laid out."""

MAX_TAGS: Final = 20_000
"""Opening and closing ones; each takes some 7 µs, and a newsletter has some thousands."""

MAX_ATTRIBUTES: Final = 100
"""Of one tag. The parser looks each up among those before it: 33,000 take it 6 s."""

MAX_SPACE: Final = 200
"""Lines or columns that a style can leave empty; inscriptis alone would take 100,000."""

MAX_DRAWN: Final = (500_000, 20)
"""Characters of indents, margins and tables, those in tables again; and more for each of HTML."""

MAX_WORK: Final = (2_000_000, 50)
"""Characters moved to put lines together, likewise."""

MAX_WORK_IN_ALL: Final = 50_000_000
"""However long the HTML is."""

WORK_OF_A_CELL: Final = 100
"""What a cell of a table costs for each of its lines, or a row for each column, likewise."""

MAX_CACHED: Final = 100_000
"""Characters of HTML whose text is remembered."""


def text_of_html(html: str) -> str:
    """What a person reads in `html`, for mail programs that show text; "" where there is none."""
    return _remembered_text(html) if len(html) <= MAX_CACHED else _text(html)


@lru_cache(maxsize=16)  # the messages of a batch often have one HTML
def _remembered_text(html: str) -> str:
    return _text(html)


def _text(html: str) -> str:
    html = html.strip()
    try:
        return _laid_out(html).strip() if html else ""
    except _TooMuchError:
        return read_plainly(html)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Of HTML: its white space is ASCII's, as are the letters of its names."""
    return re.compile(pattern, re.IGNORECASE | re.ASCII | re.DOTALL)


class _TooMuchError(Exception):
    """The HTML would cost more than one of its length may."""


# Tags and comments end where the parser has them end, as WHATWG describes it ("Tokenization"): a >
# in a quoted value ends no tag. Each pattern matches to its end or to that of the HTML, so that
# nothing is looked at twice; and repeats of a group are counted, since re remembers each.
_ATTRIBUTE = (
    r"[^ \t\r\n\f/>][^ \t\r\n\f/>=]*"
    r"""(?:[ \t\r\n\f]*=[ \t\r\n\f]*"""
    r"""(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|(?!["'])[^ \t\r\n\f>]*))?"""
)
_COMMENT = r"<!--(?:-?>|.*?(?:--!?>|\Z))|<[!?][^>]*(?:>|\Z)|</(?![a-z])[^>]*(?:>|\Z)"
_TOKEN = _compiled(
    rf"{_COMMENT}|<(?P<name>/?[a-z][^ \t\r\n\f/>]*)"
    rf"(?:[ \t\r\n\f/]*{_ATTRIBUTE}){{0,{MAX_ATTRIBUTES}}}"
    r"(?P<rest>[ \t\r\n\f/]*)(?P<end>>|\Z)?"
)
_END_OF_CODE: Final = {
    name: _compiled(rf"</{name}(?=[ \t\r\n\f/>])|\Z")
    for name in ("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes")
}

# The same without the names of attributes, for what is read plainly.
_REST = r"""(?:[^>=]*=\s*(?:"[^"]*(?:"|\Z)|'[^']*(?:'|\Z))?){0,100}[^>]*(?:>|\Z)"""
_BLOCKS = "p|div|br|hr|tr|table|h[1-6]|ul|ol|li|dl|dt|dd|pre|blockquote|section|article|address"
_UNSEEN = _compiled(
    rf"{_COMMENT}|<(?P<code>script|style|title)(?=[\s/>]){_REST}.*?(?=</(?P=code)[\s/>]|\Z)"
)
_WHITE = _compiled(r"\s+")
_SHOWN = _compiled(rf"<(?:a|img)(?=\s){_REST}|</a(?=[\s>]){_REST}")
_VALUE = r"""\s*=\s*(?:"([^"]*)|'([^']*)|([^\s>"']*))"""
_HREF = _compiled(rf"\shref{_VALUE}")
_ALT = _compiled(rf"\salt{_VALUE}")
_BLOCK = _compiled(rf"(?:\s?</?(?:{_BLOCKS})(?=[\s/>]){_REST}\s?){{1,100}}")
_CELL = _compiled(rf"</t[dh](?=[\s>]){_REST}")
_TAG = _compiled(rf"</?[a-z]{_REST}")
_EMPTY_LINES = _compiled(r"\n{3,}")
_NUMBER = re.compile(r"\d{1,9}")
_XML_DECLARATION = _compiled(r"^<\?xml [^>]+?\?>")


def _laid_out(html: str) -> str:
    """The text as inscriptis has it. Raises _TooMuchError."""
    _refuse_many_tags(html)
    text: str = _BoundedInscriptis(_tree(html), len(html)).get_text()
    return text


def _refuse_many_tags(html: str) -> None:
    """Raise _TooMuchError where even parsing it would cost too much."""
    if len(html) > MAX_LAID_OUT:
        raise _TooMuchError
    tags = position = 0
    while token := _TOKEN.search(html, position):
        position = token.end()
        name, rest, end = token.group("name", "rest", "end")
        if name is None:
            continue
        tags += 1
        if tags > MAX_TAGS or end is None:
            raise _TooMuchError
        # The parser takes <style/> for a whole element.
        if (code := _END_OF_CODE.get(name.lower())) and not rest.endswith("/"):
            start, position = position, next(code.finditer(html, position)).start()
            if name.lower() == "script" and "<!--" in html[start:position]:
                raise _TooMuchError  # after it, a script ends elsewhere


def _tree(html: str) -> HtmlElement:
    html = _XML_DECLARATION.sub("", html, count=1)
    try:
        return document_fromstring(html)
    except ParserError:  # it holds no element
        return document_fromstring(f"<pre>{html}</pre>")


class _BoundedInscriptis(Inscriptis):  # type: ignore[misc]  # it has no types
    """inscriptis that counts what it draws and moves, and raises _TooMuchError.

    length: of the HTML, in characters.
    """

    def __init__(self, tree: HtmlElement, length: int) -> None:
        self._drawable = MAX_DRAWN[0] + MAX_DRAWN[1] * length
        self._workable = min(MAX_WORK[0] + MAX_WORK[1] * length, MAX_WORK_IN_ALL)
        config = ParserConfig(
            # A link is kept with its address: without it, half of all mail makes no sense as text.
            display_links=True,
            display_images=True,
            custom_html_tag_handler_mapping=CustomHtmlTagHandlerMapping(
                {"li": _start_item}, {"table": self._end_table}
            ),
        )
        config.attribute_handler.attribute_mapping = {
            **DEFAULT_ATTRIBUTE_MAP,
            "style": self._apply_style,
        }
        super().__init__(tree, config)

    def _draw(self, characters: int) -> None:
        self._drawable -= characters
        if self._drawable < 0:
            raise _TooMuchError

    def _work(self, characters: int) -> None:
        self._workable -= characters
        if self._workable < 0:
            raise _TooMuchError

    def _parse_html_tree(self, state: Any, tree: Any) -> Any:
        """Lay out an element, and what is in it."""
        canvas = state.tags[-1].canvas
        # Each text that is added to a line copies the line.
        self._work(len(canvas.current_block._content))  # noqa: SLF001 - its property changes it
        own = MAX_SPACE if "padding" in (tree.get("style") or "").lower() else 0
        lines = 1 + (tree.text or "").count("\n") + (tree.tail or "").count("\n")
        self._draw((canvas.left_margin + own) * lines)
        return super()._parse_html_tree(state, tree)

    def _apply_style(self, style: str, element: Any) -> None:
        """As `CssParse.attr_style`, within bounds and whatever the numbers are."""
        for declaration in style.lower().split(";"):
            name, _, value = declaration.partition(":")
            if apply := _STYLES.get(name.strip().replace("-webkit-", "")):
                try:
                    apply(value.strip(), element)
                except (AttributeError, OverflowError):  # no number, or an infinite one
                    continue
        for name in ("margin_before", "margin_after", "padding_inline"):
            setattr(element, name, min(getattr(element, name), MAX_SPACE))
        self._draw(max(0, element.margin_before) + max(0, element.margin_after))

    def _end_table(self, state: Any) -> None:
        """Draw a table, unless it is too large: every line of a column is as wide as its widest."""
        rows = [row.columns for row in state.current_table[-1].rows]
        most = max(map(len, rows), default=0)
        self._work(WORK_OF_A_CELL * len(rows) * most)  # which looks for each column in each row
        heights = [max((cell.normalize_blocks() for cell in row), default=0) for row in rows]
        self._work(WORK_OF_A_CELL * sum(h * len(row) for h, row in zip(heights, rows, strict=True)))
        columns = zip_longest(*rows)
        widths = [2 + max(cell.width for cell in column if cell) for column in columns]
        margin = state.tags[-2].canvas.left_margin
        areas = (
            h * (margin + sum(widths[: len(row)])) for h, row in zip(heights, rows, strict=True)
        )
        self._draw(sum(areas))
        table_end_handler(state)


_STYLES: Final = {
    "display": CssParse.attr_display,
    "white-space": CssParse.attr_white_space,
    "margin-top": CssParse.attr_margin_top,
    "margin-before": CssParse.attr_margin_before,
    "margin-bottom": CssParse.attr_margin_bottom,
    "margin-after": CssParse.attr_margin_after,
    "padding-left": CssParse.attr_padding_left,
    "padding-start": CssParse.attr_padding_start,
    "vertical-align": CssParse.attr_vertical_align,
    "horizontal-align": CssParse.attr_horizontal_align,
}
"""What a style may say of text."""


def _start_item(state: Any, attributes: Mapping[str, str]) -> None:
    """Begin an item of a list; a `value` that is no number, or endless, is none."""
    li_start_handler(state, attributes if _NUMBER.fullmatch(attributes.get("value", "")) else {})


def read_plainly(html: str) -> str:
    """The text line by line, in a time that grows with the length of the HTML alone."""
    html = _with_addresses(_WHITE.sub(" ", _UNSEEN.sub("", html)))
    text = unescape(_TAG.sub("", _CELL.sub("  ", _BLOCK.sub("\n", html))))
    text = "\n".join(map(str.strip, text.split("\n")))
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _with_addresses(html: str) -> str:
    """Each link as [text](address), and each image as [its description]."""
    target = ""

    def mark(found: re.Match[str]) -> str:
        nonlocal target
        tag = found[0]
        if tag[1] in "iI":
            description = _value(_ALT, tag)
            return f"[{description}]" if description else ""
        if tag[1] == "/":
            closing, target = (f"]({target})" if target else ""), ""
            return closing
        target = _value(_HREF, tag)
        return "[" if target else ""

    return _SHOWN.sub(mark, html)


def _value(attribute: re.Pattern[str], tag: str) -> str:
    found = attribute.search(tag)
    return found[found.lastindex or 0] if found else ""
