"""A damaged store is told, never taken for empty, and repaired only where that loses nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from conformance.scene import START, Scene
from llmrouter.errors import StoreBusyError, StoreError, StoreUnusableError
from llmrouter.stores import _repair
from llmrouter.stores._repair import repair
from llmrouter.stores.disk import DiskStore
from support.stores import StoreFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ZEROS = bytes(4096)


@pytest.fixture
def files(tmp_path: Path) -> StoreFiles:
    """A store with requests in every state, closed."""
    scene = Scene(lambda: DiskStore(tmp_path / "queue"))
    for place in range(150):
        scene.enqueue(scene.request(key=f"k{place}", size=900))
    scene.settle_all(scene.claimed(max_requests=50))
    scene.claimed(max_requests=50)
    scene.store.release_lease(scene.lease)
    scene.close()
    files = StoreFiles(tmp_path / "queue")
    files.checkpoint()
    return files


def use(folder: Path) -> list[Exception]:
    """What a process that works with a store is told."""
    errors: list[Exception] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  (it is looked at by the test)
            errors.append(error)

    try:
        scene = Scene(lambda: DiskStore(folder))
    except StoreError as error:
        return [error]
    store = scene.store
    attempt(store.waiting)
    attempt(store.open_batches)
    attempt(lambda: [store.find_key(f"k{place}") for place in range(150)])
    attempt(lambda: [store.find(request_id) for request_id in store.find_keys("*")])
    attempt(lambda: store.outcomes_since(0))
    attempt(lambda: scene.enqueue(scene.request(size=5000)))
    attempt(lambda: scene.claimed(max_requests=1))
    attempt(lambda: store.prune(scene.lease, START + timedelta(days=1), 1000, undelivered=True))
    attempt(scene.close)
    return errors


DAMAGES: dict[str, Callable[[StoreFiles], object]] = {
    "garbage header": lambda files: files.overwrite(1, b"garbage" * 20),
    "zeroed header": lambda files: files.overwrite(1, bytes(100)),
    "cut in the middle": lambda files: os.truncate(
        files.database, files.database.stat().st_size // 8192 * 4096
    ),
    "cut in the first page": lambda files: os.truncate(files.database, 1000),
    "emptied": lambda files: os.truncate(files.database, 0),
    "a page of rows": lambda files: files.overwrite(files.pages("Cache")[-3], b"\xff" * 4096),
    "pages of rows": lambda files: [files.overwrite(page, ZEROS) for page in files.pages("Cache")[3:9]],
    "an index": lambda files: [files.overwrite(page, ZEROS) for page in files.pages("Cache_key_raw")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(files: StoreFiles, damage: str) -> None:
    """Where it is and what to do, whatever is damaged and whoever finds it; never SQLite's own error."""
    DAMAGES[damage](files)
    errors = use(files.folder)
    assert errors
    for error in errors:
        assert isinstance(error, StoreUnusableError), error
        assert re.search(rf"{re.escape(str(files.folder))} is damaged .*: run `llmrouter repair`", str(error))


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "an index"])
def test_lost_rows_are_not_repaired(files: StoreFiles, damage: str) -> None:
    """A lost row could have requests paid twice: it says what it could not read, and leaves all as it was."""
    DAMAGES[damage](files)
    content = files.database.read_bytes()
    with pytest.raises(StoreUnusableError, match=r"(\d+ of \d+|an unknown number of) rows cannot be read"):
        repair(files.folder)
    assert files.database.read_bytes() == content
    (copy,) = files.folder.glob("cache.db.damaged-*")
    assert copy.read_bytes() == content
    assert sorted(path.name for path in files.folder.iterdir()) == ["cache.db", copy.name, "engine.lock"]


def test_a_damaged_index_is_rebuilt(files: StoreFiles) -> None:
    """From all rows, in their order; a copy of the damaged file stays, for its owner alone."""
    rows = files.rows()
    DAMAGES["an index"](files)
    content = files.database.read_bytes()
    report = repair(files.folder)
    assert report.rebuilt
    assert report.problems
    assert report.rows == len(rows)
    assert report.copy is not None
    assert report.copy.read_bytes() == content
    assert stat.S_IMODE(report.copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.database.stat().st_mode) == 0o600
    assert files.rows() == rows
    assert use(files.folder) == []
    assert not repair(files.folder).problems


def test_what_is_written_meanwhile_is_not_overwritten(
    files: StoreFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process that got in at the moment when SQLite takes the lock over."""
    DAMAGES["an index"](files)
    rebuilt = _repair._rebuilt

    def slow(*arguments: Any) -> Path:
        fresh = rebuilt(*arguments)
        with contextlib.closing(sqlite3.connect(files.database)) as connection, connection:
            connection.execute("UPDATE Settings SET value = 17 WHERE key = 'hits'")
        return fresh

    monkeypatch.setattr(_repair, "_rebuilt", slow)
    with pytest.raises(StoreBusyError, match="just now: stop it, then repair"):
        repair(files.folder)
    with contextlib.closing(sqlite3.connect(files.database)) as connection:
        assert connection.execute("SELECT value FROM Settings WHERE key = 'hits'").fetchall() == [(17,)]
    monkeypatch.undo()
    assert repair(files.folder).rebuilt


def test_a_healthy_store_is_left_alone(files: StoreFiles) -> None:
    """Not a byte of it changes, and no copy is made."""
    content = files.database.read_bytes()
    report = repair(files.folder)
    assert (report.problems, report.rebuilt, report.copy) == ((), False, None)
    assert report.rows == len(files.rows())
    assert files.database.read_bytes() == content
    assert list(files.folder.glob("*damaged*")) == []


KILLED = """
import os, sys
from pathlib import Path
from conformance.scene import Scene
from llmrouter.stores.disk import DiskStore
scene = Scene(lambda: DiskStore(Path(sys.argv[1])))
scene.new_id.turn_page()
scene.enqueue(scene.request(key="late"))
os._exit(0)
"""


def test_what_is_only_in_the_log_is_kept(files: StoreFiles) -> None:
    """A store that was killed has its last rows beside the file: they are rows as well."""
    index = files.pages("Cache_key_raw")
    environment = {**os.environ, "PYTHONPATH": "tests"}
    subprocess.run([sys.executable, "-c", KILLED, files.folder], check=True, env=environment)
    assert (files.folder / "cache.db-wal").stat().st_size > 0
    for page in index:
        files.overwrite(page, ZEROS)
    report = repair(files.folder)
    assert report.copy is not None
    assert report.copy.with_name(f"{report.copy.name}-wal").stat().st_size > 0
    store = DiskStore(files.folder)
    assert store.find_key("late") is not None
    store.close()


def test_a_row_that_was_never_written_is_not_repaired(files: StoreFiles) -> None:
    """What is left of a page can look like rows: nothing but what the store writes is taken over."""
    with files.database.open("r+b") as file:
        content = file.read()
        place = content.index(b'{"schema":3')
        file.seek(place)
        file.write(b"\xff")
    DAMAGES["an index"](files)
    report = repair(files.folder)
    assert report.rebuilt
    with pytest.raises(StoreUnusableError, match="damaged"):
        DiskStore(files.folder)


def test_there_must_be_a_store(tmp_path: Path) -> None:
    """An empty folder is nothing to be repaired, and nothing is made in it."""
    with pytest.raises(StoreUnusableError, match="no store"):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from llmrouter.stores.disk import DiskStore
store = DiskStore(Path(sys.argv[1]))
if sys.argv[2] == "works":
    assert store.acquire_lease("one", datetime.now(UTC), timedelta(minutes=1))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["works", "only has it open"])
def test_a_store_in_use_is_not_repaired(files: StoreFiles, how: str) -> None:
    """By a process that holds the lease, or only has it open."""
    command = [sys.executable, "-c", HOLDER, str(files.folder), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StoreBusyError, match="stop it, then repair"):
            repair(files.folder)
        process.communicate()
    assert not repair(files.folder).problems
