"""Which way the calls of a wrapped client go, what callers get: with the real SDK, without a network."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import Omit

import llmrouter
from llmrouter import Router
from llmrouter.claude.encoding import encode
from llmrouter.claude.replies import REQUEST_ID_HEADER
from llmrouter.errors import InvalidRequestError, RouterClosedError, SettingsError, UnknownLatencyError
from llmrouter.stores.memory import MemoryStore
from support.owners import canceled
from support.requests import ask
from support.waiting import wait_until
from support.wrapping import Wrapped, errored, succeeded, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anthropic import APIRequest, CallNext

pytestmark = pytest.mark.timeout(60)

DAILY = llmrouter.tag("daily")
LONG_OUTPUT = {"anthropic-beta": "output-300k-2026-03-24"}
HERE = f"{__name__}:"


@pytest.fixture
def calls() -> Iterator[Wrapped]:
    """A wrapped client."""
    with wrapped() as one:
        yield one


# Which way


def test_an_untagged_call_goes_live(calls: Wrapped) -> None:
    """As it did before."""
    assert calls.sync.messages.create(**ask()).id == "msg_live"
    assert calls.went == (1, 0)


@pytest.mark.parametrize(
    ("latency", "block", "went"),
    [
        ("daily", None, (0, 1)),
        ("daily", "real-time", (0, 1)),
        ("real-time", "daily", (1, 0)),
        (None, "daily", (0, 1)),
        (None, "real-time", (1, 0)),
    ],
)
def test_a_calls_own_tag_wins_over_its_block(
    calls: Wrapped, latency: str | None, block: str | None, went: tuple[int, int]
) -> None:
    """The most specific one counts."""
    headers = llmrouter.tag(latency, site="somewhere")
    if block is None:
        calls.sync.messages.create(**ask(), extra_headers=headers)
    else:
        with llmrouter.latency(block):
            calls.sync.messages.create(**ask(), extra_headers=headers)

    assert calls.went == went


def test_a_tag_never_reaches_the_api(calls: Wrapped) -> None:
    """Neither live, nor in a batch, nor of another endpoint; the other headers do."""
    headers = llmrouter.tag("real-time", site="here", key="k") | {"anthropic-beta": "b"}
    calls.sync.messages.create(**ask(), extra_headers=headers)
    calls.sync.messages.count_tokens(model="m", messages=ask()["messages"], extra_headers=headers)
    calls.sync.messages.create(**ask(), extra_headers={**headers, **DAILY})

    for request in calls.wire.sent:
        assert not [name for name in request.headers if "llmrouter" in name]
        assert request.headers["anthropic-beta"] == "b"
    (submitted,) = calls.router.submitted
    assert submitted["extra_headers"] == {"anthropic-beta": "b"}
    assert (submitted["site"], submitted["key"]) == ("here", "k")


def test_all_other_endpoints_pass_untouched(calls: Wrapped) -> None:
    """In a block, too."""
    with llmrouter.latency("daily"):
        assert calls.sync.messages.count_tokens(model="m", messages=ask()["messages"]).input_tokens == 1
        calls.sync.get("/v1/messages", cast_to=object)
        calls.sync.post("/v1/messages/batches", body={"requests": []}, cast_to=object)
        calls.sync.post("/v1/messages", content=b"finished", cast_to=object)

    assert calls.went == (4, 0)


@pytest.mark.parametrize("latency", ["dayly", "batch"])
def test_an_unknown_class_is_refused_and_nothing_is_sent(calls: Wrapped, latency: str) -> None:
    """With those there are."""
    with pytest.raises(UnknownLatencyError, match="is no latency class"):
        calls.sync.messages.create(**ask(), extra_headers=llmrouter.tag(latency))
    with llmrouter.latency(latency), pytest.raises(UnknownLatencyError):
        calls.sync.messages.create(**ask())

    assert calls.went == (0, 0)


def test_what_a_batch_cannot_carry_is_not_lost_on_the_way(calls: Wrapped) -> None:
    """The router hears of it, and refuses it."""
    calls.sync.messages.create(**ask(), extra_headers=DAILY, extra_query={"a": "b"})

    with pytest.raises(InvalidRequestError, match="extra_query"):
        encode(calls.router.submitted[0]["request"], batch=True)


def test_a_submitted_request_has_the_body_of_the_live_call(calls: Wrapped) -> None:
    """To the byte, with what the types of the SDK do not have."""
    arguments = ask(
        system="é", stop_sequences=["x"], extra_body={"temperature": 0.5, "metadata": {"user_id": "u"}}
    )
    calls.sync.messages.create(**arguments)
    calls.sync.messages.create(**arguments, extra_headers=DAILY, timeout=5)

    body = encode(calls.router.submitted[0]["request"], batch=True).body
    assert body == calls.wire.sent[0].content


def test_a_beta_call_goes_with_its_betas_and_its_own_parameters(calls: Wrapped) -> None:
    """Which the types of the plain API would refuse."""
    arguments = ask(betas=["b-1"], inference_geo={"of a new": "form"}, mcp_servers=[])
    calls.sync.beta.messages.create(**arguments)
    message = calls.sync.beta.messages.create(**arguments, extra_headers=DAILY)

    (submitted,) = calls.router.submitted
    body = encode(submitted["request"], batch=True).body
    assert json.loads(body) == json.loads(calls.wire.sent[0].content)
    assert submitted["extra_headers"] == {"anthropic-beta": "b-1"}
    assert type(message).__name__ == "BetaMessage"


# The client


def test_a_wrapped_client_has_the_type_of_the_given_one(calls: Wrapped) -> None:
    """Exactly; and the given one is as it was."""
    given = calls.client(anthropic.AsyncAnthropic)

    assert type(calls.sync) is anthropic.Anthropic
    assert type(calls.wrap(given)) is anthropic.AsyncAnthropic
    assert given.middleware == ()


def test_wrapping_twice_changes_nothing(calls: Wrapped) -> None:
    """Another router's is refused, and so is a router of its own wrapped client."""
    assert calls.wrap(calls.sync) is calls.sync
    with wrapped() as other, pytest.raises(SettingsError, match="another router"):
        other.wrap(calls.sync)
    with pytest.raises(SettingsError, match="is wrapped"):
        Router(calls.sync, store=MemoryStore())


@pytest.mark.parametrize("wrong", [None, "key", anthropic.Anthropic(api_key="k").messages])
def test_what_is_no_client_is_refused(calls: Wrapped, wrong: Any) -> None:
    """By its type."""
    with pytest.raises(TypeError, match=type(wrong).__name__):
        calls.wrap(wrong)
    if wrong is not None:
        with pytest.raises(SettingsError, match=type(wrong).__name__):
            Router(wrong, store=MemoryStore())


@pytest.mark.parametrize("kind", [anthropic.Anthropic, anthropic.AsyncAnthropic])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"api_key": "other"}, "credential"),
        ({"base_url": "http://elsewhere.invalid"}, "elsewhere"),
        ({"default_headers": {"x-gateway-key": "secret"}}, "x-gateway-key"),
    ],
)
def test_a_client_that_points_elsewhere_is_refused(
    calls: Wrapped, kind: Any, options: dict[str, Any], problem: str
) -> None:
    """By `wrap`; the error shows no secret."""
    with pytest.raises(SettingsError, match=problem) as caught:
        calls.wrap(calls.client(kind, **options))

    assert "secret" not in str(caught.value)
    assert "Router of its own" in str(caught.value)


@pytest.mark.parametrize("options", [{"api_key": "other"}, {"base_url": "http://elsewhere.invalid"}])
def test_a_derived_client_that_points_elsewhere_sends_nothing_to_the_routers_account(
    calls: Wrapped, options: dict[str, Any]
) -> None:
    """Its tagged calls are refused; the others are none of the router's business."""
    derived = calls.sync.with_options(**options)
    derived.messages.create(**ask())
    with pytest.raises(SettingsError):
        derived.messages.create(**ask(), extra_headers=DAILY)

    assert calls.went == (1, 0)


def test_a_workspace_of_the_client_goes_with_the_batch(calls: Wrapped) -> None:
    """The SDK says in each call that it has none of its own."""
    client = calls.sync.with_options(default_headers={"anthropic-workspace-id": "wrkspc_1"})
    client.messages.create(**ask(), extra_headers=DAILY)
    client.messages.create(**ask(), extra_headers=DAILY, workspace_id="wrkspc_2")

    sent = [one["extra_headers"]["anthropic-workspace-id"] for one in calls.router.submitted]
    assert sent == ["wrkspc_1", "wrkspc_2"]


def test_derived_clients_are_wrapped_too(calls: Wrapped) -> None:
    """And what they send by default belongs to the batch."""
    betas = calls.sync.with_options(default_headers={"anthropic-beta": "b-1"}, max_retries=7)
    for client in (calls.sync.copy(), betas, calls.sync.with_middleware(lambda request, go: go(request))):
        client.messages.create(**ask(), extra_headers=DAILY)

    assert [one["extra_headers"] for one in calls.router.submitted] == [{}, {"anthropic-beta": "b-1"}, {}]


def test_what_the_routers_client_sends_by_default_and_the_call_does_not_is_left_out() -> None:
    """A batch is to say what the call would have said."""
    with wrapped(own={"default_headers": {"anthropic-beta": "of-the-router"}}) as calls:
        client = calls.wrap(calls.client(anthropic.Anthropic))
        client.messages.create(**ask(), extra_headers=DAILY)
    (submitted,) = calls.router.submitted

    assert isinstance(submitted["extra_headers"]["anthropic-beta"], Omit)


def test_other_middleware_around_it_sees_the_answer(calls: Wrapped) -> None:
    """As that of a live call."""
    seen = []

    def watch(request: APIRequest, call_next: CallNext) -> Any:
        answer = call_next(request)
        seen.append((answer.status_code, answer.parse().id))
        return answer

    for client in (
        calls.sync.with_middleware(watch),
        calls.wrap(calls.client(anthropic.Anthropic).with_middleware(watch)),
    ):
        client.messages.create(**ask())
        client.messages.create(**ask(), extra_headers=DAILY)

    # What comes after the router's middleware sees only what goes live.
    assert seen == [(200, "msg_live"), (200, "msg_live"), (200, "msg_stored")]


NO_BATCHES: list[Callable[[], Any]] = [
    lambda: anthropic.AnthropicBedrock(api_key="k", aws_region="us-east-1"),
    lambda: anthropic.AnthropicVertex(access_token="t", project_id="p", region="r"),
    lambda: anthropic.AnthropicFoundry(api_key="k", resource="r"),
    lambda: anthropic.AsyncAnthropicFoundry(api_key="k", resource="r"),
]


@pytest.mark.parametrize("make", NO_BATCHES)
def test_on_a_platform_without_batches_everything_goes_live(
    calls: Wrapped, make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning for the client."""
    given = make()
    client = calls.wrap(given)
    assert type(client) is type(given)
    (middleware,) = client.middleware
    for place in range(3):
        request = live_request(given, DAILY | llmrouter.tag(site=f"site {place}"))
        if isinstance(given, anthropic.AsyncAnthropic):
            asyncio.run(middleware.handle_async(request, async_sink))
        else:
            middleware.handle(request, sink)

    assert calls.went == (0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{type(given).__name__} has no batches: what is tagged goes live, such as daily"
    ]


def live_request(client: Any, headers: dict[str, str]) -> APIRequest:
    """What a middleware is given for a call of a client."""
    from anthropic._models import FinalRequestOptions  # noqa: PLC0415  (only here)

    options = FinalRequestOptions.construct(
        method="post", url="/v1/messages", json_data=ask(), headers=headers
    )
    return anthropic.APIRequest(options=options, cast_to=object)


def sink(request: APIRequest) -> Any:
    """Takes what goes live; fails when it still has a tag."""
    assert request.headers == {}


async def async_sink(request: APIRequest) -> Any:
    """The same for an asynchronous client."""
    sink(request)


@pytest.mark.parametrize("headers", [{}, DAILY])
def test_a_call_the_sdk_refuses_does_not_get_as_far(calls: Wrapped, headers: dict[str, str]) -> None:
    """A long answer needs a timeout, or the SDK asks for streaming before any middleware runs."""
    with pytest.raises(ValueError, match="Streaming is required"):
        calls.sync.messages.create(**ask(max_tokens=30_000), extra_headers=headers)
    calls.sync.messages.create(**ask(max_tokens=30_000), extra_headers=DAILY, timeout=600)

    assert calls.went == (0, 1)


# Sites


def test_the_call_site_is_the_code_that_calls(calls: Wrapped) -> None:
    """Whatever other middleware there is; a name of the user's own is used instead."""

    def outer(request: APIRequest, call_next: CallNext) -> Any:
        return call_next(request)

    around = calls.wrap(calls.client(anthropic.Anthropic).with_middleware(outer))
    calls.sync.messages.create(**ask(), extra_headers=DAILY)
    around.messages.create(**ask(), extra_headers=DAILY)
    around.messages.create(**ask(), extra_headers=llmrouter.tag("daily", site="mine"))

    here = f"{HERE}test_the_call_site_is_the_code_that_calls"
    assert calls.router.sites == [here, here, "mine"]


def test_the_call_site_of_a_coroutine_is_the_code_that_awaits_it(calls: Wrapped) -> None:
    """What a task of its own runs is named after what runs the loop."""
    client = calls.wrap(calls.client(anthropic.AsyncAnthropic))

    async def awaits() -> None:
        await client.messages.create(**ask(), extra_headers=DAILY)

    async def gathers() -> None:
        await asyncio.gather(client.messages.create(**ask(), extra_headers=DAILY))

    async def main() -> None:
        await asyncio.gather(awaits())
        await gathers()

    asyncio.run(main())
    name = f"{HERE}test_the_call_site_of_a_coroutine_is_the_code_that_awaits_it"
    assert calls.router.sites == [f"{name}.<locals>.awaits", name]


def test_the_call_site_of_a_pools_thread_is_the_pool(calls: Wrapped) -> None:
    """Unless it calls a function of the user's."""

    def work() -> None:
        calls.sync.messages.create(**ask(), extra_headers=DAILY)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(calls.sync.messages.create, **ask(), extra_headers=DAILY).result()
        pool.submit(work).result()

    first, second = calls.router.sites
    assert first.startswith("concurrent.futures.thread:")
    assert second == f"{HERE}test_the_call_site_of_a_pools_thread_is_the_pool.<locals>.work"


def test_a_rule_routes_a_site_without_touching_its_code() -> None:
    """By the function's name or the user's; tags win over it."""
    with wrapped(sites={f"{HERE}*rule_routes*": "daily", "night.*": "weekly", "*": "real-time"}) as calls:
        calls.sync.messages.create(**ask())
        calls.sync.messages.create(**ask(), extra_headers=llmrouter.tag("real-time"))
        elsewhere(calls, "night.eval")
        elsewhere(calls, "day")

        assert [one["latency"] for one in calls.router.submitted] == ["daily", "weekly"]
        assert calls.went == (2, 2)


def elsewhere(calls: Wrapped, site: str | None = None, latency: str | None = None) -> None:
    """Another function of this module, that calls."""
    calls.sync.messages.create(**ask(), extra_headers=llmrouter.tag(latency, site=site))


def test_never_batch_wins_over_all() -> None:
    """Over a tag, a block and a rule, and over a name that hides the function."""
    with wrapped(never_batch=["*:elsewhere"], sites={"*": "daily"}) as calls:
        with llmrouter.latency("daily"):
            elsewhere(calls)
            elsewhere(calls, "some other name", "hourly")
        assert calls.went == (2, 0)
        calls.sync.messages.create(**ask())
        assert calls.went == (2, 1)


# Streams


def stream_all(client: Any, **headers: str) -> Any:
    """The final message of a call that streams."""
    with client.messages.stream(**ask(), extra_headers=headers) as stream:
        return stream.get_final_message()


def test_a_tagged_stream_goes_live_with_one_warning_a_site(
    calls: Wrapped, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the setting says otherwise. An untagged one is nobody's business."""
    calls.sync.messages.create(**ask(), stream=True)
    for _ in range(2):
        calls.sync.messages.create(**ask(), stream=True, extra_headers=DAILY)
    calls.sync.messages.create(**ask(), stream=True, extra_headers=llmrouter.tag("daily", site="other"))

    assert calls.went == (4, 0)
    assert [(record.site, record.getMessage()) for record in caplog.records] == [
        (site, "a call that streams goes live, although it is daily: batches do not stream")
        for site in (f"{HERE}test_a_tagged_stream_goes_live_with_one_warning_a_site", "other")
    ]


def test_a_tagged_stream_can_be_an_error() -> None:
    """Nothing is sent then; real-time streams go."""
    with wrapped(streaming="error") as calls:
        with pytest.raises(InvalidRequestError, match="stream"):
            stream_all(calls.sync, **DAILY)
        calls.sync.messages.create(**ask(), stream=True, extra_headers=llmrouter.tag("real-time"))

        assert calls.went == (1, 0)


def test_a_tagged_stream_can_wait_and_be_replayed() -> None:
    """The request in the batch does not stream."""
    with wrapped(streaming="replay") as calls:
        assert stream_all(calls.sync, **DAILY).id == "msg_stored"
        (submitted,) = calls.router.submitted

    assert "stream" not in submitted["request"]
    assert "stream" not in submitted["request"].get("extra_body", {})


# Answers


@pytest.mark.parametrize(
    ("error_type", "kind"),
    [
        ("invalid_request_error", anthropic.BadRequestError),
        ("rate_limit_error", anthropic.RateLimitError),
        ("api_error", anthropic.InternalServerError),
        ("overloaded_error", anthropic.APIStatusError),
    ],
)
def test_an_error_is_the_sdks_own_and_is_not_tried_again(
    calls: Wrapped, error_type: str, kind: type[Exception]
) -> None:
    """It is stored: to ask again would give the same, or be paid again."""
    calls.router.answer = lambda: errored(error_type)
    client = calls.wrap(calls.client(anthropic.AsyncAnthropic, max_retries=3))

    with pytest.raises(kind, match="said the API") as caught:
        calls.sync.with_options(max_retries=3).messages.create(**ask(), extra_headers=DAILY)
    assert caught.value.llmrouter_request_id == "req_1"  # type: ignore[attr-defined]
    with pytest.raises(kind):
        asyncio.run(client.messages.create(**ask(), extra_headers=DAILY))
    with pytest.raises(kind):
        calls.sync.messages.with_raw_response.create(**ask(), extra_headers=DAILY)
    assert calls.went == (0, 3)


def test_a_canceled_request_is_an_error_and_not_a_cancelled_task(calls: Wrapped) -> None:
    """A task whose request somebody has canceled goes on."""
    calls.router.answer = canceled
    client = calls.wrap(calls.client(anthropic.AsyncAnthropic))

    with pytest.raises(anthropic.APIStatusError) as caught:
        calls.sync.messages.create(**ask(), extra_headers=DAILY)
    assert caught.value.status_code == 499
    with pytest.raises(anthropic.APIStatusError):
        asyncio.run(client.messages.create(**ask(), extra_headers=DAILY))


def test_a_closed_router_is_told_to_who_waits(calls: Wrapped) -> None:
    """Also by whoever cancels the future from this process."""
    calls.router.answer = lambda: None
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(calls.sync.messages.create, **ask(), extra_headers=DAILY) for _ in range(2)]
        wait_until(lambda: len(calls.router.futures) == 2)
        closed, taken_back = calls.router.futures
        closed.abandon()
        taken_back._cancel_now()
        errors = {type(wait.exception()) for wait in waits}

    assert errors == {RouterClosedError, type(canceled_error())}


def canceled_error() -> Exception:
    """What a canceled request raises."""
    with wrapped() as calls:
        calls.router.answer = canceled
        with pytest.raises(anthropic.APIStatusError) as caught:
            calls.sync.messages.create(**ask(), extra_headers=DAILY)
        return caught.value


def test_the_raw_answer_names_the_request(calls: Wrapped) -> None:
    """And how long it took."""
    answer = calls.sync.messages.with_raw_response.create(**ask(), extra_headers=DAILY)

    assert answer.headers[REQUEST_ID_HEADER] == "req_1"
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0
    assert str(answer.http_request.url) == "http://api.invalid/v1/messages"
    assert "authorization" not in answer.http_request.headers


# Runs


def test_equal_calls_of_a_run_have_keys_of_their_own_which_are_those_of_the_next_run(calls: Wrapped) -> None:
    """In another order, and with its parameters in another order; with other headers it is another call."""

    def run(texts: list[str]) -> list[Any]:
        before = len(calls.router.keys)
        with llmrouter.latency("daily", run="nightly"):
            for text in texts:
                calls.sync.messages.create(**ask(text))
        return calls.router.keys[before:]

    first, second = run(["a", "b", "a"]), run(["b", "a", "a"])
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 3
    with llmrouter.latency("weekly", run="nightly"):
        calls.sync.messages.create(**ask(messages=[{"content": "a", "role": "user"}]))
        calls.sync.messages.create(**ask("a"), extra_headers={"anthropic-beta": "b"})
    assert calls.router.keys[-2] == first[0]
    assert calls.router.keys[-1] not in first


def test_a_key_of_the_callers_own_is_kept_in_a_run(calls: Wrapped) -> None:
    """It takes no number."""
    with llmrouter.latency("daily", run="nightly"):
        calls.sync.messages.create(**ask(), extra_headers=llmrouter.tag(key="mine"))
        calls.sync.messages.create(**ask())

    assert calls.router.keys[0] == "mine"
    assert str(calls.router.keys[1]).endswith(":1")


def test_a_call_that_got_no_answer_leaves_its_key_to_the_next_equal_one(calls: Wrapped) -> None:
    """A timeout of the caller's, and a second attempt, do not pay twice. An error was an answer."""
    client = calls.wrap(calls.client(anthropic.AsyncAnthropic))

    async def main() -> None:
        with llmrouter.latency("daily", run="nightly"):
            calls.router.answer = lambda: None
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.messages.create(**ask())
            calls.router.answer = lambda: errored("api_error")
            with pytest.raises(anthropic.InternalServerError):
                await client.messages.create(**ask())
            calls.router.answer = succeeded
            await client.messages.create(**ask())

    asyncio.run(main())
    assert [str(key).rsplit(":", 1)[1] for key in calls.router.keys] == ["1", "1", "2"]


def test_ctrl_c_ends_the_wait_and_leaves_the_request_where_it_is(calls: Wrapped) -> None:
    """As any other exception in the waiting thread would."""
    calls.router.answer = lambda: None

    with llmrouter.latency("daily", run="nightly"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llmrouter.MessageFuture, "exception", interrupt)
            with pytest.raises(KeyboardInterrupt):
                calls.sync.messages.create(**ask())
        calls.router.answer = succeeded
        calls.sync.messages.create(**ask())

    first, second = calls.router.futures
    assert calls.router.keys[0] == calls.router.keys[1]
    assert not first.done()
    assert second.done()


def interrupt(_future: object, _timeout: float | None = None) -> Any:
    """Ctrl-C, while somebody waits."""
    raise KeyboardInterrupt


# Long answers


def long_call(calls: Wrapped, **changes: Any) -> Any:
    """Asks for more than a live call gives."""
    arguments: dict[str, Any] = ask(max_tokens=300_000, timeout=60, extra_headers=LONG_OUTPUT)
    return calls.sync.messages.create(**{**arguments, **changes})


def test_what_only_a_batch_answers_goes_as_one(calls: Wrapped, caplog: pytest.LogCaptureFixture) -> None:
    """Untagged with one warning a site; the header may be the client's."""
    for _ in range(2):
        long_call(calls)
    long_call(calls, extra_headers=LONG_OUTPUT | llmrouter.tag("hourly"))
    client = calls.sync.with_options(default_headers=LONG_OUTPUT)
    with llmrouter.latency("weekly"):
        client.messages.create(**ask(max_tokens=300_000, timeout=60))

    assert [one["latency"] for one in calls.router.submitted] == ["daily", "daily", "hourly", "weekly"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("headers", [LONG_OUTPUT | llmrouter.tag("real-time")])
def test_what_only_a_batch_answers_is_refused_as_real_time(calls: Wrapped, headers: dict[str, str]) -> None:
    """By tag, by block, by rule, or where batches are forbidden; and as a stream."""
    with pytest.raises(InvalidRequestError, match=r"max_tokens.*tagged real-time"):
        long_call(calls, extra_headers=headers)
    with llmrouter.latency("real-time"), pytest.raises(InvalidRequestError, match="block"):
        long_call(calls)
    with pytest.raises(InvalidRequestError, match="stream"):
        long_call(calls, stream=True)
    with wrapped(never_batch=["*"]) as never, pytest.raises(InvalidRequestError, match="never_batch"):
        long_call(never)

    assert calls.went == (0, 0)


def test_a_long_answer_without_the_beta_or_within_the_limit_is_no_such_call(calls: Wrapped) -> None:
    """The API says what it thinks of it."""
    long_call(calls, extra_headers={})
    long_call(calls, max_tokens=128_000)
    long_call(calls, extra_headers={"anthropic-beta": "other"})

    assert calls.went == (3, 0)


# What it costs


@pytest.mark.parametrize("settings", [{}, {"never_batch": ["a"], "sites": {"b": {"cache": "auto"}}}])
def test_an_untagged_call_takes_no_lock_and_asks_nobody(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stack walk, no thread, no store, where no rule gives sites a class."""
    with wrapped(**settings) as calls:
        monkeypatch.setattr("llmrouter.middleware.sdk_call_site", pytest.fail)
        monkeypatch.setattr("llmrouter.middleware.read_tag", pytest.fail)
        threads = threading.active_count()
        calls.parts.store.close()

        calls.sync.messages.create(**ask())

        assert calls.went == (1, 0)
        assert threading.active_count() == threads


def test_a_live_call_is_tried_again_as_before(calls: Wrapped) -> None:
    """The middleware runs once an attempt; the tag is taken off each."""
    calls.wire.failures = 2
    client = calls.sync.with_options(max_retries=2)
    client._sleep_for_retry = lambda **_: None

    message = client.messages.create(**ask(), extra_headers=llmrouter.tag("real-time"))

    assert message.id == "msg_live"
    assert calls.went == (3, 0)
    assert not [name for request in calls.wire.sent for name in request.headers if "llmrouter" in name]
