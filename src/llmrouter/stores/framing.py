"""The JSON around the request bodies of a batch: one place for every store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.batches import custom_id, wire_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PIECE_BYTES = 256 * 1024
"""How much is joined into one piece, so that many small bodies do not become many small writes."""


class FramedBody:
    """The body of a batch create, framed anew each time it is iterated.

    What is posted is the stored bytes: they are joined, never parsed. Memory holds one piece and
    whatever ``bodies`` holds, however large the batch is.

    Attributes:
        content_length: Bytes of all pieces together.
    """

    def __init__(
        self,
        *,
        nonce: str,
        request_count: int,
        body_bytes: int,
        bodies: Callable[[], Iterable[tuple[str, bytes]]],
    ) -> None:
        """Makes a body; nothing is read before it is iterated.

        Args:
            nonce: The batch's nonce.
            request_count: How many pairs ``bodies`` yields.
            body_bytes: Sum of the bodies that it yields.
            bodies: Yields request ids and bodies, from the start each time it is called.
        """
        self.content_length = wire_bytes(request_count, body_bytes)
        self._nonce = nonce
        self._bodies = bodies

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of about `PIECE_BYTES`; a body that is larger is a piece of its own, not copied."""
        gathered: list[bytes] = []
        size = 0
        for part in self._parts():
            if gathered and size + len(part) > PIECE_BYTES:
                yield b"".join(gathered)
                gathered.clear()
                size = 0
            gathered.append(part)
            size += len(part)
        yield b"".join(gathered)

    def _parts(self) -> Iterator[bytes]:
        yield b'{"requests":['
        comma = ""
        for request_id, body in self._bodies():
            yield f'{comma}{{"custom_id":"{custom_id(request_id, self._nonce)}","params":'.encode()
            yield body
            yield b"}"
            comma = ","
        yield b"]}"
