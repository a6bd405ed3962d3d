"""Rules for call sites that change while a process runs."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Settings
from llmrouter.reloading import Reloader
from llmrouter.routing import By, Routing

if TYPE_CHECKING:
    from pathlib import Path

_times = count(1_700_000_000)


class Place:
    """A folder with settings, and a process that has read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, **arguments: Any) -> None:
        """Reads them."""
        settings = Settings(**arguments)
        self.routing = Routing(settings.latency_classes(), settings.site_classes(), settings.never_batch)
        self.reloader = Reloader(settings, self.routing)

    def write(self, text: str, name: str = "llmrouter.toml") -> None:
        """Writes a file, with a time of its own."""
        path = self.folder / name
        path.write_text(text)
        now = next(_times)
        os.utime(path, (now, now))

    def look(self) -> None:
        """The files are looked at."""
        self.reloader.run_once()

    def latency(self, site: str = "app:main") -> str:
        """The class of a call that nobody has tagged."""
        return self.routing.decide((site,)).latency


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings so far, which are then forgotten."""
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    return texts


@pytest.mark.parametrize(("name", "head"), [("llmrouter.toml", ""), ("pyproject.toml", "[tool.llmrouter]\n")])
def test_rules_count_without_a_restart(
    place: Place, name: str, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that are new, changed or gone; also where there was no file."""
    place.start()
    assert (place.latency(), place.routing.tags_sites) == ("real-time", False)
    place.write(f'{head}sites = {{"app:*" = "daily"}}', name)
    assert place.latency() == "real-time"
    place.look()
    assert (place.latency(), place.routing.tags_sites, place.routing.has_rules) == ("daily", True, True)
    place.write(f'{head}sites = {{"app:*" = "weekly"}}\nstreaming = "replay"', name)
    place.look()
    assert (place.latency(), place.reloader.settings.streaming) == ("weekly", "replay")
    place.write(f'{head}sites = {{"app:*" = "weekly"}}\nnever_batch = ["app:m*"]', name)
    place.look()
    assert place.routing.decide(("app:main",), tag="daily").by is By.NEVER_BATCH
    assert place.routing.never_batch("app:main")
    place.write(head, name)
    place.look()
    assert (place.latency(), place.routing.has_rules) == ("real-time", False)
    assert not place.routing.never_batch("app:main")
    assert told(caplog) == []


def test_the_order_of_rules_counts(place: Place) -> None:
    """The first that matches."""
    place.write('[sites]\n"app:*" = "daily"\n"*" = "weekly"')
    place.start()
    place.write('[sites]\n"*" = "weekly"\n"app:*" = "daily"')
    place.look()
    assert place.latency() == "weekly"


def test_what_a_site_says_of_the_cache_counts_too(place: Place) -> None:
    """It is one of its rules."""
    place.start()
    place.write('[sites."app:*"]\ncache = "auto"')
    place.look()
    assert place.reloader.settings.site("app:main").cache == "auto"


@pytest.mark.parametrize(
    "wrong",
    ['sites = {"app:*" = ', 'sites = {"app:*" = "dayly"}', "site = {}", "poll = 'x'", b"\xff", "store = 3"],
)
def test_a_wrong_file_keeps_the_rules_and_is_told_once(
    place: Place, wrong: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each version of it; when it is right again, it counts."""
    place.write('sites = {"app:*" = "daily"}')
    place.start()
    place.write(wrong if isinstance(wrong, str) else "")
    if isinstance(wrong, bytes):
        (place.folder / "llmrouter.toml").write_bytes(wrong)
    for _ in range(3):
        place.look()
    (text,) = told(caplog)
    assert text.startswith("the settings have changed and are wrong; the old rules for sites stay: ")
    assert place.latency() == "daily"
    place.write('sites = {"app:*" = "weekly"}')
    place.look()
    assert (place.latency(), told(caplog)) == ("weekly", [])


def test_other_settings_are_told_once_and_wait_for_a_restart(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The rules in the same file count at once."""
    place.start()
    for latency in ("daily", "weekly"):
        place.write(f'poll = "7s"\nmax_attempts = 2\nsites = {{"*" = "{latency}"}}')
        place.look()
        assert place.latency() == latency
    assert told(caplog) == ["settings have changed that count from the next start: poll, max_attempts"]
    assert place.reloader.settings.poll is None
    place.write("max_attempts = 5")
    place.look()
    assert told(caplog) == ["settings have changed that count from the next start: max_attempts"]


def test_a_rule_for_a_class_that_is_new_waits_for_a_restart(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls would fail: this process does not know the class."""
    place.start()
    place.write('[classes.overnight]\ndeadline = "12h"\n[sites]\n"*" = "overnight"')
    place.look()
    assert "sites.*: 'overnight' is a new class, which needs a restart" in told(caplog)[0]
    assert place.latency() == "real-time"


def test_arguments_and_variables_still_win(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program was started with is more specific than a file."""
    monkeypatch.setenv("LLMROUTER_NEVER_BATCH", '["secret:*"]')
    place.start(streaming="error", sites={"mine:*": "hourly"})
    place.write('streaming = "replay"\nnever_batch = []\nsites = {"app:*" = "daily"}')
    place.look()
    assert place.reloader.settings.streaming == "error"
    assert place.routing.never_batch("secret:main")
    assert (place.latency("mine:f"), place.latency()) == ("hourly", "daily")


def test_the_files_are_those_of_the_start(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process goes afterwards."""
    place.write('sites = {"*" = "daily"}')
    place.start()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "llmrouter.toml").write_text('sites = {"*" = "hourly"}')
    monkeypatch.chdir(elsewhere)
    place.look()
    assert place.latency() == "daily"
    place.write('sites = {"*" = "weekly"}')
    place.look()
    assert place.latency() == "weekly"


def test_a_file_that_is_gone_for_a_moment_changes_nothing(place: Place) -> None:
    """Editors replace files so. What must never be in a batch stays out of it; gone for good it counts."""
    place.write('never_batch = ["*"]')
    place.start()
    (place.folder / "llmrouter.toml").unlink()
    place.look()
    assert place.routing.never_batch("app:main")
    place.write('never_batch = ["*"]\n# the same')
    place.look()
    (place.folder / "llmrouter.toml").unlink()
    place.look()
    assert place.routing.never_batch("app:main")
    place.look()
    assert not place.routing.never_batch("app:main")


def test_what_is_written_between_reading_and_starting_is_seen(place: Place) -> None:
    """Files are looked at before they are read."""
    settings = Settings()
    place.write('sites = {"*" = "daily"}')
    place.routing = Routing(settings.latency_classes(), settings.site_classes(), settings.never_batch)
    place.reloader = Reloader(settings, place.routing)
    place.look()
    assert place.latency() == "daily"
