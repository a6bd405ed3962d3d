"""A router against a sandbox over HTTP, with the real SDK: what the integration tests share."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import anthropic

from llmrouter import Router, Settings
from llmrouter.sandbox import Fault, ManualClock, Sandbox, Turnaround
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.sandbox import Batch

BULK = "bulk"
"""A class whose backlog leaves when it is told to, and not before."""

QUICK_CLASSES: dict[str, Any] = {
    BULK: {"deadline": "800d", "flush": "0 0 1 1 *"},
    "hourly": {"flush": 0.05},
    "daily": {"flush": 0.05},
    "weekly": {"flush": 0.05},
}
_TURNAROUND = timedelta(minutes=10)


def quick(**changes: Any) -> dict[str, Any]:
    """Settings that make a router do in hundredths of a second what it does in minutes."""
    classes = QUICK_CLASSES | changes.pop("classes", {})
    return {"poll": 0.05, "classes": classes, **changes}


class World:
    """A sandbox on a clock of its own that serves, and routers and clients that are closed at the end.

    Batches take ten minutes, which pass when `finish` is called.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        given = {
            "clock": ManualClock(),
            "turnaround": Turnaround.fixed(_TURNAROUND),
            "keep_bodies": True,
            **options,
        }
        self.sandbox = Sandbox(**given)
        self.store = f"disk://{folder / 'store'}"
        self._open = ExitStack()
        self.server = self.sandbox.serve()

    def __enter__(self) -> Self:
        self._open.enter_context(self.server)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def client(self, **options: Any) -> anthropic.Anthropic:
        """A client of the sandbox."""
        given = {"api_key": self.server.api_key, "base_url": self.server.base_url, **options}
        return self._open.enter_context(anthropic.Anthropic(**given))

    def router(
        self,
        *,
        client: anthropic.Anthropic | None = None,
        store: str | None = None,
        worker: bool = True,
        **changes: Any,
    ) -> Router:
        """A quick router on the disk store of this world."""
        return self._open.enter_context(
            Router(
                client or self.client(),
                store=store or self.store,
                settings=Settings(**quick(**changes)),
                worker=worker,
            )
        )

    @property
    def batches(self) -> list[Batch]:
        """What was created, oldest first."""
        return list(self.sandbox.batches.values())

    def fault(self, **fields: Any) -> None:
        """Something goes wrong."""
        self.sandbox.faults.add(Fault(**fields))

    def finish(self, batches: int = 1) -> None:
        """Waits until so many batches were created in all, then ends those there are."""
        wait_until(lambda: len(self.sandbox.batches) >= batches, what=f"{batches} batches to be created")
        self.sandbox.clock.advance(_TURNAROUND)

    def finish_when_sent(self, requests: int) -> None:
        """Waits until so many requests were sent in all, then ends the batches there are."""
        wait_until(
            lambda: sum(len(batch.items) for batch in self.batches) == requests,
            what=f"{requests} requests to be sent",
        )
        self.sandbox.clock.advance(_TURNAROUND)

    def wait_for_calls(self, endpoint: str, count: int) -> None:
        """Waits until an endpoint was called so many times."""
        wait_until(lambda: self.sandbox.books.calls[endpoint] >= count, what=f"{count} calls of {endpoint}")

    def bodies(self, endpoint: str) -> list[bytes]:
        """The bodies of the calls of an endpoint, in order."""
        return [record.body for record in self.sandbox.books.records if record.endpoint == endpoint]

    def batch_items(self) -> list[dict[str, Any]]:
        """Every item that was posted, in order."""
        return [item for body in self.bodies("batches.create") for item in json.loads(body)["requests"]]

    def check_books(self, requests: int) -> None:
        """Fails unless exactly so many requests were paid, each of them once."""
        counts = self.sandbox.books.count_charges()
        assert (len(counts), set(counts.values())) == (requests, {1} if requests else set())
