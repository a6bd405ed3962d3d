"""The one place where tests wait for something to become true."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

GIVE_UP_SECONDS = 30.0
_LOOK_EVERY_SECONDS = 0.01


def wait_until(condition: Callable[[], T], *, within: float = GIVE_UP_SECONDS, what: str = "") -> T:
    """Looks until a condition holds, and returns what it gave.

    Args:
        condition: Asked again and again; what is true ends the wait.
        within: Seconds after which the test fails.
        what: What is waited for, for the failure.

    Raises:
        AssertionError: It did not come true in time.
    """
    give_up_at = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > give_up_at:
            raise AssertionError(f"waited {within:g} s for {what or condition}; last answer: {found!r}")
        time.sleep(_LOOK_EVERY_SECONDS)
