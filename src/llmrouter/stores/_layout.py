"""How the disk store lies on disk: the keys and values of its rows.

    q<page>-<slot>-…   a segment: the bodies of one or more requests that were enqueued together;
                       everything that planning needs stands in the key, so bodies stay unread
    d<page>            a state table: 8 bytes for each slot of a page
    b<number>          a batch and the slots that were claimed into it
    c<number>          nothing: a batch of the API's that ended has that number
    a<number>          earlier attempts of the requests of a batch, when there are any; never changed
    i<batch id>        the number of a batch, by our id
    p<batch id>        the number of a batch, by the API's id
    o<number>          a chunk of the outcome log
    g<hash>            a group; content-addressed, so any process may write it
    k<hash>            an idempotency key
    t<day>             what call sites sent live on a day (UTC), added up
    m<fence>-<count>   a marker of the engine's in the order of insertion
    .<name>            single rows: meta, lease, report, open, counters, tally, flush, paused

Text is UTF-8, instants are microseconds since 1970 (UTC). Ids grow with time, so that new rows land
at the end of SQLite's index whatever the size of the backlog.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

from llmrouter.domain.requests import REQUEST_ID, Group, Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llmrouter.domain.requests import QueuedRequest

SCHEMA = 3

SEGMENT_BYTES = 1_000_000
"""Bodies that arrive together share a row up to about this size: it bounds what one read loads."""

META, LEASE, REPORT, OPEN, COUNTERS = ".meta", ".lease", ".report", ".open", ".counters"
FLUSH, PAUSED, TALLY = ".flush", ".paused", ".tally"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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
ACCEPTED_OF_KEY = slice(26, 44)
DEADLINE_OF_KEY = slice(45, 63)
GROUP_OF_KEY = slice(-18, -2)
"""Where a segment's key says it: there may be a million of them, so not each is taken apart."""


def key_instant(instant: datetime) -> str:
    """An instant as a segment's key says it: they compare as text."""
    return f"{to_us(instant):018d}"


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


def segment_bodies(value: bytes, places: Sequence[int]) -> Iterator[bytes]:
    """The bodies of the requests at some places."""
    header, end = _header(value)
    sizes: list[int] = header["sizes"] if header else [len(value) - end]
    ends = list(accumulate(sizes, initial=end))
    return (value[ends[place] : ends[place + 1]] for place in places)


def _header(value: bytes) -> tuple[dict[str, Any], int]:
    end = value.index(b"\n") + 1
    return (json.loads(value[:end]) if end > 1 else {}), end


def slots_by_page(request_ids: Iterable[str]) -> dict[str, list[int]]:
    """Pages and sorted slots of request ids, each once; other texts are left out."""
    pages: dict[str, list[int]] = {}
    for request_id in sorted(set(request_ids)):
        if REQUEST_ID.fullmatch(request_id):
            pages.setdefault(request_id[4:24], []).append(int(request_id[24:]))
    return pages


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
