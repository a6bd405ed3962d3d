"""A soak: actors on two stores of one workspace, killed and stopped, against an API that fails, at random."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llmrouter.sandbox import Fault
from support.soaker import POISON, Part
from support.world import BULK

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sandbox import Call
    from support.world import World

GRACE_SECONDS = 3.0
LEASE_SECONDS = 1.5
HASTE = {"hold_seconds": 0.1, "most_hold_seconds": 0.8, "lease_seconds": LEASE_SECONDS}
SETTINGS: dict[str, Any] = {
    "poll": 0.1,
    "in_doubt_grace": GRACE_SECONDS,
    "batch_max_requests": 40,
    "classes": {
        "hourly": {"flush": 0.1},
        "daily": {"flush": 0.4},
        BULK: {"deadline": "800d", "flush": "0 0 1 1 *"},
    },
}
_LIFE_SECONDS = 4.0
_TESTS = str(Path(__file__).parents[1])
_CAST = ((0, False), (0, True), (0, True), (0, True), (1, True), (1, True))
"""Whose store each actor opens, and whether it works on it."""
_FAILPOINTS = {
    "queued": 60,
    "claimed": 3,
    "sending": 3,
    "created": 3,
    "recorded": 3,
    "doubted": 1,
    "adopted": 1,
    "polling": 8,
    "half-settled": 3,
    "settled": 3,
    "canceling": 1,
    "deleting": 3,
}
"""Points, and how often each may be passed before it strikes."""


@dataclass(slots=True)
class _Running:
    part: Part
    pid: int
    started: float = field(default_factory=time.monotonic)
    killed: bool = False
    """By us, not by its failpoint."""
    wake_at: float | None = None
    """When it is sent SIGCONT: it is stopped, or will stop at its failpoint."""


@dataclass(slots=True)
class Tally:
    """What was done."""

    started: int = 0
    killed: int = 0
    stopped: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    """Failpoints that killed somebody."""


class Soak:
    """Use it in a `with`: at its end every actor is killed."""

    def __init__(self, world: World, folder: Path, seed: int) -> None:
        self.tally = Tally()
        self.folder = folder
        self.stores = (world.store, f"{world.store}-of-others")
        """Two routers in one workspace: the list shows the batches of both."""
        self._world = world
        self._random = random.Random(seed)
        self._running: dict[int, _Running] = {}
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._deletes = self._random.random() < 0.5
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.soaker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([_TESTS, os.environ.get("PYTHONPATH", "")])},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._next("ready")
        self.heal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, seconds: float) -> None:
        """Lets things happen for so long."""
        ends_at = time.monotonic() + seconds
        for place, worker in _CAST:
            self._start(self.stores[place], worker=worker)
        deeds: dict[Callable[[], None], int] = {self._kill: 2, self._stop: 1, self._add_fault: 8}
        while time.monotonic() < ends_at:
            (deed,) = self._random.choices(list(deeds), weights=list(deeds.values()))
            deed()
            self._look_after(self._random.expovariate(1 / 0.12))

    def heal(self) -> None:
        """The API does all it should; what it refuses with reason it still refuses."""
        self._world.sandbox.faults.clear()
        self._world.fault(
            kind="status",
            endpoint="batches.create",
            status=400,
            message="requests.0.params: refused",
            count=None,
            when=_holds_poison,
        )

    def told(self) -> list[dict[str, Any]]:
        """Everything that actors have been told, of each in its order."""
        # The last line of one that was killed in the middle of it has no end.
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("*.log"))
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def complaints(self) -> str:
        """What no actor should have come across."""
        troubles = [path.read_text() for path in sorted(self.folder.glob("*.trouble"))]
        crashes = [
            text for path in sorted(self.folder.glob("*.stderr")) if "Traceback" in (text := path.read_text())
        ]
        return "\n".join([*troubles, *crashes])

    def count_warnings(self, text: str) -> int:
        """How often actors have logged something."""
        return sum(path.read_text().count(text) for path in self.folder.glob("*.stderr"))

    def _start(self, store: str, *, worker: bool) -> None:
        name = f"actor{self.tally.started}"
        self.tally.started += 1
        failpoint = self._failpoint() if self._random.random() < 0.85 else ""
        part = Part(
            name=name,
            base_url=self._world.server.base_url,
            store=store,
            log=str(self.folder / f"{name}.log"),
            seed=self._random.randrange(1 << 32),
            worker=worker,
            failpoint=failpoint,
            settings={**SETTINGS, "delete_after_collect": self._deletes},
            haste=HASTE,
            timeout_seconds=2.0,
            pause_seconds=0.08,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(part.to_json() + "\n")
        self._process.stdin.flush()
        pid = self._next("started")["pid"]
        self._running[pid] = _Running(part, pid)
        if failpoint.endswith(":stop"):
            self._running[pid].wake_at = self._wake_at()

    def _failpoint(self) -> str:
        point = self._random.choice(list(_FAILPOINTS))
        stop = ":stop" if self._random.random() < 0.15 else ""
        return f"{point}:{self._random.randint(1, _FAILPOINTS[point])}{stop}"

    def _wake_at(self) -> float:
        """Within the lease, after it, or after the grace time too."""
        return time.monotonic() + self._random.uniform(0.2, LEASE_SECONDS + GRACE_SECONDS + 2)

    def _kill(self) -> None:
        """Somebody, but leaves those that have a failpoint some time to reach it."""
        old = time.monotonic() - _LIFE_SECONDS
        ripe = [one for one in self._running.values() if not one.part.failpoint or one.started < old]
        if not ripe:
            return
        one = self._random.choice(ripe)
        one.killed = True
        self._signal(one.pid, signal.SIGKILL)

    def _stop(self) -> None:
        one = self._random.choice(list(self._running.values()))
        self.tally.stopped += 1
        one.wake_at = self._wake_at()
        self._signal(one.pid, signal.SIGSTOP)

    def _add_fault(self) -> None:
        chance = self._random
        status = chance.choice([500, 502, 503, 504, 529, 408, 409])
        wait = {"retry-after": "0.3"}
        accepted, create = chance.random() < 0.5, "batches.create"
        faults: list[dict[str, Any]] = [
            {"kind": "drop", "endpoint": create, "accepted": accepted},
            {"kind": "status", "endpoint": create, "status": status, "accepted": accepted},
            {"kind": "delay", "endpoint": create, "seconds": chance.uniform(0.1, 2.5), "accepted": accepted},
            {"kind": "status", "endpoint": create, "status": 429, "headers": wait},
            {"kind": "status", "endpoint": create, "status": chance.choice([401, 403])},
            {"kind": "hide", "calls": chance.randint(0, 4), "lists": chance.randint(0, 4)},
            {"kind": "cut", "lines": chance.randint(0, 30), "cut_at": chance.choice(["line_end", "broken"])},
            {"kind": "cut", "lines": chance.randint(0, 30), "cut_at": "mid_line"},
            {"kind": "lines", "repeated": 3, "strangers": ["who-0123456789"]},
            {"kind": "item", "error_type": chance.choice(["api_error", "overloaded_error"]), "count": 5},
            {"kind": "item", "error_type": "invalid_request_error", "count": 2},
            {"kind": "item", "outcome": "canceled", "count": 4},
            {"kind": "status", "endpoint": "batches.list", "status": status, "count": chance.randint(1, 8)},
            {"kind": "status", "endpoint": "batches.retrieve", "status": status, "count": 3},
            {"kind": "drop", "endpoint": "batches.results"},
            {"kind": "status", "endpoint": "batches.cancel", "status": status, "accepted": accepted},
            {"kind": "drop", "endpoint": "batches.delete", "accepted": accepted},
        ]
        fault = chance.choice(faults)
        self.tally.faults[fault["kind"]] += 1
        self._world.sandbox.faults.add(Fault(**fault))

    def _look_after(self, seconds: float) -> None:
        """Waits for so long, and starts a new actor for each that has ended meanwhile."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            with suppress(queue.Empty):
                self._replace(self._said.get(timeout=max(left, 0.001)))
            self._wake()
            if left <= 0:
                return

    def _replace(self, said: dict[str, Any]) -> None:
        ended = self._running.pop(said["ended"])
        if ended.killed:
            self.tally.killed += 1
        else:
            self.tally.points[ended.part.failpoint.partition(":")[0]] += 1
        assert said["code"] == -signal.SIGKILL, f"{ended.part.name}: {said['code']}\n{self.complaints()}"
        self._start(ended.part.store, worker=ended.part.worker)

    def _wake(self) -> None:
        for one in self._running.values():
            if one.wake_at is not None and time.monotonic() >= one.wake_at:
                self._signal(one.pid, signal.SIGCONT)
                one.wake_at = self._wake_at() if one.part.failpoint.endswith(":stop") else None

    def _end_all(self) -> None:
        for one in self._running.values():
            self._signal(one.pid, signal.SIGKILL)
        while self._running:
            self._running.pop(self._next("ended")["ended"], None)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # It has ended, and will be heard of.
            os.kill(pid, number)

    def _next(self, name: str) -> dict[str, Any]:
        """What is said next under a name; what else is said stays in line."""
        others = []
        while name not in (said := self._said.get(timeout=30)):
            others.append(said)
        for other in others:
            self._said.put(other)
        return said

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(json.loads(line))


def _holds_poison(call: Call) -> bool:
    return any(POISON.encode() in item.params_json for item in call.items)
