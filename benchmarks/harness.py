"""Measuring on a noisy machine: side by side, interleaved, medians of several rounds."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
MB = 1_000_000
_MOST_BYTES = 60 * MB
"""What a flush or a collect may take, however large the batch is."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

NameT = TypeVar("NameT", bound="Hashable")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the table: what was measured, beside what, and whether that is the goal."""

    what: str
    ours: str
    beside: str = ""
    ratio: float | None = None
    """Ours over what it is beside: for rates more is better, for times less."""
    goal: str = ""
    met: bool | None = None
    """None where there is no goal, only something to know."""


@dataclass(slots=True)
class Report:
    """What a section found."""

    title: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    """Every single measurement, for the JSON file."""

    def at_least(self, what: str, ours: str, beside: str, ratio: float, bound: float) -> None:
        """A line whose ratio should be high."""
        self.add(what, ours, beside, ratio, f">= {bound:g}", ratio >= bound)

    def at_most(self, what: str, ours: str, beside: str, ratio: float, bound: float) -> None:
        """A line whose ratio should be low."""
        self.add(what, ours, beside, ratio, f"<= {bound:g}", ratio <= bound)

    def work(
        self,
        what: str,
        ours: Sequence[dict[str, float]],
        name: str,
        beside: Sequence[dict[str, float]],
        bound: float,
    ) -> None:
        """Two lines for what `Meter` says of some work: its time, and its memory."""
        times, other_times = [[one["seconds"] for one in each] for each in (ours, beside)]
        took, other_took = seconds(statistics.median(times)), seconds(statistics.median(other_times))
        self.at_most(what, took, f"{name}: {other_took}", median_ratio(times, other_times), bound)
        peak, other_peak = (max(one["peak_bytes"] for one in each) for each in (ours, beside))
        self.add(
            "  peak memory above the start",
            megabytes(peak),
            f"{name}: {megabytes(other_peak)}",
            peak / other_peak,
            f"< {megabytes(_MOST_BYTES)}",
            peak < _MOST_BYTES,
        )

    def add(
        self,
        what: str,
        ours: str,
        beside: str = "",
        ratio: float | None = None,
        goal: str = "",
        met: bool | None = None,
    ) -> None:
        """Any other line."""
        self.lines.append(Line(what=what, ours=ours, beside=beside, ratio=ratio, goal=goal, met=met))


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: all of it, or a smoke test."""

    quick: bool

    def pick(self, full: ValueT, quick: ValueT) -> ValueT:
        """The one that fits."""
        return quick if self.quick else full


def say(text: str) -> None:
    """Progress, where it does not get into the table."""
    print(f"  {text}", file=sys.stderr, flush=True)


def per_second(rate: float) -> str:
    """A rate as it is read."""
    return f"{rate:,.0f} /s"


def seconds(value: float) -> str:
    """A time as it is read."""
    if value < 0.001:
        return f"{value * 1e6:,.0f} µs"
    return f"{value * 1e3:,.1f} ms" if value < 0.1 else f"{value:,.2f} s"


def megabytes(count: float) -> str:
    """A size as it is read; decimal."""
    return f"{count / MB:,.0f} MB" if count >= 10 * MB else f"{count / MB:,.1f} MB"


def interleave(
    names: Sequence[NameT], measure: Callable[[NameT], ValueT], rounds: int
) -> dict[NameT, list[ValueT]]:
    """Measures everything once a round, in another order each time, so that all meet the same noise."""
    found: dict[NameT, list[ValueT]] = {name: [] for name in names}
    order, chance = list(names), random.Random(1)
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            found[name].append(measure(name))
    return found


def median_ratio(ours: Sequence[float], beside: Sequence[float]) -> float:
    """The median of the ratios of each round: what slows a whole round down cancels out."""
    return statistics.median(one / other for one, other in zip(ours, beside, strict=True))


def rate_of(step: Callable[[int], int], threads: int, span: float) -> float:
    """How much of something some threads get done in a second, once each has done it for the first time.

    Args:
        step: Does some, answers with how much; gets a number that grows from call to call.
        threads: How many call it.
        span: For how many seconds.
    """
    counts, barrier = [0] * threads, threading.Barrier(threads + 1)
    starts, ends = [0.0] * threads, [0.0] * threads
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            step(number)
            barrier.wait()
            starts[number] = now = time.perf_counter()
            place = number + threads
            while now < starts[number] + span:
                counts[number] += step(place)
                place += threads
                now = time.perf_counter()
            ends[number] = now
        except BaseException as error:  # noqa: BLE001  (raised again where it is seen)
            failures.append(error)
            barrier.abort()

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    gc.collect()
    with suppress(threading.BrokenBarrierError):
        barrier.wait()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts) / (max(ends) - min(starts))


def in_copy(function: Callable[..., Any], folder: Path, **arguments: Any) -> Any:
    """Runs a function in a fresh process on a copy of a store, which is gone afterwards."""
    with scratch() as copies:
        shutil.copytree(folder, copies / folder.name)
        return in_process(function, folder=str(copies / folder.name), **arguments)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="llmrouter-bench-") as name:
        yield Path(name)


class Child:
    """A function that runs in a fresh process of its own; `result` waits for what it returns."""

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        """Starts it.

        Args:
            function: One of a module of this package.
            arguments: Of it; plain JSON data, as is what it returns.
        """
        self._name = f"{function.__module__}:{function.__qualname__}"
        command = [sys.executable, "-m", "benchmarks.harness", self._name, json.dumps(arguments)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def result(self) -> Any:
        """What it returned.

        Raises:
            RuntimeError: It failed; its traceback is on standard error.
        """
        return json.loads(self._end(0).splitlines()[-1])

    def killed(self) -> None:
        """Waits until it has killed itself, at once and without a last word, see `kill_self`.

        Raises:
            RuntimeError: It ended in another way; its traceback is on standard error.
        """
        self._end(-signal.SIGKILL)

    def _end(self, code: int) -> str:
        output, _ = self._process.communicate()
        if self._process.returncode != code:
            raise RuntimeError(f"{self._name} failed")
        return output


def kill_self() -> NoReturn:
    """Ends this process as a crash would: nothing is closed, flushed or given back."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("still alive")


def in_process(function: Callable[..., Any], **arguments: Any) -> Any:
    """Runs a function in a fresh process, and waits for what it returns."""
    return Child(function, **arguments).result()


class Meter:
    """Takes the time and the peak of memory from its making to `stop`.

    On Linux the peak is VmHWM, set back to the present size at the start, less VmRSS at the start.
    Elsewhere it is the growth of ru_maxrss, which says too little after an earlier peak.
    """

    def __init__(self) -> None:
        gc.collect()
        if _STATUS.exists():
            _CLEAR_REFS.write_text("5")
            self._start_bytes = _status_bytes("VmRSS")
        else:
            self._start_bytes = _largest_bytes()
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def stop(self) -> dict[str, float]:
        """Seconds since the start, and the most resident memory above that at the start since then."""
        took = self.lap()
        peak = _status_bytes("VmHWM") if _STATUS.exists() else _largest_bytes()
        return {"seconds": took, "peak_bytes": peak - self._start_bytes, "start_bytes": self._start_bytes}


def _status_bytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _largest_bytes() -> int:
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _main() -> None:
    name, arguments = sys.argv[1:]
    module, function = name.split(":")
    print(json.dumps(getattr(import_module(module), function)(**json.loads(arguments))))


if __name__ == "__main__":
    _main()
