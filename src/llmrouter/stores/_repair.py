"""Repairs a damaged disk store, where that loses nothing: for `llmrouter repair`.

A row that is lost could be a state table, and its requests would be sent and paid again. So a store
is rebuilt from all of its rows, or left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import diskcache
from diskcache.core import DBNAME

from llmrouter.errors import StoreBusyError, StoreError, StoreUnusableError
from llmrouter.stores._diskcache import SETTINGS, BytesDisk
from llmrouter.stores._engine_lock import EngineLock
from llmrouter.stores._table import TABLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

_LOCK_BYTES = (512, 0x40000000)
"""Length and start of the bytes that SQLite locks (os_unix.c): an open connection holds some of them."""

_PIECE_BYTES = 1 << 20
_MOST_PROBLEMS = 20

_COLUMNS = (
    "rowid, key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value"
)
_OURS = (
    "typeof(key) = 'text' AND raw = 1 AND mode = 1 AND filename IS NULL AND typeof(value) = 'blob'"
    f" AND (key NOT LIKE 'd%' OR length(value) = {TABLE_BYTES})"
)
"""True of every row that a `BytesDisk` has written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """What was found, and what was done."""

    folder: Path
    problems: tuple[str, ...]
    """What SQLite finds wrong with the file, in its words; empty for a healthy store."""
    rows: int
    """How many rows the store holds: none was lost."""
    rebuilt: bool
    """False for a healthy store: nothing was changed."""
    copy: Path | None
    """The damaged file as it was, mode 0600; what was beside it as ``…-wal`` stands beside it."""


def repair(folder: Path) -> RepairReport:
    """Checks a store, and rebuilds it when it is damaged and all of its rows can be read.

    No other process may have it open, and this one neither. Nothing is ever unpickled.

    Raises:
        StoreBusyError: A process has it open.
        StoreUnusableError: There is none, or rows of it cannot be read; it is left as it was.
        StoreError: There is no space for the copies; it is left as it was.
    """
    folder = folder.absolute()
    if not (folder / DBNAME).is_file():
        raise StoreUnusableError(f"there is no store in {folder}")
    try:
        with _alone(folder) as original, tempfile.TemporaryDirectory(prefix="repair-", dir=folder) as scratch:
            return _repair(folder, original, Path(scratch))
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the store in {folder} could not be repaired and is as it was: {error}") from error


def _repair(folder: Path, original: int, scratch: Path) -> RepairReport:
    """Works on a copy, so that SQLite does not go on writing into what is damaged."""
    copy = scratch / "copy.db"
    state = _state(folder)
    _copy(folder, original, copy)
    problems = _problems(copy)
    if not problems:
        return RepairReport(folder=folder, problems=(), rows=_count(copy), rebuilt=False, copy=None)
    aside = folder / f"{DBNAME}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    _copy(folder, original, aside)
    fresh = _rebuilt(copy, scratch / "fresh", folder, aside)
    _put_in_place(fresh, folder, state)
    return RepairReport(folder=folder, problems=tuple(problems), rows=_count(fresh), rebuilt=True, copy=aside)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """A descriptor of the file, locked against every other process that would open it with SQLite."""
    engine_lock = EngineLock(folder)
    descriptor = os.open(folder / DBNAME, os.O_RDWR)
    try:
        if not engine_lock.take(0):
            raise StoreBusyError(f"a process works on the store in {folder}: stop it, then repair")
        if sys.platform != "win32":
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *_LOCK_BYTES)
            except OSError as error:
                raise StoreBusyError(
                    f"a process has the store in {folder} open: stop it, then repair"
                ) from error
        yield descriptor
    finally:
        os.close(descriptor)
        engine_lock.release()


def _copy(folder: Path, original: int, to: Path) -> None:
    """Copies the file, by the descriptor, since closing another would unlock it; and its log."""
    _write(to, _pieces(original))
    log = folder / f"{DBNAME}-wal"
    if log.exists():
        descriptor = os.open(log, os.O_RDONLY)
        try:
            _write(to.with_name(f"{to.name}-wal"), _pieces(descriptor))
        finally:
            os.close(descriptor)


def _pieces(descriptor: int) -> Iterator[bytes]:
    place = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, place):
        yield piece
        place += len(piece)


def _write(to: Path, pieces: Iterator[bytes]) -> None:
    with os.fdopen(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _problems(path: Path) -> list[str]:
    """What SQLite finds wrong."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found = connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})").fetchall()
            connection.execute("SELECT COUNT(*) FROM Cache, Settings LIMIT 1")
    except sqlite3.Error as error:
        return [str(error)]
    return [] if found == [("ok",)] else [text for (text,) in found]


def _count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((count,),) = connection.execute("SELECT COUNT(*) FROM Cache NOT INDEXED")
    return int(count)


def _rebuilt(damaged: Path, into: Path, folder: Path, aside: Path) -> Path:
    """A new file with every row of the damaged one, in their order.

    Raises:
        StoreUnusableError: Some cannot be read, or are not what was written.
    """
    diskcache.Cache(str(into), disk=BytesDisk, **SETTINGS).close()
    fresh: Path = into / DBNAME
    expected = _expected(damaged)
    with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
        try:
            connection.execute("ATTACH ? AS damaged", (str(damaged),))
            connection.execute(
                f"INSERT INTO main.Cache ({_COLUMNS}) SELECT {_COLUMNS} FROM damaged.Cache NOT INDEXED"  # noqa: S608
                f" WHERE {_OURS} ORDER BY rowid"
            )
        except sqlite3.Error:
            readable = _readable(damaged)
        else:
            ((readable,),) = connection.execute("SELECT COUNT(*) FROM main.Cache NOT INDEXED")
            if readable == expected and not _problems(fresh):
                return fresh
    lost = "an unknown number of rows" if expected is None else f"{expected - readable} of {expected} rows"
    raise StoreUnusableError(
        f"the store in {folder} cannot be repaired without loss: {lost} cannot be read, and requests could be"
        f" paid twice. It was left as it was; an untouched copy is {aside}"
    )


def _expected(damaged: Path) -> int | None:
    """How many rows there were, as triggers have counted them; None when that cannot be read."""
    try:
        with contextlib.closing(sqlite3.connect(damaged)) as connection:
            ((count,),) = connection.execute("SELECT value FROM Settings WHERE key = 'count'")
            return int(count)
    except (sqlite3.Error, ValueError, TypeError):
        return None


def _readable(damaged: Path) -> int:
    """How many rows can be read from either end, up to the damage."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(damaged)) as connection,
        ):
            connection.text_factory = bytes
            select = f"SELECT rowid, key, value FROM Cache NOT INDEXED WHERE {_OURS} ORDER BY rowid {order}"  # noqa: S608
            for rowid, *_ in connection.execute(select):
                seen.add(rowid)
    return len(seen)


def _state(folder: Path) -> list[tuple[int, int]]:
    """Sizes and times of the file and its log: they change with every commit and checkpoint."""
    paths = (folder / DBNAME, folder / f"{DBNAME}-wal")
    found = [path.stat() for path in paths if path.exists()]
    # An empty log says nothing: whoever opens the file makes one.
    return [(status.st_size, status.st_mtime_ns) for status in found if status.st_size]


def _put_in_place(fresh: Path, folder: Path, state: list[tuple[int, int]]) -> None:
    """Writes the new content over the old in one transaction: whoever waits for the file sees it then.

    Raises:
        StoreBusyError: A process has written since ``state``. SQLite's first lock takes away that of
            `_alone`, which is of the same process: for a moment others can get in.
    """
    with (
        contextlib.closing(sqlite3.connect(fresh)) as source,
        contextlib.closing(sqlite3.connect(folder / DBNAME, isolation_level=None)) as target,
    ):
        target.execute("PRAGMA locking_mode = EXCLUSIVE")
        target.execute("BEGIN IMMEDIATE")
        if _state(folder) != state:
            raise StoreBusyError(f"a process has opened the store in {folder} just now: stop it, then repair")
        target.execute("COMMIT")  # In this mode the lock stays.
        target.execute("PRAGMA synchronous = FULL")
        source.backup(target)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
