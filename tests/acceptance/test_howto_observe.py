"""The how-to page on observe mode runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from support.observed import observed
from support.requests import MODEL, ask

if TYPE_CHECKING:
    import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "wrap.md"


def test_the_table_of_the_page_prints_what_was_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each row."""
    section = PAGE.read_text().partition("## See what you would save first")[2].partition("\n## ")[0]
    _, table = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    with observed(sites={"*": "daily"}) as seen:
        for text in "ab":
            seen.sync.messages.create(**ask(text))
        list(seen.sync.messages.create(**ask(model="claude-nobody-knows"), stream=True))
        exec(table, {"router": seen.router})
    head, known, unknown = capsys.readouterr().out.splitlines()
    site = f"{__name__}:{test_the_table_of_the_page_prints_what_was_counted.__name__}"
    assert head.split()[:4] == ["day", "call", "site", "class"]
    assert f"{site} (claude-nobody-knows, streams)" in unknown
    assert unknown.split()[-6:] == ["daily", "1", "0", "1", "0.0000", "0.0000"]
    assert f"{site} ({MODEL})" in known
    assert known.split()[-6:-2] == ["daily", "2", "0", "0"]
    assert float(known.split()[-2]) > 0
