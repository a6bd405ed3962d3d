"""The Message Batches API in memory, as the engine sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter.domain.batches import Listing, ProcessingStatus, ProviderBatch, ResultLine
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
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
    """What its results say; None: every request succeeded, or was canceled if a cancel came in time."""
    canceled_at: datetime | None = None
    """When it was first canceled; None, too, where that came after its end."""
    deleted: bool = False

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
    """Implements `llmrouter.ports.BatchApi`. What goes wrong is decided by functions a test may set.

    Batches of somebody else are `Posted`s that a test puts into `posted`.
    """

    clock: Clock
    ahead: timedelta = timedelta(0)
    """How far the API's clock is ahead of the engine's."""
    tells_time: bool = True
    """Whether a `Listing` has its ``listed_at``."""
    credentials: set[str] = field(default_factory=lambda: {"credential-a"})
    posted: list[Posted] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Requests of each create that was tried, the refused ones too."""
    looks: list[set[str]] = field(default_factory=list)
    """What each `describe` was asked for."""
    lists: list[datetime] = field(default_factory=list)
    """The ``since`` of each `listed`."""
    cancels: list[str] = field(default_factory=list)
    """The batches of each `cancel` that was tried."""
    deletes: list[str] = field(default_factory=list)
    """The batches of each `delete` that was tried."""
    reads: int = 0
    """How many times results were read."""
    before_create: Callable[[list[dict[str, Any]]], None] = lambda items: None
    """Called with the requests of a create; what it raises is the answer, and nothing was created."""
    after_create: Callable[[Posted], None] = lambda posted: None
    """Called after a create; what it raises is the answer, though the batch exists."""
    before_describe: Callable[[], None] = lambda: None
    before_list: Callable[[], None] = lambda: None
    before_cancel: Callable[[str], None] = lambda provider_batch_id: None
    after_cancel: Callable[[str], None] = lambda provider_batch_id: None
    """Called after a cancel; what it raises is the answer, though the batch is being canceled."""
    before_delete: Callable[[str], None] = lambda provider_batch_id: None
    after_delete: Callable[[str], None] = lambda provider_batch_id: None
    read: Callable[[Posted, list[ResultLine]], Iterable[ResultLine]] = lambda posted, lines: lines
    """What a reading gives of all lines; may raise at any of them."""
    hidden: set[str] = field(default_factory=set)
    """Batches that `describe` does not name, and that cannot be canceled, deleted or read: 404."""
    unlisted: set[str] = field(default_factory=set)
    """Batches that `listed` leaves out: the list lags behind."""

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
            created_at=self.now(),
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
            if posted.provider_batch_id in wanted.keys() - self.hidden and not posted.deleted
        }

    def listed(self, lane: Lane, since: datetime) -> Listing:
        """See `BatchApi.listed`."""
        self.lists.append(since)
        self.before_list()
        shown = [
            self._described(posted)
            for posted in reversed(self.posted)
            if posted.created_at >= since
            and not posted.deleted
            and posted.provider_batch_id not in self.unlisted
            and _workspace(posted.lane) == _workspace(lane)
        ]
        return Listing(batches=tuple(shown), listed_at=self.now() if self.tells_time else None)

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """See `BatchApi.cancel`. The batch is canceling until the test ends it."""
        self.cancels.append(provider_batch_id)
        self.before_cancel(provider_batch_id)
        posted = self._found(provider_batch_id)
        if posted.ended_at is None and posted.canceled_at is None:
            posted.canceled_at = self.now()
        self.after_cancel(provider_batch_id)

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """See `BatchApi.delete`."""
        self.deletes.append(provider_batch_id)
        self.before_delete(provider_batch_id)
        known = {posted.provider_batch_id: posted for posted in self.posted}
        posted = known.get(provider_batch_id)
        if posted is not None and not posted.deleted:
            if posted.ended_at is None:
                raise _error(anthropic.BadRequestError, 400, "it has not ended")
            posted.deleted = True
        self.after_delete(provider_batch_id)

    def results(self, lane: Lane, provider_batch_id: str) -> Generator[ResultLine]:
        """See `BatchApi.results`."""
        self.reads += 1
        posted = self._found(provider_batch_id)
        kind = "succeeded" if posted.canceled_at is None else "canceled"
        lines = posted.lines if posted.lines is not None else [line(name, kind) for name in posted.custom_ids]
        yield from self.read(posted, lines)

    def end(self, *posted: Posted) -> None:
        """Ends batches: those given, or all."""
        for one in posted or self.posted:
            one.ended_at = self.now()

    def now(self) -> datetime:
        """The present instant by the API's clock."""
        return self.clock.now() + self.ahead

    def _found(self, provider_batch_id: str) -> Posted:
        for posted in self.posted:
            if posted.provider_batch_id == provider_batch_id and not posted.deleted:
                if provider_batch_id in self.hidden:
                    break
                return posted
        raise _error(anthropic.NotFoundError, 404, "not found")

    def _described(self, posted: Posted) -> ProviderBatch:
        status = ProcessingStatus.IN_PROGRESS if posted.canceled_at is None else ProcessingStatus.CANCELING
        return ProviderBatch(
            provider_batch_id=posted.provider_batch_id,
            status=status if posted.ended_at is None else ProcessingStatus.ENDED,
            created_at=posted.created_at,
            expires_at=posted.created_at + _LIFE,
            ended_at=posted.ended_at,
            request_count=len(posted.custom_ids),
        )


def _workspace(lane: Lane) -> tuple[str, str, str | None]:
    return lane.base_url, lane.credential, dict(lane.headers).get("anthropic-workspace-id")


def _error(kind: type[anthropic.APIStatusError], status: int, message: str) -> anthropic.APIStatusError:
    """An error as the SDK raises it."""
    answer = httpx2.Response(status, request=httpx2.Request("GET", "http://api.invalid"))
    return kind(message, response=answer, body=None)
