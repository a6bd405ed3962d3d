"""The future of a message: for threads and for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Protocol

from anthropic.types import Message

from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from datetime import datetime

    from llmrouter.domain.requests import Outcome

__all__ = ["MessageFuture"]

_MADE_WHEN_NEEDED: dict[str, Callable[[], Any]] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
    "_unnotified": threading.Lock,
}


class Owner(Protocol):
    """What a future asks of its router."""

    def cancel(self, request_id: str) -> bool:
        """Takes a request out of the queue, if it is still there."""
        ...

    def state(self, request_id: str) -> str:
        """Where a request is."""
        ...

    def decode(self, outcome: Outcome) -> Message | Exception:
        """The message of an outcome, or the exception that the SDK would have raised live."""
        ...

    def pin(self, future: MessageFuture) -> None:
        """Keeps a future alive that somebody listens to."""
        ...


class MessageFuture(Future[Message]):
    """A `concurrent.futures.Future` of a `Message` that can also be awaited.

    ``result()`` and ``await`` give the message, or raise the SDK's own typed exception. A future
    that nobody holds or listens to may be forgotten; its request is not: `Router.future` makes
    another. Awaiting never cancels: a cancelled task leaves the request where it is.

    Attributes:
        request_id: The request's id; real-time requests have none that outlives the process.
        key: The caller's idempotency key, or None.
        latency: Name of the latency class.
        deadline: By when the answer is to be there; aware, UTC. None for real-time requests.
        outcome: How the request ended, with its times and batch; None before that, and for
            real-time requests.
    """

    def __init__(
        self, owner: Owner, *, request_id: str, key: str | None, latency: str, deadline: datetime | None
    ) -> None:
        # Not `super().__init__()`: see `__getattr__`.
        self._state = "PENDING"
        self._result = None
        self._exception = None
        self._owner = owner
        self.request_id = request_id
        self.key = key
        self.latency = latency
        self.deadline = deadline
        self.outcome: Outcome | None = None

    def __getattr__(self, name: str) -> Any:
        """Makes the lock and the lists of a `Future` when they are first needed.

        A future that waits with thousands of others needs none of them, and they are a dozen objects
        that every pass of the garbage collector would walk: they doubled the time of `submit_many`.
        """
        make = _MADE_WHEN_NEEDED.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__.setdefault(name, make())  # One of them, whichever thread is first.

    def status(self) -> str:
        """Where the request is, or how it ended.

        Where: ``queued``, ``claimed``, ``in_doubt``, ``in_flight``, or ``escalating``: it goes live.
        How: ``succeeded``, ``errored``, ``canceled``, ``expired``; ``closed`` when the router was
        closed first: the request is safe where it was, and a future of another router tells.
        """
        if self.outcome is not None:
            return self.outcome.kind.value
        if not self.done():
            return self._owner.state(self.request_id)
        if self.cancelled():
            return "canceled"
        error = self.exception()
        if isinstance(error, RouterClosedError):
            return "closed"
        return "succeeded" if error is None else "errored"

    def cancel(self) -> bool:
        """Takes the request out of the queue. False when it has left it: `Router.cancel` gives those up."""
        if self.done():
            return self.cancelled()
        if not self._owner.cancel(self.request_id):
            return False
        self._cancel_now()
        return True

    def add_done_callback(self, fn: Callable[[Future[Message]], object]) -> None:
        """See `concurrent.futures.Future.add_done_callback`; also keeps this future alive."""
        if not self.done():
            self._owner.pin(self)
        super().add_done_callback(fn)

    def settle(self, outcome: Outcome) -> None:
        """Takes the outcome. The resolver calls it; a second call changes nothing."""
        if self.done():
            return
        self.outcome = outcome
        if outcome.withdrawn:
            self._cancel_now()
            return
        try:
            answer = self._owner.decode(outcome)
        except Exception as error:  # noqa: BLE001  (whatever it is, the waiting caller must hear of it)
            answer = error
        self.finish(answer)

    def finish(self, answer: Message | BaseException) -> None:
        """Ends the wait with a message or an exception."""
        with contextlib.suppress(InvalidStateError):  # Another thread was first.
            if isinstance(answer, BaseException):
                self.set_exception(answer)
            else:
                self.set_result(answer)

    def take(self, message: Message | None, error: BaseException | None) -> None:
        """Takes the answer of a live call."""
        self.finish(error or message or RuntimeError("a live call ended without an answer"))

    def abandon(self) -> None:
        """Tells who waits that the router was closed."""
        self.finish(
            RouterClosedError(
                f"{self.request_id}: the router was closed before the answer came. The request is safe in"
                f" the store; router.future({self.request_id!r}) in any process waits for it"
            )
        )

    async def wait(self) -> None:
        """Waits in asyncio code until it is done, however it ends. Raises nothing of its own."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        def tell(_future: Future[Message]) -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:
                return  # The loop was closed: nobody waits there any more.

        self.add_done_callback(tell)
        await done

    def __await__(self) -> Generator[object, None, Message]:
        yield from self.wait().__await__()
        if self.cancelled():
            raise asyncio.CancelledError
        return self.result()

    def _cancel_now(self) -> None:
        # The caller's cancel and the log's word of it can come together; to notify twice is an error.
        if super().cancel() and self._unnotified.acquire(blocking=False):
            self.set_running_or_notify_cancel()
