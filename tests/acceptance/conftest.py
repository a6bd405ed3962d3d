from __future__ import annotations

import logging
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cli_support import Cli

from llmrouter.sandbox import ManualClock, Sandbox, ScaledClock, Turnaround

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The commands, without an API."""
    with closing(Cli(tmp_path)) as commands:
        yield commands


@pytest.fixture
def here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For commands in this process, where each takes a second less; the log is put back afterwards."""
    for name, value in cli.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(cli.folder)
    own, root = logging.getLogger("llmrouter"), logging.getLogger()
    before = own.level, root.level, root.handlers[:]
    yield
    own.setLevel(before[0])
    root.setLevel(before[1])
    root.handlers[:] = before[2]


@pytest.fixture
def quick_api(cli: Cli) -> Iterator[Sandbox]:
    """An API that the commands talk to, whose batches end within a fraction of a second."""
    sandbox = Sandbox(clock=ScaledClock(speed=3600), turnaround=Turnaround.fixed(timedelta(minutes=5)))
    with sandbox.serve() as server:
        cli.use(server.base_url)
        yield sandbox


@pytest.fixture
def slow_api(cli: Cli) -> Iterator[Sandbox]:
    """An API that the commands talk to, whose batches end when a test advances its clock by an hour."""
    sandbox = Sandbox(clock=ManualClock(), turnaround=Turnaround.fixed(timedelta(minutes=50)))
    with sandbox.serve() as server:
        cli.use(server.base_url)
        yield sandbox
