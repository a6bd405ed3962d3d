"""Puts the parts together. The only place that names adapters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from anthropic import Anthropic

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.encoding import EncodedRequest, encode
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live import LiveCalls
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import Margin, batch_limits
from llmrouter.engine.collector import Collector
from llmrouter.engine.flusher import Flusher
from llmrouter.engine.intake import Intake
from llmrouter.engine.janitor import Janitor
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.engine.reconciler import Reconciler
from llmrouter.errors import SettingsError
from llmrouter.routing import Routing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anthropic.types import Message

    from llmrouter.claude.headers import CallHeaders
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Outcome
    from llmrouter.ports import Clock, Store
    from llmrouter.settings import Settings


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What does a store's work; `llmrouter.worker` gives it its times."""

    store: Store
    clock: Clock
    classes: Mapping[str, LatencyClass]
    limits: Mapping[str, BatchLimits]
    """The largest batch of each latency class."""
    margin: Margin
    keeper: LeaseKeeper
    flusher: Flusher
    collector: Collector
    reconciler: Reconciler
    janitor: Janitor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a router is made of."""

    settings: Settings
    clock: Clock
    store: Store
    owns_store: bool
    """Whether the store was opened here, and so is to be closed here."""
    client: Anthropic
    lanes: Lanes
    live: LiveCalls
    routing: Routing
    intake: Intake

    def encode(
        self, request: Mapping[str, Any], *, batch: bool, extra_headers: CallHeaders | None, index: int | None
    ) -> EncodedRequest:
        """Checks a request and turns it into the bytes that will be sent."""
        return encode(request, batch=batch, extra_headers=extra_headers, index=index)

    def decode(self, outcome: Outcome) -> Message | Exception:
        """The message of an outcome, or the exception that says why there is none."""
        if outcome.kind is OutcomeKind.SUCCEEDED:
            return to_message(outcome.raw)
        return to_error(outcome.kind, outcome.raw, outcome.request_id, outcome.attempts)

    def engine(self, on_settled: Callable[[], None]) -> Engine:
        """The engine of the store.

        Args:
            on_settled: Called after each settle.
        """
        settings, store, clock = self.settings, self.store, self.clock
        api = SdkBatchApi(self.client, self.lanes)
        limits = {
            name: batch_limits(latency, settings.batch_max_requests, settings.batch_max_bytes)
            for name, latency in self.routing.classes.items()
        }
        return Engine(
            store=store,
            clock=clock,
            classes=self.routing.classes,
            limits=limits,
            margin=Margin(at_least=settings.policy.margin_min, at_most=settings.policy.margin_max),
            keeper=LeaseKeeper(store),
            flusher=Flusher(store, api, clock, limits),
            collector=Collector(
                store,
                api,
                clock,
                fixed_poll=settings.poll is not None,
                max_attempts=settings.max_attempts,
                on_settled=on_settled,
            ),
            reconciler=Reconciler(store),
            janitor=Janitor(store),
        )


def build(
    client: Anthropic | None,
    store: str | Store | None,
    settings: Settings | None,
    clock: Clock | None,
) -> Parts:
    """Makes the parts of a router.

    Raises:
        SettingsError: Settings are wrong, or the client has no batches.
        StoreUnusableError: The store cannot be opened.
    """
    from llmrouter.settings import Settings  # noqa: PLC0415  (pydantic-settings loads with the first router)

    settings = settings or Settings()
    clock = clock or SystemClock()
    client = client or Anthropic()
    owns_store = store is None or isinstance(store, str)
    kept = (
        open_store(store or settings.store_url(), settings)
        if store is None or isinstance(store, str)
        else store
    )
    return Parts(
        settings=settings,
        clock=clock,
        store=kept,
        owns_store=owns_store,
        client=client,
        lanes=Lanes(client, kept.secret()),
        live=LiveCalls(client, settings.real_time_threads),
        routing=Routing(settings.latency_classes()),
        intake=Intake(kept, clock),
    )


def open_store(url: str, settings: Settings) -> Store:
    """Opens the store that a URL names: ``disk:///folder`` or ``memory://``.

    Raises:
        SettingsError: There is no such kind of store.
        StoreUnusableError: It cannot be opened.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "disk":
            from llmrouter.stores.disk import DiskStore  # noqa: PLC0415  (only the chosen adapter is loaded)

            folder = unquote(f"{parts.netloc}{parts.path}")
            if not folder:
                raise SettingsError(f"store: {url!r} names no folder; write disk:///path/to/folder")
            return DiskStore(Path(folder).expanduser(), durability=settings.durability)
        case "memory":
            from llmrouter.stores.memory import MemoryStore  # noqa: PLC0415

            return MemoryStore()
        case _:
            raise SettingsError(f"store: {url!r} is no store; write disk:///path/to/folder or memory://")
