"""The headers of a single call: folded as the SDK folds them, and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from anthropic import NotGiven, Omit

from llmrouter.errors import InvalidRequestError

CallHeaders: TypeAlias = Mapping[str, str | Omit]
"""Headers of one call by lower-case name; `Omit` takes a header of the client's own away."""

CREDENTIAL_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"(?![ \t])[^\x00-\x08\x0a-\x1f\x7f]*(?<![ \t])")


def fold_headers(*layers: Mapping[str, Any] | None) -> dict[str, str | Omit]:
    """Folds header layers into one, names in lower case, later layers first in rank.

    Args:
        layers: Header mappings as `extra_headers=` takes them; None counts as empty.

    Raises:
        InvalidRequestError: A name or value that HTTP cannot carry. The value is not repeated.
    """
    folded: dict[str, str | Omit] = {}
    for layer in layers:
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            raise InvalidRequestError("extra_headers", f"should be a mapping, not {type(layer).__name__}")
        for name, value in layer.items():
            if isinstance(value, NotGiven):
                continue
            folded[_checked_name(name)] = value if isinstance(value, Omit) else _checked_value(name, value)
    return folded


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidRequestError("extra_headers", f"{name!r} is no header name")
    return name.lower()


def _checked_value(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError("extra_headers", f"{name} should be a string, not {type(value).__name__}")
    if _VALUE.fullmatch(value) is None:
        raise InvalidRequestError("extra_headers", f"{name} has characters that a header cannot carry")
    return value
