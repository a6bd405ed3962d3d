"""Settings: where they come from, which source wins, and what is said when one is wrong."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from llmrouter import ClassSettings, PolicySettings, Settings
from llmrouter.domain.latency import CronLine, Interval
from llmrouter.errors import LlmrouterError, SettingsError

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


def test_without_any_source_there_are_three_classes() -> None:
    """Hourly, daily, weekly, with docs/policy.md's linger for a schedule."""
    classes = Settings().latency_classes()

    assert {name: (one.deadline, one.flush) for name, one in classes.items()} == {
        "hourly": (timedelta(hours=1), Interval(every=timedelta(minutes=1))),
        "daily": (timedelta(hours=24), Interval(every=timedelta(minutes=10))),
        "weekly": (timedelta(days=7), Interval(every=timedelta(minutes=10))),
    }


def test_the_default_store_is_a_folder_of_the_users() -> None:
    """Not of the working directory: two scripts of a user share it."""
    assert Settings().store_url().startswith("disk:///")
    assert Settings(store="memory://").store_url() == "memory://"


@pytest.mark.parametrize("source", ["argument", "variable", "llmrouter.toml", "pyproject.toml"])
def test_a_setting_comes_from_any_source(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spelled alike in all of them."""
    arguments: dict[str, Any] = {}
    if source == "argument":
        arguments = {"poll": "0.2", "classes": {"nightly": {"deadline": "12h", "flush": "0 22 * * *"}}}
    elif source == "variable":
        monkeypatch.setenv("LLMROUTER_POLL", "0.2")
        monkeypatch.setenv("LLMROUTER_CLASSES__NIGHTLY__DEADLINE", "12h")
        monkeypatch.setenv("LLMROUTER_CLASSES__NIGHTLY__FLUSH", "0 22 * * *")
    else:
        table = "" if source == "llmrouter.toml" else "tool.llmrouter."
        head = "" if source == "llmrouter.toml" else "[tool.llmrouter]\n"
        (folder / source).write_text(
            f'{head}poll = 0.2\n[{table}classes.nightly]\ndeadline = "12h"\nflush = "0 22 * * *"\n'
        )

    settings = Settings(**arguments)

    assert settings.poll == timedelta(seconds=0.2)
    nightly = settings.latency_classes()["nightly"]
    assert (nightly.deadline, nightly.flush) == (timedelta(hours=12), CronLine(line="0 22 * * *"))


def test_the_nearest_source_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, variables, llmrouter.toml, pyproject.toml, in this order."""
    (folder / "pyproject.toml").write_text(
        "[tool.llmrouter]\nmax_attempts = 4\npoll = 4\nbatch_max_requests = 4\nreal_time_threads = 4\n"
    )
    (folder / "llmrouter.toml").write_text("max_attempts = 3\npoll = 3\nbatch_max_requests = 3\n")
    monkeypatch.setenv("LLMROUTER_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("LLMROUTER_POLL", "2")

    settings = Settings(max_attempts=1)

    assert settings.max_attempts == 1
    assert settings.poll == timedelta(seconds=2)
    assert settings.batch_max_requests == 3
    assert settings.real_time_threads == 4


def test_sources_are_merged_name_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable for one field of a class leaves the others to the file."""
    (folder / "llmrouter.toml").write_text(
        '[classes.daily]\ndeadline = "20h"\nflush = "5m"\n[policy]\nlinger_min = "1s"\nmargin_min = "2s"\n'
    )
    monkeypatch.setenv("LLMROUTER_CLASSES__DAILY__FLUSH", "0.3")
    monkeypatch.setenv("LLMROUTER_POLICY__LINGER_MIN", "3s")

    settings = Settings()

    daily = settings.latency_classes()["daily"]
    assert daily.deadline == timedelta(hours=20)
    assert daily.flush == Interval(every=timedelta(seconds=0.3))
    assert settings.policy.linger_min == timedelta(seconds=3)
    assert settings.policy.margin_min == timedelta(seconds=2)


def test_only_files_of_the_working_directory_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project above does not reach in."""
    (folder / "llmrouter.toml").write_text("max_attempts = 9\n")
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")

    assert Settings().max_attempts == 3


def test_a_pyproject_without_a_table_is_no_source(folder: Path) -> None:
    """Most have none."""
    (folder / "pyproject.toml").write_text('[project]\nname = "other"\n')

    assert Settings() == Settings(max_attempts=3)


def test_spans_may_be_timedeltas() -> None:
    """In Python there is no need for text."""
    settings = Settings(poll=timedelta(seconds=2), classes={"daily": {"flush": timedelta(minutes=3)}})

    assert settings.poll == timedelta(seconds=2)
    assert settings.latency_classes()["daily"].flush == Interval(every=timedelta(minutes=3))


def test_settings_may_be_given_as_their_own_models() -> None:
    """Typed code needs no dictionaries."""
    settings = Settings(
        classes={"soon": ClassSettings(deadline=timedelta(minutes=20), flush="30s")},
        policy=PolicySettings(linger_max=timedelta(seconds=1)),
    )

    assert settings.latency_classes()["soon"].flush == Interval(every=timedelta(seconds=30))
    assert settings.latency_classes()["weekly"].flush == Interval(every=timedelta(seconds=1))


def test_a_class_without_a_schedule_lingers_a_sixtieth_of_its_deadline() -> None:
    """Within what the policy allows."""
    classes = Settings(classes={"soon": {"deadline": "2h"}}).latency_classes()

    assert classes["soon"].flush == Interval(every=timedelta(minutes=2))


def test_a_built_in_class_keeps_its_deadline_when_its_schedule_changes() -> None:
    """And stays where it was in the order."""
    classes = Settings(classes={"daily": {"flush": "1m"}}).latency_classes()

    assert classes["daily"].deadline == timedelta(hours=24)
    assert list(classes) == ["hourly", "daily", "weekly"]


def test_a_time_zone_is_named() -> None:
    """As in the time zone database."""
    assert Settings(timezone="Europe/Berlin").timezone == ZoneInfo("Europe/Berlin")


def test_settings_do_not_change() -> None:
    """A router reads them once."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().poll = timedelta(seconds=1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pol": 1}, "pol: no such setting; did you mean poll?"),
        ({"Poll": 1}, "Poll: no such setting; did you mean poll?"),
        ({"xyz": 1}, "xyz: no such setting"),
        ({"policy": {"lingr_min": 1}}, "policy.lingr_min: no such setting; did you mean linger_min?"),
        ({"classes": {"daily": {"flsh": 1}}}, "classes.daily.flsh: no such setting; did you mean flush?"),
        ({"poll": "soon"}, "poll: 'soon' is no span"),
        ({"poll": 0}, "poll: 0 is no span"),
        ({"poll": timedelta(0)}, "is no span: it must be longer than nothing"),
        ({"poll": timedelta(seconds=-1)}, "is no span: it must be longer than nothing"),
        ({"policy": {"margin_min": "-1s"}}, "policy.margin_min: '-1s' is no span"),
        ({"max_attempts": 0}, "max_attempts: .*greater than or equal to 1"),
        ({"batch_max_requests": 100_001}, "batch_max_requests: .*less than or equal to 100000"),
        ({"batch_max_bytes": 256_000_001}, "batch_max_bytes: .*less than or equal to 256000000"),
        ({"durability": "paper"}, "durability: .*'process' or 'power'"),
        ({"timezone": "Berlin"}, "timezone: 'Berlin' is no time zone"),
        ({"timezone": "../etc"}, r"timezone: '\.\./etc' is no time zone"),
        ({"classes": {"nightly": {}}}, "classes.nightly: .*needs a deadline"),
        ({"classes": {"real-time": {"deadline": "1h"}}}, "classes.real-time: .*nothing to set"),
        ({"classes": {"Big One": {"deadline": "1h"}}}, "classes.Big One: .*lower case words"),
        ({"classes": {"a" * 33: {"deadline": "1h"}}}, "lower case words"),
        ({"classes": {"daily": {"deadline": "99999999d"}}}, "classes.daily.deadline: .*a hundred years"),
        ({"classes": {"daily": {"flush": "tonight"}}}, "classes.daily.flush: 'tonight' is no schedule"),
        ({"classes": {"daily": {"flush": timedelta(0)}}}, "classes.daily.flush: .*is no"),
        ({"classes": {"daily": {"flush": "0 25 * * *"}}}, r"classes.daily.flush: '0 25 \* \* \*' is no cron"),
        ({"classes": {"daily": {"flush": "0 22 * * 8"}}}, r"classes.daily.flush: '0 22 \* \* 8' is no cron"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], said: str) -> None:
    """The setting, what is wrong with it, and the right name where one is near."""
    with pytest.raises(SettingsError, match=f"^(?s:.*){said}"):
        Settings(**arguments)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Not one error after another."""
    with pytest.raises(SettingsError) as caught:
        Settings(max_attempts=0, poll="soon")

    assert "max_attempts" in str(caught.value)
    assert "poll" in str(caught.value)


def test_a_settings_error_is_one_of_ours_and_a_value_error() -> None:
    """So both ways to catch it work."""
    with pytest.raises(LlmrouterError):
        Settings(max_attempts=0)
    with pytest.raises(ValueError, match="max_attempts"):
        Settings(max_attempts=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LLMROUTER_POL", "LLMROUTER_POL: no such setting; did you mean LLMROUTER_POLL?"),
        ("LLMROUTER__POLL", "LLMROUTER__POLL: no such setting"),
        ("LLMROUTER_POLICY__LINGR_MIN", "policy.lingr_min: no such setting; did you mean linger_min?"),
        ("LLMROUTER_CLASSES__DAILY__FLSH", "classes.daily.flsh: no such setting; did you mean flush?"),
    ],
)
def test_a_variable_that_is_no_setting_is_an_error(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a typing error would be found weeks later, by the price."""
    monkeypatch.setenv(name, "1")

    with pytest.raises(SettingsError) as caught:
        Settings()

    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["llmrouter.toml", "pyproject.toml"])
def test_a_name_in_a_file_that_is_no_setting_is_an_error(name: str, folder: Path) -> None:
    """In both files."""
    head = "[tool.llmrouter]\n" if name == "pyproject.toml" else ""
    (folder / name).write_text(f"{head}max_attemps = 2\n")

    with pytest.raises(SettingsError, match="max_attemps: no such setting; did you mean max_attempts"):
        Settings()


@pytest.mark.parametrize("name", ["llmrouter.toml", "pyproject.toml"])
@pytest.mark.parametrize("content", [b"poll = = 3\n", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(name: str, content: bytes, folder: Path) -> None:
    """A settings error like any other."""
    (folder / name).write_bytes(content)

    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings()


def test_a_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a whole table is given in one."""
    monkeypatch.setenv("LLMROUTER_CLASSES", "{nightly")

    with pytest.raises(SettingsError, match="classes"):
        Settings()


def test_a_table_may_be_given_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for names of classes that a shell's variable cannot hold."""
    monkeypatch.setenv("LLMROUTER_CLASSES", '{"over-night": {"deadline": "12h"}}')

    assert Settings().latency_classes()["over-night"].deadline == timedelta(hours=12)
