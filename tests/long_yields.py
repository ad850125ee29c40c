"""The service whose workers leave connections to each other for long, for tests under gunicorn."""

from __future__ import annotations

from watch import create_app as create_service

from server import worker


def create_app():
    """In processes of its own: so long that the one with a free thread has it, however busy."""
    worker.YIELD_SECONDS = 1.0
    return create_service()
