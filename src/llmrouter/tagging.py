"""How long calls on a wrapped client may take, said from outside of them: by a block, or by a header."""

from __future__ import annotations

import hashlib
import heapq
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrouter.domain.runs import RUN_PREFIX
from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = [
    "TAG_HEADERS",
    "UNTAGGED",
    "Block",
    "Entry",
    "Run",
    "Tag",
    "current_entry",
    "latency",
    "read_tag",
    "tag",
    "without_tag",
]

_HEADER = "x-llmrouter-"
_LATENCY, _SITE, _KEY = f"{_HEADER}latency", f"{_HEADER}site", f"{_HEADER}key"

TAG_HEADERS = frozenset({_LATENCY, _SITE, _KEY})
"""The headers that `tag` gives. They are taken off before a call is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What `tag` says of one call; None where it says nothing."""

    latency: str | None = None
    site: str | None = None
    key: str | None = None


UNTAGGED = Tag()
"""Of a call that has no tag."""


class Run:
    """The requests of one resumable piece of work: the n-th of those that are equal always has the same key.

    A key whose answer did not reach its caller is given back, so that the next equal request picks it up.
    May be used from several threads and tasks.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._last: dict[str, int] = {}
        self._free: dict[str, list[int]] = {}

    def take(self, content: bytes) -> str:
        """The key of a request, with the smallest number that no equal one has, from 1.

        Args:
            content: What makes requests equal.
        """
        digest = hashlib.sha256(content).hexdigest()[:32]
        with self._lock:
            free = self._free.get(digest)
            number = heapq.heappop(free) if free else self._last.get(digest, 0) + 1
            self._last[digest] = max(number, self._last.get(digest, 0))
        return f"{RUN_PREFIX}{self.name}:{digest}:{number}"

    def give_back(self, key: str) -> None:
        """Frees a key that `take` gave, whose answer did not reach its caller."""
        _, digest, number = key.rsplit(":", 2)
        with self._lock:
            heapq.heappush(self._free.setdefault(digest, []), int(number))


class Entry:
    """A block that was entered, once.

    Attributes:
        latency: Its latency class.
        run: That of the block, or of the nearest one around it that has one; None without any.
        outer: The entry around it.
    """

    __slots__ = ("latency", "outer", "run")

    def __init__(self, latency: str, run: Run | None, outer: Entry | None) -> None:
        self.latency = latency
        self.run = run
        self.outer = outer


_current: ContextVar[Entry | None] = ContextVar("llmrouter_latency", default=None)

current_entry = _current.get
"""The innermost block that this thread or task is in, or None."""


class Block:
    """What `latency` gives: a context manager. May be entered again, also by several threads or tasks."""

    def __init__(self, latency: str, run: str | None) -> None:
        self._latency = latency
        self._run = run

    def __enter__(self) -> None:
        outer = _current.get()
        run = Run(self._run) if self._run is not None else outer.run if outer is not None else None
        _current.set(Entry(self._latency, run, outer))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entry = _current.get()
        _current.set(entry.outer if entry is not None else None)


def latency(name: str, *, run: str | None = None) -> Block:
    """Says for every call on a wrapped client in a ``with`` block how long it may take.

    The block counts for this thread or asyncio task, and for tasks that are made in it. A thread pool
    does not see it: submit ``contextvars.copy_context().run``, or enter it in the thread.

    Args:
        name: ``"real-time"``, ``"hourly"``, ``"daily"``, ``"weekly"`` or a class of your own.
        run: Makes the block resumable: the n-th equal request of a run has the same key each time the
            block is entered, so running a script again picks up what is paid for. A block inside it
            without a run of its own belongs to the same run.

    Raises:
        InvalidRequestError: A name is no text, or is empty. Whether there is such a class is known at
            the first call.
    """
    _check("latency", name)
    if run is not None:
        _check("run", run)
    return Block(name, run)


def tag(latency: str | None = None, *, site: str | None = None, key: str | None = None) -> dict[str, str]:
    """Says it for one call on a wrapped client: ``messages.create(..., extra_headers=tag("hourly"))``.

    Only a wrapped client understands these headers; it takes them off before a call is sent.

    Args:
        latency: A latency class; without one the block, or a rule for the site, decides.
        site: Name of the call site, for rules and reports; by default ``module:function`` of the caller.
        key: Idempotency key: the same key gives the same request, in this process or the next.

    Raises:
        InvalidRequestError: One of them is no text, or is empty.
    """
    headers = {}
    for header, field, value in ((_LATENCY, "latency", latency), (_SITE, "site", site), (_KEY, "key", key)):
        if value is not None:
            _check(field, value)
            headers[header] = value
    return headers


def read_tag(headers: Mapping[str, Any]) -> Tag:
    """What the headers of a call say, whatever the case of their names. Not checked."""
    found = {
        lower.removeprefix(_HEADER): value
        for name, value in headers.items()
        if isinstance(value, str) and (lower := name.lower()) in TAG_HEADERS
    }
    return Tag(**found) if found else UNTAGGED


def without_tag(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers of a call that are meant for the API."""
    return {name: value for name, value in headers.items() if name.lower() not in TAG_HEADERS}


def _check(field: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(field, "should be a text that is not empty")
