"""Stores that a test can stop, watch and break."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from llmrouter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest

    from llmrouter.domain.requests import Accepted, QueuedRequest
    from llmrouter.ports import Store


class GatedStore(MemoryStore):
    """A store whose `enqueue` waits at a gate, and remembers its commits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        """Set when a commit has reached the gate."""
        self.commits: list[list[QueuedRequest]] = []
        """Each commit that was tried."""
        self.errors: dict[int, BaseException] = {}
        """What a commit raises, by its number, from 0."""

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        error = self.errors.get(len(self.commits))
        self.commits.append(list(requests))
        self.entered.set()
        assert self.gate.wait(30), "the gate stayed closed"
        if error is not None:
            raise error
        return super().enqueue(requests)

    @contextmanager
    def closed_gate(self) -> Iterator[None]:
        """Keeps every commit at the gate for the length of a block."""
        self.entered.clear()
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


class FailingStore(MemoryStore):
    """A store whose methods fail when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, list[Exception]] = {}
        """What the next calls of a method raise, one each."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "failures":
            waiting = self.failures.get(name)
            if waiting:
                raise waiting.pop(0)
        return super().__getattribute__(name)


class StoreFiles:
    """The files of a disk store that no process has open, for a test to damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "cache.db"

    def checkpoint(self) -> None:
        """Brings everything into the one file."""
        with closing(sqlite3.connect(self.database)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0

    def pages(self, name: str) -> list[int]:
        """The pages of a table or an index that hold rows."""
        with closing(sqlite3.connect(self.database)) as connection:
            select = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno"
            try:
                return [page for (page,) in connection.execute(select, (name,))]
            except sqlite3.OperationalError:  # An SQLite without that table: the root is enough.
                select = "SELECT rootpage FROM sqlite_master WHERE name = ?"
                return [page for (page,) in connection.execute(select, (name,))]

    def overwrite(self, page: int, content: bytes) -> None:
        """Writes over the beginning of a page."""
        with self.database.open("r+b") as file:
            file.seek((page - 1) * 4096)
            file.write(content)

    def rows(self) -> list[tuple[object, ...]]:
        """All rows in the order of insertion."""
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute("SELECT * FROM Cache NOT INDEXED ORDER BY rowid").fetchall()


def count_reads(store: Store, monkeypatch: pytest.MonkeyPatch, prefix: str) -> list[str]:
    """The row keys with a prefix that are read from now on, of a disk store."""
    cache = store._cache  # type: ignore[attr-defined]
    reads: list[str] = []
    get = cache.get

    def counted(key: str) -> bytes | None:
        if key.startswith(prefix):
            reads.append(key)
        value: bytes | None = get(key)
        return value

    monkeypatch.setattr(cache, "get", counted)
    return reads
