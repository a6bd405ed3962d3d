"""Runs the benchmarks: `python -m benchmarks [SECTION ...] [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Report, Size, say

SECTIONS = ("enqueue", "group_commit", "processes", "flush", "collect", "backlog", "restart", "doubt", "wrap")
_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("llmrouter", "anthropic", "diskcache", "persist-queue", "huey", "litequeue")


def main() -> None:
    """Measures, prints one table and writes everything to a JSON file."""
    chosen, size = _arguments()
    # Settings of the user's own would be measured, too.
    for name in [name for name in os.environ if name.upper().startswith("LLMROUTER_")]:
        del os.environ[name]
    start, reports = time.monotonic(), []
    for name in chosen:
        say(name)
        reports.append(import_module(f"benchmarks.{name}").run(size))
    facts = _facts(size, time.monotonic() - start)
    Console(width=None if sys.stdout.isatty() else 170).print(_table(reports, facts))
    print(f"written to benchmarks/results/{_write(facts, reports).name}")


def _arguments() -> tuple[list[str], Size]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default all"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a smoke test, no measurement")
    given = parser.parse_args()
    for name in given.sections:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in given.sections or not given.sections], Size(given.quick)


def _facts(size: Size, took: float) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": size.quick,
        "took_seconds": round(took),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _table(reports: list[Report], facts: dict[str, Any]) -> Table:
    notes = [f"{report.title.split()[0]} {note}" for report in reports for note in report.notes]
    title = (
        f"{facts['cores']} cores, Python {facts['python']}, SQLite {facts['sqlite']}, {facts['machine']};"
        f" medians of interleaved rounds{'; QUICK: no measurement' if facts['quick'] else ''}"
    )
    table = Table(title=title, caption="\n".join(notes), caption_justify="left")
    table.add_column("")
    table.add_column("llmrouter", justify="right")
    table.add_column("beside")
    for name in ("ratio", "goal"):
        table.add_column(name, justify="right")
    table.add_column("")
    for report in reports:
        table.add_section()
        table.add_row(f"[bold]{report.title}")
        for line in report.lines:
            ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
            verdict = {True: "[green]met", False: "[red]missed", None: ""}[line.met]
            table.add_row(line.what, line.ours, line.beside, ratio, line.goal, verdict)
    return table


def _write(facts: dict[str, Any], reports: list[Report]) -> Path:
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    sections = [asdict(report) for report in reports]
    path.write_text(json.dumps({**facts, "sections": sections}, indent=1))
    return path


if __name__ == "__main__":
    main()
