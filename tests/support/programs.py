"""Runs the programs that documents show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from llmrouter.sandbox import Sandbox, ScaledClock, Turnaround

ROOT = Path(__file__).parents[2]
HOWTO = ROOT / "docs" / "howto"


def blocks_in(document: Path) -> list[str]:
    """Its blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def programs_in(document: Path, count: int) -> list[str]:
    """The blocks of a document whose Python is nothing but programs; fails unless there are so many."""
    blocks = blocks_in(document)
    assert len(blocks) == count, document
    return blocks


def check_runs(
    program: str, folder: Path, *, sandbox: Sandbox | None = None, times: int = 1, warnings: bool = True
) -> None:
    """Fails unless it runs to its end against an API, so many times, with nothing on standard error.

    Warnings are errors, unless `warnings` is False: then they are not looked at.
    """
    strictness = "error" if warnings else "ignore"
    if sandbox is None:
        sandbox = Sandbox(clock=ScaledClock(speed=3600), turnaround=Turnaround.typical(seed=0))
    with sandbox.serve() as server:
        for _ in range(times):
            ran = subprocess.run(
                [sys.executable, "-W", strictness, "-c", program],
                env=environment(server.base_url, folder),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (ran.returncode, ran.stderr) == (0, "")


def environment(base_url: str, folder: Path) -> dict[str, str]:
    """That of a program which talks to a sandbox, with a router that is quick about it."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LLMROUTER_", "PYTEST_"))
    }
    schedules = {f"LLMROUTER_CLASSES__{name}__FLUSH": "0.2" for name in ("HOURLY", "DAILY", "WEEKLY")}
    return (
        kept
        | schedules
        | {
            "ANTHROPIC_API_KEY": "sandbox",
            "ANTHROPIC_BASE_URL": base_url,
            "LLMROUTER_POLL": "0.2",
            "LLMROUTER_STORE": f"disk://{folder / 'store'}",
        }
    )
