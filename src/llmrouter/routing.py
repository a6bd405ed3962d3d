"""Which way a call goes: its latency class and the name of its call site."""

from __future__ import annotations

import difflib
import enum
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import UnknownLatencyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType, FrameType

    from llmrouter.domain.latency import LatencyClass

_CACHED_RULES = 1024
"""Call sites may be named by the thousand."""

_CACHED_CODES = 4096

_SENDERS = frozenset({"anthropic", "httpx2", "llmrouter"})
"""Packages between a call and the code that makes it."""

_RUNNERS = frozenset({"asyncio", "concurrent", "contextvars", "threading"})
"""Packages that run a call for somebody else, whose frame is gone then, or further up."""


class By(enum.Enum):
    """What decided about a call's latency class; the first of these that has a say does."""

    NEVER_BATCH = "never_batch"
    TAG = "tag"
    BLOCK = "block"
    RULE = "rule"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The latency class of a call, and what decided."""

    latency: str
    by: By
    pattern: str | None = None
    """The pattern that matched, for `By.NEVER_BATCH` and `By.RULE`."""

    @property
    def reason(self) -> str:
        """What decided, in words."""
        match self.by:
            case By.NEVER_BATCH:
                return f"never_batch has {self.pattern!r}"
            case By.TAG:
                return f"the call is tagged {self.latency}"
            case By.BLOCK:
                return f"its block says {self.latency}"
            case By.RULE:
                return f"sites has {self.pattern!r} = {self.latency!r}"
            case By.DEFAULT:
                return "nothing says otherwise"


class Routing:
    """Looks latency classes up, and decides between what was said of a call."""

    def __init__(
        self,
        classes: Mapping[str, LatencyClass],
        sites: Mapping[str, str | None] | None = None,
        never_batch: Sequence[str] = (),
    ) -> None:
        """Keeps the rules; changes of the objects are not seen.

        Args:
            classes: By name; without real-time.
            sites: As for `set_rules`.
            never_batch: As for `set_rules`.
        """
        self.classes = classes
        self.has_rules = False
        """Whether the name of a call's site matters."""
        self.tags_sites = False
        """Whether it matters for calls of which nobody else says anything."""
        self.set_rules(sites or {}, never_batch)

    def set_rules(self, sites: Mapping[str, str | None], never_batch: Sequence[str]) -> None:
        """Replaces the rules, all at once, also while calls look them up.

        Args:
            sites: Latency classes by patterns of call sites (`fnmatchcase`), the first that matches
                counts; None: it says nothing of the class.
            never_batch: Patterns of call sites that always go live.
        """
        find = partial(_find_rule, tuple(sites.items()), tuple(never_batch))
        self._rule = lru_cache(_CACHED_RULES)(find)
        self.has_rules = bool(sites or never_batch)
        self.tags_sites = any(latency not in (None, REAL_TIME) for latency in sites.values())

    def batch_class(self, name: str) -> LatencyClass:
        """The class of a tag that is not real-time.

        Raises:
            UnknownLatencyError: There is no such class.
        """
        try:
            return self.classes[name]
        except (KeyError, TypeError):
            known = [REAL_TIME, *self.classes]
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UnknownLatencyError("latency", f"{name!r} is no latency class; {hint}") from None

    def decide(self, names: tuple[str, ...], *, tag: str | None = None, block: str | None = None) -> Decision:
        """What a call does: the most specific one that says something decides.

        Args:
            names: Of its call site: what the user calls it, ``module:function``; none without rules.
            tag: The latency class that the call itself was given.
            block: That of the block it is in.

        Raises:
            UnknownLatencyError: There is no such class.
        """
        rule = self._rule(names)
        if rule is not None and rule.by is By.NEVER_BATCH:
            return rule
        if tag is not None:
            return Decision(latency=self._checked(tag), by=By.TAG)
        if block is not None:
            return Decision(latency=self._checked(block), by=By.BLOCK)
        return rule or _DEFAULT

    def never_batch(self, name: str) -> bool:
        """Whether what comes from this call site must go live."""
        rule = self._rule((name,)) if self.has_rules else None
        return rule is not None and rule.by is By.NEVER_BATCH

    def _checked(self, name: str) -> str:
        if name != REAL_TIME:
            self.batch_class(name)
        return name


def _find_rule(
    sites: Sequence[tuple[str, str | None]], never_batch: Sequence[str], names: tuple[str, ...]
) -> Decision | None:
    for pattern in never_batch:
        if _matches(names, pattern):
            return Decision(latency=REAL_TIME, by=By.NEVER_BATCH, pattern=pattern)
    for pattern, latency in sites:
        if _matches(names, pattern):
            return Decision(latency=latency, by=By.RULE, pattern=pattern) if latency else None
    return None


_DEFAULT = Decision(latency=REAL_TIME, by=By.DEFAULT)


def call_site(depth: int) -> str:
    """``module:function`` of a caller.

    Args:
        depth: How many frames up from the caller of this function; 1 is its caller's caller.
    """
    # inspect.stack costs a thousand times more.
    return _name(sys._getframe(depth + 1))  # noqa: SLF001  (see above)


def sdk_call_site() -> str:
    """``module:function`` of whoever made the call of the SDK that is under way; to be asked in a middleware.

    Of a call that an asyncio task or a pool's thread makes by itself, it is what runs it.
    """
    here: FrameType | None = sys._getframe(1)  # noqa: SLF001  (as above)
    frame, roles = here, _roles
    # Other middleware may stand between: the code that calls is beyond the client's own `request`.
    while frame is not None and (roles.get(id(frame.f_code)) or _role(frame)) != _REQUEST:
        frame = frame.f_back
    frame, runner = frame or here, None
    while frame is not None:
        role = roles.get(id(frame.f_code)) or _role(frame)
        if role == _CALLER:
            return _names.get(id(frame.f_code)) or _name(frame)
        if role == _RUNNER:
            runner = runner or _name(frame)
        frame = frame.f_back
    return runner or "?:?"


_REQUEST, _SENDER, _RUNNER, _CALLER = 1, 2, 3, 4
"""What code has to do with a call of the SDK: the client's own `request` is the first."""

_roles: dict[int, int] = {}
_names: dict[int, str] = {}
_codes: dict[int, CodeType] = {}
"""Of code that was on a stack, by its `id`, which stays its own while it is kept here."""


def _role(frame: FrameType) -> int:
    """What the code of a frame has to do with a call; from then on it is known."""
    code = frame.f_code
    module: str = frame.f_globals.get("__name__", "?")
    package = module.partition(".")[0]
    if package in _SENDERS:
        role = _REQUEST if package == "anthropic" and code.co_name == "request" else _SENDER
    else:
        role = _RUNNER if package in _RUNNERS else _CALLER
    if len(_codes) < _CACHED_CODES:  # Code can be made by the million.
        _codes[id(code)], _names[id(code)], _roles[id(code)] = code, _name(frame), role
    return role


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}"


def _matches(names: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
