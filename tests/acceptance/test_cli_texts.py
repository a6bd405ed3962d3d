from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import StringIO

import anthropic
import httpx2
import pytest
from rich.console import Console

from llmrouter.cli.console import OneLine
from llmrouter.cli.failures import explain
from llmrouter.cli.outcomes import finished_of, result_of
from llmrouter.cli.status_text import show_status
from llmrouter.cli.tables import summary_table
from llmrouter.domain.batches import Answer, BatchState
from llmrouter.domain.blocks import Hold, Reason
from llmrouter.domain.ledger import MissCause
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.reporting import EngineReport, LiveReport, Uninsured
from llmrouter.domain.requests import Outcome, OutcomeKind, Route
from llmrouter.errors import InvalidRequestError, StoreBusyError
from llmrouter.futures import MessageFuture
from llmrouter.reports.formats import format_bytes, format_count, format_share, format_span, format_usd
from llmrouter.reports.status import describe
from llmrouter.reports.summary import Finished, Tally
from llmrouter.stores.memory import MemoryStore
from support.clocks import START
from support.requests import MODEL, OTHER_LANE, queued


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0034, "3 ms"),
        (1.25, "1.2 s"),
        (42, "42 s"),
        (90, "2 min"),
        (5_000, "83 min"),
        (9_000, "2.5 h"),
        (200_000, "2.3 d"),
    ],
)
def test_spans_have_one_unit(seconds: float, text: str) -> None:
    """The one that a person would choose."""
    assert format_span(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0"),
        ("0.00001234", "$0.000012"),
        ("0.0123", "$0.0123"),
        ("234.5", "$234.50"),
        ("1234.5", "$1,234"),
    ],
)
def test_sums_have_the_digits_that_count(amount: str, text: str) -> None:
    """A cent is much for a single request, and nothing in thousands."""
    assert format_usd(Decimal(amount)) == text


def test_counts_shares_and_sizes() -> None:
    """Plurals, separators and percent, as they are written."""
    assert [format_count(number, "batch", "batches") for number in (1, 2_000)] == ["1 batch", "2,000 batches"]
    assert format_share(Decimal("0.456")) == "46 %"
    assert [format_bytes(size) for size in (540, 1_500, 33_000_000)] == ["540 B", "1.5 kB", "33 MB"]


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (InvalidRequestError("model", "is missing"), ("model: is missing", 2)),
        (StoreBusyError("locked\nfor long"), ("locked for long", 1)),
        (FileNotFoundError(2, "No such file", "x"), ("x: No such file", 1)),
        (json.JSONDecodeError("Expecting value", "", 0), ("Expecting value: line 1 column 1 (char 0)", 1)),
        (
            anthropic.APIConnectionError(request=httpx2.Request("GET", "http://x")),
            ("Connection error.", 1),
        ),
        (ZeroDivisionError("a bug"), None),
    ],
)
def test_what_goes_wrong_is_a_line_and_a_code(error: Exception, explained: tuple[str, int] | None) -> None:
    """What nobody foresaw is a bug, and keeps its traceback."""
    assert explain(error) == explained


def test_a_log_record_is_one_line() -> None:
    """With what it is about; of an exception its name and text, without the traceback."""
    error = ValueError("two\nlines")
    record = logging.makeLogRecord(
        {"msg": "poll failed", "levelname": "ERROR", "batch_id": "b1", "exc_info": (ValueError, error, None)}
    )
    assert OneLine(timed=False).format(record) == "error: poll failed (ValueError: two lines) batch_id=b1"


def test_the_table_fits_a_terminal() -> None:
    """80 columns hold it, also for an expensive job."""
    tally = Tally()
    for latency in ("real-time", "hourly", "weekly"):
        tally.add(
            Finished(
                latency=latency,
                batch_id=None if latency == "real-time" else f"batch of {latency}",
                error_type=None,
                waited=timedelta(minutes=80),
                on_time=None if latency == "real-time" else True,
                paid_usd=Decimal("12345.67"),
                list_usd=Decimal("24691.34"),
            )
        )
    screen = StringIO()
    Console(file=screen, width=80).print(summary_table(tally.rows(), tally.total()))
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "$37,037" in shown


HOUR = timedelta(hours=1)
BUSY = LiveReport(
    requests_per_minute=250.0,
    going=2_000,
    under_way=32,
    storm=True,
    hold=None,
    hold_until=None,
    waits_until=START + HOUR,
    uninsured=(Uninsured(latency="daily", model=MODEL, request_count=500, deadline_at=START + HOUR),),
)


def answer_to(request_id: str) -> Answer:
    return Answer(
        request_id=request_id, kind=OutcomeKind.SUCCEEDED, raw=b"{}", retry=False, paid_usd=Decimal("0.5")
    )


def status_text(
    store: MemoryStore, capsys: pytest.CaptureFixture[str], live: LiveReport | None = None
) -> list[str]:
    """The lines of a status half an hour later."""
    own = EngineReport(at=START, live=live)
    found = describe(
        store,
        START + HOUR / 2,
        working=True,
        serves=lambda _: True,
        carries=lambda _: True,
        own=own,
        budgets={},
    )
    show_status("memory://", found, has_key=False)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_what_goes_live_is_shown_apart_from_batches(capsys: pytest.CaptureFixture[str]) -> None:
    """By class and reason, with what came of it, within 80 columns; a batch that is raced says so."""
    store = MemoryStore()
    lease = store.acquire_lease("host:7:ab", START, 2 * HOUR)
    assert lease is not None
    waiting = [queued(latency="hourly", window=HOUR) for _ in range(3)]
    store.enqueue([*waiting, queued(lane=OTHER_LANE)])
    first, second = store.waiting()
    batch = store.claim(lease, second, BatchLimits(), batch_id="batch_1", nonce="n" * 10, now=START)
    assert batch is not None
    store.record_created(replace(batch, provider_batch_id="msgbatch_" + "x" * 24, created_at=START))
    for line, name in ((first, "batch_2"), (None, "batch_3")):
        options = {"reason": Reason.LATEST_START, "insured": True, "now": START}
        if line is None:
            store.escalate_batch(lease, "batch_1", into=name, **options)
        else:
            store.escalate_waiting(lease, line, START + 2 * HOUR, batch_id=name, **options)
    store.answer([answer_to(waiting[0].request_id)] * 2, START)
    store.answer([answer_to(waiting[1].request_id)], START + 2 * HOUR)
    lines = status_text(store, capsys, BUSY)
    words = [line.split() for line in lines]

    assert lines[1] == "0 requests queued, 0 in 1 open batch, 4 going live"
    assert ["raced", "daily", "1"] in [line[:3] for line in words]
    assert ["hourly", "3", "30", "min", "ago", "in", "30", "min"] in [line[:8] for line in words]
    assert ["hourly", "0", "2", "1", "1", "0", "$1.50", "1", "live", "API"] in words
    told = " ".join(" ".join(lines).split())
    assert "2,000 requests have no live answer yet; 32 calls are under way, at about 250 a minute" in told
    assert "No batch comes back at present: what has a short window goes live early" in told
    assert "The API asks to wait with live calls for 30 min more." in told
    assert "cannot be insured: 250 live requests a minute do not suffice" in told
    assert max(map(len, lines)) <= 80


def test_what_goes_live_for_one_reason_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the first deadline of all, and since the first of them went."""
    store = MemoryStore()
    lease = store.acquire_lease("host:7:ab", START, 2 * HOUR)
    assert lease is not None
    for number, minutes in enumerate((50, 40, 60)):
        store.enqueue([queued(window=timedelta(minutes=minutes))])
        store.escalate_waiting(
            lease,
            store.waiting()[0],
            START + HOUR * 2,
            batch_id=f"batch_{number}",
            reason=Reason.STORM,
            insured=True,
            now=START + timedelta(minutes=number),
        )
    words = [line.split() for line in status_text(store, capsys)]
    assert ["daily", "3", "30", "min", "ago", "in", "10", "min"] in [line[:8] for line in words]


def test_a_quiet_store_tells_nothing_of_live_calls(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither tables nor lines that would be empty."""
    store = MemoryStore()
    store.acquire_lease("host:7:ab", START, 2 * HOUR)
    quiet = replace(BUSY, going=0, under_way=0, storm=False, waits_until=None, uninsured=())
    assert len(status_text(store, capsys, quiet)) == 3


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (2, "90 % of your batches are back within 17 min, half within 5 min (so far a guess: 2 batches)"),
        (50, "90 % of your batches are back within 5 min, half within 5 min (50 batches)"),
    ],
)
def test_how_long_batches_take_is_a_line(count: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A few of them are no evidence yet."""
    store = MemoryStore()
    lease = store.acquire_lease("host:7:ab", START, 2 * HOUR)
    assert lease is not None
    for number in range(count):
        request = queued()
        store.enqueue([request])
        batch = store.claim(
            lease, store.waiting()[0], BatchLimits(), batch_id=f"batch_{number}", nonce="n" * 10, now=START
        )
        assert batch is not None
        flying = replace(batch, state=BatchState.IN_FLIGHT, provider_batch_id=f"m{number}", created_at=START)
        store.record_created(flying)
        store.settle(lease, batch.batch_id, [answer_to(request.request_id)], START)
        store.finish(lease, replace(flying, ended_at=START + HOUR / 12))
    assert line in " ".join(status_text(store, capsys))


MESSAGE = {"model": MODEL, "usage": {"input_tokens": 1_000_000, "output_tokens": 0}}
OUTCOME = Outcome(
    request_id="req_1",
    kind=OutcomeKind.SUCCEEDED,
    latency="hourly",
    accepted_at=START,
    deadline_at=START + HOUR,
    settled_at=START + HOUR / 2,
    attempts=1,
    batch_id="batch_1",
    key=None,
    raw=json.dumps({"custom_id": "req_1", "result": {"type": "succeeded", "message": MESSAGE}}).encode(),
)


class NoOwner:
    """Of a future that is done: it asks nothing."""

    def cancel(self, request_id: str) -> bool:
        raise AssertionError(request_id)

    def state(self, request_id: str) -> str:
        raise AssertionError(request_id)

    def decode(self, outcome: Outcome) -> Exception:
        raise AssertionError(outcome)

    def pin(self, future: MessageFuture) -> None:
        raise AssertionError(future)


def entry_of(outcome: Outcome) -> Finished:
    future = MessageFuture(NoOwner(), request_id="req_1", key=None, latency="hourly", deadline=None)
    future.outcome = outcome
    return finished_of(future, result_of(future), timedelta(0))


def test_what_went_live_costs_the_full_price() -> None:
    """A batch's answer costs half of it; both would have cost the same live."""
    batched = entry_of(OUTCOME)
    live = entry_of(replace(OUTCOME, batch_id=None, attempts=0, route=Route.ESCALATED))

    assert (batched.escalated, live.escalated) == (False, True)
    assert batched.paid_usd is not None
    assert live.paid_usd == live.list_usd == batched.list_usd == 2 * batched.paid_usd


def test_a_missed_deadline_has_its_cause() -> None:
    """As the ledger counts it."""
    late = replace(OUTCOME, settled_at=START + 2 * HOUR, reason=Reason(Hold.BUDGET))
    assert (entry_of(late).on_time, entry_of(late).missed) == (False, MissCause.BUDGET)
    assert entry_of(OUTCOME).missed is None
