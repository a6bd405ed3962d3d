"""Which way a call goes: its latency class and the name of its call site."""

from __future__ import annotations

import difflib
import sys
from typing import TYPE_CHECKING

from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import UnknownLatencyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain.latency import LatencyClass


class Routing:
    """Looks latency classes up."""

    def __init__(self, classes: Mapping[str, LatencyClass]) -> None:
        self.classes = classes

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


def call_site(depth: int) -> str:
    """``module:function`` of a caller.

    Args:
        depth: How many frames up from the caller of this function; 1 is its caller's caller.
    """
    frame = sys._getframe(depth + 1)  # noqa: SLF001  (inspect.stack costs a thousand times more)
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_code.co_qualname}"
