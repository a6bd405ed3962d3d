"""Rows that somebody else has put into the file: they never run code, and never remove a file."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.scene import START, Scene, answered
from llmrouter.errors import StoreError
from llmrouter.stores._repair import repair
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from collections.abc import Callable


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


PICKLED, FILE = 4, 2
"""diskcache's modes of a pickled value, and of one in a file."""

PLANTS: dict[str, Callable[[bytes, str, str], tuple[object, ...]]] = {
    "a pickled value": lambda bomb, key, victim: (key, 1, PICKLED, None, bomb),
    "a pickled key": lambda bomb, key, victim: (bomb, 0, 1, None, b"x"),
    "a file name": lambda bomb, key, victim: (key, 1, FILE, victim, None),
    "a file name beside a value": lambda bomb, key, victim: (key, 1, 1, victim, b"{}"),
    "a pickle in a file": lambda bomb, key, victim: (key, 1, PICKLED, victim, None),
    "a number as a key": lambda bomb, key, victim: (17, 1, 1, None, b"x"),
}


def plant(folder: Path, key: object, raw: int, mode: int, filename: str | None, value: bytes | None) -> None:
    """Puts a row into the file, or changes the one with this key."""
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection, connection:
        connection.execute("DELETE FROM Cache WHERE key = ?", (key,))
        connection.execute(
            "INSERT INTO Cache (key, raw, store_time, access_time, size, mode, filename, value)"
            " VALUES (?, ?, 0, 0, 0, ?, ?, ?)",
            (key, raw, mode, filename, value),
        )


def use_everything(folder: Path, ids: list[str]) -> None:
    """Whatever a process may do with a store; what it refuses is refused."""
    with contextlib.suppress(StoreError):
        store = DiskStore(folder)
        lease = store.acquire_lease("one", START, timedelta(minutes=1))
        calls: list[Callable[[], object]] = [
            lambda: [store.find(request_id) for request_id in ids],
            lambda: [store.find_key(f"k{place}") for place in range(9)],
            lambda: list(store.find_keys("*")),
            lambda: list(store.outcomes(ids)),
            lambda: store.outcomes_since(0),
            store.waiting,
            store.open_batches,
            store.engine,
            store.paused,
            lambda: store.cancel(ids, START, in_batches=True),
            lambda: store.deliver(ids),
        ]
        if lease is not None:
            calls += [
                lambda: store.take_flush_request(lease),
                lambda: [store.release(lease, batch.batch_id) for batch in store.open_batches()],
                lambda: store.sweep(lease, 100),
                lambda: store.prune(lease, START + timedelta(days=1), 100, undelivered=True),
            ]
        for call in calls:
            with contextlib.suppress(StoreError):
                call()
        store.close()
    with contextlib.suppress(StoreError):
        repair(folder)


@pytest.mark.parametrize(
    "row", ["new", "q", "d", "o", "b", "a", "k", "g", "i", "p", ".meta", ".lease", ".flush", ".counters"]
)
@pytest.mark.parametrize("what", PLANTS)
def test_a_planted_row_does_nothing(tmp_path: Path, what: str, row: str) -> None:
    """Opened, read, iterated, claimed, swept, pruned and repaired: no code runs, no file goes."""
    folder = tmp_path / "queue"
    scene = Scene(lambda: DiskStore(folder))
    ids = scene.settled(*(scene.request(key=f"k{place}") for place in range(3)))
    ids += scene.enqueue(*(scene.request(key=f"k{place}") for place in range(3, 6)))
    batch = scene.claimed(max_requests=1)
    scene.settle(batch, [answered(scene.new_id())])
    scene.store.request_flush()
    scene.store.release_lease(scene.lease)
    scene.close()
    victim, trace = tmp_path / "victim", tmp_path / "trace"
    victim.write_text("mine")
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM Cache")]
    key = next((key for key in keys if key.startswith(row)), f"{row}planted")
    plant(folder, *PLANTS[what](pickle.dumps(Bomb(trace)), key, "../victim"))
    use_everything(folder, ids)
    assert victim.read_text() == "mine"
    assert not trace.exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    """Else these tests would show nothing."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()
