"""Creates without a clear answer: found by what their results say, given up when nothing may be they."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import BatchState, custom_id
from llmrouter.domain.requests import OutcomeKind
from llmrouter.engine.reconciler import CLOCKS_DIFFER_BY, Reconciler
from llmrouter.errors import LeaseLostError
from support.batch_api import Posted, line
from support.engine import GRACE, LEASE, Bench, allow, lose_answer, unreachable
from support.requests import FOREIGN_LANE, LANE, OTHER_LANE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmrouter.domain.batches import Batch, ResultLine
    from llmrouter.domain.requests import Lane, QueuedRequest

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def doubtful(
    count: int = 2, *, exists: bool, bench: Bench | None = None, **options: Any
) -> tuple[Bench, list[QueuedRequest]]:
    """A batch in doubt, which the API has or has not."""
    bench = bench or Bench()
    requests = bench.enqueue(count, **options)
    hook = "after_create" if exists else "before_create"
    setattr(bench.api, hook, lose_answer)
    bench.flush()
    setattr(bench.api, hook, allow)
    bench.flusher.holds.end(LANE.lane_id)
    assert bench.states()[-1] is BatchState.IN_DOUBT
    return bench, requests


def stranger(bench: Bench, count: int = 2, lane: Lane = LANE, name: str = "other") -> Posted:
    """A batch of somebody else in the workspace, under ids like ours."""
    ids = [custom_id(f"req_{name:z>20.20}{place:03d}", "0123456789") for place in range(count)]
    posted = Posted(
        provider_batch_id=f"msgbatch_{name}_{len(bench.api.posted)}",
        lane=lane,
        custom_ids=ids,
        created_at=bench.api.now(),
    )
    bench.api.posted.append(posted)
    return posted


def candidates(bench: Bench) -> list[tuple[str, ...]]:
    """Of the open batches."""
    return [batch.candidates for batch in bench.store.open_batches()]


def check_paid_once(bench: Bench, requests: Sequence[QueuedRequest]) -> None:
    """Sends whatever waits, ends all, and looks into the books of the API."""
    for _ in range(3):
        bench.flush()
        bench.api.end()
        bench.reconcile(passes=GRACE)
        bench.collect()
        bench.clock.advance(HOUR)
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * len(requests)
    posted = [one for posted in bench.api.posted for one in posted.request_ids]
    assert [posted.count(request.request_id) for request in requests] == [1] * len(requests)


class TestOrphans:
    """Intents of a process that ended."""

    def test_an_intent_without_an_answer_is_in_doubt(self) -> None:
        """Created, perhaps: it is marked with the time, not released, and marked once."""
        bench = Bench()
        bench.enqueue(2)
        bench.claim()
        bench.lease = bench.lose_lease()

        assert bench.reconciler.mark_orphans(bench.lease) == 1
        (batch,) = bench.store.open_batches()
        assert (batch.state, batch.in_doubt_at) == (BatchState.IN_DOUBT, bench.clock.now())
        assert bench.queued_count() == 0
        assert bench.reconciler.mark_orphans(bench.lease) == 0

    def test_an_intent_of_this_lease_is_none_of_its_business(self) -> None:
        """Its create is under way, or is tidied up by who made it."""
        bench = Bench()
        bench.enqueue(2)
        bench.claim()

        assert bench.reconciler.mark_orphans(bench.lease) == 0
        assert bench.reconcile() == 0
        assert bench.states() == [BatchState.CLAIMED]

    def test_a_create_that_is_still_under_way_here_is_left_alone(self) -> None:
        """This process lost the lease and got the next one while it was waiting for the answer."""
        bench = Bench()
        requests = bench.enqueue(2)

        def lose_and_regain(_: Posted) -> None:
            bench.store.release_lease(bench.lease)
            later = bench.store.acquire_lease("tests again", bench.clock.now(), LEASE)
            assert later is not None
            for _ in range(3):
                assert bench.reconciler.run_once(later) == 0
                bench.clock.advance(HOUR)
            assert bench.states() == [BatchState.CLAIMED]
            bench.lease = later

        bench.api.after_create = lose_and_regain
        bench.flush()

        assert bench.states() == [BatchState.IN_FLIGHT]
        check_paid_once(bench, requests)

    def test_a_batch_in_flight_stays_in_flight(self) -> None:
        """It was answered; whoever works now collects it."""
        bench = Bench()
        requests = bench.enqueue(2)
        bench.flush()
        bench.lease = bench.lose_lease()

        assert bench.reconcile() == 0
        bench.api.end()
        assert bench.collect() == 1
        assert len(bench.outcomes(requests)) == 2

    def test_who_lost_the_lease_marks_nothing(self) -> None:
        """The holder of the next one does."""
        bench = Bench()
        bench.enqueue(2)
        bench.claim()
        stale = bench.lose_lease()
        bench.lose_lease()

        with pytest.raises(LeaseLostError):
            bench.reconciler.run_once(stale)
        assert bench.states() == [BatchState.CLAIMED]


class TestNothingThere:
    """The API lists no batch that may be it."""

    def test_it_is_released_after_the_grace_time(self) -> None:
        """Not a second before, and its requests are sent once, as if for the first time."""
        bench, requests = doubtful(exists=False)
        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE - SECOND) == 0
        assert bench.queued_count() == 0

        assert bench.reconcile(passes=SECOND) == 1
        assert bench.queued_count() == 2
        check_paid_once(bench, requests)
        assert {outcome.attempts for outcome in bench.outcomes(requests).values()} == {1}

    def test_the_grace_time_begins_with_the_first_look(self) -> None:
        """Days after the doubt, a process has looked only once: the list may lag behind that."""
        bench, _ = doubtful(exists=False)
        bench.clock.advance(timedelta(days=3))

        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE) == 1

    def test_a_look_that_began_within_the_grace_time_does_not_decide(self) -> None:
        """However long it takes: what it lists may be as old as its beginning."""
        bench, _ = doubtful(exists=False)
        bench.reconcile()
        bench.clock.advance(GRACE - SECOND)
        bench.api.before_list = lambda: bench.clock.advance(HOUR)
        assert bench.reconcile() == 0
        bench.api.before_list = lambda: None

        assert bench.reconcile() == 1

    @pytest.mark.parametrize("by", [timedelta(days=30), timedelta(days=-30)])
    def test_the_grace_time_is_of_the_clock_that_cannot_be_set(self, by: timedelta) -> None:
        """Forward does not shorten it, back does not lengthen it."""
        bench, _ = doubtful(exists=False)
        bench.reconcile()
        bench.clock.set(bench.clock.now() + by)
        bench.api.ahead = -by

        assert bench.reconcile(passes=GRACE - SECOND) == 0
        assert bench.reconcile(passes=SECOND) == 1

    def test_a_list_that_fails_decides_nothing(self) -> None:
        """Not for an hour of it; nor does the time count."""
        bench, requests = doubtful(exists=True)
        bench.api.before_list = unreachable
        for _ in range(60):
            assert bench.reconcile(passes=timedelta(minutes=1)) == 0
        bench.api.before_list = lambda: None
        bench.api.unlisted = {"msgbatch_0"}
        assert bench.reconcile() == 0
        bench.api.unlisted = set()
        bench.reconcile(passes=GRACE)

        assert bench.states() == [BatchState.IN_DOUBT]
        check_paid_once(bench, requests)

    def test_a_restart_begins_the_grace_time_anew(self) -> None:
        """What another process has seen is not known."""
        bench, _ = doubtful(exists=False)
        bench.reconcile()
        bench.clock.advance(GRACE - SECOND)
        bench.restart()
        bench.lease = bench.hand_over()

        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE - SECOND) == 0
        assert bench.reconcile(passes=SECOND) == 1

    def test_without_the_lease_nothing_is_released(self) -> None:
        """Another process may have adopted it."""
        bench, _ = doubtful(exists=False)
        bench.reconcile()
        bench.hand_over()

        with pytest.raises(LeaseLostError):
            bench.reconcile(passes=GRACE)
        assert bench.states() == [BatchState.IN_DOUBT]

    def test_nothing_in_doubt_asks_the_api_nothing(self) -> None:
        """Nor does a lane that this process does not hold."""
        bench = Bench()
        bench.enqueue(2)
        bench.flush()
        bench.enqueue(2, lane=FOREIGN_LANE)
        bench.lease, stale = bench.hand_over(), bench.lease
        bench.reconcile()
        assert stale.fence < bench.lease.fence
        assert bench.api.lists == []

    def test_a_doubt_of_another_credential_waits(self) -> None:
        """Whatever time passes; it is decided by a process that can ask."""
        bench, _ = doubtful(exists=False)
        bench.api.credentials.clear()
        for _ in range(3):
            assert bench.reconcile(passes=HOUR) == 0
        assert bench.api.lists == []
        bench.api.credentials.add(LANE.credential)
        bench.reconcile()

        assert bench.reconcile(passes=GRACE) == 1


class TestOneThere:
    """The API lists a batch of the same size that this store does not know."""

    def test_a_batch_that_runs_is_waited_for(self) -> None:
        """It may be it: it is named, and neither polled, nor sent again, for as long as it takes."""
        bench, requests = doubtful(exists=True)
        for _ in range(30):
            assert bench.reconcile(passes=HOUR) == 0
        assert candidates(bench) == [("msgbatch_0",)]
        assert bench.flush() == bench.collect() == 0

        check_paid_once(bench, requests)

    def test_a_batch_whose_results_carry_the_nonce_is_adopted(self) -> None:
        """With what the API says of it; then it is collected like any other."""
        bench, requests = doubtful(exists=True)
        bench.reconcile()
        bench.api.end()

        assert bench.reconcile() == 1
        (batch,) = bench.store.open_batches()
        assert (batch.state, batch.provider_batch_id, batch.candidates) == (
            BatchState.IN_FLIGHT,
            "msgbatch_0",
            (),
        )
        assert batch.created_at == bench.api.posted[0].created_at
        assert bench.collect() == 1
        assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2
        assert len(bench.api.posted) == 1

    def test_a_batch_that_ended_before_the_first_look_is_adopted_by_it(self) -> None:
        """However long ago that was."""
        bench, requests = doubtful(exists=True)
        bench.api.end()
        bench.clock.advance(timedelta(days=20))

        assert bench.reconcile() == 1
        check_paid_once(bench, requests)

    def test_a_list_that_lags_behind_is_waited_for(self) -> None:
        """Within the grace time."""
        bench, requests = doubtful(exists=True)
        bench.api.unlisted = {"msgbatch_0"}
        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE - SECOND) == 0
        bench.api.unlisted = set()
        assert bench.reconcile(passes=SECOND) == 0
        assert candidates(bench) == [("msgbatch_0",)]

        check_paid_once(bench, requests)

    def test_a_batch_that_is_somebody_elses_is_never_adopted(self) -> None:
        """Its results carry another nonce: this one was not created, and is released."""
        bench, requests = doubtful(exists=False)
        other = stranger(bench)
        for _ in range(5):
            assert bench.reconcile(passes=HOUR) == 0
        bench.api.end(other)

        assert bench.reconcile(passes=MINUTE) == 1
        assert bench.queued_count() == 2
        assert bench.api.cancels == bench.api.deletes == []
        check_paid_once(bench, requests)

    def test_a_disproof_at_the_first_look_does_not_shorten_the_grace_time(self) -> None:
        """The right one may not be listed yet."""
        bench, requests = doubtful(exists=True)
        bench.api.unlisted = {"msgbatch_0"}
        bench.api.end(stranger(bench))

        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE - SECOND) == 0
        bench.api.unlisted = set()
        check_paid_once(bench, requests)

    def test_a_candidate_that_vanishes_is_waited_for_a_grace_time(self) -> None:
        """Its owner deleted it, or the list lags behind."""
        bench, _ = doubtful(exists=False)
        other = stranger(bench)
        bench.reconcile(passes=HOUR)
        other.deleted = True

        assert bench.reconcile() == 0
        assert bench.reconcile(passes=GRACE - SECOND) == 0
        assert candidates(bench) == [()]
        assert bench.reconcile(passes=SECOND) == 1

    def test_a_candidate_that_vanishes_for_a_moment_is_still_one(self) -> None:
        """Also when another one is disproven in that moment."""
        bench, requests = doubtful(exists=True)
        other = stranger(bench)
        bench.reconcile()
        bench.reconcile(passes=HOUR)
        bench.api.unlisted = {"msgbatch_0"}
        bench.api.end(other)
        assert bench.reconcile(passes=MINUTE) == 0
        assert bench.reconcile() == 0
        bench.api.unlisted = set()

        check_paid_once(bench, requests)

    @pytest.mark.parametrize("cut", ["unreadable", "cut before the first line"])
    def test_results_that_cannot_be_read_decide_nothing(self, cut: str) -> None:
        """For as long as that lasts."""
        bench, requests = doubtful(exists=True)
        bench.api.end()

        def read(_: Posted, lines: Sequence[ResultLine]) -> Iterator[ResultLine]:
            if cut == "unreadable":
                unreachable()
            yield from lines[:0]

        bench.api.read = read
        for _ in range(10):
            assert bench.reconcile(passes=HOUR) == 0
        assert bench.states() == [BatchState.IN_DOUBT]
        bench.api.read = lambda _, lines: lines

        check_paid_once(bench, requests)

    def test_a_batch_of_another_size_is_no_candidate(self) -> None:
        """Nor one of another workspace, nor one from before the claim."""
        bench = Bench()
        early = stranger(bench, 2, name="early")
        bench.clock.advance(CLOCKS_DIFFER_BY + SECOND)
        doubtful(exists=False, bench=bench)
        others = [stranger(bench, 1), stranger(bench, 3), stranger(bench, 2, lane=FOREIGN_LANE)]
        bench.api.end(early, *others)
        bench.reconcile()

        assert candidates(bench) == [()]
        assert bench.api.reads == 0
        assert bench.reconcile(passes=GRACE) == 1

    def test_a_batch_created_long_after_the_doubt_is_no_candidate(self) -> None:
        """Somebody else's batches of the same size, day after day, do not keep it waiting."""
        bench, _ = doubtful(exists=False)
        bench.reconcile()
        bench.clock.advance(CLOCKS_DIFFER_BY + GRACE + SECOND)
        stranger(bench)

        assert bench.reconcile() == 1

    @pytest.mark.parametrize("closed", [True, False])
    def test_batches_that_the_store_knows_are_no_candidates(self, closed: bool) -> None:
        """In flight or long collected."""
        bench = Bench()
        bench.enqueue(2)
        bench.flush()
        if closed:
            bench.api.end()
            bench.collect()
            bench.restart()
        reads = bench.api.reads
        doubtful(exists=False, bench=bench)
        bench.reconcile()

        assert candidates(bench)[-1] == ()
        assert bench.reconcile(passes=GRACE) == 1
        assert bench.api.reads == reads

    def test_a_create_that_is_answered_after_all_settles_the_doubt(self) -> None:
        """By the process that had it under way; nothing is read for it."""
        bench = Bench()
        requests = bench.enqueue(2)
        other = bench.another_reconciler()

        def take_over(_: Posted) -> None:
            bench.lease = bench.hand_over()
            other.run_once(bench.lease)
            assert bench.states() == [BatchState.IN_DOUBT]

        bench.api.after_create = take_over
        bench.flush()
        assert bench.states() == [BatchState.IN_FLIGHT]
        bench.api.end()
        assert other.run_once(bench.lease) == 0

        check_paid_once(bench, requests)


class TestMany:
    """Several doubts, several candidates."""

    def test_two_doubts_and_one_batch(self) -> None:
        """It is one's, and the other was not created: its results say which."""
        bench, first = doubtful(exists=False)
        _, second = doubtful(exists=True, bench=bench)
        bench.reconcile()
        assert candidates(bench) == [("msgbatch_0",)] * 2
        assert bench.reconcile(passes=HOUR) == 0
        bench.api.end()

        assert bench.reconcile(passes=MINUTE) == 2
        assert bench.queued_count() == 2
        assert [batch.provider_batch_id for batch in bench.store.open_batches()] == ["msgbatch_0"]
        check_paid_once(bench, [*first, *second])

    def test_two_doubts_and_two_batches(self) -> None:
        """Each gets its own, whichever ends first."""
        bench, first = doubtful(exists=True)
        _, second = doubtful(exists=True, bench=bench)
        bench.reconcile()
        bench.api.end(bench.api.posted[1])
        assert bench.reconcile() == 1
        found = {batch.batch_id: batch.provider_batch_id for batch in bench.store.open_batches()}
        assert list(found.values()) == [None, "msgbatch_1"]
        assert candidates(bench)[0] == ("msgbatch_0",)

        check_paid_once(bench, [*first, *second])

    def test_one_doubt_and_several_batches(self) -> None:
        """All of them are waited for; one of them is it."""
        bench = Bench()
        before = stranger(bench, name="before")
        _, requests = doubtful(exists=True, bench=bench)
        after = stranger(bench, name="after")
        bench.reconcile()
        assert set(candidates(bench)[0]) == {one.provider_batch_id for one in bench.api.posted}
        bench.api.end(before, after)
        assert bench.reconcile() == 0
        assert candidates(bench) == [("msgbatch_1",)]

        check_paid_once(bench, requests)
        assert bench.api.cancels == []

    def test_two_lanes_of_one_workspace_share_a_look(self) -> None:
        """A list shows batches whatever their betas."""
        bench, first = doubtful(exists=True)
        _, second = doubtful(exists=True, bench=bench, lane=OTHER_LANE)
        bench.reconcile()
        assert len(bench.api.lists) == 1

        check_paid_once(bench, [*first, *second])

    def test_a_hundred_doubts_of_one_size_need_few_calls(self) -> None:
        """One list call a look, and one reading a batch at most."""
        bench = Bench(max_requests=2)
        requests: list[QueuedRequest] = []
        for number in range(100):
            requests += doubtful(exists=number % 3 > 0, bench=bench)[1]
        bench.api.end()
        assert bench.reconcile() == 66
        assert bench.reconcile(passes=GRACE) == 34

        assert len(bench.api.lists) == 2
        assert bench.api.reads == 66
        check_paid_once(bench, requests)

    def test_long_waits_are_looked_at_less_often(self) -> None:
        """Every time within the grace time, every minute after half an hour."""
        bench, _ = doubtful(exists=True)
        for _ in range(24):
            bench.reconcile(passes=timedelta(seconds=5))
        assert len(bench.api.lists) == 24
        bench.clock.advance(HOUR)
        looks = len(bench.api.lists)
        for _ in range(120):
            bench.reconcile(passes=timedelta(seconds=5))

        assert len(bench.api.lists) - looks == 10

    def test_one_workspace_that_cannot_be_asked_does_not_stop_the_other(self) -> None:
        """Each is asked on its own."""
        bench, _ = doubtful(exists=False)
        bench.api.credentials.add(FOREIGN_LANE.credential)
        doubtful(exists=False, bench=bench, lane=FOREIGN_LANE)
        calls = iter([unreachable, allow, unreachable, allow])
        bench.api.before_list = lambda: next(calls)(None)
        bench.reconcile()

        assert bench.reconcile(passes=GRACE) == 1


class TestClocks:
    """The machine's clock and the API's are two."""

    @pytest.mark.parametrize("hours", [-48, -2, 2, 48])
    def test_a_clock_that_is_wrong_by_hours_hides_no_batch(self, hours: int) -> None:
        """The API says what time it is there."""
        bench = Bench()
        bench.api.ahead = timedelta(hours=hours)
        _, requests = doubtful(exists=True, bench=bench)
        bench.reconcile()
        assert candidates(bench) == [("msgbatch_0",)]

        check_paid_once(bench, requests)

    @pytest.mark.parametrize("minutes", [-9, 9])
    def test_a_clock_that_is_a_little_wrong_hides_no_batch_where_the_api_does_not_say(
        self, minutes: int
    ) -> None:
        """Ten minutes are allowed for."""
        bench = Bench()
        bench.api.ahead, bench.api.tells_time = timedelta(minutes=minutes), False
        _, requests = doubtful(exists=True, bench=bench)
        bench.reconcile()
        assert candidates(bench) == [("msgbatch_0",)]

        check_paid_once(bench, requests)

    @pytest.mark.parametrize("restarted", [False, True])
    @pytest.mark.parametrize("wrong", [-48, -2, 2, 48], ids=lambda hours: f"wrong {hours}")
    @pytest.mark.parametrize("then", [-48, -2, 0, 2, 48], ids=lambda hours: f"then {hours}")
    def test_a_clock_that_is_set_between_claim_and_look_hides_no_batch(
        self, wrong: int, then: int, restarted: bool
    ) -> None:
        """Wrong by some hours at the claim, by others or right when the API is asked."""
        bench = Bench()
        bench.clock.set(bench.clock.now() + timedelta(hours=wrong))
        bench.api.ahead = timedelta(hours=-wrong)
        bench.reconcile()
        _, requests = doubtful(exists=True, bench=bench)
        bench.clock.set(bench.clock.now() + timedelta(hours=then - wrong))
        bench.api.ahead = timedelta(hours=-then)
        if restarted:
            bench.restart()
        bench.reconcile()
        assert candidates(bench) == [("msgbatch_0",)]

        check_paid_once(bench, requests)

    def test_an_orphan_found_by_a_clock_that_was_set_is_found(self) -> None:
        """A machine that starts with a clock far behind, dies, and starts again with the right one."""
        bench = Bench()
        bench.api.ahead = timedelta(days=90)
        requests = bench.enqueue(2)
        batch: list[Batch] = []

        def die(_: Posted) -> None:
            batch.extend(bench.store.open_batches())
            raise KeyboardInterrupt

        bench.api.after_create = die
        with pytest.raises(KeyboardInterrupt):
            bench.flush()
        bench.api.after_create = allow
        bench.lease = bench.hand_over()
        bench.store.update_batch(bench.lease, batch[0])
        bench.clock.set(bench.api.now())
        bench.api.ahead = timedelta(0)
        bench.restart()
        bench.reconcile(passes=timedelta(minutes=5))
        assert candidates(bench) == [("msgbatch_0",)]

        check_paid_once(bench, requests)


class TestRestarts:
    """A process ends in the middle of it."""

    @pytest.mark.parametrize("exists", [True, False])
    @pytest.mark.parametrize("looks", [0, 1, 3])
    def test_the_next_process_goes_on(self, looks: int, exists: bool) -> None:
        """With nothing but what is in the store."""
        bench, requests = doubtful(exists=exists)
        other = stranger(bench)
        for _ in range(looks):
            bench.reconcile(passes=timedelta(seconds=40))
        bench.restart()
        bench.lease = bench.hand_over()
        bench.reconcile()
        bench.api.end(other)
        bench.reconcile()

        assert bench.states() == [BatchState.IN_DOUBT]
        check_paid_once(bench, requests)

    def test_an_adoption_that_was_not_collected_is_collected_later(self) -> None:
        """It is a batch in flight like any other."""
        bench, requests = doubtful(exists=True)
        bench.api.end()
        bench.reconcile()
        bench.restart()
        bench.lease = bench.hand_over()

        assert bench.reconcile() == 0
        check_paid_once(bench, requests)


def test_a_line_that_nobody_knows_does_not_disown_a_batch() -> None:
    """Results come in any order; the first one is of another claim, the others are ours."""
    bench, requests = doubtful(3, exists=True)
    (posted,) = bench.api.posted
    posted.lines = [line("req_unknown-0123456789"), *(line(name) for name in posted.custom_ids)]
    bench.api.end(posted)

    bench.reconcile(passes=GRACE * 2)
    bench.reconcile(passes=GRACE * 2)
    assert bench.states() == [BatchState.IN_FLIGHT]
    bench.collect()
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 3
    assert len(bench.api.posted) == 1


def test_results_that_are_cut_disown_nothing() -> None:
    """Only the unknown line came through: the rest is waited for."""
    bench, _ = doubtful(3, exists=True)
    (posted,) = bench.api.posted
    posted.lines = [line("req_unknown-0123456789")]
    bench.api.end(posted)

    for _ in range(3):
        bench.reconcile(passes=GRACE * 2)
    assert bench.states() == [BatchState.IN_DOUBT]
    posted.lines = None
    bench.reconcile(passes=HOUR)
    assert bench.states() == [BatchState.IN_FLIGHT]


def test_a_batch_of_somebody_else_that_lacks_a_line_is_not_waited_for() -> None:
    """Its results will never be whole; after some readings they say whose it is all the same."""
    bench, requests = doubtful(3, exists=False)
    other = stranger(bench, 3)
    other.lines = [line(name) for name in other.custom_ids[:2]]
    bench.api.end(other)

    for _ in range(12):
        bench.reconcile(passes=HOUR)
    assert bench.states() == []
    check_paid_once(bench, requests)


def test_a_doubt_whose_create_is_still_waited_for_here_is_left_alone() -> None:
    """Another process put it in doubt and ended; the lease is back, and the list lags behind."""
    bench, _ = doubtful(2, exists=True)
    bench.api.unlisted.add(bench.api.posted[0].provider_batch_id)
    (batch,) = bench.store.open_batches()
    waiting = Reconciler(bench.store, bench.api, bench.clock, grace=GRACE, under_way=lambda: {batch.batch_id})

    for _ in range(4):
        waiting.run_once(bench.lease)
        bench.clock.advance(GRACE)
    assert bench.states() == [BatchState.IN_DOUBT]


def test_a_young_doubt_with_an_old_claim_is_no_old_doubt() -> None:
    """The machine's clock was two months behind at the claim, and was set right since."""
    bench = Bench()
    right = bench.clock.now()
    bench.clock.set(right - timedelta(days=60))
    bench.api.ahead = timedelta(days=60)
    bench, requests = doubtful(2, exists=False, bench=bench)
    bench.reconciler.note_clock()
    bench.clock.set(right)
    bench.api.ahead = timedelta(0)

    for _ in range(4):
        bench.reconcile(passes=GRACE)
    assert bench.states() == []
    assert bench.queued_count() == 2
    check_paid_once(bench, requests)


def test_a_clock_that_is_months_behind_makes_no_old_doubts() -> None:
    """It always was, and still is: the doubt is minutes old."""
    bench = Bench()
    bench.api.ahead = timedelta(days=90)
    bench, requests = doubtful(2, exists=False, bench=bench)

    for _ in range(4):
        bench.reconcile(passes=GRACE)
    assert (bench.states(), bench.queued_count()) == ([], 2)
    check_paid_once(bench, requests)


def test_an_old_doubt_that_is_listed_but_cannot_be_read_ends() -> None:
    """Its results are gone after a month, and will not come back."""
    bench, requests = doubtful(2, exists=True)
    bench.api.end()
    bench.api.read = lambda _, __: ()
    bench.clock.advance(timedelta(days=31))

    for _ in range(4):
        bench.reconcile(passes=GRACE)
    assert bench.states() == []
    assert bench.kinds(requests) == [OutcomeKind.ERRORED] * 2


def test_a_doubt_that_is_older_than_what_the_api_keeps_is_not_sent_again() -> None:
    """The machine was off for a month: the batch may have been paid for, and nobody can tell."""
    bench, requests = doubtful(2, exists=True)
    bench.api.posted[0].deleted = True
    bench.clock.advance(timedelta(days=31))

    for _ in range(3):
        bench.reconcile(passes=GRACE)
    assert bench.states() == []
    assert bench.kinds(requests) == [OutcomeKind.ERRORED] * 2
    assert bench.queued_count() == 0
