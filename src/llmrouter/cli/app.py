"""The program: its commands, and where their errors end."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmrouter._version import __version__
from llmrouter.cli.cancel import cancel
from llmrouter.cli.console import note
from llmrouter.cli.demo import demo
from llmrouter.cli.failures import EXIT_CODES, OK, explain
from llmrouter.cli.options import Invocation
from llmrouter.cli.pause import pause, resume
from llmrouter.cli.run import run
from llmrouter.cli.runs import runs
from llmrouter.cli.sandbox import sandbox
from llmrouter.cli.status import status
from llmrouter.cli.upkeep import prune, repair
from llmrouter.cli.why import why
from llmrouter.cli.worker import flush, worker

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
for command in (
    demo,
    run,
    runs,
    status,
    why,
    cancel,
    worker,
    flush,
    pause,
    resume,
    prune,
    repair,
    sandbox,
):
    app.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmrouter {__version__}")
        raise typer.Exit(OK)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001  (its callback does it)
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Sends each Claude request the cheapest way that still answers in time.

    That is live, or in a batch for half the price. Begin with `llmrouter demo`: it needs no API key, and
    costs nothing.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and leaves with its exit code; what goes wrong is one line on stderr.

    Args:
        arguments: Those after the program's name; by default the process's own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    program = "python -m llmrouter" if Path(sys.argv[0]).name == "__main__.py" else "llmrouter"
    sys.exit(_run(Invocation(program=program, arguments=given)))


def _run(invocation: Invocation) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=list(invocation.arguments),
            prog_name=invocation.program,
            standalone_mode=False,
            obj=invocation,
        )
    except typer.Abort:
        note("stopped: nothing was done")
        return 1
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        note(f"error: {explained[0]}", style="red")
        return explained[1]
    return code if isinstance(code, int) else OK
