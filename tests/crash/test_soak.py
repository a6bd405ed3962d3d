"""Random kills, stops and faults for a while: nothing accepted is lost, nothing is paid twice.

``SOAK_SECONDS`` and ``SOAK_SEED`` in the environment say how long and with which seed; `make soak`
goes on for minutes. The seed decides what is done, not when the machine does it: a failure may need
several tries.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.requests import OutcomeKind
from llmrouter.sandbox import ScaledClock, Turnaround, params_hash
from llmrouter.stores.disk import DiskStore
from support.haste import hastened
from support.requests import ask
from support.soaking import HASTE, SETTINGS, Soak
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.domain.requests import Outcome
    from llmrouter.reports.status import RouterStatus

SECONDS = float(os.environ.get("SOAK_SECONDS", "12"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
_DRAIN_SECONDS = 120.0

pytestmark = [pytest.mark.crash, pytest.mark.soak, pytest.mark.timeout(SECONDS + _DRAIN_SECONDS + 120)]


@pytest.fixture
def lively_world(tmp_path: Path) -> Iterator[World]:
    """A sandbox whose batches end by themselves, each after a time of its own."""
    spans = random.Random(SEED)
    with World(
        tmp_path,
        clock=ScaledClock(),
        turnaround=Turnaround.of(lambda _number, _requests: timedelta(seconds=spans.uniform(0.0, 1.5))),
        cancel_takes=timedelta(seconds=0.3),
        keep_bodies=False,
    ) as world:
        yield world


def drain(world: World, url: str) -> RouterStatus | None:
    """Sends and collects what is left in a store; what could not be, if any."""
    with world.router(store=url, **SETTINGS) as router:
        return None if router.drain(_DRAIN_SECONDS) else router.status()


def outcomes_of(url: str) -> list[Outcome]:
    """The whole log of a store."""
    store = DiskStore(Path(url.removeprefix("disk://")))
    outcomes, (chunk, cursor) = [], store.outcomes_since(0)
    while chunk:
        outcomes += chunk
        chunk, cursor = store.outcomes_since(cursor)
    store.close()
    return outcomes


def text_of(outcome: Outcome) -> str:
    """The answer, as the API gave it."""
    text = json.loads(outcome.raw)["result"]["message"]["content"][0]["text"]
    assert isinstance(text, str)
    return text


def hash_of(key: str) -> str:
    """What the sandbox's books know a request by."""
    return params_hash(ask(key))


def known_twice(url: str) -> int:
    """What a store knows to be paid twice, or perhaps: live calls that raced, or whose answer got lost."""
    store = DiskStore(Path(url.removeprefix("disk://")))
    try:
        return sum(one.wasted + one.resent for one in store.tally().values())
    finally:
        store.close()


def check_paid(ends: dict[str, Outcome], charges: Counter[str], known: int) -> None:
    """Whatever succeeded was paid once, and nothing else; each answer is that of its own request.

    A live call has no name at the API: one whose process was killed is made again, and counted.
    """
    succeeded = {key for key, end in ends.items() if end.kind is OutcomeKind.SUCCEEDED}
    paid = Counter(map(hash_of, succeeded))
    assert paid - charges == Counter()
    assert sum((charges - paid).values()) <= known
    assert all(text_of(ends[key]).startswith(f"[{hash_of(key)[:12]}") for key in succeeded)


def check_told(ends: dict[str, Outcome], told: list[dict[str, Any]]) -> None:
    """What any process was ever told still holds."""
    said: dict[str, set[str]] = defaultdict(set)
    for line in told:
        for name in line.keys() & {"answered", "failed", "canceled", "withdrawn"}:
            said[name].add(line[name])
        if "accepted" in line:
            assert ends[line["accepted"]].request_id == line["request_id"]
        if "answered" in line:
            assert text_of(ends[line["answered"]]) == line["text"]
    # A line of the API's stands behind what was canceled there, and nothing behind the owner's own cancel.
    own = {key for key, end in ends.items() if end.kind is OutcomeKind.CANCELED and not end.raw}
    assert said["canceled"] | said["withdrawn"] <= own
    assert not said["failed"] & (own | said["answered"])


def test_everything_accepted_is_answered_once_and_paid_once(
    lively_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was killed, stopped or refused, and whenever: the books and the store agree in the end."""
    (tmp_path / "actors").mkdir()
    with Soak(lively_world, tmp_path / "actors", SEED) as soak:
        soak.run(SECONDS)
    soak.heal()
    for module, name, value in hastened(**HASTE):
        monkeypatch.setattr(module, name, value)
    left = [status for store in soak.stores if (status := drain(lively_world, store)) is not None]
    log = [end for store in soak.stores for end in outcomes_of(store)]
    charges = lively_world.sandbox.books.count_charges()
    told = soak.told()
    print(  # noqa: T201  (for whoever has to repeat it)
        f"\nseed {SEED}: {SECONDS:g} s, {soak.tally}\n{len(log)} requests, "
        f"{dict(Counter(end.kind.value for end in log))}, {len(lively_world.batches)} batches, "
        f"{len(charges)} charged, {sum(times > 1 for times in charges.values())} of them more than once, "
        f"{soak.count_warnings('it will be canceled')} batches given up too early"
    )

    assert soak.complaints() == ""
    assert left == []
    ends = {str(end.key): end for end in log}
    assert len(ends) == len(log) == len({end.request_id for end in log})
    check_paid(ends, charges, sum(map(known_twice, soak.stores)))
    check_told(ends, told)
    assert len(told) > SECONDS
