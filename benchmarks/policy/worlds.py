"""The worlds: arrivals, provider weather and limits, drawn from a seed. All times in minutes."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

DAY = 1440
ARRIVAL_DAYS = 6
ALL_DAYS = 15
EXPIRY = DAY

WINDOWS = {"hourly": 60, "daily": DAY, "weekly": 7 * DAY}
ARRIVALS = {"hourly": 2.8, "daily": 8.4, "weekly": 1.4}
"""A minute, with 1.4 real-time requests: 20, 60, 10 and 10 % of 14."""
REAL_TIME = 1.4

MEDIAN, SIGMA = 4.5, 0.75
"""Of a batch's time in calm weather: lognormal."""
LUCK_MINUTES = 180
"""Luck is the provider's load, so batches created within about that time share it."""
BUSY_FACTOR = 26
FIRST_RESULT = 0.5
"""Share of a batch's time after which its first request is done; the last is done at its end."""
HICCUP_EVERY, HICCUP_MOST = 720, 4
"""The live API fails for up to four minutes about twice a day."""

MIDDLE = 2 * DAY + 600
"""When what makes a world special begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What happens to everybody, whatever the seed."""

    name: str
    slow: tuple[int, int, float] | None = None
    """From, to, and how many times slower."""
    outage: tuple[int, int] | None = None
    """From, to: no batch makes any progress."""
    live_down: tuple[int, int] | None = None
    """From, to: no live call gets through."""
    live_per_minute: int = 500
    surge: tuple[int, str, int] | None = None
    """When, of which class, how many: at once."""
    stall_share: float = 0.006
    """Of the batches: they never end, and expire after 24 h."""
    stuck: tuple[float, float] = (0.6, 1.0)
    """The share of it that a stalled batch gets done: uniformly between these."""
    busy_minutes: tuple[int, int] = (180, 420)
    """How long a busy spell lasts, uniformly: an afternoon."""
    calm_minutes: float = 3000
    """How long it is calm between them, exponentially on average."""
    cancel_median: float = 1.0
    most_regret: float | None = 0.02
    """The goal; None where there is none."""
    most_missed: float = 0.0
    """Of the insured requests."""


WORLDS = (
    World(name="typical", most_regret=0.006),
    World(name="slow day (30 times slower)", slow=(2 * DAY, 3 * DAY, 30.0)),
    World(name="outage of 6 h", outage=(MIDDLE, MIDDLE + 360)),
    World(name="outage of 26 h", outage=(MIDDLE, MIDDLE + 1560)),
    World(
        name="outage of 26 h, 100,000 daily at once",
        outage=(MIDDLE, MIDDLE + 1560),
        surge=(MIDDLE, "daily", 100_000),
    ),
    World(name="10,000 hourly at once", surge=(MIDDLE, "hourly", 10_000)),
    World(
        name="outage of 6 h, live API down 45 min in it",
        outage=(MIDDLE, MIDDLE + 360),
        live_down=(MIDDLE + 120, MIDDLE + 165),
        most_missed=0.001,
    ),
    World(name="cancel takes 5 (median)", cancel_median=5.0),
    World(
        name="100,000 daily at once, 40 live a minute", surge=(MIDDLE, "daily", 100_000), live_per_minute=40
    ),
    World(name="one batch in ten stalls", stall_share=0.1, most_regret=None),
    World(
        name="busy spells of 2 h, stalled batches do nothing",
        busy_minutes=(60, 180),
        calm_minutes=1200,
        stuck=(0.0, 0.0),
        most_regret=None,
    ),
)


@dataclass(slots=True)
class Weather:
    """One draw of a world: the same for every policy."""

    world: World
    seed: int
    arrivals: dict[str, list[int]]
    real_time: list[int]
    work: list[float]
    """Minutes of calm weather that a batch takes which is created in each minute."""
    progress: list[float]
    """Minutes of calm weather that have passed before each minute."""
    live_up: list[bool]
    bound_cache: dict[tuple[int, int], float] = field(default_factory=dict)

    def end_of(self, created: int, work: float) -> float:
        """When a batch ends by itself, to the minute; infinite when it does not within 24 h."""
        goal = self.progress[created] + work
        last = min(created + EXPIRY, len(self.progress) - 1)
        if goal > self.progress[last]:
            return math.inf
        return bisect_left(self.progress, goal, created, last + 1)

    def done_share(self, created: int, work: float, now: int) -> float:
        """Which part of a batch's requests is done, whether or not it has ended."""
        passed = (self.progress[min(now, created + EXPIRY)] - self.progress[created]) / work
        return min(1.0, max(0.0, (passed - FIRST_RESULT) / (1 - FIRST_RESULT)))


def draw(world: World, seed: int) -> Weather:
    """Draws the weather of a world."""
    chance = random.Random(f"{seed} weather")
    minutes = ALL_DAYS * DAY
    last = ARRIVAL_DAYS * DAY
    arrivals = {
        name: [_poisson(chance, rate) if minute < last else 0 for minute in range(minutes)]
        for name, rate in ARRIVALS.items()
    }
    if world.surge is not None:
        minute, name, count = world.surge
        arrivals[name][minute] += count
    real_time = [_poisson(chance, REAL_TIME) for _ in range(minutes)]
    speed = _speeds(world, chance, minutes)
    return Weather(
        world=world,
        seed=seed,
        arrivals=arrivals,
        real_time=real_time,
        work=_luck(chance, minutes),
        progress=[0.0, *accumulate(speed)],
        live_up=_live_up(world, chance, minutes),
    )


def _poisson(chance: random.Random, rate: float) -> int:
    bound, product, count = math.exp(-rate), chance.random(), 0
    while product > bound:
        product *= chance.random()
        count += 1
    return count


def _speeds(world: World, chance: random.Random, minutes: int) -> list[float]:
    speeds: list[float] = []
    busy = False
    while len(speeds) < minutes:
        span = chance.uniform(*world.busy_minutes) if busy else chance.expovariate(1 / world.calm_minutes)
        speeds += [1 / BUSY_FACTOR if busy else 1.0] * max(1, round(span))
        busy = not busy
    del speeds[minutes:]
    if world.slow is not None:
        begin, end, factor = world.slow
        speeds[begin:end] = [1 / factor] * (end - begin)
    if world.outage is not None:
        begin, end = world.outage
        speeds[begin:end] = [0.0] * (end - begin)
    return speeds


def _luck(chance: random.Random, minutes: int) -> list[float]:
    """Lognormal, and correlated in time (Ornstein and Uhlenbeck's process)."""
    keep = math.exp(-1 / LUCK_MINUTES)
    fresh = math.sqrt(1 - keep**2)
    z, works = chance.gauss(0, 1), []
    for _ in range(minutes):
        works.append(MEDIAN * math.exp(SIGMA * z))
        z = keep * z + fresh * chance.gauss(0, 1)
    return works


def _live_up(world: World, chance: random.Random, minutes: int) -> list[bool]:
    up = [True] * minutes
    minute = 0.0
    while (minute := minute + chance.expovariate(1 / HICCUP_EVERY)) < minutes:
        for down in range(int(minute), min(minutes, int(minute) + chance.randint(1, HICCUP_MOST))):
            up[down] = False
    if world.live_down is not None:
        begin, end = world.live_down
        up[begin:end] = [False] * (end - begin)
    return up
