"""Where the commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

_KEYS = ("request_id", "batch_id", "latency", "lane", "site")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def note(text: str, *, style: str = "", verbatim: bool = False) -> None:
    """Says something to the person at the terminal, on stderr.

    Args:
        text: One line. It is broken between words on a terminal, and nowhere else.
        style: As Rich knows it.
        verbatim: Never break it, so that it can be copied.
    """
    err.print(text, style=style, markup=False, soft_wrap=verbatim or not err.is_terminal)


def show(content: RenderableType, *, verbatim: bool = False) -> None:
    """Prints a result to stdout; text as `note` does."""
    if isinstance(content, str):
        out.print(content, markup=False, soft_wrap=verbatim or not out.is_terminal)
    else:
        out.print(content)


class OneLine(logging.Formatter):
    """A record as one line: time, level, sentence, what it is about. No traceback."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self._timed = timed

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        words = [record.levelname.lower() + ":"]
        if self._timed:
            words = [self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), record.levelname]
        words.append(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            words.append(f"({type(record.exc_info[1]).__name__}: {record.exc_info[1]})")
        words += [f"{key}={getattr(record, key)}" for key in _KEYS if hasattr(record, key)]
        return " ".join(" ".join(words).split())


class _ToConsole(logging.Handler):
    """Prints above a live display instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            note(self.format(record), style="yellow" if record.levelno >= logging.WARNING else "")
        except Exception:  # noqa: BLE001  (as every handler of logging does)
            self.handleError(record)


def log_to_stderr(level: str, *, timed: bool) -> None:
    """Sends the log to stderr, a line for each record.

    Args:
        level: Name of the least level of llmrouter's own records. Those of libraries begin at
            WARNING: below it, the SDK logs prompts.
        timed: Whether lines begin with the time, for processes that run for long.
    """
    handler = _ToConsole()
    handler.setFormatter(OneLine(timed=timed))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("llmrouter").setLevel(level.upper())
    # A look that takes longer than its interval skips the next one: nothing to report.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
