"""Prompt caching through the router: what is sent, how a backlog is grouped, warmed, and counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Router, Settings
from llmrouter.domain.requests import Route
from llmrouter.errors import KeyConflictError
from llmrouter.stores.memory import MemoryStore
from support.requests import MODEL, ask
from support.world import BULK, quick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.domain.requests import Waiting
    from support.world import World

pytestmark = pytest.mark.timeout(60)

GUIDE = "Llamas are answered for in the manner of this guide. " * 400
"""5,300 tokens: longer than any model's minimum."""
AUTO = {"auto.*": {"cache": "auto"}}
HOUR = {"type": "ephemeral", "ttl": "1h"}
MARKED = [{"type": "text", "text": GUIDE, "cache_control": HOUR}]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store that a test may look into."""
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture
def router(world: World, store: MemoryStore) -> Iterator[Router]:
    """A router whose backlog stays where it is."""
    settings = Settings(**quick(sites=AUTO))
    with Router(world.client(), store=store, settings=settings, worker=False) as router:
        yield router


def params(world: World) -> list[dict[str, Any]]:
    """The requests that were posted, by their first message."""
    return sorted(
        (item["params"] for item in world.batch_items()), key=lambda body: body["messages"][0]["content"]
    )


def posts(world: World) -> list[str]:
    """What was posted, in order."""
    return [
        record.endpoint
        for record in world.sandbox.books.records
        if record.endpoint in ("messages.create", "batches.create")
    ]


def only(store: MemoryStore) -> Waiting:
    """The one line of the backlog."""
    (waiting,) = store.waiting()
    return waiting


def test_only_a_site_that_says_so_gets_cache_control(world: World) -> None:
    """And there only requests that have none of their own."""
    own = [{"type": "text", "text": GUIDE, "cache_control": {"type": "ephemeral"}}]
    router = world.router(sites=AUTO)
    futures = [
        router.submit(ask("1", system=GUIDE), latency=BULK, site="auto.one"),
        router.submit(ask("2", system=own), latency=BULK, site="auto.one"),
        router.submit(ask("3", system="Be brief."), latency=BULK, site="auto.one"),
        router.submit(ask("4", system=GUIDE), latency=BULK, site="other"),
    ]
    router.flush()
    world.finish()
    for future in futures:
        future.result(10)

    assert [body["system"] for body in params(world)] == [MARKED, own, "Be brief.", GUIDE]


def test_the_backlog_knows_which_requests_begin_alike(router: Router, store: MemoryStore) -> None:
    """From the second one on; by the caller's own breakpoints, too, which may not be warmed."""
    own = [{"type": "text", "text": "Short.", "cache_control": {"type": "ephemeral"}}]
    router.submit_many([ask(number, system=GUIDE) for number in range(12)], latency=BULK, site="auto.one")
    router.submit_many([ask(number, system=own) for number in range(4)], latency=BULK, site="other")
    router.submit_many([ask(number) for number in range(3)], latency=BULK, site="auto.one")

    counts = {prefix.startswith("auto-"): count for prefix, count in only(store).prefixes.items()}

    assert counts == {True: 11, False: 3}


def test_documents_of_their_own_do_not_make_groups_of_their_own(router: Router, store: MemoryStore) -> None:
    """What they share besides does."""
    system = [{"type": "text", "text": "Sum up.", "cache_control": HOUR}]
    asks = []
    for number in range(20):
        document = {"type": "text", "text": f"{number} {GUIDE}", "cache_control": {"type": "ephemeral"}}
        asks.append(ask(system=system, messages=[{"role": "user", "content": [document]}]))

    router.submit_many(asks, latency=BULK, site="other")

    assert list(only(store).prefixes.values()) == [19]


def test_a_key_is_known_again_although_its_request_was_changed(router: Router) -> None:
    """The same request is changed in the same way each time."""
    first = router.submit(ask("1", system=GUIDE), latency=BULK, site="auto.one", key="k")
    router.submit(ask("2", system=GUIDE), latency=BULK, site="auto.one")
    again = router.submit(ask("1", system=GUIDE), latency=BULK, site="auto.one", key="k")

    assert again.request_id == first.request_id
    with pytest.raises(KeyConflictError):
        router.submit(ask("1", system=GUIDE), latency=BULK, site="other", key="k")


def test_a_backlog_is_warmed_before_its_batch_is_created(world: World, store: MemoryStore) -> None:
    """By one live call with the same beginning and no answer, which is counted, and not made again."""
    with Router(world.client(), store=store, settings=Settings(**quick(sites=AUTO))) as router:
        for number in range(2):
            futures = router.submit_many(
                [ask(f"{number}/{place}", system=GUIDE) for place in range(12)], latency=BULK, site="auto.one"
            )
            router.flush()
            world.finish(number + 1)
            for future in futures:
                future.result(10)

    assert posts(world) == ["messages.create", "batches.create", "batches.create"]
    (posted,) = world.bodies("messages.create")
    assert json.loads(posted) == {
        "model": MODEL,
        "max_tokens": 0,
        "system": MARKED,
        "messages": [{"role": "user", "content": "."}],
    }
    tally = store.tally()[BULK]
    assert tally.warm_ups == tally.warm_up_use.requests == 1
    assert tally.warm_up_use.written_1h_tokens == len(GUIDE) // 4
    assert sum(tally.live_usd.values()) > 0
    assert tally.settled == {Route.BATCH: 24}
    assert tally.cache[Route.BATCH].written_1h_tokens == 24 * (len(GUIDE) // 4)


@pytest.mark.parametrize(
    ("site", "count", "system"), [("other", 12, MARKED), ("auto.one", 10, GUIDE), ("auto.one", 12, "Brief.")]
)
def test_no_other_backlog_is_warmed(world: World, site: str, count: int, system: object) -> None:
    """One of a site that does not say so, of too few prompts that begin alike, or of too short ones."""
    router = world.router(sites=AUTO)
    futures = router.submit_many(
        [ask(number, system=system) for number in range(count)], latency=BULK, site=site
    )
    router.flush()
    world.finish()
    for future in futures:
        future.result(10)

    assert posts(world) == ["batches.create"]


def test_a_warm_up_that_fails_does_not_keep_the_batch(world: World) -> None:
    """The API is overloaded: the batch leaves cold."""
    world.fault(kind="status", endpoint="messages.create", status=529)
    router = world.router(sites=AUTO)
    futures = router.submit_many(
        [ask(number, system=GUIDE) for number in range(12)], latency=BULK, site="auto.one"
    )
    assert router.flush() == 1
    world.finish()
    for future in futures:
        future.result(10)

    assert posts(world) == ["messages.create", "batches.create"]


def test_the_ledger_counts_what_the_cache_did(world: World, store: MemoryStore) -> None:
    """Of what came back."""
    with Router(world.client(), store=store, settings=Settings(**quick())) as router:
        futures = router.submit_many([ask(number) for number in range(5)], latency=BULK)
        router.flush()
        world.finish()
        for future in futures:
            future.result(10)

    use = store.tally()[BULK].cache[Route.BATCH]
    assert use.requests == 5
    assert use.input_tokens > 0
    assert use.hit_rate is None
