"""``llmrouter why``: what a request waits for."""

from typing import Annotated

import typer

from llmrouter.cli.console import log_to_stderr, show
from llmrouter.cli.options import StoreOption, existing_store


def why(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The request, by its id.")],
    store: StoreOption = None,
) -> None:
    """Says in a sentence what a request waits for and until when, or how it ended.

    Shows neither prompts nor answers, and needs no API key.

    Exit codes: 0 done, 1 failed, 2 wrong usage or settings, or the store has no such request.
    """
    log_to_stderr("warning", timed=False)
    with existing_store(store) as (router, _):
        sentence = router.why(request_id)
    show(sentence)
