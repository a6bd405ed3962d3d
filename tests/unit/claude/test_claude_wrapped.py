"""Which clients may share a router's account, and how a middleware learns which client it works for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from anthropic import Omit

from llmrouter.claude.lanes import Lanes, has_batches
from llmrouter.claude.wrapped import WrappedCalls, client_of
from llmrouter.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = b"s" * 32
OTHER = {"api_key": "b", "aws_access_key": "AKIA2", "project": "two"}


class Profile:
    """A credentials provider that tells a profile."""

    def __init__(self, profile: str) -> None:
        self.profile = profile

    def __call__(self, *, force_refresh: bool = False) -> anthropic.AccessToken:
        """A token."""
        return anthropic.AccessToken(token="t", expires_at=0)


def silent(kind: type, **options: Any) -> Any:
    """A client of a kind that is never sent with."""
    if kind.__name__.startswith("Async"):
        answer = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(500)))
        return kind(http_client=answer, **options)
    return kind(
        http_client=httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(500))), **options
    )


def plain(kind: type, **changes: Any) -> Any:
    """A client with a key."""
    given = {"api_key": "a", "default_headers": None}
    given |= {name: value for name, value in changes.items() if name in given}
    return silent(kind, base_url="http://a.example/v", **given)


def profiled(kind: type, **changes: Any) -> Any:
    """A client with a provider of credentials."""
    return silent(kind, credentials=Profile(changes.get("api_key", "a")))


def aws(kind: type, **changes: Any) -> Any:
    """A client of AWS."""
    given = {"aws_region": "r", "workspace_id": "w", "aws_access_key": "AKIA1", "aws_secret_key": "s"}
    return silent(kind, **given | {name: value for name, value in changes.items() if name in given})


def google(kind: type, **changes: Any) -> Any:
    """A client of Google Cloud."""
    return silent(kind, workspace_id="w", token_provider=lambda: "t", project=changes.get("project", "one"))


KINDS = [
    (plain, anthropic.Anthropic, anthropic.AsyncAnthropic),
    (profiled, anthropic.Anthropic, anthropic.AsyncAnthropic),
    (aws, anthropic.AnthropicAWS, anthropic.AsyncAnthropicAWS),
    (google, anthropic.AnthropicGoogleCloud, anthropic.AsyncAnthropicGoogleCloud),
]


@pytest.mark.parametrize(("make", "sync", "asynchronous"), KINDS)
def test_an_asynchronous_client_of_the_same_account_is_known(
    make: Callable[..., Any], sync: type, asynchronous: type
) -> None:
    """On every platform that has batches; another account is refused, of either kind."""
    lanes = Lanes(make(sync), SECRET)

    assert lanes.headers_beside(make(asynchronous)) == lanes.headers_beside(make(sync)) == {}
    for kind in (sync, asynchronous):
        with pytest.raises(SettingsError, match="Router of its own"):
            lanes.headers_beside(make(kind, **OTHER))


def test_what_splits_batches_is_brought_along() -> None:
    """And what only the router's client sends is left out, where that can be said."""
    ours = {"anthropic-beta": "b", "Anthropic-Version": "2023-06-01"}
    theirs = {
        "anthropic-beta": "c",
        "anthropic-workspace-id": "w",
        "User-Agent": "mine",
        "X-Stainless-Lang": "x",
    }
    lanes = Lanes(plain(anthropic.Anthropic, default_headers=ours), SECRET)

    beside = lanes.headers_beside(plain(anthropic.AsyncAnthropic, default_headers=theirs))
    assert beside.keys() == {"anthropic-beta", "anthropic-version", "anthropic-workspace-id"}
    assert (beside["anthropic-beta"], beside["anthropic-workspace-id"]) == ("c", "w")
    assert beside["anthropic-version"] == "2026-10-21"
    (without,) = lanes.headers_beside(
        plain(anthropic.Anthropic, default_headers={"anthropic-version": "2023-06-01"})
    ).values()
    assert isinstance(without, Omit)


def test_a_workspace_that_the_routers_client_sends_cannot_be_left_out() -> None:
    """The SDK sends the client's own, whatever a call says."""
    lanes = Lanes(plain(anthropic.Anthropic, default_headers={"anthropic-workspace-id": "w"}), SECRET)

    with pytest.raises(SettingsError, match="has no anthropic-workspace-id"):
        lanes.headers_beside(plain(anthropic.Anthropic))


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (plain(anthropic.Anthropic), True),
        (plain(anthropic.AsyncAnthropic), True),
        (aws(anthropic.AsyncAnthropicAWS), True),
        (anthropic.AsyncAnthropicFoundry(api_key="k", resource="r"), False),
        (anthropic.AsyncAnthropicBedrock(api_key="k", aws_region="r"), False),
        (object(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_platforms_have_batches(client: object, expected: bool) -> None:
    """Of others nothing more is asked: their calls go live."""
    assert has_batches(client) is expected
    if not expected:
        assert not WrappedCalls(Lanes(plain(anthropic.Anthropic), SECRET)).is_batchable(client)


def test_the_client_is_found_behind_other_middleware() -> None:
    """The derived one, not the one that was wrapped. Where the SDK hides it, nothing is found."""
    found: list[object] = []

    def look(request: Any, call_next: Any) -> Any:
        found.append(client_of(call_next))
        raise KeyError

    derived = (
        plain(anthropic.Anthropic).with_middleware(look, lambda request, go: go(request)).copy(max_retries=0)
    )
    with pytest.raises(KeyError):
        derived.messages.create(model="m", max_tokens=1, messages=[])

    assert found == [derived]
    assert client_of(print) is None
    assert client_of(lambda request: request) is None
