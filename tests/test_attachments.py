from __future__ import annotations

import pytest
from conftest import make_message
from messages import PDF, PNG, in_base64

from email_services.exceptions import InvalidInput


def problems_of(**fields) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        make_message(**fields)
    return caught.value.problems


def test_a_file_is_decoded_and_has_the_type_of_its_extension():
    (file,) = make_message(attachments=[PDF]).attachments
    assert (file.filename, file.content) == ("report.pdf", b"%PDF-1.7 \x00\xff")
    assert file.content_type == "application/pdf"


def test_base64_may_have_lines():
    content = in_base64(b"x" * 100)
    lines = "\r\n".join([content[:76], content[76:]])
    (file,) = make_message(attachments=[{**PDF, "content": lines}]).attachments
    assert file.content == b"x" * 100


TYPES = [
    ("a.pdf", "application/pdf", "application/pdf"),
    ("a.PDF", "Application/PDF", "application/pdf"),
    ("a.pdf", "application/octet-stream", "application/pdf"),
    ("a.jpg", "image/pjpeg", "image/pjpeg"),
    ("a.csv", "text/plain", "text/plain"),
    ("a.tar.gz", "application/gzip", "application/gzip"),
    ("a.qqq", "", "application/octet-stream"),
    ("a.qqq", "application/x-own", "application/x-own"),
    ("mail.eml", "message/rfc822", "application/octet-stream"),
    ("変更.png", None, "image/png"),
]


@pytest.mark.parametrize(("filename", "given", "expected"), TYPES)
def test_a_files_type_is_the_given_one_where_it_agrees(filename, given, expected):
    file = {"filename": filename, "content": "", "content_type": given}
    assert make_message(attachments=[file]).attachments[0].content_type == expected


NAIVE = "naïve"
CHARSETS = [
    ("a.txt", "", NAIVE.encode(), "text/plain; charset=utf-8"),
    ("a.csv", None, NAIVE.encode(), "text/csv; charset=utf-8"),
    ("a.txt", "text/plain; charset=utf-8", NAIVE.encode(), "text/plain; charset=utf-8"),
    ("a.txt", 'Text/Plain;charset="UTF-8"', b"", "text/plain; charset=utf-8"),
    ("a.txt", "text/plain; charset=iso-8859-1", b"na\xefve", "text/plain; charset=iso-8859-1"),
    ("a.txt", "text/plain; charset=utf-16", NAIVE.encode("utf-16"), "text/plain; charset=utf-16"),
    ("a.txt", "", b"na\xefve", "text/plain"),
    ("a.txt", "", NAIVE.encode()[:3], "text/plain"),
    ("a.txt", "", b"x" * 65_535 + "ï".encode(), "text/plain; charset=utf-8"),
    ("a.txt", "", "変更".encode("iso-2022-jp"), "text/plain"),
    ("a.txt", "", b"", "text/plain"),
    ("a.json", "", NAIVE.encode(), "application/json"),
    ("a.xml", "application/xml; charset=utf-8", b"", "application/xml; charset=utf-8"),
    ("a.qqq", "application/octet-stream; charset=utf-8", b"", "application/octet-stream"),
    ("a.pdf", "", NAIVE.encode(), "application/pdf"),
]


@pytest.mark.parametrize(("filename", "given", "content", "expected"), CHARSETS)
def test_a_text_says_its_charset_where_it_is_known(filename, given, content, expected):
    given = {"filename": filename, "content": in_base64(content), "content_type": given}
    (file,) = make_message(attachments=[given]).attachments
    media_type, _, charset = expected.partition("; charset=")
    assert (file.full_type, file.content_type) == (expected, media_type)
    assert file.charset == (charset or None)


def test_texts_of_another_charset_are_other_content():
    said = {
        make_message(
            attachments=[{"filename": "a.txt", "content": "YQ==", "content_type": content_type}]
        ).content_key()
        for content_type in ("text/plain", "text/plain; charset=utf-16")
    }
    assert len(said) == 2


NO_TYPE = (
    'It should be a media type like "application/pdf" or "text/plain; charset=utf-8",'
    " without other parameters."
)
PROBLEMS = {
    "no base64": ({"content": "%%%"}, "content", "It is not base64."),
    "base64 with an end missing": ({"content": "YQ"}, "content", "It is not base64."),
    "a number for content": ({"content": 5}, "content", "It should be a string in base64."),
    "a type that is none": (
        {"content_type": "text"},
        "content_type",
        NO_TYPE,
    ),
    "a type with a line break": (
        {"content_type": "application/pdf\r\nX: y"},
        "content_type",
        NO_TYPE,
    ),
    "another parameter": ({"content_type": "text/plain; x=y"}, "content_type", NO_TYPE),
    "a charset that is none": (
        {"content_type": 'text/plain; charset="utf-8'},
        "content_type",
        NO_TYPE,
    ),
    "a multipart": (
        {"content_type": "multipart/mixed"},
        "content_type",
        "An attachment cannot be a multipart.",
    ),
    "another type than its extension": (
        {"content_type": "image/png"},
        "content_type",
        "A file that ends in .pdf is application/pdf, not image/png.",
    ),
    "an unknown field": ({"colour": "x"}, "colour", "Unknown field."),
    "a field of others": ({"name": "x"}, "name", "Unknown field. Did you mean 'filename'?"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_named_at_its_file_and_field(problem):
    changes, field, sentence = PROBLEMS[problem]
    assert problems_of(attachments=[PDF, {**PDF, **changes}]) == {
        f"attachments.1.{field}": sentence
    }


@pytest.mark.parametrize(
    "filename",
    [
        "../../etc/passwd.txt",
        "C:\\a.txt",
        "a;b.txt",
        'a".txt',
        "noextension",
        ".",
        "..",
        "a.",
        "a.txt ; x",
        "a\r\nb.txt",
        "a\0.txt",
        "x" * 200 + ".txt",
        "=?utf-8?B?eCINCkNvbnRlbnQtVHlwZTogdGV4dC9odG1sDQoNCg==?=.pdf",
        "",
        None,
        7,
    ],
)
def test_a_filename_that_could_do_harm_is_refused(filename):
    problems = problems_of(attachments=[{**PDF, "filename": filename}])
    assert list(problems) == ["attachments.0.filename"]


def test_an_inline_image_has_the_name_that_the_html_uses():
    message = make_message(html_body='<img src="CID:logo">', inline=[PNG])
    assert message.inline[0].content_id == "logo"
    unnamed = {"filename": "logo.png", "content": ""}
    message = make_message(html_body='<img src="cid:logo.png">', inline=[unnamed])
    assert message.inline[0].content_id == "logo.png"
    bracketed = {**PNG, "content_id": "<a@b>"}
    assert make_message(html_body="x", inline=[bracketed]).inline[0].content_id == "a@b"


@pytest.mark.parametrize("content_id", ["a b", "a>b", "a\r\nb", "x" * 79, "ä", 7])
def test_a_content_id_that_is_none_is_refused(content_id):
    problems = problems_of(html_body="x", inline=[{**PNG, "content_id": content_id}])
    assert list(problems) == ["inline.0.content_id"]


def test_two_images_with_one_name_are_refused():
    assert problems_of(html_body="x", inline=[PNG, PNG]) == {
        "inline": "Two images have the same content_id."
    }


def test_a_file_is_shown_by_name_and_never_by_content():
    message = make_message(attachments=[PDF])
    assert "report.pdf" in repr(message)
    assert "%PDF" not in repr(message)
