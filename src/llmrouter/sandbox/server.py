"""The sandbox as a server: uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from typing import TYPE_CHECKING, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmrouter.sandbox.app import TRANSPORT_STATE
from llmrouter.sandbox.errors import PortInUseError

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.applications import Starlette

_BACKLOG = 1_024
_KEEP_ALIVE_SECONDS = 75
_GRACE_SECONDS = 2.0
_CLOSING_ROUNDS = 10


class SandboxServer:
    """Serves one sandbox over HTTP. A context manager: ready inside the block, stopped after it.

    Args:
        app: the ASGI application.
        host: the address to listen on.
        port: the port to listen on; 0: any free one.
        api_key: a credential the sandbox accepts.
    """

    def __init__(self, app: Starlette, *, host: str, port: int, api_key: str) -> None:
        self.host = host
        self.port = port
        """The port; the real one once the server has started."""
        self.api_key = api_key
        """A credential the sandbox accepts."""
        self._app = app
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """Where it listens, for `Anthropic(base_url=...)`; without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Starts to serve; returns when calls are answered.

        Raises:
            PortInUseError: something else listens there.
            OSError: the address cannot be listened on.
            RuntimeError: it runs already, or did not come up.
        """
        if self._thread is not None:
            raise RuntimeError("this sandbox server runs already")
        listener = _listen(self.host, self.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="llmrouter-sandbox", daemon=True
        )
        self._thread.start()
        if not self._server.wait_ready(self._thread):
            listener.close()
            self.stop()
            raise RuntimeError("the sandbox server did not come up; its log says why")

    def stop(self) -> None:
        """Stops serving: open calls are broken off. May be called from any thread, and again."""
        server, thread = self._server, self._thread
        if server is not None and thread is not None:
            server.stop()
            thread.join()
        self._server = self._thread = None

    def wait(self) -> None:
        """Blocks until the server has stopped, or until KeyboardInterrupt."""
        thread = self._thread
        while thread is not None and thread.is_alive():
            # Without a timeout, an interrupt that another thread got would be noticed only at the end.
            thread.join(timeout=0.5)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Protocol(H11Protocol):
    """HTTP/1.1 whose application can reach the connection itself, to drop it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.access_log = False
        self.app_state = {**self.app_state, TRANSPORT_STATE: transport}


class _Server(uvicorn.Server):
    """uvicorn, waiting for a signal to stop instead of looking ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def wait_ready(self, thread: threading.Thread) -> bool:
        """Blocks until calls are answered; returns False when `thread` ended before that."""
        while not self._ready.wait(timeout=0.05):
            if not thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Tells the server to stop. May be called from any thread."""
        if self._loop is not None and self._stop is not None:
            # A loop that was closed meanwhile needs no telling.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await super().startup(sockets)
        await self.on_tick(0)
        self._ready.set()

    async def main_loop(self) -> None:
        assert self._stop is not None
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends at once what uvicorn's own shutdown would wait for: open calls, clients that read slowly."""
        # Stop accepting, but close the listeners last: a connection accepted just before would meet a
        # closed server in asyncio, and its socket would never be closed.
        for listener in sockets or ():
            asyncio.get_running_loop().remove_reader(listener)
        await self._abort_connections()
        for server in self.servers:
            server.close()
        # A call that notices the end of its connection ends quietly; a canceled one is logged as an error.
        tasks = set(self.server_state.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_GRACE_SECONDS)
            for task in late:
                task.cancel()

    async def _abort_connections(self) -> None:
        # asyncio takes a few rounds from accepting a connection to telling the protocol of it, and one
        # more from aborting it to closing its socket.
        for _ in range(_CLOSING_ROUNDS):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where it sees the protocol; with it a call takes 40 ms more.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Listening at once makes the port ours: a second sandbox on it fails at bind, not later.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                error.errno, f"port {port} on {host} is in use; choose another, or 0 for any free one"
            ) from error
        raise
    return listener
