"""Stores of other versions. The rows of older schemas stand here as they were written: never change them."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from conformance.scene import answered
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import OutcomeKind, RequestState, Route
from llmrouter.errors import StoreUnusableError
from llmrouter.stores._cache import LockedCache
from llmrouter.stores._layout import from_us
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "01kh5vq7a0abcdefghjk"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
ACCEPTED, DUE = 1_795_176_000_000_000, 1_795_262_400_000_000
GROUP = "0011223344556677"
LANE = {
    "lane_id": "lane-a",
    "base_url": "https://api.anthropic.com",
    "credential": "fingerprint",
    "headers": [["anthropic-version", "2026-10-21"]],
    "endpoint": "/v1/messages/batches",
}


def request_id(slot: int) -> str:
    """An id of the page."""
    return f"req_{PAGE}{slot:03d}"


def batch_row(number: int, state: str, provider_batch_id: str | None, ranges: list[list[int]]) -> bytes:
    """A batch as schema 1 wrote it."""
    fields: dict[str, Any] = {
        "batch_id": f"batch-{number}",
        "lane": LANE,
        "latency": "daily",
        "nonce": "abcdefghij",
        "state": state,
        "request_count": sum(stop - start for start, stop in ranges),
        "body_bytes": 2,
        "claimed_at": ACCEPTED + number,
        "fence": 1,
        "provider_batch_id": provider_batch_id,
        "created_at": ACCEPTED if provider_batch_id else None,
        "expires_at": DUE if provider_batch_id else None,
        "ended_at": ACCEPTED if state == "ended" else None,
        "attempts": {},
        "ranges": {PAGE: ranges},
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def schema_1() -> dict[str, bytes]:
    """A store with a queued, a claimed, a released, an ended and two settled requests."""
    table = bytearray(8000)
    for slot, entry in {0: (2, 0, 0, 0), 1: (2, 0, 1, 0), 2: (1, 1, 0, 2), 3: (0, 1, 0, 0)}.items():
        struct.pack_into("<BBHI", table, slot * 8, *entry)
    outcomes = [
        [request_id(slot), "succeeded", "daily", ACCEPTED, DUE, ACCEPTED + 9, 1, "batch-1", key, 4]
        for slot, key in ((0, "job-0"), (1, None))
    ]
    segment = f"q{PAGE}-002-{ACCEPTED:018d}-{DUE:018d}-3-6-{GROUP}-p"
    return {
        ".meta": json.dumps({"schema": 1, "secret": "ab" * 32}).encode(),
        f"g{GROUP}": json.dumps({"lane": LANE, "latency": "daily", "site": "a:b", "model": "m"}).encode(),
        segment: b'{"sizes":[2,2,2]}\n{}[]""',
        f"d{PAGE}": bytes(table),
        "b0000000001": batch_row(1, "ended", "msgbatch_1", [[0, 2]]),
        "b0000000002": batch_row(2, "in_flight", "msgbatch_2", [[2, 3]]),
        "b0000000003": batch_row(3, "released", None, [[3, 4]]),
        "o0000000000": json.dumps(outcomes).encode() + b"\nabcdefgh",
        ".open": b'{"batch-2":2}',
        ".counters": b'{"batches":3,"chunks":1,"cancels":0}',
        ".lease": b'{"holder":"old:1:x","fence":7,"until":0,"locked":false}',
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of schema 1."""
    write_rows(tmp_path / "queue", schema_1())
    return tmp_path / "queue"


def write_rows(folder: Path, rows: dict[str, bytes]) -> None:
    """Writes rows as they are."""
    cache = LockedCache(folder)
    with cache.write(synced=False):
        for key, value in rows.items():
            cache.set(key, value)
    cache.close()


def test_a_store_of_schema_1_goes_on(folder: Path) -> None:
    """Requests, outcomes, batches and fences are what they were."""
    store = DiskStore(folder)
    assert store.secret() == bytes.fromhex("ab" * 32)
    views = [store.find(request_id(slot)) for slot in range(6)]
    assert [view and view.state for view in views] == [
        *[RequestState.SETTLED] * 2,
        RequestState.CLAIMED,
        *[RequestState.QUEUED] * 2,
        None,
    ]
    assert [(outcome.kind, outcome.raw) for outcome in store.outcomes(map(request_id, range(6)))] == [  # type: ignore[arg-type]
        (OutcomeKind.SUCCEEDED, b"abcd"),
        (OutcomeKind.SUCCEEDED, b"efgh"),
    ]
    (open_batch,) = store.open_batches()
    assert open_batch.state is BatchState.IN_FLIGHT
    assert (open_batch.candidates, open_batch.cancel_wanted, open_batch.in_doubt_at) == ((), False, None)
    lease = store.acquire_lease("new", NOW, timedelta(seconds=30))
    assert lease is not None
    assert lease.fence == 8
    (line,) = store.waiting()
    batch = store.claim(lease, line, BatchLimits(), batch_id="batch-4", nonce="0123456789", now=NOW)
    assert batch is not None
    assert (batch.request_count, batch.attempts) == (2, {request_id(3): 1})
    assert b"".join(store.body(batch)).endswith(b'"params":""}]}')
    store.close()


def test_its_batches_are_found_by_both_ids(folder: Path) -> None:
    """Open and closed, though schema 1 had no rows for that; and after another opening."""
    for _ in range(2):
        store = DiskStore(folder)
        found = {name: store.find_batch(name) for name in ("batch-1", "msgbatch_1", "msgbatch_2", "batch-3")}
        assert [batch and batch.batch_id for batch in found.values()] == [
            "batch-1",
            "batch-1",
            "batch-2",
            "batch-3",
        ]
        assert store.known_batches(["msgbatch_1", "msgbatch_2", "batch-1", "x"]) == {
            "msgbatch_1",
            "msgbatch_2",
        }
        store.close()
    cache = LockedCache(folder)
    assert json.loads(cache.get(".meta") or b"")["schema"] == 3
    cache.close()


def test_its_batches_keep_their_attempts(tmp_path: Path) -> None:
    """They stand in the batch's own row, and stay there when it is written again."""
    rows = schema_1()
    fields = json.loads(rows["b0000000002"])
    rows["b0000000002"] = json.dumps({**fields, "attempts": {request_id(2): 4}}).encode()
    write_rows(tmp_path / "queue", rows)
    for state in ("in_flight", "ended"):
        store = DiskStore(tmp_path / "queue")
        lease = store.acquire_lease("new", NOW, timedelta(seconds=30))
        batch = store.find_batch("batch-2")
        assert lease is not None
        assert batch is not None
        assert (batch.state, batch.attempts) == (BatchState.IN_FLIGHT, {request_id(2): 4})
        if state == "ended":
            store.settle(lease, "batch-2", [answered(request_id(2))], NOW)
            store.finish(lease, batch)
        else:
            store.update_batch(lease, batch)
        store.close()
    store = DiskStore(tmp_path / "queue")
    ended = store.find_batch("batch-2")
    assert ended is not None
    assert (ended.state, ended.attempts) == (BatchState.ENDED, {request_id(2): 4})
    store.close()


def schema_2() -> dict[str, bytes]:
    """The same as schema 2 wrote it: batches say more, and are found by both ids."""
    rows = schema_1()
    rows[".meta"] = json.dumps({"schema": 2, "secret": "ab" * 32}).encode()
    later = {
        "in_doubt_at": None,
        "candidates": [],
        "cancel_wanted": False,
        "cancel_asked_at": ACCEPTED + 5,
        "given_up_at": ACCEPTED + 4,
    }
    for number, provider_batch_id in ((1, "msgbatch_1"), (2, "msgbatch_2"), (3, None)):
        key = f"b{number:010d}"
        rows[key] = json.dumps({**json.loads(rows[key]), **later}).encode()
        rows[f"ibatch-{number}"] = b"%d" % number
        if provider_batch_id is not None:
            rows[f"p{provider_batch_id}"] = b"%d" % number
    return rows


def test_a_store_of_schema_2_goes_on(tmp_path: Path) -> None:
    """What its rows do not say has its default, and its requests can go live."""
    write_rows(tmp_path / "queue", schema_2())
    store = DiskStore(tmp_path / "queue")
    (batch,) = store.open_batches()
    assert batch.cancel_asked_at == from_us(ACCEPTED + 5)
    assert (batch.model, batch.deadline_at, batch.window, batch.reason) == ("", None, None, None)
    assert (batch.insured, batch.recalled_at, batch.escalated_at, batch.raced) == (True, None, None, None)
    outcome, _ = store.outcomes([request_id(0), request_id(1)])
    assert (outcome.route, outcome.reason, outcome.insured) == (Route.BATCH, None, True)
    assert [ended.batch_id for ended in store.closed_batches(5)] == ["batch-1"]
    assert store.tally() == {}
    (line,) = store.waiting()
    assert (line.model, line.request_count, line.window) == ("m", 2, timedelta(days=1))
    assert line.prefixes == {}
    lease = store.acquire_lease("new", NOW, timedelta(seconds=30))
    assert lease is not None
    how = {"reason": Reason.STORM, "insured": True, "now": NOW}
    new = store.escalate_batch(lease, "batch-2", into="batch-4", **how)  # type: ignore[arg-type]
    assert new is not None
    assert (new.request_count, new.attempts) == (1, {request_id(2): 1})
    assert (new.deadline_at, new.window) == (from_us(DUE), timedelta(days=1))
    waiting = store.escalate_waiting(lease, line, from_us(DUE + 1), batch_id="batch-5", **how)  # type: ignore[arg-type]
    assert waiting is not None
    assert [call.body for call in store.begin_calls(lease, "batch-5", [request_id(3)])] == [b"[]"]
    store.close()


def test_rows_of_other_versions_stand_side_by_side(tmp_path: Path) -> None:
    """A chunk and a batch keep the form in which they were written; both are read."""
    write_rows(tmp_path / "queue", schema_2())
    for _ in range(2):
        store = DiskStore(tmp_path / "queue")
        lease = store.acquire_lease("new", NOW, timedelta(seconds=30))
        assert lease is not None
        if store.find(request_id(2)).state is not RequestState.SETTLED:  # type: ignore[union-attr]
            store.note_decision(lease, "batch-2", reason=Reason.BUDGET, insured=False, recalled_at=NOW)
            store.settle(lease, "batch-2", [answered(request_id(2))], NOW)
        outcomes = {one.request_id: one for one in store.outcomes([request_id(0), request_id(2)])}
        assert outcomes[request_id(0)].reason is None
        assert (outcomes[request_id(2)].reason, outcomes[request_id(2)].insured) == (Reason.BUDGET, False)
        (batch,) = store.open_batches()
        assert (batch.reason, batch.insured, batch.recalled_at) == (Reason.BUDGET, False, NOW)
        store.close()
    cache = LockedCache(tmp_path / "queue")
    assert json.loads(cache.get(".meta") or b"")["schema"] == 3
    cache.close()


def test_its_outcomes_and_batches_are_pruned(folder: Path) -> None:
    """Nothing of it is left that nobody needs."""
    store = DiskStore(folder)
    lease = store.acquire_lease("new", NOW, timedelta(seconds=30))
    assert lease is not None
    assert store.prune(lease, NOW, 100, undelivered=True) == 2
    assert store.prune(lease, NOW, 100, undelivered=True) == 0
    assert store.find_batch("batch-1") is None
    assert store.find_batch("batch-2") is not None
    assert store.find_batch("batch-3") is not None
    assert store.find(request_id(0)) is None
    store.close()


@pytest.mark.parametrize("schema", [4, 99])
def test_a_newer_store_is_refused(tmp_path: Path, schema: int) -> None:
    """And left as it is."""
    meta = json.dumps({"schema": schema, "secret": "ab" * 32}).encode()
    write_rows(tmp_path / "queue", {".meta": meta})
    with pytest.raises(StoreUnusableError, match=r"newer llmrouter.*upgrade"):
        DiskStore(tmp_path / "queue")
    cache = LockedCache(tmp_path / "queue")
    assert cache.get(".meta") == meta
    cache.close()


@pytest.mark.parametrize(
    "value", [None, b"", b"{}", b"\xff\xfe", b'{"schema":1}', b'{"schema":1,"secret":"zz"}']
)
def test_a_store_without_its_first_row_is_not_taken_for_new(tmp_path: Path, value: bytes | None) -> None:
    """Its rows are there, and must not be read with another secret."""
    rows = schema_1()
    del rows[".meta"]
    write_rows(tmp_path / "queue", rows if value is None else {**rows, ".meta": value})
    with pytest.raises(StoreUnusableError, match="llmrouter repair"):
        DiskStore(tmp_path / "queue")
