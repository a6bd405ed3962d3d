"""The Message Batches API in memory, as the engine sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import ProcessingStatus, ProviderBatch, ResultLine
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import datetime

    from llmrouter.domain.requests import Lane
    from llmrouter.ports import BatchBody, Clock

_LIFE = timedelta(hours=24)


@dataclass(kw_only=True)
class Posted:
    """A batch that was created here."""

    provider_batch_id: str
    lane: Lane
    custom_ids: list[str]
    created_at: datetime
    ended_at: datetime | None = None
    lines: list[ResultLine] | None = None
    """What its results say; None: every request succeeded."""

    @property
    def request_ids(self) -> list[str]:
        """The requests in it, by our ids."""
        return [custom_id.rpartition("-")[0] for custom_id in self.custom_ids]


def line(custom_id: str, kind: str = "succeeded", error_type: str | None = None) -> ResultLine:
    """A line of results as the adapter would read it."""
    result: dict[str, Any] = {"type": kind}
    if kind == "succeeded":
        result["message"] = {"id": f"msg_{custom_id}", "type": "message", "role": "assistant", "content": []}
    elif kind == "errored":
        result["error"] = {"type": "error", "error": {"type": error_type, "message": "no"}}
    known = {one.value: one for one in OutcomeKind}
    return ResultLine(
        custom_id=custom_id,
        kind=known.get(kind),
        error_type=error_type,
        raw=json.dumps({"custom_id": custom_id, "result": result}).encode(),
    )


@dataclass
class FakeBatchApi:
    """Implements `llmrouter.ports.BatchApi`. What goes wrong is decided by functions a test may set."""

    clock: Clock
    credentials: set[str] = field(default_factory=lambda: {"credential-a"})
    posted: list[Posted] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Requests of each create that was tried, the refused ones too."""
    looks: list[set[str]] = field(default_factory=list)
    """What each `describe` was asked for."""
    reads: int = 0
    """How many times results were read."""
    before_create: Callable[[list[dict[str, Any]]], None] = lambda items: None
    """Called with the requests of a create; what it raises is the answer, and nothing was created."""
    after_create: Callable[[Posted], None] = lambda posted: None
    """Called after a create; what it raises is the answer, though the batch exists."""
    before_describe: Callable[[], None] = lambda: None
    read: Callable[[Posted, list[ResultLine]], Iterable[ResultLine]] = lambda posted, lines: lines
    """What a reading gives of all lines; may raise at any of them."""
    hidden: set[str] = field(default_factory=set)
    """Batches that `describe` does not name."""

    def serves(self, lane: Lane) -> bool:
        """See `BatchApi.serves`."""
        return lane.credential in self.credentials

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """See `BatchApi.create`."""
        raw = b"".join(body)
        assert len(raw) == body.content_length
        items = json.loads(raw)["requests"]
        self.sizes.append(len(items))
        self.before_create(items)
        posted = Posted(
            provider_batch_id=f"msgbatch_{len(self.posted)}",
            lane=lane,
            custom_ids=[item["custom_id"] for item in items],
            created_at=self.clock.now(),
        )
        self.posted.append(posted)
        self.after_create(posted)
        return self._described(posted)

    def describe(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        """See `BatchApi.describe`."""
        self.looks.append(set(wanted))
        self.before_describe()
        return {
            posted.provider_batch_id: self._described(posted)
            for posted in self.posted
            if posted.provider_batch_id in wanted.keys() - self.hidden
        }

    def results(self, lane: Lane, provider_batch_id: str) -> Iterator[ResultLine]:
        """See `BatchApi.results`."""
        self.reads += 1
        (posted,) = (one for one in self.posted if one.provider_batch_id == provider_batch_id)
        lines = posted.lines if posted.lines is not None else [line(name) for name in posted.custom_ids]
        yield from self.read(posted, lines)

    def end(self, *posted: Posted) -> None:
        """Ends batches: those given, or all."""
        for one in posted or self.posted:
            one.ended_at = self.clock.now()

    def _described(self, posted: Posted) -> ProviderBatch:
        ended = posted.ended_at is not None
        return ProviderBatch(
            provider_batch_id=posted.provider_batch_id,
            status=ProcessingStatus.ENDED if ended else ProcessingStatus.IN_PROGRESS,
            created_at=posted.created_at,
            expires_at=posted.created_at + _LIFE,
            ended_at=posted.ended_at,
            request_count=len(posted.custom_ids),
        )
