"""What goes wrong, as one line and an exit code: the one place where the commands' errors end."""

from __future__ import annotations

import json

import anthropic
import typer

from llmrouter.errors import (
    InvalidRequestError,
    LlmrouterError,
    MissingExtraError,
    SettingsError,
    UnknownRequestError,
)

OK = 0
FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, settings or input, 130 stopped by Ctrl-C."

# Typer has brought its own copy of Click at some point: the base of its usage errors has no public
# name that all the versions we admit share.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_INPUT_ERRORS = (InvalidRequestError, MissingExtraError, SettingsError, UnknownRequestError)


class InputError(LlmrouterError):
    """What a command was given cannot be used; nothing has been done."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line that says what is wrong, and the exit code; None for what must be a bug of ours."""
    match error:
        case _UsageError():
            return _explain_usage(error), WRONG_INPUT
        case InputError() | LlmrouterError():
            return _one_line(error), WRONG_INPUT if isinstance(
                error, (InputError, *_INPUT_ERRORS)
            ) else FAILED
        case anthropic.APIStatusError():
            return f"the API answered {error.status_code}: {_one_line(error.api_message or error)}", FAILED
        case anthropic.AnthropicError() | json.JSONDecodeError():
            return _one_line(error), FAILED
        case OSError():
            return _explain_os(error), FAILED
        case _:
            return None


def _explain_usage(error: Exception) -> str:
    said = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "llmrouter"
    said = f"{said[:1].lower()}{said[1:]}".rstrip(".")
    return f"{_one_line(said)} (see: {command} --help)"


def _explain_os(error: OSError) -> str:
    said = error.strerror or str(error) or type(error).__name__
    return _one_line(f"{error.filename}: {said}" if error.filename is not None else said)


def _one_line(text: object) -> str:
    return " ".join(str(text).split()) or type(text).__name__
