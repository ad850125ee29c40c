"""Where workers count: each in the files of a slot, which the worker after it goes on with.

So the sums are right whichever worker is asked, after one was killed and after all were replaced,
and there are no more files than there were workers at a time. A start begins with a folder of its
own, and removes what starts before it have left: those whose processes are all gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Final

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus-client writes
_PREFIX: Final = "mailpool-counts-"
_LOCK: Final = "lock"

_here: dict[str, Any] = {}
"""slot: this process's. folder, lock: of this start."""


def share_counts() -> None:
    """Have all that is counted from now on be shared by this process and those it forks.

    Of gunicorn's master, before anything is declared that counts. It reads its configuration again
    on SIGHUP, where nothing changes; nor does it for who only looks at the configuration.
    """
    if "email_services.counters" in sys.modules:
        return
    _remove_old()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    # Whoever lives of this start holds it: it is inherited, and ends with the last of them.
    lock = (folder / "taken").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "taken").rename(folder / _LOCK)
    os.environ[_FOLDER] = str(folder)
    _here.update(slot="master", folder=folder, lock=lock)
    values.ValueClass = values.MultiProcessValue(lambda: _here["slot"])


def _remove_old() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:  # in use, just being made, or just being removed
            continue


def stop_sharing() -> None:
    """The end of the master, after all others."""
    shutil.rmtree(_here["folder"], ignore_errors=True)


def assign(worker: Any, living: Iterable[Any]) -> None:
    """Give a worker that is about to be forked the first slot that none of the living has."""
    taken = {other.slot for other in living}
    worker.slot = next(slot for slot in map(str, count(1)) if slot not in taken)
    give_up(worker)  # what the last one had may still be there


def begin(worker: Any) -> None:
    """In the worker: count there from now on."""
    _here["slot"] = worker.slot


def give_up(worker: Any) -> None:
    """What is true only of the living, as requests in progress, ends with the worker."""
    mark_process_dead(worker.slot)
