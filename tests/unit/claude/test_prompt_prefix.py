"""Prompts that begin alike: told by their cache breakpoints, marked for the cache, warmed by a call."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from llmrouter.claude.encoding import encode
from llmrouter.claude.prompt_prefix import find_prefixes, has_breakpoints, mark_prefix, warm_up_call
from llmrouter.domain.prompt_cache import name_prefix
from support.requests import ask

HOUR = {"type": "ephemeral", "ttl": "1h"}
SHORT = {"type": "ephemeral"}
OPUS = "claude-opus-5-5"
"""A model with a minimum of 512 tokens."""
LONG = "All about llamas. " * 200
TOOL = {"name": "look", "description": LONG, "input_schema": {"type": "object"}}


def text(words: str, **more: Any) -> dict[str, Any]:
    """A text block."""
    return {"type": "text", "text": words, **more}


def user(*blocks: Any) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": list(blocks)}


def request(**parts: Any) -> dict[str, Any]:
    """A request of `OPUS`."""
    return ask("hi", **{"model": OPUS, **parts})


def last_prefix(data: dict[str, Any]) -> str:
    """Of all its breakpoints."""
    return find_prefixes(data)[-1]


MARKED_SYSTEM = request(system=[text(LONG, cache_control=SHORT)])
MARKED_TOOL = request(tools=[{**TOOL, "cache_control": SHORT}])
MARKED_MESSAGE = request(messages=[user(text(LONG, cache_control=SHORT), text("Why?"))])
AUTOMATIC = request(cache_control=SHORT, system=LONG)
MARKED_RESULT = request(
    messages=[
        user({"type": "tool_result", "tool_use_id": "t", "content": [text(LONG, cache_control=SHORT)]}),
    ]
)
MARKED = [MARKED_SYSTEM, MARKED_TOOL, MARKED_MESSAGE, AUTOMATIC, MARKED_RESULT]
UNMARKED = [
    request(),
    request(system=LONG),
    request(system=[text(LONG, cache_control=None)], cache_control=None),
    request(tools=[TOOL], messages=[user(text(LONG))]),
    # A tool of that name, an argument of that name, and a text about it are no breakpoints.
    request(tools=[{"name": "cache_control", "input_schema": {"properties": {"cache_control": {}}}}]),
    request(messages=[user(text('set "cache_control": true'))]),
    request(messages=5),
    request(messages=["cache_control"], tools="cache_control", system={"cache_control": SHORT}),
]


@pytest.mark.parametrize("data", MARKED)
def test_a_breakpoint_anywhere_gives_a_prefix(data: dict[str, Any]) -> None:
    """On tools, system, messages, what a tool gave back, or at the top level."""
    assert has_breakpoints(data)
    assert len(find_prefixes(data)) == 1


@pytest.mark.parametrize("data", UNMARKED)
def test_without_breakpoints_there_is_none(data: dict[str, Any]) -> None:
    """Also where something else has that name, or the body is none that the API would take."""
    assert not has_breakpoints(data)
    assert find_prefixes(data) == ()


def test_what_follows_the_breakpoint_does_not_matter() -> None:
    """Nor do `max_tokens`, metadata and the question."""
    other = {
        **MARKED_SYSTEM,
        "max_tokens": 9,
        "messages": [user(text("Else?"))],
        "tool_choice": {"type": "any"},
    }

    assert find_prefixes(other) == find_prefixes(MARKED_SYSTEM)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "claude-opus-5"},
        {"system": [text(LONG + "!", cache_control=SHORT)]},
        {"system": [text("First: "), text(LONG, cache_control=SHORT)]},
        {"tools": [TOOL]},
        {"output_config": {"effort": "low"}},
    ],
)
def test_what_precedes_the_breakpoint_does(change: dict[str, Any]) -> None:
    """The cache is told apart by model, tools and system, and by what is written into them."""
    assert find_prefixes({**MARKED_SYSTEM, **change}) != find_prefixes(MARKED_SYSTEM)


@pytest.mark.parametrize("change", [{"thinking": {"type": "adaptive"}}, {"tool_choice": {"type": "any"}}])
def test_thinking_and_tool_choice_matter_to_messages_alone(change: dict[str, Any]) -> None:
    """The API keeps the cache of tools and system when they change."""
    assert find_prefixes({**MARKED_MESSAGE, **change}) != find_prefixes(MARKED_MESSAGE)
    assert find_prefixes({**MARKED_SYSTEM, **change}) == find_prefixes(MARKED_SYSTEM)


def test_the_same_text_said_by_another_is_another_prefix() -> None:
    """Role and place count."""
    said = [{"role": role, "content": [text(LONG, cache_control=SHORT)]} for role in ("user", "assistant")]
    prefixes = {last_prefix(request(messages=[one])) for one in said} | {last_prefix(MARKED_SYSTEM)}

    assert len(prefixes) == 3


def test_a_conversation_that_goes_on_keeps_its_earlier_prefixes() -> None:
    """Each turn moves the breakpoint on; where others stand, and their TTL, does not matter."""
    first = request(system=[text(LONG, cache_control=HOUR)], messages=[user(text("a", cache_control=SHORT))])
    later = copy.deepcopy(first)
    later["system"][0]["cache_control"] = SHORT
    later["messages"].append({"role": "assistant", "content": [text("b", cache_control=SHORT)]})
    bare = copy.deepcopy(later)
    del bare["messages"][0]["content"][0]["cache_control"]

    assert len(find_prefixes(later)) == 3
    assert find_prefixes(later)[:2] == find_prefixes(first)
    assert find_prefixes(bare) == (find_prefixes(later)[0], find_prefixes(later)[2])


def test_a_text_for_system_is_marked() -> None:
    """It becomes the one block that it stands for."""
    marked = mark_prefix(request(system=LONG, tools=[TOOL]), OPUS)

    assert marked is not None
    assert marked["system"] == [text(LONG, cache_control=HOUR)]
    assert marked["tools"] == [TOOL]


def test_the_last_block_of_the_system_prompt_is_marked() -> None:
    """The caller's own data stays as it is."""
    data = request(system=[text("First."), text(LONG)])
    before = copy.deepcopy(data)

    assert mark_prefix(data, OPUS) == {**data, "system": [text("First."), text(LONG, cache_control=HOUR)]}
    assert data == before


@pytest.mark.parametrize("system", [None, "", []])
def test_without_a_system_prompt_the_last_tool_is_marked(system: object) -> None:
    """But for tools that are loaded later: the API refuses a breakpoint on them."""
    late = {**TOOL, "name": "late", "defer_loading": True}
    parts = {} if system is None else {"system": system}
    marked = mark_prefix(request(tools=[TOOL, TOOL, late], **parts), OPUS)

    assert marked == request(tools=[TOOL, {**TOOL, "cache_control": HOUR}, late], **parts)


def test_what_is_too_short_for_the_model_is_left() -> None:
    """About four bytes a token: 3,600 bytes are 900 tokens. Tools and system count together."""
    assert mark_prefix(request(system=LONG), OPUS) is not None
    assert mark_prefix(request(system=LONG), "claude-sonnet-4-5") is None
    assert mark_prefix(request(system=LONG, tools=[TOOL]), "claude-sonnet-4-5") is not None
    assert mark_prefix(request(messages=[user(text(LONG))]), OPUS) is None


@pytest.mark.parametrize(
    "data",
    [
        *MARKED,
        request(system=[text(LONG, cache_control=None)]),
        request(system=LONG, cache_control=None),
        request(system=[text(LONG), text(" ")]),
        request(system=LONG, messages=[user(text("hi", cache_control=SHORT))]),
        request(tools=[{**TOOL, "defer_loading": True}]),
    ],
)
def test_a_callers_own_cache_control_is_not_touched(data: dict[str, Any]) -> None:
    """Wherever it stands, also to say that there is none; nor is what the API would refuse marked."""
    assert mark_prefix(data, OPUS) is None


def test_a_request_is_marked_only_where_that_is_asked_for() -> None:
    """The bytes are those of the marked request."""
    data = request(system=LONG)
    plain = encode(data, batch=True)
    marked = encode(data, batch=True, auto_cache=True)
    live = encode(data, batch=False, auto_cache=True)

    assert (plain.body, plain.prefixes) == (live.body, ())
    assert json.loads(marked.body) == {**data, "system": [text(LONG, cache_control=HOUR)]}
    assert marked.prefixes == find_prefixes(json.loads(marked.body))
    assert encode(MARKED_SYSTEM, batch=False).prefixes == ()


def called(data: dict[str, Any], place: int = -1) -> dict[str, Any] | None:
    """The warm-up call of one of its prefixes."""
    call = warm_up_call(json.dumps(data).encode(), find_prefixes(data)[place])
    return None if call is None else json.loads(call.body)


def test_a_warm_up_asks_for_no_answer() -> None:
    """The same tools and system prompt with an hour's breakpoint, and next to nothing after it."""
    data = request(system=[text("First."), text(LONG, cache_control=SHORT), text("Rest")], tools=[TOOL])

    assert called(data) == {
        "model": OPUS,
        "max_tokens": 0,
        "tools": [TOOL],
        "system": [text("First."), text(LONG, cache_control=HOUR)],
        "messages": [{"role": "user", "content": "."}],
    }


@pytest.mark.parametrize("data", [*MARKED, mark_prefix(request(system=LONG), OPUS)])
def test_a_warm_up_has_the_prefix_that_it_warms(data: dict[str, Any]) -> None:
    """And no other breakpoint: a shorter one of five minutes must not precede one of an hour."""
    call = called(data)

    assert call is not None
    assert find_prefixes(call) == find_prefixes(data)
    assert json.dumps(call).count('"cache_control"') == 1


def test_a_shorter_prefix_can_be_warmed_as_well() -> None:
    """What follows it is left out; so are tools after it."""
    data = request(
        tools=[{**TOOL, "cache_control": SHORT}, TOOL],
        system=[text("Be brief", cache_control=SHORT)],
        messages=[
            user(text("a")),
            {"role": "assistant", "content": [text("b", cache_control=SHORT), text("c")]},
        ],
    )

    by_tools, by_system, by_messages = (called(data, place) for place in range(3))
    assert by_tools == {
        "model": OPUS,
        "max_tokens": 0,
        "tools": [{**TOOL, "cache_control": HOUR}],
        "messages": [{"role": "user", "content": "."}],
    }
    assert by_system is not None
    assert by_system["tools"] == [TOOL, TOOL]
    assert by_system["system"] == [text("Be brief", cache_control=HOUR)]
    assert by_messages is not None
    assert by_messages["messages"] == [
        user(text("a")),
        {"role": "assistant", "content": [text("b", cache_control=HOUR)]},
        {"role": "user", "content": "."},
    ]


def test_what_the_api_refuses_beside_no_answer_is_left_out() -> None:
    """Where the prefix does not depend on it."""
    extra = {
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tool_choice": {"type": "any"},
        "stream": False,
    }
    call = called({**MARKED_TOOL, **extra})

    assert call == called(MARKED_TOOL)


@pytest.mark.parametrize(
    "data",
    [
        {**MARKED_MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {**MARKED_MESSAGE, "tool_choice": {"type": "tool", "name": "look"}},
        {**MARKED_SYSTEM, "output_config": {"format": {"type": "json_schema", "schema": {}}}},
    ],
)
def test_some_prefixes_no_call_can_warm(data: dict[str, Any]) -> None:
    """The API refuses the call, and without what it refuses it would be another prefix."""
    assert called(data) is None


def test_adaptive_thinking_stays() -> None:
    """It is accepted, and belongs to the prefix of messages."""
    call = called({**MARKED_MESSAGE, "thinking": {"type": "adaptive"}})

    assert call is not None
    assert call["thinking"] == {"type": "adaptive"}


def test_the_length_of_a_prefix_is_estimated_and_a_foreign_one_has_none() -> None:
    """About four bytes a token; a `Group.prefix` says also whether it may be warmed."""
    body, prefix = json.dumps(MARKED_SYSTEM).encode(), last_prefix(MARKED_SYSTEM)
    call = warm_up_call(body, name_prefix(prefix, warmable=True))

    assert call is not None
    assert 900 <= call.prefix_tokens <= 930
    assert warm_up_call(body, last_prefix(MARKED_TOOL)) is None


@pytest.mark.parametrize("name", ["thinking", "tool_choice", "output_config"])
def test_a_parameter_of_a_wrong_kind_is_for_the_api_to_refuse(name: str) -> None:
    """It comes by `extra_body`, which nobody checks."""
    assert called({**MARKED_SYSTEM, name: 5}) is not None
