"""``llmrouter sandbox``: an Anthropic API to try things against."""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from llmrouter.cli.console import log_to_stderr, note, show
from llmrouter.cli.failures import InputError
from llmrouter.cli.options import require_sandbox

if TYPE_CHECKING:
    from llmrouter.sandbox import SandboxServer


def sandbox(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any free one.")
    ] = 8080,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    speed: Annotated[
        float, typer.Option(help="How fast its time goes: with 3600, batches take seconds, not hours.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides ids, answers, and how long batches take.")] = 0,
) -> None:
    """Runs an Anthropic API on this machine to try things against.

    It knows messages and batches, and answers with made-up text: nothing leaves the machine, nothing is
    paid. Batches take as long as the real ones: seven minutes at the median, over an hour for one in
    ten; `--speed` shortens that. Needs the extra `llmrouter[sandbox]`.

    Exit codes: 0 stopped by Ctrl-C, 1 failed, 2 wrong usage, or the extra is missing.
    """
    log_to_stderr("warning", timed=False)
    if not speed > 0:
        raise InputError(f"--speed: {speed:g} is no speed; give a number above 0")
    require_sandbox()
    from llmrouter.sandbox import run  # noqa: PLC0415  (an extra: it may not be there)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    run(host=host, port=port, speed=speed, seed=seed, on_ready=lambda server: _say_where(server, speed))
    note("stopped")


def _say_where(server: "SandboxServer", speed: float) -> None:
    pace = "in real time" if speed == 1 else f"{speed:g} times as fast as real time"
    show(f"An Anthropic API listens on {server.base_url}, {pace}.\nTo use it:\n")
    show(f"export ANTHROPIC_BASE_URL={server.base_url}", verbatim=True)
    show(f"export ANTHROPIC_API_KEY={server.api_key}", verbatim=True)
    show("\nCtrl-C stops it, and forgets everything.")
