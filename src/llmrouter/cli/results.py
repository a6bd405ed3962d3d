"""The answers of a run: kept on disk as they come, written in the order of the requests at the end."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from array import array
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmrouter.cli.failures import InputError
from llmrouter.cli.outcomes import finished_of, result_of
from llmrouter.errors import RouterClosedError
from llmrouter.reports.summary import Tally

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from llmrouter.cli.jsonl import Line
    from llmrouter.futures import MessageFuture

_NOT_YET = -1


class Results:
    """Takes answers from futures in any order and thread; memory does not grow with what they say.

    Attributes:
        tally: What they came to so far.
        problem: What kept an answer from being taken, such as a full disk; None as long as all is well.
    """

    def __init__(self, out: Path, total: int) -> None:
        """Makes room for the answers in the folder that they are going to.

        Args:
            out: The file that they are for.
            total: How many there will be.

        Raises:
            OSError: Nothing can be written there.
        """
        self._out = out
        self._total = total
        self._spool = tempfile.TemporaryFile(dir=out.parent)  # noqa: SIM115  (closed by __exit__)
        self._places = array("q", [_NOT_YET]) * total
        self._sizes = array("q", [0]) * total
        self._end = 0
        self._lock = threading.Lock()
        self._moved = threading.Event()
        self.tally = Tally()
        self.problem: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def expect(self, line: Line, future: MessageFuture) -> None:
        """Takes the answer to a line when its future has one; the future need not be kept."""
        index, custom_id, began = line.index, line.custom_id, monotonic()
        future.add_done_callback(lambda _: self._take(index, custom_id, future, began))

    def wait(self, seconds: float) -> bool:
        """Waits until there is news or the time is over; True when nothing is left to wait for.

        Raises:
            Exception: An answer could not be taken.
        """
        self._moved.wait(seconds)
        self._moved.clear()
        if self.problem is not None:
            raise self.problem
        return self.tally.done >= self._total

    def write(self, out: Path | None = None) -> None:
        """Writes what has come in the order of the requests: all of the file at once, or nothing.

        Args:
            out: Where to, when not to the file that they are for.

        Raises:
            OSError: It cannot be written.
        """
        target = out or self._out
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with draft.open("xb") as file:
                for place, size in zip(self._places, self._sizes, strict=True):
                    if place != _NOT_YET:
                        self._spool.seek(place)
                        file.write(self._spool.read(size))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _take(self, index: int, custom_id: str, future: MessageFuture, began: float) -> None:
        # What is raised in a callback ends in a log; whoever waits must hear of it.
        try:
            if future.outcome is None and isinstance(future.exception(), RouterClosedError):
                return
            result = result_of(future)
            finished = finished_of(future, result, timedelta(seconds=monotonic() - began))
            line = _encode({"custom_id": custom_id, "result": result})
            with self._lock:
                self._spool.write(line)
                self._places[index], self._sizes[index] = self._end, len(line)
                self._end += len(line)
                self.tally.add(finished)
        except Exception as error:  # noqa: BLE001  (whoever waits raises it)
            self.problem = error
        self._moved.set()


def check_output(out: Path, requests: Path) -> Path:
    """The file to write results to, or a clear error before anything is sent.

    Args:
        out: As it was given.
        requests: The file that the requests are in, which must not be overwritten.

    Raises:
        InputError: It cannot be written to.
    """
    target = out.expanduser().resolve()
    if target == requests.expanduser().resolve():
        raise InputError(f"{out}: is the file of requests; give another one for the results")
    if target.exists() and not target.is_file():
        raise InputError(f"{out}: is no file; results are written to a file, at the end and all at once")
    if not target.parent.is_dir():
        raise InputError(f"{out}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{out}: the folder {target.parent} cannot be written to")
    return target


def _encode(line: dict[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # A lone surrogate, which only an escape can carry.
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"
