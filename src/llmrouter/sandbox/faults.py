"""Faults on request: what goes wrong, at which calls, and how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from llmrouter.sandbox.batches import OUTCOMES, Item, Outcome
from llmrouter.sandbox.errors import TYPE_BY_STATUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Endpoint = Literal[
    "messages.create",
    "messages.count_tokens",
    "batches.create",
    "batches.retrieve",
    "batches.list",
    "batches.cancel",
    "batches.delete",
    "batches.results",
]
FaultKind = Literal["status", "drop", "delay", "cut", "lines", "item", "hide", "stall"]
CutAt = Literal["line_end", "mid_line", "broken"]

_ONLY_ENDPOINT: dict[FaultKind, Endpoint] = {
    "cut": "batches.results",
    "lines": "batches.results",
    "item": "batches.create",
    "hide": "batches.create",
    "stall": "batches.create",
}
_NOT_NEGATIVE = ("skip", "lines", "calls", "lists", "seconds", "repeated", "missing", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a fault is matched against: one HTTP call, or one item of a batch being created."""

    endpoint: Endpoint
    batch_id: str | None = None
    """The batch in the path, if there is one."""
    items: Sequence[Item] = ()
    """The requests it is about: sent by it, or in the batch it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    `kind` says what; the fields of the other kinds are ignored:

    | kind | what happens | its fields |
    |---|---|---|
    | `"status"` | the call is answered with an error | `status`, `error_type`, `message`, `headers`, `details`, `accepted` |
    | `"drop"` | the connection is dropped without an answer | `accepted` |
    | `"delay"` | the call takes longer | `seconds`, `accepted` |
    | `"cut"` | the results end early | `lines`, `cut_at` |
    | `"lines"` | the results have lines they should not have, or lack some; what was charged stays so | `repeated`, `missing`, `unknown`, `strangers`, `added` |
    | `"item"` | items of a new batch fare badly; each counts as one strike | `outcome`, `error_type`, `message` |
    | `"hide"` | a new batch is answered with 404, and left out of the list, at first | `calls`, `lists` |
    | `"stall"` | a new batch stands still when a part of its items is done; it ends when it expires or is canceled | `done` |

    The spend limits of the API, one's own and that of a tier:

        end = "You will regain access on 2026-12-01 at 00:00 UTC."
        text = f"You have reached your specified API usage limits. {end}"
        Fault(kind="status", endpoint="batches.create", status=400, message=text)
        text = f"You have reached your API usage limits: the threshold of your API tier. {end}"
        details = {"error_code": "enforced_spend_limit_reached"}
        Fault(kind="status", endpoint="batches.create", status=429, message=text, details=details)

    Raises:
        ValueError: a value out of range, or an endpoint at which this kind cannot happen.
    """  # noqa: E501 - a table row cannot be broken

    kind: FaultKind
    endpoint: Endpoint | None = None
    """Where it strikes; None: at every endpoint its kind can happen at."""
    count: int | None = 1
    """How many times it strikes; None: for ever."""
    skip: int = 0
    """How many matching calls it lets pass first."""
    custom_id: str | None = None
    """Strikes only where a `custom_id` contains this text."""
    model: str | None = None
    """Strikes only where a `model` contains this text."""
    when: Callable[[Call], bool] | None = None
    """Strikes only where this says so."""
    accepted: bool = False
    """Whether the call does its work first: the batch or message is booked, the client is not told."""
    status: int = 500
    """The HTTP status of the error."""
    error_type: str | None = None
    """The error's type; by default the one that belongs to `status`, for items `api_error`."""
    message: str = "A fault of the sandbox"
    """The error's message."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the error, such as `{"retry-after": "2"}`."""
    details: Mapping[str, Any] | None = None
    """The error's `details`, such as `{"error_code": "enforced_spend_limit_reached"}`."""
    seconds: float = 0.0
    """The delay, in real seconds. A client that gives up meanwhile is not served, unless `accepted`."""
    lines: int = 0
    """How many whole lines of results are sent."""
    cut_at: CutAt = "line_end"
    """`line_end`, `mid_line`: a body without content-length that ends there, as if complete;
    `broken`: a connection that breaks off, which the client can see."""
    outcome: Outcome = "errored"
    """What becomes of the item: `errored`, `canceled`, or `expired`: then the batch ends at `expires_at`."""
    calls: int = 1
    """How many calls that name the new batch are answered with 404."""
    lists: int = 0
    """How many calls of the list leave the new batch out: one that reads several pages makes several."""
    done: float = 0.0
    """What part of a stalled batch's items gets done: 0 or more, below 1."""
    repeated: int = 0
    """How many of the first lines come twice, the second time at the end."""
    missing: int = 0
    """How many of the last lines are missing."""
    unknown: int = 0
    """How many of the first lines have a result of a type that nobody knows: `{"type": "postponed"}`."""
    strangers: Sequence[str] = ()
    """Names of requests that are not in the batch, each to be answered at the end as if it succeeded."""
    added: Sequence[str] = ()
    """Lines to be added at the end as they stand, without their line feed."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(FaultKind))}, not {self.kind!r}")
        if self.endpoint is not None and self.endpoint not in get_args(Endpoint):
            raise ValueError(
                f"endpoint must be one of {', '.join(get_args(Endpoint))}, not {self.endpoint!r}"
            )
        only = _ONLY_ENDPOINT.get(self.kind)
        if only is not None and self.endpoint not in (None, only):
            raise ValueError(f"a fault of kind {self.kind!r} happens at {only!r}, not {self.endpoint!r}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be 1 or more, or None, not {self.count!r}")
        if self.cut_at not in get_args(CutAt):
            raise ValueError(f"cut_at must be one of {', '.join(get_args(CutAt))}, not {self.cut_at!r}")
        if self.outcome not in OUTCOMES or self.outcome == "succeeded":
            raise ValueError(f"outcome must be errored, expired or canceled, not {self.outcome!r}")
        if not 400 <= self.status <= 599:
            raise ValueError(f"status must be from 400 to 599, not {self.status!r}")
        if not 0 <= self.done < 1:
            raise ValueError(f"done must be 0 or more and below 1, not {self.done!r}")
        self._check_amounts()

    def _check_amounts(self) -> None:
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if isinstance(self.strangers, str) or isinstance(self.added, str):
            raise ValueError("strangers and added must be lists of texts")  # noqa: TRY004 - as all others

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fault:
        """The fault that a JSON object with these fields (all but `when`) describes.

        Raises:
            ValueError: an unknown field, a missing `kind`, a value of the wrong type or out of range.
        """
        known = {described.name for described in fields(cls)} - {"when"}
        unknown = sorted(value.keys() - known)
        if unknown:
            raise ValueError(f"a fault has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"not a fault: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON, without `when`."""
        return {
            described.name: getattr(self, described.name)
            for described in fields(self)
            if described.name != "when"
        }

    @property
    def error(self) -> tuple[str, str]:
        """Type and message of the error it answers with."""
        by_default = "api_error" if self.kind == "item" else TYPE_BY_STATUS.get(self.status, "api_error")
        return self.error_type or by_default, self.message

    def matches(self, call: Call) -> bool:
        """Whether it can strike at `call`, its `count` and `skip` aside."""
        where = self.endpoint or _ONLY_ENDPOINT.get(self.kind)
        if where is not None and where != call.endpoint:
            return False
        if self.custom_id is not None and not any(self.custom_id in item.custom_id for item in call.items):
            return False
        if self.model is not None and not any(self.model in item.model for item in call.items):
            return False
        return self.when is None or self.when(call)


@dataclass(slots=True, eq=False)
class ArmedFault:
    """A fault that was added, with the account of its strikes."""

    fault: Fault
    seen: int = 0
    """How many calls it matched."""
    strikes: int = 0
    """How many times it struck."""

    @property
    def spent(self) -> bool:
        """Whether it has struck as often as its `count` allows."""
        return self.fault.count is not None and self.strikes >= self.fault.count

    def try_strike(self, call: Call) -> bool:
        """Counts `call` if the fault matches it; returns whether it strikes."""
        if self.spent or not self.fault.matches(call):
            return False
        self.seen += 1
        if self.seen <= self.fault.skip:
            return False
        self.strikes += 1
        return True


class Faults:
    """The faults of one sandbox, in the order they were added. Safe to use from several threads."""

    def __init__(self) -> None:
        self._armed: list[ArmedFault] = []
        # Reentrant, for a fault's `when` may look at the faults.
        self._lock = threading.RLock()

    def add(self, fault: Fault) -> ArmedFault:
        """Arms a fault; the returned record counts its strikes."""
        armed = ArmedFault(fault)
        with self._lock:
            self._armed.append(armed)
        return armed

    def clear(self) -> None:
        """Disarms every fault."""
        with self._lock:
            self._armed.clear()

    @property
    def armed(self) -> tuple[ArmedFault, ...]:
        """Every fault added since the last `clear`, spent ones too."""
        with self._lock:
            return tuple(self._armed)

    def strike(self, call: Call) -> tuple[Fault, ...]:
        """The faults that strike at `call`: at most one of each kind, and one of `status` and `drop`."""
        struck: dict[str, Fault] = {}
        with self._lock:
            for armed in self._armed:
                slot = "end" if armed.fault.kind in ("status", "drop") else armed.fault.kind
                if slot != "item" and slot not in struck and armed.try_strike(call):
                    struck[slot] = armed.fault
        return tuple(struck.values())

    def mark_items(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """The items of a batch being created, with the outcomes that `item` faults force on them."""
        with self._lock:
            armed = [fault for fault in self._armed if fault.fault.kind == "item" and not fault.spent]
            if not armed:
                return items
            return tuple(_mark_item(item, armed) for item in items)


def _mark_item(item: Item, armed: list[ArmedFault]) -> Item:
    call = Call(endpoint="batches.create", items=(item,))
    for candidate in armed:
        if candidate.try_strike(call):
            fault = candidate.fault
            return replace(item, forced_outcome=fault.outcome, forced_error=fault.error)
    return item
