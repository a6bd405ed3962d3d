"""What a new process has to make of what a killed one left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.processes import Puppet
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.world import World

IDLE = {"working": True, "queued": 0, "states": []}
AT_ONCE: dict[str, Any] = {"classes": {BULK: {"deadline": "800d", "flush": 0.05}}}
"""Settings: what waits leaves at once, without being told to."""


def answer_all(
    world: World,
    numbers: Iterable[int],
    *,
    every: int = 1,
    others: int = 0,
    already: int = 0,
    complaints: Iterable[str] = (),
    **settings: Any,
) -> dict[int, str]:
    """A new process goes on where the killed one stopped: everything is answered, and paid once.

    Args:
        world: Where it works.
        numbers: What was submitted.
        every: Waits for every so many of them only.
        others: How many more there are in the store.
        already: How many were sent and answered before.
        complaints: What the new process says on its standard error.
        settings: Of its router.

    Returns:
        The texts by number.
    """
    sent = len(sorted(numbers)) + others + already
    wanted = sorted(numbers)[::every]
    with Puppet(world) as process:
        assert process.ask("open", "opened", **settings) is True
        process.ask("wait", "waiting", numbers=wanted)
        process.ask("flush", "flushed")
        world.finish_when_sent(sent)
        process.wait_for(lambda _: len(process.values("answered")) == len(wanted), what="all answers")
        wait_until(lambda: process.status() == IDLE, what="nothing to be left")
        process.stop(*complaints)
    texts = dict(zip(process.values("answered"), process.values("text"), strict=True))
    assert sorted(texts) == wanted
    world.check_books(sent)
    return texts
