"""What goes wrong at the API, and that nothing is lost and nothing paid twice by it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from llmrouter.sandbox import Limits, Turnaround
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK, World

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter import MessageFuture, Router
    from llmrouter.sandbox import Call

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def client(world: World) -> anthropic.Anthropic:
    """A client that does not wait between attempts: it makes only one."""
    return world.client(max_retries=0)


@pytest.fixture
def router(world: World, client: anthropic.Anthropic) -> Router:
    """A quick router whose client does not retry."""
    return world.router(client=client)


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
    """The SDK by itself would have posted it three times."""
    router = world.router(client=world.client())
    world.fault(endpoint="batches.create", count=None, **fault)
    futures = submit(router, 5)
    router.flush()
    world.finish()
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
    assert following.future(key="key-0").status() == "in_doubt"
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


def test_a_batch_in_doubt_holds_up_no_other(world: World, router: Router) -> None:
    """What comes later goes its way."""
    world.fault(kind="drop", endpoint="batches.create", accepted=True)
    submit(router, 2)
    router.flush()
    later = router.submit(ask("later"), latency=BULK)
    wait_until(lambda: router.flush() or len(world.batches) == 2, what="the next batch")
    world.finish(2)

    assert later.result(10).content


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


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "You have reached your specified API usage limits. You will regain access on 2026-12-01"),
        (400, "Your credit balance is too low to access the Anthropic API"),
        (401, "invalid x-api-key"),
        (402, "billing"),
        (403, "not allowed"),
        (404, "not found"),
        (429, "enough"),
    ],
)
def test_a_refusal_that_is_not_about_the_requests_costs_none_of_them(
    world: World, router: Router, status: int, message: str
) -> None:
    """They wait, and the status says why; the next router sends them."""
    world.fault(kind="status", endpoint="batches.create", status=status, message=message, count=None)
    futures = submit(router, 8)
    for _ in range(3):
        router.flush()
    (line,) = router.status().backlog
    assert (line.request_count, message in str(line.held_reason)) == (8, True)
    assert not any(future.done() for future in futures)
    assert world.sandbox.books.calls["batches.create"] == 1
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
