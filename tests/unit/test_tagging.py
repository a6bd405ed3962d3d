"""What is said of calls from outside of them: headers, blocks, and the keys of runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmrouter
from llmrouter.errors import InvalidRequestError
from llmrouter.tagging import UNTAGGED, Run, Tag, current_entry, read_tag, without_tag


def current() -> str | None:
    """The class of the block that this code is in."""
    entry = current_entry()
    return entry and entry.latency


def test_a_tag_is_read_back_from_the_headers_of_a_call() -> None:
    """Whatever their case, and without the headers that are meant for the API."""
    headers = {"anthropic-beta": "b", **llmrouter.tag("hourly", site="nightly.eval", key="é 1")}

    assert read_tag(headers) == Tag(latency="hourly", site="nightly.eval", key="é 1")
    assert read_tag({name.upper(): value for name, value in headers.items()}) == read_tag(headers)
    assert without_tag(headers) == {"anthropic-beta": "b"}
    assert read_tag({"anthropic-beta": "b"}) is UNTAGGED


def test_a_tag_may_only_name_the_site() -> None:
    """A rule for it decides then."""
    assert read_tag(llmrouter.tag(site="nightly.eval")) == Tag(site="nightly.eval")
    assert llmrouter.tag() == {}


@pytest.mark.parametrize("wrong", ["", 3600, b"daily"])
def test_what_is_no_text_is_refused_at_once(wrong: Any) -> None:
    """Where it is written, not at the first call."""
    with pytest.raises(InvalidRequestError, match="latency"):
        llmrouter.tag(wrong)
    with pytest.raises(InvalidRequestError, match="latency"):
        llmrouter.latency(wrong)
    with pytest.raises(InvalidRequestError, match="run"):
        llmrouter.latency("daily", run=wrong)


def test_the_innermost_block_counts() -> None:
    """And the one around it again, afterwards; also after an exception."""
    assert current() is None
    with llmrouter.latency("daily"):
        with llmrouter.latency("hourly"):
            assert current() == "hourly"
        assert current() == "daily"
        with pytest.raises(ZeroDivisionError), llmrouter.latency("hourly"):
            _ = 1 / 0
        assert current() == "daily"
    assert current() is None


def test_one_block_may_be_entered_in_several_threads_at_once() -> None:
    """Each leaves its own."""
    block, both = llmrouter.latency("daily"), threading.Barrier(2, timeout=30)

    def work(_place: int) -> tuple[str | None, str | None]:
        with block:
            both.wait()
            inside = current()
        both.wait()
        return inside, current()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [("daily", None), ("daily", None)]


def test_tasks_that_are_made_in_a_block_are_in_it_and_others_are_not() -> None:
    """Whenever they run."""

    async def look() -> str | None:
        await asyncio.sleep(0)
        return current()

    async def main() -> list[str | None]:
        outside = asyncio.create_task(look())
        with llmrouter.latency("weekly"):
            inside = asyncio.create_task(look())
        return [await outside, await inside, await look()]

    assert asyncio.run(main()) == [None, "weekly", None]


def test_a_thread_pool_does_not_see_the_block_unless_it_is_given_the_context() -> None:
    """Context variables do not follow into threads."""
    with ThreadPoolExecutor(1) as pool, llmrouter.latency("daily"):
        assert pool.submit(current).result() is None
        assert pool.submit(contextvars.copy_context().run, current).result() == "daily"


def test_a_block_inside_a_run_belongs_to_it() -> None:
    """Also with another class; one with a run of its own does not."""
    with llmrouter.latency("daily", run="a"):
        outer = current_entry()
        with llmrouter.latency("hourly"):
            inner = current_entry()
        with llmrouter.latency("hourly", run="b"):
            other = current_entry()

    assert outer is not None
    assert inner is not None
    assert other is not None
    assert inner.run is outer.run
    assert other.run is not None
    assert other.run.name == "b"


def test_equal_requests_of_a_run_are_numbered() -> None:
    """From 1, each kind by itself; another run has other keys."""
    run = Run("nightly:2026")
    keys = [run.take(content) for content in (b"x", b"x", b"y", b"x")]

    assert [key.rsplit(":", 1)[1] for key in keys] == ["1", "2", "1", "3"]
    assert len(set(keys)) == 4
    assert all(key.startswith("run:nightly:2026:") for key in keys)
    assert Run("other").take(b"x") not in keys


def test_a_key_that_was_given_back_is_the_next_equal_requests() -> None:
    """The smallest first."""
    run = Run("a")
    first, second, third = (run.take(b"x") for _ in range(3))
    run.give_back(second)
    run.give_back(first)

    assert [run.take(b"x") for _ in range(3)] == [first, second, third.removesuffix("3") + "4"]


@given(st.lists(st.sampled_from([b"x", b"y", b"z"]), max_size=30), st.randoms(use_true_random=False))
def test_a_run_gives_the_same_keys_in_any_order(contents: list[bytes], chance: Any) -> None:
    """Which of the equal requests is which does not matter."""
    again = list(contents)
    chance.shuffle(again)
    first, second = Run("a"), Run("a")

    assert Counter(map(first.take, contents)) == Counter(map(second.take, again))


def test_no_two_threads_get_the_same_key() -> None:
    """Of one entry of a block."""
    run = Run("a")
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: [run.take(b"x") for _ in range(200)], range(8)))

    assert len({key for some in keys for key in some}) == 1_600
