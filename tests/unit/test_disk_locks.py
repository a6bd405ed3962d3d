"""What a disk store does while other processes have its locks, and when its file is not there any more."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conformance.scene import Scene
from llmrouter.errors import StoreBusyError, StoreUnusableError
from llmrouter.stores import _patience
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT_SECONDS = 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "queue"


@pytest.fixture
def scene(folder: Path) -> Iterator[Scene]:
    """A store with a request."""
    scene = Scene(lambda: DiskStore(folder))
    scene.enqueue_alike(1)
    yield scene
    scene.close()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process is in a write transaction, and stopped."""
    with contextlib.closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


class TestReplaced:
    """The folder is deleted, or restored from a copy, under an open store."""

    @pytest.mark.parametrize("keyed", [False, True])
    def test_nothing_is_taken_into_a_file_that_is_gone(self, folder: Path, scene: Scene, keyed: bool) -> None:
        """Made again by another process, the store would never know the request."""
        shutil.rmtree(folder)
        again = DiskStore(folder)
        request = scene.request(key="k" if keyed else None)
        for _ in range(2):
            with pytest.raises(StoreUnusableError, match="replaced by another while it was open"):
                scene.store.enqueue([request])
        assert again.find(request.request_id) is None
        again.close()

    def test_nor_into_the_one_in_its_place(self, folder: Path, scene: Scene) -> None:
        """A thread that comes new opens that one: its rows are not those that this process knows."""
        shutil.rmtree(folder)
        again = DiskStore(folder)
        request = scene.request()
        with ThreadPoolExecutor(1) as pool, pytest.raises(StoreUnusableError, match="replaced"):
            pool.submit(scene.store.enqueue, [request]).result()
        assert again.find(request.request_id) is None
        again.close()

    def test_a_deleted_one_is_told(self, folder: Path, scene: Scene) -> None:
        """And is not made again by the way."""
        shutil.rmtree(folder)
        with pytest.raises(StoreUnusableError, match="deleted while it was open"):
            scene.enqueue_alike(1)
        assert not folder.exists()


class TestLocked:
    """Another process keeps SQLite's lock."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_patience, "_LOCK_SECONDS", LIMIT_SECONDS)

    @pytest.mark.parametrize("how", ["one row", "a transaction"])
    def test_all_threads_wait_at_once(self, folder: Path, scene: Scene, how: str) -> None:
        """Each its bounded time, not one after the other; and a second time, too."""

        def attempt() -> float:
            began = time.monotonic()
            with pytest.raises(StoreBusyError, match="locked"):
                scene.store.enqueue([one_row]) if how == "one row" else scene.store.request_flush()
            return time.monotonic() - began

        one_row = scene.request()
        with locked(folder), ThreadPoolExecutor(6) as pool:
            for _ in range(2):
                waited = [attempting.result() for attempting in [pool.submit(attempt) for _ in range(6)]]
                assert min(waited) >= LIMIT_SECONDS
                assert max(waited) < 3 * LIMIT_SECONDS

    def test_it_goes_on_afterwards(self, folder: Path, scene: Scene) -> None:
        """The same thread and others; nothing of the refused call is there."""
        refused = scene.request()
        with locked(folder), pytest.raises(StoreBusyError):
            scene.store.enqueue([refused])
        assert scene.store.find(refused.request_id) is None
        with ThreadPoolExecutor(1) as pool:
            taken = [*scene.enqueue_alike(1), *pool.submit(scene.enqueue_alike, 1).result()]
        assert None not in [scene.rival.find(request_id) for request_id in taken]

    def test_after_an_interrupt_it_is_no_longer(self, folder: Path, scene: Scene) -> None:
        """What an exception in the middle of diskcache left is dropped without a wait for the lock."""
        scene.store._cache._interrupted = True
        began = time.monotonic()
        with locked(folder), pytest.raises(StoreBusyError):
            scene.enqueue_alike(1)
        assert time.monotonic() - began < 3 * LIMIT_SECONDS

    def test_an_opening_is_bounded_too(self, folder: Path, scene: Scene) -> None:
        """It writes its settings."""
        with locked(folder), pytest.raises(StoreBusyError):
            DiskStore(folder)


READS: dict[str, Callable[[Scene, str], object]] = {
    "get": lambda scene, request_id: scene.store.outcome_cursor(),
    "all keys": lambda scene, request_id: scene.store.waiting(),
    "keys between": lambda scene, request_id: scene.store.find(request_id),
}


@pytest.mark.parametrize("read", READS)
def test_readers_wait_for_recovery_and_the_last_close(folder: Path, read: str) -> None:
    """SQLite locks them out for a moment then: that is no error."""
    scene = Scene(lambda: DiskStore(folder))
    (request_id,) = scene.enqueue_alike(1)
    expected = READS[read](scene, request_id)
    scene.close()  # This thread opens it again at the next call.
    connection = sqlite3.connect(folder / "cache.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN IMMEDIATE")
    closing = threading.Timer(0.2, connection.close)
    closing.start()
    assert READS[read](scene, request_id) == expected
    closing.join()
    scene.close()
