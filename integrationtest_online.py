"""Check a deployment from outside: every kind of message, and failover when providers fail.

    python integrationtest_online.py [OPTIONS] URL DOMAIN RECIPIENT POOL_KEY ROOT_KEY

    --imap imaps://USER@HOST/INBOX  also wait in RECIPIENT's inbox for each mail, and compare what
                                    arrived with what was sent; its password is in $IMAP_PASSWORD
    --imap-seconds N                how long (120)
    --textfile PATH                 tell the results to the textfile collector of Prometheus' node
                                    exporter

RECIPIENT gets real mail: four messages, one of them at RECIPIENT's +cc and +bcc addresses too.
The last two checks switch on simulated failures: for as long as they take, all other mail of DOMAIN
fails over or is refused as well. Afterwards the simulated failures are put back as they were
before, however the run ends, save for a SIGKILL.

Exit status: 0 all passed, 1 something failed or was not put back, 2 wrong usage, 128 + N stopped
by signal N (130 for Ctrl-C) with everything put back.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import imaplib
import ipaddress
import json
import os
import re
import secrets
import shlex
import signal
import ssl
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import requests
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

TIMEOUT_SECONDS: Final = 60
"""For a connection, and for each wait for an answer; a send may take the server 25 s and more."""

RESTORE_TRIES: Final = 2
FAULTS: Final = {
    requests.ConnectTimeout: f"No connection within {TIMEOUT_SECONDS} s.",
    requests.Timeout: f"No answer within {TIMEOUT_SECONDS} s.",
    requests.exceptions.SSLError: "The server's TLS certificate was not accepted.",
    requests.ConnectionError: "The server cannot be reached, or broke off the connection.",
    requests.RequestException: "The request could not be made.",
}
"""The first that fits is said, and nothing that `requests` quotes."""

LOOK_SECONDS: Final = 0.5
"""How often it looks into the inbox, and how exactly it knows when a mail arrived."""

SETTLE_SECONDS: Final = 5.0
"""How long it waits for a second copy once all have arrived."""

IMAP_TIMEOUT_SECONDS: Final = 10
PASSWORD_VARIABLE: Final = "IMAP_PASSWORD"  # noqa: S105 - its name
DELIVERED_TO: Final = ("Delivered-To", "X-Original-To", "Envelope-To")
"""Where a server writes for which address a copy is."""

FILE: Final = {"filename": "check.csv", "content": base64.b64encode(b"a;b\r\n1;2\r\n").decode()}

_KEY: Final = r"[\x21-\x7e]+"
ARGUMENTS: Final = {
    "url": (r"https?://[^\s?#@]+", "where the service answers, like https://mail.example.com"),
    "domain": (r".+", "an email domain that it serves"),
    "recipient": (r'[^\s@<>,"]+@[^\s@<>,"]+', "who gets the mail, like ada@example.org"),
    "pool_key": (_KEY, "the domain's key: printable ASCII without spaces"),
    "root_key": (_KEY, "the server's key, likewise"),
}


@dataclass(frozen=True)
class Check:
    """One message, and what should come of it.

    fields: what it has beside the usual ones; {local} and {host} are the recipient's halves.
    failing: whose failure is simulated meanwhile: "first", "all", or nobody's.
    statuses: one of them is answered. problem: the field that is named as wrong.
    key: instead of the pool key.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    failing: str = ""
    statuses: Collection[int] = (200,)
    problem: str = ""
    key: str = ""


CHECKS: Final = (
    Check("plain message"),
    # Recipients are told apart by what many servers ignore: a + in the local part.
    Check("cc and bcc", {"to_cc": "{local}+cc@{host}", "to_bcc": "{local}+bcc@{host}"}),
    Check(
        "HTML and a file",
        {
            "html_body": "<h1>Integration test</h1><p>This is <em>HTML</em>.</p>",
            "attachments": [FILE],
        },
    ),
    Check("bad bcc address", {"to_bcc": "not an address"}, statuses=(400,), problem="to_bcc"),
    # 429 where too many wrong ones came from here lately.
    Check("wrong pool key", statuses=(401, 429), key=secrets.token_urlsafe()),
    # Last, and together: they are an outage for everybody else who sends mail.
    Check("first provider failed", failing="first"),
    Check("all providers failed", failing="all", statuses=(503,)),
)


class Failed(Exception):
    """The deployment did not do what it should; in one sentence."""

    result = "FAILED"


class Skipped(Failed):
    """This deployment cannot be checked in that way; says why."""

    result = "skipped"


@dataclass(frozen=True)
class Answer:
    """What the server said. body: the JSON object, or {} where it was none."""

    status: int
    body: dict[str, Any]

    def __str__(self) -> str:
        """The status and what explains it; never the body as a whole, which may hold keys."""
        sentence = self.body.get("error", "an answer without an error sentence")
        return "; ".join([f"HTTP {self.status}: {sentence}", *self.reasons])

    @property
    def reasons(self) -> list[str]:
        """What was wrong, by service or by field."""
        parts = (self.body.get(part, {}) for part in ("services_unsuccessful", "problems"))
        return [f"{name}: {why}" for part in parts for name, why in part.items()]

    def expect(self, statuses: Collection[int] = (200,)) -> dict[str, Any]:
        """The body, if it has one of `statuses`. Raises Failed."""
        if self.status not in statuses:
            raise Failed(f"{self} (expected {' or '.join(map(str, statuses))})")
        return self.body


@dataclass(frozen=True)
class Outcome:
    """What a check, or the look for its mail, gave. seconds: what it took."""

    check: str
    result: str
    seconds: float
    is_arrival: bool = False


@dataclass(frozen=True)
class Copy:
    """A mail in the inbox. seen: when it was first, by the monotonic clock."""

    mail: EmailMessage
    source: str
    seen: float

    @property
    def delivered_to(self) -> str:
        """For which address it is, as far as the server says."""
        found = [str(self.mail[name]) for name in DELIVERED_TO if self.mail[name]]
        return found[0].strip(" <>").lower() if found else ""

    def addresses(self, header: str) -> set[str]:
        """Those in a header."""
        values = [str(value) for value in self.mail.get_all(header, [])]
        return {address.lower() for _, address in getaddresses(values)}

    def text(self, kind: str) -> str:
        """Its body of that kind, "plain" or "html", with plain ends of lines."""
        part = self.mail.get_body((kind,))
        return "\n".join(str(part.get_content()).splitlines()).strip() if part else ""

    @property
    def files(self) -> dict[str, bytes]:
        """By name."""
        return {
            part.get_filename() or "": part.get_payload(decode=True) or b""  # type: ignore[misc]
            for part in self.mail.iter_attachments()
        }


class Inbox:
    """A mailbox at an IMAP server, looked into again and again by a thread of its own.

    Nothing in it is changed. url: `imaps://user@host:993/mailbox`; `imap://` begins TLS where the
    server offers it, and goes without to this machine alone. Raises ValueError for what is none.
    trouble: why it cannot be read, or "".
    """

    def __init__(self, url: str, password: str, mark: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"imap", "imaps"} or not parts.hostname or not parts.username:
            raise ValueError("imaps://user@host/mailbox is needed")
        self._is_tls = parts.scheme == "imaps"
        self._host = parts.hostname
        self._port = parts.port or (993 if self._is_tls else 143)
        self._user = unquote(parts.username)
        self._password = unquote(parts.password or "") or password
        self._mailbox = unquote(parts.path.lstrip("/")) or "INBOX"
        self._mark = mark
        self._lock = threading.Lock()
        self._found: dict[bytes, Copy] = {}
        self.trouble = ""

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, daemon=True).start()

    def copies(self, mark: str) -> list[Copy]:
        """The mails with this mark in their subject, the first that was seen first."""
        with self._lock:
            found = [c for c in self._found.values() if f"[{mark}]" in str(c.mail["Subject"])]
        return sorted(found, key=lambda copy: copy.seen)

    def _run(self) -> None:
        while True:
            try:
                with self._opened() as server:
                    while True:
                        self._look(server)
                        self.trouble = ""
                        time.sleep(LOOK_SECONDS)
            except (imaplib.IMAP4.error, OSError) as error:
                # What a server says may quote the login.
                said = str(error).replace(self._password, "[removed]") if self._password else error
                self.trouble = f"the inbox cannot be read: {said}"
            time.sleep(LOOK_SECONDS)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[imaplib.IMAP4]:
        context = ssl.create_default_context()
        server: imaplib.IMAP4
        if self._is_tls:
            server = imaplib.IMAP4_SSL(
                self._host, self._port, ssl_context=context, timeout=IMAP_TIMEOUT_SECONDS
            )
        else:
            server = imaplib.IMAP4(self._host, self._port, timeout=IMAP_TIMEOUT_SECONDS)
            if "STARTTLS" in server.capabilities:
                server.starttls(context)
            elif not is_this_machine(self._host):
                raise OSError("it offers no TLS, and a password is not shown without")
        with server:
            server.login(self._user, self._password)
            status, _ = server.select(f'"{self._mailbox}"', readonly=True)
            if status != "OK":
                raise OSError(f"there is no mailbox {self._mailbox}")
            yield server

    def _look(self, server: imaplib.IMAP4) -> None:
        server.noop()
        _, found = server.uid("SEARCH", f'SUBJECT "{self._mark}."')
        for uid in (found[0] or b"").split():
            if uid not in self._found:
                _, parts = server.uid("FETCH", uid.decode(), "(BODY.PEEK[])")
                source = next((p[1] for p in parts if isinstance(p, tuple)), b"")
                mail = message_from_bytes(source, policy=policy.default)
                copy = Copy(mail, source.decode("latin-1"), time.monotonic())
                with self._lock:
                    self._found[uid] = copy


def is_this_machine(host: str) -> bool:
    """Whether it is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def differences(sent: Mapping[str, Any], copies: Sequence[Copy]) -> list[str]:
    """In what the copies of a mail are not what was sent, in words."""
    addresses = {name: str(sent.get(name, "")).lower() for name in ("to_cc", "to_bcc")}
    to, cc, bcc = str(sent["to_recipients"]).lower(), addresses["to_cc"], addresses["to_bcc"]
    expected = {to, cc, bcc} - {""}
    each = [copy.delivered_to for copy in copies]
    most = 1 if all(each) else len(expected)
    twice = sorted({f"for {a}" if a else "" for a in each if each.count(a) > most})
    wrong = [f"it arrived {len(copies)} times {' and '.join(twice)}".strip()] if twice else []
    files = {f["filename"]: base64.b64decode(f["content"]) for f in sent.get("attachments", ())}
    for copy in copies:
        found = {
            "From": copy.addresses("From") == {sent["from_email"]},
            "To": copy.addresses("To") == {to},
            "Cc": copy.addresses("Cc") == {cc} - {""},
            "the subject": copy.mail["Subject"] == sent["subject"],
            "the text": copy.text("plain") == sent["raw_text_body"].strip(),
            # A provider may add what counts who opens it.
            "the HTML": sent.get("html_body", "") in copy.text("html"),
            "the files": copy.files == files,
        }
        wrong += [f"{what} arrived otherwise" for what, is_so in found.items() if not is_so]
        if bcc and copy.delivered_to != bcc and bcc in copy.source.lower():
            wrong.append("the copy of another shows who is in bcc")
        if copy.mail["Bcc"]:
            wrong.append("it has a header Bcc")
    return list(dict.fromkeys(wrong))


@dataclass
class Run:
    """One run against one email domain of a server. Its methods raise Failed.

    priorities: each service's. before: each service's simulated failure at the start.
    switching: held by who changes those. stopped_by: the first signal that came, or 0.
    status: to exit with. mark: what its mails are known by. inbox: where they are looked for.
    outcomes: what each check gave. answered: when, by the monotonic clock, what was sent was
    answered, by check.
    """

    url: str
    domain: str
    recipient: str
    pool_key: str = field(repr=False)
    root_key: str = field(repr=False)
    priorities: dict[str, float] = field(default_factory=dict)
    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    switching: threading.Lock = field(default_factory=threading.Lock)
    stopped_by: int = 0
    status: int = 1
    mark: str = field(default_factory=lambda: secrets.token_hex(6))
    inbox: Inbox | None = None
    inbox_seconds: float = 120
    textfile: str | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    answered: dict[str, float] = field(default_factory=dict)

    def address(self, *path: str) -> str:
        """The URL of something inside the domain."""
        return "/".join([self.url.rstrip("/"), *(quote(p, safe="") for p in (self.domain, *path))])

    def ask(self, method: str, key: str, *path: str, body: object = None) -> Answer:
        """One request, and whatever is answered."""
        try:
            response = requests.request(
                method,
                self.address(*path),
                json=body,
                headers={"Accept": "application/json", "Authorization": f"Bearer {key}"},
                auth=lambda request: request,  # without one, `requests` would look into ~/.netrc
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,  # a POST would become a GET, which is 200 and sends nothing
            )
        except requests.RequestException as error:
            raise Failed(next(FAULTS[kind] for kind in FAULTS if isinstance(error, kind))) from None
        parsed = None
        with contextlib.suppress(ValueError, RecursionError):
            parsed = response.json()
        if response.is_redirect:
            parsed = {"error": f"a redirect to {response.headers['Location']}"}
        return Answer(response.status_code, parsed if isinstance(parsed, dict) else {})

    def simulate(self, service: str, wanted: Mapping[str, Any]) -> None:
        """Have a service's simulated failure like this."""
        answer = self.ask("POST", self.root_key, service, "fail", body=wanted).expect()
        if answer.get("simulated_failure_enabled") is not wanted["simulated_failure"]:
            raise Failed(f"The simulated failure of {service} did not change.")

    def begin(self) -> None:
        """Look at the deployment, and change nothing."""
        services = self.ask("GET", self.root_key).expect().get("enabled_services")
        if not services:
            raise Failed("The listing of the domain names no services.")
        self.priorities = {name: about["priority_value"] for name, about in services.items()}
        before = {s: self.ask("GET", self.root_key, s, "fail").expect() for s in services}
        # To set what is already so needs the root key, where looking may need none: know it now.
        service, was = next(iter(before.items()))
        self.simulate(service, as_wanted(was))
        self.before = before

    def fail_only(self, failing: Collection[str]) -> None:
        """Simulate a failure of these services and of no other; ends the thread if we are to stop.

        Nothing is restored meanwhile: a request that we turn our back on might still be carried
        out after the one that restores.
        """
        with self.switching:
            for service in self.priorities:
                self.simulate(service, {"simulated_failure": service in failing})
            if self.stopped_by:
                sys.exit()

    def restore(self) -> list[str]:
        """Put the simulated failures back, for good; returns what is left to be done by hand.

        It prints nothing, since that fails where the terminal is gone.
        """
        self.switching.acquire()
        left = list(self.before)
        for service in left * RESTORE_TRIES:
            if service in left:
                with contextlib.suppress(Failed):
                    self.simulate(service, as_wanted(self.before[service]))
                    left.remove(service)
        return [
            '  curl --fail -X POST -H "Authorization: Bearer $ROOT_KEY" -H '
            f"'Content-Type: application/json' -d {shlex.quote(json.dumps(as_wanted(was)))}"
            f" {shlex.quote(self.address(service, 'fail'))}"
            for service, was in self.before.items()
            if service in left
        ]

    def carry_out(self, check: Check) -> str:
        """What happened. Raises Skipped, too."""
        highest = max(self.priorities.values())
        first = {name for name, priority in self.priorities.items() if priority == highest}
        failing = {"first": first, "all": set(self.priorities)}.get(check.failing, set())
        if check.failing == "first" and first == self.priorities.keys():
            equal = "all services have the same priority, so that none is the first"
            raise Skipped("only one service" if len(first) == 1 else equal)
        self.fail_only(failing)
        answer = self.ask("POST", check.key or self.pool_key, "send", body=self.message(check))
        self.answered[check.name] = time.monotonic()
        body, used = answer.expect(check.statuses), answer.body.get("service_used")
        problems = {name.partition(".")[0] for name in body.get("problems", {})}
        is_sent = answer.status == requests.codes.ok
        wrong = {
            "without the result 'success'": is_sent and body.get("result") != "success",
            f"by {used}": is_sent and used not in self.priorities.keys() - failing,
            f"without a reason for each of {', '.join(failing)}": not (
                failing <= body.get("services_unsuccessful", {}).keys()
            ),
            f"without a problem of {check.problem}": not {check.problem} - {""} <= problems,
            "but it was tried all the same": not failing and not is_sent and "attempts" in body,
        }
        if said := [what for what, is_so in wrong.items() if is_so]:
            raise Failed(f"HTTP {answer.status} {' and '.join(said)}")
        words = {200: f"sent by {used}", 400: "refused, nothing sent", 503: "not sent"}
        twice = ["perhaps sent twice"] if body.get("possible_duplicate") else []
        what = words.get(answer.status)
        return "; ".join([what, *twice, *answer.reasons]) if what else str(answer)

    def mark_of(self, check: Check) -> str:
        """What the mail of a check is known by."""
        return f"{self.mark}.{CHECKS.index(check)}"

    def look_for(self, check: Check) -> tuple[str, float]:
        """What is in the inbox of a check, once all is there, and when that arrived in seconds."""
        copies = self.inbox.copies(self.mark_of(check)) if self.inbox else []
        if check.statuses != (200,):
            if copies:
                raise Failed("it arrived, and should not have been sent")
            return "nothing arrived, as it should", 0.0
        if not copies:
            why = self.inbox.trouble if self.inbox else ""
            raise Failed(why or f"it did not arrive within {self.inbox_seconds:.0f} s")
        if wrong := differences(self.message(check), copies):
            raise Failed("; ".join(wrong))
        seconds = max(0.0, copies[0].seen - self.answered[check.name])
        times = "once" if len(copies) == 1 else f"{len(copies)} copies, one for each address"
        return f"arrived as it was sent, {times}", seconds

    def wait_for_mail(self) -> None:
        """Wait until all that was sent is in the inbox, and a while for what should not be."""
        awaited = [c for c in CHECKS if c.statuses == (200,) and c.name in self.answered]
        until = time.monotonic() + self.inbox_seconds
        while self.inbox and time.monotonic() < until and not self.stopped_by:
            if all(self.inbox.copies(self.mark_of(check)) for check in awaited):
                until = min(until, time.monotonic() + SETTLE_SECONDS)
                awaited = []
            time.sleep(LOOK_SECONDS)

    def message(self, check: Check) -> dict[str, Any]:
        """What is sent."""
        local, _, host = self.recipient.rpartition("@")
        return {
            "from_email": f"integrationtest@{self.domain}",
            "from_name": "Mailpool's integration test",
            "to_recipients": self.recipient,
            "subject": f"Integration test: {check.name} [{self.mark_of(check)}]",
            "raw_text_body": f"Sent by {self.url} to check: {check.name}. It works \u2713\n",
            **{
                name: given.format(local=local, host=host) if isinstance(given, str) else given
                for name, given in check.fields.items()
            },
        }


def as_wanted(was: Mapping[str, Any]) -> dict[str, Any]:
    """The request that brings a simulated failure back; one that has run out meanwhile is off."""
    names = {"kind": "simulated_failure_kind", "share": "simulated_failure_share"}
    wanted: dict[str, Any] = {n: was[there] for n, there in names.items() if there in was}
    if until := was.get("simulated_failure_until"):
        left = datetime.fromisoformat(until) - datetime.now(timezone.utc)
        wanted["minutes"] = left.total_seconds() / 60
    is_on = was["simulated_failure_enabled"] and wanted.get("minutes", 1) > 0
    return {"simulated_failure": True, **wanted} if is_on else {"simulated_failure": False}


def print_row(check: str, result: str, what_happened: str, milliseconds: int | str) -> None:
    """One line of ASCII: a server's words may not play with the terminal."""
    what = " ".join(what_happened.split()).encode("unicode_escape").decode("ascii")
    print(f"{check:<22} {result:<8} {what:<70} {milliseconds:>12}", flush=True)


def carry_out_all(run: Run, ended: SimpleQueue[None]) -> None:
    """What the other thread does: print what each check gives at once, and set the run's status."""
    try:
        run.begin()
        print_row("check", "result", "what happened", "milliseconds")
        results = [carry_out(run, check) for check in CHECKS]
        run.status = 1 if Failed.result in results else 0
    except Failed as failure:
        print(f"{run.url}: {failure}", file=sys.stderr)
    finally:
        ended.put(None)


def carry_out(run: Run, check: Check) -> str:
    """Print a line of the table; returns the result."""
    started = time.monotonic()
    try:
        result, what_happened = "ok", run.carry_out(check)
    except Failed as failure:
        result, what_happened = failure.result, str(failure)
    seconds = time.monotonic() - started
    run.outcomes.append(Outcome(check.name, result, seconds))
    print_row(check.name, result, what_happened, round(seconds * 1000))
    return result


def look_into_inbox(run: Run) -> None:
    """Print for each mail what arrived; sets the run's status."""
    run.wait_for_mail()
    if run.stopped_by:
        return
    print()
    print_row("mail", "result", "what arrived", "milliseconds")
    for check in CHECKS:
        if check.name not in run.answered:
            continue
        try:
            (what_happened, seconds), result = run.look_for(check), "ok"
        except Failed as failure:
            what_happened, seconds, result = str(failure), 0.0, failure.result
            run.status = 1
        run.outcomes.append(Outcome(check.name, result, seconds, is_arrival=True))
        print_row(check.name, result, what_happened, round(seconds * 1000))


def tell_prometheus(run: Run, path: str) -> None:
    """Write the results where the node exporter's textfile collector finds them, all at once."""
    registry = CollectorRegistry()
    labels = ("domain", "check")

    def gauge(name: str, text: str, labels: Sequence[str] = ("domain",)) -> Gauge:
        return Gauge(f"mailpool_integrationtest_{name}", text, labels, registry=registry)

    passed = gauge("passed", "Whether all went well that was not skipped.")
    at = gauge("timestamp_seconds", "When it ended.")
    ok = gauge("ok", "Whether the check went well; none where it was skipped.", labels)
    took = gauge("seconds", "What the check took, with the answer.", labels)
    arrived = gauge("arrived", "Whether its mail arrived as it was sent, and once.", labels)
    arrival = gauge("arrival_seconds", "From the answer until its mail was there.", labels)
    passed.labels(run.domain).set(run.status == 0)
    at.labels(run.domain).set_to_current_time()
    for outcome in run.outcomes:
        if outcome.result == Skipped.result:
            continue
        is_well, seconds = (arrived, arrival) if outcome.is_arrival else (ok, took)
        is_well.labels(run.domain, outcome.check).set(outcome.result == "ok")
        if outcome.result == "ok" and outcome.seconds:
            seconds.labels(run.domain, outcome.check).set(outcome.seconds)
    write_to_textfile(path, registry)


def run_from(arguments: Sequence[str]) -> Run:
    """What the command line names. Exits with 2 if that is unclear; no message quotes a key."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (_, meaning) in ARGUMENTS.items():
        parser.add_argument(name, metavar=name.upper(), help=meaning)
    parser.add_argument("--imap", metavar="URL", help="RECIPIENT's inbox")
    parser.add_argument("--imap-seconds", metavar="N", type=float, default=120.0)
    parser.add_argument("--textfile", metavar="PATH", help="for Prometheus' node exporter")
    if not {"-h", "--help"} & set(arguments):
        options, keys = without_keys(arguments)
        arguments = [*options, "--", *keys]  # a key may begin with a dash
    known, surplus = parser.parse_known_args(arguments)
    if surplus:
        parser.error(f"five arguments are needed, not {5 + len(surplus)}")
    for name, (pattern, meaning) in ARGUMENTS.items():
        if not re.fullmatch(pattern, getattr(known, name)):
            parser.error(f"{name.upper()} should be {meaning}")
    run = Run(
        **{name: getattr(known, name) for name in ARGUMENTS},
        inbox_seconds=known.imap_seconds,
        textfile=known.textfile,
    )
    if known.imap:
        try:
            run.inbox = Inbox(known.imap, os.environ.get(PASSWORD_VARIABLE, ""), run.mark)
        except ValueError as error:
            parser.error(f"--imap: {error}")
    return run


def without_keys(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The options, which are before the others or after as many as there should be, and those."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("--"):
        place += 1 if "=" in arguments[place] else 2
    end = place + len(ARGUMENTS)
    after = arguments[end:] if arguments[end:] and arguments[end].startswith("--") else []
    others = arguments[place : len(arguments) - len(after)]
    return [*arguments[:place], *after], others


def main() -> int:
    """Returns the exit status.

    Checks have a thread of their own, so that a signal interrupts them and never the restoring.
    """
    run = run_from(sys.argv[1:])
    ended: SimpleQueue[None] = SimpleQueue()

    def stop(number: int, _frame: object) -> None:
        run.stopped_by = run.stopped_by or number
        ended.put(None)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as by nohup
            signal.signal(number, stop)
    if run.inbox:
        run.inbox.start()
    threading.Thread(target=carry_out_all, args=(run, ended), daemon=True).start()
    ended.get()
    status = end(run)
    if run.textfile:
        tell_prometheus(run, run.textfile)
    return status


def end(run: Run) -> int:
    """Put back what was changed, and look for the mail; returns the exit status."""
    if by_hand := run.restore():
        print("\n*** SIMULATED FAILURES WERE NOT PUT BACK AS THEY WERE. ***", file=sys.stderr)
        print("Mail may fail until you run this, with the root key in $ROOT_KEY:", file=sys.stderr)
        print("\n".join(by_hand), file=sys.stderr)
        return 1
    if run.before and not run.stopped_by:
        print("\nThe simulated failures are as they were before.", flush=True)
    if run.inbox and run.answered and not run.stopped_by:
        look_into_inbox(run)
    if run.stopped_by:
        print("Stopped; the simulated failures are as they were before.", file=sys.stderr)
        return 128 + run.stopped_by
    return run.status


if __name__ == "__main__":
    sys.exit(main())
