"""Starting, telling and killing puppets (`support.puppet`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llmrouter import failpoints
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

_TESTS = str(Path(__file__).parents[1])


class Puppet:
    """A process that does what it is told. A context manager: it is gone after the block."""

    def __init__(self, world: World, *, failpoint: str = "", store: str | None = None) -> None:
        """Starts it.

        Args:
            world: Whose API it asks, and whose store it opens.
            failpoint: Where it is killed or stopped, see `llmrouter.failpoints`.
            store: Another store.
        """
        self.said: list[dict[str, Any]] = []
        """Every line it has written."""
        self.stderr: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.puppet", world.server.base_url, store or world.store],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                failpoints.VARIABLE: failpoint,
                "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _TESTS])),
            },
        )
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def tell(self, do: str, **fields: Any) -> None:
        """Gives it a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self._process.stdin.flush()

    def ask(self, do: str, answer: str, **fields: Any) -> Any:
        """Gives it a command, and returns what it says next under a name."""
        before = len(self.said)
        self.tell(do, **fields)
        return self.wait_for(lambda line: answer in line, after=before, what=f"{answer!r}")[answer]

    def status(self) -> dict[str, Any]:
        """What its router's status is."""
        before = len(self.said)
        self.tell("status")
        return self.wait_for(lambda line: "working" in line, after=before, what="the status")

    def wait_for(
        self, matches: Callable[[dict[str, Any]], bool], *, after: int = 0, what: str = "a line"
    ) -> dict[str, Any]:
        """Waits for a line that matches."""

        def look() -> dict[str, Any] | None:
            found = next((line for line in self.said[after:] if matches(line)), None)
            assert found is not None or self._process.poll() is None, self._last_words()
            return found

        found = wait_until(look, what=f"{what} from a process")
        assert found is not None
        return found

    def values(self, name: str) -> list[Any]:
        """Everything it has said under a name."""
        return [line[name] for line in self.said if name in line]

    def kill(self) -> None:
        """Kills it at once, and reads what it had still said."""
        self._process.kill()
        self._process.wait(30)
        self._join()

    def wait_until_killed(self) -> None:
        """Waits until it is killed at its failpoint."""
        assert self._process.wait(30) == -signal.SIGKILL, self._last_words()
        self._join()

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def wait_until_stopped(self) -> None:
        """Waits until it is stopped, at its failpoint or by a signal."""

        def look() -> bool:
            pid, status = os.waitpid(self._process.pid, os.WUNTRACED | os.WNOHANG)
            assert pid == 0 or os.WIFSTOPPED(status), "it has ended"
            return pid != 0

        wait_until(look, what="a process to be stopped")

    def stop(self, *complaints: str) -> None:
        """Lets it end in order; fails when it does not, or complains of anything but these."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._join()
        assert self._process.returncode == 0, self._last_words()
        assert [line.rstrip() for line in self.stderr] == list(complaints), self._last_words()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(30)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A line that was cut by the kill says nothing.
            if line.endswith("\n"):
                self.said.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self.stderr.extend(self._process.stderr)

    def _last_words(self) -> str:
        self._process.poll()
        return f"exit code {self._process.returncode}\n{''.join(self.stderr)}"
