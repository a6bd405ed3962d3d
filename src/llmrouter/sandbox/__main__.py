"""`python -m llmrouter.sandbox`: a sandbox in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse

from llmrouter.sandbox import run
from llmrouter.sandbox.foreground import DEFAULT_PORT


def main(arguments: list[str] | None = None) -> None:
    """Serves a sandbox; leaves with a message when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m llmrouter.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="the port to listen on; 0: any free one"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="sandbox seconds per real second")
    parser.add_argument("--seed", type=int, default=0, help="decides ids, turnaround, order and answers")
    options = parser.parse_args(arguments)
    try:
        run(host=options.host, port=options.port, speed=options.speed, seed=options.seed)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
