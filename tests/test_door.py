"""What a stranger can have this service do: little, whatever is sent and however often."""

from __future__ import annotations

import json
import tracemalloc
from io import BytesIO
from urllib.parse import quote

import pytest
from conftest import OTHER_POOL, PLAIN, POOL, POOL_KEY
from test_sign_in import HERE, sign_in, token_of

from browsable_api.request import MEGABYTE, STRANGERS_BYTES
from browsable_api.structure import fits
from endpoints.sending.bodies import MAX_JSON

SEND = "/example.com/send"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=x"
WRONG = {"Authorization": "Bearer wrong"}
LARGE = "x" * (3 * MEGABYTE)


def post(client, body: bytes, content_type=JSON, headers=()):
    """The answer, and how many bytes of the body were read."""
    stream = BytesIO(body)
    answer = client.post(
        SEND,
        input_stream=stream,
        content_length=len(body),
        content_type=content_type,
        headers=dict(headers),
    )
    return answer, stream.tell()


def part(name: str, value: str, filename: str = "") -> str:
    file = f'; filename="{filename}"' if filename else ""
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{value}\r\n'


def multipart(*parts: str) -> bytes:
    return ("".join(parts) + "--x--\r\n").encode()


FIELDS = [part(name, value) for name, value in PLAIN.items()]
FILE = part("attachments", LARGE, "a.txt")


@pytest.mark.parametrize("content_type", [JSON, FORM, MULTIPART, "text/plain"])
def test_nothing_is_read_of_who_shows_a_wrong_key_in_the_header(content_type, client):
    for body in (b'{"pool_api_key": "%b"}' % POOL_KEY.encode(), LARGE.encode()):
        answer, read = post(client, body, content_type, WRONG)
        assert (answer.status_code, read) == (401, 0)
        assert answer.json == {
            "error": "This key does not open this: the pool key of this domain or the root key "
            "is needed.",
            "code": "key_wrong",
        }


NOBODYS = {
    "no key": (JSON, json.dumps({**PLAIN, "raw_text_body": LARGE}).encode()),
    "a wrong key": (JSON, json.dumps({"pool_api_key": "wrong", "text": LARGE}).encode()),
    "a key too late": (JSON, json.dumps({"text": LARGE, "pool_api_key": POOL_KEY}).encode()),
    "half a key": (JSON, f'{{"pool_api_key": "{POOL_KEY[:-1]}", "text": "{LARGE}"}}'.encode()),
    "no text for a key": (JSON, f'{{"pool_api_key": "\\u12", "text": "{LARGE}"}}'.encode()),
    "a key of any length": (JSON, f'{{"pool_api_key": "{LARGE}"}}'.encode()),
    "more than a few keys": (
        JSON,
        b'{"a": [' + b'{"pool_api_key": "wrong"},' * 200_000 + f'"{POOL_KEY}"]}}'.encode(),
    ),
    "12 million lists": (JSON, b"[" + b"[]," * 12_000_000 + b"0]"),
    "a form": (FORM, f"subject=x&text={LARGE}".encode()),
    "a form of escapes": (FORM, b"text=" + b"%41" * 12_000_000),
    "a form with files": (MULTIPART, multipart(*FIELDS, FILE)),
    "a form whose key is wrong": (
        MULTIPART,
        multipart(part("pool_api_key", "wrong"), *FIELDS, FILE),
    ),
    "a form whose key is a file's": (
        MULTIPART,
        multipart(part("pool_api_key", POOL_KEY, "a.txt"), *FIELDS, FILE),
    ),
    "the beginnings of keys": (MULTIPART, b'; name="pool_api_key"\r\n' * 100_000),
    "plain text": ("text/plain", LARGE.encode()),
}


@pytest.mark.parametrize("nobodys", NOBODYS)
def test_of_a_large_body_no_more_is_read_than_its_beginning_without_a_right_key(nobodys, client):
    content_type, body = NOBODYS[nobodys]
    post(client, b"{}")
    tracemalloc.start()
    try:
        answer, read = post(client, body, content_type)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, read) == (413, STRANGERS_BYTES)
    assert answer.json["error"] == (
        "A body of more than 1 MB, or 64 kB in chunks, needs a key that opens something here: show "
        "it in the Authorization header, or at the beginning of the body."
    )
    assert peak < 8 * MEGABYTE


KNOWN = {
    "in JSON": (JSON, json.dumps({"pool_api_key": POOL_KEY, **PLAIN, "html_body": LARGE}).encode()),
    "in JSON as PHP writes it": (
        JSON,
        json.dumps({"pool_api_key": POOL_KEY, **PLAIN, "html_body": LARGE})
        .replace("-", "\\u002d")
        .encode(),
    ),
    "after another key": (
        JSON,
        json.dumps(
            {"root_api_key": "wrong", "pool_api_key": POOL_KEY, **PLAIN, "html_body": LARGE}
        ).encode(),
    ),
    "in a form": (
        FORM,
        "&".join(
            f"{name}={quote(value)}"
            for name, value in {**PLAIN, "pool_api_key": POOL_KEY, "html_body": LARGE}.items()
        ).encode(),
    ),
    "in a form with files": (MULTIPART, multipart(*FIELDS, part("pool_api_key", POOL_KEY), FILE)),
    "in such a form as curl makes it": (
        MULTIPART,
        multipart(
            part("pool_api_key", POOL_KEY).replace(
                "\r\n\r\n", "\r\nContent-Type: text/plain\r\n\r\n"
            ),
            *FIELDS,
            FILE,
        ),
    ),
}


@pytest.mark.parametrize("known", KNOWN)
def test_a_right_key_at_the_beginning_of_a_large_body_opens_the_rest(known, client):
    content_type, body = KNOWN[known]
    answer, read = post(client, body, content_type)
    assert (answer.status_code, read) == (200, len(body)), answer.text


def test_who_is_signed_in_sends_large_files_with_a_form(client):
    sign_in(client, POOL_KEY)
    body = multipart(*FIELDS, FILE, part("csrf_token", token_of(client)))
    answer, read = post(client, body, MULTIPART, HERE)
    assert (answer.status_code, read) == (200, len(body)), answer.text
    client.set_cookie("mailpool", "of nobody")
    answer, read = post(client, body, MULTIPART, HERE)
    assert (answer.status_code, read) == (413, STRANGERS_BYTES)


def test_a_key_in_the_header_and_another_in_the_body_count_both(client):
    body = json.dumps({**PLAIN, "html_body": LARGE, "pool_api_key": POOL_KEY}).encode()
    assert post(client, body, JSON, OTHER_POOL)[0].status_code == 200


def post_chunks(client, body: bytes, headers=()):
    """The same for a body without a length."""
    stream = BytesIO(body)
    answer = client.post(
        SEND,
        input_stream=stream,
        content_type=JSON,
        headers=dict(headers),
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    return answer, stream.tell()


def test_of_a_strangers_chunks_less_is_read(client):
    body = json.dumps({**PLAIN, "html_body": LARGE}).encode()
    answer, read = post_chunks(client, body)
    assert (answer.status_code, read) == (413, 64 * 1024)
    assert "64 kB in chunks" in answer.json["error"]
    assert post_chunks(client, b'{"subject": "Hello"}')[0].status_code == 401
    assert post_chunks(client, body, POOL)[0].status_code == 200
    with_key = json.dumps({"pool_api_key": POOL_KEY, **PLAIN, "html_body": LARGE}).encode()
    assert post_chunks(client, with_key)[0].status_code == 200


GROWING = {
    "lists": b"[]," * 12_000_000,
    "objects": b"{}," * 12_000_000,
    "fields": b'{"a":0},' * 4_000_000,
    "numbers": b"300," * 9_000_000,
    "texts": b'"ab",' * 7_000_000,
    "depths": b"[" * 36_000_000,
}


@pytest.mark.parametrize("growing", GROWING)
def test_with_a_right_key_too_json_that_would_grow_is_refused_before_it_is_built(growing, client):
    body = b'{"subject": [' + GROWING[growing] + b"0]}"
    post(client, b"{}", JSON, POOL)
    tracemalloc.start()
    try:
        answer, _ = post(client, body, JSON, POOL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert answer.json["error"] == (
        "The JSON holds more than 250,000 objects and lists, 500,000 fields or 1,500,000 values."
    )
    assert peak < 1.3 * len(body), "the body itself"


def test_what_grows_is_found_in_the_json_of_a_form_too(client):
    body = b"_json=" + quote('{"subject": [' + "[]," * 300_000 + "0]}").encode()
    answer, _ = post(client, body, FORM, POOL)
    assert (answer.status_code, list(answer.json["problems"])) == (413, ["_json"])


def test_a_batch_may_hold_what_its_messages_may():
    css = "p { margin: 0 } a[href] { color: red } " * 300
    recipients = [f"n{number}@example.org" for number in range(1000)]
    message = {**PLAIN, "to_recipients": recipients, "html_body": css}
    message["substitutions"] = message["headers"] = {f"n{number}": "{" for number in range(100)}
    message["attachments"] = message["inline"] = [{"filename": "a.txt", "content": ""}] * 20
    assert fits(json.dumps({"messages": [message] * 1000}).encode(), MAX_JSON)


def test_a_strangers_body_below_1_mb_is_not_built_where_it_would_grow(client):
    body = b'{"subject": [' + b"[]," * 200_000 + b"0]}"
    answer, _ = post(client, body)
    assert (answer.status_code, "20,000 objects" in answer.json["error"]) == (413, True)
    assert post(client, b'{"subject": [' + b"[]," * 9_000 + b"0]}")[0].status_code == 401


def test_a_form_of_nothing_but_escapes_does_not_grow(client):
    body = b"subject=" + b"%C3%A9" * 500_000
    tracemalloc.start()
    try:
        answer, _ = post(client, body, FORM, POOL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 400
    assert peak < 6 * len(body)
