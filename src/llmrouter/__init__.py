"""llmrouter: each Claude request the cheapest way that still answers in time."""

from __future__ import annotations

from llmrouter import errors
from llmrouter._version import __version__
from llmrouter.errors import LlmrouterError
from llmrouter.futures import MessageFuture
from llmrouter.router import Router
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
]
