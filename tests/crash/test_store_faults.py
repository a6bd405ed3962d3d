"""Full disks, folders without rights, and kills in the middle of what a store does of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import START, RequestIds, Scene
from llmrouter.errors import StoreError, StoreUnusableError
from llmrouter.failpoints import VARIABLE
from llmrouter.stores._cache import LockedCache
from llmrouter.stores.disk import DiskStore
from unit.test_disk_schema import schema_1, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.crash]


def run(code: str, *arguments: object, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": "tests", VARIABLE: failpoint},
    )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A store with a few requests."""
    scene = Scene(lambda: DiskStore(tmp_path / "queue"))
    scene.enqueue_alike(3)
    yield scene
    scene.close()


def limit_pages(store: DiskStore, most: int) -> None:
    """Lets the file have no more pages than these, on this thread's connection, a new one after a fault."""
    store._cache._start_clean()
    store._cache.cache._sql(f"PRAGMA max_page_count = {most}")


def fill(store: DiskStore) -> None:
    """Uses up the space that is left within the pages there are."""
    with contextlib.suppress(StoreError):
        for number in range(1000):  # Each smaller than any row of the store's own.
            with store._cache.write(synced=False):
                store._cache.set(f"f{number}", b"")


class TestAFullDisk:
    def test_a_submit_says_so_and_stores_nothing(self, scene: Scene) -> None:
        """All or nothing, one request or many, with keys and without; readers read on."""
        big = [scene.request(size=50_000, key=f"k{place}") for place in range(4)]
        for requests in ([scene.request(size=50_000)], [scene.request(size=50_000) for _ in range(9)], big):
            limit_pages(scene.store, 1)
            with pytest.raises(StoreError, match=r"disk is full.*nothing was stored"):
                scene.store.enqueue(requests)
            assert [scene.store.find(request.request_id) for request in requests] == [None] * len(requests)
        assert scene.store.find_key("k0") is None
        assert [line.request_count for line in scene.rival.waiting()] == [3]

    def test_the_store_goes_on_when_there_is_space_again(self, scene: Scene) -> None:
        """The same open store, and the process that collects in it."""
        batch = scene.claimed()
        limit_pages(scene.store, 1)
        with pytest.raises(StoreError, match="disk is full"):
            scene.enqueue(scene.request(size=50_000))
        limit_pages(scene.store, 1)
        with pytest.raises(StoreError, match="disk is full"):
            scene.enqueue_alike(2000)
        limit_pages(scene.store, 1_000_000)
        (late,) = scene.enqueue(scene.request(size=50_000))
        scene.settle_all(batch)
        assert scene.inside(scene.claimed()) == {late}

    def test_the_backlog_can_be_read(self, scene: Scene) -> None:
        """By the process that works too, whose index writes a marker for each look."""
        assert [line.request_count for line in scene.store.waiting()] == [3]
        assert scene.lease
        assert [line.request_count for line in scene.store.waiting()] == [3]
        scene.rival.enqueue([scene.request()])
        limit_pages(scene.store, 1)
        fill(scene.store)
        for _ in range(2):
            limit_pages(scene.store, 1)
            assert [line.request_count for line in scene.store.waiting()] == [4]
        limit_pages(scene.store, 1_000_000)
        assert scene.claimed().request_count == 4

    def test_with_a_limit_on_files_it_is_the_same(self, tmp_path: Path) -> None:
        """Another way in which a disk refuses a write: within a commit, and when a store is opened."""
        ran = run(FULL, tmp_path / "queue")
        assert ran.stderr == ""
        *lines, found = ran.stdout.splitlines()
        assert len(lines) == 3
        for line in lines[:2]:
            assert line.startswith("StoreError")
            assert "nothing was stored" in line
        assert lines[2].startswith("StoreUnusableError")
        assert all("free space" in line for line in lines)
        assert found == "True False True"


FULL = """
import resource, sys
from pathlib import Path
from conformance.scene import Scene
from llmrouter.errors import StoreError
from llmrouter.stores.disk import DiskStore

def limited(call):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    try:
        call()
    except StoreError as error:
        print(type(error).__name__, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

folder = Path(sys.argv[1])
scene = Scene(lambda: DiskStore(folder))
first, second, third = scene.request(), scene.request(size=400_000), scene.request(size=400_000)
scene.enqueue(first)
limited(lambda: scene.enqueue(second))
limited(lambda: scene.enqueue(second, scene.request()))
scene.enqueue(third)
limited(lambda: DiskStore(folder))
print(*(scene.store.find(request.request_id) is not None for request in (first, second, third)))
"""


class TestRights:
    @pytest.mark.parametrize("denied", ["cache.db", "queue"])
    def test_a_read_only_store_is_told(
        self, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
    ) -> None:
        """At once when it is opened, not after half a minute of trying."""
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path.name != denied and access(path, mode))
        with pytest.raises(StoreUnusableError, match="read-only"):
            DiskStore(tmp_path / "queue")

    @pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o755), (0o644, 0o555), (0o444, 0o555)])
    def test_another_user_is_told(self, tmp_path: Path, file_mode: int, folder_mode: int) -> None:
        """A process without the rights, by the kernel's own word."""
        folder = tmp_path / "queue"
        DiskStore(folder).close()
        (folder / "cache.db").chmod(file_mode)
        folder.chmod(folder_mode)
        ran = run(DENIED, folder)
        folder.chmod(0o700)
        assert ran.stdout == "the store in queue is read-only for this process\n", ran.stderr

    def test_nobody_else_can_read_it(self, tmp_path: Path) -> None:
        """Whatever the umask: the folder 0700, every file 0600."""
        ran = run(OPEN_MASK, tmp_path / "deep" / "queue")
        assert ran.stderr == ""
        modes = dict(line.split() for line in ran.stdout.splitlines())
        assert modes == {"queue": "700"} | dict.fromkeys(
            ["cache.db", "cache.db-wal", "cache.db-shm", "engine.lock"], "600"
        )

    def test_a_folder_that_others_can_enter_is_told(
        self, scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may be meant so: it is not changed."""
        folder = tmp_path / "queue"
        with caplog.at_level(logging.WARNING, "llmrouter.stores"):
            DiskStore(folder).close()
            assert caplog.messages == []
            folder.chmod(0o755)
            DiskStore(folder).close()
        assert len(caplog.messages) == 1
        assert str(folder) in caplog.messages[0]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755


DENIED = """
import os, sys
from pathlib import Path
from llmrouter.errors import StoreUnusableError
from llmrouter.stores.disk import DiskStore
folder = Path(sys.argv[1])
os.chdir(folder.parent)
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    DiskStore(Path("queue"))
except StoreUnusableError as error:
    print(str(error).replace(os.getcwd() + os.sep, ""))
"""

OPEN_MASK = """
import os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from conformance.scene import Scene
from llmrouter.stores.disk import DiskStore
os.umask(0)
folder = Path(sys.argv[1])
scene = Scene(lambda: DiskStore(folder))
scene.enqueue_alike(3)
scene.lease
for path in (folder, *folder.iterdir()):
    print(path.name, format(path.stat().st_mode & 0o7777, "o"))
"""


class TestProcesses:
    def test_two_stores_in_a_process_keep_their_locks(self, scene: Scene, tmp_path: Path) -> None:
        """Closing any descriptor of the file would drop the locks of all: another process would then take
        itself for the last one, and delete the log that is being written here."""
        scene.open()
        ran = run(VISIT, tmp_path / "queue")
        assert ran.stdout == "3\n", ran.stderr
        assert [line.request_count for line in scene.store.waiting()] == [4]
        scene.enqueue_alike(1)
        assert run(VISIT, tmp_path / "queue").stdout == "5\n"
        assert [line.request_count for line in scene.rival.waiting()] == [6]


VISIT = """
import os, sys
from pathlib import Path
from conformance.scene import RequestIds, Scene
from llmrouter.stores.disk import DiskStore
scene = Scene(lambda: DiskStore(Path(sys.argv[1])))
scene.new_id = RequestIds(seed=os.getpid())
print(scene.store.waiting()[0].request_count)
scene.enqueue(scene.request())
scene.close()
"""


class TestKills:
    def test_killed_while_it_is_made(self, tmp_path: Path) -> None:
        """The next process makes it whole."""
        folder = tmp_path / "queue"
        ran = run(OPEN, folder, failpoint="store-created")
        assert ran.returncode == -signal.SIGKILL
        for _ in range(2):
            scene = Scene(lambda: DiskStore(folder))
            scene.new_id = RequestIds(seed=len(list(folder.iterdir())))
            assert len(scene.store.secret()) == 32
            scene.close()

    def test_killed_while_it_is_brought_up_to_date(self, tmp_path: Path) -> None:
        """It is of the old version still, and the next process goes on."""
        folder = tmp_path / "queue"
        write_rows(folder, schema_1())
        ran = run(OPEN, folder, failpoint="migrating")
        assert ran.returncode == -signal.SIGKILL
        cache = LockedCache(folder)
        assert b'"schema": 1' in (cache.get(".meta") or b"")
        assert cache.get("imsgbatch_1") is None
        cache.close()
        store = DiskStore(folder)
        assert store.known_batches(["msgbatch_1", "msgbatch_2"]) == {"msgbatch_1", "msgbatch_2"}
        store.close()

    def test_killed_while_it_prunes(self, scene: Scene, tmp_path: Path) -> None:
        """All of it is there still, and the next prune forgets all."""
        scene.settle_all(scene.claimed())
        scene.settled(*(scene.request(key=f"k{place}") for place in range(30)))
        before = scene.snapshot()
        ran = run(PRUNE, tmp_path / "queue", failpoint="pruning")
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        assert scene.snapshot(scene.open()) == before
        lease = scene.store.acquire_lease("next", START, timedelta(minutes=1))
        assert lease is not None
        assert scene.store.prune(lease, START + timedelta(days=1), 1000, undelivered=True) == 33
        assert scene.store.find_key("k1") is None


OPEN = """
import sys
from pathlib import Path
from llmrouter.stores.disk import DiskStore
DiskStore(Path(sys.argv[1]))
"""

PRUNE = """
import sys
from datetime import timedelta
from pathlib import Path
from conformance.scene import START
from llmrouter.stores.disk import DiskStore
store = DiskStore(Path(sys.argv[1]))
lease = store.acquire_lease("pruner", START + timedelta(hours=1), timedelta(minutes=1))
store.prune(lease, START + timedelta(days=1), 1000, undelivered=True)
"""
