"""The clairvoyant lower bound: what a planner pays who knows the weather and every batch's luck.

For each request alone, with no limit on live calls, no stalled batch, cancels that take no time, and
batches created in any minute: the largest part that batches can answer by the deadline, one batch after
the other; the rest is live. No policy of the simulator can answer more of a minute's requests by batches
in time, since batches that are created in the same minute share their luck.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from benchmarks.policy.worlds import DAY, EXPIRY, WINDOWS

if TYPE_CHECKING:
    from benchmarks.policy.worlds import Weather

_FINE_WINDOW = 120


def bound_cost(weather: Weather) -> tuple[float, int]:
    """The least cost of all that can wait, live calls at 1 each, and how many requests that is."""
    cost, count = 0.0, 0
    for name, arrivals in weather.arrivals.items():
        window = WINDOWS[name]
        for minute, number in enumerate(arrivals):
            if number:
                cost += number * (1 - 0.5 * _best_share(weather, minute, minute + window))
                count += number
    return cost, count


def _best_share(weather: Weather, accepted: int, deadline: int) -> float:
    """The largest part that batches created within a window can answer by its end."""
    deadline = min(deadline, len(weather.progress) - 1)
    progress, work = weather.progress, weather.work
    # Nothing that is created after this makes any progress before the deadline.
    until = min(bisect_left(progress, progress[deadline], accepted, deadline), len(work) - 1)
    minutes = range(accepted, until)
    for created in minutes:
        if progress[min(deadline, created + EXPIRY)] - progress[created] >= work[created]:
            return 1.0
    if not minutes:
        return 0.0
    return _chained(weather, minutes, deadline)


def _chained(weather: Weather, minutes: range, deadline: int) -> float:
    """One batch after the other, each canceled for the next: backwards over the minutes."""
    step = 1 if len(minutes) <= _FINE_WINDOW else max(1, len(minutes) * 10 // DAY)
    best: dict[int, float] = {deadline: 0.0}
    later = [deadline]
    alone = max(weather.done_share(created, weather.work[created], deadline) for created in minutes)
    answer = 0.0
    for created in reversed(minutes[::step]):
        work = weather.work[created]
        for end in later:
            share = weather.done_share(created, work, end)
            answer = max(answer, share + (1 - share) * best[end])
        best[created] = answer
        later.append(created)
    return max(answer, alone)
