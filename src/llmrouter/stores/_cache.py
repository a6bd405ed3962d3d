"""diskcache, opened so that it loses nothing and runs nothing.

The traps that this file closes are numbered in docs/decisions/0002-diskcache.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import diskcache
from diskcache.core import DBNAME

from llmrouter.errors import StoreUnusableError
from llmrouter.stores import _faults as faults
from llmrouter.stores._diskcache import SETTINGS, BytesCache
from llmrouter.stores._engine_lock import LOCK_NAME
from llmrouter.stores._file_system import refuse_network
from llmrouter.stores._patience import ATTEMPT_SECONDS, Patience, check_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")

log = logging.getLogger("llmrouter.stores")

_MUST_HOLD = ("eviction_policy", "cull_limit")
_NORMAL, _FULL = 1, 2
_OPEN_TRIES = 3


class LockedCache:
    """A `BytesCache` whose transactions and reads wait for those of others a bounded time.

    The threads take turns. Nobody keeps the turn while another process has the lock: then a thread would
    wait its time after all those before it have waited theirs.
    """

    def __init__(self, folder: Path) -> None:
        """Opens or creates the cache.

        Raises:
            StoreBusyError: Other processes held its lock for 30 seconds.
            StoreUnusableError: It cannot be opened, or something else has changed its settings.
        """
        self.folder = folder = folder.absolute()
        self._path = str(folder / DBNAME)
        self._threads = threading.local()
        self._turn = threading.RLock()
        self._in_transaction = False
        self._interrupted = False
        refuse_network(folder)
        try:
            _prepare(folder)
            check_writable(folder)
            self._check_settings()
            self.cache, self._identity = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise faults.unopened(folder, error) from error

    def get(self, key: str) -> bytes | None:
        """The value of a key. Waits for no writer.

        Raises:
            StoreBusyError: As `write`: the first process and the last one lock readers out for a moment.
            StoreError: It cannot be read.
        """
        value: bytes | None = self._read(lambda: self.cache.get(key))
        return value

    def all_keys(self, *, newest_first: bool = False) -> Iterator[str]:
        """All keys in the order of insertion, or against it. Waits for no writer.

        Raises:
            StoreBusyError: As `get`.
            StoreError: They cannot be read.
        """
        first, last = 1, self._read(self.cache.newest_rowid)
        while rows := self._read(partial(self.cache.keys_within, first, last, newest_first=newest_first)):
            yield from (key for _, key in rows)
            if newest_first:
                last = rows[-1][0] - 1
            else:
                first = rows[-1][0] + 1

    def keys_between(self, first: str, end: str, *, limit: int, last_first: bool = False) -> list[str]:
        """Keys from ``first`` up to, not including, ``end``, in their order or against it.

        Reads what is committed, values excepted. Waits for no writer.

        Raises:
            StoreBusyError: As `get`.
            StoreError: They cannot be read.
        """
        order = "DESC" if last_first else "ASC"
        select = f"SELECT key FROM Cache WHERE raw = 1 AND key >= ? AND key < ? ORDER BY key {order} LIMIT ?"  # noqa: S608

        def read() -> list[str]:
            with contextlib.closing(self._reader()) as connection:
                return [key for (key,) in connection.execute(select, (first, end, limit))]

        return self._read(read)

    def set(self, key: str, value: bytes) -> None:
        """Writes a value, within `write`."""
        self.cache.set(key, value)

    def set_alone(self, key: str, value: bytes, *, synced: bool) -> None:
        """Writes a single value in a transaction of its own; for less than `write` and `set` cost.

        Raises:
            StoreBusyError: As `write`.
            StoreError: As `write`.
        """
        patience = Patience(self.folder)
        while not self._try_alone(key, value, synced):
            patience.wait()

    def delete(self, key: str) -> bool:
        """Removes a key, within `write`. True when it was there."""
        found: bool = self.cache.delete(key)
        return found

    @contextlib.contextmanager
    def write(self, *, synced: bool) -> Iterator[None]:
        """A write transaction: all of it or nothing. One within another is part of it.

        Args:
            synced: On stable storage at the end, not only safe from a killed process.

        Raises:
            StoreBusyError: Other processes held the lock for 30 seconds.
            StoreError: The disk refused the write; nothing was written.
        """
        patience = Patience(self.folder)
        while True:
            with self._turn:
                if self._in_transaction:
                    yield
                    return
                transaction = self._begun(synced)
                if transaction is not None:
                    self._in_transaction = True
                    try:
                        yield
                    except BaseException as error:
                        self._end(transaction, error)
                        if isinstance(error, sqlite3.Error):
                            raise faults.unwritten(self.folder, error) from error
                        raise
                    self._end(transaction, None)
                    self._check_there()
                    return
            patience.wait()

    def close(self) -> None:
        """Closes the connection of this thread; others close theirs when they end."""
        self._disconnect()

    def _opened(self) -> tuple[BytesCache, tuple[int, int] | None]:
        """The cache, and which file it has open."""
        for _ in range(_OPEN_TRIES):
            check_writable(self.folder)
            identity = self._found()
            cache = BytesCache(self.folder)
            if identity == self._found():
                return cache, identity
            # It was replaced just now, or an overlay gave it another number at its first write.
            cache.close()
        raise StoreUnusableError(f"the store in {self.folder} is replaced by another again and again")

    def _found(self) -> tuple[int, int] | None:
        """Which file is where the store's should be; None without one."""
        try:
            status = os.stat(self._path)  # noqa: PTH116  (on the way of every enqueue, and twice as fast)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return self._patiently(read, self._reconnect)
        except sqlite3.Error as error:
            raise faults.unread(self.folder, error) from error

    def _reconnect(self) -> None:
        """Where diskcache was locked out when it connected, the connection lacks its settings."""
        if not self._in_transaction:
            self._disconnect()

    def _patiently(self, read: Callable[[], T], give_way: Callable[[], None] | None = None) -> T:
        patience = None
        while True:
            try:
                return read()
            except sqlite3.Error as error:
                if not faults.is_busy(error):
                    raise
            if patience is None:
                patience = Patience(self.folder)
            if give_way is not None:
                give_way()
            patience.wait()

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
            self.cache.start_over()
            self._threads = threading.local()
            self._interrupted = False

    def _try_alone(self, key: str, value: bytes, synced: bool) -> bool:
        """One attempt of `set_alone`; False when another process has the lock."""
        with self._turn:
            self._check_there()
            self._start_clean()
            self._interrupted = True
            try:
                self._set_synced(synced)
                self.cache.set(key, value)
            except diskcache.Timeout:
                self._interrupted = False  # It did not begin.
                return False
            except sqlite3.Error as error:
                if faults.is_busy(error):
                    return False
                raise faults.unwritten(self.folder, error) from error
            self._interrupted = False
            self._check_there()
            return True

    def _begun(self, synced: bool) -> contextlib.AbstractContextManager[None] | None:
        """A transaction; None when another process has the lock."""
        self._check_there()
        self._start_clean()
        self._interrupted = True
        transaction: contextlib.AbstractContextManager[None] = self.cache.transact(retry=False)
        try:
            self._set_synced(synced)
            transaction.__enter__()
        except diskcache.Timeout:
            self._interrupted = False  # It did not begin.
            return None
        except sqlite3.Error as error:
            if faults.is_busy(error):
                return None
            raise faults.unwritten(self.folder, error) from error
        return transaction

    def _end(self, transaction: contextlib.AbstractContextManager[None], error: BaseException | None) -> None:
        self._in_transaction = False
        try:
            transaction.__exit__(type(error) if error else None, error, None)
        except sqlite3.Error as refused:
            # A COMMIT that failed leaves the transaction open on this connection: `_start_clean` drops both.
            cause = error if isinstance(error, sqlite3.Error) else refused
            raise faults.unwritten(self.folder, cause) from refused
        self._interrupted = False

    def _check_there(self) -> None:
        """SQLite goes on writing into a file that was deleted: what it took is lost with it.

        Before a write too: a new connection would write into the file that has come in its place.
        """
        found = self._found()
        if found != self._identity:
            happened = "deleted" if found is None else "replaced by another"
            raise StoreUnusableError(f"the store in {self.folder} has been {happened} while it was open")

    def _set_synced(self, synced: bool) -> None:
        level = _FULL if synced else _NORMAL
        if getattr(self._threads, "level", _NORMAL) != level:
            self.cache.set_synchronous(level)
            self._threads.level = level

    def _reader(self) -> sqlite3.Connection:
        """A connection beside diskcache's, which has no reading by range."""
        uri = f"{(self.folder / DBNAME).as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=ATTEMPT_SECONDS)

    def _check_settings(self) -> None:
        """Refuses a file that another opener has set to evict: requests may be gone from it."""
        if (self.folder / DBNAME).stat().st_size == 0:
            self._check_new()
            return
        rows = self._patiently(self._settings)
        changed = {name: rows[name] for name in _MUST_HOLD if name in rows and rows[name] != SETTINGS[name]}
        if changed and "count" in rows:
            raise StoreUnusableError(
                f"another program opened {self.folder} with {changed}: diskcache may have evicted requests"
            )

    def _settings(self) -> dict[str, object]:
        with contextlib.closing(self._reader()) as connection:
            try:
                return dict(connection.execute("SELECT key, value FROM Settings").fetchall())
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return {}  # Killed while it was being created: there is nothing in it yet.

    def _check_new(self) -> None:
        """Refuses an empty file beside which others show that there was more in it."""
        wal = self.folder / f"{DBNAME}-wal"
        if (wal.exists() and wal.stat().st_size) or (self.folder / LOCK_NAME).exists():
            raise faults.damaged(self.folder, "its file is empty")


def _prepare(folder: Path) -> None:
    """Makes the folder 0700 and the file 0600 before SQLite does; its other files follow the first."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / DBNAME
    if path.exists() and folder.stat().st_mode & 0o077:
        log.warning(
            "Other users of this machine can enter %s, which holds prompts: chmod 700 keeps them out", folder
        )
    # Not when it is there: closing any descriptor of a file drops all locks that this process has on it
    # (POSIX), and the next process to close the store would delete the log that this one writes.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
