from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic

from llmrouter import Settings
from llmrouter.sandbox import Sandbox, SandboxServer, Turnaround

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sandbox() -> Sandbox:
    """An Anthropic API on this machine, whose batches end at once. It costs nothing."""
    return Sandbox(turnaround=Turnaround.fixed(timedelta(0)))


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    """Where it listens."""
    with sandbox.serve() as serving:
        yield serving


@pytest.fixture
def client(server: SandboxServer) -> Iterator[Anthropic]:
    """The SDK's own client. Yours would be just `Anthropic()`."""
    with Anthropic(api_key=server.api_key, base_url=server.base_url) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Where the queue is kept. By default it is in your data folder."""
    return f"disk://{tmp_path / 'queue'}"


@pytest.fixture
def settings() -> Settings:
    """Everything happens within a second that would take minutes."""
    return Settings(poll=0.05, classes={name: {"flush": 0.05} for name in ("hourly", "daily", "weekly")})
