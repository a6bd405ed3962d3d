"""Settings: what can be set, from where, and what is said when it is wrong."""

from __future__ import annotations

import difflib
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote
from zoneinfo import ZoneInfo

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

from llmrouter import failpoints
from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS
from llmrouter.domain.latency import (
    CLASS_NAME,
    REAL_TIME,
    CronLine,
    Interval,
    LatencyClass,
    Schedule,
    linger,
    name_weekdays,
    parse_schedule,
    parse_span,
)
from llmrouter.errors import SettingsError

ENV_PREFIX = "LLMROUTER_"
_NESTED = "__"
_BUILT_IN = {"hourly": timedelta(hours=1), "daily": timedelta(hours=24), "weekly": timedelta(days=7)}


def _schedule(value: Any) -> Schedule:
    schedule = value if isinstance(value, Interval | CronLine) else parse_schedule(value)
    if isinstance(schedule, CronLine):
        from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415  (slow to load; few need it)

        try:
            CronTrigger.from_crontab(name_weekdays(schedule.line))
        except ValueError as error:
            raise ValueError(f"{schedule.line!r} is no cron line: {error}") from None
    return schedule


def _zone(value: Any) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(str(value))
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{value!r} is no time zone; give a name like 'Europe/Berlin' or 'UTC'") from None


Span = Annotated[timedelta, BeforeValidator(parse_span)]
"""A number of seconds, or ``"90s"``, ``"15m"``, ``"24h"``, ``"7d"``."""


class ClassSettings(BaseModel):
    """One latency class of the user's own, or a built-in one changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline: Span | None = None
    """How long after it was accepted the answer is there. Built-in classes have one."""
    flush: Annotated[InstanceOf[Interval] | InstanceOf[CronLine], BeforeValidator(_schedule)] | None = None
    """When its backlog leaves: a span, or a cron line. By default a sixtieth of the deadline, clamped."""


class PolicySettings(BaseModel):
    """The numbers of docs/policy.md that can be changed; tests shrink them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    linger_min: Span = timedelta(minutes=0.5)
    linger_max: Span = timedelta(minutes=10)
    margin_min: Span = timedelta(minutes=2)
    margin_max: Span = timedelta(minutes=60)


class Settings(BaseSettings):
    """All settings of a router or worker.

    In this order of precedence: arguments, ``LLMROUTER_…`` variables (``__`` for nesting),
    ``llmrouter.toml`` in the working directory, ``[tool.llmrouter]`` in ``pyproject.toml`` there.

    Raises:
        SettingsError: A name is unknown (the message suggests the right one) or a value is wrong.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=_NESTED,
        toml_file="llmrouter.toml",
        pyproject_toml_table_header=("tool", "llmrouter"),
        extra="forbid",
        frozen=True,
    )

    store: str = ""
    """URL of the store. Empty: ``disk://`` in the user's data folder."""
    classes: dict[str, ClassSettings] = Field(default_factory=dict)
    """Latency classes by name: changes to the built-in ones, and new ones."""
    timezone: Annotated[InstanceOf[ZoneInfo], BeforeValidator(_zone), PlainSerializer(str)] | None = None
    """Time zone of cron lines; by default the machine's."""
    poll: Span | None = None
    """How often an open batch is looked at. By default from 10 s to 60 s, with its age."""
    batch_max_requests: int | None = Field(default=None, ge=1, le=API_MAX_REQUESTS)
    """Requests in a batch: this number exactly. By default that of docs/policy.md."""
    batch_max_bytes: int | None = Field(default=None, ge=1, le=API_MAX_BYTES)
    """Bytes of a batch as it is posted: this number exactly. By default that of docs/policy.md."""
    max_attempts: int = Field(default=3, ge=1, le=200)
    """Batches that a request may be in before its passing errors become its outcome."""
    in_doubt_grace: Span = timedelta(minutes=2)
    """How long the API is asked for a batch whose create has no clear answer before it counts as not
    created."""
    retention: Span = timedelta(days=29)
    """How long an answer is kept after it was settled; one that nobody has picked up is kept longer."""
    delete_after_collect: bool = False
    """Whether a batch is deleted at the API once its results are safely stored."""
    durability: Literal["process", "power"] = "process"
    """``"power"``: each enqueue is synced to the disk. Intents and outcomes always are."""
    real_time_threads: int = Field(default=128, ge=1)
    """Real-time requests of ``submit`` that may be under way at once."""
    policy: PolicySettings = PolicySettings()

    def __init__(self, **values: Any) -> None:
        _check_names(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None
        except SourceError as error:  # A variable that should be JSON and is not.
            raise SettingsError(str(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the most specific one first."""
        return (
            init_settings,
            env_settings,
            _from_file(TomlConfigSettingsSource, settings_cls, "llmrouter.toml"),
            _from_file(PyprojectTomlConfigSettingsSource, settings_cls, "pyproject.toml"),
        )

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        for name, own in self.classes.items():
            if name == REAL_TIME:
                raise ValueError("classes.real-time: real-time requests do not wait; it has nothing to set")
            if len(name) > 32 or CLASS_NAME.fullmatch(name) is None:
                raise ValueError(f"classes.{name}: a class is called by lower case words joined by hyphens")
            if own.deadline is None and name not in _BUILT_IN:
                raise ValueError(f"classes.{name}: a class of your own needs a deadline")
        return self

    def latency_classes(self) -> dict[str, LatencyClass]:
        """Every class but real-time, by name."""
        classes = {}
        for name in {**_BUILT_IN, **self.classes}:
            own = self.classes.get(name, ClassSettings())
            deadline = own.deadline or _BUILT_IN[name]
            flush = own.flush or Interval(
                every=linger(deadline, at_least=self.policy.linger_min, at_most=self.policy.linger_max)
            )
            classes[name] = LatencyClass(name=name, deadline=deadline, flush=flush)
        return classes

    def store_url(self) -> str:
        """The store, with the default filled in."""
        if self.store:
            return self.store
        folder = Path(platformdirs.user_data_dir("llmrouter", appauthor=False)) / "store"
        return f"disk://{quote(str(folder))}"


def _from_file(
    source: type[TomlConfigSettingsSource], settings_cls: type[BaseSettings], name: str
) -> PydanticBaseSettingsSource:
    try:
        return source(settings_cls)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name}: {error}") from None


def _check_names(values: dict[str, Any]) -> None:
    """Refuses unknown names of arguments and variables; pydantic-settings overlooks the latter."""
    known = set(Settings.model_fields)
    for name in values:
        if name not in known:
            raise SettingsError(f"{name}: no such setting{_suggest(name, known)}")
    variables = {f"{ENV_PREFIX}{field.upper()}" for field in known}
    for name in os.environ.keys() - {failpoints.VARIABLE}:
        if name.upper().startswith(ENV_PREFIX) and name.upper().split(_NESTED)[0] not in variables:
            raise SettingsError(f"{name}: no such setting{_suggest(name, variables)}")


def _explain(error: ValidationError) -> str:
    """One line for each wrong setting."""
    lines = []
    for detail in error.errors():
        place = [str(part) for part in detail["loc"] if not str(part).startswith("is-instance")]
        if detail["type"] == "extra_forbidden":
            model: type[BaseModel] = Settings
            if len(place) > 1:
                model = ClassSettings if place[0] == "classes" else PolicySettings
            lines.append(f"{'.'.join(place)}: no such setting{_suggest(place[-1], model.model_fields)}")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{'.'.join(place)}: {message}" if place else message)
    return "; ".join(dict.fromkeys(lines))


def _suggest(name: str, known: Any) -> str:
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    return f"; did you mean {spelled[close[0]]}?" if close else ""
