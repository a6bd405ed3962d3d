"""The HTTP calls for a lane's batches: with its headers, and to the client's own address only."""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import anthropic
import httpx2
from anthropic.pagination import SyncPage
from anthropic.types.messages import MessageBatch

from llmrouter.claude.instants import http_date
from llmrouter.claude.lanes import headers_of
from llmrouter.claude.refusing import REDIRECTS, redirect_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from anthropic import RequestOptions

    from llmrouter.claude.creating import Upload
    from llmrouter.domain.requests import Lane

MESSAGES_PATH = "/v1/messages"
PAGE_LIMIT = 1000
_RAW = "X-Stainless-Raw-Response"
"""How the SDK's own `with_raw_response` and `with_streaming_response` ask for an answer with its headers."""
_ANSWER_SECONDS = 10.0
_READ_SECONDS = 60.0
"""Between two pieces of an answer. The client's own 10 minutes would keep all other batches waiting."""
_UNREAD = {"Accept": "application/binary", _RAW: "stream"}


class Calls:
    """Calls of one client's. None follows a redirect.

    The SDK follows them by itself, to any host. Only `authorization` and cookies stay behind: a key
    in another header, such as a gateway's, goes along, and so does the body of a create.
    """

    def __init__(self, client: anthropic.Anthropic) -> None:
        self.client = client

    def create(self, lane: Lane, upload: Upload, content_length: int) -> MessageBatch:
        """Posts a batch, once."""
        # With a length of its own the body goes out as it is iterated, and not in chunks.
        headers = {"content-type": "application/json", "content-length": str(content_length)}
        return self.client.with_options(max_retries=0).post(
            lane.endpoint,
            content=upload,
            cast_to=MessageBatch,
            # A create may take as long as the client's own timeout allows: to give up leaves it in doubt.
            options={**_options(lane, headers), "timeout": self.client.timeout},
        )

    def open_message(self, lane: Lane, upload: Upload) -> anthropic.APIResponse[object]:
        """Posts a request that goes live, once, with a lane's headers; its answer unread, to be closed."""
        headers = {
            "content-type": "application/json",
            "content-length": str(upload.content_length),
            _RAW: "stream",
        }
        timeout = self.client.timeout
        # An answer may take as long as the client's own timeout allows: one given up is paid all the same.
        read_seconds = timeout.read if isinstance(timeout, httpx2.Timeout) else timeout
        options = _options(lane, headers, read_seconds=read_seconds)
        options["max_retries"] = 0
        answer = self.client.post(MESSAGES_PATH, content=upload, cast_to=object, options=options)
        return cast("anthropic.APIResponse[object]", answer)

    def renew_token(self, lane: Lane) -> None:
        """Has the SDK drop a token that was refused: it does so only in a call that may be retried."""
        if self.client.credentials is not None:
            with contextlib.suppress(anthropic.AnthropicError):
                next(self.pages(lane, limit=1, max_retries=1))

    def retrieve(self, lane: Lane, provider_batch_id: str) -> MessageBatch:
        """Describes a batch."""
        return self.client.get(_path(lane, provider_batch_id), cast_to=MessageBatch, options=_options(lane))

    def pages(
        self, lane: Lane, *, limit: int = PAGE_LIMIT, max_retries: int | None = None
    ) -> Iterator[tuple[SyncPage[MessageBatch], datetime | None]]:
        """Lists batches, newest first: pages with the first one's `Date`, None where there is none.

        Raises:
            ValueError: The list cannot be read to its end.
        """
        options = _options(lane, {_RAW: "raw"})
        options["params"] = {"limit": limit}
        client = self.client if max_retries is None else self.client.with_options(max_retries=max_retries)
        answer = cast(
            "anthropic.APIResponse[SyncPage[MessageBatch]]",
            client.get_api_list(
                lane.endpoint, model=MessageBatch, page=SyncPage[MessageBatch], options=options
            ),
        )
        at = http_date(answer.headers.get("date", ""))
        page, seen = answer.parse(), set[str | None]()
        yield page, at
        while page.has_next_page():
            # A server that does not know `after_id` would give the first page for ever.
            if page.last_id in seen:
                raise ValueError("the API lists the same batches again")
            seen.add(page.last_id)
            page = page.get_next_page()
            yield page, at
        if page.has_more:
            raise ValueError("the API's list ends before its end")

    def cancel(self, lane: Lane, provider_batch_id: str) -> None:
        """Asks to cancel a batch, once: whoever asks has others to cancel, and tries again."""
        options = _options(lane)
        options["max_retries"] = 0
        self.client.post(f"{_path(lane, provider_batch_id)}/cancel", cast_to=MessageBatch, options=options)

    def delete(self, lane: Lane, provider_batch_id: str) -> None:
        """Deletes a batch."""
        self.client.delete(_path(lane, provider_batch_id), cast_to=object, options=_options(lane))

    def open_results(self, lane: Lane, provider_batch_id: str) -> anthropic.APIResponse[object]:
        """A batch's results, unread; to be closed."""
        # The path on the client's own base URL: `results_url` may name any host.
        answer = self.client.get(
            f"{_path(lane, provider_batch_id)}/results",
            cast_to=object,
            options=_options(lane, _UNREAD, read_seconds=_longer(self.client.timeout)),
        )
        return cast("anthropic.APIResponse[object]", answer)


@contextlib.contextmanager
def readable(lane: Lane) -> Iterator[None]:
    """Turns what the SDK raises over an answer that is none of the API's into a clear error of its own."""
    try:
        yield
    except anthropic.APIStatusError as error:
        if error.status_code not in REDIRECTS:
            raise
        text = redirect_text(error.response)
        raise anthropic.APIStatusError(text, response=error.response, body=None) from error
    except (AttributeError, TypeError, ValueError) as error:
        request = httpx2.Request("GET", f"{lane.base_url.rstrip('/')}{lane.endpoint}")
        raise anthropic.APIError("the API's answer cannot be read", request, body=None) from error


def _path(lane: Lane, provider_batch_id: str) -> str:
    return f"{lane.endpoint}/{provider_batch_id}"


def _longer(timeout: float | httpx2.Timeout | None) -> float | None:
    """How long to wait for a piece of the results: some gateways hold them back until they are whole."""
    read = timeout.read if isinstance(timeout, httpx2.Timeout) else timeout
    return None if read is None else max(read, _READ_SECONDS)


def _options(
    lane: Lane,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    read_seconds: float | None = _READ_SECONDS,
) -> RequestOptions:
    return {
        "headers": {**headers_of(lane), **headers},
        "follow_redirects": False,
        # Of the pool none: real-time calls on the same client may keep it busy.
        "timeout": httpx2.Timeout(_ANSWER_SECONDS, read=read_seconds, pool=None),
    }
