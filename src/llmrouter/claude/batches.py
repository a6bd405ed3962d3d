"""The Message Batches API through the SDK's synchronous client."""

from __future__ import annotations

import contextlib
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import anthropic
import httpx2
from anthropic.types.messages import MessageBatch

from llmrouter.claude.calls import Calls, readable
from llmrouter.claude.creating import Upload, classify_create_error
from llmrouter.claude.results import parse_line, split_lines
from llmrouter.domain.batches import Listing, ProcessingStatus, ProviderBatch
from llmrouter.errors import CreateRefusedError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from llmrouter.claude.lanes import Lanes
    from llmrouter.domain.batches import ResultLine
    from llmrouter.domain.requests import Lane
    from llmrouter.ports import BatchBody

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RETRIEVED_SINGLY = 3
_CLOCKS_DIFFER_BY = timedelta(minutes=1)
_LIFE = timedelta(hours=24)
_STATUSES = {status.value: status for status in ProcessingStatus}


class SdkBatchApi:
    """`llmrouter.ports.BatchApi` over a client of the SDK's. May be used from several threads.

    The credential goes to the client's own base URL and nowhere else: no redirect is followed.

    Memory stays bounded whatever a batch weighs, except with AWS keys, whose signature needs all
    of the body. A middleware of the client's sees every call; one that sends a create again on its
    own account can have it billed twice.
    """

    def __init__(self, client: anthropic.Anthropic, lanes: Lanes) -> None:
        self._calls = Calls(client)
        self._lanes = lanes

    def serves(self, lane: Lane) -> bool:
        """Whether the client holds the credential of a lane, and reaches its base URL."""
        return self._lanes.serves(lane)

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """Posts a batch once, piece by piece.

        Raises:
            CreateRefusedError: The API said no, or cannot have got all of it; nothing was created.
            CreateUnclearError: There was no clear answer; it may have been created.
        """
        if not self._lanes.serves(lane):
            raise CreateRefusedError("the batch was not created: its lane belongs to another client")
        upload = Upload(body)
        try:
            return self._post(lane, upload, body.content_length)
        except Exception as error:
            if isinstance(error, anthropic.AuthenticationError):
                self._calls.renew_token(lane)
            retried = bool(self._calls.client.middleware)
            raise classify_create_error(error, whole=upload.whole, retried=retried) from error

    def describe(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        """What the API says of some batches; those it did not name are left out.

        Asks for a few one by one, for more lists the newest until it has met all of them.

        Args:
            lane: Where they were created.
            wanted: Provider batch id to the API's `created_at`.

        Raises:
            anthropic.APIError: The API could not be asked.
            ValueError: An id cannot be the API's.
        """
        for provider_batch_id in wanted:
            _check_id(provider_batch_id)
        with readable(lane):
            if len(wanted) > _RETRIEVED_SINGLY:
                return self._find(lane, wanted)
            found = [self._retrieve(lane, provider_batch_id) for provider_batch_id in wanted]
            return {batch.provider_batch_id: batch for batch in found if batch is not None}

    def listed(self, lane: Lane, since: datetime) -> Listing:
        """All batches of a lane's workspace that were created at or after an instant by the API's clock.

        Raises:
            anthropic.APIError: The API could not be asked, or its list cannot be read to its end.
        """
        shown: list[ProviderBatch] = []
        listed_at: datetime | None = None
        with readable(lane):
            for page, listed_at in self._calls.pages(lane):  # noqa: B007 - the same for each page
                batches = [_read_batch(batch) for batch in page.data]
                known = [batch for batch in batches if batch is not None]
                young = [batch for batch in known if batch.created_at >= since]
                if len(known) < len(batches) or not all(batch.request_count for batch in young):
                    # It may be the one that is looked for.
                    raise ValueError("a batch in the list has no id, no time or no request")
                shown.extend(young)
                if any(batch.created_at < since for batch in known):
                    break
        return Listing(batches=tuple(shown), listed_at=listed_at)

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """Asks the API to cancel a batch; one that has ended or is being canceled is left as it is.

        Raises:
            anthropic.APIError: The API could not be asked, or does not know it (yet).
            ValueError: The id cannot be the API's.
        """
        _check_id(provider_batch_id)
        with readable(lane):
            try:
                self._calls.cancel(lane, provider_batch_id)
            except (anthropic.BadRequestError, anthropic.ConflictError):
                # Whatever it says to one that cannot be canceled any more: the batch itself tells.
                batch = self._retrieve(lane, provider_batch_id)
                if batch is None or batch.status is ProcessingStatus.IN_PROGRESS:
                    raise

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """Deletes an ended batch and its results at the API; one that is gone already is no error.

        Raises:
            anthropic.APIError: The API could not be asked, or the batch has not ended.
            ValueError: The id cannot be the API's.
        """
        _check_id(provider_batch_id)
        with readable(lane), contextlib.suppress(anthropic.NotFoundError):
            self._calls.delete(lane, provider_batch_id)

    def results(self, lane: Lane, provider_batch_id: str) -> Generator[ResultLine]:
        """Reads an ended batch's results line by line, from the client's own base URL.

        Ends early, and says so in the log only, when the connection breaks.

        Raises:
            anthropic.APIError: The API could not be asked.
            ValueError: The id cannot be the API's.
        """
        _check_id(provider_batch_id)
        with readable(lane):
            response = self._calls.open_results(lane, provider_batch_id)
        unread = 0
        try:
            for raw in split_lines(response.iter_bytes()):
                line = parse_line(raw)
                if line is not None:
                    yield line
                else:
                    unread += 1
        except httpx2.RequestError as error:
            message = "The connection broke while a batch's results were read (%s)."
            _log.info(message, type(error).__name__, extra={"batch_id": provider_batch_id})
        finally:
            response.close()
        if unread:
            message = "Some lines of a batch's results are cut, or none of the API's (%d)."
            _log.info(message, unread, extra={"batch_id": provider_batch_id})

    def _post(self, lane: Lane, upload: Upload, content_length: int) -> ProviderBatch:
        batch = _read_batch(self._calls.create(lane, upload, content_length))
        if batch is None:
            raise ValueError("the API's answer is no batch")
        return batch

    def _retrieve(self, lane: Lane, provider_batch_id: str) -> ProviderBatch | None:
        try:
            return _read_batch(self._calls.retrieve(lane, provider_batch_id))
        except anthropic.NotFoundError:
            return None

    def _find(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        found: dict[str, ProviderBatch] = {}
        until = min(wanted.values()) - _CLOCKS_DIFFER_BY
        for page, _ in self._calls.pages(lane):
            batches = [batch for batch in map(_read_batch, page.data) if batch is not None]
            found.update(
                (batch.provider_batch_id, batch) for batch in batches if batch.provider_batch_id in wanted
            )
            oldest = min((batch.created_at for batch in batches), default=until)
            if len(found) == len(wanted) or oldest < until:
                break
        return found


def _read_batch(batch: object) -> ProviderBatch | None:
    """A batch as the engine knows it; None when it has no id or no time: the SDK does not look."""
    if not isinstance(batch, MessageBatch) or not isinstance(batch.created_at, datetime):
        return None
    counts = batch.request_counts.to_dict() if batch.request_counts is not None else {}
    return ProviderBatch(
        provider_batch_id=_check_id(batch.id),
        # What a later API calls otherwise has not ended.
        status=_STATUSES.get(batch.processing_status, ProcessingStatus.IN_PROGRESS),
        created_at=batch.created_at.astimezone(UTC),
        expires_at=(batch.expires_at or batch.created_at + _LIFE).astimezone(UTC),
        ended_at=batch.ended_at.astimezone(UTC) if batch.ended_at is not None else None,
        request_count=sum(count for count in counts.values() if isinstance(count, int)),
    )


def _check_id(provider_batch_id: object) -> str:
    if not isinstance(provider_batch_id, str) or _ID.fullmatch(provider_batch_id) is None:
        raise ValueError("this is no id of a batch of the API's")
    return provider_batch_id
