"""The Message Batches API through the SDK's synchronous client."""

from __future__ import annotations

import contextlib
import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import anthropic
import httpx2
from anthropic.types.messages import MessageBatch

from llmrouter.claude.creating import Upload, classify_create_error
from llmrouter.claude.lanes import headers_of
from llmrouter.claude.results import parse_line, split_lines
from llmrouter.domain.batches import ProcessingStatus, ProviderBatch
from llmrouter.errors import CreateRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmrouter.claude.lanes import Lanes
    from llmrouter.domain.batches import ResultLine
    from llmrouter.domain.requests import Lane
    from llmrouter.ports import BatchBody

_log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RETRIEVED_SINGLY = 3
_PAGE_LIMIT = 1000
_CLOCKS_DIFFER_BY = timedelta(minutes=1)
_LIFE = timedelta(hours=24)
_STATUSES = {status.value: status for status in ProcessingStatus}
_UNREAD = {"Accept": "application/binary", "X-Stainless-Raw-Response": "stream"}
"""As the SDK's own `with_streaming_response` asks to have a body handed over unread; spelled as it does."""


class SdkBatchApi:
    """`llmrouter.ports.BatchApi` over a client of the SDK's. May be used from several threads.

    Memory stays bounded whatever a batch weighs, except with AWS keys, whose signature needs all
    of the body. A middleware of the client's sees every call; one that sends a create again on its
    own account can have it billed twice.
    """

    def __init__(self, client: anthropic.Anthropic, lanes: Lanes) -> None:
        self._client = client
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
                self._renew_token(lane)
            retried = bool(self._client.middleware)
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
        with self._readable(lane):
            if len(wanted) > _RETRIEVED_SINGLY:
                return self._find(lane, wanted)
            found = [self._retrieve(lane, provider_batch_id) for provider_batch_id in wanted]
            return {batch.provider_batch_id: batch for batch in found if batch is not None}

    def results(self, lane: Lane, provider_batch_id: str) -> Iterator[ResultLine]:
        """Reads an ended batch's results line by line, from the client's own base URL.

        Ends early, and says so in the log only, when the connection breaks.

        Raises:
            anthropic.APIError: The API could not be asked.
            ValueError: The id cannot be the API's.
        """
        response = self._open_results(lane, _check_id(provider_batch_id))
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
        # With a length of its own the body goes out as it is iterated, and not in chunks.
        headers = {
            **headers_of(lane),
            "content-type": "application/json",
            "content-length": str(content_length),
        }
        answer = self._client.with_options(max_retries=0).post(
            lane.endpoint, content=upload, cast_to=MessageBatch, options={"headers": headers}
        )
        batch = _read_batch(answer)
        if batch is None:
            raise ValueError("the API's answer is no batch")
        return batch

    def _renew_token(self, lane: Lane) -> None:
        """Has the SDK drop a token that was refused: it does so only in a call that may be retried."""
        if self._client.credentials is not None:
            with contextlib.suppress(anthropic.AnthropicError):
                client = self._client.with_options(max_retries=1)
                client.messages.batches.list(limit=1, extra_headers=headers_of(lane))

    @contextlib.contextmanager
    def _readable(self, lane: Lane) -> Iterator[None]:
        """Turns what the SDK raises over an answer that is none of the API's into an error of its own."""
        try:
            yield
        except (AttributeError, TypeError, ValueError) as error:
            request = httpx2.Request("GET", f"{lane.base_url.rstrip('/')}{lane.endpoint}")
            raise anthropic.APIError("the API's answer cannot be read", request, body=None) from error

    def _retrieve(self, lane: Lane, provider_batch_id: str) -> ProviderBatch | None:
        batches = self._client.messages.batches
        try:
            return _read_batch(batches.retrieve(provider_batch_id, extra_headers=headers_of(lane)))
        except anthropic.NotFoundError:
            return None

    def _find(self, lane: Lane, wanted: Mapping[str, datetime]) -> dict[str, ProviderBatch]:
        found: dict[str, ProviderBatch] = {}
        until = min(wanted.values()) - _CLOCKS_DIFFER_BY
        newest = self._client.messages.batches.list(limit=_PAGE_LIMIT, extra_headers=headers_of(lane))
        for page in newest.iter_pages():
            batches = [batch for batch in map(_read_batch, page.data) if batch is not None]
            found.update(
                (batch.provider_batch_id, batch) for batch in batches if batch.provider_batch_id in wanted
            )
            oldest = min((batch.created_at for batch in batches), default=until)
            if len(found) == len(wanted) or oldest < until:
                break
        return found

    def _open_results(self, lane: Lane, provider_batch_id: str) -> anthropic.APIResponse[object]:
        answer = self._client.get(
            f"{lane.endpoint}/{provider_batch_id}/results",
            cast_to=object,
            options={"headers": {**headers_of(lane), **_UNREAD}},
        )
        return cast("anthropic.APIResponse[object]", answer)


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
