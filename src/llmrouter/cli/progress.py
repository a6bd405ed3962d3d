"""What is shown while a command works: in place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Self

from rich.live import Live

from llmrouter.cli.console import err, note

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

_REFRESHES_PER_SECOND = 8


class Display:
    """Shows how far a job is, on stderr. A context manager; what it showed on a terminal goes with it."""

    def __init__(self, *, line_every_seconds: float) -> None:
        """Makes a display.

        Args:
            line_every_seconds: How often a line is printed where there is no terminal, if it has changed.
        """
        self._live = Live(console=err, transient=True, auto_refresh=False) if err.is_terminal else None
        self._every_seconds = line_every_seconds if self._live is None else 1 / _REFRESHES_PER_SECOND
        self._shown_at = monotonic()
        self._line = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show something again."""
        return monotonic() - self._shown_at >= self._every_seconds

    def show(self, line: str, picture: RenderableType) -> None:
        """Shows how far it is.

        Args:
            line: For where there is no terminal.
            picture: For a terminal.
        """
        self._shown_at = monotonic()
        if self._live is not None:
            self._live.update(picture, refresh=True)
        elif line != self._line:
            note(line)
        self._line = line
