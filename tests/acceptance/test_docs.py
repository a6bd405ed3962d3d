"""The documents say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llmrouter import Settings

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
    named = {name.split(".")[0] for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert named == set(Settings.model_fields)


def test_every_link_in_the_documents_leads_somewhere() -> None:
    """Relative links of README, ARCHITECTURE and docs name files that are there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
