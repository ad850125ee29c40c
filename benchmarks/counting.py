"""What counting costs the processor for one send: `python -m benchmarks.counting`.

In this process, with its counts in files as under gunicorn, by its CPU time: all that a send
through one service counts, many times in a row, the median of many turns.
"""

from __future__ import annotations

from statistics import median

from server import slots

slots.share_counts()
from benchmarks.budget import Part  # noqa: E402 - what follows counts
from email_services import counters  # noqa: E402
from email_services.abstract import Acceptance  # noqa: E402
from email_services.delivery import Attempt, Delivery  # noqa: E402
from server import traffic  # noqa: E402

DOMAIN = "example.com"
SENT = Delivery("id", "sent", (Attempt("mailgun", "sent", "", "", 5),), "mailgun", "id")


def count(_: object) -> None:
    """As a send does: a request, three statements, a call, an attempt and a message."""
    with traffic.IN_PROGRESS.track_inprogress():
        for writes in (False, True, True):
            counters.count_store(0.001, writes=writes)
        counters.count_call(DOMAIN, "mailgun", 0.1)
        counters.count_attempt(DOMAIN, "mailgun", Acceptance("id"))
        counters.count_message(DOMAIN, "default", SENT)
        traffic.count_by("send_message", 200)


def main() -> None:
    """Measure it, and print the median and the least."""
    part = Part("all that a send counts", count)
    taken = [part.microseconds(1000) for _ in range(25)]
    print(f"{part.name}: {median(taken):.0f} µs, at least {min(taken):.0f}")
    slots.stop_sharing()


if __name__ == "__main__":
    main()
