"""Which latency class a tag means, and what a call site is called."""

from __future__ import annotations

from typing import Any

import pytest

from llmrouter.errors import InvalidRequestError, UnknownLatencyError
from llmrouter.routing import By, Decision, Routing, call_site, sdk_call_site
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


CLASSES = {"daily": DAILY, "hourly": DAILY, "weekly": DAILY}
RULES = Routing(
    CLASSES,
    {"app.nightly:*": "daily", "app.*": "hourly", "cached.*": None, "*": "weekly"},
    ["billing.*", "*:chat"],
)


@pytest.mark.parametrize(
    ("names", "tag", "block", "latency", "by", "pattern"),
    [
        (("app.nightly:main",), None, None, "daily", By.RULE, "app.nightly:*"),
        (("app.web:main",), None, None, "hourly", By.RULE, "app.*"),
        (("mine", "app.nightly:main"), None, None, "daily", By.RULE, "app.nightly:*"),
        (("mine",), None, None, "weekly", By.RULE, "*"),
        (("cached.site",), None, None, "real-time", By.DEFAULT, None),
        (("cached.site",), None, "hourly", "hourly", By.BLOCK, None),
        (("app.nightly:main",), None, "weekly", "weekly", By.BLOCK, None),
        (("app.nightly:main",), "hourly", "weekly", "hourly", By.TAG, None),
        (("app.nightly:main",), "real-time", "weekly", "real-time", By.TAG, None),
        (("billing.job:main",), "hourly", "weekly", "real-time", By.NEVER_BATCH, "billing.*"),
        (("app.nightly:x", "app:chat"), None, None, "real-time", By.NEVER_BATCH, "*:chat"),
        (("App.nightly:main",), None, None, "weekly", By.RULE, "*"),
    ],
)
def test_the_most_specific_word_decides(
    names: tuple[str, ...],
    tag: str | None,
    block: str | None,
    latency: str,
    by: By,
    pattern: str | None,
) -> None:
    """Tag, block, rule, real-time; the first rule that matches a name of the site; `never_batch` over all."""
    decision = RULES.decide(names, tag=tag, block=block)

    assert decision == Decision(latency=latency, by=by, pattern=pattern)
    assert decision.reason


def test_without_rules_nothing_depends_on_the_site() -> None:
    """And what is not tagged is real-time."""
    assert not ROUTING.has_rules
    assert ROUTING.decide(()) == Decision(latency="real-time", by=By.DEFAULT)
    assert Routing(CLASSES, {"*": "daily"}).has_rules
    assert Routing(CLASSES, None, ["*"]).has_rules
    assert RULES.tags_sites
    assert not Routing(CLASSES, {"*": None, "a": "real-time"}, ["*"]).tags_sites
    assert not ROUTING.never_batch("billing.job")
    assert RULES.never_batch("billing.job")
    assert not RULES.never_batch("app.nightly:main")


@pytest.mark.parametrize("said", [{"tag": "dayly"}, {"block": "dayly"}])
def test_a_misspelt_class_is_refused_wherever_it_is_said(said: dict[str, Any]) -> None:
    """With a hint."""
    with pytest.raises(UnknownLatencyError, match="did you mean 'daily'"):
        ROUTING.decide((), **said)


def test_outside_of_any_call_of_the_sdk_its_call_site_is_the_caller() -> None:
    """There is nothing to skip."""
    assert sdk_call_site() == f"{__name__}:test_outside_of_any_call_of_the_sdk_its_call_site_is_the_caller"


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
