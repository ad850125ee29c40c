"""Bodies, formats and pages, on an application of the test's own that knows nothing of email."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from html import unescape
from io import BytesIO
from urllib.parse import quote

import pytest
from pydantic import BaseModel, Field

from browsable_api import APIError, Asked, BrowsableAPI, Form, Room, request
from browsable_api.app import MAX_BODY_BYTES
from browsable_api.renderers import MAX_SHOWN, pretty


class Thing(BaseModel):
    colour: str = Field(description="Any <colour>.")
    secret: str = ""
    text: str = ""
    size: str = Field("", description="One of `s` and `l`.")


THING_FORM = Form(
    fields={
        "secret": Asked("password"),
        "text": Asked("textarea"),
        "size": Asked("select", options={"s": "small", "l": "large"}),
    }
)


class Unchecked(Room):
    """Gives a view the fields of the body as they came."""

    def run(self, operation, /, **parts):
        given = {"body": request.data} if "body" in operation.wants else {}
        return super().run(operation, **given, **parts)


@pytest.fixture
def client():
    room = Unchecked("things", __name__)

    @room.operation("GET", "/things")
    def get_things() -> dict:
        """Things & co.

        Send a **thing**: `<b>` is no markup.

        | colour | is |
        |---|---|
        | red | warm |
        """
        return {"given": request.data, "see": "http://localhost/things"}

    @room.operation("POST", "/things", form=THING_FORM)
    def send_thing(body: Thing) -> dict:
        """Send a thing."""
        return {"given": body, "see": "http://localhost/things"}

    @room.operation("POST", "/wrong", form=THING_FORM)
    def send_wrong(body: Thing) -> dict:
        """Always wrong."""
        assert body is not None
        raise APIError(400, "No.", {"colour": "Not <this> one.", "text.1": "Nor that."})

    def lists() -> dict:
        """Lists thousands."""
        return {"see": [f"http://localhost/things?of=<{n}>" for n in range(20_000)]}

    room.operation("GET", "/long")(lists)

    @room.operation("POST", "/long")
    def lists_again() -> dict:
        """Lists them again."""
        return lists()

    @room.operation("GET", "/long/line")
    def long_line() -> dict:
        """Says one thing at length."""
        return {"text": "x" * 1_000_000}

    @room.operation("GET", "/silent")
    def silent() -> dict:
        """Reads nothing."""
        return {}

    @room.operation("GET", "/bug")
    def bug() -> dict:
        raise KeyError("bug")

    app = BrowsableAPI(__name__)
    app.register_blueprint(room)
    return app.test_client()


def given(answer):
    assert answer.status_code == 200, answer.text
    return answer.json["given"]


def test_json_a_form_and_a_multipart_form_give_the_same(client):
    fields = {"colour": "grün ✉", "text": "a\r\nb"}
    assert given(client.post("/things", json=fields)) == fields
    assert given(client.post("/things", data=fields)) == fields
    multipart = client.post("/things", data=fields, content_type="multipart/form-data")
    assert given(multipart) == fields


def test_a_form_gives_a_list_for_many_and_nothing_for_empty(client):
    body = "colour=red&colour=blue&text=&size=+&secret=x&secret="
    answer = client.post("/things", data=body, content_type="application/x-www-form-urlencoded")
    assert given(answer) == {"colour": ["red", "blue"], "secret": "x"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("100%", "100%"),
        ("100% off", "100% off"),
        ("%zz%4", "%zz%4"),
        ("a+%2B+b=c", "a + b=c"),
        ("%C3%A9" * 40_000, "é" * 40_000),
        ("x%C3%A9" * 40_000, "xé" * 40_000),
        ("%" * 70_000, "%" * 70_000),
    ],
)
def test_the_text_of_a_form_is_read_as_browsers_and_people_write_it(written, meant, client):
    body = f"text={written}&&colour"
    answer = client.post("/things", data=body, content_type="application/x-www-form-urlencoded")
    assert list(given(answer).values()) == [meant]


def test_a_form_may_hold_its_fields_as_json_in_one_of_them(client):
    typed = '{"colour": "red", "text": ["a"]}'
    assert given(client.post("/things", data={"_json": typed, "secret": "x"})) == {
        "colour": "red",
        "text": ["a"],
        "secret": "x",
    }
    assert given(client.post("/things", json={"_json": typed})) == {"_json": typed}, "a form only"


@pytest.mark.parametrize("typed", ["{", "[]", '{"a": 1, "a": 2}', "\ud800", "[" * 100_000, "NaN"])
def test_what_is_no_json_in_that_field_is_told_there(typed, client):
    body = "_json=" + quote(typed, errors="replace")
    answer = client.post("/things", data=body, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 400
    assert list(answer.json["problems"]) == ["_json"]


def test_no_body_is_no_field(client):
    assert given(client.post("/things")) == {}
    assert given(client.get("/things")) == {}
    assert given(client.post("/things", content_type="application/json")) == {}


def test_a_chunked_body_is_read(client):
    # As gunicorn hands it over: without a length, and ended by itself.
    answer = client.post(
        "/things",
        input_stream=BytesIO(b'{"colour": "red"}'),
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert given(answer) == {"colour": "red"}


def test_a_form_cannot_change_the_method_or_the_content(client):
    answer = client.post("/things", data={"_method": "DELETE", "_content": "{}"})
    assert given(answer) == {"_method": "DELETE", "_content": "{}"}


JSON, FORM = "application/json", "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"
HOSTILE = {
    "a list": (JSON, b"[]", 400),
    "a word": (JSON, b'"colour"', 400),
    "null": (JSON, b"null", 400),
    "no JSON": (JSON, b"{colour: red}", 400),
    "half of it": (JSON, b'{"colour": "r', 400),
    "two of them": (JSON, b"{}{}", 400),
    "a key twice": (JSON, b'{"a": 1, "a": 2}', 400),
    "NaN": (JSON, b'{"a": NaN}', 400),
    "Infinity": (JSON, b'{"a": -Infinity}', 400),
    "a number of 10,000 digits": (JSON, b'{"a": ' + b"9" * 10_000 + b"}", 400),
    "lists 100,000 deep": (JSON, b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "objects 100,000 deep": (JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "JSON in Latin-1": (JSON, '{"colour": "grün"}'.encode("latin-1"), 400),
    "JSON in UTF-16": (JSON, '{"colour": "red"}'.encode("utf-16"), 400),
    "JSON with NULs": (JSON, b'{"colour": "\x00"}', 400),
    "a form in Latin-1": (FORM, b"colour=gr%FCn", 400),
    "a form that is JSON": (FORM, b'{"colour": "red"}', 400),
    "raw bytes in a form": (FORM, b"\xff\xfe=\xff", 400),
    "a form of 5,000 fields": (FORM, b"&".join(b"a=b" for _ in range(5000)), 400),
    "multipart without boundary": ("multipart/form-data", b"--x\r\n", 400),
    "multipart with an odd boundary": ("multipart/form-data; boundary=\xe9", b"--x\r\n", 400),
    "multipart that is none": (MULTIPART, b"colour=red", 400),
    "multipart in Latin-1": (
        MULTIPART,
        b'--x\r\nContent-Disposition: form-data; name="colour"\r\n\r\ngr\xfcn\r\n--x--\r\n',
        400,
    ),
    "a file whose name is not UTF-8": (
        MULTIPART,
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="\xff"\r\n\r\nb\r\n--x--\r\n',
        400,
    ),
    "a file without a field": (
        MULTIPART,
        b'--x\r\nContent-Disposition: form-data; filename="a"\r\n\r\nb\r\n--x--\r\n',
        400,
    ),
    "plain text": ("text/plain", b"colour=red", 415),
    "XML": ("application/xml", b"<colour/>", 415),
    "no type at all": ("", b"colour=red", 415),
    "50 MB": (JSON, b'{"colour": "' + b"x" * 50_000_000 + b'"}', 413),
    "a form of 50 MB": (FORM, b"colour=" + b"x" * 50_000_000, 413),
    "a multipart form of 50 MB": (
        MULTIPART,
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
        + b"x" * 50_000_000
        + b"\r\n--x--",
        413,
    ),
}


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("body", HOSTILE)
def test_a_hostile_body_is_the_clients_fault(body, accept, client):
    content_type, data, status = HOSTILE[body]
    answer = client.post(
        "/things", data=data, content_type=content_type, headers={"Accept": accept}
    )
    assert answer.status_code == status
    assert answer.mimetype == accept
    if accept == "application/json":
        assert answer.json["error"].endswith(".")


def test_a_chunked_body_of_50_mb_is_refused_as_well(client):
    answer = client.post(
        "/things",
        input_stream=BytesIO(b"{" + b" " * 50_000_000),
        content_type=JSON,
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert answer.status_code == 413
    assert answer.json == {"error": "The body is larger than 10 MB.", "code": "too_large"}


def test_a_body_as_large_as_allowed_is_taken(client):
    text = "x" * (MAX_BODY_BYTES - 300)
    part = f'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n{text}\r\n--x--\r\n'
    for content_type, data in (
        (JSON, json.dumps({"text": text})),
        (FORM, f"text={text}"),
        (MULTIPART, part),
    ):
        answer = client.post("/things", data=data, content_type=content_type)
        assert given(answer) == {"text": text}


def test_half_a_surrogate_pair_does_no_harm(client):
    answer = client.post("/things", data=b'{"colour": "\\ud800"}', content_type=JSON)
    assert given(answer) == {"colour": "\ud800"}
    page = client.post(
        "/things", data=b'{"colour": "\\ud800"}', content_type=JSON, headers={"Accept": "text/html"}
    )
    assert page.status_code == 200


ACCEPTS = [
    (None, "application/json"),
    ("", "application/json"),
    ("*/*", "application/json"),
    ("application/*", "application/json"),
    ("application/json; charset=utf-8", "application/json"),
    ("text/html", "text/html"),
    ("text/*", "text/html"),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
    ("text/html;q=0.5, application/json", "application/json"),
    ("text/html;q=0.5, application/json;q=0.4", "text/html"),
    ("application/json;q=0, text/html", "text/html"),
    ("image/png, */*;q=0.1", "application/json"),
    ("image/png", None),
    ("nonsense", None),
    ("\xff", None),
]


@pytest.mark.parametrize(("accept", "expected"), ACCEPTS)
@pytest.mark.parametrize("path", ["/things", "/nothing"])
def test_the_format_is_the_one_asked_for(path, accept, expected, client):
    answer = client.get(path, headers={} if accept is None else {"Accept": accept})
    assert answer.mimetype == (expected or "application/json")
    assert answer.status_code == (406 if expected is None else 404 if path == "/nothing" else 200)
    assert "Accept" in answer.headers["Vary"]


def test_a_format_that_cannot_be_given_stops_the_request_before_it_does_anything(client):
    answer = client.post("/wrong", headers={"Accept": "image/png"})
    assert answer.status_code == 406
    assert answer.json == {
        "error": "Only application/json and text/html can be answered.",
        "code": "not_acceptable",
    }


def test_head_and_options_are_answered(client):
    assert client.head("/things").status_code == 200
    assert client.head("/things").data == b""
    options = client.options("/things")
    assert set(options.allow) == {"GET", "HEAD", "OPTIONS", "POST"}
    assert options.json == {
        "GET": {"summary": "Things & co", "opened_by": "anybody", "keys": [], "fields": []},
        "POST": {
            "summary": "Send a thing",
            "opened_by": "anybody",
            "keys": [],
            "fields": ["colour", "secret", "size", "text"],
        },
    }


def test_every_answer_has_the_headers_that_protect(client):
    for path in ("/things", "/nothing", "/static/style.css"):
        with client.get(path, headers={"Accept": "text/html, */*;q=0.1"}) as answer:
            headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert client.get("/things").headers["Cache-Control"] == "no-store"


def test_flask_apis_own_pages_are_not_served(client):
    assert client.get("/flask-api/static/js/jquery-1.8.1-min.js").status_code == 404


OUR_SCRIPT = '<script src="/static/page.js" defer></script>'


def page(client, *args, **kwargs) -> str:
    method = kwargs.pop("method", "POST")
    return client.open(*args, method=method, headers={"Accept": "text/html"}, **kwargs).text


def test_a_page_says_what_the_docstring_says(client):
    html = page(client, "/things", method="GET")
    assert "<h1>Things &amp; co</h1>" in html
    assert "<strong>thing</strong>: <code>&lt;b&gt;</code>" in html
    assert "<td>warm</td>" in html
    assert "200 OK" in html


def test_a_page_has_a_form_with_every_field(client):
    html = page(client, "/things", method="GET")
    for name in Thing.model_fields:
        assert f'<label for="{name}">' in html
        assert f'id="{name}" name="{name}"' in html
    assert 'type="password"' in html
    assert "Any &lt;colour&gt;." in html
    assert '<small id="size-help">One of s and l.</small>' in html, "a form shows no Markdown"


def test_what_was_typed_stays_but_for_a_password_and_problems_are_at_their_fields(client):
    typed = {"colour": 'r"<b>', "text": "\n</textarea><script>", "secret": "unseen", "size": "l"}
    html = page(client, "/wrong", data=typed)
    assert 'value="r&#34;&lt;b&gt;"' in html
    assert "\n\n&lt;/textarea&gt;&lt;script&gt;</textarea>" in html
    assert '<option value="l" selected>' in html
    assert "unseen" not in html
    assert '<strong class="problem" id="colour-problem">Not &lt;this&gt; one.</strong>' in html
    assert '<strong class="problem" id="text-problem">Number 2: Nor that.</strong>' in html
    assert 'aria-describedby="colour-help colour-problem"' in html


def test_html_is_shown_and_not_run(client):
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&</pre>"
    html = page(client, "/things", data={attack: attack, "colour": attack})
    for shown in (html, page(client, "/<script>alert(1)</script>", method="GET")):
        assert re.findall("<script.*?</script>", shown) == [OUR_SCRIPT]
        assert "<img" not in shown
        assert shown.count("</pre>") == 2


def command_in(html: str) -> list[str]:
    return shlex.split(unescape(re.search(r'<pre [^>]*id="curl"[^>]*>(.*?)</pre>', html).group(1)))


def test_the_command_repeats_the_request_with_a_blank_for_what_is_secret(client):
    typed = {"colour": "it's <b> $HOME `id`", "secret": "unseen"}
    assert command_in(page(client, "/things?secret=unseen", data=typed)) == [
        *("curl", "http://localhost/things", "-X", "POST"),
        *("-H", "Content-Type: application/json"),
        *("-d", json.dumps({"colour": typed["colour"], "secret": "YOUR-SECRET"})),
    ]
    files = {"colour": ["@red", "<blue"], "text": (BytesIO(b"x"), "a b;c.txt")}
    html = page(client, "/wrong", data=files, content_type="multipart/form-data")
    assert command_in(html)[4:] == [
        *("--form-string", "colour=@red", "--form-string", "colour=<blue"),
        *("-F", 'text=@"a b;c.txt"'),
    ]
    assert command_in(page(client, "/things", method="GET")) == ["curl", "http://localhost/things"]


@pytest.mark.parametrize("character", ["\x15", "\x1b", "\n", "\x85", "\u202e", "\x7f"])
def test_a_terminal_takes_the_command_for_nothing_but_text(character, client):
    text = f"a'\\{character}touch x #"
    typed = {"colour": text, "text": (BytesIO(b"x"), "a.txt")}
    html = page(client, "/wrong", data=typed, content_type="multipart/form-data")
    command = unescape(re.search(r'<pre [^>]*id="curl"[^>]*>(.*?)</pre>', html).group(1))
    assert character not in command
    echoed = f"curl() {{ printf '%s' \"$5\"; }}; {command}"
    shown = subprocess.run(["bash", "-c", echoed], capture_output=True, check=True).stdout
    assert shown.decode() == f"colour={text}"


def test_the_command_names_no_field_that_is_not_taken_and_no_file_elsewhere(client):
    files = {"text": (BytesIO(b"x"), "../.ssh/id_rsa"), "other=@/etc/hosts;a": (BytesIO(b"x"), "b")}
    html = page(client, "/wrong", data={**files, "key": "seen"}, content_type="multipart/form-data")
    assert command_in(html)[4:] == ["-F", 'text=@"id_rsa"']


def test_addresses_of_this_server_are_links_and_others_are_not(client):
    html = page(client, "/things", json={"colour": "http://evil.example/"})
    assert '<a href="http://localhost/things">http://localhost/things</a>' in html
    assert 'href="http://evil.example' not in html
    tricky = "http://localhost/x\" onclick='alert(1)"
    assert not re.search(r"<a [^>]*onclick", page(client, "/things", json={"colour": tricky}))


def test_breadcrumbs_lead_only_to_what_is_there(client):
    html = page(client, "/things/deeper", method="GET")
    assert '<li><a href="/things">things</a></li>' in html
    assert '<li><span aria-current="page">deeper</span></li>' in html


def test_json_keeps_its_order_and_characters(client):
    body = {"z": "ü", "a": [1]}
    answer = client.post("/things", data=json.dumps(body), content_type=JSON)
    assert answer.text.startswith('{"given": {"z": "ü", "a": [1]}')
    assert json.loads(answer.text)["given"] == body


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_bug_is_a_500_that_tells_nothing(accept, client):
    client.application.config["PROPAGATE_EXCEPTIONS"] = False
    answer = client.get("/bug", headers={"Accept": accept})
    assert (answer.status_code, answer.mimetype) == (500, accept)
    assert "KeyError" not in answer.text
    if accept == JSON:
        assert answer.json == {
            "error": "An error of this service; it is in the log.",
            "code": "internal_error",
        }


@pytest.mark.parametrize("host", ["a..b"])
def test_a_host_that_is_none_is_told_on_a_page_too(host, client):
    client = client.application.test_client(use_cookies=False)  # it cannot read such a Host itself
    answer = client.get("/things", headers={"Host": host, "Accept": "text/html"})
    assert answer.status_code < 500
    assert answer.text.startswith("<!doctype html>")


def test_a_part_without_a_name_is_refused(client):
    body = b'--x\r\nContent-Disposition: form-data; filename="f"\r\n\r\nb\r\n--x--\r\n'
    for accept in ("application/json", "text/html"):
        headers = {"Accept": accept}
        answer = client.post("/things", data=body, content_type=MULTIPART, headers=headers)
        assert answer.status_code == 400


def test_a_page_that_takes_no_body_does_not_read_one(client):
    headers = {"Accept": "text/html"}
    answer = client.get("/silent", data=b"\xff", content_type="text/plain", headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/long", "/long/line"])
def test_a_page_shows_the_beginning_of_a_long_answer_and_leads_to_the_whole(path, client):
    page = client.get(path, headers={"Accept": "text/html"}).text
    assert len(page) < 4 * MAX_SHOWN
    code = re.search('<code id="json">(.*?)</code>', page, re.DOTALL)[1]
    shown = unescape(re.sub("<[^>]*>", "", code))
    in_full = pretty(client.get(path).json)
    assert in_full.startswith(shown)
    assert MAX_SHOWN / 2 < len(shown) <= MAX_SHOWN
    assert f"And {len(in_full) - len(shown):,} characters more" in page
    assert client.get(re.search('id="json-left".*?href="([^"]*)"', page)[1]).json
    assert 'data-copy="json"' not in page, "half of it is no JSON"


def test_where_no_link_gives_the_whole_the_command_does(client):
    page = client.post("/long", headers={"Accept": "text/html"}).text
    assert "the command gives all of it" in page[page.index('id="json-left"') :]
    short = client.post("/things", headers={"Accept": "text/html"}).text
    assert "json-left" not in short
    assert 'data-copy="json"' in short
