"""The service with short rests, for tests under gunicorn: an outage of minutes in seconds."""

from __future__ import annotations

from app import create_app as create_service
from email_services import health

FIRST_SECONDS = 0.3
LONGEST_SECONDS = 1.2


def create_app():
    """In a process of its own: the rests are those of the whole process."""
    health.FIRST_REST_SECONDS = health.FIRST_ACCOUNT_REST_SECONDS = FIRST_SECONDS
    health.LONGEST_REST_SECONDS = health.LONGEST_ACCOUNT_REST_SECONDS = LONGEST_SECONDS
    return create_service()
