"""Which requests may share a batch: the lane of a client and the headers of a call."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, cast

import anthropic
from anthropic import Omit

from llmrouter.claude.headers import CREDENTIAL_HEADERS, CallHeaders, fold_headers
from llmrouter.domain.requests import Lane
from llmrouter.errors import InvalidRequestError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

BATCHES_PATH = "/v1/messages/batches"

Client: TypeAlias = anthropic.Anthropic | anthropic.AsyncAnthropic

_BETA = "anthropic-beta"
_VERSION = "anthropic-version"
CLIENT_LEVEL = ("anthropic-user-profile-id", "anthropic-workspace-id")
"""Headers of which the SDK sends the client's own even where a call asks to omit them."""
_SPLITTING = (_BETA, _VERSION, *CLIENT_LEVEL)
_OF_THE_TRANSPORT = frozenset({"accept", "content-length", "content-type", "transfer-encoding"})
_OF_THE_SDK = "x-stainless-"
_OF_THE_CLIENT = CREDENTIAL_HEADERS | _OF_THE_TRANSPORT | {"user-agent"}
_PROVIDER_ATTRIBUTES = (
    "profile",
    "organization_id",
    "federation_rule_id",
    "service_account_id",
    "workspace_id",
)
_CACHED_LANES = 1000


class Lanes:
    """The lanes of one client.

    Follows a client whose `api_key` or `auth_token` is replaced: it has other lanes from then on.
    May be used from several threads.
    """

    def __init__(self, client: anthropic.Anthropic, secret: bytes) -> None:
        """Looks at the client; sends nothing.

        Args:
            client: A synchronous client of a platform that has batches.
            secret: Key of the fingerprints, the store's own.

        Raises:
            SettingsError: The client has no batches.
        """
        _require_batches(client)
        self._client = client
        self._secret = secret
        self._known: _Known | None = None

    def lane_for(self, headers: CallHeaders) -> Lane:
        """The lane of a call with these headers of its own.

        Raises:
            InvalidRequestError: The headers hold a credential, or omit what a batch cannot omit.
            SettingsError: The client has no credential, or no base URL yet.
        """
        known = self._look()
        if not headers:
            return known.plain
        key = tuple(headers.items())
        lane = known.lanes.get(key)
        if lane is None:
            if len(known.lanes) >= _CACHED_LANES:
                known.lanes.clear()
            lane = known.lanes[key] = known.lane_for(headers)
        return lane

    def serves(self, lane: Lane) -> bool:
        """Whether the client holds a lane's credential, reaches its base URL and can keep to its headers.

        Raises:
            SettingsError: As `lane_for`.
        """
        known = self._look()
        return (
            lane.base_url == known.plain.base_url
            and lane.credential == known.plain.credential
            and lane.endpoint == BATCHES_PATH
            and known.client_level <= {name for name, _ in lane.headers}
        )

    def headers_beside(self, client: Client) -> CallHeaders:
        """What a call of another client's must bring along, so that this one sends what that one would.

        Args:
            client: Any client of a platform that has batches, asynchronous or not.

        Raises:
            SettingsError: It points elsewhere: to another base URL, with another credential or other
                default headers. Or one of them has no credential or base URL yet.
        """
        known = self._look()
        other = _Identified(client)
        if other.base_url != known.plain.base_url:
            raise _elsewhere(client, f"goes to {other.base_url}, the router to {known.plain.base_url}")
        if other.fingerprint(self._secret) != known.plain.credential:
            raise _elsewhere(client, "has another credential than the router's")
        ours, theirs = (
            {name: str(value) for name, value in one.items() if isinstance(value, str)}
            for one in (known.defaults, other.defaults)
        )
        differing = {
            name
            for name in ours.keys() | theirs.keys()
            if ours.get(name) != theirs.get(name)
            and name not in _OF_THE_CLIENT
            and not name.startswith(_OF_THE_SDK)
        }
        for name in sorted(differing):
            # Any other header may hold a gateway's key, and lanes are stored.
            if name not in _SPLITTING:
                raise _elsewhere(client, f"has another default header {name} than the router's client")
            if name in CLIENT_LEVEL and name not in theirs:
                raise _elsewhere(client, f"has no {name}, which the router's client sends")
        return {name: theirs.get(name, Omit()) for name in differing}

    def _look(self) -> _Known:
        known = self._known
        client = self._client
        if known is None or known.token != (client.api_key, client.auth_token):
            known = self._known = _Known(client, self._secret)
        return known


class NoLanes(Lanes):
    """Of a client whose platform has no batches: it has no lanes, and serves none that is stored."""

    def __init__(self, client: object) -> None:  # The lookups of others would look at what it does not have.
        self._platform = type(client).__name__

    def lane_for(self, headers: CallHeaders) -> Lane:  # noqa: ARG002  (none, whatever they are)
        """Raises `SettingsError`: there is none."""
        raise SettingsError(f"{self._platform} has no batches")

    def serves(self, lane: Lane) -> bool:  # noqa: ARG002  (as above)
        """False."""
        return False

    def headers_beside(self, client: Client) -> CallHeaders:
        """Raises `SettingsError`: what another client sends in a batch, this one cannot."""
        raise _elsewhere(client, f"has batches, the router's {self._platform} has none")


def lanes_of(client: object, secret: bytes) -> Lanes:
    """The lanes of a client of any platform.

    Args:
        client: A synchronous one.
        secret: Key of the fingerprints, the store's own.

    Raises:
        SettingsError: It is asynchronous, or no client of the SDK's.
    """
    if hasattr(client, "__aenter__"):  # On the platforms without batches these have no class in common.
        raise SettingsError(_asynchronous(client))
    if hasattr(client, "with_middleware") and not has_batches(client):
        return NoLanes(client)
    return Lanes(cast("anthropic.Anthropic", client), secret)


def headers_of(lane: Lane) -> dict[str, str | Omit]:
    """What to send with every call for a lane, so that the client's own headers do not change it."""
    absent: dict[str, str | Omit] = {name: Omit() for name in (_BETA, _VERSION)}
    return {**absent, **dict(lane.headers)}


class _Identified:
    """Where a client points, and as whom."""

    def __init__(self, client: Client) -> None:
        self.defaults = _default_headers(client)
        self.base_url = _base_url(client)
        self._identity = b"\n".join(
            filter(None, [_identity(client, self.defaults).encode(), client.base_url.userinfo])
        )

    def fingerprint(self, secret: bytes) -> str:
        """Of the credential, keyed."""
        return hmac.new(secret, self._identity, hashlib.sha256).hexdigest()[:16]


class _Known:
    """What lanes need of a client, looked up once for each credential."""

    def __init__(self, client: anthropic.Anthropic, secret: bytes) -> None:
        self.token = (client.api_key, client.auth_token)
        self.lanes: dict[tuple[tuple[str, str | Omit], ...], Lane] = {}
        identified = _Identified(client)
        self.defaults = identified.defaults
        self._base_url = identified.base_url
        self._credential = identified.fingerprint(secret)
        self.client_level = {name for name in CLIENT_LEVEL if isinstance(self.defaults.get(name), str)}
        self.plain = self.lane_for({})

    def lane_for(self, headers: CallHeaders) -> Lane:
        call = fold_headers(headers)
        values = {name: self._splitting(name, call) for name in _SPLITTING}
        for name, value in call.items():
            if name not in _SPLITTING and self._belongs(name, value):
                values[name] = str(value)
        values[_BETA] = _normalize_betas(values[_BETA] or "") or None
        sent = tuple(sorted((name, value) for name, value in values.items() if value is not None))
        text = json.dumps([self._base_url, self._credential, sent, BATCHES_PATH])
        return Lane(
            lane_id=hashlib.sha256(text.encode()).hexdigest()[:16],
            base_url=self._base_url,
            credential=self._credential,
            headers=sent,
            endpoint=BATCHES_PATH,
        )

    def _splitting(self, name: str, call: Mapping[str, str | Omit]) -> str | None:
        own = self.defaults.get(name)
        value = call.get(name, own)
        if isinstance(value, Omit) and name in CLIENT_LEVEL:
            value = own
        return value if isinstance(value, str) else None

    def _belongs(self, name: str, value: str | Omit) -> bool:
        """Whether a header of a call goes with the whole batch."""
        if name in CREDENTIAL_HEADERS:
            raise InvalidRequestError(
                "extra_headers", f"{name} is a credential and belongs to the client; use one Router for each"
            )
        if name in _OF_THE_TRANSPORT or name.startswith(_OF_THE_SDK):
            return False
        if isinstance(value, Omit):
            if isinstance(self.defaults.get(name), str):
                raise InvalidRequestError(
                    "extra_headers",
                    f"a batch cannot omit {name}, which the client sends; give it another client",
                )
            return False
        return True


def has_batches(client: object) -> TypeGuard[Client]:
    """Whether a client's platform has batches."""
    # Foundry is an `Anthropic` whose `batches` is None; Bedrock and Vertex are none.
    return (
        isinstance(client, anthropic.Anthropic | anthropic.AsyncAnthropic)
        and getattr(client.messages, "batches", None) is not None
    )


def _require_batches(client: object) -> None:
    if isinstance(client, anthropic.AsyncAnthropic):
        raise SettingsError(_asynchronous(client))
    if not has_batches(client):
        raise SettingsError(
            f"{type(client).__name__} has no batches; use Anthropic, AnthropicAWS or AnthropicGoogleCloud"
        )


def _asynchronous(client: object) -> str:
    return f"{type(client).__name__} is asynchronous; give the synchronous client of its kind"


def _elsewhere(client: Client, how: str) -> SettingsError:
    return SettingsError(
        f"this {type(client).__name__} {how}; give it a Router of its own, made with a client like it"
    )


def _default_headers(client: Client) -> dict[str, str | Omit]:
    try:
        # The caller's own win in whatever case they are spelled; `default_headers` alone has both spellings.
        return fold_headers(client.default_headers, client._custom_headers)  # noqa: SLF001  (see above)
    except InvalidRequestError as error:
        raise SettingsError(f"a default header of the client cannot be sent: {error.problem}") from None


def _base_url(client: Client) -> str:
    if not client.base_url.host:
        raise SettingsError(
            f"{type(client).__name__} has no base URL before its first call; give it its project or base_url"
        )
    # A lane is stored and shown: a password in the address belongs to the credential.
    return str(client.base_url.copy_with(username=None, password=None))


def _identity(client: Client, defaults: Mapping[str, str | Omit]) -> str:
    """What tells one credential from another, and stays the same while its tokens change."""
    held = [f"{name}:{defaults[name]}" for name in ("authorization", "x-api-key") if defaults.get(name)]
    if held:
        return "\n".join(held)
    if client.credentials is not None:
        return _provider_identity(client.credentials)
    if isinstance(client, anthropic.AnthropicAWS | anthropic.AsyncAnthropicAWS):
        # Temporary keys change within the day; the workspace, a header of every lane, does not.
        access_key = None if client.aws_session_token else client.aws_access_key
        return f"aws:{client.aws_profile}:{access_key}"
    if isinstance(client, anthropic.AnthropicGoogleCloud | anthropic.AsyncAnthropicGoogleCloud):
        # Project and workspace are in the base URL.
        return "google-cloud"
    if "authorization" in defaults:
        return "omitted"
    raise SettingsError("there is no API key: set ANTHROPIC_API_KEY, or give Router a client that has one")


def _provider_identity(provider: object) -> str:
    if isinstance(provider, anthropic.StaticToken | anthropic.EnvToken):
        try:
            return f"authorization:Bearer {provider().token}"
        except anthropic.CredentialsError as error:
            raise SettingsError(str(error)) from error
    known = [f"{name}={getattr(provider, name, None)}" for name in _PROVIDER_ATTRIBUTES]
    return "\n".join([f"{type(provider).__module__}.{type(provider).__qualname__}", *known])


def _normalize_betas(value: str) -> str:
    return ",".join(sorted({beta.strip() for beta in value.split(",")} - {""}))
