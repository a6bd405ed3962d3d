"""What the live calls of wrapped clients use of the account's limits."""

from __future__ import annotations

import logging
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from llmrouter.claude.rate_limits import read_limits
from llmrouter.domain.live import Seen
from llmrouter.domain.rates import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anthropic import APIRequest

_TELL_SECONDS = 0.25

_log = logging.getLogger(__name__)


class LiveUse:
    """Counts calls, and tells of them and of the latest limits a few times a second.

    On the way of every call: no lock. Two threads at once may lose a count, which a margin covers.
    """

    def __init__(self, on_calls: Callable[[Seen], None]) -> None:
        self._on_calls = on_calls
        self._counts: Counter[str] = Counter()
        self._told_at = 0.0
        self._failed = False

    def note(self, request: APIRequest, answer: Any) -> None:
        """A live call of the Messages API was answered. Raises nothing: the answer is the caller's."""
        try:
            model = cast("Mapping[str, Any]", request.json).get("model")
            if isinstance(model, str):
                self._counts[model] += 1
                now = time.monotonic()
                if now - self._told_at >= _TELL_SECONDS:
                    self._told_at = now
                    self._tell(model, answer)
        except Exception as error:  # noqa: BLE001 - the call's answer is not to be lost over it
            if not self._failed:
                self._failed = True
                _log.error("What watches live calls failed; it is not logged again: %s", type(error).__name__)

    def _tell(self, latest: str, answer: Any) -> None:
        """Limits are those of a model: the latest answer tells of its own."""
        counts, self._counts = self._counts, Counter()
        limits, at = read_limits(answer.headers), datetime.now(UTC)
        for model, count in counts.items():
            told = limits if model == latest else None
            self._on_calls(Seen(model=model, limits=told, work=Work(requests=count), ended_at=at))
