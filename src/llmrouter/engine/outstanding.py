"""What is outstanding, as the blocks of `llmrouter.domain.escalation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Block, BlockKind, Hold
from llmrouter.domain.rates import Work

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Cohort, Lane, Waiting
    from llmrouter.engine.budget import Budget
    from llmrouter.engine.pace import Pace
    from llmrouter.engine.sender import Sender
    from llmrouter.ports import LiveApi, Store

_BYTES_PER_TOKEN = 4
"""Of a request's JSON: a rough measure of its input, where nothing better is known."""

_FLYING = {
    BatchState.IN_FLIGHT: BlockKind.IN_FLIGHT,
    # Nobody can cancel what may not exist: it is waited for as long as can be.
    BatchState.IN_DOUBT: BlockKind.CANCELING,
    BatchState.CLAIMED: BlockKind.CANCELING,
    BatchState.ESCALATING: BlockKind.LIVE,
}


@dataclass(frozen=True, slots=True)
class Lot:
    """A block, and what stands behind it: a batch, or a cohort of the backlog."""

    block: Block
    latency: str
    model: str
    batch: Batch | None = None
    waiting: Waiting | None = None
    cohort: Cohort | None = None


class Outstanding:
    """Looks at the store, and at what is known of its work."""

    def __init__(
        self,
        store: Store,
        api: LiveApi,
        pace: Pace,
        budget: Budget,
        sender: Sender,
        *,
        classes: Mapping[str, LatencyClass],
        window: timedelta,
    ) -> None:
        """Makes one.

        Args:
            store: What is outstanding.
            api: Says what can go live.
            pace: Knows how many tokens usual requests take.
            budget: Says which classes may cost nothing more.
            sender: Knows what is left of what goes live.
            classes: The latency classes by name.
            window: Taken for batches of a class that is gone.
        """
        self._store = store
        self._api = api
        self._pace = pace
        self._budget = budget
        self._sender = sender
        self._classes = classes
        self._unknown_window = window

    def batches(self) -> list[Batch]:
        """The open batches whose credential this process holds."""
        return [batch for batch in self._store.open_batches() if self._api.serves(batch.lane)]

    def waiting(self) -> list[Waiting]:
        """The backlog that may leave: what is paused stays where it is."""
        paused = self._store.paused()
        return [
            line
            for line in self._store.waiting()
            if line.latency not in paused and self._api.serves(line.lane)
        ]

    def lots(self, batches: Sequence[Batch], waiting: Sequence[Waiting]) -> dict[str, Lot]:
        """All of it by the names of its blocks."""
        lots = [*self._flying_lots(batches), *self._waiting_lots(waiting)]
        return {lot.block.block_id: lot for lot in lots}

    def _flying_lots(self, batches: Sequence[Batch]) -> Iterator[Lot]:
        for batch in batches:
            if batch.state is not BatchState.ESCALATING and (batch.escalated_at or batch.cancel_wanted):
                continue  # Its requests are in another one by now, or nobody wants them any more.
            kind = _FLYING[batch.state]
            if kind is BlockKind.IN_FLIGHT and (batch.recalled_at or batch.cancel_asked_at):
                kind = BlockKind.CANCELING
            window = batch.window or self._window(batch.latency)
            count = self._sender.left(batch.batch_id)
            share = 1.0 if count is None else count / max(1, batch.request_count)
            block = Block(
                block_id=batch.batch_id,
                kind=kind,
                work=self._work(batch.model, batch.request_count * share, batch.body_bytes * share),
                deadline_at=batch.deadline_at or batch.claimed_at + window,
                window=window,
                hold=self._hold(batch.lane, batch.latency),
            )
            yield Lot(block, batch.latency, batch.model, batch=batch)

    def _waiting_lots(self, waiting: Sequence[Waiting]) -> Iterator[Lot]:
        for line in waiting:
            hold = self._hold(line.lane, line.latency)
            for cohort in line.cohorts:
                # Not by its end, which moves with each request that comes.
                name = f"{line.lane.lane_id}/{line.latency}/{line.model}/{cohort.deadline_at.isoformat()}"
                block = Block(
                    block_id=name,
                    kind=BlockKind.WAITING,
                    work=self._work(line.model, cohort.request_count, cohort.body_bytes),
                    deadline_at=cohort.deadline_at,
                    window=cohort.window,
                    hold=hold,
                )
                yield Lot(block, line.latency, line.model, waiting=line, cohort=cohort)

    def _window(self, latency: str) -> timedelta:
        known = self._classes.get(latency)
        return known.deadline if known else self._unknown_window

    def _work(self, model: str, count: float, body_bytes: float) -> Work:
        return Work(
            requests=count,
            input_tokens=body_bytes / _BYTES_PER_TOKEN,
            output_tokens=count * self._pace.usual(model).output_tokens,
        )

    def _hold(self, lane: Lane, latency: str) -> Hold | None:
        if not self._api.carries(lane):
            return Hold.BATCH_ONLY
        return self._sender.lane_hold(lane.lane_id) or (
            Hold.BUDGET if self._budget.is_used_up(latency) else None
        )
