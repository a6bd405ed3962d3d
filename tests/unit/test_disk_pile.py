"""What waits in one line of a disk store's backlog, against a plain sorted list."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmrouter.domain.scheduling import group_span
from llmrouter.stores import _pile
from llmrouter.stores._layout import to_us
from llmrouter.stores._pile import Edit, Pile, entry_of

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


class Waits(NamedTuple):
    """A segment that waits, in the order in which it leaves."""

    deadline_at: datetime
    entry: str
    window: timedelta
    count: int
    body_bytes: int

    @property
    def key(self) -> str:
        """The row key of its segment."""
        return self.entry.partition("|")[0]


def waits(number: int, due: timedelta, window: timedelta, count: int) -> Waits:
    """A segment of a page of its own."""
    deadline, accepted = to_us(START + due), to_us(START + due - window)
    size = 10 * count + number % 7
    key = f"q{number:020d}-000-{accepted:018d}-{deadline:018d}-{count}-{size}-{'ab' * 8}-p"
    return Waits(START + due, key, window, count, size)


HOURS = st.integers(0, 96).map(lambda number: timedelta(hours=number / 4))
WINDOWS = st.sampled_from([timedelta(minutes=20), timedelta(hours=1), timedelta(days=1), timedelta(days=7)])


class PileMachine(RuleBasedStateMachine):
    """Does whatever a backlog does to a pile, and compares it after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.pile = Pile()
        self.model: list[Waits] = []
        self.number = 0

    @rule(some=st.lists(st.tuples(HOURS, WINDOWS, st.integers(1, 3)), min_size=1, max_size=8))
    def add(self, some: list[tuple[timedelta, timedelta, int]]) -> None:
        """In any order of deadlines."""
        for due, window, count in some:
            self.number += 1
            one = waits(self.number, due, window, count)
            self.pile.add(one.entry, one.count, one.body_bytes, "")
            self.model.append(one)
        self.model.sort()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        """The first ones, the last of them whole or in part."""
        number = data.draw(st.integers(1, len(self.model)))
        last = self.model[number - 1]
        rest = last.count - data.draw(st.integers(1, last.count))
        part = last._replace(count=rest, body_bytes=rest)
        text = f"{last.key}|{last.count - rest}|{last.count}|{rest}"
        taken = self.pile.take(number, entry_of(text) if rest else None)
        assert taken == [one.entry for one in self.model[:number]]
        self.model[:number] = [part._replace(entry=text)] if rest else []

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        """Some are gone, from others a part."""
        gone = data.draw(st.lists(st.integers(0, len(self.model) - 1), min_size=1, unique=True).map(sorted))
        self.pile.entries()
        edits = []
        for place in gone:
            one = self.model[place]
            rest = [one._replace(count=1, body_bytes=5, entry=f"{one.key}|0|1|5")]
            kept = rest if data.draw(st.booleans()) else []
            edits.append(Edit(place, place + 1, [entry_of(part.entry) for part in kept]))
            self.model[place] = kept[0] if kept else one._replace(count=0)
        self.model = [one for one in self.model if one.count]
        self.pile.edit(edits)

    @invariant()
    def it_is_as_large_as_it_should_be(self) -> None:
        """And in order."""
        assert self.pile.entries() == [one.entry for one in self.model]
        assert self.pile.request_count == sum(one.count for one in self.model)
        assert self.pile.body_bytes == sum(one.body_bytes for one in self.model)
        assert bool(self.pile) == bool(self.model)

    @invariant()
    def cohorts_are_all_of_it_by_deadline(self) -> None:
        """Each is one fate, and as large as it can be; its end is exact."""
        left = list(self.model)
        for cohort in self.pile.cohorts():
            inside = [one for one in left if one.deadline_at < cohort.before]
            left = [one for one in left if one.deadline_at >= cohort.before]
            first = inside[0]
            assert (cohort.deadline_at, cohort.window) == (first.deadline_at, first.window)
            latest = first.deadline_at + group_span(first.window)
            assert inside[-1].deadline_at <= latest
            assert not left or left[0].deadline_at > latest
            assert cohort.request_count == sum(one.count for one in inside)
            assert cohort.body_bytes == sum(one.body_bytes for one in inside)
            assert self.pile.due_before(cohort.before) == len(self.model) - len(left)
        assert left == []


TestPile = PileMachine.TestCase
TestPile.settings = settings(deadline=None, max_examples=60, stateful_step_count=12)


@pytest.mark.parametrize("share", [0.0, 1e9])
@given(st.lists(st.integers(0, 30), min_size=2, max_size=30))
def test_both_ways_to_put_late_ones_in_place(share: float, hours: list[int]) -> None:
    """One by one, or by sorting anew: the same comes out."""
    pile, model = Pile(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pile, "_REBUILT_FROM", share)
        for number, hour in enumerate(hours):
            one = waits(number, timedelta(hours=hour), timedelta(days=1), 1 + number % 3)
            pile.add(one.entry, one.count, one.body_bytes, "")
            model.append(one)
            if number % 5 == 4:
                pile.entries()
        model.sort()
        assert pile.entries() == [one.entry for one in model]
        for place, one in enumerate(model):
            assert pile.request_count == sum(later.count for later in model[place:])
            assert pile.body_bytes == sum(later.body_bytes for later in model[place:])
            assert pile.take(1, None) == [one.entry]


def test_requests_that_were_late_from_the_start_share_a_fate() -> None:
    """Their window is none, or less; what is due at the same instant is one cohort all the same."""
    pile = Pile()
    for number, window in enumerate([-48, 0, -1]):
        one = waits(number, timedelta(0), timedelta(hours=window), 1)
        pile.add(one.entry, one.count, one.body_bytes, "")
    (cohort,) = pile.cohorts()
    assert (cohort.request_count, cohort.before) == (3, START + MOMENT)


def test_prefixes_are_counted_down_to_nothing() -> None:
    """None is left that no request has."""
    pile = Pile()
    for number, prefix in enumerate(["a", "b", "a", ""]):
        one = waits(number, timedelta(hours=number), timedelta(days=1), 2)
        pile.add(one.entry, one.count, one.body_bytes, prefix)
    assert pile.prefixes == {"a": 4, "b": 2}
    pile.discount("a", 3)
    pile.discount("b", 2)
    pile.discount("", 2)
    assert pile.prefixes == {"a": 1}
