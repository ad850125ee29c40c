"""Whether a state database can be used, asked without changing anything in it."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import ProgrammingError

from email_services.exceptions import StoreUnavailable
from email_services.store.engines import UNAVAILABLE, make_log_engine, path_of
from email_services.store.migrations import MIGRATIONS
from email_services.store.schema import VERSIONS


def state_of(url: str) -> str:
    """A sentence about the database at `url`, an SQLAlchemy URL.

    Raises StoreUnavailable where it does not answer, or its file cannot be written; ConfigError
    where it cannot be a URL.
    """
    engine = make_log_engine(url)
    try:
        path = path_of(engine)
        if path and not Path(path).exists():
            _refuse_unwritable(Path(path).absolute().parent)
            return "It is made at the first start."
        if path:
            _refuse_unwritable(Path(path))
        with engine.connect() as connection:
            steps = connection.execute(select(func.count()).select_from(VERSIONS)).scalar_one()
    except ProgrammingError:  # PostgreSQL answers, and has no such table yet
        return "It answers; its tables are made at the first start."
    except UNAVAILABLE as error:
        raise StoreUnavailable(type(error).__name__) from None
    finally:
        engine.dispose()
    if steps == len(MIGRATIONS):
        return "It answers, and its tables are up to date."
    if steps > len(MIGRATIONS):
        return "It answers, and its tables are a newer version's."
    return f"It answers; a start brings its tables up to date ({steps} of {len(MIGRATIONS)} steps)."


def _refuse_unwritable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise StoreUnavailable(f"{path} cannot be written.")
