"""The service for who tries hundreds of wrong keys on purpose, under gunicorn."""

from __future__ import annotations

from watch import create_app as create_service

from endpoints import guesses


def create_app():
    """In a process of its own: the limit is that of the whole process."""
    guesses.MAX_WRONG_KEYS = 1_000_000
    return create_service()
