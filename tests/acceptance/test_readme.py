"""The code in README.md runs, and what it shows of the demo is what the demo prints."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.programs import ROOT, blocks_in, check_runs, environment

if TYPE_CHECKING:
    from pathlib import Path

_BLOCKS = blocks_in(ROOT / "README.md")
_PROGRAMS = [block for block in _BLOCKS if "from llmrouter import Router" in block]
_TESTS = [block for block in _BLOCKS if "pytest_plugins" in block]


def test_readme_has_programs_and_a_test() -> None:
    """The two lists below are not empty by mistake."""
    assert len(_PROGRAMS) >= 4
    assert len(_TESTS) == 1


@pytest.mark.parametrize("program", _PROGRAMS)
def test_programs_in_the_readme_run(program: str, tmp_path: Path) -> None:
    """Each program runs to its end against an API, with nothing on standard error."""
    check_runs(program, tmp_path)


def test_the_test_in_the_readme_passes(tmp_path: Path) -> None:
    """What it shows of the pytest plugin works in a folder of its own."""
    (tmp_path / "test_mine.py").write_text(_TESTS[0])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        env=environment("", tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout
