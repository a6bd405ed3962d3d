"""Settings: what can be set, from where, and what is said when it is wrong."""

from __future__ import annotations

import copy
import difflib
import os
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
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
    PrivateAttr,
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
from llmrouter.domain.scheduling import Margin
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

Usd = Annotated[Decimal, Field(ge=0)]
"""US dollars."""


class ClassSettings(BaseModel):
    """One latency class of the user's own, or a built-in one changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline: Span | None = None
    """How long after it was accepted the answer is there. Built-in classes have one."""
    flush: Annotated[InstanceOf[Interval] | InstanceOf[CronLine], BeforeValidator(_schedule)] | None = None
    """When its backlog leaves: a span, or a cron line. By default a sixtieth of the deadline, clamped."""
    max_escalation_usd: Usd | None = None
    """Most that its escalations may cost a day (UTC); none by default."""


class SiteSettings(BaseModel):
    """What holds for the call sites whose names match a pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency: str | None = None
    """The class of calls on a wrapped client that are not tagged; None: the rule says nothing of it."""
    cache: Literal["as-is", "auto"] = "as-is"
    """``"auto"``: the router puts `cache_control` on what their requests share, where they have none of
    their own, and may warm the cache before a batch leaves."""


def _site(value: Any) -> Any:
    return {"latency": value} if isinstance(value, str) else value


class PolicySettings(BaseModel):
    """The numbers of docs/policy.md that can be changed; tests shrink them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    linger_min: Span = timedelta(minutes=0.5)
    linger_max: Span = timedelta(minutes=10)
    margin_min: Span = timedelta(minutes=2)
    margin_max: Span = timedelta(minutes=60)
    min_window: Span = timedelta(minutes=15)
    """With a smaller one a request goes live at once. Other spans go with it: a fifth of it must be left
    on top of margin and cancel lead for a batch to be worth its while, twelve times it for a second one."""
    cancel_lead: Span | None = None
    """How long before its start a batch is canceled; by default what cancels take here."""
    restart_age: Span | None = None
    """From which age on a batch that three younger ones have overtaken is sent again; off by default."""
    ramp: Span = timedelta(minutes=1)
    """In which the rate of live calls doubles after a pause, from a tenth of it."""


FileStates: TypeAlias = tuple[tuple[int, int, int] | None, ...]

_FILES: dict[str, type[TomlConfigSettingsSource]] = {
    "llmrouter.toml": TomlConfigSettingsSource,
    "pyproject.toml": PyprojectTomlConfigSettingsSource,
}

_folder: ContextVar[Path | None] = ContextVar("llmrouter_settings_folder", default=None)
"""Where the files are; None: in the working directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Where settings come from. It does not make them different."""

    folder: Path = field(compare=False)
    values: dict[str, Any] = field(compare=False)
    """The arguments."""
    file_states: FileStates = field(compare=False)


def _look_at_files(folder: Path) -> FileStates:
    return tuple(_look_at(folder / name) for name in _FILES)


def _look_at(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # It was deleted.
        return Path()


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
        pyproject_toml_table_header=("tool", "llmrouter"),
        extra="forbid",
        frozen=True,
    )

    store: str = ""
    """URL of the store. Empty: ``disk://`` in the user's data folder."""
    classes: dict[str, ClassSettings] = Field(default_factory=dict)
    """Latency classes by name: changes to the built-in ones, and new ones."""
    sites: dict[str, Annotated[SiteSettings, BeforeValidator(_site)]] = Field(default_factory=dict)
    """Rules for call sites, by patterns of their names (`fnmatchcase`); the first that matches counts.

    A text is short for a rule with that latency class. What a call or its block is tagged with wins."""
    never_batch: tuple[str, ...] = ()
    """Patterns of call sites that always go live, whatever they are tagged with."""
    streaming: Literal["live", "error", "replay"] = "live"
    """What a call that streams does where its tag is a batch class. ``"replay"``: wait, then stream it."""
    observe: bool = False
    """Whether calls on a wrapped client all go live, whatever they are tagged with, and are counted."""
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
    live_concurrency: int = Field(default=32, ge=1)
    """Live calls of escalations that may be under way at once."""
    live_requests_per_minute: float | None = Field(default=None, gt=0)
    """The account's limit of live requests; by default what the API's headers say."""
    live_share: float = Field(default=0.8, gt=0, le=1)
    """How much escalations may use of what is left of the limits."""
    max_escalation_usd: Usd | None = None
    """Most that escalations may cost a day (UTC), all classes together; none by default."""
    durability: Literal["process", "power"] = "process"
    """``"power"``: each enqueue is synced to the disk. Intents and outcomes always are."""
    real_time_threads: int = Field(default=128, ge=1)
    """Real-time requests of ``submit`` that may be under way at once."""
    policy: PolicySettings = PolicySettings()

    _origin: _Origin = PrivateAttr()

    def __init__(self, **values: Any) -> None:
        # Before the files are read: what is written into them from now on is told by `look_at_files`.
        folder = _folder.get() or _here()
        files = _look_at_files(folder)
        _check_names(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error)) from None
        except SourceError as error:  # A variable that should be JSON and is not.
            raise SettingsError(str(error)) from None
        self._origin = _Origin(folder=folder, values=copy.deepcopy(values), file_states=files)

    def look_at_files(self) -> FileStates:
        """What tells the versions of the files apart that settings can be in; None for one that is not there.

        A `stat` for each.
        """
        return _look_at_files(self._origin.folder)

    @property
    def file_states(self) -> FileStates:
        """The same, from just before they were read."""
        return self._origin.file_states

    def reread(self) -> Settings:
        """The settings as they would be now, with the same arguments and the files in the same folder.

        Raises:
            SettingsError: As ever.
        """
        token = _folder.set(self._origin.folder)
        try:
            return Settings(**self._origin.values)
        finally:
            _folder.reset(token)

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
            *(_from_file(source, settings_cls, name) for name, source in _FILES.items()),
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

    @model_validator(mode="after")
    def _check_sites(self) -> Self:
        known = {REAL_TIME, *_BUILT_IN, *self.classes}
        for pattern, rule in self.sites.items():
            if rule.latency is not None and rule.latency not in known:
                hint = _suggest(rule.latency, known)
                raise ValueError(f"sites.{pattern}: {rule.latency!r} is no latency class{hint}")
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

    def site_classes(self) -> dict[str, str | None]:
        """The latency class of each rule for call sites, by its pattern, in their order."""
        return {pattern: rule.latency for pattern, rule in self.sites.items()}

    @property
    def margin(self) -> Margin:
        """What is kept before a deadline."""
        return Margin(at_least=self.policy.margin_min, at_most=self.policy.margin_max)

    def site(self, name: str) -> SiteSettings:
        """What holds for a call site."""
        matches = (rule for pattern, rule in self.sites.items() if fnmatchcase(name, pattern))
        return next(matches, SiteSettings())

    def store_url(self) -> str:
        """The store, with the default filled in."""
        if self.store:
            return self.store
        folder = Path(platformdirs.user_data_dir("llmrouter", appauthor=False)) / "store"
        return f"disk://{quote(str(folder))}"


_TABLES: dict[str, type[BaseModel]] = {"classes": ClassSettings, "sites": SiteSettings}


def _from_file(
    source: type[TomlConfigSettingsSource], settings_cls: type[BaseSettings], name: str
) -> PydanticBaseSettingsSource:
    try:
        return source(settings_cls, (_folder.get() or Path()) / name)
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
                model = _TABLES.get(place[0], PolicySettings)
            lines.append(f"{'.'.join(place)}: no such setting{_suggest(place[-1], model.model_fields)}")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            lines.append(f"{'.'.join(place)}: {message}" if place else message)
    return "; ".join(dict.fromkeys(lines))


def _suggest(name: str, known: Any) -> str:
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    return f"; did you mean {spelled[close[0]]}?" if close else ""
