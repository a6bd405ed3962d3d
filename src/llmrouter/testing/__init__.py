"""A pytest plugin for users: an Anthropic API on loopback for each test, on a clock the test drives.

In `conftest.py`:

    pytest_plugins = ["llmrouter.testing"]

In a test:

    def test_report(llmrouter_sandbox):
        client = llmrouter_sandbox.client()
        batch = client.messages.batches.create(requests=[...])
        llmrouter_sandbox.sandbox.clock.advance(timedelta(hours=1))
        assert client.messages.batches.retrieve(batch.id).processing_status == "ended"

It needs the extra `llmrouter[sandbox]`, and pytest.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import Anthropic

from llmrouter.sandbox import ManualClock, Sandbox, SandboxServer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SandboxFixture", "llmrouter_sandbox"]


class SandboxFixture:
    """A sandbox that serves, and clients for it.

    Args:
        sandbox: the sandbox.
        server: its server, started.
        clients: closes the clients when the test is over.
    """

    def __init__(self, sandbox: Sandbox, server: SandboxServer, clients: ExitStack) -> None:
        self.sandbox = sandbox
        """Its clock (a `ManualClock`), faults, books and batches."""
        self._server = server
        self._clients = clients

    @property
    def base_url(self) -> str:
        """Where it listens, on loopback."""
        return self._server.base_url

    def client(self, **options: Any) -> Anthropic:
        """A new client of the sandbox, closed for you when the test is over.

        Args:
            **options: arguments of `anthropic.Anthropic`, such as `max_retries`.
        """
        client = Anthropic(**{"api_key": self._server.api_key, "base_url": self.base_url, **options})
        return self._clients.enter_context(client)


@pytest.fixture
def llmrouter_sandbox() -> Iterator[SandboxFixture]:
    """A sandbox of the test's own, on a manual clock; batches take 7 minutes at the median."""
    sandbox = Sandbox(clock=ManualClock())
    with sandbox.serve() as server, ExitStack() as clients:
        yield SandboxFixture(sandbox, server, clients)
