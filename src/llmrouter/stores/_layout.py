"""How the disk store lies on disk: the keys and values of its rows.

    q<page>-<slot>-…   a segment: the bodies of one or more requests that were enqueued together;
                       everything that planning needs stands in the key, so bodies stay unread
    d<page>            a state table: 8 bytes for each slot of a page
    b<number>          a batch and the slots that were claimed into it
    o<number>          a chunk of the outcome log
    g<hash>            a group; content-addressed, so any process may write it
    k<hash>            an idempotency key
    m<fence>-<count>   a marker of the engine's in the order of insertion
    .<name>            single rows: meta, lease, open, counters, flush

Text is UTF-8, instants are microseconds since 1970 (UTC). Ids grow with time, so that new rows land
at the end of SQLite's index whatever the size of the backlog.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.requests import PAGE_SLOTS, Group, Lane, Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.domain.requests import QueuedRequest

SCHEMA = 1

SEGMENT_BYTES = 1_000_000
"""Bodies that arrive together share a row up to about this size: it bounds what one read loads."""

META, LEASE, OPEN, COUNTERS, FLUSH = ".meta", ".lease", ".open", ".counters", ".flush"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENTRY = struct.Struct("<BBHI")
ENTRY_BYTES = _ENTRY.size
TABLE_BYTES = PAGE_SLOTS * ENTRY_BYTES

QUEUED, CLAIMED, SETTLED = 0, 1, 2


def to_us(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """The instant, aware, UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def dump(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What the key of a segment says."""

    key: str
    page: str
    start: int
    """Its first slot; the others follow without a gap."""
    accepted_us: int
    deadline_us: int
    count: int
    body_bytes: int
    group_hash: str
    keyed: bool
    """Whether any of its requests has an idempotency key: then they stand in its value."""

    @property
    def stop(self) -> int:
        """The slot after its last one."""
        return self.start + self.count


def segment_key(first: QueuedRequest, count: int, body_bytes: int, group_hash: str, *, keyed: bool) -> str:
    """The key of the segment that begins with a request."""
    page, start = first.request_id[4:24], first.request_id[24:]
    accepted, deadline = to_us(first.accepted_at), to_us(first.deadline_at)
    flag = "k" if keyed else "p"
    return f"q{page}-{start}-{accepted:018d}-{deadline:018d}-{count}-{body_bytes}-{group_hash}-{flag}"


PAGE_OF_KEY = slice(1, 21)
START_OF_KEY = slice(22, 25)
DEADLINE_OF_KEY = slice(45, 63)
"""Where a segment's key says it: there may be a million of them, so not each is taken apart."""


def read_segment_key(key: str) -> Segment:
    """The parts of a segment's key."""
    page, start, accepted_us, deadline_us, count, body_bytes, group_hash, flag = key[1:].split("-")
    return Segment(
        key=key,
        page=page,
        start=int(start),
        accepted_us=int(accepted_us),
        deadline_us=int(deadline_us),
        count=int(count),
        body_bytes=int(body_bytes),
        group_hash=group_hash,
        keyed=flag == "k",
    )


def plan_segments(
    requests: Sequence[QueuedRequest], hash_of: Callable[[Group], str]
) -> Iterator[tuple[str, bytes]]:
    """Keys and values of the rows that hold these requests: neighbours share one where they can."""
    place = 0
    while place < len(requests):
        first = requests[place]
        members, body_bytes = [first], len(first.body)
        for request in islice(requests, place + 1, None):
            if body_bytes >= SEGMENT_BYTES or not _follows(first, len(members), request):
                break
            members.append(request)
            body_bytes += len(request.body)
        keys = [request.key for request in members]
        keyed = any(key is not None for key in keys)
        yield (
            segment_key(first, len(members), body_bytes, hash_of(first.group), keyed=keyed),
            segment_value([request.body for request in members], keys if keyed else None),
        )
        place += len(members)


def single_segment(request: QueuedRequest, group_hash: str) -> tuple[str, bytes]:
    """Key and value of the row that holds one request without an idempotency key."""
    key = segment_key(request, 1, len(request.body), group_hash, keyed=False)
    return key, segment_value([request.body], None)


def _follows(first: QueuedRequest, distance: int, other: QueuedRequest) -> bool:
    """Whether a request may share the row of an earlier one that is some slots before it."""
    return (
        other.request_id[:24] == first.request_id[:24]
        and int(other.request_id[24:]) == int(first.request_id[24:]) + distance
        and other.accepted_at == first.accepted_at
        and other.deadline_at == first.deadline_at
        and (other.group is first.group or other.group == first.group)
    )


def segment_value(bodies: Sequence[bytes], keys: Sequence[str | None] | None) -> bytes:
    """The value of a segment: a line that says where each body ends and what its key is, then the bodies."""
    if len(bodies) == 1 and keys is None:
        return b"\n" + bodies[0]
    header: dict[str, Any] = {"sizes": [len(body) for body in bodies]}
    if keys is not None:
        header["keys"] = keys
    return dump(header) + b"\n" + b"".join(bodies)


def segment_sizes(value: bytes) -> list[int]:
    """Bytes of each body."""
    header, end = _header(value)
    return header["sizes"] if header else [len(value) - end]


def segment_keys(value: bytes) -> list[str | None]:
    """The idempotency key of each request."""
    header, _ = _header(value)
    keys: list[str | None] = header.get("keys") or [None] * len(header.get("sizes", (1,)))
    return keys


def segment_bodies(value: bytes, first: int, last: int) -> Iterator[bytes]:
    """The bodies of the requests from place ``first`` up to, not including, ``last``."""
    header, end = _header(value)
    if not header:
        yield value[end:]
        return
    for place, size in enumerate(header["sizes"]):
        if place >= last:
            return
        if place >= first:
            yield value[end : end + size]
        end += size


def _header(value: bytes) -> tuple[dict[str, Any], int]:
    end = value.index(b"\n") + 1
    return (json.loads(value[:end]) if end > 1 else {}), end


class Table:
    """The states of a page's requests."""

    __slots__ = ("raw",)

    def __init__(self, stored: bytes | None) -> None:
        self.raw = bytearray(stored or TABLE_BYTES)

    def get(self, slot: int) -> tuple[int, int, int, int]:
        """State, earlier attempts, place in the chunk, number of the batch or chunk."""
        return _ENTRY.unpack_from(self.raw, slot * ENTRY_BYTES)

    def put(self, slot: int, state: int, attempts: int, place: int, number: int) -> None:
        """Writes one slot."""
        _ENTRY.pack_into(self.raw, slot * ENTRY_BYTES, state, attempts, place, number)

    def states(self, start: int, stop: int) -> bytes:
        """The states of some slots, a byte each."""
        return bytes(self.raw[start * ENTRY_BYTES : stop * ENTRY_BYTES : ENTRY_BYTES])

    def attempts(self, start: int, stop: int) -> bytes:
        """The earlier attempts of some slots, a byte each."""
        return bytes(self.raw[start * ENTRY_BYTES + 1 : stop * ENTRY_BYTES : ENTRY_BYTES])

    def claim(self, start: int, stop: int, number: int) -> None:
        """Puts some slots into a batch; their attempts stay."""
        if any(self.attempts(start, stop)):
            for slot in range(start, stop):
                self.put(slot, CLAIMED, self.get(slot)[1], 0, number)
        else:
            entry = _ENTRY.pack(CLAIMED, 0, 0, number)
            self.raw[start * ENTRY_BYTES : stop * ENTRY_BYTES] = entry * (stop - start)


def group_row(group: Group) -> tuple[str, bytes]:
    """Hash and value of a group."""
    value = dump(asdict(group))
    return hashlib.blake2b(value, digest_size=8).hexdigest(), value


def read_group(value: bytes) -> Group:
    """The group of a row."""
    fields = json.loads(value)
    return Group(**{**fields, "lane": read_lane(fields["lane"])})


def read_lane(fields: dict[str, Any]) -> Lane:
    """The lane of its JSON."""
    return Lane(**{**fields, "headers": tuple((name, text) for name, text in fields["headers"])})


def body_hash(body: bytes) -> str:
    """Tells bodies apart."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def key_value(request: QueuedRequest) -> bytes:
    """The value of an idempotency key."""
    return dump(
        {
            "request_id": request.request_id,
            "latency": request.group.latency,
            "accepted": to_us(request.accepted_at),
            "deadline": to_us(request.deadline_at),
            "body": body_hash(request.body),
        }
    )


def key_row(key: str) -> str:
    """The row key of an idempotency key; hashed, since it can be of any length."""
    return "k" + hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


Ranges = dict[str, list[list[int]]]
"""Page to ``[start, stop)`` slots."""

_INSTANTS = ("claimed_at", "created_at", "expires_at", "ended_at")


def batch_row(batch: Batch, ranges: Ranges) -> bytes:
    """The value of a batch."""
    fields = asdict(batch)
    for name in _INSTANTS:
        fields[name] = None if fields[name] is None else to_us(fields[name])
    return dump({**fields, "ranges": ranges})


def read_batch(value: bytes) -> tuple[Batch, Ranges]:
    """The batch of a row, and what was claimed into it."""
    fields = json.loads(value)
    ranges: Ranges = fields.pop("ranges")
    for name in _INSTANTS:
        fields[name] = None if fields[name] is None else from_us(fields[name])
    return Batch(
        **{**fields, "lane": read_lane(fields["lane"]), "state": BatchState(fields["state"])}
    ), ranges


def chunk_row(outcomes: Sequence[Outcome]) -> bytes:
    """The value of a chunk of outcomes."""
    rows = [
        (
            outcome.request_id,
            outcome.kind,
            outcome.latency,
            to_us(outcome.accepted_at),
            to_us(outcome.deadline_at),
            to_us(outcome.settled_at),
            outcome.attempts,
            outcome.batch_id,
            outcome.key,
            len(outcome.raw),
        )
        for outcome in outcomes
    ]
    return b"".join([dump(rows), b"\n", *(outcome.raw for outcome in outcomes)])


class Chunk:
    """A chunk of outcomes, whose parts are made when they are asked for."""

    def __init__(self, value: bytes) -> None:
        end = value.index(b"\n") + 1
        self._value = value
        self._rows: list[tuple[Any, ...]] = json.loads(value[:end])
        self._starts = [end]
        for row in self._rows:
            self._starts.append(self._starts[-1] + row[9])

    def all(self) -> list[Outcome]:
        """All of them, in the order of settling."""
        return [self[place] for place in range(len(self._rows))]

    def __getitem__(self, place: int) -> Outcome:
        row = self._rows[place]
        return Outcome(
            request_id=row[0],
            kind=OutcomeKind(row[1]),
            latency=row[2],
            accepted_at=from_us(row[3]),
            deadline_at=from_us(row[4]),
            settled_at=from_us(row[5]),
            attempts=row[6],
            batch_id=row[7],
            key=row[8],
            raw=self._value[self._starts[place] : self._starts[place + 1]],
        )
