"""Narrows a batch that the API refused for its content down to the request that is to blame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.domain.batches import Batch
    from llmrouter.errors import CreateRefusedError

MOST_ASIDE = 8
"""Requests refused alone, one after the other, before it is the account that seems to be refused."""

_MOST_EVER = 128

TOO_LARGE = 413


@dataclass(slots=True)
class Search:
    """The narrowing down in one lane and class. Used by one thread at a time.

    A refused batch goes again in halves. A request that is refused alone fails at once when the
    API's words are about a request. When they may be about the account, it is put aside, still
    claimed, and its neighbours are tried: when one of them passes, those put aside were to blame.
    """

    limit: int | None = None
    """The next batch takes no more requests than this."""
    aside: list[tuple[Batch, CreateRefusedError]] = field(default_factory=list)
    """Batches of one request that were refused, still claimed."""
    most_aside: int = MOST_ASIDE
    """How many are put aside before the lane waits: twice as many after each wait, or so many bad
    requests in a row would keep the others waiting for ever."""
    rounds: dict[str, int] = field(default_factory=dict)
    """How often a request was refused alone with nothing to compare it with, by request id."""

    def halve(self, request_count: int) -> None:
        """A batch of so many was refused."""
        self.limit = (request_count + 1) // 2

    def waits(self) -> None:
        """As many were put aside as may be, and none passed."""
        self.most_aside = min(self.most_aside * 2, _MOST_EVER)

    def passed(self, most: int) -> None:
        """A batch went well, or the bad request is out: the next one may be twice as large.

        Args:
            most: The largest batch there would be without a search.
        """
        if self.limit is not None:
            self.limit = None if self.limit * 2 >= most else self.limit * 2


def is_to_blame(refusal: CreateRefusedError) -> bool:
    """Whether a request that was refused alone is certainly the reason."""
    return refusal.names_request or refusal.status == TOO_LARGE
