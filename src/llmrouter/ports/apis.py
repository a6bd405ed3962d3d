"""The ports of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from datetime import datetime

    from llmrouter.domain.batches import (
        Listing,
        ProviderBatch,
        ResultLine,
    )
    from llmrouter.domain.live import LiveReply
    from llmrouter.domain.requests import Lane


class BatchBody(Protocol):
    """The body of a batch create: can be iterated more than once, and knows its length."""

    content_length: int

    def __iter__(self) -> Iterator[bytes]:
        """The JSON, piece by piece, from the start."""
        ...


class BatchApi(Protocol):
    """The Message Batches API, as little of it as the engine needs."""

    def serves(self, lane: Lane) -> bool:
        """Whether this process holds the credential of a lane, and reaches its base URL."""
        ...

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """Posts a batch once: no retry of any kind, since the API has no idempotency key.

        Raises:
            CreateRefusedError: The API said no; nothing was created.
            CreateUnclearError: There was no clear answer; it may have been created.
        """
        ...

    def describe(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        """What the API says of some batches, by their provider ids; those it did not name are left out.

        A batch that is left out is not gone: the API can answer 404 for a fresh batch (docs/api.md).

        Args:
            lane: Where they were created.
            wanted: Provider batch id to the API's ``created_at``.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...

    def listed(self, lane: Lane, since: datetime) -> Listing:
        """All batches of a lane's workspace that were created at or after an instant by the API's clock.

        Raises:
            anthropic.APIError: The API could not be asked, or not for all of them.
        """
        ...

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """Asks the API to cancel a batch; one that has ended or is being canceled is left as it is.

        Raises:
            anthropic.APIError: The API could not be asked, or does not know it (yet).
        """
        ...

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """Deletes an ended batch and its results at the API; one that is gone already is no error.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...

    def results(self, lane: Lane, provider_batch_id: str) -> Generator[ResultLine]:
        """Reads an ended batch's results line by line, in any order, with bounded memory.

        A generator: closing it ends the reading.

        It may end early without an error when the connection is cut: the caller checks that every
        request was answered. A last line that was cut is left out.

        Raises:
            anthropic.APIError: The API could not be asked.
        """
        ...


class LiveApi(Protocol):
    """The Messages API, for requests whose deadline asks for it."""

    def serves(self, lane: Lane) -> bool:
        """Whether this process holds the credential of a lane, and reaches its base URL."""
        ...

    def carries(self, lane: Lane) -> bool:
        """Whether requests of a lane can go live. False: they ask for what only a batch can do."""
        ...

    def call(self, lane: Lane, request_id: str, body: bytes) -> LiveReply:
        """Sends a request live, once: no retry of any kind. Blocks until it is answered.

        Args:
            lane: With whose headers.
            request_id: For the form of a result line.
            body: The JSON of its parameters. Streamed where it asks for so many tokens that the API
                wants it so.

        Raises:
            LiveCallError: There is no answer; it says why, and whether it may have been paid for.
        """
        ...
