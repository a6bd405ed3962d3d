"""Stores that a test can stop, watch and break."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrouter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmrouter.domain.requests import Accepted, QueuedRequest


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
