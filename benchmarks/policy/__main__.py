"""Simulates the policies: `python -m benchmarks.policy [--quick] [--seeds N]`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import ROOT, say, seconds
from benchmarks.policy.policies import POLICIES
from benchmarks.policy.runs import Total, run_all
from benchmarks.policy.worlds import WORLDS
from llmrouter.domain.blocks import Block, BlockKind, Conditions, Rules
from llmrouter.domain.escalation import plan_latest_starts
from llmrouter.domain.rates import PerMinute, Work

OURS = "llmrouter"
_MOST_TWICE = 0.002
_MOST_SECONDS = 0.005
_RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    """Simulates, prints a table, draws the picture and writes everything to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, no picture: a smoke test")
    parser.add_argument("--seeds", type=int, default=8, help="draws of each world (8)")
    given = parser.parse_args()
    seeds = 2 if given.quick else given.seeds
    start, worlds = time.monotonic(), range(len(WORLDS))
    totals = {place: {name: Total() for name in POLICIES} for place in worlds}
    for place, seed, found in run_all(worlds, range(seeds), tuple(POLICIES)):
        if seed == 0:
            say(WORLDS[place].name)
        for name, total in found.items():
            totals[place][name].merge(total)
    took = time.monotonic() - start
    console = Console(width=None if sys.stdout.isatty() else 250)
    console.print(_table(totals))
    planned = _plan_seconds()
    met = [
        verdict for place in worlds for verdict in [_met(place, totals[place][OURS])] if verdict is not None
    ]
    plan = f"{seconds(planned)}, {'met' if planned < _MOST_SECONDS else 'missed'}"
    console.print(
        f"\nGoals met in {sum(met)} of {len(met)} worlds. A plan for 1,000 blocks: {plan}."
        f" {seeds} seeds, {took:,.0f} s, {os.cpu_count()} cores"
        f"{'; QUICK: too few seeds to say anything' if given.quick else ''}."
    )
    print(f"written to benchmarks/results/{_write(totals, seeds, planned).name}")
    if not given.quick:
        from benchmarks.policy.picture import draw_picture  # noqa: PLC0415  (not needed for a smoke test)

        picture = ROOT / "docs" / "policy.svg"
        draw_picture(picture, {WORLDS[place].name: found for place, found in totals.items()})
        print("drawn to docs/policy.svg")


def _table(totals: dict[int, dict[str, Total]]) -> Table:
    """A row for each world, in Markdown: it is what docs/policy.md shows."""
    table = Table(box=box.MARKDOWN)
    table.add_column("world", no_wrap=True)
    for name in (
        "clair-voyant",
        "cost",
        "regret",
        "worst seed",
        "missed",
        "not insured",
        "paid twice",
        "goals",
        "restarting: regret",
        "all batch: missed",
        "hourly live: regret, missed",
        "cancel at 90 %: regret, missed",
    ):
        table.add_column(name, justify="right")
    for place, found in totals.items():
        ours, by_hand, late = found[OURS], found["hourly live, rest batch"], found["cancel at 90 %"]
        table.add_row(
            WORLDS[place].name,
            f"{ours.bound:.3f}",
            f"{ours.cost:.3f}",
            percent(ours.regret),
            percent(ours.worst_regret),
            percent(ours.share("missed")),
            percent(ours.share("uninsured")),
            percent(ours.share("paid_twice"), 3),
            {True: "met", False: "missed", None: ""}[_met(place, ours)],
            percent(found["llmrouter, restarting"].regret),
            percent(found["all batch"].share("missed")),
            f"{percent(by_hand.regret, 1)}, {percent(by_hand.share('missed'))}",
            f"{percent(late.regret)}, {percent(late.share('missed'))}",
        )
    return table


def percent(share: float, digits: int = 2) -> str:
    """A share as it is read; nothing at all is 0."""
    return "0" if abs(share) < 1e-9 else f"{100 * share:.{digits}f} %"


def _met(place: int, total: Total) -> bool | None:
    world = WORLDS[place]
    if world.most_regret is None:
        return None
    return (
        total.regret <= world.most_regret
        and total.share("missed_insured") <= world.most_missed
        and total.share("paid_twice") <= _MOST_TWICE
    )


def _plan_seconds() -> float:
    """How long the plan for 1,000 blocks takes, in the median of 50."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    windows = [timedelta(hours=hours) for hours in (1, 24, 168)]
    kinds = list(BlockKind)
    blocks = [
        Block(
            block_id=f"b{place}",
            kind=kinds[place % len(kinds)],
            work=Work(requests=1 + place * 37 % 500),
            deadline_at=now + windows[place % 3] * ((place * 61 % 997 + 1) / 998),
            window=windows[place % 3],
        )
        for place in range(1_000)
    ]
    conditions = Conditions(rate=PerMinute(requests=400), storm=True, ramping=True)
    took = []
    for _ in range(50):
        begin = time.perf_counter()
        plan_latest_starts(now, blocks, conditions, Rules())
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def _write(totals: dict[int, dict[str, Total]], seeds: int, planned: float) -> Path:
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"policy-{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    worlds = {
        WORLDS[place].name: {
            name: {
                **{one.name: getattr(total, one.name) for one in fields(total)},
                "cost": total.cost,
                "bound": total.bound,
                "regret": total.regret,
            }
            for name, total in found.items()
        }
        for place, found in totals.items()
    }
    path.write_text(json.dumps({"seeds": seeds, "plan_seconds": planned, "worlds": worlds}, indent=1))
    return path


if __name__ == "__main__":
    main()
