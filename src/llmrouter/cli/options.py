"""What several commands share: options, the client, the store's name."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from anthropic import Anthropic

from llmrouter.claude.lanes import Lanes
from llmrouter.cli.failures import InputError
from llmrouter.errors import MissingExtraError, SettingsError
from llmrouter.reports.status import RouterStatus
from llmrouter.router import Router
from llmrouter.settings import Settings
from llmrouter.wiring import store_folder

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Where the queue is: disk:///folder. By default what LLMROUTER_STORE or the settings say,"
        " or else a folder in your data folder.",
    ),
]

MEMORY: Final = "memory:"

OTHER_KEY = "for a worker that has another API key or base URL than this process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """How the program was called."""

    program: str
    """What it is called by: ``llmrouter``, or ``python -m llmrouter``."""
    arguments: Sequence[str]

    def command_line(self) -> str:
        """What to type to do the same again."""
        return f"{self.program} {shlex.join(self.arguments)}"


def connect() -> Anthropic:
    """The client of the environment.

    Raises:
        InputError: There is no credential.
        SettingsError: It has no batches, or lacks something else.
    """
    client = Anthropic()
    try:
        Lanes(client, b"any").lane_for({})
    except SettingsError as error:
        if client.api_key is None and client.auth_token is None:
            raise InputError(
                "there is no API key: set ANTHROPIC_API_KEY (llmrouter demo needs none)"
            ) from error
        raise
    return client


def store_url(store: str | None, settings: Settings) -> str:
    """The URL of the store that a command works on."""
    return store or settings.store_url()


def store_exists(url: str) -> bool:
    """Whether there is a store at a URL, so that one is not made by looking."""
    scheme = url.partition(":")[0]
    if scheme == "disk":
        return (store_folder(url) / "cache.db").exists()
    return scheme != MEMORY.rstrip(":")


@contextmanager
def existing_store(store: str | None) -> Iterator[tuple[Router, str]]:
    """A router that works on nothing, for a store that is there, and the store's URL. No API key is needed.

    Raises:
        InputError: There is no store.
    """
    settings = Settings()
    url = store_url(store, settings)
    if not store_exists(url):
        raise InputError(f"there is no store at {url}")
    with Router(Anthropic(), store=url, settings=settings, worker=False) as router:
        yield router, url


def count_foreign(status: RouterStatus) -> int:
    """Requests of lanes whose credential this process does not hold, so that they wait for another."""
    waiting = sum(line.request_count for line in status.backlog if not line.served)
    return waiting + sum(batch.request_count for batch in status.batches if not batch.served)


def require_sandbox() -> None:
    """Says how to install the sandbox where it is not.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import llmrouter.sandbox  # noqa: F401, PLC0415  (an extra: it may not be there)
    except ImportError as error:
        raise MissingExtraError(
            "the sandbox is not installed; install it with: pip install 'llmrouter[sandbox]'"
        ) from error
