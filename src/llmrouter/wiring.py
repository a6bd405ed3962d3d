"""Puts the parts together. The only place that names adapters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import unquote

from anthropic import Anthropic

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.encoding import EncodedRequest, encode
from llmrouter.claude.lanes import NoLanes, lanes_of
from llmrouter.claude.live import LiveCalls
from llmrouter.claude.live_api import SdkLiveApi
from llmrouter.claude.live_use import LiveUse
from llmrouter.claude.observing import WatchedCall, read_answer
from llmrouter.claude.prompt_prefix import warm_up_call
from llmrouter.claude.wrapped import WrappedCalls
from llmrouter.domain.blocks import rules_of
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import batch_limits
from llmrouter.engine.budget import Budget
from llmrouter.engine.canceller import Canceller
from llmrouter.engine.collector import Collector
from llmrouter.engine.escalator import Escalator
from llmrouter.engine.flusher import Flusher
from llmrouter.engine.intake import Intake
from llmrouter.engine.janitor import Janitor
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.engine.live_faults import LiveFaults
from llmrouter.engine.observer import Observer
from llmrouter.engine.pace import Pace
from llmrouter.engine.reconciler import Reconciler
from llmrouter.engine.sender import Sender
from llmrouter.engine.warmer import Warmer
from llmrouter.errors import SettingsError
from llmrouter.reloading import Reloader
from llmrouter.routing import Routing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anthropic import AnthropicBedrock, AnthropicBedrockMantle, AnthropicVertex, APIRequest
    from anthropic.types import Message

    from llmrouter.claude.headers import CallHeaders
    from llmrouter.claude.lanes import Lanes
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, Outcome
    from llmrouter.domain.scheduling import Margin
    from llmrouter.ports import Clock, Store
    from llmrouter.settings import Settings
    from llmrouter.stores._repair import RepairReport


SyncClient: TypeAlias = "Anthropic | AnthropicBedrock | AnthropicBedrockMantle | AnthropicVertex"
"""A synchronous client of any platform; those of AWS, Google Cloud and Foundry are `Anthropic`."""


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
    limits: dict[str, BatchLimits]
    """The largest batch of each latency class; it changes with the rate of live calls."""
    limit_of: Callable[[LatencyClass, float | None], BatchLimits]
    """That of a class at so many live requests a minute; None where no limit is known."""
    margin: Margin
    keeper: LeaseKeeper
    flusher: Flusher
    collector: Collector
    reconciler: Reconciler
    canceller: Canceller
    escalator: Escalator
    sender: Sender
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
    pace: Pace
    """Of the router's own live calls; what the application's own leave of the limits counts."""
    routing: Routing
    rules: Reloader
    """Has the present rules for call sites, for whom `routing` does not suffice."""
    calls: WrappedCalls
    """What the middleware of wrapped clients asks of the SDK."""
    live_use: LiveUse
    """Told of what goes live on wrapped clients."""
    intake: Intake
    observer: Observer | None
    """Counts the calls of wrapped clients, which all go live; None: they are routed."""

    @property
    def has_batches(self) -> bool:
        """Whether the client's platform has batches. False: everything goes live."""
        return not isinstance(self.lanes, NoLanes)

    def watch(self, request: APIRequest, site: str, latency: str) -> WatchedCall:
        """Begins to count a live call for the observer, which there is."""
        assert self.observer is not None
        return WatchedCall(request, site, latency, self.clock.monotonic, self.observer.note)

    def encode(
        self,
        request: Mapping[str, Any],
        *,
        batch: bool,
        extra_headers: CallHeaders | None,
        index: int | None,
        auto_cache: bool = False,
    ) -> EncodedRequest:
        """Checks a request and turns it into the bytes that will be sent."""
        return encode(request, batch=batch, extra_headers=extra_headers, index=index, auto_cache=auto_cache)

    def decode(self, outcome: Outcome) -> Message | Exception:
        """The message of an outcome, or the exception that says why there is none."""
        if outcome.kind is OutcomeKind.SUCCEEDED:
            return to_message(outcome.raw)
        return to_error(outcome.kind, outcome.raw, outcome.request_id, outcome.attempts)

    def carries(self, lane: Lane) -> bool:
        """Whether requests of a lane can go live; see `llmrouter.ports.LiveApi.carries`."""
        return SdkLiveApi(self.client, self.lanes).carries(lane)

    def engine(self, on_settled: Callable[[], None]) -> Engine:
        """The engine of the store.

        Args:
            on_settled: Called after each settle.
        """
        settings, store, clock = self.settings, self.store, self.clock
        api = SdkBatchApi(self.client, self.lanes)
        sender, escalator, warmer = self._escalation(on_settled)
        per_minute = escalator.per_minute
        limits = {name: self._limit(latency, per_minute) for name, latency in self.routing.classes.items()}
        flusher = Flusher(store, api, clock, limits, max_attempts=settings.max_attempts, warm=warmer.run_once)
        return Engine(
            store=store,
            clock=clock,
            classes=self.routing.classes,
            limits=limits,
            limit_of=self._limit,
            margin=settings.margin,
            keeper=LeaseKeeper(store),
            flusher=flusher,
            escalator=escalator,
            sender=sender,
            collector=Collector(
                store,
                api,
                clock,
                fixed_poll=settings.poll is not None,
                max_attempts=settings.max_attempts,
                delete_after_collect=settings.delete_after_collect,
                on_settled=on_settled,
                leftover=escalator.leftover,
            ),
            reconciler=Reconciler(
                store, api, clock, grace=settings.in_doubt_grace, under_way=flusher.creator.under_way
            ),
            canceller=Canceller(store, api, clock),
            janitor=Janitor(store, clock, settings.retention),
        )

    def _limit(self, latency: LatencyClass, per_minute: float | None) -> BatchLimits:
        """The largest batch of a class."""
        settings = self.settings
        return batch_limits(
            latency, settings.batch_max_requests, settings.batch_max_bytes, requests_per_minute=per_minute
        )

    def _escalation(self, on_settled: Callable[[], None]) -> tuple[Sender, Escalator, Warmer]:
        """What makes live calls: to keep deadlines, and to warm the prompt cache."""
        settings, store, clock, policy = self.settings, self.store, self.clock, self.settings.policy
        api = SdkLiveApi(self.client, self.lanes)
        budget = Budget(
            store,
            clock,
            most=settings.max_escalation_usd,
            by_class={
                name: own.max_escalation_usd
                for name, own in settings.classes.items()
                if own.max_escalation_usd is not None
            },
        )
        faults = LiveFaults(clock, max_attempts=settings.max_attempts)
        sender = Sender(
            store,
            api,
            clock,
            self.pace,
            budget,
            faults,
            concurrency=settings.live_concurrency,
            on_settled=on_settled,
        )
        rules = rules_of(margin=settings.margin, min_window=policy.min_window, ramp=policy.ramp)
        escalator = Escalator(
            store,
            api,
            clock,
            self.pace,
            budget,
            sender,
            classes=self.routing.classes,
            rules=rules,
            lead=policy.cancel_lead,
            restart_age=policy.restart_age,
        )

        def is_storm() -> bool:
            return escalator.conditions.storm

        warmer = Warmer(store, api, clock, self.pace, budget, faults, shape=warm_up_call, is_storm=is_storm)
        return sender, escalator, warmer


def build(
    client: SyncClient | None,
    store: str | Store | None,
    settings: Settings | None,
    clock: Clock | None,
    *,
    observe: bool | None = None,
) -> Parts:
    """Makes the parts of a router.

    Args:
        client: By default one from the environment.
        store: By default that of the settings.
        settings: By default those from the environment.
        clock: By default the machine's.
        observe: Overrides the setting.

    Raises:
        SettingsError: Settings are wrong, or the client is asynchronous.
        StoreUnusableError: The store cannot be opened.
    """
    from llmrouter.settings import Settings  # noqa: PLC0415  (pydantic-settings loads with the first router)

    settings = settings or Settings()
    observe = settings.observe if observe is None else observe
    clock = clock or SystemClock()
    given = client or Anthropic()
    owns_store = store is None or isinstance(store, str)
    kept = (
        open_store(store or settings.store_url(), settings)
        if store is None or isinstance(store, str)
        else store
    )
    try:
        lanes = lanes_of(given, kept.secret())
    except BaseException:
        if owns_store:
            kept.close()
        raise
    # Those that are none have the same `messages`, and nothing else is used of them without batches.
    client = cast("Anthropic", given)
    routing = Routing(settings.latency_classes(), settings.site_classes(), settings.never_batch)
    pace = Pace(
        Pacer(
            concurrency=settings.live_concurrency,
            requests_per_minute=settings.live_requests_per_minute,
            share=settings.live_share,
            ramp=settings.policy.ramp,
        ),
        clock,
    )
    return Parts(
        settings=settings,
        clock=clock,
        store=kept,
        owns_store=owns_store,
        client=client,
        lanes=lanes,
        live=LiveCalls(client, settings.real_time_threads, on_call=pace.saw),
        pace=pace,
        routing=routing,
        rules=Reloader(settings, routing),
        calls=WrappedCalls(lanes),
        live_use=LiveUse(pace.saw),
        intake=Intake(kept, clock),
        observer=Observer(kept, clock, read_answer) if observe else None,
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
