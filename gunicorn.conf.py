"""How gunicorn runs the service; read by itself from the folder it is started in."""

import contextlib
import ctypes
import os
import re
import socket
from typing import Any

from gunicorn.systemd import listen_fds

from server import slots
from server.proxies import trusted_proxies

slots.share_counts()
from email_services import logs, traces  # noqa: E402 - what they need counts
from email_services.counters import note_reload  # noqa: E402 - it counts
from email_services.exceptions import ConfigError  # noqa: E402
from email_services.queue import CALLS  # noqa: E402 - likewise
from server.following import Follower  # noqa: E402 - likewise
from server.worker import ARRIVING, Worker  # noqa: E402 - likewise

# What we write holds addresses and subjects: the state, and the mail of maildir services.
os.umask(0o077)

# Large blocks, as those of files, go back to the system as soon as they are free. Left alone, glibc
# learns to keep them, and a worker holds twice the memory (benchmarks/memory.py).
with contextlib.suppress(AttributeError, OSError):  # where there is no glibc
    ctypes.CDLL(None).mallopt(-3, 1024 * 1024)  # M_MMAP_THRESHOLD, in bytes


def _number(name: str, default: int, most: int) -> int:
    """A number from the environment, or the end of the start with one line."""
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[1-9][0-9]{0,4}", value) or int(value) > most:
        raise SystemExit(f"${name} should be a whole number from 1 to {most}.")
    return int(value)


# Where a platform sets $PORT, its router has to reach us; on a laptop nobody else should.
host = os.environ.get("HOST", "0.0.0.0" if "PORT" in os.environ else "127.0.0.1")  # noqa: S104
bind = f"{host}:{_number('PORT', 8000, 65535)}"

# Threads, since a send mostly waits for a provider: one that takes 10 s must not hold up others.
# They cost next to nothing while they wait, and a provider on the internet takes 100 to 300 ms.
workers = _number("WEB_CONCURRENCY", 2, 1000)
worker_class = Worker
threads = _number("WEB_THREADS", 64, 1000)
Worker.request_seconds = _number("WEB_REQUEST_SECONDS", 60, 3600)
Worker.max_bytes = _number("WEB_BODY_MEGABYTES", 100, 10_000) * 1024 * 1024
os.environ["WEB_THREADS"] = str(threads)  # which the application shares out
wsgi_app = "app:create_app()"

# The configuration is read once, before the fork: an error in it is one line and no worker starts.
preload_app = True

# Longer than the longest deadline config.json may set (email_services.abstract), so that a send in
# progress ends before its worker does.
timeout = 120
graceful_timeout = 120
# Connections that wait in the worker's loop (server/worker.py) cost no thread.
worker_connections = threads + 2 * ARRIVING
# No connection is kept for later: one that a caller keeps is one of a worker that may be busy while
# another is idle. It also spares callers the one error that leaves them in doubt: a request written
# into a connection that we are just closing.
keepalive = 0

# Calls to providers that may be under way from the queue, for each domain in each worker; 0 where
# `python -m email_services worker` runs beside the web and does it.
queue_calls = 0 if os.environ.get("QUEUE_CALLS") == "0" else _number("QUEUE_CALLS", CALLS, 1000)


def post_worker_init(worker: Any) -> None:
    """Begin to deliver what waits, in the process that does it: threads survive no fork."""
    from app import renewed  # noqa: PLC0415 - gunicorn has loaded it by now

    traces.begin(os.environ)
    mailpool_of(worker.wsgi).upkeep.start()
    begin_to_deliver(worker.wsgi)
    worker.follower = Follower(worker, renewed, begin_to_deliver, end_to_deliver)
    worker.follower.start()


def worker_exit(_server: Any, worker: Any) -> None:
    """Finish what has been handed to a provider, and give the rest back to the queue."""
    if not hasattr(worker, "follower"):
        return
    worker.follower.stop()
    end_to_deliver(worker.wsgi)
    mailpool_of(worker.wsgi).copies.stop()
    mailpool_of(worker.wsgi).upkeep.stop()
    traces.end()


def on_reload(arbiter: Any) -> None:
    """Take the configuration over anew, on SIGHUP, before the new workers are forked.

    The old ones finish what they have begun with the one they know. What is not usable changes
    nothing: the new workers know the old one, too.
    """
    try:
        arbiter.app.callable = arbiter.app.load()
    except ConfigError as error:
        note_reload(is_in_use=False)
        words = "The configuration was not taken over: %s"
        arbiter.log.error(words, error, extra=logs.event("config", is_taken_over=False))
    else:
        words = "The configuration was taken over."
        arbiter.log.info(words, extra=logs.event("config", is_taken_over=True))


def begin_to_deliver(application: Any) -> None:
    """What waits, with what an application knows of services."""
    if queue_calls:
        mailpool_of(application).dispatcher.start()


def end_to_deliver(application: Any) -> None:
    """Finish what has been handed to a provider, and give the rest back to the queue."""
    if queue_calls:
        mailpool_of(application).dispatcher.stop()


def mailpool_of(application: Any) -> Any:
    """What an application works with."""
    return application.extensions["mailpool"]


control_socket_disable = True

forwarded_allow_ips = trusted_proxies()
# Nobody moves the service to another address with a header.
forwarder_headers = ""


def on_starting(arbiter: Any) -> None:
    """End the start with one line where the address is taken; gunicorn takes twelve and 5 s."""
    if arbiter.master_pid or listen_fds(unset_environment=False):
        return  # the sockets are handed over
    for address in arbiter.cfg.address:
        if not isinstance(address, tuple):
            continue  # a Unix socket, or one that is open already
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                where = f"{address[0]}:{address[1]}"
                raise SystemExit(
                    f"Nobody can listen at {where}: {error.strerror}. Choose another $PORT."
                ) from None


def pre_fork(arbiter: Any, worker: Worker) -> None:
    """Say where the worker counts."""
    slots.assign(worker, arbiter.WORKERS.values())


def post_fork(_arbiter: Any, worker: Worker) -> None:
    """Count there."""
    slots.begin(worker)


def child_exit(_arbiter: Any, worker: Worker) -> None:
    """The worker is gone, however it ended."""
    slots.give_up(worker)


def on_exit(_arbiter: Any) -> None:
    """The end."""
    slots.stop_sharing()


# The application logs each request, without the query.
logconfig_dict = logs.settings(os.environ)
