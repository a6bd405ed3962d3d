"""A credential goes to the client's own base URL only, whatever an answer points to."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import anthropic
import pytest

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.calls import Calls
from llmrouter.claude.lanes import Lanes
from llmrouter.errors import CreateRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.domain.requests import Lane

KEY = "planted-key"
PROMPT = b'{"requests":["planted prompt"]}'
NOW = datetime(2026, 11, 20, tzinfo=UTC)
STATUSES = [301, 302, 303, 307, 308]


class Host:
    """A server that answers every call with a redirect, or with nothing of use; keeps what it was sent."""

    def __init__(self, status: int = 200, location: str | None = None) -> None:
        self.paths: list[str] = []
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.paths.append(self.path)
                host.heads.append({name.lower(): value for name, value in self.headers.items()})
                host.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
                self.send_response(status)
                if location is not None:
                    self.send_header("location", f"{location}{self.path}")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[Host]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


class Prompts:
    """A batch body."""

    content_length = len(PROMPT)

    def __iter__(self) -> Iterator[bytes]:
        yield PROMPT


class Bench:
    """The adapter in front of a host that redirects to another one."""

    def __init__(self, api: SdkBatchApi, lane: Lane, own: Host, other: Host) -> None:
        self.api = api
        self.lane = lane
        self.own = own
        self.other = other


@contextmanager
def redirecting(status: int) -> Iterator[Bench]:
    with ExitStack() as open_things:
        other = open_things.enter_context(Host().serving())
        own = open_things.enter_context(Host(status, other.url).serving())
        client = open_things.enter_context(
            anthropic.Anthropic(base_url=own.url, api_key=KEY, default_headers={"x-api-key": KEY})
        )
        lanes = Lanes(client, b"s")
        yield Bench(SdkBatchApi(client, lanes), lanes.lane_for({"x-api-kind": "mine"}), own, other)


def test_the_sdk_itself_follows_with_keys_and_prompts() -> None:
    """What all this is for; if it fails one day, the SDK has changed for the better."""
    with (
        redirecting(307) as bench,
        anthropic.Anthropic(
            base_url=bench.own.url, api_key="k", default_headers={"x-api-key": KEY}
        ) as client,
    ):
        client.post("/v1/messages/batches", content=PROMPT, cast_to=object)

    assert bench.other.heads[0]["x-api-key"] == KEY
    assert bench.other.bodies == [PROMPT]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    "call",
    [
        lambda bench: bench.api.describe(bench.lane, {"a": NOW}),
        lambda bench: bench.api.describe(bench.lane, dict.fromkeys("abcd", NOW)),
        lambda bench: bench.api.listed(bench.lane, NOW),
        lambda bench: bench.api.cancel(bench.lane, "a"),
        lambda bench: bench.api.delete(bench.lane, "a"),
        lambda bench: list(bench.api.results(bench.lane, "a")),
    ],
    ids=["describe one", "describe many", "listed", "cancel", "delete", "results"],
)
def test_no_call_follows_a_redirect(status: int, call: Callable[[Bench], object]) -> None:
    """It fails, with a clear error of the SDK's."""
    with redirecting(status) as bench:
        with pytest.raises(anthropic.APIStatusError) as caught:
            call(bench)

        assert caught.value.status_code == status
        assert status == 303 or "base URL" in str(caught.value)
        assert len(bench.own.paths) == 1
        assert bench.other.paths == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_create_follows_a_redirect(status: int) -> None:
    """The prompts stay, too; nothing was created."""
    with redirecting(status) as bench:
        with pytest.raises(CreateRefusedError, match="base URL") as caught:
            bench.api.create(bench.lane, Prompts())

        assert caught.value.status == status
        assert bench.own.bodies == [PROMPT]
        assert bench.other.paths == []


def test_a_refused_token_is_renewed_without_following_a_redirect() -> None:
    """The call that has the SDK drop a token follows none either."""

    def provider(*, force_refresh: bool = False) -> anthropic.AccessToken:
        return anthropic.AccessToken(token=KEY)

    with ExitStack() as open_things:
        other = open_things.enter_context(Host().serving())
        own = open_things.enter_context(Host(302, other.url).serving())
        client = open_things.enter_context(anthropic.Anthropic(base_url=own.url, credentials=provider))
        lanes = Lanes(client, b"s")
        Calls(client).renew_token(lanes.lane_for({}))

        assert own.paths == ["/v1/messages/batches?limit=1"]
        assert other.paths == []


def test_results_are_never_read_from_the_address_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`results_url` may name any host."""
    with ExitStack() as open_things:
        other = open_things.enter_context(Host().serving())
        own = open_things.enter_context(Host().serving())
        client = open_things.enter_context(anthropic.Anthropic(base_url=f"{own.url}/proxy", api_key=KEY))
        lanes = Lanes(client, b"s")
        api, lane = SdkBatchApi(client, lanes), lanes.lane_for({})
        monkeypatch.setattr(
            client.messages.batches, "retrieve", lambda *_, **__: pytest.fail(f"asked for {other.url}")
        )

        assert list(api.results(lane, "msgbatch_1")) == []
        assert own.paths == ["/proxy/v1/messages/batches/msgbatch_1/results"]
        assert other.paths == []
