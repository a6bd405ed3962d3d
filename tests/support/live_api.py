"""The Messages API in memory, as the router's own live calls see it, with books of what was charged."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.domain.live import LiveCallError, LiveReply
from llmrouter.domain.rates import Work
from llmrouter.domain.requests import OutcomeKind
from support.waiting import GIVE_UP_SECONDS

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.live import RateLimits
    from llmrouter.domain.requests import Lane

    Trouble: TypeAlias = "Exception | OutcomeKind"
    """What comes of a call instead of a message. ERRORED: the API refuses the request for good."""

PRICE = Decimal("0.5")
"""US dollars for each answer."""


def limited(*, seconds: float | None = None, status: int = 429) -> LiveCallError:
    """Too many calls, or an overload."""
    wait = None if seconds is None else timedelta(seconds=seconds)
    return LiveCallError(f"HTTP {status}", status=status, limited=True, retry_after=wait)


def spent(until: datetime | None = None) -> LiveCallError:
    """A spend limit is reached."""
    return LiveCallError("HTTP 429 usage limits", status=429, spent=True, regain_at=until)


def unauthorized() -> LiveCallError:
    """The key is not accepted."""
    return LiveCallError("HTTP 401", status=401, credential=True)


def failed(status: int = 500) -> LiveCallError:
    """The API failed; nothing was charged."""
    return LiveCallError(f"HTTP {status}", status=status)


def not_connected() -> LiveCallError:
    """Nothing was sent."""
    return LiveCallError("the live call failed: ConnectError")


def lost() -> LiveCallError:
    """The answer got lost on its way. The call was done, and is charged."""
    return LiveCallError("the live call failed: ReadTimeout", unclear=True)


class LostBeforeError(LiveCallError):
    """The call got lost on its way to the API: nothing is charged, but nobody can tell."""

    def __init__(self) -> None:
        super().__init__("the live call failed: ReadTimeout", unclear=True)


def message_line(request_id: str) -> bytes:
    """An answer in the form of a result line."""
    message: dict[str, Any] = {
        "id": f"msg_{request_id}",
        "type": "message",
        "role": "assistant",
        "content": [],
    }
    return json.dumps({"custom_id": request_id, "result": {"type": "succeeded", "message": message}}).encode()


@dataclass
class FakeLiveApi:
    """Implements `llmrouter.ports.LiveApi`: each call is answered at once, unless a test says otherwise."""

    credentials: set[str] = field(default_factory=lambda: {"credential-a"})
    batch_only: set[str] = field(default_factory=set)
    """Ids of lanes that only a batch can carry."""
    began: list[str] = field(default_factory=list)
    """The request of each call that was made, in order."""
    charged: Counter[str] = field(default_factory=Counter)
    """How many calls for each request are paid for."""
    lost: Counter[str] = field(default_factory=Counter)
    """How many of those were never answered."""
    unclear: Counter[str] = field(default_factory=Counter)
    """How many calls for each request had no clear end."""
    price: Decimal | None = PRICE
    took: timedelta = timedelta(seconds=2)
    tokens: float = 0.0
    """Output tokens of each answer."""
    limits: RateLimits | None = None
    """What each answer says of the account."""
    down: Trouble | None = None
    """What comes of every call for which nothing else was said."""
    next: deque[Trouble | None] = field(default_factory=deque)
    """What comes of the next calls, whatever they are for; None: an answer."""
    of: defaultdict[str, deque[Trouble | None]] = field(default_factory=lambda: defaultdict(deque))
    """What comes of the next calls for one request."""
    slow: bool = False
    """Calls take until `let_go`: for threads."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Event()

    def serves(self, lane: Lane) -> bool:
        """See `LiveApi.serves`."""
        return lane.credential in self.credentials

    def carries(self, lane: Lane) -> bool:
        """See `LiveApi.carries`."""
        return lane.lane_id not in self.batch_only

    def call(self, lane: Lane, request_id: str, body: bytes) -> LiveReply:
        """See `LiveApi.call`."""
        assert self.serves(lane)
        assert json.loads(body)["messages"]
        with self._lock:
            self.began.append(request_id)
        if self.slow:
            assert self._gate.wait(GIVE_UP_SECONDS), "a slow call was never let go"
        with self._lock:
            return self._answer(request_id, self._trouble(request_id))

    def let_go(self) -> None:
        """Answers the slow calls, and is slow no more."""
        self.slow = False
        self._gate.set()

    def _trouble(self, request_id: str) -> Trouble | None:
        for planned in (self.of.get(request_id), self.next):
            if planned:
                return planned.popleft()
        return self.down

    def _answer(self, request_id: str, trouble: Trouble | None) -> LiveReply:
        if isinstance(trouble, Exception):
            if not isinstance(trouble, LiveCallError):
                self.unclear[request_id] += 1
            elif trouble.unclear:
                self.unclear[request_id] += 1
                paid = not isinstance(trouble, LostBeforeError)
                self.charged[request_id] += paid
                self.lost[request_id] += paid
            raise trouble
        if trouble is OutcomeKind.ERRORED:
            return self._refused(request_id)
        self.charged[request_id] += 1
        return LiveReply(
            kind=OutcomeKind.SUCCEEDED,
            raw=message_line(request_id),
            took=self.took,
            work=Work(requests=1, input_tokens=self.tokens, output_tokens=self.tokens),
            paid_usd=self.price,
            limits=self.limits,
        )

    def _refused(self, request_id: str) -> LiveReply:
        error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        line = {"custom_id": request_id, "result": {"type": "errored", "error": error}}
        return LiveReply(
            kind=OutcomeKind.ERRORED,
            raw=json.dumps(line).encode(),
            took=self.took,
            work=Work(requests=1),
            paid_usd=Decimal(0),
            limits=self.limits,
        )
