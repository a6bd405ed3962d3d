"""Requests share a batch exactly when everything that belongs to the batch as a whole is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, silent_client

from llmrouter.claude.lanes import Lanes, headers_of
from llmrouter.errors import InvalidRequestError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

SILENT: dict[str, Any] = {
    "http_client": httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(500)))
}


def lanes(**options: Any) -> Lanes:
    return Lanes(silent_client(**options), SECRET)


def test_a_lane_says_what_belongs_to_the_whole_batch() -> None:
    """Base URL, version and fingerprint; never the key."""
    lane = lanes(api_key="sk-ant-secret", base_url="https://proxy.example/v").lane_for({})

    assert lane.base_url == "https://proxy.example/v/"
    assert lane.headers == (("anthropic-version", "2026-10-21"),)
    assert len(lane.credential) == 16
    assert "secret" not in repr(lane)


def test_the_same_lane_in_every_process() -> None:
    """Nothing of this process goes into a lane: what was stored once is known again."""
    lane = lanes(api_key="a", default_headers={"anthropic-version": "2026-10-21"}).lane_for({})

    assert (lane.lane_id, lane.credential) == ("057113f680dea9c6", "a997608b5bb0966a")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"api_key": "a"}, {"api_key": "b"}),
        ({"api_key": "a"}, {"api_key": "a", "base_url": "https://other.example"}),
        ({"api_key": "a"}, {"api_key": "a", "default_headers": {"anthropic-version": "2023-06-01"}}),
        ({"api_key": "a"}, {"api_key": "a", "default_headers": {"anthropic-beta": "x"}}),
        ({"api_key": "a"}, {"api_key": "a", "default_headers": {"anthropic-workspace-id": "wrkspc_1"}}),
        ({"api_key": "a"}, {"api_key": "a", "default_headers": {"Anthropic-User-Profile-Id": "p"}}),
        ({"api_key": "a"}, {"api_key": "a", "default_headers": {"X-Api-Key": "b"}}),
    ],
)
def test_clients_that_differ_have_different_lanes(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Each thing that splits batches splits lanes, and gives them another id."""
    assert lanes(**one).lane_for({}).lane_id != lanes(**other).lane_for({}).lane_id


def test_a_default_header_counts_in_whatever_case_it_is_spelled() -> None:
    """As the SDK sends it: the caller's own, not the SDK's."""
    lane = lanes(api_key="a", default_headers={"Anthropic-Version": "2023-06-01"}).lane_for({})

    assert lane.headers == (("anthropic-version", "2023-06-01"),)


def test_the_fingerprint_is_of_this_store() -> None:
    """With another secret the same key has another fingerprint."""
    client = silent_client(api_key="a")

    assert (
        Lanes(client, b"1" * 32).lane_for({}).credential != Lanes(client, b"2" * 32).lane_for({}).credential
    )


def test_a_key_and_a_token_of_the_same_value_are_one_credential() -> None:
    """Both go out as the same `Authorization`."""
    by_provider = lanes(credentials=anthropic.StaticToken("a")).lane_for({})

    assert lanes(api_key="a").lane_for({}) == lanes(auth_token="a").lane_for({}) == by_provider


def test_other_default_headers_do_not_split() -> None:
    """What the client always sends needs no lane of its own, and its values are not stored."""
    lane = lanes(default_headers={"x-gateway-token": "secret"}).lane_for({})

    assert lane == lanes().lane_for({})


def test_betas_are_a_set() -> None:
    """Order, spaces and repeats do not matter."""
    of = lanes().lane_for

    assert of({"anthropic-beta": "b, a,,b"}) == of({"anthropic-beta": "a,b"})
    assert dict(of({"anthropic-beta": "f,b, e,a,d,c"}).headers)["anthropic-beta"] == "a,b,c,d,e,f"
    assert of({"anthropic-beta": ","}) == of({})


def test_headers_of_the_call_replace_those_of_the_client() -> None:
    """As in the SDK, whatever the spelling of the name."""
    ours = lanes(default_headers={"anthropic-beta": "x", "anthropic-workspace-id": "w1"})

    lane = ours.lane_for(
        {"Anthropic-Beta": "y", "ANTHROPIC-VERSION": "2023-06-01", "anthropic-workspace-id": "w2"}
    )

    assert lane.headers == (
        ("anthropic-beta", "y"),
        ("anthropic-version", "2023-06-01"),
        ("anthropic-workspace-id", "w2"),
    )


def test_omit_takes_a_header_of_the_client_away() -> None:
    """Betas can be omitted; workspace and profile cannot, since the SDK sends the client's all the same."""
    ours = lanes(default_headers={"anthropic-beta": "x", "anthropic-workspace-id": "w1"})

    lane = ours.lane_for({"anthropic-beta": anthropic.omit, "anthropic-workspace-id": anthropic.omit})

    assert lane.headers == (("anthropic-version", "2026-10-21"), ("anthropic-workspace-id", "w1"))


def test_what_a_batch_cannot_omit_is_refused() -> None:
    """A header of the client's goes with every call."""
    ours = lanes(default_headers={"x-gateway": "1"})

    with pytest.raises(InvalidRequestError, match="x-gateway"):
        ours.lane_for({"X-Gateway": anthropic.omit})
    assert ours.lane_for({"x-other": anthropic.omit}) == ours.lane_for({})


def test_other_headers_of_the_call_belong_to_the_batch() -> None:
    """They are kept as given, sorted; those of the transport and of the SDK are not kept."""
    lane = lanes().lane_for(
        {"x-b": "2", "X-A": "1", "Content-Type": "application/json", "x-stainless-helper": "beta"}
    )

    assert lane.headers == (("anthropic-version", "2026-10-21"), ("x-a", "1"), ("x-b", "2"))


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "Proxy-Authorization", "cookie"])
@pytest.mark.parametrize("value", ["secret", anthropic.omit])
def test_a_credential_of_the_call_is_refused(name: str, value: Any) -> None:
    """A credential belongs to the client: a lane would store it."""
    with pytest.raises(InvalidRequestError, match="belongs to the client") as caught:
        lanes().lane_for({name: value})
    assert "secret" not in str(caught.value)


def test_lanes_are_made_once() -> None:
    """The same headers give the same object, and odd ones do not fill the memory."""
    ours = lanes()

    assert ours.lane_for({}) is ours.lane_for({})
    assert ours.lane_for({"x": "1"}) is ours.lane_for({"x": "1"})
    for number in range(3000):
        ours.lane_for({"x": str(number)})
    assert ours.lane_for({"x": "5"}) == lanes().lane_for({"x": "5"})


def test_a_missing_key_is_a_clear_error_when_it_is_first_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not at construction: an SDK client may be made without one."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CONFIG_DIR", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = Lanes(anthropic.Anthropic(**SILENT), SECRET)

    with pytest.raises(SettingsError, match="ANTHROPIC_API_KEY"):
        ours.lane_for({})


def test_a_client_may_do_without_a_credential() -> None:
    """Where a gateway adds it, `Authorization` is omitted for good, or another header carries it."""
    omitted = Lanes(anthropic.Anthropic(default_headers={"Authorization": anthropic.omit}, **SILENT), SECRET)  # type: ignore[dict-item]
    by_header = Lanes(anthropic.Anthropic(default_headers={"X-Api-Key": "k"}, **SILENT), SECRET)

    assert omitted.lane_for({}).credential != by_header.lane_for({}).credential


def test_a_default_header_that_cannot_be_sent_is_a_clear_error() -> None:
    """Of the client's, and not of the request that meets it first."""
    with pytest.raises(SettingsError, match="x-mine has characters"):
        lanes(default_headers={"x-mine": "a\nb"}).lane_for({})


def test_a_replaced_key_is_another_credential() -> None:
    """Lanes follow the client; what was stored under the old key waits."""
    client = silent_client(api_key="old")
    ours = Lanes(client, SECRET)
    before = ours.lane_for({})

    client.api_key = "new"

    assert ours.lane_for({}) == lanes(api_key="new").lane_for({})
    assert not ours.serves(before)


class Profile:
    """A credentials provider that tells a profile, and counts its calls."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.calls = 0

    def __call__(self, *, force_refresh: bool = False) -> anthropic.AccessToken:
        self.calls += 1
        return anthropic.AccessToken(token=f"token-{self.calls}", expires_at=0)


def test_providers_are_told_apart_without_a_token() -> None:
    """Tokens change and cost a call; what the provider says of itself does not."""
    provider = Profile("work")

    lane = lanes(credentials=provider).lane_for({})

    assert lane == lanes(credentials=Profile("work")).lane_for({})
    assert lane.credential != lanes(credentials=Profile("home")).lane_for({}).credential
    assert provider.calls == 0


def test_a_missing_token_in_the_environment_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's provider names the variable."""
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)

    with pytest.raises(SettingsError, match="ANTHROPIC_AUTH_TOKEN"):
        lanes(credentials=anthropic.EnvToken()).lane_for({})


def aws(**options: Any) -> Lanes:
    given = {"aws_region": "eu-west-1", "workspace_id": "wrkspc_1", **options}
    return Lanes(anthropic.AnthropicAWS(**given, **SILENT), SECRET)


def test_aws_has_batches() -> None:
    """Workspace and region tell its lanes apart; temporary keys do not."""
    keys = {"aws_access_key": "AKIA1", "aws_secret_key": "s"}
    lane = aws(**keys).lane_for({})

    assert dict(lane.headers)["anthropic-workspace-id"] == "wrkspc_1"
    assert lane != aws(**{**keys, "aws_access_key": "AKIA2"}).lane_for({})
    assert lane != aws(**keys, workspace_id="wrkspc_2").lane_for({})
    assert lane != aws(**keys, aws_region="us-east-1").lane_for({})
    temporary = [aws(**{**keys, "aws_access_key": key}, aws_session_token="t").lane_for({}) for key in "ab"]
    assert temporary[0] == temporary[1]


def google(**options: Any) -> Lanes:
    client = anthropic.AnthropicGoogleCloud(
        workspace_id="wrkspc_1", token_provider=lambda: "t", **options, **SILENT
    )
    return Lanes(client, SECRET)


def test_google_cloud_has_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base URL names project and workspace; it must be known before a lane is stored."""
    for name in ("ANTHROPIC_GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT", "ANTHROPIC_GOOGLE_CLOUD_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    assert google(project="one").lane_for({}).lane_id != google(project="two").lane_for({}).lane_id
    with pytest.raises(SettingsError, match="project"):
        google().lane_for({})


@pytest.mark.parametrize(
    "client",
    [
        anthropic.AnthropicFoundry(resource="r", api_key="k"),
        anthropic.AnthropicBedrock(aws_region="eu-west-1"),
        anthropic.AnthropicBedrockMantle(aws_region="eu-west-1", api_key="k"),
        anthropic.AnthropicVertex(region="eu", project_id="p", access_token="t"),
    ],
    ids=lambda client: type(client).__name__,
)
def test_platforms_without_batches_are_refused(client: Any) -> None:
    """At construction, with the way out."""
    with pytest.raises(
        SettingsError, match=f"{type(client).__name__} has no batches; use Anthropic, AnthropicAWS"
    ):
        Lanes(client, SECRET)


def test_an_asynchronous_client_is_refused() -> None:
    """The engine is synchronous."""
    with pytest.raises(SettingsError, match="synchronous"):
        Lanes(anthropic.AsyncAnthropic(api_key="k"), SECRET)  # type: ignore[arg-type]


def test_a_lane_is_served_by_whoever_holds_its_credential() -> None:
    """Whatever the headers of the client: those of the lane are sent."""
    lane = lanes(api_key="a").lane_for({"anthropic-beta": "x", "anthropic-workspace-id": "w"})

    assert lanes(api_key="a").serves(lane)
    assert lanes(api_key="a", default_headers={"anthropic-beta": "y"}).serves(lane)
    assert lanes(api_key="a", default_headers={"anthropic-workspace-id": "other"}).serves(lane)
    assert not lanes(api_key="b").serves(lane)
    assert not lanes(api_key="a", base_url="https://other.example").serves(lane)
    assert not Lanes(silent_client(api_key="a"), b"another").serves(lane)


def test_a_lane_without_workspace_is_not_served_by_a_client_with_one() -> None:
    """The SDK would send the client's workspace, and the batch would be in another one."""
    lane = lanes(api_key="a").lane_for({})

    assert not lanes(api_key="a", default_headers={"anthropic-workspace-id": "w"}).serves(lane)


@pytest.mark.parametrize(
    "endpoint", ["https://evil.example/v1/messages/batches", "//evil.example", "/v1/files"]
)
def test_a_lane_with_another_endpoint_is_not_served(endpoint: str) -> None:
    """A planted store cannot send the credential elsewhere."""
    ours = lanes()

    assert not ours.serves(replace(ours.lane_for({}), endpoint=endpoint))


def test_a_lane_takes_away_what_it_does_not_have() -> None:
    """A beta that the client got later does not slip into an older lane."""
    wire: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        wire.append(request)
        return httpx2.Response(200, json={})

    lane = lanes(api_key="key").lane_for({})
    client = anthropic.Anthropic(
        api_key="key",
        default_headers={"anthropic-beta": "later", "anthropic-version": "2023-06-01"},
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )

    client.get("/v1/x", cast_to=object, options={"headers": headers_of(lane)})

    assert "anthropic-beta" not in wire[0].headers
    assert wire[0].headers["anthropic-version"] == "2026-10-21"


def test_a_password_in_the_base_url_is_part_of_the_credential() -> None:
    """A lane is stored and shown, and tells accounts of a gateway apart."""
    lanes = [
        Lanes(silent_client(base_url=f"http://{user}gateway:8000/x"), SECRET).lane_for({})
        for user in ("", "a:one@", "a:two@")
    ]

    assert {lane.base_url for lane in lanes} == {"http://gateway:8000/x/"}
    assert len({lane.credential for lane in lanes}) == 3
