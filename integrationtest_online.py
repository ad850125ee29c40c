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
import json
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http import HTTPStatus
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

import requests
from requests.auth import AuthBase

TIMEOUT_SECONDS: Final = 60
"""For a connection, and for each wait for an answer; a send may take the server 25 s and more."""

RESTORE_TRIES: Final = 2


class Failed(Exception):
    """The deployment did not do what it should; in one sentence."""


class Skipped(Exception):
    """This deployment cannot be checked in that way; says why."""


class NotRestored(Exception):
    """Simulated failures are not as they were; holds the lines that put them back by hand."""


class Stopped(BaseException):
    """A signal asks us to stop. Not an Exception, which a library might swallow."""


class Signals:
    """Ctrl-C, SIGTERM and a closed terminal; the first raises Stopped, later ones do nothing.

    While they are held, none raises. number: the first that came, or None.

    The first only: a second Ctrl-C, from impatience, may not cut short the restoring.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._holding = False

    def install(self) -> None:
        """From now on signals come here, but for those we were told to ignore, as by nohup."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # there is no SIGHUP on Windows
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_first = self.number is None
        if is_first:
            self.number = number
        if is_first and not self._holding:
            raise Stopped

    def hold(self) -> None:
        """Note signals from now on, no more. Raises Stopped for one that comes just before."""
        self._holding = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals for as long as the block takes. Raises Stopped if one came meanwhile."""
        self.hold()
        try:
            yield
        finally:
            self._holding = False
            self.check()

    def check(self) -> None:
        """Raises Stopped if a signal has come."""
        if self.number is not None:
            raise Stopped


@dataclass(frozen=True)
class Bearer(AuthBase):
    """`Authorization: Bearer KEY`; as an `auth`, since without one `requests` asks ~/.netrc."""

    key: str = field(repr=False)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Called by `requests` for each request."""
        request.headers["Authorization"] = f"Bearer {self.key}"
        return request


@dataclass(frozen=True)
class Answer:
    """What the server said. body: the JSON object, or {} where it was none."""

    status: int
    body: dict[str, Any]
    location: str

    def __str__(self) -> str:
        """The status and what explains it; never the body as a whole, which may hold keys."""
        if self.location:
            return f"HTTP {self.status}: a redirect to {self.location}"
        sentence = self.body.get("error", "an answer without an error sentence")
        return "; ".join([f"HTTP {self.status}: {sentence}", *self.reasons])

    @property
    def reasons(self) -> list[str]:
        """What was wrong, by service or by field."""
        named = {**self.part("services_unsuccessful"), **self.part("problems")}
        return [f"{name}: {why}" for name, why in named.items()]

    def part(self, name: str) -> dict[str, Any]:
        """An object inside the body; {} if it is missing or no object."""
        value = self.body.get(name)
        return value if isinstance(value, dict) else {}

    def expect(self, status: HTTPStatus) -> Answer:
        """This answer, if it has `status`. Raises Failed."""
        if self.status == status:
            return self
        raise Failed(f"{self} (expected {status.value})")


@dataclass(frozen=True)
class Simulated:
    """A service's simulated failure. kind, share, until: as the server gave them, or None."""

    on: bool
    kind: str | None = None
    share: float | None = None
    until: str | None = None

    def wanted(self) -> dict[str, Any]:
        """The request that brings it about; one that has run out meanwhile is off."""
        minutes = None
        if self.until is not None:
            left = datetime.fromisoformat(self.until) - datetime.now(timezone.utc)
            minutes = left.total_seconds() / 60
        if not self.on or (minutes is not None and minutes <= 0):
            return {"simulated_failure": False}
        chosen = {"kind": self.kind, "share": self.share, "minutes": minutes}
        return {"simulated_failure": True} | {k: v for k, v in chosen.items() if v is not None}


@dataclass(frozen=True)
class Deployment:
    """One email domain of a server, by its HTTP API. Every method raises Failed.

    url: where the server's `/` is, without a slash at the end.
    """

    url: str
    domain: str
    recipient: str
    pool_key: str = field(repr=False)
    root_key: str = field(repr=False)

    def address(self, *path: str) -> str:
        """The URL of something inside the domain."""
        return "/".join([self.url, *(quote(part, safe="") for part in (self.domain, *path))])

    def priorities(self) -> dict[str, float]:
        """Each service's priority_value."""
        answer = self._request("GET", self.address(), self.root_key).expect(HTTPStatus.OK)
        services = answer.part("enabled_services")
        try:
            priorities = {name: float(about["priority_value"]) for name, about in services.items()}
        except (TypeError, ValueError, KeyError):
            priorities = {}
        if not priorities:
            raise Failed("The listing of the domain names no services with a priority_value.")
        return priorities

    def simulated_failure(self, service: str) -> Simulated:
        """Whether it is on, and how."""
        answer = self._request("GET", self.address(service, "fail"), self.root_key)
        on, more = self._state(service, answer), answer.body
        return Simulated(
            on,
            more.get("simulated_failure_kind"),
            more.get("simulated_failure_share"),
            more.get("simulated_failure_until"),
        )

    def set_simulated_failure(self, service: str, simulated: Simulated) -> None:
        """Have it as it should be, whatever it was before."""
        wanted = simulated.wanted()
        answer = self._request("POST", self.address(service, "fail"), self.root_key, wanted)
        if self._state(service, answer) is not wanted["simulated_failure"]:
            raise Failed(f"The simulated failure of {service} did not change.")

    def send(self, message: dict[str, Any], key: str | None = None) -> Answer:
        """Ask the server to send `message`, with the pool key or another one."""
        return self._request("POST", self.address("send"), key or self.pool_key, message)

    def _state(self, service: str, answer: Answer) -> bool:
        state = answer.expect(HTTPStatus.OK).body.get("simulated_failure_enabled")
        if not isinstance(state, bool):
            raise Failed(f"The server does not say whether {service}'s failure is simulated.")
        return state

    def _request(self, method: str, url: str, key: str, body: object = None) -> Answer:
        """The one place where an error of `requests` becomes ours, without quoting anything."""
        try:
            response = requests.request(
                method,
                url,
                json=body,
                auth=Bearer(key),
                headers={"Accept": "application/json"},
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,  # a POST would become a GET, which is 200 and sends nothing
            )
        except requests.ConnectTimeout:
            raise Failed(f"No connection within {TIMEOUT_SECONDS} s.") from None
        except requests.Timeout:
            raise Failed(f"No answer within {TIMEOUT_SECONDS} s.") from None
        except requests.exceptions.SSLError:
            raise Failed("The server's TLS certificate was not accepted.") from None
        except requests.ConnectionError:
            raise Failed("The server cannot be reached, or broke off the connection.") from None
        except requests.RequestException as error:
            raise Failed(f"The request could not be made ({type(error).__name__}).") from None
        try:
            parsed = response.json()
        except (ValueError, RecursionError):
            parsed = None
        location = response.headers.get("Location", "") if response.is_redirect else ""
        return Answer(response.status_code, parsed if isinstance(parsed, dict) else {}, location)


@dataclass(frozen=True)
class Run:
    """One run against a deployment.

    priorities: by service. before: by service, its simulated failure at the start.
    """

    deployment: Deployment
    signals: Signals
    priorities: dict[str, float]
    before: dict[str, Simulated]

    @classmethod
    def begin(cls, deployment: Deployment, signals: Signals) -> Run:
        """Look at the deployment and change nothing. Raises Failed, for a wrong root key too."""
        priorities = deployment.priorities()
        before = {service: deployment.simulated_failure(service) for service in priorities}
        # To set what is already so needs the root key, where looking may need none. Better to know
        # now than in the middle.
        service, state = next(iter(before.items()))
        deployment.set_simulated_failure(service, state)
        return cls(deployment, signals, priorities, before)

    def fail_only(self, failing: Collection[str]) -> None:
        """Simulate a failure of the `failing` services and of no other. Raises Failed or Stopped.

        Not interrupted halfway: a request that we turn our back on might still be carried out
        after the one that restores.
        """
        with self.signals.held():
            for service in self.priorities:
                self.deployment.set_simulated_failure(service, Simulated(service in failing))

    def restore(self) -> None:
        """Put the simulated failures back as they were. Raises NotRestored.

        It prints nothing, since that fails where the terminal is gone.
        """
        lines = [
            self._by_hand(s, was) for s, was in self.before.items() if not self._restored(s, was)
        ]
        if lines:
            raise NotRestored("\n".join(lines))

    def _restored(self, service: str, was: Simulated) -> bool:
        return any(self._is_set(service, was) for _ in range(RESTORE_TRIES))

    def _is_set(self, service: str, was: Simulated) -> bool:
        try:
            self.deployment.set_simulated_failure(service, was)
        except Failed:
            return False
        return True

    def _by_hand(self, service: str, was: Simulated) -> str:
        body = json.dumps(was.wanted())
        return (
            '  curl --fail -X POST -H "Authorization: Bearer $ROOT_KEY"'
            f" -H 'Content-Type: application/json' -d {shlex.quote(body)}"
            f" {shlex.quote(self.deployment.address(service, 'fail'))}"
        )

    def message(self, check: str, **more: object) -> dict[str, Any]:
        """A message for the recipient that says what it is; `more` fields, or others."""
        return {
            "from_email": f"integrationtest@{self.deployment.domain}",
            "from_name": "Mailpool's integration test",
            "to_recipients": [self.deployment.recipient],
            "subject": f"Integration test: {check}",
            "raw_text_body": f"Sent by {self.deployment.url} to check: {check}. It works \u2713\n",
            **more,
        }

    def sent(self, message: dict[str, Any]) -> Answer:
        """Send, and have the server say that it was sent. Raises Failed."""
        answer = self.deployment.send(message).expect(HTTPStatus.OK)
        if answer.body.get("result") != "success":
            raise Failed("HTTP 200 without the result 'success'")
        if answer.body.get("service_used") not in self.priorities:
            raise Failed("HTTP 200 without a service of this domain as service_used")
        return answer


def plain_message(run: Run) -> str:
    """A text for one recipient."""
    return story(run.sent(run.message("plain message")))


def cc_and_bcc(run: Run) -> str:
    """Three recipients, told apart by what many servers ignore: a + in the local part."""
    local, _, domain = run.deployment.recipient.rpartition("@")
    copies = {"to_cc": [f"{local}+cc@{domain}"], "to_bcc": [f"{local}+bcc@{domain}"]}
    return story(run.sent(run.message("cc and bcc", **copies)))


def html(run: Run) -> str:
    """Text and HTML."""
    body = "<h1>Integration test</h1><p>This is <em>HTML</em>.</p>"
    return story(run.sent(run.message("HTML", html_body=body)))


def bad_bcc(run: Run) -> str:
    """One address that is none: everything is refused, and the field named."""
    answer = run.deployment.send(run.message("bad bcc address", to_bcc=["not an address"]))
    problems = answer.expect(HTTPStatus.BAD_REQUEST).part("problems")
    named = [name for name in ("to_bcc", "to_bcc.0") if name in problems]
    if not named:
        raise Failed(f"HTTP 400, but its problems name no to_bcc: {', '.join(problems) or 'none'}")
    if "attempts" in answer.body or "message_id" in answer.body:
        raise Failed("HTTP 400, but it was tried all the same")
    return f"refused, nothing sent; {named[0]}: {problems[named[0]]}"


def wrong_pool_key(run: Run) -> str:
    """A key that opens nothing; 429 where too many wrong ones came from here lately."""
    key = secrets.token_urlsafe()
    answer = run.deployment.send(run.message("wrong pool key"), key)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return str(answer)
    return str(answer.expect(HTTPStatus.UNAUTHORIZED))


def first_provider_failed(run: Run) -> str:
    """Those that would be tried first fail: services of equal priority come in any order."""
    highest = max(run.priorities.values())
    first = {service for service, priority in run.priorities.items() if priority == highest}
    if len(run.priorities) == 1:
        raise Skipped("only one service")
    if len(first) == len(run.priorities):
        raise Skipped("all services have the same priority, so that none is the first")
    run.fail_only(first)
    answer = run.sent(run.message("first provider failed"))
    if answer.body["service_used"] in first:
        raise Failed(f"{story(answer)}, whose failure is simulated")
    if missing := first - answer.part("services_unsuccessful").keys():
        raise Failed(f"{story(answer)}, but services_unsuccessful lacks {', '.join(missing)}")
    return story(answer)


def all_providers_failed(run: Run) -> str:
    """None is left: the server says so, and names them all."""
    run.fail_only(run.priorities)
    answer = run.deployment.send(run.message("all providers failed"))
    answer.expect(HTTPStatus.SERVICE_UNAVAILABLE)
    if missing := run.priorities.keys() - answer.part("services_unsuccessful").keys():
        raise Failed(f"HTTP 503, but services_unsuccessful lacks {', '.join(missing)}")
    return story(answer)


def story(answer: Answer) -> str:
    """What became of a message, and why each service did not send it."""
    body = answer.body
    start = f"sent by {body['service_used']}" if answer.status == HTTPStatus.OK else "not sent"
    maybe_twice = ["perhaps sent twice"] if body.get("possible_duplicate") else []
    return "; ".join([start, *maybe_twice, *answer.reasons])


CHECKS: Final[dict[str, Callable[[Run], str]]] = {
    "plain message": plain_message,
    "cc and bcc": cc_and_bcc,
    "HTML": html,
    "bad bcc address": bad_bcc,
    "wrong pool key": wrong_pool_key,
    # Last, and together: they are an outage for everybody else who sends mail.
    "first provider failed": first_provider_failed,
    "all providers failed": all_providers_failed,
}
"""Each returns what happened, or raises Failed or Skipped."""


@dataclass(frozen=True)
class Row:
    """One line of the table. result: "ok", "FAILED" or "skipped"."""

    check: str
    result: str
    what_happened: str
    milliseconds: int | str

    def __str__(self) -> str:
        """One line of ASCII: a server's words may not play with the terminal."""
        what = " ".join(self.what_happened.split()).encode("unicode_escape").decode("ascii")
        return f"{self.check:<22} {self.result:<8} {what:<70} {self.milliseconds:>12}"


HEADING: Final = Row("check", "result", "what happened", "milliseconds")


def carry_out(name: str, run: Run) -> Row:
    """Carry out one check. Raises Stopped."""
    started = time.monotonic()
    try:
        result, what_happened = "ok", CHECKS[name](run)
    except Failed as failure:
        result, what_happened = "FAILED", str(failure)
    except Skipped as reason:
        result, what_happened = "skipped", str(reason)
    return Row(name, result, what_happened, round((time.monotonic() - started) * 1000))


def print_table(run: Run) -> bool:
    """Carry out all checks, printing each at once; returns whether none failed. Raises Stopped."""
    print(HEADING, flush=True)
    passed = True
    for name in CHECKS:
        row = carry_out(name, run)
        print(row, flush=True)
        passed = passed and row.result != "FAILED"
    return passed


def check_deployment(deployment: Deployment, signals: Signals) -> bool:
    """Run all checks and restore; returns whether none failed.

    Raises Failed if there is nothing to check, Stopped after a signal, and NotRestored.
    """
    run = Run.begin(deployment, signals)
    # Two `finally`: a signal that comes while the first one is under way raises for the last time.
    try:
        try:
            run.fail_only(())
            passed = print_table(run)
        finally:
            signals.hold()
    finally:
        run.restore()
    signals.check()
    return passed


def one_key(text: str) -> str:
    """A key, as it can stand in a header. Raises ArgumentTypeError, which does not quote it."""
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise argparse.ArgumentTypeError("a key is printable ASCII without spaces, and not empty")
    return text


def one_url(text: str) -> str:
    """The URL without a slash at its end. Raises ArgumentTypeError."""
    if not re.fullmatch(r"https?://[^\s?#@]+", text):
        raise argparse.ArgumentTypeError("it should look like https://mail.example.com")
    return text.rstrip("/")


def one_recipient(text: str) -> str:
    """A bare address. Raises ArgumentTypeError."""
    if not re.fullmatch(r'[^\s@<>,"]+@[^\s@<>,"]+', text):
        raise argparse.ArgumentTypeError("it should look like ada@example.org")
    return text


def deployment_from(arguments: Sequence[str]) -> Deployment:
    """What the command line names. Exits with 2 if that is unclear; no message quotes a key."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=more.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", type=one_url, help="where the service answers")
    parser.add_argument("domain", metavar="DOMAIN", help="an email domain that it serves")
    parser.add_argument("recipient", metavar="RECIPIENT", type=one_recipient, help="gets the mail")
    parser.add_argument("pool_key", metavar="POOL_KEY", type=one_key, help="of the domain")
    parser.add_argument("root_key", metavar="ROOT_KEY", type=one_key, help="of the server")
    if not {"-h", "--help"} & set(arguments):
        arguments = ["--", *arguments]  # a key may begin with a dash
    known, surplus = parser.parse_known_args(arguments)
    if surplus:
        parser.error(f"five arguments are needed, not {5 + len(surplus)}")
    return Deployment(**vars(known))


def main() -> int:
    """Returns the exit status."""
    deployment = deployment_from(sys.argv[1:])
    signals = Signals()
    signals.install()
    try:
        passed = check_deployment(deployment, signals)
    except Failed as failure:
        print(f"{deployment.url}: {failure}", file=sys.stderr)
    except NotRestored as by_hand:
        print("\n*** SIMULATED FAILURES WERE NOT PUT BACK AS THEY WERE. ***", file=sys.stderr)
        print("Mail may fail until you run this, with the root key in $ROOT_KEY:", file=sys.stderr)
        print(by_hand, file=sys.stderr)
    except Stopped:
        print("Stopped; the simulated failures are as they were before.", file=sys.stderr)
        return 128 + (signals.number or 0)
    else:
        print("\nThe simulated failures are as they were before.")
        return 0 if passed else 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
