"""diskcache, opened so that it loses nothing and runs nothing.

The traps that this file closes are numbered in docs/decisions/0002-diskcache.md.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

import diskcache
from diskcache.core import DBNAME, MODE_RAW

from llmrouter.errors import StoreBusyError, StoreError, StoreUnusableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

_MUST_HOLD = ("eviction_policy", "cull_limit")
_ATTEMPT_SECONDS = 0.01
_LOCK_SECONDS = 30.0
_NORMAL, _FULL = 1, 2


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


class LockedCache:
    """A `diskcache.Cache` whose write transactions wait for each other fairly and for a bounded time."""

    def __init__(self, folder: Path) -> None:
        """Opens or creates the cache.

        Raises:
            StoreUnusableError: It cannot be opened, or something else has changed its settings.
        """
        self.folder = folder
        self._path = str(folder / DBNAME)
        self._threads = threading.local()
        self._turn = threading.RLock()
        self._in_transaction = False
        self._interrupted = False
        try:
            _prepare(folder)
            self._check_settings()
            self.cache = self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreUnusableError(f"cannot open the store in {folder}: {error}") from error

    def get(self, key: str) -> bytes | None:
        """The value of a key. Waits for nobody.

        Raises:
            StoreError: It cannot be read.
        """
        try:
            value: bytes | None = self.cache.get(key)
        except sqlite3.Error as error:
            raise StoreError(f"the store in {self.folder} could not be read: {error}") from error
        return value

    def set(self, key: str, value: bytes) -> None:
        """Writes a value, within `write`."""
        self.cache.set(key, value)

    def set_alone(self, key: str, value: bytes, *, synced: bool) -> None:
        """Writes a single value in a transaction of its own; for less than `write` and `set` cost.

        Raises:
            StoreBusyError: As `write`.
            StoreError: As `write`.
        """
        with self._turn:
            self._start_clean()
            self._interrupted = True
            self._set_synced(synced)
            patience = None
            while True:
                try:
                    self.cache.set(key, value)
                    break
                except diskcache.Timeout:
                    patience = patience or _Patience(self.folder)
                    patience.wait()
                except sqlite3.Error as refused:
                    raise self._not_written(refused) from refused
            self._interrupted = False
            self._check_there()

    def delete(self, key: str) -> bool:
        """Removes a key, within `write`. True when it was there."""
        found: bool = self.cache.delete(key)
        return found

    def first_with_prefix(self, prefix: str) -> str | None:
        """The first key of the form ``prefix-<digit>…``, within `write`."""
        key: str | None = self.cache.peek(prefix)[0]
        return key

    @contextlib.contextmanager
    def write(self, *, synced: bool) -> Iterator[None]:
        """A write transaction: all of it or nothing. One within another is part of it.

        Args:
            synced: On stable storage at the end, not only safe from a killed process.

        Raises:
            StoreBusyError: Other processes held the lock for 30 seconds.
            StoreError: The disk refused the write; nothing was written.
        """
        with self._turn:
            if self._in_transaction:
                yield
                return
            self._start_clean()
            self._interrupted = True
            self._set_synced(synced)
            transaction = self._begin()
            self._in_transaction = True
            try:
                yield
            except BaseException as error:
                self._end(transaction, error)
                raise
            self._end(transaction, None)
            self._check_there()

    def close(self) -> None:
        """Closes the connection of this thread; others close theirs when they end."""
        self._disconnect()

    def _open(self) -> diskcache.Cache:
        return diskcache.Cache(str(self.folder), timeout=_ATTEMPT_SECONDS, disk=BytesDisk, **SETTINGS)

    def _disconnect(self) -> None:
        self.cache.close()
        # The next connection of this thread starts at the stored level.
        self._threads.level = _NORMAL

    def _start_clean(self) -> None:
        """Leaves behind what an exception in the middle of diskcache has left, whatever it is.

        Ctrl-C, or any signal handler that raises, can hit between its BEGIN and its bookkeeping: the
        transaction stays open, or it takes the next writes for nested ones and never commits them.
        """
        if self._interrupted:
            self._in_transaction = False
            self.cache.close()
            self.cache = self._open()
            self._threads = threading.local()
            self._interrupted = False

    def _begin(self) -> contextlib.AbstractContextManager[None]:
        patience = _Patience(self.folder)
        while True:
            transaction: contextlib.AbstractContextManager[None] = self.cache.transact(retry=False)
            try:
                transaction.__enter__()
            except diskcache.Timeout:
                patience.wait()
            except sqlite3.Error as refused:
                raise self._not_written(refused) from refused
            else:
                return transaction

    def _end(self, transaction: contextlib.AbstractContextManager[None], error: BaseException | None) -> None:
        self._in_transaction = False
        try:
            transaction.__exit__(type(error) if error else None, error, None)
        except sqlite3.Error as refused:
            # A COMMIT that failed leaves the transaction open on this connection: `_start_clean` drops both.
            raise self._not_written(refused) from refused
        self._interrupted = False

    def _not_written(self, refused: sqlite3.Error) -> StoreError:
        return StoreError(f"the store in {self.folder} could not be written: {refused}")

    def _check_there(self) -> None:
        """SQLite goes on writing into a file that was deleted: what it took is lost with it."""
        if not os.path.exists(self._path):  # noqa: PTH110  (on the way of every enqueue, and three times as fast)
            raise _deleted(self.folder)

    def _set_synced(self, synced: bool) -> None:
        level = _FULL if synced else _NORMAL
        if getattr(self._threads, "level", _NORMAL) != level:
            self.cache.reset("sqlite_synchronous", level, update=False)
            self._threads.level = level

    def _check_settings(self) -> None:
        """Refuses a file that another opener has set to evict: requests may be gone from it."""
        path = self.folder / DBNAME
        if path.stat().st_size == 0:
            return
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            try:
                rows = dict(connection.execute("SELECT key, value FROM Settings").fetchall())
            except sqlite3.OperationalError:
                return  # Killed while it was being created: there is nothing in it yet.
        changed = {name: rows[name] for name in _MUST_HOLD if name in rows and rows[name] != SETTINGS[name]}
        if changed and "count" in rows:
            raise StoreUnusableError(
                f"another program opened {self.folder} with {changed}: diskcache may have evicted requests"
            )


class _Patience:
    """Waits for a lock: a bounded time, and not at all for what is no lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._give_up_at: float | None = None

    def wait(self) -> None:
        """Waits a little before the next attempt.

        Raises:
            StoreBusyError: The time is up.
            StoreUnusableError: It is no lock that is in the way.
        """
        # diskcache says Timeout for any error at BEGIN, so the reason has to be looked for.
        _check_writable(self._folder)
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + _LOCK_SECONDS
        elif now > self._give_up_at:
            raise StoreBusyError(
                f"other processes kept the store in {self._folder} locked for {_LOCK_SECONDS:.0f} s"
            ) from None
        # Jitter: without it two processes can keep missing each other's gap.
        time.sleep(random.uniform(0, _ATTEMPT_SECONDS))  # noqa: S311


def _check_writable(folder: Path) -> None:
    path = folder / DBNAME
    if not path.exists():
        raise _deleted(folder)
    if not (os.access(path, os.W_OK) and os.access(folder, os.W_OK)):
        raise StoreUnusableError(f"the store in {folder} is read-only for this process")


def _deleted(folder: Path) -> StoreUnusableError:
    return StoreUnusableError(f"the store in {folder} has been deleted while it was open")


def _prepare(folder: Path) -> None:
    """Makes the folder 0700 and the file 0600 before SQLite does; its other files follow the first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / DBNAME, os.O_CREAT | os.O_RDWR, 0o600)
    os.close(descriptor)
