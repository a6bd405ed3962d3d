"""Latency classes: built in and of one's own, on an interval or a cron line, and deadlines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.errors import InvalidDeadlineError, UnknownLatencyError
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from support.world import World

pytestmark = pytest.mark.timeout(60)


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("latency", ["hourly", "daily", "weekly"])
def test_a_class_with_an_interval_leaves_by_itself(world: World, latency: str) -> None:
    """Nobody has to flush."""
    future = world.router().submit(ask(), latency=latency)
    world.finish()

    assert future.result(10).content
    assert future.latency == latency


def test_a_class_of_ones_own_has_its_deadline_and_its_schedule(world: World) -> None:
    """From the settings."""
    router = world.router(classes={"over-lunch": {"deadline": "90m", "flush": "50ms"}})
    future = router.submit(ask(), latency="over-lunch")
    world.finish()
    future.result(10)

    assert future.outcome is not None
    assert future.outcome.deadline_at - future.outcome.accepted_at == timedelta(minutes=90)
    assert future.outcome.latency == "over-lunch"


def test_a_class_with_a_cron_line_waits_for_its_slot(world: World) -> None:
    """While another one goes."""
    router = world.router()
    waits, goes = router.submit(ask(1), latency=BULK), router.submit(ask(2), latency="daily")
    world.finish()
    goes.result(10)

    assert waits.status() == "queued"
    assert [line.latency for line in router.status().backlog] == [BULK]


def test_a_deadline_before_the_next_slot_leaves_earlier(world: World) -> None:
    """The schedule is a wish, the deadline a promise."""
    router = world.router()
    router.submit(ask(), latency=BULK, deadline=3 * HOUR)

    wait_until(lambda: world.batches, what="a batch")


def test_classes_travel_apart(world: World) -> None:
    """A batch has one fate."""
    router = world.router(worker=False)
    for number in range(9):
        router.submit(ask(number), latency=["hourly", "daily", "weekly"][number % 3])
    world.router().flush()

    wait_until(lambda: len(world.batches) == 3, what="three batches")
    assert [len(batch.items) for batch in world.batches] == [3, 3, 3]


def test_a_deadline_of_the_callers_overrides_the_class(world: World) -> None:
    """As a span or an instant; told in UTC."""
    router = world.router(worker=False)
    at = datetime.now(timezone(timedelta(hours=2))) + 5 * HOUR
    span = router.submit(ask(), latency="daily", deadline=2 * HOUR)
    instant = router.submit(ask(), latency="daily", deadline=at)
    many = router.submit_many([ask(), ask()], latency="daily", deadline=at)

    assert span.deadline is not None
    assert abs(span.deadline - datetime.now(UTC) - 2 * HOUR) < timedelta(minutes=1)
    assert instant.deadline == at
    assert instant.deadline.utcoffset() == timedelta(0)
    assert [future.deadline for future in many] == [at, at]
    assert router.future(instant.request_id).deadline == at


@pytest.mark.parametrize("latency", ["daily", "real-time"])
@pytest.mark.parametrize(
    "deadline",
    [
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2030, 1, 1),  # noqa: DTZ001
        timedelta(0),
        timedelta.max,
        "tomorrow",
    ],
)
def test_a_wrong_deadline_is_refused(world: World, deadline: Any, latency: str) -> None:
    """At once, for every class."""
    router = world.router(worker=False)

    with pytest.raises(InvalidDeadlineError):
        router.submit(ask(), latency=latency, deadline=deadline)
    with pytest.raises(InvalidDeadlineError):
        router.submit_many([ask()], latency=latency, deadline=deadline)
    assert router.status().queued == 0


def test_an_unknown_class_is_refused(world: World) -> None:
    """With the one that was meant."""
    router = world.router(worker=False)

    with pytest.raises(UnknownLatencyError, match="did you mean 'hourly'"):
        router.submit(ask(), latency="hurly")


def test_a_class_that_is_gone_from_the_settings_is_not_lost(world: World) -> None:
    """What was submitted under it leaves at once, and is answered."""
    first = world.router(worker=False, classes={"old": {"deadline": "800d", "flush": "0 0 1 1 *"}})
    request_id = first.submit(ask(), latency="old").request_id
    first.close()
    router = world.router()
    future = router.future(request_id)
    world.finish()

    assert future.result(10).content
    assert future.latency == "old"


def test_a_batch_size_that_was_set_is_kept_exactly(world: World) -> None:
    """And full batches do not wait for the schedule."""
    router = world.router(batch_max_requests=7)
    futures = router.submit_many([ask(number) for number in range(20)], latency=BULK)
    wait_until(lambda: len(world.batches) == 2, what="two full batches")
    assert router.status().queued == 6
    router.flush()
    world.finish(3)

    assert [len(batch.items) for batch in world.batches] == [7, 7, 6]
    assert len({future.result(10).id for future in futures}) == 20


def test_a_batch_weight_that_was_set_is_kept(world: World) -> None:
    """In bytes, as it is posted."""
    router = world.router(batch_max_bytes=1_000)
    router.submit_many([ask(number) for number in range(20)], latency=BULK)
    router.flush()
    wait_until(lambda: sum(len(batch.items) for batch in world.batches) == 20, what="all to be sent")

    sizes = [len(body) for body in world.bodies("batches.create")]
    assert max(sizes) <= 1_000
    assert len(sizes) == 4
