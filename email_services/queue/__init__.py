"""Deliver what waits: who takes it, when it is tried again, and when it is given up."""

from email_services.queue.dispatcher import CALLS, Dispatcher

__all__ = ["CALLS", "Dispatcher"]
