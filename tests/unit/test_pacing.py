"""How fast the router's own live calls may begin, in simulated time."""

from __future__ import annotations

import heapq
import random
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.live import Allowance, LiveCallError, LiveReply, RateLimits
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.rates import Work
from llmrouter.domain.requests import OutcomeKind
from support.clocks import START

MINUTE = timedelta(minutes=1)
MODEL = "claude-sonnet"
FIGURES = ("requests", "input_tokens", "output_tokens")
NO_TOKENS = Work(requests=1.0)


def limits(now: float = 0.0, **figures: tuple[float, float]) -> RateLimits:
    """Limits as the API's headers name them, from (limit, remaining)."""
    return RateLimits(
        **{
            figure: Allowance(
                limit=limit,
                remaining=remaining,
                reset_at=START + timedelta(seconds=now + 60 * (1 - remaining / limit)),
            )
            for figure, (limit, remaining) in figures.items()
        }
    )


def reply(
    *, took: float = 10.0, work: Work = NO_TOKENS, limits: RateLimits | None = None, ok: bool = True
) -> LiveReply:
    """An answer of the API."""
    return LiveReply(
        kind=OutcomeKind.SUCCEEDED if ok else OutcomeKind.ERRORED,
        raw=b"{}",
        took=timedelta(seconds=took),
        work=work,
        paid_usd=None,
        limits=limits,
    )


class Driver:
    """A pacer, with the instant to every moment."""

    def __init__(
        self,
        *,
        concurrency: int = 32,
        per_minute: float | None = None,
        share: float = 0.8,
        ramp: timedelta = MINUTE,
        now: float = 5_000.0,
    ) -> None:
        self.pacer = Pacer(concurrency=concurrency, requests_per_minute=per_minute, share=share, ramp=ramp)
        self.now = now

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds

    def room(self, model: str = MODEL) -> int:
        """How many calls may begin."""
        return self.pacer.room(self.now, model)

    def begin(self, number: int = 1, model: str = MODEL) -> None:
        """Calls begin."""
        for _ in range(number):
            self.pacer.begin(self.now, model)

    def end(self, answer: LiveReply | None = None, model: str = MODEL) -> None:
        """A call is answered."""
        self.pacer.end(self.now, START + timedelta(seconds=self.now), model, answer or reply())

    def refuse(
        self,
        retry_after: float | None = None,
        model: str = MODEL,
        limits: RateLimits | None = None,
        *,
        limited: bool = True,
    ) -> None:
        """A call that began is refused."""
        after = None if retry_after is None else timedelta(seconds=retry_after)
        error = LiveCallError("429", status=429, retry_after=after, limited=limited, limits=limits)
        self.pacer.failed(self.now, START + timedelta(seconds=self.now), model, error)

    def see(self, work: Work = NO_TOKENS, limits: RateLimits | None = None, model: str = MODEL) -> None:
        """The application makes a call."""
        self.pacer.saw(self.now, START + timedelta(seconds=self.now), model, work, limits)

    def hear(self, **figures: tuple[float, float]) -> None:
        """The API names its limits, without any use of them."""
        self.begin()
        self.end(reply(limits=limits(self.now, **figures)))

    def warm_up(self, seconds: float = 240) -> None:
        """Calls go on until the ramp is over."""
        until = self.now + seconds
        while self.now < until:
            self.begin(min(1, self.room()))
            self.wait(5)
            while self.pacer.under_way:
                self.end()
        assert not self.pacer.ramping(self.now)

    def rate(self, *models: str) -> float:
        """Requests a minute to plan with."""
        return self.pacer.rate(self.now, models or (MODEL,)).requests


def run(
    driver: Driver,
    minutes: float,
    chance: random.Random,
    *,
    seconds: float = 10.0,
    api: Api | None = None,
    model: str = MODEL,
) -> list[float]:
    """Always has work, and begins what it may: when calls began."""
    begun: list[float] = []
    under_way: list[tuple[float, int]] = []
    number, until = count(), driver.now + 60 * minutes
    while driver.now < until:
        while under_way and under_way[0][0] <= driver.now:
            heapq.heappop(under_way)
            named = None if api is None else api.limits(driver.now)
            driver.end(reply(took=seconds, limits=named), model)
        room = driver.room(model)
        for _ in range(room):
            driver.begin(model=model)
            if api is not None and not api.take(driver.now):
                driver.refuse(api.retry_after, model, api.limits(driver.now))
                continue
            begun.append(driver.now)
            heapq.heappush(under_way, (driver.now + chance.uniform(0.2, 1.8) * seconds, next(number)))
        driver.wait(0.25)
    return begun


def most_in_a_minute(begun: list[float]) -> int:
    """The most calls that began within any 60 seconds, the end not included."""
    first, most = 0, 0
    for place, instant in enumerate(begun):
        while instant - begun[first] >= 60 - 1e-6:
            first += 1
        most = max(most, place - first + 1)
    return most


class Api:
    """Limits requests as the API does: a bucket that fills steadily."""

    def __init__(self, limit: float, now: float, *, retry_after: float | None = 2) -> None:
        self.limit = self.level = limit
        self.retry_after = retry_after
        self.refused = 0
        self._at = now

    def take(self, now: float) -> bool:
        """Whether a call gets through."""
        self._fill(now)
        if self.level < 1:
            self.refused += 1
            return False
        self.level -= 1
        return True

    def limits(self, now: float) -> RateLimits:
        """What its headers say."""
        self._fill(now)
        return limits(now, requests=(self.limit, max(0.0, self.level)))

    def _fill(self, now: float) -> None:
        self.level = min(self.limit, self.level + self.limit * (now - self._at) / 60)
        self._at = now


# How many at once


def test_before_anything_is_known_few_calls_begin() -> None:
    """A tenth of what may be under way; the first answer says more."""
    driver = Driver(concurrency=32)

    assert driver.room() == 4
    driver.begin(4)
    assert driver.room() == 0
    assert driver.pacer.under_way == 4
    assert not driver.pacer.knows_limits
    assert Driver(per_minute=5).pacer.knows_limits


def test_no_more_calls_are_under_way_than_were_allowed() -> None:
    """Of all models together."""
    driver = Driver(concurrency=3)
    driver.hear(requests=(100_000, 100_000))
    driver.warm_up()

    driver.begin(2)
    assert driver.room("other") <= 1
    assert driver.room() == 1
    driver.begin()
    assert driver.room() == driver.room("other") == 0
    driver.end()
    assert driver.room() == 1


def test_a_call_that_was_not_sent_takes_nothing() -> None:
    """Nor does it begin a ramp."""
    driver = Driver(per_minute=600)
    room = driver.room()
    driver.begin(room)
    assert driver.room() == 0
    for _ in range(room):
        driver.pacer.cancel(driver.now, MODEL)

    assert driver.room() == room
    assert driver.pacer.under_way == 0
    driver.wait(250)
    assert driver.pacer.ramping(driver.now)


# The rate


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10_000),
    st.sampled_from([3, 20, 50, 400]),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.sampled_from([2.0, 10.0, 40.0]),
)
def test_with_work_at_hand_the_allowed_rate_is_reached_and_the_limit_kept(
    seed: int, limit: int, share: float, seconds: float
) -> None:
    """Once the ramp is over: 95 % of the share, and in no minute more than the limit."""
    driver = Driver(concurrency=10_000, per_minute=limit, share=share)
    begun = run(driver, 12, random.Random(seed), seconds=seconds)
    steady = [instant for instant in begun if instant >= 5_000 + 300]

    assert most_in_a_minute(begun) <= limit
    assert len(steady) >= 7 * 0.95 * share * limit - 1


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([3, 50, 400]))
def test_the_limit_is_kept_when_work_comes_and_goes(seed: int, limit: int) -> None:
    """What was not used for a while is not used later, but for what two seconds give."""
    driver, chance = Driver(concurrency=10_000, per_minute=limit, share=1.0), random.Random(seed)
    run(driver, 4, chance)
    begun: list[float] = []
    for _ in range(10):
        begun += run(driver, chance.uniform(0.2, 1.2), chance)
        driver.wait(chance.uniform(2, 10))
        while driver.pacer.under_way:
            driver.end()

    assert most_in_a_minute(begun) <= limit


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from([20, 50, 400]), st.sampled_from([2.0, 10.0, 40.0]))
def test_the_same_holds_for_limits_that_the_headers_name(seed: int, limit: int, seconds: float) -> None:
    """And nothing is refused."""
    driver = Driver(concurrency=10_000)
    driver.hear(requests=(limit, limit))
    api = Api(limit, driver.now)
    begun = run(driver, 12, random.Random(seed), seconds=seconds, api=api)
    steady = [instant for instant in begun if instant >= 5_000 + 300]

    assert api.refused == 0
    assert most_in_a_minute(steady) <= limit
    assert len(steady) >= 7 * 0.95 * 0.8 * limit - 1


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([60, 240, 540]))
def test_an_application_on_the_same_account_is_left_alone(seed: int, taken: int) -> None:
    """It takes up to nine tenths of the limit, and its answers say what is left: nothing is refused."""
    driver, limit = Driver(concurrency=10_000), 600
    driver.hear(requests=(limit, limit))
    api, chance, refused, begun = Api(limit, driver.now), random.Random(seed), 0, 0
    while driver.now < 5_000 + 1_200:
        if chance.random() < taken / 240:
            refused += not api.take(driver.now)
            driver.see(limits=api.limits(driver.now))
        for _ in range(driver.room()):
            driver.begin()
            refused += not api.take(driver.now)
            begun += 1
            driver.end(reply(limits=api.limits(driver.now)))
        driver.wait(0.25)

    assert refused == 0
    assert begun / 20 >= 0.4 * (limit - taken)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([4, 32]), st.sampled_from([2.0, 10.0]))
def test_all_calls_that_may_be_under_way_are(seed: int, calls: int, seconds: float) -> None:
    """Where nothing else limits, and once the ramp is over; a plan counts with fewer."""
    driver, chance = Driver(concurrency=calls), random.Random(seed)
    run(driver, 5, chance, seconds=seconds)
    for _ in range(20):
        run(driver, 0.1, chance, seconds=seconds)
        driver.begin(driver.room())
        assert driver.pacer.under_way == calls
        while driver.pacer.under_way:  # Each run knows its own calls.
            driver.end(reply(took=seconds))

    assert driver.rate() == pytest.approx(0.8 * calls * 60 / seconds)


def test_what_is_scarce_sets_the_pace() -> None:
    """1,000 output tokens a request, 10,000 a minute, of which 0.8 may be used: 8 a minute."""
    driver = Driver(concurrency=1_000)
    work = Work(requests=1, input_tokens=10, output_tokens=1_000)
    named = {"requests": (1_000, 1_000), "output_tokens": (10_000, 10_000)}
    begun = 0
    for step in range(6_000):
        room = driver.room()
        driver.begin(room)
        begun += room if step >= 3_000 else 0
        for _ in range(room):
            driver.end(reply(work=work, limits=limits(driver.now, **named)))
        driver.wait(0.1)

    assert begun == pytest.approx(40, abs=1)
    assert driver.pacer.usual(MODEL) == work
    assert driver.pacer.rate(driver.now, [MODEL]).output_tokens == 8_000


def test_what_the_application_uses_in_busy_minutes_is_left_to_it() -> None:
    """100 a minute of 500 for an hour: 0.8 of 400 is planned with, and begun."""
    driver = Driver(per_minute=500, concurrency=10_000)
    for _ in range(3_600):
        driver.wait(1)
        for _ in range(2):
            driver.see()
    assert driver.rate() == pytest.approx(0.8 * (500 - 120))

    begun = run(driver, 10, random.Random(1))
    assert most_in_a_minute(begun) <= 0.8 * (500 - 120) * 1.05


def test_use_is_forgotten_after_an_hour_and_counts_from_its_first_minute() -> None:
    """One busy minute is the busiest of few, and none of the last sixty later."""
    driver = Driver(per_minute=500, concurrency=10_000, now=6_000)
    for _ in range(200):
        driver.see()
    assert driver.rate() == pytest.approx(0.8 * 300)
    driver.wait(18 * 60)
    assert driver.rate() == pytest.approx(0.8 * 300)
    driver.wait(60)
    assert driver.rate() == pytest.approx(0.8 * 500)
    for _ in range(100):
        driver.see()
    driver.wait(3_600)
    assert driver.rate() == pytest.approx(0.8 * 500)


def test_an_application_that_leaves_nothing_leaves_a_trickle() -> None:
    """Nothing is planned with; one call a minute finds out whether that is still so."""
    driver = Driver(per_minute=100, concurrency=10_000)
    for _ in range(200):
        driver.see()
    begun = run(driver, 10, random.Random(1))

    assert driver.rate() == 0
    assert 6 <= len(begun) <= 11


def test_a_plan_counts_with_the_scarcest_of_the_models_at_hand() -> None:
    """Each figure by itself; what is not known limits nothing."""
    driver = Driver(concurrency=10_000)
    driver.see(limits=limits(requests=(500, 500), input_tokens=(9_000, 9_000)), model="small")
    driver.see(limits=limits(requests=(50, 50), input_tokens=(90_000, 90_000)), model="large")
    driver.wait(20 * 60)

    both = driver.pacer.rate(driver.now, ["small", "large"])
    assert both.requests == pytest.approx(40)
    assert both.input_tokens == pytest.approx(7_200)
    assert driver.rate("small") == pytest.approx(400)
    assert driver.rate("unheard-of") == pytest.approx(0.8 * 10_000 * 6)
    assert driver.pacer.rate(driver.now, ["small"]).output_tokens == float("inf")
    assert driver.pacer.knows_limits


def test_a_limit_that_was_set_wins_over_the_headers() -> None:
    """And counts all models together."""
    driver = Driver(per_minute=60, concurrency=10_000, share=1.0)
    driver.hear(requests=(4_000, 4_000))
    driver.warm_up()
    driver.wait(10)

    assert driver.rate() == 60
    first = driver.room()
    driver.begin(first)
    assert first == 2
    assert driver.room("other") == 0


def test_usual_work_is_a_moving_average() -> None:
    """Nothing is known at first; an error of the request's own says nothing."""
    driver = Driver()
    assert driver.pacer.usual(MODEL) == NO_TOKENS
    for tokens in (100, 300):
        driver.begin()
        driver.end(reply(work=Work(requests=1, input_tokens=tokens, output_tokens=tokens / 10)))
    driver.begin()
    driver.end(reply(ok=False, took=500.0))
    assert driver.rate() == pytest.approx(0.8 * 32 * 60 / 10)
    assert driver.pacer.usual(MODEL) == Work(requests=1, input_tokens=200, output_tokens=20)
    for _ in range(60):
        driver.begin()
        driver.end(reply(took=2.0, work=Work(requests=1, input_tokens=800, output_tokens=80)))

    assert driver.pacer.usual(MODEL).input_tokens == pytest.approx(800, rel=0.01)
    assert driver.rate() == pytest.approx(0.8 * 32 * 60 / 2, rel=0.03)


# What is left


def test_no_more_begins_than_a_share_of_what_is_left() -> None:
    """All in all, not each time it is asked; what comes in by the minute is shared, too."""
    driver = Driver(concurrency=10_000)
    driver.hear(requests=(6_000, 6_000))
    driver.warm_up()
    driver.see(limits=limits(driver.now, requests=(6_000, 10)))
    total = 0
    while room := driver.room():
        driver.begin(room)
        total += room

    assert total == 8
    driver.wait(1)
    assert driver.room() == 80


def test_what_is_left_counts_for_a_model_alone() -> None:
    """Limits are those of a model."""
    driver = Driver(concurrency=10_000)
    driver.hear(requests=(6_000, 6_000))
    driver.warm_up()
    driver.see(limits=limits(driver.now, requests=(6_000, 0)))

    assert driver.room() == 0
    assert driver.room("other") > 0


def test_a_limit_of_more_than_a_minute_is_not_taken_to_fill_in_one() -> None:
    """Nothing left, and all of it back in ten minutes: it fills in the last of them."""
    driver = Driver(concurrency=10_000)
    driver.hear(requests=(600, 600))
    driver.warm_up()
    late = START + timedelta(seconds=driver.now) + 10 * MINUTE
    driver.see(limits=RateLimits(requests=Allowance(limit=600, remaining=0, reset_at=late)))
    begun = run(driver, 9.9, random.Random(1))

    assert begun
    assert begun[0] >= driver.now - 9.9 * 60 + 9 * 60


def test_a_request_larger_than_the_share_goes_when_nothing_is_used() -> None:
    """Else it would never go; then the next one waits until that is made up for."""
    driver = Driver(concurrency=100)
    work = Work(requests=1, input_tokens=2_000)
    driver.begin()
    driver.end(reply(work=work, limits=limits(driver.now, input_tokens=(1_000, 1_000))))
    begun = run(driver, 60, random.Random(1))

    assert 20 <= len(begun) <= 25


# Ramps


def test_after_a_pause_the_rate_grows_from_a_tenth() -> None:
    """Doubling each minute; the same anew after five minutes without a call."""
    driver = Driver(per_minute=600, share=1.0, concurrency=100_000)

    for _ in range(2):
        assert driver.pacer.ramping(driver.now)
        start = driver.now
        begun = run(driver, 6, random.Random(3), seconds=1)
        by_minute = [sum(minute <= (one - start) / 60 < minute + 1 for one in begun) for minute in range(5)]
        assert by_minute == pytest.approx([87, 173, 346, 564, 580], rel=0.04)
        assert not driver.pacer.ramping(driver.now)
        while driver.pacer.under_way:
            driver.end()
        driver.wait(299)
        assert not driver.pacer.ramping(driver.now)
        driver.wait(1)


def test_a_ramp_can_be_shorter() -> None:
    """With a doubling time of a second everything goes sixty times faster, the pause too."""
    driver = Driver(per_minute=6_000, concurrency=100_000, ramp=timedelta(seconds=1))
    run(driver, 4 / 60, random.Random(3), seconds=0.1)
    assert not driver.pacer.ramping(driver.now)
    driver.wait(5)
    assert driver.pacer.ramping(driver.now)


# Refusals


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, 0.0, 3.0, 45.0])), max_size=20))
def test_nothing_begins_while_the_api_asked_to_wait(refusals: list[tuple[int, float | None]]) -> None:
    """Whatever comes in the meantime."""
    driver = Driver()
    until = 0.0
    for passed, retry_after in refusals:
        driver.wait(passed)
        assert (driver.room() > 0) == (driver.now >= until)
        driver.begin()
        driver.refuse(retry_after)
        until = max(until, driver.now + (retry_after or 0))
        waits = driver.pacer.waits_until(driver.now)
        assert waits is not None
        assert waits >= until
        assert waits > driver.now
        until = waits
        assert driver.room() == 0
        assert driver.room("other") > 0


def test_without_a_word_the_waits_double_until_a_call_gets_through() -> None:
    """1, 2, 4 … 60 seconds."""
    driver = Driver(per_minute=6_000)

    def waits() -> float:
        driver.begin()
        driver.refuse()
        until = driver.pacer.waits_until(driver.now, MODEL)
        assert until is not None
        begun, driver.now = driver.now, until
        assert driver.pacer.waits_until(driver.now) is None
        return until - begun

    assert [waits() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    driver.begin()
    driver.end()
    assert waits() == 1


def test_refusals_at_once_are_one() -> None:
    """Thirty calls that meet the same wall neither double the wait nor lower the rate thirty times."""
    driver = Driver(per_minute=6_000, concurrency=10_000)
    rate = driver.rate()
    driver.begin(30)
    for _ in range(30):
        driver.refuse()

    assert driver.pacer.waits_until(driver.now) == driver.now + 1
    assert driver.rate() == rate


def test_another_failure_is_no_reason_to_wait() -> None:
    """The API at fault, or an answer that got lost: the call has ended, that is all."""
    driver = Driver()
    driver.begin()
    driver.refuse(limited=False)

    assert driver.pacer.waits_until(driver.now) is None
    assert driver.pacer.under_way == 0


def test_a_rate_that_is_too_high_is_lowered_and_comes_back_slowly() -> None:
    """Halved when a refusal follows a wait within a minute, a tenth more each minute."""
    driver = Driver(per_minute=1_000, concurrency=10_000)
    for _ in range(3):
        driver.begin()
        driver.refuse(2)
        driver.wait(2)
    assert driver.rate() == pytest.approx(0.25 * 800)
    driver.wait(150)
    assert driver.rate() == pytest.approx(0.5 * 800)
    driver.wait(600)
    assert driver.rate() == pytest.approx(800)


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([2, 10]), st.sampled_from([None, 2.0, 20.0]))
def test_a_wrong_setting_does_not_hammer_the_api(seed: int, times: int, retry_after: float | None) -> None:
    """The setting says some times more than the account has, and headers say nothing."""
    driver = Driver(per_minute=200 * times, concurrency=10_000)

    class Silent(Api):
        def limits(self, now: float) -> RateLimits:
            super().limits(now)
            return RateLimits()

    api = Silent(200, driver.now, retry_after=retry_after)
    begun = run(driver, 20, random.Random(seed), seconds=2, api=api)

    assert api.refused <= 0.05 * len(begun) + 30
    assert len(begun) / 20 >= 0.5 * 200


def test_limits_that_come_with_a_refusal_are_noted() -> None:
    """They are the latest there are."""
    driver = Driver(concurrency=10_000)
    driver.begin()
    driver.refuse(1, limits=limits(driver.now, requests=(60, 0)))

    assert driver.rate() == pytest.approx(0.8 * 60)
