"""Check a deployment from outside: every kind of message, and failover when providers fail.

    python integrationtest_online.py URL DOMAIN RECIPIENT POOL_KEY ROOT_KEY

RECIPIENT gets real mail: four messages, one of them at RECIPIENT's +cc and +bcc addresses too.
The last two checks switch on simulated failures: for as long as they take, all other mail of DOMAIN
fails over or is refused as well. Afterwards the simulated failures are put back as they were
before, however the run ends, save for a SIGKILL.

Exit status: 0 all passed, 1 something failed or was not put back, 2 wrong usage, 128 + N stopped
by signal N (130 for Ctrl-C) with everything put back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import quote

import requests

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
    fields: Mapping[str, str] = field(default_factory=dict)
    failing: str = ""
    statuses: Collection[int] = (200,)
    problem: str = ""
    key: str = ""


CHECKS: Final = (
    Check("plain message"),
    # Recipients are told apart by what many servers ignore: a + in the local part.
    Check("cc and bcc", {"to_cc": "{local}+cc@{host}", "to_bcc": "{local}+bcc@{host}"}),
    Check("HTML", {"html_body": "<h1>Integration test</h1><p>This is <em>HTML</em>.</p>"}),
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


@dataclass
class Run:
    """One run against one email domain of a server. Its methods raise Failed.

    priorities: each service's. before: each service's simulated failure at the start.
    switching: held by who changes those. stopped_by: the first signal that came, or 0.
    status: to exit with.
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
        answer = self.ask("POST", check.key or self.pool_key, "send", body=self._message(check))
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

    def _message(self, check: Check) -> dict[str, str]:
        local, _, host = self.recipient.rpartition("@")
        return {
            "from_email": f"integrationtest@{self.domain}",
            "from_name": "Mailpool's integration test",
            "to_recipients": self.recipient,
            "subject": f"Integration test: {check.name}",
            "raw_text_body": f"Sent by {self.url} to check: {check.name}. It works \u2713\n",
            **{name: text.format(local=local, host=host) for name, text in check.fields.items()},
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
    print_row(check.name, result, what_happened, round((time.monotonic() - started) * 1000))
    return result


def run_from(arguments: Sequence[str]) -> Run:
    """What the command line names. Exits with 2 if that is unclear; no message quotes a key."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (_, meaning) in ARGUMENTS.items():
        parser.add_argument(name, metavar=name.upper(), help=meaning)
    if not {"-h", "--help"} & set(arguments):
        arguments = ["--", *arguments]  # a key may begin with a dash
    known, surplus = parser.parse_known_args(arguments)
    if surplus:
        parser.error(f"five arguments are needed, not {5 + len(surplus)}")
    for name, (pattern, meaning) in ARGUMENTS.items():
        if not re.fullmatch(pattern, getattr(known, name)):
            parser.error(f"{name.upper()} should be {meaning}")
    return Run(**vars(known))


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
    threading.Thread(target=carry_out_all, args=(run, ended), daemon=True).start()
    ended.get()
    if by_hand := run.restore():
        print("\n*** SIMULATED FAILURES WERE NOT PUT BACK AS THEY WERE. ***", file=sys.stderr)
        print("Mail may fail until you run this, with the root key in $ROOT_KEY:", file=sys.stderr)
        print("\n".join(by_hand), file=sys.stderr)
        return 1
    if run.stopped_by:
        print("Stopped; the simulated failures are as they were before.", file=sys.stderr)
        return 128 + run.stopped_by
    if run.before:
        print("\nThe simulated failures are as they were before.")
    return run.status


if __name__ == "__main__":
    sys.exit(main())
