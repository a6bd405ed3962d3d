from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from anthropic import Anthropic

from llmrouter.sandbox import ManualClock, Sandbox, SandboxServer, Turnaround

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Sandbox, Anthropic]]]:
    """Makes a sandbox with the given arguments, serves it, and returns it with a client."""
    with ExitStack() as open_things:

        def start_sandbox(**options: Any) -> tuple[Sandbox, Anthropic]:
            given = {"clock": ManualClock(), "turnaround": Turnaround.fixed(timedelta(minutes=10)), **options}
            sandbox = Sandbox(**given)
            server = open_things.enter_context(sandbox.serve())
            client = Anthropic(base_url=server.base_url, api_key=server.api_key, max_retries=0)
            return sandbox, open_things.enter_context(client)

        yield start_sandbox


@pytest.fixture
def sandbox_and_client(start: Callable[..., tuple[Sandbox, Anthropic]]) -> tuple[Sandbox, Anthropic]:
    return start()


@pytest.fixture
def sandbox(sandbox_and_client: tuple[Sandbox, Anthropic]) -> Sandbox:
    """A sandbox on a manual clock, whose batches take 10 minutes."""
    return sandbox_and_client[0]


@pytest.fixture
def client(sandbox_and_client: tuple[Sandbox, Anthropic]) -> Anthropic:
    """The SDK's client of `sandbox`, without retries."""
    return sandbox_and_client[1]


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[SandboxServer]:
    """A server of `sandbox`, for calls that the SDK would not make."""
    with sandbox.serve() as running:
        yield running


@pytest.fixture
def http(server: SandboxServer) -> Iterator[httpx2.Client]:
    """Plain HTTP to `server`, without a credential."""
    with httpx2.Client(base_url=server.base_url, headers={"anthropic-version": "2023-06-01"}) as plain:
        yield plain
