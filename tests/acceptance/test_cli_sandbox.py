from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic
from cli_support import MODEL

if TYPE_CHECKING:
    from cli_support import Cli


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_serves_until_it_is_stopped(cli: Cli, number: signal.Signals) -> None:
    """It prints the two variables that point the SDK to it."""
    running = cli.start("sandbox", "--port", "0", "--speed", "60")
    base_url = running.wait_for(r"export ANTHROPIC_BASE_URL=(http://127\.0\.0\.1:\d+)\n")[1]
    api_key = running.wait_for(r"export ANTHROPIC_API_KEY=(\S+)\n")[1]
    with Anthropic(base_url=base_url, api_key=api_key) as client:
        message = client.messages.create(
            model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "hello"}]
        )
    assert message.role == "assistant"
    running.send(number)
    ended = running.end()
    assert (ended.code, ended.err) == (0, "stopped\n")
    assert "60 times as fast as real time" in ended.out


def test_a_taken_port_is_one_clear_line(cli: Cli) -> None:
    """It says what to do about it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = cli.run("sandbox", "--port", str(port))
    assert ended.code == 1
    assert ended.error == f"port {port} on 127.0.0.1 is in use; choose another, or 0 for any free one"


def test_without_its_extra_it_says_how_to_install_it(cli: Cli) -> None:
    """Whoever has not installed it learns the line to type, from the demo too."""
    (cli.folder / "starlette.py").write_text("raise ImportError('not installed')\n")
    ended = cli.run("demo", env={"PYTHONPATH": str(cli.folder)})
    assert ended.code == 2
    assert ended.error == "the sandbox is not installed; install it with: pip install 'llmrouter[sandbox]'"
