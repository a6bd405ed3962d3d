"""Runs the commands as a person would: as processes of their own, stopped with signals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

PATIENCE_SECONDS = 30
MODEL = "claude-haiku-4-5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one line of error, without what stands before it."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")


class Running:
    """A command that is under way; what it says can be waited for."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._said = {"out": "", "err": ""}
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=("out", process.stdout), daemon=True),
            threading.Thread(target=self._read, args=("err", process.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until it has said something like this, on stdout or stderr."""
        until = time.monotonic() + PATIENCE_SECONDS
        with self._news:
            while True:
                for text in self._said.values():
                    found = re.search(pattern, text)
                    if found:
                        return found
                ended = self.process.poll() is not None and not any(r.is_alive() for r in self._readers)
                assert not ended, f"ended without {pattern!r}: {self._said}"
                assert self._news.wait(until - time.monotonic()) or ended, f"no {pattern!r}: {self._said}"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Waits for its end."""
        code = self.process.wait(PATIENCE_SECONDS)
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        return Ended(code=code, out=self._said["out"], err=self._said["err"])

    def kill(self) -> None:
        """Makes sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        for stream in (self.process.stdout, self.process.stderr, self.process.stdin):
            if stream is not None:
                stream.close()

    def _read(self, name: str, stream: Any) -> None:
        for line in stream:
            with self._news:
                self._said[name] += line
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Cli:
    """Starts commands in a folder of their own, with nothing of this machine's settings.

    Attributes:
        folder: Where they run.
        env: Their environment; a test may add to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ANTHROPIC_", "LLMROUTER_", "COLUMNS", "FORCE_COLOR"))
        }
        self.env |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
        self.env |= {"LLMROUTER_STORE": f"disk://{folder / 'store'}", "COLUMNS": "80"}
        self._running: list[Running] = []

    @property
    def store(self) -> str:
        return self.env["LLMROUTER_STORE"]

    def use(self, base_url: str) -> None:
        """Has commands talk to an API, and be quick about it."""
        self.env |= {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": "sandbox", "LLMROUTER_POLL": "0.1"}
        for latency in ("HOURLY", "DAILY", "WEEKLY"):
            self.env[f"LLMROUTER_CLASSES__{latency}__FLUSH"] = "0.1"

    def run(self, *arguments: str, stdin: str | bytes = b"", env: Mapping[str, str] | None = None) -> Ended:
        """Runs a command to its end."""
        ended = subprocess.run(
            [sys.executable, "-m", "llmrouter", *arguments],
            cwd=self.folder,
            env={**self.env, **(env or {})},
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        return self._checked(
            Ended(code=ended.returncode, out=ended.stdout.decode(), err=ended.stderr.decode())
        )

    def start(self, *arguments: str) -> Running:
        """Starts a command; it is killed at the end of the test, if it still runs then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "llmrouter", *arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(Running(process))
        return self._running[-1]

    def close(self) -> None:
        for running in self._running:
            running.kill()

    @staticmethod
    def _checked(ended: Ended) -> Ended:
        assert "Traceback" not in ended.err, ended.err
        return ended


def make_request(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": text}],
        **more,
    }


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until(condition: Callable[[], object]) -> None:
    """Waits for what another process does."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.01)
