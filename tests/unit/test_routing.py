"""Which latency class a tag means, and what a call site is called."""

from __future__ import annotations

from typing import Any

import pytest

from llmrouter.errors import InvalidRequestError, UnknownLatencyError
from llmrouter.routing import Routing, call_site
from support.requests import DAILY

ROUTING = Routing({"daily": DAILY})


def test_a_class_is_found_by_its_name() -> None:
    """As the settings spell it."""
    assert ROUTING.batch_class("daily") is DAILY


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dayly", "did you mean 'daily'?"),
        ("realtime", "did you mean 'real-time'?"),
        ("tomorrow", "there are real-time, daily"),
        ("", "there are real-time, daily"),
        (None, "there are real-time, daily"),
        (["daily"], "is no latency class"),
        (3600, "is no latency class"),
    ],
)
def test_an_unknown_class_is_refused_with_a_hint(name: Any, hint: str) -> None:
    """The nearest one, or all there are."""
    with pytest.raises(UnknownLatencyError) as caught:
        ROUTING.batch_class(name)

    assert caught.value.field == "latency"
    assert hint in str(caught.value)
    assert isinstance(caught.value, InvalidRequestError)


def outer() -> str:
    """Calls what asks for its caller."""
    return inner()


def inner() -> str:
    """Asks for its caller."""
    return call_site(1)


class Job:
    """A method has its class in its name."""

    def run(self) -> str:
        """Calls what asks for its caller."""
        return inner()


def test_a_call_site_is_the_module_and_function_of_the_caller() -> None:
    """With the class, where there is one."""
    assert outer() == f"{__name__}:outer"
    assert Job().run() == f"{__name__}:Job.run"
    assert call_site(0) == f"{__name__}:test_a_call_site_is_the_module_and_function_of_the_caller"
