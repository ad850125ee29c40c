"""What is counted of requests: what they ask for, what they are answered, which have a thread."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import Counter, Gauge
from werkzeug.wrappers import Response

from browsable_api.operations import current_operation
from email_services.counters import COUNTED

REQUESTS: Final = Counter(
    "mailpool_requests_total",
    "Requests that were answered; operation: as the description of the API calls it, or none.",
    ("operation", "status"),
    registry=COUNTED,
)
IN_PROGRESS: Final = Gauge(
    "mailpool_requests_in_progress",
    "Requests that have a thread.",
    multiprocess_mode="livesum",
    registry=COUNTED,
)


def count_answer(response: Response) -> Response:
    """Of the application; it is left as it is."""
    operation = current_operation()
    count_by(operation.name if operation else "", response.status_code)
    return response


def count_refused(status: int) -> None:
    """A request that never reached the application was answered."""
    count_by("", int(status))


def count_by(operation: str, status: int) -> None:
    """A request was answered. operation: its name, or "" for none."""
    _requests(operation, status).inc()


_requests = cache(REQUESTS.labels)
