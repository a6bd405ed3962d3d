"""Results are read line by line, whatever is in the lines and however they arrive."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, client_with, error_body, message_body
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.results import parse_line, split_lines
from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.domain.batches import ResultLine


def line(custom_id: str = "a", **result: Any) -> bytes:
    given = {"type": "succeeded", "message": message_body(), **result}
    return json.dumps({"custom_id": custom_id, "result": given}, ensure_ascii=False).encode()


class Stream(httpx2.SyncByteStream):
    """A body in pieces, which may break off; knows whether it was closed."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True


def api_over(
    handler: Callable[[httpx2.Request], httpx2.Response], **options: Any
) -> tuple[SdkBatchApi, Lanes]:
    client = client_with(handler, **options)
    lanes = Lanes(client, SECRET)
    return SdkBatchApi(client, lanes), lanes


def read(stream: Stream, **headers: str) -> list[ResultLine]:
    api, lanes = api_over(lambda _: httpx2.Response(200, stream=stream, headers=headers))
    return list(api.results(lanes.lane_for({}), "msgbatch_1"))


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))),
    cuts=st.lists(st.integers(0, 400)),
)
def test_lines_are_the_same_however_they_are_cut(lines: list[str], cuts: list[int]) -> None:
    """Only a line feed ends a line; blank lines are none."""
    body = "\n".join(lines).encode()
    edges = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    chunks = [body[start:end] for start, end in itertools.pairwise(edges)]

    expected = [text.encode() for text in body.decode().split("\n") if text.encode().strip()]

    assert list(split_lines(chunks)) == expected


def test_a_string_may_hold_the_line_ends_of_unicode() -> None:
    """Text that other readers split at stays whole."""
    raw = line(message=message_body(content=[{"type": "text", "text": "a\u2028b\u2029c\x85d\x0be\x0cf"}]))

    assert [found.raw for found in read(Stream([raw + b"\n"]))] == [raw]


def test_a_long_line_takes_linear_time() -> None:
    """Pieces are joined once: 16 times the line takes 16 times the work of this thread, not 256 times."""

    def seconds(pieces: int) -> float:
        best = 1e9
        for _ in range(3):
            started = time.thread_time()
            assert len(list(split_lines([b"x" * 4096] * pieces))) == 1
            best = min(best, time.thread_time() - started)
        return best

    assert seconds(16_000) < 80 * seconds(1_000) + 0.05


KINDS: list[tuple[dict[str, Any], OutcomeKind | None, str | None]] = [
    ({"type": "succeeded", "message": {}}, OutcomeKind.SUCCEEDED, None),
    (
        {"type": "errored", "error": error_body("invalid_request_error")},
        OutcomeKind.ERRORED,
        "invalid_request_error",
    ),
    ({"type": "errored", "error": {"type": "error"}}, OutcomeKind.ERRORED, None),
    ({"type": "errored", "error": None}, OutcomeKind.ERRORED, None),
    ({"type": "errored"}, OutcomeKind.ERRORED, None),
    ({"type": "errored", "error": {"error": {"type": 5}}}, OutcomeKind.ERRORED, None),
    ({"type": "canceled"}, OutcomeKind.CANCELED, None),
    ({"type": "expired"}, OutcomeKind.EXPIRED, None),
    ({"type": "paused"}, None, None),
]


@pytest.mark.parametrize(("result", "kind", "error_type"), KINDS)
def test_a_line_says_how_its_request_ended(
    result: dict[str, Any], kind: OutcomeKind | None, error_type: str | None
) -> None:
    """The error type nests twice; a type that is not known is None and no failure."""
    raw = json.dumps({"custom_id": "a-1", "result": result}).encode()

    found = parse_line(raw)

    assert found is not None
    assert (found.custom_id, found.kind, found.error_type, found.raw) == ("a-1", kind, error_type, raw)


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"5", b"null", b"{}", b'{"custom_id": 5, "result": {"type": "expired"}}', b"\xff\xfe",
     b'{"custom_id": "a", "result": {}}', b'{"custom_id": "a", "result": 1}', b"[" * 100_000],
    ids=lambda raw: raw[:20],
)  # fmt: skip
def test_what_is_no_result_line_is_none(raw: bytes) -> None:
    """One odd line does not keep the others from being read."""
    assert parse_line(raw) is None
    assert [found.custom_id for found in read(Stream([line("a"), b"\n", raw, b"\n", line("b"), b"\n"]))] == [
        "a",
        "b",
    ]


def test_blank_lines_are_skipped() -> None:
    """The SDK raises at them."""
    body = b"\n\n" + line("a") + b"\n \r\n\n" + line("b") + b"\r\n\n"

    assert [found.custom_id for found in read(Stream([body]))] == ["a", "b"]


def test_a_last_line_without_an_end_counts_if_it_is_whole() -> None:
    """A line that was cut is left out, wherever it was cut."""
    assert [found.custom_id for found in read(Stream([line("a") + b"\n" + line("b")]))] == ["a", "b"]
    for cut in range(1, len(line("b")), 7):
        assert [found.custom_id for found in read(Stream([line("a") + b"\n" + line("b")[:-cut]]))] == ["a"]


@pytest.mark.parametrize(
    "error", [httpx2.ReadError("gone"), httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("cut")]
)
def test_a_connection_that_breaks_ends_the_reading_quietly(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What came is used; the caller sees what is missing. The log holds no answer."""
    stream = Stream([line("a") + b"\n", line("b")[:50]], error)

    with caplog.at_level(logging.INFO, "llmrouter"):
        found = read(stream)

    assert [result.custom_id for result in found] == ["a"]
    assert stream.closed
    (record,) = [record for record in caplog.records if record.name.startswith("llmrouter")]
    assert (record.levelname, vars(record)["batch_id"]) == ("INFO", "msgbatch_1")
    assert type(error).__name__ in record.getMessage()
    assert "hello" not in caplog.text


def test_lines_that_cannot_be_read_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """In one line of the log, without what is in them."""
    with caplog.at_level(logging.INFO, "llmrouter"):
        read(Stream([b"hello {\n" * 500, line("a")]))

    (record,) = [record for record in caplog.records if record.name.startswith("llmrouter")]
    assert "500" in record.getMessage()
    assert "hello" not in caplog.text


def test_a_compressed_body_is_read() -> None:
    """Whole, or broken off in the middle."""
    packed = gzip.compress(b"\n".join(line(str(n)) for n in range(50)))

    assert len(read(Stream([packed]), **{"content-encoding": "gzip"})) == 50
    assert len(read(Stream([packed[:100], b"rubbish"]), **{"content-encoding": "gzip"})) < 50


def test_a_reader_that_stops_closes_the_connection() -> None:
    """Nothing leaks when the caller has seen enough."""
    stream = Stream([line("a") + b"\n", line("b") + b"\n"])
    api, lanes = api_over(lambda _: httpx2.Response(200, stream=stream))
    reading = iter(api.results(lanes.lane_for({}), "msgbatch_1"))

    next(reading)
    reading.close()  # type: ignore[attr-defined]

    assert stream.closed


def test_results_come_from_the_own_base_url() -> None:
    """Never from where `results_url` points: the credential would go there."""
    wire: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        wire.append(request)
        return httpx2.Response(200, content=line())

    api, lanes = api_over(answer, base_url="https://proxy.example/claude")
    list(api.results(lanes.lane_for({"anthropic-workspace-id": "w"}), "msgbatch_1"))

    (request,) = wire
    assert str(request.url) == "https://proxy.example/claude/v1/messages/batches/msgbatch_1/results"
    assert request.headers["anthropic-workspace-id"] == "w"


def test_a_middleware_of_the_client_sees_the_reading() -> None:
    """As any other call of the SDK's: wrapped, and with the status."""
    seen: list[int] = []

    def watch(request: anthropic.APIRequest, call_next: anthropic.CallNext) -> Any:
        response = call_next(request)
        seen.append(response.status_code)
        return response

    api, lanes = api_over(lambda _: httpx2.Response(200, content=line()), middleware=[watch])

    assert len(list(api.results(lanes.lane_for({}), "msgbatch_1"))) == 1
    assert seen == [200]


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, anthropic.NotFoundError), (401, anthropic.AuthenticationError), (400, anthropic.BadRequestError)],
)
def test_an_error_status_is_raised_typed(status: int, error: type[Exception]) -> None:
    """It is no end of the results."""
    api, lanes = api_over(lambda _: httpx2.Response(status, json=error_body("x")))

    with pytest.raises(error):
        list(api.results(lanes.lane_for({}), "msgbatch_1"))


def test_reading_is_tried_again_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GET may be repeated, as often as the client does."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    answers = iter([httpx2.Response(529), httpx2.Response(500), httpx2.Response(200, content=line())])
    api, lanes = api_over(lambda _: next(answers))

    assert len(list(api.results(lanes.lane_for({}), "msgbatch_1"))) == 1


@pytest.mark.parametrize("batch_id", ["", "../files", "a/b", "a?b", "a%2fb", "a#b", "é", "x" * 200])
def test_an_id_that_is_none_of_the_api_is_refused(batch_id: str) -> None:
    """It never becomes part of a path."""
    api, lanes = api_over(lambda _: httpx2.Response(200))

    with pytest.raises(ValueError, match="no id"):
        list(api.results(lanes.lane_for({}), batch_id))
