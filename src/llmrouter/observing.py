"""The middleware of observe mode: everything goes live, and the traffic of call sites is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from llmrouter.domain.latency import REAL_TIME
from llmrouter.errors import InvalidRequestError
from llmrouter.middleware import RoutingMiddleware
from llmrouter.routing import sdk_call_site
from llmrouter.tagging import TAG_HEADERS, UNTAGGED, current_entry, read_tag, without_tag

if TYPE_CHECKING:
    from anthropic import APIRequest, APIResponse, AsyncAPIResponse, AsyncCallNext, CallNext

    from llmrouter.middleware import Submitter
    from llmrouter.tagging import Entry, Tag
    from llmrouter.wiring import Parts


class WatchedCall(Protocol):
    """A call that is counted; see `llmrouter.claude.observing`."""

    def failed(self) -> None:
        """It raised."""
        ...

    def answered(self, answer: Any, *, sync: bool) -> None:
        """There is an answer, which may still be unread."""
        ...


def middleware_for(parts: Parts) -> type[RoutingMiddleware]:
    """What a router's wrapped clients get."""
    return RoutingMiddleware if parts.observer is None else ObservingMiddleware


class ObservingMiddleware(RoutingMiddleware):
    """Sends all calls of a wrapped client on, whatever they are tagged with, and tells the observer."""

    def __init__(self, router: Submitter, parts: Parts, client: Any) -> None:
        """See `RoutingMiddleware`.

        Raises:
            SettingsError: The client points elsewhere than the router's own.
        """
        super().__init__(router, parts, client)
        observer = parts.observer
        assert observer is not None
        self._observer = observer

    def handle(self, request: APIRequest, call_next: CallNext) -> APIResponse[Any]:
        """Sends a call of a synchronous client on."""
        request, call = self._begin(request)
        if call is None:
            return call_next(request)
        try:
            answer = call_next(request)
        except BaseException:
            self._failed(call)
            raise
        self._answered(call, answer, sync=True)
        return answer

    async def handle_async(self, request: APIRequest, call_next: AsyncCallNext) -> AsyncAPIResponse[Any]:
        """Sends a call of an asynchronous client on."""
        request, call = self._begin(request)
        if call is None:
            return await call_next(request)
        try:
            answer = await call_next(request)
        except BaseException:
            self._failed(call)
            raise
        self._answered(call, answer, sync=False)
        return answer

    def _begin(self, request: APIRequest) -> tuple[APIRequest, WatchedCall | None]:
        """What to send on; and what counts it, unless it is no message."""
        tag, headers, entry = UNTAGGED, request.options.headers, current_entry()
        if headers and not TAG_HEADERS.isdisjoint(headers):
            tag = read_tag(request.headers)
            request = request.copy(headers=without_tag(request.headers))
        try:
            if not self._calls.is_message(request):
                return request, None
            site, latency = sdk_call_site(), REAL_TIME
            if tag is not UNTAGGED or entry is not None or self._routing.has_rules:
                latency = self._wanted(tag, entry, site)
            return request, self._parts.watch(request, tag.site or site, latency)
        except Exception as error:  # noqa: BLE001  (the call goes as if nobody looked)
            self._observer.complain("A live call could not be counted", error)
            return request, None

    def _wanted(self, tag: Tag, entry: Entry | None, site: str) -> str:
        """The class in which the call would go, if calls were routed."""
        block = entry.latency if entry is not None else None
        try:
            names = tuple(filter(None, (tag.site, site)))
            return self._routing.decide(names, tag=tag.latency, block=block).latency
        except InvalidRequestError:
            asked = str(tag.latency or block)
            self._warn("a call asks for %s, which is no latency class: it would be refused", asked, site)
            return REAL_TIME

    def _failed(self, call: WatchedCall) -> None:
        try:
            call.failed()
        except Exception as error:  # noqa: BLE001  (the call's own error is the one to raise)
            self._observer.complain("A live call that failed could not be counted", error)

    def _answered(self, call: WatchedCall, answer: Any, *, sync: bool) -> None:
        try:
            call.answered(answer, sync=sync)
        except Exception as error:  # noqa: BLE001  (the answer is not to be lost over it)
            self._observer.complain("The answer of a live call could not be counted", error)
