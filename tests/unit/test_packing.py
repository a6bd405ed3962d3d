"""Requests into batches: never above a limit, in order, and as many as go in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS, custom_id, request_id_of, wire_bytes
from llmrouter.domain.packing import BatchLimits, Run, pack

if TYPE_CHECKING:
    from collections.abc import Sequence

_ITEM = wire_bytes(1, 0) - wire_bytes(0, 0)


def run_of(sizes: Sequence[int]) -> Run:
    """A run of bodies of these sizes."""
    return Run(count=len(sizes), body_bytes=sum(sizes), sizes=lambda: sizes)


def take(runs: Sequence[Sequence[int]], limits: BatchLimits) -> list[int]:
    """What `pack` takes of runs of these sizes."""
    return list(pack(map(run_of, runs), limits))


@pytest.mark.parametrize(
    ("runs", "max_requests", "expected"),
    [
        ([], 3, []),
        ([[1]], 3, [1]),
        ([[1, 1, 1]], 3, [3]),
        ([[1, 1, 1, 1]], 3, [3]),
        ([[1, 1], [1, 1]], 3, [2, 1]),
        ([[1, 1], [1], [1]], 3, [2, 1]),
        ([[1, 1, 1], [1]], 3, [3]),
        ([[1], [1], [1], [1]], 1, [1]),
    ],
)
def test_no_more_requests_than_allowed(runs: list[list[int]], max_requests: int, expected: list[int]) -> None:
    """Whole runs while they fit, then the first part of the next one."""
    assert take(runs, BatchLimits(max_requests=max_requests)) == expected


def test_no_more_bytes_than_allowed() -> None:
    """Counted as they are posted, to the byte."""
    exactly_two = wire_bytes(2, 200)

    assert take([[100, 100, 100]], BatchLimits(max_bytes=exactly_two)) == [2]
    assert take([[100, 100, 100]], BatchLimits(max_bytes=exactly_two - 1)) == [1]
    assert take([[100], [100, 100]], BatchLimits(max_bytes=exactly_two)) == [1, 1]


def test_a_request_that_does_not_fit_ends_the_batch() -> None:
    """A smaller one behind it may not overtake it: order is deadline."""
    limits = BatchLimits(max_bytes=wire_bytes(2, 349))

    assert take([[100, 250, 1]], limits) == [1]
    assert take([[100], [250], [1]], limits) == [1]


def test_the_first_request_is_always_taken() -> None:
    """Else a limit set too small would keep the backlog for ever."""
    assert take([[500, 1]], BatchLimits(max_bytes=100)) == [1]
    assert take([[500], [1]], BatchLimits(max_bytes=100)) == [1]


def test_sizes_are_asked_for_only_where_a_run_is_cut() -> None:
    """They may cost a read from the disk."""

    def refuse() -> Sequence[int]:
        raise AssertionError("a run that goes in whole was measured")

    whole = [Run(count=2, body_bytes=20, sizes=refuse) for _ in range(3)]
    cut = run_of([10, 10])

    assert list(pack([*whole, cut], BatchLimits(max_requests=7))) == [2, 2, 2, 1]


@st.composite
def backlogs(draw: st.DrawFn) -> tuple[list[list[int]], BatchLimits]:
    """Runs of bodies, none of them too large alone, and limits that bind now and then."""
    runs = draw(st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=6), max_size=8))
    largest = max((size for run in runs for size in run), default=2)
    limits = BatchLimits(
        max_requests=draw(st.integers(1, 30)),
        max_bytes=draw(st.integers(wire_bytes(1, largest), wire_bytes(1, largest) + 20 * (_ITEM + 30))),
    )
    return runs, limits


@given(backlogs())
def test_a_batch_is_never_above_either_limit(case: tuple[list[list[int]], BatchLimits]) -> None:
    """Whatever the sizes of the bodies and of the runs."""
    runs, limits = case
    count = sum(take(runs, limits))
    sizes = [size for run in runs for size in run][:count]

    assert count <= limits.max_requests
    assert wire_bytes(count, sum(sizes)) <= limits.max_bytes or count == 0


@given(backlogs())
def test_the_next_request_would_not_have_gone_in(case: tuple[list[list[int]], BatchLimits]) -> None:
    """A batch is as full as order allows."""
    runs, limits = case
    count = sum(take(runs, limits))
    sizes = [size for run in runs for size in run]

    if count < len(sizes):
        too_many = count + 1 > limits.max_requests
        too_heavy = wire_bytes(count + 1, sum(sizes[: count + 1])) > limits.max_bytes
        assert too_many or too_heavy


@given(backlogs())
def test_a_batch_is_the_front_of_the_backlog(case: tuple[list[list[int]], BatchLimits]) -> None:
    """Only its last run may be cut, and each that is named gives at least one request."""
    runs, limits = case
    taken = take(runs, limits)

    assert all(1 <= count <= len(run) for count, run in zip(taken, runs, strict=False))
    assert taken[:-1] == [len(run) for run in runs][: max(0, len(taken) - 1)]


@given(backlogs())
def test_batch_after_batch_takes_everything_once(case: tuple[list[list[int]], BatchLimits]) -> None:
    """Nothing is left over, nothing is taken twice."""
    runs, limits = case
    left, taken = [size for run in runs for size in run], []
    while left:
        count = sum(take([left], limits))
        taken += left[:count]
        left = left[count:]

    assert taken == [size for run in runs for size in run]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_requests": 0},
        {"max_requests": API_MAX_REQUESTS + 1},
        {"max_bytes": 0},
        {"max_bytes": API_MAX_BYTES + 1},
    ],
)
def test_limits_stay_within_those_of_the_api(wrong: dict[str, int]) -> None:
    """100,000 requests and 256 MB, decimal."""
    with pytest.raises(ValueError, match="a batch takes 1 to"):
        BatchLimits(**wrong)


def test_a_custom_id_leads_back_to_its_request() -> None:
    """Only with the nonce of its own batch."""
    name = custom_id("req_0123", "nonce-free")

    assert request_id_of(custom_id("req_0123", "abc"), "abc") == "req_0123"
    assert request_id_of(custom_id("req_0123", "abc"), "abd") is None
    assert request_id_of("abc", "abc") is None
    assert request_id_of("-abc", "abc") is None
    assert name == "req_0123-nonce-free"
