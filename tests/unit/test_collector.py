"""Open batches looked after: every outcome there is, and results that are cut, late or odd."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from llmrouter.domain.batches import Answer, BatchState, ResultLine
from llmrouter.domain.requests import OutcomeKind
from llmrouter.engine import collector as collecting
from llmrouter.errors import LeaseLostError, StoreBusyError
from llmrouter.stores.memory import MemoryStore
from support.batch_api import line
from support.engine import Bench, allow, unreachable
from support.requests import LANE, OTHER_LANE
from support.stores import FailingStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llmrouter.domain.batches import Settled
    from llmrouter.domain.requests import QueuedRequest
    from llmrouter.ports import Lease
    from support.batch_api import Posted


def api_error() -> anthropic.APIError:
    """The API could not be asked."""
    return anthropic.APIConnectionError(request=httpx2.Request("GET", "http://api"))


def in_flight(count: int = 3, **options: Any) -> tuple[Bench, list[QueuedRequest]]:
    """A bench with one batch of so many requests at the API."""
    bench = Bench(**options)
    requests = bench.enqueue(count)
    bench.flush()
    return bench, requests


def end_with(bench: Bench, *lines: ResultLine) -> None:
    """Ends the last batch with these lines."""
    bench.api.posted[-1].lines = list(lines)
    bench.api.end(bench.api.posted[-1])


def hours_of_looks(bench: Bench, hours: float) -> None:
    """Polls every ten minutes for so long."""
    for _ in range(round(hours * 6)):
        bench.collect()
        bench.clock.advance(timedelta(minutes=10))


def test_a_running_batch_is_left_alone() -> None:
    """It is looked at, and nothing more."""
    bench, requests = in_flight()

    assert bench.collect() == 0
    assert bench.api.reads == 0
    assert bench.kinds(requests) == [None] * 3


def test_an_ended_batch_is_read_settled_and_closed() -> None:
    """Each outcome with the line as it came, the batch it came from, and when."""
    bench, requests = in_flight()
    (batch,) = bench.store.open_batches()
    bench.clock.advance(timedelta(minutes=7))
    bench.api.end()

    assert bench.collect() == 1
    assert bench.store.open_batches() == []
    for name, (request_id, outcome) in zip(
        bench.api.posted[0].custom_ids, bench.outcomes(requests).items(), strict=True
    ):
        assert (outcome.request_id, outcome.kind) == (request_id, OutcomeKind.SUCCEEDED)
        assert outcome.raw == line(name).raw
        assert (outcome.attempts, outcome.batch_id) == (1, batch.batch_id)
        assert (outcome.accepted_at, outcome.settled_at) == (requests[0].accepted_at, bench.clock.now())
    assert bench.collect() == 0
    assert bench.api.reads == 1


def test_results_may_come_in_any_order() -> None:
    """The custom_id says whose they are."""
    bench, requests = in_flight(5)
    names = bench.api.posted[0].custom_ids
    end_with(bench, *(line(name) for name in reversed(names)))
    bench.collect()

    raws = [bench.outcomes(requests)[request.request_id].raw for request in requests]
    assert raws == [line(name).raw for name in names]


@pytest.mark.parametrize(
    "error_type",
    [
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "billing_error",
        "not_found_error",
        "request_too_large",
        "an_error_of_tomorrow",
        None,
    ],
)
def test_an_error_that_does_not_pass_is_the_outcome_at_once(error_type: str) -> None:
    """Sending it again would only cost time."""
    bench, requests = in_flight(1)
    end_with(bench, line(bench.api.posted[0].custom_ids[0], "errored", error_type))
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.ERRORED]
    assert bench.queued_count() == 0


@pytest.mark.parametrize(
    ("kind", "error_type"),
    [
        ("expired", None),
        ("canceled", None),
        ("errored", "api_error"),
        ("errored", "overloaded_error"),
        ("errored", "rate_limit_error"),
        ("errored", "timeout_error"),
    ],
)
def test_what_passes_is_sent_again_up_to_max_attempts(kind: str, error_type: str | None) -> None:
    """Then what the API said last is the outcome."""
    bench, requests = in_flight(1, max_attempts=3)
    for attempt in range(3):
        assert bench.kinds(requests) == [None]
        end_with(bench, line(bench.api.posted[attempt].custom_ids[0], kind, error_type))
        assert bench.collect() == 1
        bench.flush()

    (outcome,) = bench.outcomes(requests).values()
    assert (outcome.kind.value, outcome.attempts) == (kind, 3)
    assert outcome.raw == line(bench.api.posted[2].custom_ids[0], kind, error_type).raw
    assert len(bench.api.posted) == 3
    assert bench.queued_count() == 0


def test_one_attempt_allows_no_second_one() -> None:
    """`max_attempts=1`: every ending is final."""
    bench, requests = in_flight(1, max_attempts=1)
    end_with(bench, line(bench.api.posted[0].custom_ids[0], "expired"))
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.EXPIRED]


def test_a_second_attempt_that_succeeds_counts_both() -> None:
    """The outcome says how many batches it took."""
    bench, requests = in_flight(1)
    end_with(bench, line(bench.api.posted[0].custom_ids[0], "errored", "overloaded_error"))
    bench.collect()
    bench.flush()
    bench.api.end()
    bench.collect()

    (outcome,) = bench.outcomes(requests).values()
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.SUCCEEDED, 2)


def test_only_what_failed_is_sent_again() -> None:
    """The others are settled and paid."""
    bench, requests = in_flight(3)
    first, second, third = bench.api.posted[0].custom_ids
    end_with(
        bench, line(first), line(second, "errored", "api_error"), line(third, "errored", "billing_error")
    )
    bench.collect()
    bench.flush()

    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED, None, OutcomeKind.ERRORED]
    assert bench.api.posted[1].request_ids == [requests[1].request_id]


def test_a_kind_that_this_version_does_not_know_is_an_error() -> None:
    """Kept with its line; not sent again, since it may have been paid."""
    bench, requests = in_flight(1)
    end_with(bench, line(bench.api.posted[0].custom_ids[0], "postponed"))
    bench.collect()

    (outcome,) = bench.outcomes(requests).values()
    assert outcome.kind is OutcomeKind.ERRORED
    assert b"postponed" in outcome.raw


def test_results_that_are_cut_are_read_again() -> None:
    """What came is settled, the rest comes with the next reading, and nothing is sent again."""
    bench, requests = in_flight(5)
    bench.api.end()
    bench.api.read = lambda _, lines: lines[:2]
    assert bench.collect() == 0
    assert bench.kinds(requests).count(OutcomeKind.SUCCEEDED) == 2

    bench.api.read = lambda _, lines: lines
    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 5
    assert len(bench.api.posted) == 1
    assert bench.queued_count() == 0


def test_what_stays_missing_is_sent_again() -> None:
    """After hours only, however many lines there are: some may be of others, or come twice."""
    bench, requests = in_flight(3)
    first, _, third = bench.api.posted[0].custom_ids
    end_with(bench, line(first), line(third), line(third), line("of-nobody"))

    assert [bench.collect() for _ in range(10)] == [0] * 10
    assert bench.queued_count() == 0
    hours_of_looks(bench, 6.2)
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED, None, OutcomeKind.SUCCEEDED]
    bench.flush()
    assert bench.api.posted[1].request_ids == [requests[1].request_id]


def test_results_that_are_short_time_after_time_are_not_paid_twice() -> None:
    """Fewer lines than requests: cut, by a proxy perhaps. Only hours of it make the rest missing."""
    bench, requests = in_flight(3)
    first, _, third = bench.api.posted[0].custom_ids
    end_with(bench, line(first), line(third))
    assert [bench.collect() for _ in range(10)] == [0] * 10
    assert bench.queued_count() == 0

    hours_of_looks(bench, 6)
    assert bench.queued_count() == 0
    hours_of_looks(bench, 0.2)
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED, None, OutcomeKind.SUCCEEDED]
    assert bench.queued_count() == 1


def test_results_are_not_short_for_hours_by_a_few_readings() -> None:
    """A process that slept for days between them has seen little."""
    bench, requests = in_flight(3)
    bench.api.end()
    bench.api.read = lambda _, lines: lines[:1]
    for _ in range(10):
        bench.collect()
        bench.clock.advance(timedelta(days=2))
    assert bench.queued_count() == 0
    bench.api.read = lambda _, lines: lines
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 3


def test_what_is_missing_in_batch_after_batch_ends_without_a_line() -> None:
    """Errored, with nothing in it: there is nothing that the API said."""
    bench, requests = in_flight(1, max_attempts=2)
    for _ in range(2):
        end_with(bench, line("of-nobody"))
        hours_of_looks(bench, 6.2)
        bench.flush()

    (outcome,) = bench.outcomes(requests).values()
    assert (outcome.kind, outcome.raw, outcome.attempts) == (OutcomeKind.ERRORED, b"", 2)


def test_a_reading_that_fails_does_not_count_as_one() -> None:
    """While the API cannot be asked nothing is known to be missing: to send it again would pay twice."""
    bench, requests = in_flight(3)
    bench.api.end()

    def fail(_: Posted, lines: Sequence[ResultLine]) -> Iterator[ResultLine]:
        raise api_error()
        yield from lines

    bench.api.read = fail
    assert [bench.collect() for _ in range(5)] == [0] * 5
    bench.api.read = lambda _, lines: lines[:1]
    assert bench.collect() == 0
    assert bench.queued_count() == 0
    bench.api.read = lambda _, lines: lines

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 3


def test_a_reading_that_breaks_off_keeps_what_it_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk by chunk."""
    monkeypatch.setattr(collecting, "SETTLE_REQUESTS", 2)
    bench, requests = in_flight(5)
    bench.api.end()

    def break_off(_: Posted, lines: Sequence[ResultLine]) -> Iterator[ResultLine]:
        yield from lines[:4]
        raise api_error()

    bench.api.read = break_off
    assert bench.collect() == 0
    assert bench.kinds(requests).count(OutcomeKind.SUCCEEDED) == 4
    bench.api.read = lambda _, lines: lines
    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 5


def test_a_line_that_comes_twice_is_applied_once() -> None:
    """The first one; a request has one outcome."""
    bench, requests = in_flight(2)
    first, second = bench.api.posted[0].custom_ids
    end_with(bench, line(first), line(first, "errored", "api_error"), line(second), line(first))

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2
    assert bench.store.outcome_cursor() == 2
    assert bench.queued_count() == 0


def test_lines_of_nobody_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Another nonce, another batch's request, or no id of ours at all: logged, and no harm done."""
    bench, requests = in_flight(1)
    name = bench.api.posted[0].custom_ids[0]
    nonce = name.rpartition("-")[2]
    strangers = [
        f"{requests[0].request_id}-{'0' * 10}",
        f"req_{'z' * 20}000-{nonce}",
        "not-ours",
        "",
    ]
    end_with(bench, *(line(stranger, "errored", "billing_error") for stranger in strangers), line(name))

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED]
    assert caplog.text.count("is of no request of ours") == 3
    assert "1 results are of no request in the batch" in caplog.text


def test_an_api_that_cannot_be_asked_is_asked_again() -> None:
    """An error while polling is not the end of a batch."""
    bench, requests = in_flight(1)
    bench.api.end()

    def fail() -> None:
        raise api_error()

    bench.api.before_describe = fail
    assert bench.collect() == 0
    bench.api.before_describe = lambda: None
    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED]


def test_a_batch_that_the_api_does_not_name_is_not_gone() -> None:
    """404 right after a create, and now and then later: transient."""
    bench, requests = in_flight(1)
    bench.api.end()
    bench.api.hidden = {"msgbatch_0"}
    assert [bench.collect() for _ in range(5)] == [0] * 5
    bench.api.hidden = set()

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED]
    assert len(bench.api.posted) == 1


def test_many_batches_are_asked_for_together() -> None:
    """One call for all of a credential, whatever their betas."""
    bench = Bench(max_requests=1)
    bench.enqueue(5)
    bench.enqueue(5, lane=OTHER_LANE)
    bench.flush()
    bench.collect()

    assert [len(look) for look in bench.api.looks] == [10]


def test_a_batch_of_another_credential_waits() -> None:
    """Until a process works that holds it."""
    bench, requests = in_flight(1)
    bench.api.end()
    bench.api.credentials.clear()
    assert bench.collect() == 0
    assert bench.api.looks == []
    bench.api.credentials.add(LANE.credential)

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED]


def test_one_batch_that_cannot_be_read_does_not_stop_the_others() -> None:
    """Whatever is wrong with it; it is told of when they have been looked at."""
    bench = Bench(max_requests=1)
    requests = bench.enqueue(3)
    bench.flush()
    bench.api.end()

    def read(posted: Posted, lines: Sequence[ResultLine]) -> Iterable[ResultLine]:
        if posted.provider_batch_id == "msgbatch_0":
            raise RuntimeError("a bug")
        return lines

    bench.api.read = read
    with pytest.raises(RuntimeError, match="a bug"):
        bench.collect()
    assert bench.kinds(requests) == [None, OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED]
    bench.api.read = lambda _, lines: lines
    assert bench.collect() == 1


def test_a_batch_is_looked_at_less_often_with_age() -> None:
    """Every 10 seconds at first, every 60 after half an hour."""
    bench, _ = in_flight(1, fixed_poll=False)
    looks = []
    for _ in range(60 * 60):
        bench.clock.advance(timedelta(seconds=1))
        before = len(bench.api.looks)
        bench.collect()
        if len(bench.api.looks) > before:
            looks.append((bench.clock.now() - bench.api.posted[0].created_at).total_seconds())
    gaps = [later - earlier for earlier, later in pairwise(looks)]

    assert looks[0] == 1
    assert gaps[0] == 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60


def test_settling_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by weight: others need the store too, and each chunk is told of."""
    monkeypatch.setattr(collecting, "SETTLE_REQUESTS", 10)
    monkeypatch.setattr(collecting, "SETTLE_BYTES", 5_000)
    sizes: list[int] = []

    class Noting(MemoryStore):
        def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: Any) -> Settled:
            sizes.append(len(answers))
            return super().settle(lease, batch_id, answers, now)

    bench, requests = in_flight(25, store=Noting())
    told: list[int] = []
    bench.collector._on_settled = lambda: told.append(len(bench.outcomes(requests)))
    bench.api.end()
    bench.collect()
    assert sizes == [10, 10, 5]
    assert told == [10, 20, 25]

    sizes.clear()
    requests = bench.enqueue(5)
    bench.flush()
    heavy = [
        ResultLine(custom_id=name, kind=OutcomeKind.SUCCEEDED, error_type=None, raw=b"x" * 3_000)
        for name in bench.api.posted[1].custom_ids
    ]
    end_with(bench, *heavy)
    bench.collect()
    assert sizes == [2, 2, 1]


def test_a_lost_lease_settles_nothing() -> None:
    """Another process collects now; it will find all of it."""
    bench, requests = in_flight(3)
    bench.api.end()
    bench.lose_lease()

    with pytest.raises(LeaseLostError):
        bench.collect()
    assert bench.kinds(requests) == [None] * 3


@pytest.mark.parametrize("stop_reason", ["refusal", "pause_turn", "max_tokens", "something_new"])
def test_what_succeeded_is_handed_over_as_the_api_gave_it(stop_reason: str) -> None:
    """Whatever its stop reason: it was paid for."""
    bench, requests = in_flight(1)
    name = bench.api.posted[0].custom_ids[0]
    raw = json.dumps(
        {"custom_id": name, "result": {"type": "succeeded", "message": {"stop_reason": stop_reason}}}
    ).encode()
    end_with(bench, ResultLine(custom_id=name, kind=OutcomeKind.SUCCEEDED, error_type=None, raw=raw))
    bench.collect()

    (outcome,) = bench.outcomes(requests).values()
    assert (outcome.kind, outcome.raw) == (OutcomeKind.SUCCEEDED, raw)
    assert bench.queued_count() == 0


def test_results_that_are_whole_at_last_settle_all_of_it() -> None:
    """A short file first, then one with all lines: nothing is sent again, however many readings it took."""
    bench, requests = in_flight(3)
    bench.api.end()
    bench.api.read = lambda _, lines: lines[:1]
    for _ in range(20):
        bench.collect()
        bench.clock.advance(timedelta(minutes=15))
    bench.api.read = lambda _, lines: lines
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 3
    assert len(bench.api.posted) == 1


def test_results_without_any_line_wait_like_those_that_are_cut() -> None:
    """For hours; then their requests are sent again."""
    bench, requests = in_flight(2)
    end_with(bench)
    for _ in range(5):
        bench.collect()
    assert bench.queued_count() == 0
    hours_of_looks(bench, 6.2)

    assert bench.queued_count() == 2
    assert bench.kinds(requests) == [None, None]


def test_a_batch_that_was_deleted_at_the_api_fails_its_requests_at_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are not sent again, since they may have been paid for. It takes days, and hours of 404."""
    bench, requests = in_flight(2)
    bench.api.end()
    bench.api.posted[0].deleted = True
    hours_of_looks(bench, 48)
    assert bench.kinds(requests) == [None] * 2
    hours_of_looks(bench, 0.2)

    assert bench.kinds(requests) == [OutcomeKind.ERRORED] * 2
    assert [outcome.raw for outcome in bench.outcomes(requests).values()] == [b"", b""]
    assert (bench.queued_count(), bench.states()) == (0, [])
    assert "is gone at the API" in caplog.text


def test_a_batch_is_not_gone_by_a_few_looks() -> None:
    """A process that slept for days between two of them, or whose clock was set, has seen little."""
    bench, requests = in_flight(2)
    bench.clock.advance(timedelta(days=5))
    bench.api.hidden = {"msgbatch_0"}
    for _ in range(5):
        bench.collect()
    bench.clock.advance(timedelta(days=5))
    bench.collect()
    bench.clock.set(bench.clock.now() + timedelta(days=400))
    bench.collect()
    assert bench.kinds(requests) == [None] * 2
    bench.api.hidden = set()
    bench.api.end()

    bench.collect()
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2


def test_absences_with_a_batch_in_between_begin_anew() -> None:
    """Only 404 after 404 counts."""
    bench, requests = in_flight(2)
    bench.clock.advance(timedelta(days=5))
    for _ in range(30):
        bench.api.hidden = {"msgbatch_0"}
        hours_of_looks(bench, 2)
        bench.api.hidden = set()
        bench.collect()

    assert bench.kinds(requests) == [None] * 2


@pytest.mark.parametrize("jump", [timedelta(0), timedelta(days=400)])
def test_results_that_cannot_be_read_are_waited_for(jump: timedelta) -> None:
    """An outage, even with a clock that is wrong by a year, fails nothing."""
    bench, requests = in_flight(2)
    bench.api.end()
    bench.clock.set(bench.clock.now() + jump)
    bench.api.ahead = -jump

    def fail(_: Posted, lines: Sequence[ResultLine]) -> Iterator[ResultLine]:
        raise api_error()
        yield from lines

    bench.api.read = fail
    for _ in range(5):
        bench.collect()
    hours_of_looks(bench, 2)
    assert bench.kinds(requests) == [None] * 2
    bench.api.read = lambda _, lines: lines
    bench.collect()

    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2


def test_results_older_than_the_api_keeps_them_are_given_up() -> None:
    """The batch is named, its results are not there any more: its requests fail, and are not sent again."""
    bench, requests = in_flight(2)
    bench.api.end()
    bench.clock.advance(timedelta(days=31))

    def fail(_: Posted, lines: Sequence[ResultLine]) -> Iterator[ResultLine]:
        raise api_error()
        yield from lines

    bench.api.read = fail
    hours_of_looks(bench, 4)

    assert bench.kinds(requests) == [OutcomeKind.ERRORED] * 2
    assert bench.queued_count() == 0


def test_a_batch_that_is_not_collected_for_weeks_raises_an_alarm_once_a_day(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From the twentieth day on, as long as the API has it."""
    bench, _ = in_flight(1)
    caplog.set_level("ERROR")
    bench.clock.advance(timedelta(days=20) - timedelta(hours=1))
    bench.collect()
    assert caplog.records == []
    bench.clock.advance(timedelta(hours=1))
    for _ in range(3 * 24):
        bench.collect()
        bench.clock.advance(timedelta(hours=1))

    assert (
        len([record for record in caplog.records if "were not collected in 20 days" in record.message]) == 3
    )


def test_a_batch_is_deleted_once_its_results_are_stored() -> None:
    """Where that is set: stored first, then deleted, then closed."""
    bench, requests = in_flight(2, delete_after_collect=True)
    bench.api.end()
    seen: list[tuple[list[Any], list[Any]]] = []
    bench.api.before_delete = lambda _: seen.append((bench.kinds(requests), bench.states()))

    assert bench.collect() == 1
    assert seen == [([OutcomeKind.SUCCEEDED] * 2, [BatchState.IN_FLIGHT])]
    assert bench.api.posted[0].deleted
    assert bench.states() == []


def test_a_batch_is_not_deleted_unless_that_is_set() -> None:
    """Nor while a line is missing."""
    bench, _ = in_flight(2)
    bench.api.end()
    bench.collect()
    assert bench.api.deletes == []

    bench, _ = in_flight(2, delete_after_collect=True)
    bench.api.end()
    bench.api.read = lambda _, lines: lines[:1]
    bench.collect()
    assert bench.api.deletes == []


@pytest.mark.parametrize("arrives", [True, False])
def test_a_delete_that_fails_is_tried_again_without_reading_again(arrives: bool) -> None:
    """The results are stored; also when it arrived and only its answer got lost."""
    bench, requests = in_flight(2, delete_after_collect=True)
    bench.api.end()
    setattr(bench.api, "after_delete" if arrives else "before_delete", unreachable)
    assert bench.collect() == 0
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2
    assert bench.states() == [BatchState.IN_FLIGHT]
    bench.api.before_delete = bench.api.after_delete = allow

    assert bench.collect() == 1
    assert (bench.api.reads, bench.states()) == (1, [])
    assert bench.api.posted[0].deleted


@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("method", ["finish", "unsettled"])
def test_a_process_that_ends_before_it_closes_a_batch_leaves_little_to_do(method: str, delete: bool) -> None:
    """All is settled: the next one closes it, and misses no batch that is deleted."""
    store = FailingStore()
    bench, requests = in_flight(2, store=store, delete_after_collect=delete)
    bench.api.end()
    store.failures = {method: [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.collect()
    store.failures = {}
    bench.restart()

    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2
    assert bench.states() == []
    # What nobody remembers is read once more: all may have been answered live, and nothing of it be read.
    assert bench.api.reads == (1 if delete and method == "finish" else 2)
    assert len(bench.api.posted) == 1


def test_a_batch_whose_requests_were_answered_live_is_read_all_the_same() -> None:
    """It is not closed before it has ended, and what it answers is counted as paid in vain."""
    bench, requests = in_flight(3)
    live = [
        Answer(request_id=one.request_id, kind=OutcomeKind.SUCCEEDED, raw=b"{}", retry=False)
        for one in requests
    ]
    bench.store.answer(live, bench.clock.now())

    assert bench.collect() == 0
    assert bench.states() == [BatchState.IN_FLIGHT]
    bench.api.end()
    assert bench.collect() == 1
    assert bench.api.reads == 1
    assert bench.store.tally()["daily"].wasted == 3


def test_given_up_requests_end_as_canceled() -> None:
    """What would have been sent again is not; what was answered stays answered."""
    bench, requests = in_flight(3)
    bench.store.cancel([one.request_id for one in requests[1:]], bench.clock.now(), in_batches=True)
    first, second, third = bench.api.posted[0].custom_ids
    end_with(bench, line(first, "expired"), line(second, "expired"), line(third))
    bench.collect()

    assert bench.kinds(requests) == [None, OutcomeKind.CANCELED, OutcomeKind.SUCCEEDED]
    assert bench.queued_count() == 1


def test_a_clock_set_back_does_not_stop_the_polling() -> None:
    """The gap between two looks is of the clock that cannot be set."""
    bench, _ = in_flight(1, fixed_poll=False)
    bench.collect()
    bench.clock.set(bench.clock.now() - timedelta(days=30))
    looks = len(bench.api.looks)
    bench.clock.advance(timedelta(seconds=10))
    bench.collect()

    assert len(bench.api.looks) == looks + 1


def test_a_batch_that_another_process_has_deleted_is_closed() -> None:
    """Though this one deletes none: all of it is settled, and the API does not name it any more."""
    store = FailingStore()
    bench, requests = in_flight(2, store=store, delete_after_collect=True)
    bench.api.end()
    store.failures = {"finish": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.collect()
    store.failures = {}
    bench._collecting["delete_after_collect"] = False
    bench.restart()

    assert bench.collect() == 0
    bench.clock.advance(timedelta(seconds=31))
    assert bench.collect() == 1
    assert bench.kinds(requests) == [OutcomeKind.SUCCEEDED] * 2
