"""What goes wrong at the API, and that nothing is lost and nothing paid twice by it."""

from __future__ import annotations

import itertools
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from llmrouter.engine import collector
from llmrouter.sandbox import Limits, ScaledClock, Turnaround, params_hash
from support.haste import hastened
from support.recovery import AT_ONCE
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmrouter import MessageFuture, Router
    from llmrouter.sandbox import Call

pytestmark = pytest.mark.timeout(60)

HOLD_SECONDS = 0.2
UNCLEAR: list[dict[str, Any]] = [
    *({"kind": "status", "status": status} for status in (408, 409, 500, 502, 503, 504, 529)),
    {"kind": "drop"},
    {"kind": "delay", "seconds": 3},
]
"""How a create can end without a clear answer; the delay is longer than the client waits."""


@pytest.fixture
def client(world: World) -> anthropic.Anthropic:
    """A client that does not wait between attempts: it makes only one."""
    return world.client(max_retries=0)


@pytest.fixture
def router(world: World, client: anthropic.Anthropic) -> Router:
    """A quick router whose client does not retry."""
    return world.router(client=client)


@pytest.fixture
def short_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that was not served waits for a moment, not for 15 seconds."""
    for module, name, value in hastened(hold_seconds=HOLD_SECONDS, most_hold_seconds=1):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def quick_world(tmp_path: Path) -> Iterator[World]:
    """A sandbox whose batches end by themselves, in a moment."""
    turnaround = Turnaround.fixed(timedelta(seconds=0.2))
    with World(tmp_path, clock=ScaledClock(), turnaround=turnaround) as one:
        yield one


def submit(router: Router, count: int, latency: str = BULK) -> list[MessageFuture]:
    """So many requests, all different, with keys."""
    return router.submit_many(
        [ask(number) for number in range(count)],
        latency=latency,
        keys=[f"key-{number}" for number in range(count)],
    )


@pytest.mark.parametrize(
    ("error_type", "expected"),
    [
        ("invalid_request_error", anthropic.BadRequestError),
        ("authentication_error", anthropic.AuthenticationError),
        ("permission_error", anthropic.PermissionDeniedError),
        ("not_found_error", anthropic.NotFoundError),
        ("request_too_large", anthropic.RequestTooLargeError),
    ],
)
def test_a_request_that_is_refused_in_the_end_raises_the_sdks_exception(
    world: World, router: Router, error_type: str, expected: type[Exception]
) -> None:
    """Typed as a live call would have raised it, with the API's message; not sent again."""
    world.fault(kind="item", error_type=error_type, message="not like that")
    bad, good = submit(router, 2)
    router.flush()
    world.finish()

    with pytest.raises(expected, match="not like that"):
        bad.result(10)
    assert isinstance(bad.exception(), anthropic.APIStatusError)
    assert bad.status() == "errored"
    assert good.result(10).content
    assert len(world.batches) == 1
    world.check_books(1)


def test_a_request_that_the_api_finds_wrong_fails_alone(world: World, router: Router) -> None:
    """The others of its batch are untouched."""
    bad = router.submit(ask(extra_body={"no_such_field": 1}), latency=BULK)
    good = submit(router, 3)
    router.flush()
    world.finish()

    with pytest.raises(anthropic.BadRequestError, match="no_such_field"):
        bad.result(10)
    assert all(future.result(10).content for future in good)


@pytest.mark.parametrize(
    "fault",
    [
        {"outcome": "expired"},
        {"outcome": "canceled"},
        {"error_type": "api_error"},
        {"error_type": "overloaded_error"},
        {"error_type": "rate_limit_error"},
        {"error_type": "timeout_error"},
    ],
    ids=lambda fault: next(iter(fault.values())),
)
def test_what_passes_is_sent_again_and_succeeds(
    world: World, client: anthropic.Anthropic, fault: dict[str, Any]
) -> None:
    """Only what failed, in the next batch; each is paid once."""
    router = world.router(client=client, classes={BULK: {"deadline": "800d", "flush": 0.05}})
    world.fault(kind="item", count=2, **fault)
    futures = submit(router, 5)
    world.finish_when_sent(5)
    world.sandbox.clock.advance(timedelta(hours=24))
    world.finish_when_sent(7)

    assert all(future.result(10).content for future in futures)
    assert sorted(future.outcome.attempts for future in futures if future.outcome) == [1, 1, 1, 2, 2]
    world.check_books(5)


def test_what_does_not_pass_in_three_batches_is_the_outcome(world: World, router: Router) -> None:
    """The error of the last one; nothing was paid."""
    world.fault(kind="item", error_type="overloaded_error", message="busy", count=None)
    (future,) = submit(router, 1)
    for attempt in range(3):
        router.flush()
        world.finish(attempt + 1)
        wait_until(lambda: not router.status().batches, what="the batch to be collected")

    with pytest.raises(anthropic.OverloadedError, match="busy"):
        future.result(10)
    assert len(world.batches) == 3
    world.check_books(0)


def test_a_batch_that_expires_is_sent_again(tmp_path: Path) -> None:
    """What got no answer in 24 hours; what got one is not."""
    spans = iter([timedelta(hours=30), timedelta(minutes=10)])
    with World(tmp_path, turnaround=Turnaround.of(lambda _number, _requests: next(spans))) as world:
        router = world.router(client=world.client(max_retries=0))
        futures = submit(router, 20)
        router.flush()
        world.sandbox.clock.advance(timedelta(hours=24))
        wait_until(lambda: router.status().queued, what="the expired ones to be queued again")
        again = router.status().queued
        router.flush()
        world.finish(2)

        assert 0 < again < 20
        assert all(future.result(10).content for future in futures)
        assert [len(batch.items) for batch in world.batches] == [20, again]
        world.check_books(20)


def test_a_batch_that_somebody_cancels_is_sent_again(
    world: World, router: Router, client: anthropic.Anthropic
) -> None:
    """In the console, say."""
    futures = submit(router, 3)
    router.flush()
    client.messages.batches.cancel(world.batches[0].id)
    world.sandbox.clock.advance(timedelta(minutes=1))
    wait_until(lambda: router.status().queued == 3, what="all to be queued again")
    router.flush()
    world.finish(2)

    assert all(future.result(10).content for future in futures)
    world.check_books(3)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop", "accepted": True},
        {"kind": "status", "status": 500, "accepted": True},
        {"kind": "status", "status": 529, "accepted": True},
        {"kind": "status", "status": 408, "accepted": True},
        {"kind": "status", "status": 409, "accepted": True},
    ],
    ids=lambda fault: str(fault.get("status", "drop")),
)
def test_a_create_whose_answer_is_lost_is_in_doubt_and_paid_once(world: World, fault: dict[str, Any]) -> None:
    """The SDK by itself would have posted it three times. Its results tell whose it is."""
    router = world.router(client=world.client())
    world.fault(endpoint="batches.create", count=None, **fault)
    futures = submit(router, 5)
    router.flush()
    wait_until(lambda: world.batches, what="the batch that nobody was told of")
    world.sandbox.faults.clear()
    status = router.status()

    assert [(batch.state.value, batch.request_count) for batch in status.batches] == [("in_doubt", 5)]
    assert (status.queued, futures[0].status()) == (0, "in_doubt")
    assert not any(future.cancel() for future in futures)
    router.flush()
    again = router.submit(ask(0), latency=BULK, key="key-0")
    assert again.request_id == futures[0].request_id
    router.close()
    following = world.router()
    following.flush()
    waiting = [following.future(key=f"key-{number}") for number in range(5)]
    assert waiting[0].status() == "in_doubt"
    world.finish()

    assert all(future.result(20).content for future in waiting)
    assert world.sandbox.books.calls["batches.create"] == 1
    world.check_books(5)


def test_a_create_that_takes_too_long_is_in_doubt(world: World) -> None:
    """The client's own timeout ends the wait, not the work of the server."""
    router = world.router(client=world.client(timeout=0.2))
    world.fault(kind="delay", endpoint="batches.create", seconds=1, accepted=True)
    submit(router, 2)
    router.flush()

    assert [batch.state.value for batch in router.status().batches] == ["in_doubt"]
    assert world.sandbox.books.calls["batches.create"] == 1


@pytest.mark.usefixtures("short_holds")
def test_a_batch_in_doubt_holds_up_no_other(world: World, router: Router) -> None:
    """What comes later goes its way."""
    world.fault(kind="drop", endpoint="batches.create", accepted=True)
    submit(router, 2)
    router.flush()
    later = router.submit(ask("later"), latency=BULK)
    wait_until(lambda: router.flush() or len(world.batches) == 2, what="the next batch")
    world.finish(2)

    assert later.result(10).content


@pytest.mark.usefixtures("short_holds")
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("fault", UNCLEAR, ids=lambda fault: str(fault.get("status", fault["kind"])))
def test_a_create_without_a_clear_answer_is_paid_once(
    quick_world: World, fault: dict[str, Any], accepted: bool
) -> None:
    """Found at the API, or sent again when it is not there: by itself, without a restart."""
    client = quick_world.client(timeout=0.5)
    router = quick_world.router(client=client, in_doubt_grace=0.5, **AT_ONCE)
    quick_world.fault(endpoint="batches.create", accepted=accepted, **fault)
    futures = submit(router, 5)

    assert len({future.result(20).id for future in futures}) == 5
    assert quick_world.sandbox.books.calls["batches.create"] == (1 if accepted else 2)
    assert [len(batch.items) for batch in quick_world.batches] == [5]
    wait_until(lambda: not router.status().batches, what="no batch to be left")
    quick_world.check_books(5)


@pytest.mark.usefixtures("short_holds")
@pytest.mark.parametrize("lists", [1, 5])
def test_a_create_that_the_list_shows_late_is_not_made_again(quick_world: World, lists: int) -> None:
    """Within the grace time: what the list lacks may exist."""
    router = quick_world.router(in_doubt_grace=1.5, **AT_ONCE)
    quick_world.fault(kind="hide", calls=0, lists=lists)
    quick_world.fault(kind="drop", endpoint="batches.create", accepted=True)
    futures = submit(router, 5)

    assert all(future.result(20).content for future in futures)
    assert quick_world.sandbox.books.calls["batches.create"] == 1
    quick_world.check_books(5)


@pytest.mark.usefixtures("short_holds")
def test_a_batch_of_the_same_size_that_somebody_else_made_is_left_to_them(quick_world: World) -> None:
    """It looks the same in the list; its results say that it is another's."""
    theirs = [{"custom_id": f"theirs-{number}", "params": ask(f"theirs {number}")} for number in range(5)]
    quick_world.client().messages.batches.create(requests=theirs)  # type: ignore[arg-type]
    router = quick_world.router(in_doubt_grace=0.5, delete_after_collect=True, **AT_ONCE)
    quick_world.fault(kind="drop", endpoint="batches.create", accepted=False)
    futures = submit(router, 5)

    assert all(future.result(20).content for future in futures)
    assert [len(batch.items) for batch in quick_world.batches] == [5, 5]
    wait_until(lambda: not router.status().batches, what="no batch to be left")
    assert [batch.deleted_at is None for batch in quick_world.batches] == [True, False]
    quick_world.check_books(10)


@pytest.mark.parametrize("calls", [1, 3, 10])
def test_a_fresh_batch_that_is_not_found_is_not_gone(world: World, router: Router, calls: int) -> None:
    """404 for a while after the create."""
    world.fault(kind="hide", calls=calls)
    futures = submit(router, 2)
    router.flush()
    world.finish()

    assert all(future.result(10).content for future in futures)
    assert len(world.batches) == 1


@pytest.mark.parametrize("cut_at", ["line_end", "mid_line", "broken"])
def test_results_that_are_cut_are_read_again(world: World, router: Router, cut_at: str) -> None:
    """Nothing is settled twice, nothing is sent again."""
    world.fault(kind="cut", lines=4, cut_at=cut_at)
    futures = submit(router, 9)
    told: list[str] = []
    for future in futures:
        future.add_done_callback(lambda done: told.append(done.request_id))  # type: ignore[attr-defined]
    router.flush()
    world.finish()

    assert len({future.result(10).id for future in futures}) == 9
    wait_until(lambda: len(told) >= 9, what="all callbacks")
    assert sorted(told) == sorted(future.request_id for future in futures)
    assert world.sandbox.books.calls["batches.results"] == 2
    assert len(world.batches) == 1
    world.check_books(9)


def test_lines_that_should_not_be_there_change_nothing(world: World, router: Router) -> None:
    """Some twice, some of requests that are not in the batch or of another claim, some that are none."""
    router.pause("weekly")
    waiting = router.submit(ask("later"), latency="weekly")
    futures = submit(router, 6)
    told: list[str] = []
    for future in futures:
        future.add_done_callback(lambda done: told.append(done.request_id))  # type: ignore[attr-defined]
    strangers = [f"{future.request_id}-0123456789" for future in (waiting, futures[0])]
    added = ["", "{", "[]", '{"custom_id": 1, "result": {}}', '{"custom_id": "who", "result": {"type": "x"}}']
    world.fault(kind="lines", repeated=3, strangers=[*strangers, "nobody"], added=added)
    router.flush()
    world.finish_when_sent(6)

    assert len({future.result(10).id for future in futures}) == 6
    wait_until(lambda: not router.status().batches, what="the batch to be closed")
    assert sorted(told) == sorted(future.request_id for future in futures)
    assert waiting.status() == "queued"
    assert world.sandbox.books.calls["batches.results"] == 1
    world.check_books(6)


def test_an_answer_that_belongs_to_another_claim_is_not_taken(world: World, router: Router) -> None:
    """The same requests with another nonce: who knows what was asked there."""
    futures = submit(router, 6)
    strangers = [f"{future.request_id}-0123456789" for future in futures]
    world.fault(kind="lines", missing=6, strangers=strangers)
    router.flush()
    world.finish()

    for number, future in enumerate(futures):
        (content,) = future.result(10).content
        assert content.type == "text"
        assert content.text.startswith(f"[{params_hash(ask(number))[:12]}")
    assert world.sandbox.books.calls["batches.results"] == 2
    assert len(world.batches) == 1


def test_a_result_of_an_unknown_type_is_the_outcome(world: World, router: Router) -> None:
    """Whatever it means: it is not sent again, since it may have been charged."""
    world.fault(kind="lines", unknown=2)
    futures = submit(router, 6)
    router.flush()
    world.finish()

    errors = [error for future in futures if (error := future.exception(10)) is not None]
    assert [isinstance(error, anthropic.APIError) for error in errors] == [True, True]
    assert len(world.batches) == 1


def test_results_that_lack_some_are_read_again_for_hours(world: World, router: Router) -> None:
    """What was only cut off would be paid twice, if it was sent again."""
    world.fault(kind="lines", missing=2, count=6)
    futures = submit(router, 6)
    router.flush()
    world.finish()

    assert all(future.result(10).content for future in futures)
    assert world.sandbox.books.calls["batches.results"] == 7
    assert len(world.batches) == 1
    world.check_books(6)


def test_what_stays_missing_is_sent_again(
    world: World, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end, and only that."""
    monkeypatch.setattr(collector, "SHORT_PATIENCE", timedelta(0))
    world.fault(kind="lines", missing=2, count=3)
    futures = submit(router, 6)
    router.flush()
    world.finish()
    wait_until(lambda: router.status().queued == 2, what="two to be queued again")
    router.flush()
    world.finish(2)

    assert all(future.result(10).content for future in futures)
    assert [len(batch.items) for batch in world.batches] == [6, 2]


@pytest.mark.parametrize(
    "fault", [None, {"kind": "status", "status": 500}, {"kind": "drop", "accepted": True}]
)
def test_a_batch_is_deleted_once_its_results_are_stored(world: World, fault: dict[str, Any] | None) -> None:
    """Where that is set; what goes wrong with it keeps nobody from an answer."""
    router = world.router(client=world.client(max_retries=0), delete_after_collect=True)
    if fault is not None:
        world.fault(endpoint="batches.delete", **fault)
    world.fault(kind="cut", lines=2)
    futures = submit(router, 5)
    router.flush()
    world.finish()

    assert all(future.result(10).content for future in futures)
    wait_until(lambda: not router.status().batches, what="the batch to be closed")
    assert [batch.deleted_at is not None for batch in world.batches] == [True]
    world.check_books(5)


@pytest.mark.parametrize("endpoint", ["batches.retrieve", "batches.list", "batches.results"])
@pytest.mark.parametrize("kind", ["status", "drop"])
def test_an_api_that_fails_while_it_is_asked_is_asked_again(
    world: World, router: Router, endpoint: str, kind: str
) -> None:
    """However often: what is in flight stays in flight, and nothing is sent again."""
    many = 5 if endpoint == "batches.list" else 1
    futures: list[MessageFuture] = []
    for number in range(many):
        futures.append(router.submit(ask(number), latency=BULK))
        router.flush()
    world.fault(kind=kind, endpoint=endpoint, count=5)
    world.finish(many)

    assert all(future.result(10).content for future in futures)
    assert len(world.batches) == many
    world.check_books(many)


def test_a_lane_that_is_refused_waits_as_long_as_the_api_says(world: World, router: Router) -> None:
    """429: nothing was created; the status says why it waits, and until when."""
    world.fault(
        kind="status",
        endpoint="batches.create",
        status=429,
        headers={"retry-after": "1"},
        message="slow down",
    )
    (future,) = submit(router, 1)
    assert router.flush() == 0
    (line,) = router.status().backlog
    assert line.held_until is not None
    assert timedelta(0) < line.held_until - router.status().at <= timedelta(seconds=1)
    assert "slow down" in str(line.held_reason)
    assert router.flush() == 0
    assert world.sandbox.books.calls["batches.create"] == 1

    wait_until(router.flush, what="the lane to go again")
    world.finish()
    assert future.result(10).content
    world.check_books(1)


def watch_creates(world: World) -> list[float]:
    """Notes when the creates come, by the monotonic clock."""
    times: list[float] = []

    def note(_call: Call) -> bool:
        times.append(time.monotonic())
        return False

    world.fault(kind="delay", endpoint="batches.create", when=note)
    return times


def test_nothing_is_created_before_the_time_that_the_api_says(quick_world: World) -> None:
    """However often the class is due, or somebody asks for a flush."""
    router = quick_world.router(**AT_ONCE)
    quick_world.fault(
        kind="status", endpoint="batches.create", status=429, headers={"retry-after": "1.5"}, count=2
    )
    creates = watch_creates(quick_world)
    (future,) = submit(router, 1)
    wait_until(lambda: router.flush() == 0 and future.done(), what="the answer")

    assert len(creates) == 3
    assert all(later - earlier >= 1.5 for earlier, later in itertools.pairwise(creates))
    quick_world.check_books(1)


@pytest.mark.usefixtures("short_holds")
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_works_again_is_used_again(quick_world: World, status: int) -> None:
    """The lane waits, the status says why, and it goes on by itself; nothing fails."""
    router = quick_world.router(**AT_ONCE)
    quick_world.fault(
        kind="status", endpoint="batches.create", status=status, message="your key was revoked", count=None
    )
    futures = submit(router, 3)
    quick_world.wait_for_calls("batches.create", 3)
    (hold,) = wait_until(lambda: router.status().holds, what="the lane to be held")
    assert (hold.cause.value, "your key was revoked" in hold.reason) == ("credential", True)
    assert router.status().queued == 3
    assert not any(future.done() for future in futures)
    quick_world.sandbox.faults.clear()

    assert all(future.result(20).content for future in futures)
    assert router.status().holds == ()
    quick_world.check_books(3)


_REGAIN_ON = datetime.now(UTC).date() + timedelta(days=3)
_REGAIN = f"You will regain access on {_REGAIN_ON} at 00:00 UTC."


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "message": f"You have reached your specified API usage limits. {_REGAIN}"},
        {
            "status": 429,
            "message": f"You have reached the threshold of your API tier. {_REGAIN}",
            "details": {"error_code": "enforced_spend_limit_reached"},
        },
    ],
    ids=["own", "tier"],
)
def test_a_lane_waits_until_a_spend_limit_ends_or_is_raised(
    quick_world: World, fault: dict[str, Any]
) -> None:
    """Until the time that the API names; who has raised it asks for a flush, and it goes at once."""
    router = quick_world.router(**AT_ONCE)
    quick_world.fault(kind="status", endpoint="batches.create", count=None, **fault)
    early = router.submit(ask("early"), latency=BULK, deadline=timedelta(days=1))
    quick_world.wait_for_calls("batches.create", 1)
    (line,) = wait_until(
        lambda: [line for line in router.status().backlog if line.held_until], what="the lane to be held"
    )
    assert line.held_until == datetime.combine(_REGAIN_ON, datetime.min.time(), UTC)
    assert line.held_cause is not None
    assert (line.held_cause.value, line.will_miss) == ("spent", True)
    assert "regain access" in router.why(early.request_id)
    assert router.drain(0.5) is False
    quick_world.sandbox.faults.clear()
    assert wait_until(lambda: quick_world.sandbox.books.calls["batches.create"], what="calls") <= 2

    router.flush()
    assert early.result(20).content
    assert router.status().holds == ()
    quick_world.check_books(1)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "You have reached your specified API usage limits. You will regain access on 2026-12-01"),
        (400, "Your credit balance is too low to access the Anthropic API"),
        (401, "invalid x-api-key"),
        (402, "billing"),
        (403, "not allowed"),
        (404, "404"),
        (429, "enough"),
    ],
)
def test_a_refusal_that_is_not_about_the_requests_costs_none_of_them(
    world: World, router: Router, status: int, message: str
) -> None:
    """They wait, and the status says why. Who asks for a flush has the API asked again; it costs nothing."""
    world.fault(kind="status", endpoint="batches.create", status=status, message=message, count=None)
    futures = submit(router, 8)
    for _ in range(3):
        router.flush()
    (line,) = router.status().backlog
    assert (line.request_count, message in str(line.held_reason)) == (8, True)
    assert not any(future.done() for future in futures)
    assert world.sandbox.books.calls["batches.create"] == 3
    assert router.drain(1.5) is False
    assert world.sandbox.books.calls["batches.create"] == 4
    router.close()

    world.sandbox.faults.clear()
    following = world.router()
    following.flush()
    world.finish()
    assert all(following.future(key=f"key-{number}").result(10).content for number in range(8))


@pytest.mark.parametrize("status", [400, 413])
def test_one_request_that_refuses_the_whole_batch_fails_alone(
    world: World, router: Router, status: int
) -> None:
    """With the API's own error; its neighbours are answered, each paid once."""
    futures = submit(router, 20)
    bad = futures[13]

    def holds_it(call: Call) -> bool:
        return any(bad.request_id in item.custom_id for item in call.items)

    world.fault(
        kind="status", endpoint="batches.create", status=status, message="this one", count=None, when=holds_it
    )
    wait_until(lambda: router.flush() == 0 and router.status().queued == 0, what="all to leave the queue")
    world.sandbox.clock.advance(timedelta(hours=1))

    with pytest.raises(anthropic.APIStatusError, match="this one") as caught:
        bad.result(10)
    assert caught.value.status_code == status
    assert all(future.result(10).content for future in futures if future is not bad)
    assert world.sandbox.books.calls["batches.create"] < 16
    world.check_books(19)


def test_a_batch_that_is_too_large_for_the_api_goes_in_parts(tmp_path: Path) -> None:
    """Where its limits are lower than they were."""
    with World(tmp_path, limits=Limits(batch_requests=5)) as world:
        router = world.router()
        futures = submit(router, 18)
        router.flush()
        wait_until(lambda: router.flush() == 0 and router.status().queued == 0, what="all to be sent")
        world.finish()

        assert all(future.result(10).content for future in futures)
        world.check_books(18)


def test_a_connection_that_is_refused_costs_nothing(world: World) -> None:
    """Nothing can have been created: no doubt, the requests wait."""
    world.server.stop()
    router = world.router()
    submit(router, 2)
    router.flush()
    status = router.status()

    assert (status.queued, status.batches) == (2, ())
    assert status.backlog[0].held_until is not None


def test_live_calls_are_not_held_up_by_the_queue(world: World) -> None:
    """While a create hangs real-time stays real-time, and the queue takes more."""
    router = world.router()
    submit(router, 1)
    world.fault(kind="delay", endpoint="batches.create", seconds=1.5)
    flushing = threading.Thread(target=router.flush)
    flushing.start()
    world.wait_for_calls("batches.create", 1)

    assert router.submit(ask("now"), latency="real-time").result(10).content
    assert router.submit(ask("later"), latency=BULK).status() == "queued"
    assert flushing.is_alive()
    flushing.join(10)
