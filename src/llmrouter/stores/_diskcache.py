"""diskcache with nothing but text and bytes in it, and without its waits of a minute."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import diskcache
from diskcache.core import MODE_RAW

from llmrouter.errors import StoreUnusableError
from llmrouter.stores import _faults as faults
from llmrouter.stores._patience import ATTEMPT_SECONDS, Patience

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYS_AT_ONCE = 100

SETTINGS: dict[str, Any] = {
    "eviction_policy": "none",
    "cull_limit": 0,
    "statistics": 0,
    "tag_index": 0,
    "disk_min_file_size": 1 << 62,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 2000,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,
    "sqlite_synchronous": 1,
    "sqlite_wal_autocheckpoint": 4000,
}
"""Nothing is evicted; every value is inline; 8 MB of page cache for each connection.

Checkpoints come every 16 MB: at SQLite's own 4 MB their syncs are a tenth of the price of an enqueue.
"""


class BytesDisk(diskcache.Disk):  # type: ignore[misc]
    """Text keys and bytes, inline, and nothing else: a planted row raises instead of running code."""

    def put(self, key: object) -> tuple[str, bool]:
        """The stored form of a key."""
        if type(key) is not str:
            self._refuse(f"a key of type {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        """The key of a stored row."""
        if type(key) is not str or not raw:
            self._refuse("a key that is not text")
        return key

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, memoryview]:  # noqa: ARG002
        """The stored form of a value."""
        if type(value) is not bytes or read:
            self._refuse(f"a value of type {type(value).__name__}")
        return 0, MODE_RAW, None, memoryview(value)

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        """The value of a stored row."""
        if mode != MODE_RAW or filename is not None or type(value) is not bytes or read:
            self._refuse("a value that is not inline bytes")
        return value

    def remove(self, file_path: object) -> NoReturn:  # noqa: ARG002
        """Never: no row of ours has a file, and diskcache would join any path it is given."""
        self._refuse("a file name")

    def filename(self, key: object = None, value: object = None) -> NoReturn:  # noqa: ARG002
        """Never: no row of ours has a file."""
        self._refuse("a file name")

    def _refuse(self, what: str) -> NoReturn:
        raise StoreUnusableError(
            f"{self._directory} holds {what}: llmrouter never writes such; do not use it"
        )


class BytesCache(diskcache.Cache):  # type: ignore[misc]
    """A `diskcache.Cache` of a `BytesDisk`."""

    def __init__(self, folder: Path) -> None:
        """Opens or creates it.

        Raises:
            StoreBusyError: Other processes held the lock for 30 seconds.
        """
        super().__init__(str(folder), timeout=ATTEMPT_SECONDS, disk=BytesDisk, **SETTINGS)

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        """What diskcache opens with: it would wait for a minute, and then raise SQLite's own error."""
        sql: Callable[..., sqlite3.Cursor] = self._sql
        patience = Patience(Path(self._directory))

        def execute(*arguments: object) -> sqlite3.Cursor:
            while True:
                try:
                    return sql(*arguments)
                except sqlite3.OperationalError as error:
                    if not faults.is_busy(error):
                        raise
                    patience.wait()

        return execute

    def start_over(self) -> None:
        """Drops every thread's connection, what was begun on it, and diskcache's note of that.

        A new `diskcache.Cache` would do it too, but its first act is to write, for which it waits.
        """
        self.close()
        self._local = threading.local()
        self._txn_id = None

    def set_synchronous(self, level: int) -> None:
        """How far a commit of this thread's connection goes; not within a transaction."""
        self._sql(f"PRAGMA synchronous = {level}")

    def newest_rowid(self) -> int:
        """That of the row that was inserted last; 0 when there is none."""
        ((newest,),) = self._sql("SELECT MAX(rowid) FROM Cache").fetchall()
        return newest or 0

    def keys_within(self, first: int, last: int, *, newest_first: bool) -> list[tuple[int, str]]:
        """Row ids, both ends included, and keys: so many of them at once, in order or against it."""
        order = "DESC" if newest_first else "ASC"
        within = f"WHERE rowid BETWEEN ? AND ? ORDER BY rowid {order} LIMIT ?"
        select = f"SELECT rowid, key, raw FROM Cache {within}"  # noqa: S608
        rows = self._sql(select, (first, last, _KEYS_AT_ONCE)).fetchall()
        return [(rowid, self.disk.get(key, raw)) for rowid, key, raw in rows]
