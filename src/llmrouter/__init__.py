"""llmrouter: each Claude request the cheapest way that still answers in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrouter import errors
from llmrouter._version import __version__
from llmrouter.errors import LlmrouterError
from llmrouter.futures import MessageFuture
from llmrouter.router import Router
from llmrouter.tagging import latency, tag

if TYPE_CHECKING:
    from llmrouter.settings import ClassSettings, PolicySettings, Settings

__all__ = [
    "ClassSettings",
    "LlmrouterError",
    "MessageFuture",
    "PolicySettings",
    "Router",
    "Settings",
    "__version__",
    "errors",
    "latency",
    "tag",
]


def __getattr__(name: str) -> Any:
    """Loads the settings when they are first asked for: they are a third of the time of the import."""
    if name in {"ClassSettings", "PolicySettings", "Settings"}:
        from llmrouter import settings  # noqa: PLC0415  (see above)

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
