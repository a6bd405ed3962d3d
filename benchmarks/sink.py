"""A server that takes batches in and does no work on them: `python -m benchmarks.sink FOLDER [--keep]`.

It reads every body to its end, with Content-Length or in chunks, and answers as the API does. With
``--keep`` the bodies are kept in the folder. A batch is ended as soon as the folder has results for it.
"""

from __future__ import annotations

import json
import mmap
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmarks.harness import ROOT, in_process

if TYPE_CHECKING:
    from collections.abc import Iterator

_BATCHES = "/v1/messages/batches"
_ITEM = b'"custom_id":'
_CUSTOM_ID = re.compile(rb'"custom_id":"([^"]+)"')
_PIECE_BYTES = 1 << 20
_TEXT = "An answer is a few sentences long, as most answers are. " * 14


@contextmanager
def serve(folder: Path, *, keep: bool = False) -> Iterator[str]:
    """Runs the sink in a process of its own; gives its URL."""
    command = [sys.executable, "-m", "benchmarks.sink", str(folder), *(["--keep"] if keep else [])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def end_batch(folder: Path, provider_batch_id: str) -> int:
    """Writes results for a batch whose body was kept, shuffled; answers with the bytes of a line."""
    return in_process(write_results, folder=str(folder), provider_batch_id=provider_batch_id)


def write_results(folder: str, provider_batch_id: str) -> int:
    """See `end_batch`; in a process of its own, since it takes memory."""
    body, results = Path(folder) / f"{provider_batch_id}.json", Path(folder) / f"{provider_batch_id}.jsonl"
    with body.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        custom_ids = [found.decode() for found in _CUSTOM_ID.findall(mapped)]
    random.Random(1).shuffle(custom_ids)
    with results.with_suffix(".part").open("wb") as file:
        file.writelines(_result_line(place, custom_id) for place, custom_id in enumerate(custom_ids))
        size = file.tell()
    results.with_suffix(".part").rename(results)
    return size // len(custom_ids)


def _result_line(place: int, custom_id: str) -> bytes:
    message = {
        "id": f"msg_{place:024d}",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-6",
        "content": [{"type": "text", "text": _TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 250,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 200,
            "service_tier": "batch",
        },
    }
    line = {"custom_id": custom_id, "result": {"type": "succeeded", "message": message}}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


class _Sink(ThreadingHTTPServer):
    """Knows the batches that were created."""

    daemon_threads = True

    def __init__(self, folder: Path, keep: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.keep = keep
        self.numbers = count(1)
        self.created: dict[str, tuple[datetime, int]] = {}

    def describe(self, provider_batch_id: str) -> dict[str, Any]:
        """The API's JSON of a batch."""
        created_at, requests = self.created[provider_batch_id]
        ended = (self.folder / f"{provider_batch_id}.jsonl").exists()
        results_url = f"http://127.0.0.1:{self.server_port}{_BATCHES}/{provider_batch_id}/results"
        return {
            "id": provider_batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {
                "processing": 0 if ended else requests,
                "succeeded": requests if ended else 0,
                "errored": 0,
                "canceled": 0,
                "expired": 0,
            },
            "created_at": created_at.isoformat(),
            "expires_at": (created_at + timedelta(hours=24)).isoformat(),
            "ended_at": datetime.now(UTC).isoformat() if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": results_url if ended else None,
        }


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Sink

    def do_POST(self) -> None:
        provider_batch_id = f"msgbatch_{next(self.server.numbers):024d}"
        items = 0
        with self._body_file(provider_batch_id) as file:
            tail = b""
            for piece in self._pieces():
                items += (tail + piece[: len(_ITEM) - 1]).count(_ITEM) + piece.count(_ITEM)
                tail = piece[1 - len(_ITEM) :]
                file.write(piece)
        self.server.created[provider_batch_id] = (datetime.now(UTC), items)
        self._answer(self.server.describe(provider_batch_id))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix(_BATCHES).strip("/")
        provider_batch_id, _, rest = path.partition("/")
        if not provider_batch_id:
            data = [self.server.describe(one) for one in reversed(list(self.server.created))]
            ids = [batch["id"] for batch in data] or [None]
            self._answer({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})
        elif rest == "results":
            self._send_results(self.server.folder / f"{provider_batch_id}.jsonl")
        else:
            self._answer(self.server.describe(provider_batch_id))

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""

    def _body_file(self, provider_batch_id: str) -> BinaryIO:
        path = self.server.folder / f"{provider_batch_id}.json" if self.server.keep else Path("/dev/null")
        return path.open("wb", buffering=0)

    def _pieces(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the body ended early")
            left -= len(piece)
            yield piece

    def _answer(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self._head("application/json", len(body))
        self.wfile.write(body)

    def _send_results(self, path: Path) -> None:
        self._head("application/binary", path.stat().st_size)
        with path.open("rb") as file:
            self.connection.sendfile(file)

    def _head(self, content_type: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _main() -> None:
    folder, *options = sys.argv[1:]
    server = _Sink(Path(folder), keep="--keep" in options)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _main()
