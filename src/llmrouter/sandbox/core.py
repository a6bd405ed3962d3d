"""The sandbox itself: its parts put together, and what a test holds in its hands."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.sandbox.admin import build_admin_routes
from llmrouter.sandbox.api import Api
from llmrouter.sandbox.app import build_app
from llmrouter.sandbox.books import Books, Charge
from llmrouter.sandbox.clocks import ScaledClock
from llmrouter.sandbox.faults import Faults
from llmrouter.sandbox.limits import Limits, Rates
from llmrouter.sandbox.replies import Answerer
from llmrouter.sandbox.server import SandboxServer
from llmrouter.sandbox.shelf import Shelf
from llmrouter.sandbox.turnaround import Turnaround

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.applications import Starlette

    from llmrouter.sandbox.batches import Batch
    from llmrouter.sandbox.clocks import Clock
    from llmrouter.sandbox.outages import Outage
    from llmrouter.sandbox.replies import ReplyFunction

DEFAULT_API_KEY = "sandbox"


class Sandbox:
    """An Anthropic API to test against, with its own clock, faults and books.

    One object holds the state; `serve` puts it on a loopback port, any number of times. All of it
    may be used from any thread while it serves.

    Args:
        clock: the time it goes by; by default real time.
        turnaround: how long its batches take; by default `Turnaround.typical(seed)`.
        seed: decides ids, the order of results, and the answers.
        keep_bodies: keep every call's headers and exact body in `books.records`, and the create
            call's body in each batch.
        requests_per_minute: the rate limit, for the messages endpoints and for the batch endpoints
            each; None: no limit. Counted on `clock`.
        reply: called with the parsed parameters of a request, from any thread, returns the text of
            its answer or a `Reply`; it may be called again for the same request, and must then
            return the same. By default made-up prose that begins with `[` and the first 12 digits of
            the request's `params_hash`.
        api_keys: the credentials accepted; None: any that is not empty. All see the same batches.
        limits: the sizes above which calls are refused, and tokens a minute.
        cancel_takes: how long a canceled batch is `canceling`, in the clock's time; what gets done
            meanwhile is `succeeded`, and charged. A `Turnaround` draws a time for each batch.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        turnaround: Turnaround | None = None,
        seed: int = 0,
        keep_bodies: bool = False,
        requests_per_minute: int | None = None,
        reply: ReplyFunction | None = None,
        api_keys: Collection[str] | None = None,
        limits: Limits | None = None,
        cancel_takes: timedelta | Turnaround = timedelta(seconds=30),
    ) -> None:
        self.clock: Clock = clock if clock is not None else ScaledClock()
        self.faults = Faults()
        """What goes wrong; add to it at any time."""
        self.books = Books(self._charge_batches)
        """What was called and charged."""
        self._api_keys = api_keys
        self._answerer = Answerer(seed=seed, reply=reply)
        limits = limits if limits is not None else Limits()
        self._charged: dict[str, tuple[Charge, ...]] = {}
        self._shelf = Shelf(
            clock=self.clock,
            turnaround=turnaround if turnaround is not None else Turnaround.typical(seed),
            seed=seed,
            cancel_takes=cancel_takes
            if isinstance(cancel_takes, Turnaround)
            else Turnaround.fixed(cancel_takes),
        )
        self._api = Api(
            shelf=self._shelf,
            faults=self.faults,
            books=self.books,
            answerer=self._answerer,
            limits=limits,
            live_rates=Rates(
                self.clock,
                requests_per_minute,
                limits.input_tokens_per_minute,
                limits.output_tokens_per_minute,
            ),
            batch_rates=Rates(self.clock, requests_per_minute),
            api_keys=api_keys,
            keep_bodies=keep_bodies,
        )

    @property
    def batches(self) -> dict[str, Batch]:
        """Every batch created so far by its id, oldest first, deleted ones too: a copy."""
        return self._shelf.all()

    def app(self) -> Starlette:
        """The ASGI application. Faults of the connection (`drop`, `cut`) need `serve`."""
        return build_app(self._api, self.clock, build_admin_routes(self))

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> SandboxServer:
        """A server of this sandbox, not started: use it in a `with`, or call `start` and `stop`.

        Args:
            host: the address to listen on.
            port: the port to listen on; 0: any free one.
        """
        api_key = min(self._api_keys, default=DEFAULT_API_KEY) if self._api_keys else DEFAULT_API_KEY
        return SandboxServer(self.app(), host=host, port=port, api_key=api_key)

    @property
    def outages(self) -> tuple[Outage, ...]:
        """Every outage since the last reset."""
        return self._shelf.outages

    def add_outage(self, span: timedelta, *, after: timedelta = timedelta(0), cancels: bool = True) -> Outage:
        """Has every batch, those to come too, stand still for a while; calls are answered as ever.

        Batches expire 24 hours after their creation all the same.

        Args:
            span: how long, in the sandbox's time.
            after: in how long it begins.
            cancels: whether a batch that is canceled in it ends as ever; False: not before it is over.

        Raises:
            ValueError: a span is negative.
        """
        return self._shelf.add_outage(span, after=after, cancels=cancels)

    def reset(self) -> None:
        """Forgets batches, books, faults and outages. The clock goes on, and ids are not used again."""
        self.faults.clear()
        self._shelf.clear()
        self.books.clear()
        self._charged.clear()

    def _charge_batches(self) -> list[Charge]:
        charges: list[Charge] = []
        for batch in self._shelf.ended():
            if batch.id not in self._charged:
                self._charged[batch.id] = tuple(self._charge_batch(batch))
            charges.extend(self._charged[batch.id])
        return charges

    def _charge_batch(self, batch: Batch) -> list[Charge]:
        return [
            Charge(
                route="batch",
                batch_id=batch.id,
                custom_id=item.custom_id,
                params_hash=item.params_hash,
                model=item.model,
                usage=self._answerer.usage(item, "batch"),
            )
            for item, outcome in batch.outcomes()
            if outcome == "succeeded"
        ]
