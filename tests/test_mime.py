from __future__ import annotations

import email
import email.policy
import re

import pytest
from contract import make_message
from messages import GIF, MESSAGES, PDF, PNG, in_base64

from email_services.mime import build_mime

URL = "<https://example.com/" + "u" * 900 + ">"
EXTREMES = {
    "a thousand names beyond ASCII": {
        "to_recipients": [f'"Müller, Jörg {n}" <r{n}@example.org>' for n in range(1000)]
    },
    "a long name with a comma": {
        "to_recipients": [f'"{"word " * 150}, x" <a@example.org>', "b@b.de"]
    },
    "a long word with a comma": {"to_recipients": [f'"{"w" * 900}, x" <a@example.org>', "b@b.de"]},
    "a name of quotes": {"to_recipients": ['"' + r"\"" * 998 + '" <a@example.org>', "b@b.de"]},
    "a long name beyond ASCII": {"from_name": "Jörg, " * 160},
    "a long name beside a raw address": {"to_recipients": f'"{"ü, " * 300}" <jörg@example.org>'},
    "a word too long for a line": {"subject": "x" * 998},
    "emoji without a space beside a raw address": {
        "to_recipients": "jörg@example.org",
        "subject": "😀" * 998,
    },
    "a raw word that fits a line but for its header's name": {
        "to_recipients": "jörg@example.org",
        "subject": "ü" * 496,
    },
    "spaces side by side": {
        "subject": "a  b   c " * 50 + "d",
        "headers": {"X-Two": "a  b " * 99 + "c"},
    },
    "spaces beyond ASCII": {"subject": "a\u00a0b\u3000c"},
    "a long URL and a long thread": {
        "headers": {
            "List-Unsubscribe": URL,
            "References": " ".join(f"<{'a' * 70}{n}@example.org>" for n in range(10)),
        }
    },
    "the longest header": {"headers": {"X" * 126: "t" * 995}},
    "the longest metadata": {"metadata": {"k" * 64: "東" * 500, "q": "a" * 500}},
    "odd filenames": {
        "attachments": [
            {**PDF, "filename": name}
            for name in ("ü" * 190 + ".pdf", "u" * 190 + ".pdf", "a b'%20 ()=,.pdf", "😀'ä%.pdf")
        ]
    },
    "a long content id and an image of that name": {
        "html_body": f"<img src='cid:{'c' * 78}'>",
        "inline": [{**PNG, "content_id": "c" * 78, "filename": "Löwe.png"}],
    },
    "an image without HTML": {"inline": [PNG]},
    "HTML without text, with everything": {
        "raw_text_body": "",
        "html_body": "<img src='cid:logo'><img src='cid:dot.1'>",
        "inline": [PNG, GIF],
        "attachments": [PDF, {"filename": "a.eml", "content": in_base64(b"Subject: x\n\n.\n")}],
    },
    "characters that are no line breaks": {"raw_text_body": "a\x0b\x0c\x1c\x85\u2028b\x01"},
    "carriage returns": {"raw_text_body": "a\rb\r\nc\n"},
    "a long line of HTML": {"html_body": "<p>" + "ä" * 5000},
}
ALL = {name: make_message(**fields).rendered() for name, fields in {**MESSAGES, **EXTREMES}.items()}

every_message = pytest.mark.parametrize("message", ALL.values(), ids=ALL)


def on_the_wire(message) -> bytes:
    mime = build_mime(message)
    return mime.as_bytes(policy=mime.policy.clone(linesep="\r\n"))


def read(wire: bytes) -> email.message.EmailMessage:
    # As text, since Python's parser of bytes reads no headers in UTF-8.
    return email.message_from_string(wire.decode(), policy=email.policy.default)


def squeezed(name: str) -> str:
    """Without spaces: Python's parser puts some between two encoded words of a name."""
    return name.replace(" ", "")


def lines_of(text: str) -> list[str]:
    return re.split("\r\n|\r|\n", text.rstrip("\r\n"))


@every_message
def test_what_was_put_in_comes_out(message):
    found = read(on_the_wire(message))
    for header, addresses in (
        ("From", [message.from_email]),
        ("To", message.to_recipients),
        ("Cc", message.to_cc),
        ("Reply-To", message.reply_to),
    ):
        read_back = found[header].addresses if found[header] else ()
        assert [a.addr_spec for a in read_back] == [a.email for a in addresses]
        assert [squeezed(a.display_name) for a in read_back] == [
            squeezed(a.name) for a in addresses
        ]
    assert found["Bcc"] is None
    assert found["Subject"].strip() == message.subject
    assert found["Message-ID"] == message.message_id_header
    assert found["Date"].datetime is not None
    given = {**message.headers, **{f"X-Metadata-{k}": v for k, v in message.metadata.items()}}
    assert {name: found[name].strip() for name in given} == given
    assert found.get_all("X-Tag", []) == message.tags


def full_type_of(part) -> str:
    charset = part.get_content_charset()
    return part.get_content_type() + (f"; charset={charset}" if charset else "")


@every_message
def test_bodies_and_files_come_out(message):
    found = read(on_the_wire(message))
    for kind, body in (("plain", message.raw_text_body), ("html", message.html_body)):
        part = found.get_body((kind,))
        assert lines_of(part.get_content() if part else "") == lines_of(body)
    related = [part for part in found.walk() if part["Content-ID"]]
    if message.html_body:
        assert [
            (p["Content-ID"], p.get_filename(), full_type_of(p), p.get_payload(decode=True))
            for p in related
        ] == [(f"<{i.content_id}>", i.filename, i.full_type, i.content) for i in message.inline]
        assert all(part.get_content_disposition() == "inline" for part in related)
    beside = message.attachments if message.html_body else message.files
    assert {
        (part.get_filename(), full_type_of(part), part.get_payload(decode=True))
        for part in found.iter_attachments()
    } == {(file.filename, file.full_type, file.content) for file in beside}


@every_message
def test_it_is_written_as_rfc_5322_asks(message):
    wire = on_the_wire(message)
    lines = wire.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    head = lines[: lines.index(b"")]
    # Longer only where one word is.
    assert all(len(line.decode()) <= 78 or line.strip().count(b" ") <= 1 for line in head)
    assert all(len(line) <= 78 for line in head if b"=?" in line)
    addresses = [message.from_email, *message.to_recipients, *message.to_cc, *message.reply_to]
    assert wire.isascii() or not all(a.email.isascii() for a in addresses)


@every_message
def test_a_parser_finds_nothing_wrong(message):
    found = read(on_the_wire(message))
    defects = [defect for part in found.walk() for defect in part.defects]
    defects += [
        defect
        for part in found.walk()
        for header in part.values()
        for defect in getattr(header, "defects", ())
        if "local-part contains non-ASCII" not in str(defect)
    ]
    assert defects == []


@pytest.mark.parametrize("text", ["naïve", "Änderung 変更"])
def test_a_text_in_utf_8_is_read_as_what_it_is(text):
    file = {"filename": "a.txt", "content": in_base64(text.encode())}
    wire = on_the_wire(make_message(attachments=[file]))
    (attached,) = read(wire).iter_attachments()
    assert attached["Content-Type"] == 'text/plain; charset="utf-8"'
    assert attached.get_content() == text


def test_what_nobody_decodes_is_not_encoded():
    wire = on_the_wire(ALL["a long URL and a long thread"])
    assert f"List-Unsubscribe: {URL}\r\n".encode() in wire
    assert b"=?" not in wire


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("plain", "text/plain"),
        ("both bodies", "multipart/alternative text/plain text/html"),
        ("an attachment", "multipart/mixed text/plain application/pdf"),
        ("an image without HTML", "multipart/mixed text/plain image/png"),
        (
            "an attachment and an inline image",
            (
                "multipart/mixed multipart/alternative text/plain"
                " multipart/related text/html image/png application/pdf"
            ),
        ),
    ],
)
def test_images_are_beside_the_html_that_shows_them(name, structure):
    found = read(on_the_wire(ALL[name]))
    assert " ".join(part.get_content_type() for part in found.walk()) == structure


def test_who_gets_a_blind_copy_is_named_only_where_asked_for():
    message = make_message(to_bcc="Eve <eve@example.org>")
    assert b"eve" not in on_the_wire(message)
    assert str(build_mime(message, with_bcc=True)["Bcc"]) == "Eve <eve@example.org>"
