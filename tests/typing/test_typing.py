"""The types of the public API, as mypy and pyright see them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


CHECKED = str(ROOT / "tests" / "typing" / "wrap.py")
CHECKERS = {"mypy": ["--strict"], "pyright": ["--pythonpath", sys.executable]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_sees_no_difference_between_a_client_and_a_wrapped_one(checker: str) -> None:
    """Of any platform; what is wrong is still wrong."""
    command = [sys.executable, "-m", checker, *CHECKERS[checker], CHECKED]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr
