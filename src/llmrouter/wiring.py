"""Puts the parts together. The only place that names adapters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from anthropic import Anthropic

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.encoding import EncodedRequest, encode
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live import LiveCalls
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import Margin, batch_limits
from llmrouter.engine.canceller import Canceller
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
    from llmrouter.stores._repair import RepairReport


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """The present instant, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that no setting of the clock changes."""
        return time.monotonic()


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
    canceller: Canceller
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
        flusher = Flusher(store, api, clock, limits, max_attempts=settings.max_attempts)
        return Engine(
            store=store,
            clock=clock,
            classes=self.routing.classes,
            limits=limits,
            margin=Margin(at_least=settings.policy.margin_min, at_most=settings.policy.margin_max),
            keeper=LeaseKeeper(store),
            flusher=flusher,
            collector=Collector(
                store,
                api,
                clock,
                fixed_poll=settings.poll is not None,
                max_attempts=settings.max_attempts,
                delete_after_collect=settings.delete_after_collect,
                on_settled=on_settled,
            ),
            reconciler=Reconciler(
                store, api, clock, grace=settings.in_doubt_grace, under_way=flusher.creator.under_way
            ),
            canceller=Canceller(store, api, clock),
            janitor=Janitor(store, clock, settings.retention),
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
    try:
        lanes = Lanes(client, kept.secret())
    except BaseException:
        if owns_store:
            kept.close()
        raise
    return Parts(
        settings=settings,
        clock=clock,
        store=kept,
        owns_store=owns_store,
        client=client,
        lanes=lanes,
        live=LiveCalls(client, settings.real_time_threads),
        routing=Routing(settings.latency_classes()),
        intake=Intake(kept, clock),
    )


def repair_store(url: str) -> RepairReport:
    """Repairs the damaged store that a URL names, where that loses nothing.

    Raises:
        SettingsError: It is no store in a folder.
        StoreError: It is in use, or cannot be repaired; the message says what to do.
    """
    from llmrouter.stores._repair import repair  # noqa: PLC0415  (seldom needed)

    return repair(store_folder(url))


def open_store(url: str, settings: Settings) -> Store:
    """Opens the store that a URL names: ``disk:///folder`` or ``memory://``.

    Raises:
        SettingsError: There is no such kind of store.
        StoreUnusableError: It cannot be opened.
    """
    match url.partition(":")[0]:
        case "disk":
            from llmrouter.stores.disk import DiskStore  # noqa: PLC0415  (only the chosen adapter is loaded)

            return DiskStore(store_folder(url), durability=settings.durability)
        case "memory":
            from llmrouter.stores.memory import MemoryStore  # noqa: PLC0415

            return MemoryStore()
        case _:
            raise SettingsError(f"store: {url!r} is no store; write disk:///path/to/folder or memory://")


def store_folder(url: str) -> Path:
    """The folder of a ``disk://`` URL. What follows the scheme is a path, with %20 and the like read."""
    scheme, _, path = url.partition("://")
    if scheme != "disk" or not path:
        raise SettingsError(f"store: {url!r} names no folder; write disk:///path/to/folder")
    return Path(unquote(path)).expanduser()
