"""Reading a file of requests: a line at a time, and every line checked before any is sent."""

from __future__ import annotations

import codecs
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

from llmrouter.cli.failures import InputError
from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

STDIN = "-"
_NAMED_LINES = 5
_BATCH_FIELDS = {"custom_id", "params"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of a file."""

    number: int
    """Its line in the file, from 1."""
    index: int
    """Its place among the requests, from 0: blank lines do not count."""
    custom_id: str
    """The line's own, or ``line-<number>``."""
    params: dict[str, Any]
    size_bytes: int


class RequestFile:
    """A file of requests that can be read more than once. A context manager.

    Standard input is copied to a temporary file first, since all of it is read twice: once to check
    it, once to send it.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            InputError: It cannot be read.
        """
        self.name = "<stdin>" if str(path) == STDIN else str(path)
        try:
            self._file: IO[bytes] = _copy_stdin() if str(path) == STDIN else path.open("rb")
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def lines(self) -> Iterator[Line]:
        """Every request, from the first.

        Raises:
            InputError: A line is no request; names it.
        """
        for number, index, raw in self._raw_lines():
            try:
                yield parse_line(raw, number=number, index=index)
            except InvalidRequestError as error:
                raise self.blame(number, error) from error

    def check(self, check: Callable[[Line], None]) -> int:
        """Reads all of it; answers with the number of requests.

        Args:
            check: Looks at one request, and raises `InvalidRequestError` for one that cannot be sent.

        Raises:
            InputError: Some line is wrong: says what is wrong with the first, and which others are.
        """
        count = 0
        first: InputError | None = None
        others: list[int] = []
        for number, index, raw in self._raw_lines():
            count += 1
            try:
                check(parse_line(raw, number=number, index=index))
            except InvalidRequestError as error:
                if first is None:
                    first = self.blame(number, error)
                else:
                    others.append(number)
        if first is not None:
            raise InputError(f"{first}{_name_others(others)}; nothing was sent") from first
        return count

    def blame(self, number: int, error: InvalidRequestError) -> InputError:
        """The error that names this file and a line of it."""
        return InputError(f"{self.name}:{number}: {error.field}: {error.problem}")

    def _raw_lines(self) -> Iterator[tuple[int, int, bytes]]:
        self._file.seek(0)
        index = 0
        for number, raw in enumerate(self._file, 1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if not line.isspace() and line:
                yield number, index, line
                index += 1


def parse_line(raw: bytes, *, number: int, index: int) -> Line:
    """Reads one line: a request, or ``{"custom_id", "params"}`` around one.

    Raises:
        InvalidRequestError: It is neither; says which field is wrong.
    """
    value = _parse_json(raw)
    if not isinstance(value, dict):
        raise InvalidRequestError("line", f"should be a JSON object, not {_json_type(value)}")
    custom_id: Any = f"line-{number}"
    params: Any = value
    if not _BATCH_FIELDS.isdisjoint(value):
        custom_id = value.get("custom_id", custom_id)
        params = _batch_params(value)
    if not isinstance(custom_id, str) or not custom_id:
        raise InvalidRequestError("custom_id", "should be a text, and not an empty one")
    return Line(number=number, index=index, custom_id=custom_id, params=params, size_bytes=len(raw))


def _batch_params(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name not in _BATCH_FIELDS:
            raise InvalidRequestError(name, "does not belong beside custom_id and params")
    params = value.get("params")
    if "params" not in value:
        raise InvalidRequestError("params", "is missing")
    if not isinstance(params, dict):
        raise InvalidRequestError("params", f"should be a JSON object, not {_json_type(params)}")
    return params


def _parse_json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode().strip())
    except UnicodeDecodeError as error:
        raise InvalidRequestError("line", "is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError("line", f"is not JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("line", f"is not JSON that can be read ({type(error).__name__})") from error


def _json_type(value: object) -> str:
    names = {list: "an array", str: "a text", bool: "a truth value", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")


def _name_others(numbers: list[int]) -> str:
    if not numbers:
        return ""
    named = ", ".join(map(str, numbers[:_NAMED_LINES]))
    more = len(numbers) - _NAMED_LINES
    return f"; also wrong: line {named}{f' and {more:,} more' if more > 0 else ''}"


def _copy_stdin() -> IO[bytes]:
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the RequestFile)
    try:
        shutil.copyfileobj(sys.stdin.buffer, copy)
    except BaseException:
        copy.close()
        raise
    return copy
