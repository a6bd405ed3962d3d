"""A sandbox in the foreground, for a command to call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.sandbox.clocks import ScaledClock
from llmrouter.sandbox.core import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sandbox.server import SandboxServer

DEFAULT_PORT = 8008


def run(
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    speed: float = 1.0,
    seed: int = 0,
    requests_per_minute: int | None = None,
    on_ready: Callable[[SandboxServer], None] | None = None,
) -> None:
    """Serves a new sandbox until Ctrl-C. Prints nothing.

    Args:
        host: the address to listen on.
        port: the port to listen on; 0: any free one.
        speed: sandbox seconds per real second.
        seed: decides ids, turnaround, the order of results, and the answers.
        requests_per_minute: the rate limit; None: no limit.
        on_ready: called once, with the server, when calls are answered.

    Raises:
        PortInUseError: something else listens there.
        OSError: the address cannot be listened on.
        ValueError: `speed` or `requests_per_minute` out of range.
    """
    sandbox = Sandbox(clock=ScaledClock(speed=speed), seed=seed, requests_per_minute=requests_per_minute)
    with sandbox.serve(host, port) as server:
        try:
            if on_ready is not None:
                on_ready(server)
            server.wait()
        except KeyboardInterrupt:
            return
