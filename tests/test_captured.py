"""Mail that is kept here: read whatever it is, and shown so that it can do nothing."""

from __future__ import annotations

import base64
import contextlib
from email.message import EmailMessage as Mail
from pathlib import Path

import pytest
from conftest import OTHER_POOL, PLAIN, POOL, POOL_KEY, ROOT, make_config, make_message
from messages import GIF, PDF

from email_services.captured import MAX_INLINED, CapturedMail
from email_services.mime import build_mime

ATTACK = "<script>alert(1)</script><img src=http://evil.example/>\"'&"
BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"


def mail(body: str, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\n".join([*lines, "", body]).encode("utf-8", "surrogateescape")


def test_what_was_sent_is_what_is_read():
    message = make_message(
        subject="Grüße",
        raw_text_body="Über",
        html_body='<p>Über <img src="cid:logo"></p>',
        attachments=[{**PDF, "filename": "ä.pdf"}],
        inline=[{**GIF, "content_id": "logo"}],
    )
    read = CapturedMail.parse(bytes(build_mime(message)))
    assert dict(read.headers)["Subject"] == "Grüße"
    assert read.text.strip() == "Über"
    assert f'<img src="data:image/gif;base64,{GIF["content"]}">' in read.html
    files = {file.filename: (file.content_type, file.content) for file in read.files}
    assert files == {
        "ä.pdf": ("application/pdf", base64.b64decode(PDF["content"])),
        "dot.gif": ("image/gif", base64.b64decode(GIF["content"])),
    }


NESTED = "".join(
    f"Content-Type: multipart/mixed; boundary=b{depth}\n\n--b{depth}\n" for depth in range(5000)
)
FORWARDED = mail("Subject: inner\n\nHello", Content_Type="message/rfc822")

ODD = {
    "nothing": (b"", "", "", 0),
    "no header": (b"\n\nHello", "\nHello", "", 0),
    "no body": (b"Subject: x", "", "", 0),
    "bytes that are no text": (b"Subject: \xff\xfe\n\n\xff\xfe", "��", "", 0),
    "an unknown charset": (mail("Hi", Content_Type="text/plain; charset=none"), "Hi", "", 0),
    "a charset that is none": (mail("Hi", Content_Type='text/plain; charset="\0"'), "Hi", "", 0),
    "a codec of bytes": (mail("Hi", Content_Type="text/plain; charset=hex"), "Hi", "", 0),
    "a broken encoding": (mail("=?", Content_Transfer_Encoding="base64"), "", "", 0),
    "a multipart of nothing": (mail("x", Content_Type="multipart/mixed; boundary=b"), "", "", 1),
    "no boundary": (mail("x", Content_Type="multipart/mixed"), "", "", 1),
    "nested deeper than Python goes": (NESTED.encode(), "", "", 0),
    "a forwarded mail": (FORWARDED, "", "", 1),
    "only HTML": (mail("<b>", Content_Type="text/html"), "", "<b>", 0),
    "an image alone": (mail("x", Content_Type="image/png"), "", "", 1),
    "a text that is attached": (mail("x", Content_Disposition="attachment"), "", "", 1),
}


@pytest.mark.parametrize("case", ODD)
def test_any_bytes_are_read(case):
    source, text, html, files = ODD[case]
    read = CapturedMail.parse(source)
    assert (read.text, read.html, len(read.files)) == (text, html, files)
    assert read.source == source


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        ("=?utf-8?q?a=0D=0ABcc:_evil?=", "a Bcc: evil"),
        ("=?none?q?x?=", "=?none?q?x?="),
        ("=?utf-8?b?x?=", "=?utf-8?b?x?="),
        ("=?utf-8?q?=FF?=", "=?utf-8?q?=FF?="),
    ],
)
def test_a_header_is_decoded_where_it_can_be_and_stays_one_line(header, read):
    assert dict(CapturedMail.parse(mail("", Subject=header)).headers)["Subject"] == read


def test_an_image_that_is_shown_very_often_does_not_fill_the_memory():
    outer = Mail()
    outer.set_content('<img src="cid:a">' * 100_000, subtype="html")
    outer.add_related(b"x" * 1_000_000, "image", "gif", cid="<a>")
    html = CapturedMail.parse(bytes(outer)).html
    assert len(html) < MAX_INLINED + 5_000_000
    assert html.startswith('<img src="data:image/gif;base64,')
    assert html.rstrip().endswith('<img src="cid:a">')


def test_a_header_that_would_take_long_to_decode_is_shown_as_it_is():
    long = "=?utf-8?q?" * 100_000
    assert dict(CapturedMail.parse(mail("", X=long)).headers)["X"] == long


def test_a_mail_of_many_parts_is_read_whole():
    part = "--b\nContent-Type: image/gif\nContent-ID: <a>\n\nx\n"
    source = mail(part * 10_000 + "--b--", Content_Type="multipart/mixed; boundary=b")
    assert len(CapturedMail.parse(source).files) == 10_000


@pytest.mark.parametrize("content_type", ["text/html", 'image/svg+xml"><script>', "application/x"])
def test_what_is_no_image_is_not_put_into_the_html(content_type):
    outer = Mail()
    outer.set_content('<img src="cid:a">', subtype="html")
    outer.add_related(b"<script>", "application", "x", cid="<a>")
    source = bytes(outer).replace(b"application/x", content_type.encode())
    assert "data:" not in CapturedMail.parse(source).html


# Over HTTP


def sent(client, **changes) -> str:
    """Send a message; its address in the log."""
    answer = client.post("/example.com/send", json={**PLAIN, **changes}, headers=POOL)
    assert answer.status_code == 200, answer.text
    return f"/example.com/messages/{answer.json['message_id']}"


def with_file(**changes) -> dict:
    content = base64.b64encode(b"%PDF-1.4 x").decode()
    file = {"filename": "ä'.pdf", "content": content, "content_type": "application/pdf", **changes}
    return {"attachments": [file]}


def test_a_message_says_what_was_captured(client):
    path = sent(client, html_body="<p>Hello</p>", **with_file())
    captured = client.get(path, headers=POOL).json["captured"]
    assert {"name": "Subject", "value": PLAIN["subject"]} in captured["headers"]
    assert captured["text"].strip() == PLAIN["raw_text_body"]
    (listed,) = captured["files"]
    assert listed.pop("url").endswith("/files/1")
    assert listed == {"filename": "ä'.pdf", "content_type": "application/pdf", "bytes": 10}
    content = client.get(captured["content_url"], headers=POOL)
    assert (content.text.strip(), content.mimetype) == ("<p>Hello</p>", "text/html")
    source = client.get(captured["source_url"], headers=POOL)
    assert source.mimetype == "text/plain"
    assert b"Subject: " in source.data
    file = client.get(f"{path}/files/1", headers=POOL)
    assert (file.data, file.mimetype) == (b"%PDF-1.4 x", "application/octet-stream")
    assert file.headers["Content-Disposition"].startswith("attachment; ")
    assert "captured" not in client.get("/example.com/messages", headers=POOL).text


def test_a_text_is_shown_as_text(client):
    path = sent(client, raw_text_body=ATTACK)
    assert client.get(f"{path}/content", headers=POOL).text.startswith("<pre>&lt;script&gt;alert")


@pytest.mark.parametrize("part", ["content", "source", "files/1"])
def test_nothing_captured_can_do_anything(part, client):
    path = sent(client, html_body=ATTACK, **with_file())
    answer = client.get(f"{path}/{part}", headers=POOL)
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "form-action 'none'"} <= set(policy)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("accept", ["*/*", BROWSER, "image/*", "application/octet-stream"])
@pytest.mark.parametrize("part", ["content", "source", "files/1"])
def test_it_is_given_whatever_is_accepted_and_errors_as_json_or_pages(part, accept, client):
    path = sent(client, **with_file())
    headers = {**POOL, "Accept": accept}
    assert client.get(f"{path}/{part}", headers=headers).status_code == 200
    missing = client.get(f"{path[:-3]}000/{part}", headers=headers)
    expected = "text/html" if accept == BROWSER else "application/json"
    assert (missing.status_code, missing.mimetype) == (404, expected)


@pytest.mark.parametrize("part", ["", "/content", "/source", "/files/1"])
def test_only_who_may_read_the_log_sees_it(part, client):
    path = sent(client, **with_file())
    for headers, status in ((POOL, 200), (ROOT, 200), (OTHER_POOL, 401), ({}, 401)):
        assert client.get(path + part, headers=headers).status_code == status
    other = path.replace("example.com", "example.net")
    assert client.get(other + part, headers=OTHER_POOL).status_code == 404
    client.post("/sign-in", data={"key": POOL_KEY}, headers={"Origin": "http://localhost"})
    assert client.get(path + part).status_code == 200


@pytest.mark.parametrize("number", ["0", "2", "-1", "1.0", "x", "9" * 30])
def test_a_file_that_is_not_there_is_told(number, client):
    path = sent(client, **with_file())
    assert client.get(f"{path}/files/{number}", headers=POOL).status_code == 404


def test_a_mail_that_was_read_elsewhere_is_still_seen_and_one_deleted_is_not(make_app, tmp_path):
    client = make_app(make_config(tmp_path)).test_client()
    path = sent(client)
    (file,) = (tmp_path / "primary/new").iterdir()
    file.rename(tmp_path / "primary/cur" / f"{file.name}:2,S")
    assert client.get(path, headers=POOL).json["captured"]["text"].strip() == "It works."
    (tmp_path / "primary/cur" / f"{file.name}:2,S").unlink()
    assert client.get(path, headers=POOL).json["captured"] is None
    for part in ("content", "source", "files/1"):
        gone = client.get(f"{path}/{part}", headers=POOL)
        assert (gone.status_code, gone.json["error"]) == (
            404,
            "This server does not keep the content of it.",
        )


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../state", "a/b", "/etc/passwd", "a:b", "a\0b", "x" * 300, "*", ".a"]
)
def test_an_id_that_is_no_file_of_the_folder_leads_nowhere(name, make_app, tmp_path):
    app = make_app(make_config(tmp_path))
    service = app.extensions["mailpool"].pools["example.com"].service("primary")
    (tmp_path / "primary/new").mkdir(parents=True)
    (tmp_path / "primary/cur").mkdir()
    for place in ("state", "primary/new/.a", "primary/new/b"):
        Path(tmp_path / place).write_bytes(b"secret")
    with contextlib.suppress(ValueError):
        assert service.kept(name) is None
