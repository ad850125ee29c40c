"""A message that a Maildir keeps: taken apart whatever it is, shown to who may read it."""

from __future__ import annotations

import base64
import time

import pytest
from clocks import little_work
from conftest import OTHER_POOL, PLAIN, POOL, POOL_KEY, ROOT, make_config
from messages import PDF, PNG
from sqlalchemy import update

from email_services.captured import CapturedFile, read_captured
from email_services.providers.maildir import Maildir, MaildirSettings
from email_services.store import Store
from email_services.store.schema import MESSAGES
from endpoints.captured import html_answer

MIXED = b"Content-Type: multipart/mixed; boundary=b\n\n"
PNG_BYTES = b"\x89PNG\r\n\x1a\n"


def part(content_type: bytes, body: bytes, headers: bytes = b"") -> bytes:
    return b"--b\nContent-Type: " + content_type + b"\n" + headers + b"\n" + body + b"\n"


# Any bytes are taken apart


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"\x00\xff", "\x00ÿ"),
        (b"Subject: x\n\nHello", "Hello"),
        (b"\nHello", "Hello"),
        (b"A: b\n\nGr\xc3\xbc\xc3\x9fe", "Grüße"),
        (b"A: b\n\nGr\xfc\xdfe", "Grüße"),
        (b"Content-Type: text/plain; charset=none-such\n\nGr\xc3\xbc\xc3\x9fe", "Grüße"),
        (b"Content-Type: text/plain; charset=undefined\n\nx", "x"),
        (b"Content-Type: text/plain; charset=unicode_escape\n\n\\d", "\\d"),
        (b"Content-Type: text/plain; charset=zlib\n\nx", "x"),
        (b"Content-Type: text/plain; charset=\x00\n\nx", "x"),
        (b"Content-Type: text/plain; charset*=a; charset*0=b\n\nx\xff", "xÿ"),
        (b"Content-Type: text/plain; charset*" + b"9" * 5000 + b"=b\n\nx\xff", "xÿ"),
        (b"Content-Type: text/plain; charset=utf-7\n\n+2AA-", "\ufffd"),
        (b"Content-Type: text/plain; charset=utf-16-le\n\n\x00\xd8", "\ufffd"),
        (b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\nSGVsbG8=", "Hello"),
        (b"Content-Transfer-Encoding: x-uuencode\n\nbegin 644 x\n\xff\xff\nend", None),
        (b"Content-Type: multipart/mixed\n\nno boundary", "no boundary"),
        (b"Content-Type: multipart/mixed; boundary*=a; boundary*0=b\n\nx", "x"),
        (MIXED + part(b"text/plain", b"never ended"), "never ended"),
        (MIXED + b"--b--", ""),
        (b"Content-Type: multipart/mixed; boundary=b\n\nno part at all", "no part at all"),
    ],
)
def test_a_broken_message_shows_what_there_is_of_it(raw, text):
    captured = read_captured(raw)
    if text is not None:
        assert captured.text == text
    assert (captured.html, captured.files) == ("", ())


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?utf-8?b?R3LDvMOfZQ==?=\n =?iso-8859-1*de?Q?_=FC?=", "Grüße ü"),
        (b"a =?utf-8?q?b?= c", "a b c"),
        (b"=?utf-8?b?R?= =?none-such?q?x?=", "=?utf-8?b?R?=x"),
        (b"Gr\xc3\xbc\xc3\x9fe", "Grüße"),
        (b"Gr\xfc\xdfe", "Grüße"),
        (b"folded\r\n line", "folded line"),
        (b"=?utf-8?q?one=0Atwo?=", "one\ntwo"),
        (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        (b"(" * 5000, "(" * 5000),
        (b"<", "<"),
    ],
)
@pytest.mark.parametrize("name", ["Subject", "To", "Message-ID", "Date"])
def test_a_header_is_decoded_or_stays_as_it_is(name, raw, value):
    assert read_captured(name.encode() + b": " + raw + b"\n\n").headers == ((name, value),)


def test_bodies_are_found_wherever_they_are_and_the_rest_are_files():
    inner = b"""Content-Type: multipart/alternative; boundary=i

--i
Content-Type: text/plain

Text
--i
Content-Type: text/html

<p>HTML
--i--
"""
    forwarded = b"Subject: Fwd \xfc\nTo:   x\n\nInside"
    raw = (
        MIXED
        + b"--b\n"
        + inner
        + part(b"text/plain", b"A file", b"Content-Disposition: attachment\n")
        + part(b"text/plain; name=notes.txt", b"Notes")
        + part(b"text/plain", b"A second text")
        + part(b"message/rfc822", forwarded)
        + part(
            b"message/rfc822",
            base64.b64encode(forwarded),
            b"Content-Transfer-Encoding: base64\n",
        )
        + b"--b--\n"
    )
    captured = read_captured(raw)
    assert (captured.text, captured.html) == ("Text", "<p>HTML")
    assert captured.files == (
        CapturedFile("part-1.txt", "text/plain", b"A file"),
        CapturedFile("notes.txt", "text/plain", b"Notes"),
        CapturedFile("part-3.txt", "text/plain", b"A second text"),
        CapturedFile("part-4.eml", "message/rfc822", forwarded.replace(b"To:   x", b"To: x")),
        CapturedFile("part-5.eml", "message/rfc822", forwarded),
    )


@pytest.mark.parametrize(
    ("parameter", "filename"),
    [
        (b'filename="a b.pdf"', "a b.pdf"),
        (b"filename*=utf-8''Gr%C3%BC%C3%9Fe.pdf", "Grüße.pdf"),
        (b"filename*=undefined''Gr%C3%BC%C3%9Fe.pdf", "Grüße.pdf"),
        (b"filename*0=a; filename*1=b", "ab"),
        (b"filename*=a; filename*0=b", "part-1.pdf"),
        (b'filename="=?utf-8?q?Gr=C3=BC=C3=9Fe.pdf?="', "Grüße.pdf"),
        (b'filename="Gr\xc3\xbc\xc3\x9fe.pdf"', "Grüße.pdf"),
        (b'filename="../../etc/passwd"', "_.._etc_passwd"),
        (b'filename=".."', "part-1.pdf"),
        (b'filename="=?utf-8?q?a=0D=0AX-Evil:_=221?="', "a__X-Evil: _1"),
        (b"filename*=utf-8''evil%E2%80%AEfdp.exe", "evil_fdp.exe"),
        (b'filename="' + b"a" * 4000 + b'.pdf"', "a" * 196 + ".pdf"),
        (b"x", "part-1.pdf"),
    ],
)
def test_a_files_name_is_decoded_and_harmless(parameter, filename):
    disposition = b"Content-Disposition: attachment; " + parameter + b"\n"
    raw = MIXED + part(b"application/pdf", b"x", disposition) + b"--b--"
    assert [file.filename for file in read_captured(raw).files] == [filename]


@pytest.mark.parametrize(
    ("reference", "is_shown"),
    [
        ('<img src="cid:logo@x">', True),
        ("<img src='CID:logo@x'>", True),
        ("<img src=cid:logo%40x>", True),
        ('<img src="cid:logo&#64;x">', True),
        ("<p style='background: url(cid:logo@x)'>", True),
        ('<img src="cid:page">', False),
        ('<img src="cid:other">', False),
        ("<p>about cid:logo@x</p>", False),
    ],
)
def test_an_image_of_the_message_is_in_its_html(reference, is_shown):
    image = part(
        b"image/png",
        base64.b64encode(PNG_BYTES),
        b"Content-ID: <logo@x>\nContent-Transfer-Encoding: base64\n",
    )
    page = part(b"application/xhtml+xml", b"<p>", b"Content-ID: <page>\n")
    captured = read_captured(MIXED + part(b"text/html", reference.encode()) + image + page)
    data = f"data:image/png;base64,{base64.b64encode(PNG_BYTES).decode()}"
    assert (data in captured.html) is is_shown
    assert is_shown or captured.html == reference
    assert captured.files[0].content == PNG_BYTES


def test_an_image_that_is_shown_a_million_times_does_not_fill_the_memory():
    image = part(b"image/png", b"x" * 100_000, b"Content-ID: <a>\n")
    captured = read_captured(MIXED + part(b"text/html", b'"cid:a"' * 100_000) + image)
    assert len(captured.html) < 40_000_000
    assert captured.html.endswith('"cid:a"')


@pytest.mark.parametrize(
    ("raw", "files"),
    [
        (MIXED + part(b"text/plain; name=x", b"hi") * 10_000 + b"--b--", 10_000),
        (b"Content-Type: text/plain; name=" + b'"' + b'\\";' * 200_000 + b"\n\nx", 1),
        (b"Content-Type: text/plain" + b"; a=b" * 200_000 + b"\n\nx", 0),
        (b"Subject: " + b"=?a?q?" * 100_000 + b"\n\nx", 0),
        (b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n)
                  for n in range(5000)), 0),
        (b"Content-Type: message/rfc822\n\n" * 5000, 0),
    ],
    ids=["parts", "quotes", "parameters", "encoded words", "nested", "forwarded"],
)  # fmt: skip
def test_a_message_that_would_keep_a_server_busy_does_not(raw, files):
    with little_work():
        assert len(read_captured(raw).files) == files


# The file


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../secret", "/etc/passwd", "a\0", "\ud800", "x" * 5000, "a:2,S", "*"]
)
def test_no_other_file_of_this_machine_is_read(name, tmp_path):
    service = Maildir("maildir", "example.com", MaildirSettings(priority_value=1, path=tmp_path))
    assert service.kept_message(name) is None
    for folder in ("new", "cur"):
        (tmp_path / folder).mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "cur" / "a:2,S").write_text("a")
    assert service.kept_message(name) is None
    assert service.kept_message("a") == b"a"


# The answers


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "primary"


def send(client, **fields) -> str:
    """The path of the message that was sent."""
    answer = client.post("/example.com/send", json={**PLAIN, **fields}, headers=POOL)
    assert answer.status_code == 200, answer.text
    return f"/example.com/messages/{answer.json['message_id']}"


def put(client, folder, raw: bytes) -> str:
    """The path of a message that is these bytes."""
    path = send(client)
    (folder / "new" / client.get(path, headers=POOL).json["service_message_id"]).write_bytes(raw)
    return path


def test_a_message_is_shown_with_the_addresses_of_what_is_in_it(client):
    html = '<p>It works.</p><img src="cid:logo">'
    path = send(client, html_body=html, attachments=[PDF], inline=[PNG])
    captured = client.get(path, headers=POOL).json["captured"]
    headers = captured.pop("headers")
    assert {"name": "Subject", "value": "Hello"} in headers
    here = f"http://localhost{path}"
    assert captured == {
        "text": "It works.\n",
        "has_html": True,
        "has_remote_images": False,
        "content_url": f"{here}/content",
        "source_url": f"{here}/source",
        "attachments": [
            {
                "filename": "report.pdf",
                "content_type": "application/pdf",
                "bytes": 11,
                "url": f"{here}/files/2",
            },
        ],
        "inline": [
            {
                "filename": "logo.png",
                "content_type": "image/png",
                "bytes": 8,
                "url": f"{here}/files/1",
            },
        ],
    }
    (listed,) = client.get("/example.com/messages", headers=POOL).json["messages"]
    assert "captured" not in listed


@pytest.mark.parametrize(
    ("html", "is_remote"),
    [
        ('<img src="https://e.example/a.png">', True),
        ("<img src = //e.example/a>", True),
        ('<td background="http://e.example/a">', True),
        ("<p style='background: url( \"https://e.example/a\" )'>", True),
        ("<img srcset='https://e.example/a 2x'>", True),
        ('<a href="https://e.example/">See</a>', False),
        ('<img src="data:image/gif;base64,R0lGODlhAQ==">', False),
        ('<img src="cid:dot">', False),
        ("<p>source//of</p>", False),
    ],
)
def test_it_is_said_where_the_html_would_show_images_from_elsewhere(html, is_remote):
    raw = f"Content-Type: text/html\n\n{html}".encode()
    assert read_captured(raw).has_remote_images is is_remote


OWN = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
OWN["Referrer-Policy"] = "no-referrer"


@pytest.mark.parametrize(
    "accept", [None, "*/*", "text/html", "image/*", "application/octet-stream", "application/json"]
)
def test_each_part_has_its_own_type_and_policy_whatever_is_accepted(accept, client, folder):
    path = send(client, html_body="<p>It works.</p>", attachments=[PDF])
    headers = {**POOL, **({"Accept": accept} if accept else {})}
    content, source, file = (
        client.get(f"{path}/{name}", headers=headers) for name in ("content", "source", "files/1")
    )
    assert content.text == "<p>It works.</p>\n"
    assert content.content_type == "text/html; charset=utf-8"
    assert set(content.headers["Content-Security-Policy"].split("; ")) == {
        "sandbox allow-same-origin",
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "frame-ancestors 'self'",
        "form-action 'none'",
        "base-uri 'none'",
    }
    (on_disk,) = (folder / "new").iterdir()
    assert source.data == on_disk.read_bytes()
    assert source.content_type == "text/plain; charset=utf-8"
    assert file.data == b"%PDF-1.7 \x00\xff"
    assert file.content_type == "application/octet-stream"
    assert (
        file.headers["Content-Disposition"]
        == "attachment; filename=\"report.pdf\"; filename*=UTF-8''report.pdf"
    )
    for answer in (content, source, file):
        assert OWN.items() <= dict(answer.headers).items()
    for answer in (source, file):
        assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize("tag", ["link", "LINK", "iframe", "frame", "object", "embed"])
@pytest.mark.parametrize("after", [" ", "/", "\n", "\t", "\f", ">"])
def test_no_tag_is_left_for_which_a_browser_connects_to_elsewhere(tag, after, client):
    path = send(client, html_body=f"<p>x<{tag}{after}rel=preconnect href=//x><{tag}<{tag}{after}>")
    assert f"<{tag}{after}" not in client.get(f"{path}/content", headers=POOL).text


WORDS = '<span style="outline: 1px dashed; padding: 0 .3em">{}</span>'


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (
            '<img src="https://e.example/a.png" alt="50 % &amp; more">',
            WORDS.format("50 % &amp; more"),
        ),
        ("<IMG width=9 alt='Shop' SRC = //e.example/a>", WORDS.format("Shop")),
        ("<img/alt=Shop/src=http://e.example/a>", WORDS.format("Shop/src=http://e.example/a")),
        ("<img srcset='https://e.example/a 2x' alt=Shop>", WORDS.format("Shop")),
        ('<img src="https://e.example/pixel.gif" width="1">', ""),
        ('<img src="https://e.example/line.gif" alt="">', ""),
        ('<img src="data:image/gif;base64,R0lGODlhAQ==" alt="Dot">', None),
        ('<image src="https://e.example/a.png" alt="none">', None),
        ("<img alt='https://e.example/'>", None),
    ],
)
def test_words_stand_where_an_image_from_elsewhere_would_be_shown_as_broken(image, shown, client):
    path = send(client, html_body=f"<p>a{image}b</p>")
    expected = image if shown is None else shown
    assert f"<p>a{expected}b</p>" in client.get(f"{path}/content", headers=POOL).text


@pytest.mark.parametrize("part", ["<img ", "<img src=//", '<img alt="', "<img src=//a alt=' "])
def test_html_that_is_made_to_be_slow_to_look_through_is_not(part):
    started = time.process_time()
    html_answer(part * 200_000)
    assert time.process_time() - started < 5


def test_the_page_of_a_message_is_called_something_that_can_be_said(client):
    path = send(client)
    short = f"message {path.rpartition('/')[2][:8]}"
    page = client.get(f"{path}?format=html", headers=POOL).text
    assert f'<span aria-current="page">{short}</span>' in page
    assert "<title>Hello · Mailpool</title>" in page
    below = client.get(f"{path}/send-again?format=html", headers=POOL).text
    assert f'<a href="{path}">{short}</a>' in below
    assert f"· {short} · example.com · Mailpool</title>" in below
    unread = client.get(f"{path}?format=html").text
    assert f"<title>{short.capitalize()} · Mailpool</title>" in unread


def test_a_text_alone_is_shown_as_it_is(client):
    answer = client.get(f"{send(client, raw_text_body='<b>&')}/content", headers=POOL)
    assert "<pre style" in answer.text
    assert "&lt;b&gt;&amp;" in answer.text
    assert answer.content_type == "text/html; charset=utf-8"


@pytest.mark.parametrize("name", ['a"b\r\nX-Evil: 1.html', "Grüße ✉.html", "../x", "\ud800"])
def test_the_name_of_a_file_breaks_no_header(name, client, folder):
    encoded = base64.b64encode(name.encode("utf-8", "surrogatepass"))
    disposition = b'Content-Disposition: attachment; filename="=?utf-8?b?' + encoded + b'?="\n'
    path = put(client, folder, MIXED + part(b"text/html", b"<script>", disposition))
    answer = client.get(f"{path}/files/1", headers=POOL)
    assert answer.status_code == 200
    disposition = answer.headers["Content-Disposition"]
    assert disposition.isascii(), "gunicorn sends no other"
    assert disposition.startswith("attachment; filename")
    assert "X-Evil" not in answer.headers
    assert answer.content_type == "application/octet-stream"


@pytest.mark.parametrize("raw", [b"", b"\xff\x00", b"Content-Type: multipart/x; boundary=b\n\n"])
def test_a_file_that_is_no_message_is_shown_for_what_it_is(raw, client, folder):
    path = put(client, folder, raw)
    assert client.get(path, headers=POOL).json["captured"]["attachments"] == []
    assert client.get(f"{path}/content", headers=POOL).status_code == 200
    assert client.get(f"{path}/source", headers=POOL).data == raw


PARTS = ["content", "source", "files/1"]


@pytest.mark.parametrize("name", PARTS)
def test_only_who_may_read_the_log_sees_the_message(name, client):
    address = f"{send(client, attachments=[PDF])}/{name}"
    for headers in ({}, OTHER_POOL, {"Authorization": "Bearer wrong"}):
        assert client.get(address, headers=headers).status_code == 401
    assert client.get(address, headers=ROOT).status_code == 200
    assert client.get(address, headers=POOL).status_code == 200
    elsewhere = address.replace("example.com", "example.net")
    assert client.get(elsewhere, headers=OTHER_POOL).status_code == 404
    assert client.post(address, headers=POOL).status_code == 405
    client.post("/sign-in", json={"key": POOL_KEY})
    assert client.get(address).status_code == 200


@pytest.mark.parametrize("accept", ["application/json", "image/png"])
@pytest.mark.parametrize("name", PARTS)
def test_a_message_that_was_deleted_is_no_longer_there(name, accept, client, folder):
    path = send(client, attachments=[PDF])
    for file in (folder / "new").iterdir():
        file.unlink()
    assert client.get(path, headers=POOL).json["captured"] is None
    answer = client.get(f"{path}/{name}", headers={**POOL, "Accept": accept})
    assert answer.status_code == 404
    assert answer.json == {
        "error": "The message is no longer there: it was moved or deleted.",
        "code": "not_found",
    }


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "1.0", "²", "9" * 5000])
def test_a_file_that_the_message_has_not_is_not_found(number, client):
    path = send(client, attachments=[PDF])
    answer = client.get(f"{path}/files/{number}", headers=POOL)
    expected = {"error": "The message has no such file.", "code": "not_found"}
    assert (answer.status_code, answer.json) == (404, expected)


def test_a_message_that_a_provider_keeps_is_not_here(make_app, tmp_path):
    config = make_config(tmp_path)
    path = send(make_app(config).test_client())
    services = config["email_services"][0]["enabled_services"]
    services["primary"] = {"service": "smtp", "priority_value": 20, "host": "localhost"}
    del services["Primary"]
    client = make_app(config).test_client()
    assert client.get(path, headers=POOL).json["captured"] is None
    answer = client.get(f"{path}/content", headers=POOL)
    expected = {
        "error": "The provider keeps this message, not this server.",
        "code": "not_found",
    }
    assert (answer.status_code, answer.json) == (404, expected)


def test_a_message_that_was_not_sent_is_nowhere(client):
    for service in ("primary", "backup"):
        client.post(f"/example.com/{service}/fail", headers=ROOT)
    client.post("/example.com/send", json=PLAIN, headers=POOL)
    (message,) = client.get("/example.com/messages", headers=POOL).json["messages"]
    path = message["url"].removeprefix("http://localhost")
    assert client.get(path, headers=POOL).json["captured"] is None
    answer = client.get(f"{path}/source", headers=POOL)
    expected = {"error": "No service has taken this message.", "code": "not_found"}
    assert (answer.status_code, answer.json) == (404, expected)


def test_an_id_in_the_log_that_is_a_path_leads_nowhere(client, tmp_path):
    (tmp_path / "primary" / "new").mkdir(parents=True)
    (tmp_path / "secret").write_text("Subject: secret\n\nsecret")
    path = send(client)
    store: Store = client.application.extensions["mailpool"].store
    with store._engine.begin() as connection:
        connection.execute(update(MESSAGES).values(service_message_id="../../secret"))
    assert client.get(path, headers=POOL).json["captured"] is None
    assert client.get(f"{path}/source", headers=POOL).status_code == 404
