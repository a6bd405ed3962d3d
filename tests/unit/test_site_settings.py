"""Rules for call sites: which one counts, and what is said when one is wrong."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Settings
from llmrouter.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without files, and an environment without settings."""
    for name in list(os.environ):
        if name.upper().startswith("LLMROUTER"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_changed_by_default() -> None:
    """A caller's requests are sent as they are."""
    assert Settings().site("app.jobs:nightly").cache == "as-is"


@pytest.mark.parametrize("source", ["argument", "variable", "llmrouter.toml", "pyproject.toml"])
def test_the_first_pattern_that_matches_counts(
    source: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which they are written; upper and lower case differ."""
    rules: dict[str, Any] = {"app.jobs:one": {"cache": "as-is"}, "app.*": {"cache": "auto"}, "*": {}}
    arguments: dict[str, Any] = {}
    if source == "argument":
        arguments = {"sites": rules}
    elif source == "variable":
        monkeypatch.setenv("LLMROUTER_SITES", json.dumps(rules))
    else:
        table = "sites" if source == "llmrouter.toml" else "tool.llmrouter.sites"
        lines = [f"[{table}]"]
        for pattern, rule in rules.items():
            lines.append(
                f'"{pattern}" = {{ {", ".join(f"{name} = {value!r}" for name, value in rule.items())} }}'
            )
        (folder / source).write_text("\n".join(lines))

    settings = Settings(**arguments)

    names = ["app.jobs:one", "app.jobs:two", "APP.jobs:two", "other"]
    assert [settings.site(name).cache for name in names] == ["as-is", "auto", "as-is", "as-is"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"cache": "always"}, "sites.app.*.cache: Input should be 'as-is' or 'auto'"),
        ({"cash": "auto"}, "sites.app.*.cash: no such setting; did you mean cache?"),
        (3, "sites.app.*: "),
    ],
)
def test_a_wrong_rule_is_named(rule: object, said: str) -> None:
    """With the pattern it belongs to."""
    with pytest.raises(SettingsError) as caught:
        Settings(sites={"app.*": rule})

    assert said in str(caught.value)
