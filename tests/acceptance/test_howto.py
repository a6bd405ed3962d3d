"""The programs in docs/howto run; those of other people's clients are run by tests/clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.programs import HOWTO, check_runs, programs_in

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAMS = {
    f"{page}-{number}": program
    for page, count in (("cron", 2), ("nightly-evaluation", 2), ("notebook", 1))
    for number, program in enumerate(programs_in(HOWTO / f"{page}.md", count))
}


@pytest.mark.parametrize("program", _PROGRAMS.values(), ids=_PROGRAMS)
def test_programs_in_the_howto_pages_run(program: str, tmp_path: Path) -> None:
    """Each runs to its end against an API, with nothing on standard error, and a second time, too."""
    check_runs(program, tmp_path, times=2)
