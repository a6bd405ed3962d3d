"""Reads the rules for call sites anew when a file with settings has changed, without a restart."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import SettingsError

if TYPE_CHECKING:
    from llmrouter.routing import Routing
    from llmrouter.settings import FileStates, Settings

LOOK_SECONDS = 5.0
"""How often the files are looked at."""

RELOADED = ("sites", "never_batch", "streaming")
"""The settings that count at once; all others count from the next start."""

_log = logging.getLogger("llmrouter")


class Reloader:
    """Looks at the files on a thread of its own, so that calls pay nothing for it.

    Attributes:
        settings: Those of the start, with the present `RELOADED` ones.
    """

    def __init__(self, settings: Settings, routing: Routing) -> None:
        """Reads nothing yet.

        Args:
            settings: With their rules, `routing` was made.
            routing: Gets the rules when they change.
        """
        self.settings = settings
        self._routing = routing
        self._read: FileStates = settings.file_states
        self._doubted: FileStates | None = None
        self._told: list[str] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look."""
        self._thread = threading.Thread(target=self._work, name="llmrouter-reload", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; may be repeated, and may come without a start."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def run_once(self) -> None:
        """Looks at the files; where one has changed, reads them, and takes over what can be.

        Where they cannot be read or are wrong, the old rules stay, with one warning for each version.
        """
        found = self.settings.look_at_files()
        if found == self._read or self._is_doubtful(found):
            return
        self._read = found
        try:
            fresh = self.settings.reread()
            self._check_classes(fresh)
        except SettingsError as error:
            _log.warning("the settings have changed and are wrong; the old rules for sites stay: %s", error)
            return
        self._tell_others(fresh)
        self._take(fresh)

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.run_once()
            except Exception as error:  # noqa: BLE001  (the old rules stay, and the next change is seen)
                _log.warning("the settings could not be read anew (%s)", type(error).__name__)

    def _is_doubtful(self, found: FileStates) -> bool:
        """Whether a file has just gone: some editors take it away for a moment, and `never_batch` with it."""
        gone = any(now is None and was is not None for now, was in zip(found, self._read, strict=True))
        was, self._doubted = self._doubted, found if gone else None
        return gone and was != found

    def _check_classes(self, fresh: Settings) -> None:
        for pattern, latency in fresh.site_classes().items():
            if latency not in (None, REAL_TIME) and latency not in self._routing.classes:
                raise SettingsError(f"sites.{pattern}: {latency!r} is a new class, which needs a restart")

    def _tell_others(self, fresh: Settings) -> None:
        """Says which changes do not count yet; once for the same ones."""
        names = [name for name in type(fresh).model_fields if name not in RELOADED]
        changed = [name for name in names if getattr(fresh, name) != getattr(self.settings, name)]
        if changed and changed != self._told:
            _log.warning("settings have changed that count from the next start: %s", ", ".join(changed))
        self._told = changed

    def _take(self, fresh: Settings) -> None:
        changed = {
            name: value
            for name in RELOADED
            # A change of order is one, too.
            if repr(value := getattr(fresh, name)) != repr(getattr(self.settings, name))
        }
        if changed:
            self.settings = self.settings.model_copy(update=changed)
            self._routing.set_rules(self.settings.site_classes(), self.settings.never_batch)
            _log.info("settings were read anew and count from now on: %s", ", ".join(changed))
