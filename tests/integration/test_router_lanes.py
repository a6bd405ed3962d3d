"""Headers belong to the whole batch: requests that differ in them travel apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Router, Settings
from llmrouter.errors import InvalidRequestError
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK, quick

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.world import World

pytestmark = pytest.mark.timeout(60)


def headers_of_batches(world: World, name: str) -> list[str | None]:
    """What each create had in a header."""
    return [
        record.headers.get(name)
        for record in world.sandbox.books.records
        if record.endpoint == "batches.create"
    ]


def test_betas_make_a_batch_of_their_own(world: World) -> None:
    """Each set of them once, in whatever order they were written."""
    router = world.router()
    betas: list[Mapping[str, str] | None] = [
        None,
        {"anthropic-beta": "one"},
        {"anthropic-beta": "one,two"},
        {"Anthropic-Beta": "two, one"},
        None,
        {"anthropic-beta": "one"},
    ]
    futures = [
        router.submit(ask(number), latency=BULK, extra_headers=headers)
        for number, headers in enumerate(betas)
    ]
    assert router.flush() == 3
    world.finish(3)

    assert sorted(len(batch.items) for batch in world.batches) == [2, 2, 2]
    assert sorted(str(value) for value in headers_of_batches(world, "anthropic-beta")) == [
        "None",
        "one",
        "one,two",
    ]
    assert len({future.result(10).id for future in futures}) == 6


def test_headers_in_the_request_count_like_those_beside_it(world: World) -> None:
    """As `messages.create` takes them; those beside it win."""
    router = world.router()
    own = {"extra_headers": {"anthropic-beta": "one"}}
    router.submit(ask(1, **own), latency=BULK)
    router.submit(ask(2), latency=BULK, extra_headers={"anthropic-beta": "one"})
    router.submit(ask(3, **own), latency=BULK, extra_headers={"anthropic-beta": "two"})

    assert router.flush() == 2
    assert sorted(len(batch.items) for batch in world.batches) == [1, 2]


@pytest.mark.parametrize(
    ("argument", "header"),
    [("workspace_id", "anthropic-workspace-id"), ("user_profile_id", "anthropic-user-profile-id")],
)
def test_arguments_that_are_headers_make_a_batch_of_their_own(
    world: World, argument: str, header: str
) -> None:
    """They are not in the body, in a batch as in a live call."""
    router = world.router()
    futures = [
        router.submit(ask(number, **{argument: value} if value else {}), latency=BULK)
        for number, value in enumerate([None, "a", "b", "a"])
    ]
    assert router.flush() == 3
    world.finish(3)

    assert sorted(str(value) for value in headers_of_batches(world, header)) == ["None", "a", "b"]
    assert all(argument not in item["params"] for item in world.batch_items())
    assert all(future.result(10) for future in futures)


def test_headers_of_the_client_go_with_every_batch(world: World) -> None:
    """As they go with every live call."""
    client = world.client(default_headers={"anthropic-beta": "always", "x-team": "blue"})
    router = world.router(client=client)
    router.submit(ask(1), latency=BULK)
    router.submit(ask(2), latency=BULK, extra_headers={"anthropic-beta": "once"})
    assert router.flush() == 2

    assert sorted(str(value) for value in headers_of_batches(world, "anthropic-beta")) == ["always", "once"]
    assert headers_of_batches(world, "x-team") == ["blue", "blue"]


def test_an_older_version_of_the_api_is_a_lane(world: World) -> None:
    """With it, what only it accepts arrives."""
    router = world.router()
    future = router.submit(
        ask(extra_body={"temperature": 0.5}), latency=BULK, extra_headers={"anthropic-version": "2023-06-01"}
    )
    router.flush()
    world.finish()

    assert future.result(10).content
    assert headers_of_batches(world, "anthropic-version") == ["2023-06-01"]


@pytest.mark.parametrize("name", ["x-api-key", "Authorization"])
def test_a_credential_in_a_request_is_refused(world: World, name: str) -> None:
    """It would be stored; and the error does not repeat it."""
    router = world.router(worker=False)

    with pytest.raises(InvalidRequestError) as caught:
        router.submit(ask(), latency=BULK, extra_headers={name: "sk-secret"})
    assert caught.value.field == "extra_headers"
    assert "sk-secret" not in str(caught.value)


def test_a_lane_of_another_credential_waits_for_a_process_that_holds_it(world: World) -> None:
    """And `status` says that this one does not."""
    mine, theirs = world.client(api_key="mine"), world.client(api_key="theirs")
    with Router(theirs, store=world.store, settings=Settings(**quick()), worker=False) as submitter:
        request_id = submitter.submit(ask(1), latency=BULK).request_id
    router = world.router(client=mine)
    own = router.submit(ask(2), latency=BULK)
    assert router.flush() == 1
    world.finish()
    own.result(10)
    (line,) = router.status().backlog
    assert (line.request_count, line.served) == (1, False)
    router.close()

    holder = world.router(client=theirs)
    future = holder.future(request_id)
    holder.flush()
    world.finish(2)
    assert future.result(10).content
    assert [batch.api_key for batch in world.batches] == ["mine", "theirs"]


def test_no_credential_is_written_down(world: World, tmp_path: Any) -> None:
    """Not in the store, in no form that could be read back."""
    client = world.client(api_key="sk-ant-secret-key")
    router = world.router(client=client)
    router.submit(ask(), latency=BULK)
    router.flush()
    world.finish()
    wait_until(lambda: not router.status().batches, what="the batch to be collected")
    router.close()

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(b"sk-ant-secret-key" not in path.read_bytes() for path in files)
