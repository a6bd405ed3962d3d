"""The Messages API for requests whose deadline asks for it, through the SDK's synchronous client."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anthropic

from llmrouter.claude.calls import Calls
from llmrouter.claude.creating import Upload
from llmrouter.claude.instants import http_date
from llmrouter.claude.live_failures import classify_live_error, refusal_of
from llmrouter.claude.prices import price_of
from llmrouter.claude.rate_limits import read_limits, work_of
from llmrouter.claude.streaming import asking_for_pieces, join_pieces
from llmrouter.domain.live import LiveCallError, LiveReply
from llmrouter.domain.rates import Work
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx2

    from llmrouter.claude.lanes import Lanes
    from llmrouter.domain.live import RateLimits
    from llmrouter.domain.requests import Lane

BATCH_ONLY_BETA = "output-300k-"
"""How the betas begin that allow answers so long that only a batch can carry them (docs/api.md)."""

_EVENT_STREAM = "text/event-stream"
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class SdkLiveApi:
    """`llmrouter.ports.LiveApi` over a client of the SDK's. May be used from several threads.

    The credential goes to the client's own base URL and nowhere else: no redirect is followed. A
    middleware of the client's sees every call; one that sends a call again on its own account can have
    it billed twice.
    """

    def __init__(self, client: anthropic.Anthropic, lanes: Lanes) -> None:
        self._calls = Calls(client)
        self._lanes = lanes

    def serves(self, lane: Lane) -> bool:
        """Whether the client holds the credential of a lane, and reaches its base URL."""
        return self._lanes.serves(lane)

    def carries(self, lane: Lane) -> bool:
        """Whether requests of a lane can go live. False: a beta of theirs is one of batches alone."""
        betas = dict(lane.headers).get("anthropic-beta", "").split(",")
        return not any(beta.strip().startswith(BATCH_ONLY_BETA) for beta in betas)

    def call(self, lane: Lane, request_id: str, body: bytes) -> LiveReply:
        """Posts a request once, as it is stored, and waits for its answer.

        Args:
            lane: With whose headers.
            request_id: For the form of a result line.
            body: The JSON of its parameters. A large `max_tokens` is streamed, see
                `llmrouter.claude.streaming`.

        Raises:
            LiveCallError: There is no answer; it says why, and whether it may have been paid for.
        """
        if not self._lanes.serves(lane):
            raise LiveCallError("the live call was not made: its lane belongs to another client")
        began = time.monotonic()
        try:
            upload = Upload(_Whole(body))
        except ValueError as error:
            raise LiveCallError("the live call was not made: its body is no JSON object") from error
        try:
            response = self._calls.open_message(lane, upload).http_response
        except Exception as error:
            # Whatever it is, the caller must learn whether the call may have been paid for.
            refusal = refusal_of(error)
            if refusal is None or not isinstance(error, anthropic.APIStatusError):
                raise self._failure(lane, error, sent=upload.whole) from error
            return _errored(request_id, refusal, error.response, _since(began))
        limits = read_limits(response.headers)
        raw, message = self._read(response, limits)
        price = price_of(message, processing="standard", at=_answered_at(response))
        return LiveReply(
            kind=OutcomeKind.SUCCEEDED,
            raw=_result_line(request_id, "succeeded", "message", raw),
            took=_since(began),
            work=work_of(message.get("usage")),
            paid_usd=price.paid_usd if price is not None else None,
            limits=limits,
        )

    def _failure(self, lane: Lane, error: Exception, *, sent: bool) -> LiveCallError:
        if isinstance(error, anthropic.AuthenticationError):
            self._calls.renew_token(lane)
        return classify_live_error(error, sent=sent, retried=bool(self._calls.client.middleware))

    def _read(self, response: httpx2.Response, limits: RateLimits | None) -> tuple[bytes, Mapping[str, Any]]:
        """The message of an answer, as bytes and parsed.

        Raises:
            LiveCallError: It did not come, or did not come whole: it may have been paid for.
        """
        try:
            if response.headers.get("content-type", "").startswith(_EVENT_STREAM):
                raw = join_pieces(response, self._calls.client)
            else:
                raw = response.read()
            return raw, _parse_message(raw)
        except LiveCallError:
            raise
        except ValueError as error:
            raise LiveCallError(
                "the live call's answer is no message", unclear=True, limits=limits
            ) from error
        except Exception as error:
            # The transport's own errors, which the SDK does not turn into its own here, and whatever else.
            text = f"the live call's answer broke off ({type(error).__name__})"
            raise LiveCallError(text, unclear=True, limits=limits) from error
        finally:
            response.close()


class _Whole:
    """The body of a call, in one piece."""

    def __init__(self, body: bytes) -> None:
        self._body = asking_for_pieces(body)
        self.content_length = len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        yield self._body


def _parse_message(raw: bytes) -> dict[str, Any]:
    # Decoded first: the JSON module takes encodings and marks that a line of results cannot hold.
    message = json.loads(raw.decode())
    if isinstance(message, dict) and message.get("type") == "message":
        return message
    raise ValueError("the answer is no message")


def _errored(
    request_id: str, refusal: Mapping[str, Any], response: httpx2.Response, took: timedelta
) -> LiveReply:
    return LiveReply(
        kind=OutcomeKind.ERRORED,
        raw=_result_line(request_id, "errored", "error", json.dumps(refusal).encode()),
        took=took,
        work=Work(requests=1),
        paid_usd=Decimal(0),
        limits=read_limits(response.headers),
    )


def _result_line(request_id: str, kind: str, name: str, content: bytes) -> bytes:
    """A line as a batch's results have it. What stands between the tokens of JSON is no part of it."""
    head = json.dumps({"custom_id": request_id, "result": {"type": kind}})
    return b'%s, "%s": %s}}' % (head[:-2].encode(), name.encode(), content.strip().translate(_LINE_ENDS))


def _answered_at(response: httpx2.Response) -> datetime:
    return http_date(response.headers.get("date", "")) or datetime.now(UTC)


def _since(began: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - began)
