"""Rules for call sites in the settings: how they are written, and what is said when they are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Settings
from llmrouter.errors import SettingsError
from llmrouter.settings import SiteSettings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_text_is_short_for_a_latency_class() -> None:
    """In their order: the first that matches counts."""
    settings = Settings(sites={"nightly.*": "daily", "b": {"latency": "real-time", "cache": "auto"}, "*": {}})

    assert settings.site_classes() == {"nightly.*": "daily", "b": "real-time", "*": None}
    assert settings.site("nightly.eval") == SiteSettings(latency="daily")
    assert settings.site("other") == SiteSettings()


def test_rules_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`llmrouter.toml` in the working directory; `pyproject.toml` has them under `tool.llmrouter`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text('[tool.llmrouter.sites]\n"a" = "daily"\n"b.*" = "weekly"\n')
    assert Settings().site_classes() == {"a": "daily", "b.*": "weekly"}

    (tmp_path / "llmrouter.toml").write_text(
        'never_batch = ["billing.*"]\nstreaming = "replay"\n[sites]\na = "hourly"\n'
    )
    settings = Settings()
    assert settings.site_classes()["a"] == "hourly"
    assert (settings.never_batch, settings.streaming) == (("billing.*",), "replay")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"sites": {"a.*": "dayly"}}, r"sites\.a\.\*: 'dayly' is no latency class; did you mean daily\?"),
        ({"sites": {"a": {"latency": "soon"}}}, "'soon' is no latency class"),
        ({"sites": {"a": {"latncy": "daily"}}}, "did you mean latency"),
        ({"sites": {"a": 3600}}, "sites.a"),
        ({"never_batch": "billing.*"}, "never_batch"),
        ({"streaming": "batch"}, "streaming"),
    ],
)
def test_a_wrong_rule_is_refused(given: dict[str, Any], problem: str) -> None:
    """By its name, with what was meant."""
    with pytest.raises(SettingsError, match=problem):
        Settings(**given)


def test_a_rule_may_name_a_class_of_the_users_own() -> None:
    """As a tag may."""
    own = {"over-lunch": {"deadline": "90m"}}

    assert Settings(classes=own, sites={"*": "over-lunch"}).site_classes() == {"*": "over-lunch"}
