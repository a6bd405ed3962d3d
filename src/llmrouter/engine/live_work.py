"""Which requests of an escalating batch have to be sent, as far as the sender knows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmrouter.domain.batches import Batch


@dataclass(slots=True)
class LiveWork:
    """An escalating batch on its way. Its owner lets one thread in at a time."""

    batch: Batch
    waiting: deque[str]
    under_way: set[str] = field(default_factory=set)
    """Until their answers are written."""
    paused: dict[str, float] = field(default_factory=dict)
    """Requests that are tried again, and from when on, by the monotonic clock."""
    is_stale: bool = False
    """Whether another process may have worked on it since: it has to be read again."""

    @property
    def left(self) -> int:
        """How many have no answer."""
        return len(self.waiting) + len(self.under_way) + len(self.paused)

    def choose(self, count: int) -> list[str]:
        """Takes out the next ones to be sent. They count as under way, so that nobody gives them back."""
        chosen = [self.waiting.popleft() for _ in range(count)]
        self.under_way.update(chosen)
        return chosen

    def pause(self, request_id: str, until: float | None) -> None:
        """One that was under way is to be sent again: from an instant on, or None: before all others."""
        self.under_way.discard(request_id)
        if until is None:
            self.waiting.appendleft(request_id)
        else:
            self.paused[request_id] = until

    def wake(self, now: float) -> None:
        """Lets those wait again whose pause is over."""
        for request_id in [one for one, until in self.paused.items() if until <= now]:
            del self.paused[request_id]
            self.waiting.append(request_id)

    def reload(self, left: Collection[str]) -> None:
        """Begins anew with what the store says; calls of before that are under way are not made again."""
        self.waiting = deque(one for one in left if one not in self.under_way | self.paused.keys())
        self.is_stale = False

    def drop(self) -> None:
        """Forgets what was not sent: it has been answered otherwise, or is another process's."""
        self.waiting.clear()
        self.paused.clear()
