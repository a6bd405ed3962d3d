"""What escalations may still cost today."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from llmrouter.domain.ledger import ClassTally
from llmrouter.engine.budget import Budget
from llmrouter.stores.memory import MemoryStore
from support.clocks import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping

ONE = Decimal(1)


class Spender(MemoryStore):
    """A store with a tally that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, Decimal] = {}
        self.looks = 0

    def tally(self) -> Mapping[str, ClassTally]:
        """See `Store.tally`."""
        self.looks += 1
        return {name: ClassTally(live_usd={CLOCK.now().date(): usd}) for name, usd in self.spent.items()}


CLOCK = FakeClock()


def budget(store: Spender | None = None, **limits: Any) -> Budget:
    """A budget, without limits unless some are given."""
    return Budget(store or Spender(), CLOCK, **{"most": None, "by_class": {}, **limits})


def test_without_a_limit_nothing_is_used_up_or_looked_at() -> None:
    """Whatever it costs, and whether a price is known."""
    store = Spender()
    own = budget(store)
    own.note("daily", Decimal(10**6))
    own.note("daily", None)
    own.refresh()

    assert (own.is_used_up(), own.is_used_up("daily"), store.looks) == (False, False, 0)


def test_all_classes_together_use_up_the_whole() -> None:
    """At the limit, not beyond it."""
    own = budget(most=2 * ONE)
    own.note("daily", ONE)
    assert not own.is_used_up("daily")
    own.note("hourly", ONE)

    assert own.is_used_up()
    assert own.is_used_up("weekly")


def test_a_limit_of_a_class_is_that_classs_alone() -> None:
    """Others may spend."""
    own = budget(by_class={"daily": ONE})
    own.note("daily", ONE)
    own.note("hourly", 5 * ONE)

    assert [own.is_used_up(name) for name in ("daily", "hourly", None)] == [True, False, False]


def test_another_process_may_have_spent_some() -> None:
    """The store's tally says so."""
    store = Spender()
    own = budget(store, most=2 * ONE)
    store.spent = {"daily": 2 * ONE}
    assert not own.is_used_up()
    own.refresh()

    assert own.is_used_up()


def test_a_new_day_begins_anew() -> None:
    """By UTC."""
    own = budget(most=ONE, by_class={"daily": ONE})
    own.note("daily", ONE)
    own.note("daily", None)
    assert own.is_used_up("daily")
    CLOCK.advance(timedelta(days=1))

    assert not own.is_used_up("daily")


def test_a_call_without_a_known_price_uses_it_up() -> None:
    """Its class's, and the whole; other classes' own are theirs."""
    whole, of_class = budget(most=ONE), budget(by_class={"daily": ONE, "hourly": ONE})
    for one in (whole, of_class):
        one.note("daily", None)
        one.refresh()

    assert whole.is_used_up("hourly")
    assert (of_class.is_used_up("daily"), of_class.is_used_up("hourly")) == (True, False)


def test_nothing_to_spend_is_used_up_from_the_start() -> None:
    """Zero is a limit."""
    assert budget(most=Decimal(0)).is_used_up()
