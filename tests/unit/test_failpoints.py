"""Named places where a test kills the process, that cost nothing when they are off."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmrouter
from llmrouter import failpoints
from llmrouter.stores.memory import MemoryStore
from support.engine import GRACE, Bench

if TYPE_CHECKING:
    from collections.abc import Callable

REACHED = re.compile(r'failpoints\.reach\(\s*"([^"]+)"')


def struck(setting: str, *reached: str) -> list[tuple[int, int]]:
    """At which of these points, by number, a process with this setting gets which signal."""
    strikes: list[tuple[int, int]] = []
    reach = failpoints._armed(setting)
    for place, name in enumerate(reached):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                signal, "pthread_kill", lambda _, number, place=place: strikes.append((place, number))
            )
            reach(name)
    return strikes


def test_switched_off_it_does_nothing() -> None:
    """As in every process without the variable: an empty function."""
    assert failpoints.reach is failpoints._off
    assert failpoints.reach("no such point") is None


@pytest.mark.parametrize(
    ("setting", "strikes"),
    [
        ("claimed", [(1, signal.SIGKILL)]),
        ("claimed:1", [(1, signal.SIGKILL)]),
        ("claimed:2", [(2, signal.SIGKILL)]),
        ("claimed:4", []),
        ("claimed:stop", [(1, signal.SIGSTOP)]),
        ("claimed:3:stop", [(3, signal.SIGSTOP)]),
    ],
)
def test_it_strikes_at_the_chosen_point_the_chosen_time(setting: str, strikes: list[tuple[int, int]]) -> None:
    """Once, and nowhere else."""
    assert struck(setting, "created", "claimed", "claimed", "claimed", "settled") == strikes


@pytest.mark.parametrize("setting", ["clamied", ":2", "claimed:x", "stop"])
def test_a_setting_that_is_wrong_is_an_error(setting: str) -> None:
    """A test that would never be killed proves nothing."""
    with pytest.raises(ValueError, match=r"point|invalid literal"):
        failpoints._armed(setting)


def test_every_point_is_in_the_code_and_every_place_has_a_point() -> None:
    """A point that nothing reaches kills nobody; a place without one cannot be chosen."""
    source = Path(llmrouter.__file__).parent
    reached = {name for file in source.rglob("*.py") for name in REACHED.findall(file.read_text())}

    assert reached == set(failpoints.POINTS)


def test_a_process_is_really_killed() -> None:
    """As by kill -9: it goes no further."""
    code = "from llmrouter import failpoints; failpoints.reach('claimed'); print('never')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {failpoints.VARIABLE: "claimed"},
        stdout=subprocess.PIPE,
        check=False,
    )

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


class Killed(BaseException):
    """What happens at a point in these tests."""


def run_until_killed(bench: Bench, work: Callable[[], Any], point: str) -> None:
    """Does some work until a point is reached."""

    def reach(name: str) -> None:
        if name == point:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "reach", reach)
        with pytest.raises(Killed):
            work()


@pytest.mark.parametrize("point", ["claimed", "created", "recorded", "polling", "half-settled", "settled"])
def test_the_next_process_goes_on_from_every_point_of_the_engine(point: str) -> None:
    """Each request is answered once and sent once. (With real processes: tests/crash.)"""
    bench = Bench(store=MemoryStore())
    requests = bench.enqueue(3)

    def work() -> None:
        bench.flush()
        bench.api.end()
        bench.collect()

    run_until_killed(bench, work, point)
    bench.restart()
    bench.lease = bench.hand_over()
    for _ in range(4):
        bench.reconcile()
        bench.flush()
        bench.api.end()
        bench.collect()
        bench.reconcile(passes=GRACE)

    assert len(bench.outcomes(requests)) == 3
    sent = [one for posted in bench.api.posted for one in posted.request_ids]
    assert sorted(sent) == sorted(request.request_id for request in requests)
