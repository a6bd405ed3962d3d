"""A batch's results, from raw bytes to lines, in linear time and bounded memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import ResultLine
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_KINDS = {kind.value: kind for kind in OutcomeKind}


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Splits a body at `\n` alone: a JSON string may hold the other line ends of Unicode.

    Args:
        chunks: The body in pieces of any size.

    Yields:
        The lines without their end, blank ones left out, and what follows the last end.
    """
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pieces.append(first)
        for start in rest:
            line = b"".join(pieces)
            pieces = [start]
            if line and not line.isspace():
                yield line
    line = b"".join(pieces)
    if line and not line.isspace():
        yield line


def parse_line(raw: bytes) -> ResultLine | None:
    """Reads one line of results; None for what is no result line, such as one that was cut."""
    try:
        line: Any = json.loads(raw)
        custom_id, result = line["custom_id"], line["result"]
        name = result["type"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(custom_id, str) or not isinstance(name, str):
        return None
    kind = _KINDS.get(name)
    error_type = error_of(result).get("type") if kind is OutcomeKind.ERRORED else None
    return ResultLine(
        custom_id=custom_id,
        kind=kind,
        error_type=error_type if isinstance(error_type, str) else None,
        raw=raw,
    )


def error_of(result: Any) -> dict[str, Any]:
    """The error of an errored result, which nests twice (docs/api.md); empty where it does not."""
    inner: Any = result
    for _ in range(2):
        inner = inner.get("error") if isinstance(inner, dict) else None
    return inner if isinstance(inner, dict) else {}
