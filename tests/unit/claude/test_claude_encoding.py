"""Requests become the bytes that the SDK would send, or a clear error."""

from __future__ import annotations

import base64
import enum
import io
import json
import warnings
from collections import OrderedDict, UserDict
from datetime import UTC, date, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from claude_support import MODEL, client_with, message_body, request
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.claude.encoding import encode
from llmrouter.claude.preparing import create_shape
from llmrouter.domain.batches import wire_bytes
from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Models(enum.StrEnum):
    OPUS = MODEL


class Named(str, enum.Enum):  # noqa: UP042 - its str() is not its value
    OPUS = MODEL


class Point(NamedTuple):
    x: int
    y: int


def sent_by_sdk(arguments: dict[str, Any]) -> httpx2.Request:
    """What `messages.create` puts on the wire for these arguments."""
    sent: list[httpx2.Request] = []

    def answer(wire: httpx2.Request) -> httpx2.Response:
        sent.append(wire)
        return httpx2.Response(200, json=message_body())

    client_with(answer).messages.create(**{"timeout": 5.0, **arguments})
    return sent[0]


def earlier_answer() -> Message:
    return Message.construct(
        **message_body(
            content=[
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": [1, {"deep": None}]}},
                {"type": "not_known_yet", "extra": 1},
            ]
        )
    )


SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": request,
    "keys in any order": lambda: dict(reversed(request(system="s").items())),
    "unicode": lambda: request(system='\u2028 \u2029 \x85 \x00 \x1f é 漢 😀 \\ " /'),
    "numbers": lambda: request(metadata={"user_id": "u", "n": [1, -1.5, 1e300, 10**30, True, None]}),
    "tools": lambda: request(
        tools=[{"name": "f", "input_schema": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}}],
        tool_choice={"type": "auto"},
    ),
    "every kind of argument": lambda: request(
        thinking={"type": "enabled", "budget_tokens": 1024},
        stop_sequences=["a"],
        output_config={"effort": "low"},
        cache_control={"type": "ephemeral"},
        service_tier="auto",
        container="c",
        inference_geo=None,
        stream=False,
        workspace_id="wrkspc_1",
        user_profile_id="profile_1",
        extra_headers={"X-Mine": "1"},
    ),
    "extra_body": lambda: request(extra_body={"temperature": 0.5, "max_tokens": 7, "new": {"a": [1]}}),
    "extra_body with omit": lambda: request(system="s", extra_body={"system": anthropic.omit, "b": 1}),
    "extra_body of another mapping": lambda: request(extra_body=MappingProxyType({"b": 1})),
    "omitted": lambda: request(
        system=anthropic.omit, tools=anthropic.NOT_GIVEN, metadata={"user_id": anthropic.omit}
    ),
    "none": lambda: request(cache_control=None, extra_body=None, extra_headers=None, extra_query=None),
    "blocks of an earlier answer": lambda: request(
        messages=[
            {"role": "assistant", "content": earlier_answer().content},
            {"role": "user", "content": "go"},
        ]
    ),
    "an earlier answer's block in extra_body": lambda: request(
        extra_body={"seen": earlier_answer().content[0]}
    ),
    "iterators": lambda: request(
        messages=iter([{"role": "user", "content": (block for block in [{"type": "text", "text": "x"}])}]),
        system=({"type": "text", "text": str(n)} for n in range(2)),
        stop_sequences=map(str, [1, 2]),
    ),
    "tuples and sets": lambda: request(
        messages=({"role": "user", "content": ({"type": "text", "text": "x"},)},),
        metadata={"point": Point(1, 2), "set": {1}, "keys": {"k": 1}.keys()},
    ),
    "mappings": lambda: request(
        metadata=MappingProxyType({"user_id": "u"}),
        thinking=OrderedDict(type="adaptive"),
        output_config=UserDict(effort="low"),
    ),
    "dates": lambda: request(metadata={"at": datetime(2026, 11, 20, tzinfo=UTC), "on": date(2026, 11, 20)}),
    "keys that are no strings": lambda: request(metadata={2: "a", True: "b", None: "c", 1.5: "d"}),
    "a model from an enum": lambda: request(model=Models.OPUS),
    "a model from an enum with another str": lambda: request(model=Named.OPUS),
    "a file": lambda: request(
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": io.BytesIO(b"\x89PNG"),
                        },
                    }
                ],
            }
        ]
    ),
    "very long output, prepared": lambda: request(max_tokens=300_000, system=iter([])),
    "very long output": lambda: request(max_tokens=300_000),
    "an unknown way to think": lambda: request(thinking={"type": "by_heart", "new": 1}),
    "values newer than the SDK": lambda: request(service_tier="flex", output_config={"effort": "mega"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_the_sdk_sends(shape: str) -> None:
    """The body is what `messages.create` posts, to the byte."""
    wire = sent_by_sdk(SHAPES[shape]())

    encoded = encode(SHAPES[shape](), batch=True)

    assert encoded.body == wire.content
    assert encoded.model == json.loads(wire.content)["model"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    | st.tuples(inner, inner),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    content=JSON_VALUES,
    extra=st.dictionaries(st.text("xyz", min_size=1), JSON_VALUES, max_size=3),
    slow=st.booleans(),
)
def test_bytes_are_those_the_sdk_sends_for_any_data(content: Any, extra: dict[str, Any], slow: bool) -> None:
    """Both ways of encoding agree with the SDK, whatever data a message holds."""
    messages = [{"role": "user", "content": content}]
    arguments = request(messages=messages, extra_body=extra)

    encoded = encode({**arguments, "messages": iter(messages)} if slow else arguments, batch=True)

    assert encoded.body == sent_by_sdk(arguments).content


def test_headers_are_those_the_sdk_sends() -> None:
    """Workspace, profile and extra headers rank as in `messages.create`; those of the call come last."""
    arguments = request(
        workspace_id="wrkspc_1",
        user_profile_id="profile_1",
        extra_headers={"Anthropic-Workspace-Id": "wrkspc_2", "anthropic-beta": "a"},
    )
    wire = sent_by_sdk(arguments)

    headers = encode(arguments, batch=True).headers

    assert {name: wire.headers[name] for name in headers} == headers
    assert set(headers) == {"anthropic-workspace-id", "anthropic-user-profile-id", "anthropic-beta"}
    assert (
        encode(arguments, batch=True, extra_headers={"Anthropic-Beta": "b"}).headers["anthropic-beta"] == "b"
    )


def test_a_header_can_be_omitted() -> None:
    """An `Omit` stays one: the lane decides what it means."""
    encoded = encode(request(extra_headers={"anthropic-beta": anthropic.omit}), batch=True)

    assert isinstance(encoded.headers["anthropic-beta"], anthropic.Omit)


def test_the_shape_is_learned_from_the_sdk() -> None:
    """Every parameter of the SDK has a place: in the body, or in a header."""
    shape = create_shape()

    assert shape.body_keys[:3] == ("max_tokens", "messages", "model")
    assert shape.header_of == {
        "workspace_id": "anthropic-workspace-id",
        "user_profile_id": "anthropic-user-profile-id",
    }
    assert set(shape.body_keys) | set(shape.header_of) == shape.names - {
        "extra_body", "extra_headers", "extra_query", "timeout",
    }  # fmt: skip


def test_a_file_is_read(tmp_path: Path) -> None:
    """A path in a base64 source is read as the SDK reads it."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    source = {"type": "base64", "media_type": "image/png", "data": picture}

    body = encode(
        request(messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]), batch=True
    ).body

    assert base64.b64encode(b"png") in body


def test_encoding_raises_no_warning_of_the_sdk() -> None:
    """A retired model warns when it is sent, not when a model is dumped."""
    block = earlier_answer().content[0]
    old = request(model="claude-3-opus-20240229", metadata={"block": block})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        body = encode(old, batch=True).body

    assert json.loads(body)["model"] == "claude-3-opus-20240229"


def test_the_request_is_left_as_it_was() -> None:
    """Encoding changes nothing of the caller's."""
    arguments = request(system=anthropic.omit, extra_body={"a": {"b": 1}}, metadata={"d": date(2026, 1, 1)})
    before = dict(arguments)

    encode(arguments, batch=True)

    assert arguments == before


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no mapping": (lambda: ["x"], "request", "not list"),
    "unknown argument": (lambda: request(max_token=5), "max_token", "did you mean max_tokens?"),
    "unknown, like nothing": (lambda: request(zzz=5), "zzz", "extra_body"),
    "a name that is no string": (lambda: {**request(), 5: 1}, "5", "no such argument"),
    "temperature": (lambda: request(temperature=1), "temperature", "2023-06-01"),
    "betas": (lambda: request(betas=["x"]), "betas", "anthropic-beta"),
    "no model": (lambda: {"max_tokens": 1, "messages": [{}]}, "model", "is missing"),
    "no max_tokens": (lambda: {"model": "m", "messages": [{}]}, "max_tokens", "is missing"),
    "no messages": (lambda: {"model": "m", "max_tokens": 1}, "messages", "is missing"),
    "omitted messages": (lambda: request(messages=anthropic.omit), "messages", "is missing"),
    "model removed by extra_body": (lambda: request(extra_body={"model": anthropic.omit}), "model", "name"),
    "model is None": (lambda: request(model=None), "model", "string"),
    "model is empty": (lambda: request(model=""), "model", "name of a model"),
    "max_tokens is text": (lambda: request(max_tokens="100"), "max_tokens", "valid integer, not str"),
    "max_tokens is a bool": (lambda: request(max_tokens=True), "max_tokens", "valid integer, not bool"),
    "max_tokens is a float": (lambda: request(max_tokens=1.0), "max_tokens", "not float"),
    "max_tokens is negative": (lambda: request(max_tokens=-1), "max_tokens", "0 or more"),
    "messages is text": (lambda: request(messages="hi"), "messages", "list, not str"),
    "messages is a dict": (lambda: request(messages={"role": "user"}), "messages", "list, not dict"),
    "messages is a number": (lambda: request(messages=5), "messages", "not int"),
    "messages is empty": (lambda: request(messages=[]), "messages", "empty"),
    "messages is an empty iterator": (lambda: request(messages=iter(())), "messages", "empty"),
    "a message is text": (
        lambda: request(messages=[{"role": "user", "content": "x"}, "x"]),
        "messages[1]",
        "not str",
    ),
    "system is a number": (lambda: request(system=5), "system", "not int"),
    "system is a dict": (lambda: request(system={"type": "text"}), "system", "list of text blocks"),
    "tools is a dict": (lambda: request(tools={"name": "f"}), "tools", "list, not dict"),
    "tools is None": (lambda: request(tools=None), "tools", "not NoneType"),
    "metadata is text": (lambda: request(metadata="u"), "metadata", "not str"),
    "metadata.user_id is a number": (lambda: request(metadata={"user_id": 5}), "metadata", "user_id"),
    "thinking is text": (lambda: request(thinking="hard"), "thinking", "not str"),
    "thinking without budget": (
        lambda: request(thinking={"type": "enabled"}),
        "thinking",
        "budget_tokens: field required",
    ),
    "tool_choice is text": (lambda: request(tool_choice="auto"), "tool_choice", "not str"),
    "stop_sequences is text": (lambda: request(stop_sequences="a"), "stop_sequences", "not str"),
    "cache_control without type": (
        lambda: request(cache_control={}),
        "cache_control",
        "type: field required",
    ),
    "service_tier is a number": (lambda: request(service_tier=5), "service_tier", "not int"),
    "workspace_id is None": (lambda: request(workspace_id=None), "workspace_id", "string"),
    "stream": (lambda: request(stream=True), "stream", "finished message"),
    "extra_body is a list": (lambda: request(extra_body=[1]), "extra_body", "not list"),
    "extra_headers is a list": (lambda: request(extra_headers=["a"]), "extra_headers", "not list"),
    "header value is a number": (lambda: request(extra_headers={"a": 1}), "extra_headers", "not int"),
    "header value with a line end": (
        lambda: request(extra_headers={"a": "b\nc"}),
        "extra_headers",
        "cannot carry",
    ),
    "header name with a space": (
        lambda: request(extra_headers={"a b": "c"}),
        "extra_headers",
        "no header name",
    ),
    "NaN": (lambda: request(metadata={"x": float("nan")}), "metadata", "NaN"),
    "Infinity, prepared": (lambda: request(messages=iter([{"x": float("inf")}])), "messages", "NaN"),
    "bytes": (lambda: request(system=[{"type": "text", "text": b"secret"}]), "system", "bytes"),
    "an object": (lambda: request(metadata={"user_id": object()}), "metadata", "object"),
    "a key that is a tuple": (lambda: request(metadata={(1, 2): 3}), "metadata", "keys must be"),
    "a surrogate": (lambda: request(system="secret\ud800"), "system", "surrogate"),
    "a surrogate, prepared": (
        lambda: request(messages=iter([{"content": "\ud800"}])),
        "messages",
        "surrogate",
    ),
    "a surrogate in extra_body": (lambda: request(extra_body={"a": "\udfff"}), "a", "surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("batch", [True, False])
def test_what_no_call_can_carry_is_refused(case: str, batch: bool) -> None:
    """The error names the field, also for a live call."""
    make, field, problem = REFUSED[case]

    with pytest.raises(InvalidRequestError) as caught:
        encode(make(), batch=batch)

    assert caught.value.field == field
    assert problem in caught.value.problem
    assert "secret" not in str(caught.value)


def test_what_contains_itself_is_refused() -> None:
    """A circle is found on both ways of encoding."""
    circle: dict[str, Any] = {}
    circle["again"] = circle

    for messages in ([circle], iter([circle])):
        with pytest.raises(InvalidRequestError) as caught:
            encode(request(messages=messages), batch=True)
        assert caught.value.field in ("messages", "request")


def test_what_is_nested_too_deeply_is_refused() -> None:
    """Depth that the encoder cannot follow is an error of the request, not a crash."""
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(InvalidRequestError, match="nested too deeply") as caught:
        encode(request(metadata={"user_id": deep}), batch=True)
    assert caught.value.field == "metadata"


def test_a_missing_file_is_an_error_of_the_request(tmp_path: Path) -> None:
    """The cause stays visible."""
    source = {"type": "base64", "media_type": "image/png", "data": tmp_path / "none.png"}

    with pytest.raises(InvalidRequestError) as caught:
        encode(request(messages=[{"role": "user", "content": [{"source": source}]}]), batch=True)

    assert isinstance(caught.value.__cause__, FileNotFoundError)


NOT_IN_A_BATCH: dict[str, tuple[dict[str, Any], str, str]] = {
    "speed": ({"speed": "fast"}, "speed", "real-time"),
    "no output": ({"max_tokens": 0}, "max_tokens", "1 or more"),
    "fallbacks": ({"extra_body": {"fallbacks": [{"model": "m"}]}}, "fallbacks", "real-time"),
    "thread": ({"extra_body": {"thread": "thread_1"}}, "thread", "real-time"),
    "betas": ({"extra_body": {"betas": ["x"]}}, "betas", "anthropic-beta"),
    "stream": ({"extra_body": {"stream": True}}, "stream", "finished message"),
    "speed in extra_body": ({"extra_body": {"speed": "standard"}}, "speed", "real-time"),
    "no output in extra_body": ({"extra_body": {"max_tokens": 0}}, "max_tokens", "1 or more"),
    "query": ({"extra_query": {"beta": "true"}}, "extra_query", "real-time"),
    "timeout": ({"timeout": 60}, "timeout", "deadline="),
}


@pytest.mark.parametrize("case", NOT_IN_A_BATCH)
def test_what_only_a_batch_cannot_carry_is_refused_there_alone(case: str) -> None:
    """The error says what to do instead; the same request may go live."""
    changes, field, problem = NOT_IN_A_BATCH[case]

    with pytest.raises(InvalidRequestError) as caught:
        encode(request(**changes), batch=True)

    assert caught.value.field == field
    assert problem in caught.value.problem
    encode(request(**changes), batch=False)


@pytest.mark.parametrize("name", ["fallbacks", "thread"])
def test_parameters_of_the_beta_api_are_refused_by_name(name: str) -> None:
    """`messages.create` has no such argument; in a batch not even extra_body helps."""
    with pytest.raises(InvalidRequestError, match="real-time"):
        encode(request(**{name: "x"}), batch=True)
    with pytest.raises(InvalidRequestError, match="extra_body"):
        encode(request(**{name: "x"}), batch=False)


@pytest.mark.parametrize(
    "changes", [{"speed": None}, {"extra_query": {}}, {"timeout": None}, {"stream": False}]
)
def test_what_asks_for_nothing_may_be_in_a_batch(changes: dict[str, Any]) -> None:
    """A value that is as good as none is no reason to refuse."""
    encode(request(**changes), batch=True)


def test_a_request_too_large_for_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the whole posted body, with one request in it."""
    largest = request(system="x" * 1000)
    limit = wire_bytes(1, len(encode(largest, batch=True).body))
    monkeypatch.setattr("llmrouter.claude.checks.API_MAX_BYTES", limit)

    encode(largest, batch=True)
    with pytest.raises(InvalidRequestError, match="more than a batch can carry"):
        encode(request(system="x" * 1001), batch=True)
    encode(request(system="x" * 1001), batch=False)


def test_the_error_says_which_of_many() -> None:
    """An index is carried into the error."""
    with pytest.raises(InvalidRequestError, match="request 7: max_tokens") as caught:
        encode(request(max_tokens="1"), batch=True, index=7)
    assert caught.value.index == 7
