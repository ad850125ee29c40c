"""The integration test looks into a real inbox, at dovecot, for mail that came through SMTP."""

from __future__ import annotations

import contextlib
import email
import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import POOL_KEY, ROOT_KEY, make_config
from servers import ROOT as REPOSITORY
from servers import Server
from smtp_server import SMTPServer
from test_reload import wait_for

from integrationtest_online import Inbox

DOVECOT = shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
PASSWORD = "the-password-of-the-inbox"
RECIPIENT = "ada@example.org"

CONFIG = """
base_dir = {folder}/run
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
{users}
mail_location = maildir:{folder}/mail
first_valid_uid = 0
mail_uid = {uid}
mail_gid = {gid}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
"""

USERS = "\n".join(
    f"default_{name} = {{user}}" for name in ("internal_user", "internal_group", "login_user")
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Mailbox:
    """ada's, behind dovecot; what comes to the SMTP server is put into it by `deliver`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder / "mail"
        for part in ("new", "cur", "tmp"):
            (self.folder / part).mkdir(parents=True)
            for path in (self.folder, self.folder / part):
                path.chmod(0o777)  # of whichever of its users
        settings = {
            "folder": folder,
            "port": self.port,
            "password": PASSWORD,
            # As root it has users of its own, from its package.
            "users": "" if os.geteuid() == 0 else USERS.format(user=getpass.getuser()),
            "uid": os.getuid() or pwd.getpwnam("mail").pw_uid,
            "gid": os.getgid() or pwd.getpwnam("mail").pw_gid,
        }
        config = folder / "dovecot.conf"
        config.write_text(CONFIG.format(**settings))
        self.log = folder / "dovecot.log"
        self._process = subprocess.Popen([DOVECOT, "-F", "-c", config], stderr=subprocess.DEVNULL)
        wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    @property
    def url(self) -> str:
        return f"imap://{RECIPIENT.replace('@', '%40')}@127.0.0.1:{self.port}/INBOX"

    def deliver(self, content: bytes, address: str) -> None:
        name = f"{time.time_ns()}.{os.urandom(4).hex()}.host"
        path = self.folder / "tmp" / name
        path.write_bytes(f"Delivered-To: {address}\r\n".encode() + content)
        path.rename(self.folder / "new" / name)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def mailbox():
    if DOVECOT is None:
        assert not os.environ.get("CI"), "CI has dovecot"
        pytest.skip("there is no dovecot")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to its users
        Path(folder).chmod(0o755)
        opened = Mailbox(Path(folder))
        yield opened
        opened.close()


@contextlib.contextmanager
def delivering(mailbox, change=lambda content, _: [content]):
    """An SMTP server that puts what comes into the mailbox; change: what it makes of each copy."""

    class Delivering(list):
        def append(self, mail):
            super().append(mail)
            for address in mail.recipients:
                for content in change(mail.content, address):
                    mailbox.deliver(content, address)

    server = SMTPServer()
    server.mails = Delivering()
    try:
        yield server
    finally:
        server.close()


def check(tmp_path, mailbox, smtp, *options, password=PASSWORD):
    """The lines about the inbox, and the exit status."""
    config = make_config(tmp_path)
    account = {"service": "smtp", "host": "127.0.0.1", "port": smtp.port, "security": "none"}
    config["email_services"][0]["enabled_services"] = {
        "first": {**account, "priority_value": 2},
        "second": {**account, "priority_value": 1},
    }
    server = Server(tmp_path, config, WEB_CONCURRENCY="1")
    try:
        done = subprocess.run(
            [
                sys.executable,
                "integrationtest_online.py",
                f"--imap={mailbox.url}",
                *options,
                server.url,
                "example.com",
                RECIPIENT,
                POOL_KEY,
                ROOT_KEY,
            ],
            cwd=REPOSITORY,
            env={**os.environ, "IMAP_PASSWORD": password},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.kill()
    assert PASSWORD not in done.stdout + done.stderr
    _, _, table = done.stdout.partition("what arrived")
    rows = re.findall(r"^(.{22}) (ok|FAILED) +(.*?) +(\d+)$", table, re.MULTILINE)
    return {name.strip(): (result, what) for name, result, what, _ in rows}, done


def test_all_that_was_sent_arrives_as_it_was_sent_and_once(mailbox, tmp_path):
    report = tmp_path / "mailpool.prom"
    with delivering(mailbox) as smtp:
        rows, done = check(tmp_path, mailbox, smtp, "--textfile", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name, (_, what) in rows.items() if "arrived as it was sent" in what] == [
        "plain message",
        "cc and bcc",
        "HTML and a file",
        "first provider failed",
    ]
    assert "3 copies, one for each address" in rows["cc and bcc"][1]
    assert rows["all providers failed"] == ("ok", "nothing arrived, as it should")
    told = report.read_text()
    assert 'mailpool_integrationtest_passed{domain="example.com"} 1.0' in told
    of_plain = 'check="plain message",domain="example.com"} '
    assert f"mailpool_integrationtest_arrived{{{of_plain}1.0" in told
    assert re.search(rf"mailpool_integrationtest_arrival_seconds\{{{of_plain}\d", told)
    assert "mailpool_integrationtest_timestamp_seconds" in told
    flags = {path.name.partition(":2,")[2] for path in mailbox.folder.glob("*/*.host*")}
    assert flags == {""}, "nothing was marked as read"


def with_bcc(content: bytes) -> bytes:
    return b"Bcc: ada+bcc@example.org\r\n" + content


def without_files(content: bytes) -> bytes:
    mail = email.message_from_bytes(content)
    if mail.get_content_maintype() == "multipart":
        kept = [part for part in mail.get_payload() if not part.get_filename()]
        mail.set_payload(kept)
    return mail.as_bytes()


SPOILT = {
    "twice": (
        lambda content, _: [content, content],
        "plain message",
        "it arrived 2 times for ada@example.org",
    ),
    "with another subject": (
        lambda content, _: [
            content.replace(b"Subject: Integration", b"Subject: [Spam] Integration")
        ],
        "plain message",
        "the subject arrived otherwise",
    ),
    "with another text": (
        lambda content, _: [content.replace(b"to check", b"to cheat")],
        "plain message",
        "the text arrived otherwise",
    ),
    "with bcc shown": (
        lambda content, _: [with_bcc(content)],
        "cc and bcc",
        "the copy of another shows who is in bcc; it has a header Bcc",
    ),
    "without its file": (
        lambda content, _: [without_files(content)],
        "HTML and a file",
        "the files arrived otherwise",
    ),
    "not at all": (lambda *_: [], "plain message", "it did not arrive within 2 s"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_arrives_otherwise_is_told(spoilt, mailbox, tmp_path):
    change, name, words = SPOILT[spoilt]
    report = tmp_path / "mailpool.prom"
    options = ("--imap-seconds=2", f"--textfile={report}")
    with delivering(mailbox, change) as smtp:
        rows, done = check(tmp_path, mailbox, smtp, *options)
    assert done.returncode == 1
    result, what = rows[name]
    assert result == "FAILED"
    assert words in what
    assert 'mailpool_integrationtest_passed{domain="example.com"} 0.0' in report.read_text()


def test_an_inbox_that_cannot_be_read_is_told_without_its_password(mailbox, tmp_path):
    with delivering(mailbox) as smtp:
        rows, done = check(tmp_path, mailbox, smtp, "--imap-seconds=3", password="wrong-password")
    assert done.returncode == 1
    assert rows["plain message"][0] == "FAILED"
    assert rows["plain message"][1].startswith("the inbox cannot be read: ")
    assert "wrong-password" not in done.stdout + done.stderr


@pytest.mark.parametrize("url", ["", "http://a@b/", "imaps://host/INBOX", "imaps://user@/INBOX"])
def test_an_inbox_that_can_be_none_is_wrong_usage(url):
    with pytest.raises(ValueError, match="imaps://user@host/mailbox"):
        Inbox(url, "", "mark")
