"""The processes of a soak: forked from one that has imported everything, so that a start costs little.

Run as ``python -m support.soaker``. Each JSON line in starts an actor; JSON lines out say which process
was started, and how one ended. What an actor has been told (accepted, answered, canceled) it appends
to a file of its own, a write for each line: nothing of it is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import anthropic

import llmrouter.worker  # noqa: F401  (loaded once, for all that are forked)
from llmrouter import Router, Settings, failpoints
from llmrouter.settings import ClassSettings  # noqa: F401
from llmrouter.stores import disk  # noqa: F401
from support.haste import hasten
from support.requests import ask
from support.world import BULK, quick

if TYPE_CHECKING:
    from llmrouter import MessageFuture

LATENCIES = ("hourly", "daily", BULK)
SHARED_KEYS = 400
POISON = "poison"
"""What a request contains for which the API refuses its whole batch."""
POISON_SHARE = 0.005
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one actor is to do."""

    name: str
    """Unique among all that are ever started: its keys begin with it."""
    base_url: str
    store: str
    log: str
    seed: int
    worker: bool
    failpoint: str
    """As in the variable of `llmrouter.failpoints`; empty for none."""
    settings: dict[str, Any]
    haste: dict[str, float]
    timeout_seconds: float
    """Of the client."""
    pause_seconds: float
    """Between two things that it does, on average."""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Actor:
    """Submits, submits again, cancels, flushes, waits; and works on the store while it has the lease."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._random = random.Random(part.seed)
        self._log = os.open(part.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._count = 0
        self._futures: list[MessageFuture] = []
        client = anthropic.Anthropic(
            api_key="sandbox", base_url=part.base_url, timeout=part.timeout_seconds, max_retries=0
        )
        settings = Settings(**quick(**part.settings))
        self._router = Router(client, store=part.store, settings=settings, worker=part.worker)

    def run(self) -> None:
        """Goes on until it is killed."""
        steps = {
            self._submit: 50,
            self._submit_many: 12,
            self._submit_soon: 8,
            self._submit_shared: 14,
            self._cancel_one: 5,
            self._give_up: 4,
            self._give_up_batch: 2,
            self._wait_again: 3,
            self._router.flush: 2,
            self._router.status: 2,
        }
        while True:
            (step,) = self._random.choices(list(steps), weights=list(steps.values()))
            step()
            time.sleep(self._random.expovariate(1 / self._part.pause_seconds))

    def _say(self, **fields: Any) -> None:
        os.write(self._log, (json.dumps(fields) + "\n").encode())

    def _new_keys(self, count: int) -> list[str]:
        first, self._count = self._count, self._count + count
        names = [f"{self._part.name}-{number}" for number in range(first, first + count)]
        return [f"{POISON}-{name}" if self._random.random() < POISON_SHARE else name for name in names]

    def _latency(self) -> str:
        return self._random.choice(LATENCIES)

    def _accepted(self, futures: list[MessageFuture]) -> None:
        for future in futures:
            self._say(accepted=future.key, request_id=future.request_id)
            future.add_done_callback(self._note)
        self._futures = [*self._futures, *futures][-300:]

    def _note(self, future: Any) -> None:
        """Tells how a request ended, as its owner sees it."""
        if future.status() == "closed":
            return
        if future.cancelled():
            self._say(canceled=future.key)
        elif future.exception() is not None:
            self._say(failed=future.key, error=type(future.exception()).__name__)
        else:
            self._say(answered=future.key, text=future.result().content[0].text)

    def _submit(self) -> None:
        (key,) = self._new_keys(1)
        self._accepted([self._router.submit(ask(key), latency=self._latency(), key=key)])

    def _submit_many(self) -> None:
        keys = self._new_keys(self._random.randint(2, 60))
        self._accepted(
            self._router.submit_many([ask(key) for key in keys], latency=self._latency(), keys=keys)
        )

    def _submit_soon(self) -> None:
        keys = self._new_keys(8)

        async def submit() -> list[MessageFuture]:
            latency = self._latency()
            return await asyncio.gather(
                *(self._router.asubmit(ask(key), latency=latency, key=key) for key in keys)
            )

        self._accepted(asyncio.run(submit()))

    def _submit_shared(self) -> None:
        """The same as other actors, earlier ones and this one."""
        key = f"{self._part.store}#{self._random.randrange(SHARED_KEYS)}"
        self._accepted([self._router.submit(ask(key), latency="daily", key=key)])

    def _cancel_one(self) -> None:
        if self._futures:
            future = self._random.choice(self._futures)
            if not future.done() and future.cancel():
                self._say(withdrawn=future.key)

    def _give_up(self) -> None:
        self._router.cancel([future.request_id for future in self._futures[-3:]])

    def _give_up_batch(self) -> None:
        batches = self._router.status().batches
        if batches:
            self._router.cancel(batch=self._random.choice(batches).batch_id)

    def _wait_again(self) -> None:
        if self._futures:
            key = self._random.choice(self._futures).key
            self._router.future(key=key).add_done_callback(self._note)


def _act(part: Part) -> None:
    """The life of an actor. It is not to end by itself: whatever gets out is a failure."""
    try:
        if part.failpoint:
            failpoints.reach = failpoints._armed(part.failpoint)
        hasten(**part.haste)
        Actor(part).run()
    except BaseException:  # noqa: BLE001  (the test reads it)
        with open(f"{part.log}.trouble", "w") as file:  # noqa: PTH123
            traceback.print_exc(file=file)
    finally:
        os._exit(1)


def _start(part: Part) -> None:
    pid = os.fork()
    if pid == 0:
        with open(f"{part.log}.stderr", "ab") as errors, open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
            os.dup2(errors.fileno(), 1)
            os.dup2(errors.fileno(), 2)
        _act(part)
    _tell(started=part.name, pid=pid)


def _tell(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Starts what it is told to, and reaps what has ended, until there is nothing more to be read."""
    alive = 0
    _tell(ready=True)
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], _LOOK_SECONDS)
        if readable:
            line = sys.stdin.readline()
            if not line:
                return
            _start(Part(**json.loads(line)))
            alive += 1
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            alive -= 1
            _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
