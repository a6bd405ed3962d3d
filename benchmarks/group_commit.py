"""Group commit: what 32 threads get done where each commit is synced to the disk."""

from __future__ import annotations

import statistics

from benchmarks.enqueue import Load, submit_power
from benchmarks.harness import (
    Report,
    Size,
    in_process,
    interleave,
    median_ratio,
    per_second,
    rate_of,
    scratch,
)

_THREADS = 32


def run_rounds(span: float, rounds: int) -> dict[str, list[float]]:
    """Rates with one thread and with many."""
    given = Load.of(1_000)

    def measure(threads: int) -> float:
        with scratch() as folder, submit_power(folder, given) as step:
            for place in range(20):
                step(place)
            return rate_of(step, threads, span)

    rates = interleave([1, _THREADS], measure, rounds)
    return {str(threads): found for threads, found in rates.items()}


def run(size: Size) -> Report:
    """Measures both."""
    report = Report('2. Group commit, durability="power"')
    rates = in_process(run_rounds, span=size.pick(1.5, 0.2), rounds=size.pick(5, 1))
    report.values["rates"] = rates
    one, many = rates["1"], rates[str(_THREADS)]
    report.at_least(
        f"submit, 1 kB, {_THREADS} threads",
        per_second(statistics.median(many)),
        f"1 thread: {per_second(statistics.median(one))}",
        median_ratio(many, one),
        2.5,
    )
    return report
