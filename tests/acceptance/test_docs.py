"""The documents say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmrouter import Settings
from llmrouter.domain.reporting import Hold, LiveReport, Uninsured
from llmrouter.reports.status import BacklogStatus, BatchStatus, EngineStatus, RouterStatus
from llmrouter.reports.tallies import TallyStatus
from llmrouter.reports.turnaround import TurnaroundStatus
from llmrouter.settings import ClassSettings, PolicySettings, SiteSettings

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "typer", "llmrouter.cli.app", "utils", "docs", "--name", "llmrouter"]


def test_cli_reference_is_what_the_commands_say(tmp_path: Path) -> None:
    """docs/cli.md is generated: `python` and `COMMAND`, with ``--output docs/cli.md``."""
    made = tmp_path / "cli.md"
    subprocess.run([sys.executable, *COMMAND, "--output", made], check=True, capture_output=True, timeout=60)
    assert made.read_text() == (ROOT / "docs" / "cli.md").read_text()


def test_every_setting_is_in_the_reference() -> None:
    """docs/settings.md names each setting, and none that there is not."""
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "settings.md").read_text(), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    nested: dict[str, type[BaseModel]] = {
        "classes.NAME": ClassSettings,
        "sites.PATTERN": SiteSettings,
        "policy": PolicySettings,
    }
    tables = {place.partition(".")[0] for place in nested}
    settings = {f"{place}.{name}" for place, model in nested.items() for name in model.model_fields}
    assert named == settings | {name for name in Settings.model_fields if name not in tables}


@pytest.mark.parametrize(
    ("table", "record", "more"),
    [
        (0, RouterStatus, {"queued", "in_batches", "going_live", "unattended"}),
        (1, EngineStatus, set()),
        (2, BacklogStatus, set()),
        (3, BatchStatus, set()),
        (4, Hold, set()),
        (5, LiveReport, set()),
        (6, Uninsured, set()),
        (7, TurnaroundStatus, set()),
        (8, TallyStatus, set()),
    ],
)
def test_every_field_of_the_status_is_in_the_reference(table: int, record: type, more: set[str]) -> None:
    """docs/status.md names each field of ``status --json``, and none that there is not."""
    reference = (ROOT / "docs" / "status.md").read_text().partition("\n## ")[0]
    tables = reference.split("| field | meaning |")[1:]
    rows = re.findall(r"^\| (`.*?) \|", tables[table], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {field.name for field in fields(record)} | more


def test_every_link_in_the_documents_leads_somewhere() -> None:
    """Relative links of README, ARCHITECTURE and docs name files that are there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
