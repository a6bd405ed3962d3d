"""Runs every policy in every world, on all cores, and adds the books up."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.policy.bound import bound_cost
from benchmarks.policy.policies import POLICIES
from benchmarks.policy.simulation import Simulation
from benchmarks.policy.worlds import WORLDS, draw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.policy.provider import Books

_SUMS = (
    "accepted",
    "missed",
    "missed_insured",
    "uninsured",
    "paid_twice",
    "by_live",
    "batches",
    "cancels",
    "overtaken",
)


@dataclass(slots=True)
class Total:
    """The books of a policy in a world, over all seeds."""

    bounds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    accepted: int = 0
    missed: float = 0.0
    missed_insured: float = 0.0
    uninsured: float = 0.0
    paid_twice: float = 0.0
    by_live: float = 0.0
    batches: int = 0
    cancels: int = 0
    overtaken: int = 0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, books: Books, bound: float) -> None:
        """Adds one seed."""
        self.bounds.append(bound)
        self.costs.append(books.cost)
        self._add_up(books)

    def merge(self, other: Total) -> None:
        """Adds the seeds of another."""
        self.bounds += other.bounds
        self.costs += other.costs
        self._add_up(other)

    def _add_up(self, other: Books | Total) -> None:
        self.causes += other.causes
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def cost(self) -> float:
        """Over all live, which costs 1 a request."""
        return sum(self.costs) / self.accepted

    @property
    def bound(self) -> float:
        """The same of the clairvoyant."""
        return sum(self.bounds) / self.accepted

    @property
    def regret(self) -> float:
        """What it cost more than the bound, as a share of that."""
        return sum(self.costs) / sum(self.bounds) - 1

    @property
    def worst_regret(self) -> float:
        """That of the worst seed."""
        return max(cost / bound for cost, bound in zip(self.costs, self.bounds, strict=True)) - 1

    def share(self, name: str) -> float:
        """A figure as a share of the requests."""
        return float(getattr(self, name)) / self.accepted


def run_all(
    worlds: Sequence[int], seeds: Iterable[int], policies: Sequence[str]
) -> Iterator[tuple[int, int, dict[str, Total]]]:
    """Runs world by world and seed by seed; yields the seed's books by policy, as they are done."""
    tasks = [(world, seed, tuple(policies)) for world in worlds for seed in seeds]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for (world, seed, _), books in zip(tasks, pool.map(_run_seed, tasks), strict=True):
            totals = {}
            for name, (book, bound) in books.items():
                totals[name] = total = Total()
                total.add(book, bound)
            yield world, seed, totals


def _run_seed(task: tuple[int, int, tuple[str, ...]]) -> dict[str, tuple[Books, float]]:
    place, seed, policies = task
    weather = draw(WORLDS[place], seed)
    bound, _ = bound_cost(weather)
    return {name: (Simulation(weather).run(POLICIES[name]()), bound) for name in policies}
