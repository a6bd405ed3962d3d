"""The code in README.md runs, and what it shows of the demo is what the demo prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmrouter.sandbox import Sandbox, ScaledClock, Turnaround

README = Path(__file__).parents[2] / "README.md"
_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
_PROGRAMS = [block for block in _BLOCKS if "from llmrouter import Router" in block]
_TESTS = [block for block in _BLOCKS if "pytest_plugins" in block]


def test_readme_has_programs_and_a_test() -> None:
    """The two lists below are not empty by mistake."""
    assert len(_PROGRAMS) >= 4
    assert len(_TESTS) == 1


@pytest.mark.parametrize("program", _PROGRAMS)
def test_programs_in_the_readme_run(program: str, tmp_path: Path) -> None:
    """Each program runs to its end against an API, with nothing on standard error."""
    sandbox = Sandbox(clock=ScaledClock(speed=3600), turnaround=Turnaround.typical(seed=0))
    with sandbox.serve() as server:
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=_environment(server.base_url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    """What it shows of the pytest plugin works in a folder of its own."""
    (tmp_path / "test_mine.py").write_text(_TESTS[0])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        env=_environment("", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def _environment(base_url: str, folder: Path) -> dict[str, str]:
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
