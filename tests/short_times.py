"""The service with short times, for tests under gunicorn: an outage of minutes in seconds."""

from __future__ import annotations

from watch import create_app as create_service

from email_services import health, ledger

FIRST_SECONDS = 0.3
LONGEST_SECONDS = 1.2


def create_app():
    """In a process of its own: the times are those of the whole process."""
    health.FIRST_REST_SECONDS = health.FIRST_ACCOUNT_REST_SECONDS = FIRST_SECONDS
    health.LONGEST_REST_SECONDS = health.LONGEST_ACCOUNT_REST_SECONDS = LONGEST_SECONDS
    ledger.GRACE_SECONDS = 0.5
    return create_service()
