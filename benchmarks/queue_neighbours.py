"""What a provider of 9 s costs other lanes and domains: `python -m benchmarks.queue_neighbours`.

Messages that all differ are queued in batches, in a lane of the same domain and in another domain,
whose provider (`standin.py`) answers after 50 ms: alone, and while many wait in a lane whose
provider answers after 9 s. They take turns, since a shared machine may be twice as fast a minute
later.

Everything is on 127.0.0.1 and ends with this program. It fails where a message was not delivered.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.queued import DELAY_MILLISECONDS, Account, Service, run_service
from benchmarks.send import PROVIDER_KEY, BenchmarkError, stand_in

SLOW_MILLISECONDS: Final = 9000
TARGET: Final = 0.8
WHO: Final = {
    "another lane of the domain": Account("example.com", secrets.token_urlsafe(24), "default"),
    "another domain": Account("example.net", secrets.token_urlsafe(24), "bulk"),
}
SLOW: Final = Account("example.com", WHO["another lane of the domain"].key, "bulk")


def main() -> None:
    """Measure and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # what we started ends with us
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=1000, help="default: 1000")
    parser.add_argument("--slow", type=int, default=400, help="that wait for 9 s (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    try:
        ratios = measure(options.messages, options.slow, options.rounds)
    except BenchmarkError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    print("| | messages/s, by those alone: median (min to max) | target |\n|---|---|---|")
    for name, found in ratios.items():
        met = "met" if median(found) >= TARGET else "missed"
        spread = f"**{median(found):.2f}** ({min(found):.2f} to {max(found):.2f})"
        print(f"| {name} | {spread} | {TARGET} {met} |")


def measure(messages: int, slow: int, rounds: int) -> dict[str, list[float]]:
    """What each gets beside a slow provider, by what it gets alone."""
    ratios: dict[str, list[float]] = {name: [] for name in WHO}
    with running() as service:
        for _ in range(rounds):
            for name, account in WHO.items():
                alone = seconds(service, account, messages)
                service.batches(slow, account=SLOW, differ=True)
                beside = seconds(service, account, messages)
                if not service.waiting(SLOW):
                    raise BenchmarkError("Nothing waited for the slow one any more: take more.")
                service.deliver_all()
                ratios[name].append(alone / beside)
    return ratios


def seconds(service: Service, account: Account, messages: int) -> float:
    """From the first request to the last delivery."""
    started = time.perf_counter()
    service.batches(messages, account=account, differ=True)
    service.deliver_all(account)
    return time.perf_counter() - started


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """The service, with a domain that has a slow provider for one lane, and another domain."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fast, slow = (
            stack.enter_context(stand_in(ms)) for ms in (DELAY_MILLISECONDS, SLOW_MILLISECONDS)
        )
        yield stack.enter_context(run_service(configuration(fast, slow), folder / "service"))


def configuration(fast: int, slow: int) -> dict[str, Any]:
    """A config.json: the lanes of the first domain have providers of their own."""

    def service(provider: int, priority: int) -> dict[str, Any]:
        url = f"http://127.0.0.1:{provider}"
        return {"api_key": PROVIDER_KEY, "base_url": url, "priority_value": priority}

    lane, other = WHO.values()
    return {
        "root_api_key": secrets.token_urlsafe(24),
        "production": True,
        "email_services": [
            {
                "email_domain": lane.domain,
                "pool_api_key": lane.key,
                "streams": {
                    "bulk": {"services": ["mailgun"]},
                    "default": {"services": ["sendgrid"]},
                },
                "enabled_services": {"mailgun": service(slow, 20), "sendgrid": service(fast, 10)},
            },
            {
                "email_domain": other.domain,
                "pool_api_key": other.key,
                "enabled_services": {"mailgun": service(fast, 10)},
            },
        ],
    }


if __name__ == "__main__":
    main()
