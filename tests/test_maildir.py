from __future__ import annotations

import email
import email.policy
import mailbox
import os
import resource
import threading
import time

import pytest
from conftest import make_message
from messages import NEXT_YEAR, PDF, PNG

from email_services.exceptions import CannotCarry, ServiceUnavailable
from email_services.message import EmailMessage
from email_services.providers.maildir import Maildir, MaildirSettings


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mail" / "box"


@pytest.fixture
def service(folder):
    return Maildir("maildir", "example.com", MaildirSettings(priority_value=1, path=folder))


def stored(folder) -> list[email.message.EmailMessage]:
    """What a mail program finds there."""
    box = mailbox.Maildir(folder, create=False)
    return [
        email.message_from_bytes(box.get_bytes(key), policy=email.policy.default)
        for key in box.keys()  # noqa: SIM118 - iterating gives messages
    ]


def test_a_message_is_found_by_a_mail_program(service, folder):
    message = make_message(
        from_name="Müller, Jörg",
        to_recipients=['"Doe, Jane" <jane@example.org>', "b@bücher.example"],
        to_cc="Zoë <zoe@example.org>",
        to_bcc="eve@example.org",
        subject="Grüße aus 東京 ✉",
        raw_text_body="Erste Zeile\nZweite 😀\n",
        html_body="<p>Hällo</p>\n",
    )
    name = service.send(message, 5).message_id
    (found,) = stored(folder)
    assert (folder / "new" / name).is_file()
    assert not list((folder / "tmp").iterdir())
    assert found["From"] == '"Müller, Jörg" <me@example.com>'
    assert found["To"] == '"Doe, Jane" <jane@example.org>, b@xn--bcher-kva.example'
    assert found["Cc"] == "Zoë <zoe@example.org>"
    assert found["Bcc"] == "eve@example.org"
    assert found["Subject"] == "Grüße aus 東京 ✉"
    assert found["Message-ID"] == f"<{message.message_id}@example.com>"
    assert found["Date"].datetime is not None
    assert found.get_body(("plain",)).get_content() == "Erste Zeile\nZweite 😀\n"
    assert found.get_body(("html",)).get_content() == "<p>Hällo</p>\n"
    assert not any(part.defects for part in found.walk())


@pytest.mark.parametrize(
    ("fields", "content_type"),
    [
        ({}, "text/plain"),
        ({"raw_text_body": "", "html_body": "<img src='https://example.com/a.png'>"}, "text/html"),
        ({"html_body": "<p>x</p>"}, "multipart/alternative"),
    ],
)
def test_a_message_has_no_more_parts_than_it_needs(fields, content_type, service, folder):
    service.send(make_message(**fields), 5)
    assert stored(folder)[0].get_content_type() == content_type


def test_the_file_is_ascii_with_short_lines_as_rfc_5322_asks(service, folder):
    message = make_message(subject="東" * 400, raw_text_body="x" * 5000 + "ü", from_name="ü" * 200)
    name = service.send(message, 5).message_id
    lines = (folder / "new" / name).read_bytes().split(b"\n")
    head = lines[: lines.index(b"")]
    assert all(line.isascii() and len(line) <= 78 for line in head)
    assert all(len(line) <= 998 and b"\r" not in line for line in lines)


def test_an_address_beyond_ascii_is_written_as_rfc_6532_asks(service, folder):
    name = service.send(make_message(to_recipients="Jörg <jörg@example.org>"), 5).message_id
    assert "To: Jörg <jörg@example.org>" in (folder / "new" / name).read_text("utf-8")


@pytest.mark.parametrize("body", ["a\rb", "a\r\nb", "From me\n.\n", "x\x0b\x0c\x85\u2028", " x \n"])
def test_odd_characters_in_a_body_stay(body, service, folder):
    service.send(make_message(raw_text_body=body), 5)
    content = stored(folder)[0].get_content()
    assert content.rstrip("\n") == body.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def test_everything_else_of_a_message_is_kept_too(service, folder):
    message = make_message(
        html_body='<img src="cid:logo">',
        reply_to=["a@example.net", "B <b@example.net>"],
        headers={"X-Order": "42"},
        tags=["welcome", "spring sale"],
        metadata={"customer": "Zoë"},
        attachments=[PDF],
        inline=[PNG],
    )
    service.check(message)
    service.send(message, 5)
    (found,) = stored(folder)
    assert found["Reply-To"] == "a@example.net, B <b@example.net>"
    assert found["X-Order"] == "42"
    assert found.get_all("X-Tag") == ["welcome", "spring sale"]
    assert found["X-Metadata-customer"] == "Zoë"
    (attached,) = found.iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == (
        "report.pdf",
        message.attachments[0].content,
    )
    (image,) = (part for part in found.walk() if part["Content-ID"] == "<logo>")
    assert image.get_content() == message.inline[0].content


@pytest.mark.parametrize("field", ["track_opens", "send_at"])
def test_what_a_file_cannot_do_is_not_asked_of_it(field, service):
    given = {"track_opens": True, "send_at": NEXT_YEAR}
    with pytest.raises(CannotCarry):
        service.check(make_message(**{field: given[field]}))


def test_nobody_else_on_this_machine_reads_the_mail(service, folder):
    name = service.send(make_message(), 5).message_id
    assert (folder / "new" / name).stat().st_mode & 0o777 == 0o600


def test_a_thousand_recipients_are_written(service, folder):
    addresses = [f"Recipient Number {n} <r{n}@example.org>" for n in range(1000)]
    service.send(make_message(to_recipients=addresses), 5)
    assert len(stored(folder)[0]["To"].addresses) == 1000


def test_a_folder_that_cannot_be_written_is_not_sent(tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings = MaildirSettings(priority_value=1, path=tmp_path / "file")
    with pytest.raises(ServiceUnavailable, match="cannot be written"):
        Maildir("maildir", "example.com", settings).send(make_message(), 5)


@pytest.fixture
def little_room():
    """No file of this process grows beyond 64 KiB, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_leaves_its_room_to_others(service, folder, little_room):
    with pytest.raises(ServiceUnavailable, match="cannot be written"):
        service.send(make_message(raw_text_body="x\n" * 100_000), 5)
    assert not list((folder / "tmp").iterdir())
    service.send(make_message(), 5)
    assert len(stored(folder)) == 1


HOUR = 3600


def left_behind(folder, name, hours, accessed=None) -> None:
    now = time.time()
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "tmp" / name).write_text("half a mess")
    times = (now - (hours if accessed is None else accessed) * HOUR, now - hours * HOUR)
    os.utime(folder / "tmp" / name, times)


def test_what_a_kill_left_goes_after_36_hours(service, folder):
    left_behind(folder, "old", hours=37)
    left_behind(folder, "young", hours=35)
    left_behind(folder, "old but being copied", hours=1000, accessed=1)
    (folder / "tmp" / "a folder").mkdir()
    os.utime(folder / "tmp" / "a folder", (0, 0))
    service.send(make_message(), 5)
    names = {file.name for file in (folder / "tmp").iterdir()}
    assert names == {"young", "old but being copied", "a folder"}


def test_old_files_are_not_looked_for_with_each_message(service, folder, monkeypatch):
    service.send(make_message(), 5)
    left_behind(folder, "old", hours=37)
    service.send(make_message(), 5)
    assert (folder / "tmp" / "old").exists()
    monkeypatch.setattr(service, "_next_clearing", time.monotonic())
    service.send(make_message(), 5)
    assert not (folder / "tmp" / "old").exists()


def test_many_threads_write_without_losing_one(service, folder):
    def send_ten():
        for _ in range(10):
            service.send(EmailMessage.parse(FIELDS, "example.com"), 5)

    threads = [threading.Thread(target=send_ten) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({message["Message-ID"] for message in stored(folder)}) == 80


FIELDS = {
    "from_email": "me@example.com",
    "to_recipients": "ada@example.org",
    "subject": "Hello",
    "raw_text_body": "It works.",
}
