"""A process of its own that does what a test tells it: JSON lines in, JSON lines out.

Run as ``python -m support.puppet BASE_URL STORE``. Each line that says something was done is
written out before anything else is done, so what a test has read has happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic

from llmrouter import Router, Settings
from support.haste import hasten
from support.requests import ask
from support.world import BULK, quick

_out = threading.Lock()


def say(**fields: Any) -> None:
    """Tells the test."""
    with _out:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


class Commands:
    """What a puppet can do; each method is a command."""

    def __init__(self, base_url: str, store: str) -> None:
        self._client = anthropic.Anthropic(api_key="sandbox", base_url=base_url)
        self._store = store
        self._router: Router | None = None
        self._lock: sqlite3.Connection | None = None

    @property
    def router(self) -> Router:
        """The router, which `open` has made."""
        assert self._router is not None
        return self._router

    def hasten(self, **seconds: float) -> None:
        """Shortens what no setting shortens; before `open`."""
        hasten(**seconds)
        say(hastened=True)

    def open(self, *, worker: bool = True, **settings: Any) -> None:
        """Makes the router."""
        self._router = Router(
            self._client, store=self._store, settings=Settings(**quick(**settings)), worker=worker
        )
        say(opened=self._router.status().working)

    def submit(self, *, first: int, count: int, latency: str = BULK) -> None:
        """Submits requests one by one, and acknowledges each as soon as it was accepted."""
        slowest = 0.0
        for number in range(first, first + count):
            began = time.monotonic()
            future = self.router.submit(ask(number), latency=latency, key=f"key-{number}")
            slowest = max(slowest, time.monotonic() - began)
            say(accepted=number, request_id=future.request_id)
        say(submitted=count, slowest_seconds=slowest)

    def submit_many(self, *, first: int, count: int, latency: str = BULK) -> None:
        """Submits requests in one call."""
        numbers = range(first, first + count)
        keys = [f"key-{number}" for number in numbers]
        self.router.submit_many([ask(number) for number in numbers], latency=latency, keys=keys)
        say(submitted=count)

    def submit_on_and_on(self, *, threads: int) -> None:
        """Submits requests from several threads at once, more than a test waits for."""

        def run(thread: int) -> None:
            for number in range(thread * 1_000, thread * 1_000 + 300):
                self.router.submit(ask(number), latency=BULK, key=f"key-{number}")
                say(accepted=number)

        for thread in range(threads):
            threading.Thread(target=run, args=(thread,), daemon=True).start()

    def fork(self) -> None:
        """Leaves a child behind that does nothing, and keeps every file of its parent open."""
        pid = os.fork()
        if pid == 0:
            for descriptor in range(3):  # Or else the test would wait for the end of what it says.
                os.close(descriptor)
            signal.pause()
            os._exit(0)
        say(forked=pid)

    def flush(self) -> None:
        """Flushes, in a thread of its own: the create may hang."""

        def run() -> None:
            say(flushed=self.router.flush())

        threading.Thread(target=run, daemon=True).start()

    def wait(self, *, numbers: list[int]) -> None:
        """Tells of each answer as it comes, in a thread of its own."""
        futures = {self.router.future(key=f"key-{number}"): number for number in numbers}

        def run() -> None:
            for future in as_completed(futures):
                message = future.result()  # type: ignore[arg-type]
                say(answered=futures[future], text=message.content[0].text)  # type: ignore[index,union-attr]

        threading.Thread(target=run, daemon=True).start()
        say(waiting=len(numbers))

    def call(self, *, count: int, threads: int = 1) -> None:
        """Makes live calls on a wrapped client, whole ones and streams, and tells of each."""
        client = self.router.wrap(self._client)

        def one(number: int) -> None:
            if number % 2:
                client.messages.create(**ask(number))
            else:
                list(client.messages.create(**ask(number), stream=True))
            say(called=number)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(count)))
        say(calls=count)

    def leave(self) -> None:
        """Ends without closing anything."""
        sys.exit()

    def cancel(self, *, pattern: str) -> None:
        """Gives requests up, by their keys."""
        canceled = self.router.cancel(key=pattern)
        say(canceled=canceled.canceled + canceled.asked)

    def prune(self) -> None:
        """Forgets all that was settled."""
        say(pruned=self.router.prune(timedelta(0), undelivered=True))

    def status(self) -> None:
        """Tells of the router's status."""
        status = self.router.status()
        states = [batch.state.value for batch in status.batches]
        say(working=status.working, queued=status.queued, states=states)

    def lock(self) -> None:
        """Keeps the write lock of the store's database."""
        folder = Path(urlsplit(self._store).path)
        self._lock = sqlite3.connect(folder / "cache.db", isolation_level=None, timeout=30)
        self._lock.execute("BEGIN IMMEDIATE")
        say(locked=True)

    def unlock(self) -> None:
        """Lets it go."""
        assert self._lock is not None
        self._lock.execute("ROLLBACK")
        self._lock.close()
        say(locked=False)

    def close(self) -> None:
        """Closes the router."""
        if self._router is not None:
            self._router.close()
        say(closed=True)


def main() -> None:
    """Does what it is told until there is nothing more to be read."""
    commands = Commands(*sys.argv[1:])
    say(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        getattr(commands, command.pop("do"))(**command)
    with contextlib.suppress(BrokenPipeError):
        commands.close()


if __name__ == "__main__":
    main()
