"""What is outstanding, as blocks: once each, with what would have to be sent live now."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import BlockKind, Hold
from llmrouter.engine.outstanding import Lot, Outstanding
from support.engine import Bench, lose_answer
from support.requests import DAILY, FOREIGN_LANE, LANE

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SHORT = timedelta(minutes=10)


def lots(bench: Bench) -> list[Lot]:
    """What is outstanding."""
    outstanding = Outstanding(
        bench.store,
        bench.live,
        bench.pace,
        bench.budget,
        bench.sender,
        classes={"daily": DAILY},
        window=2 * HOUR,
    )
    return list(outstanding.lots(outstanding.batches(), outstanding.waiting()).values())


def kinds(bench: Bench) -> list[BlockKind]:
    """Where it is."""
    return [lot.block.kind for lot in lots(bench)]


def test_a_backlog_is_a_block_for_each_of_its_cohorts() -> None:
    """With the deadline and the window of the earliest request."""
    bench = Bench()
    bench.accept(3, DAY)
    bench.accept(2, HOUR)
    first, second = sorted(lots(bench), key=lambda lot: lot.block.deadline_at)

    assert [lot.block.work.requests for lot in (first, second)] == [2, 3]
    assert (first.block.window, first.block.deadline_at) == (HOUR, bench.clock.now() + HOUR)
    assert first.block.work.input_tokens > 0
    assert {lot.block.kind for lot in (first, second)} == {BlockKind.WAITING}


def test_a_block_keeps_its_name_while_requests_come() -> None:
    """Else it would be told of again and again."""
    bench = Bench()
    bench.accept(1, DAY)
    before = [lot.block.block_id for lot in lots(bench)]
    bench.clock.advance(timedelta(seconds=30))
    bench.accept(1, DAY)

    assert [lot.block.block_id for lot in lots(bench)] == before
    assert lots(bench)[0].block.work.requests == 2


def test_a_batch_is_where_its_state_says() -> None:
    """One that is to be canceled is being canceled, one in doubt is waited for likewise."""
    bench = Bench()
    (request,) = bench.accept(1, HOUR)
    bench.flush()
    assert kinds(bench) == [BlockKind.IN_FLIGHT]
    bench.clock.advance(timedelta(minutes=51))
    bench.escalate()
    assert kinds(bench) == [BlockKind.CANCELING]
    bench.clock.advance(timedelta(minutes=5))
    bench.escalate()

    assert bench.states() == [BatchState.IN_FLIGHT, BatchState.ESCALATING]
    assert kinds(bench) == [BlockKind.LIVE], "each request once"
    assert lots(bench)[0].block.deadline_at == request.deadline_at


@pytest.mark.parametrize("claimed", [True, False])
def test_what_may_not_exist_cannot_be_canceled(claimed: bool) -> None:
    """A create that is under way, or that has no clear answer."""
    bench = Bench()
    bench.accept(1, HOUR)
    if claimed:
        bench.claim()
    else:
        bench.api.after_create = lose_answer
        bench.flush()

    assert kinds(bench) == [BlockKind.CANCELING]


def test_what_goes_live_is_what_has_no_answer_yet() -> None:
    """Not what it was at first."""
    bench = Bench(concurrency=1)
    bench.accept(4, SHORT)
    bench.escalate()
    bench.send(2)
    (lot,) = lots(bench)

    assert bench.live.began
    assert lot.block.work.requests == 4 - (len(bench.live.began) - 1)


def test_what_nobody_wants_any_more_is_no_block() -> None:
    """Its batch is canceled anyway."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    bench.flush()
    bench.store.cancel([one.request_id for one in requests], bench.clock.now(), in_batches=True)

    assert lots(bench) == []


def test_paused_classes_and_other_credentials_are_left_out() -> None:
    """What waits; a batch of a paused class goes on."""
    bench = Bench()
    bench.accept(1, HOUR)
    bench.flush()
    bench.accept(1, HOUR, lane=FOREIGN_LANE)
    bench.accept(1, DAY)
    bench.store.pause("daily", bench.clock.now())

    assert kinds(bench) == [BlockKind.IN_FLIGHT]


@pytest.mark.parametrize("hold", [Hold.BATCH_ONLY, Hold.BUDGET])
def test_a_block_says_what_holds_it(hold: Hold) -> None:
    """Waiting or flying."""
    bench = Bench(by_class={"daily": Decimal(0)} if hold is Hold.BUDGET else {})
    if hold is Hold.BATCH_ONLY:
        bench.live.batch_only.add(LANE.lane_id)
    bench.accept(1, HOUR)
    bench.flush()
    bench.accept(1, HOUR)

    assert [lot.block.hold for lot in lots(bench)] == [hold, hold]
