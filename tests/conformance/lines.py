"""Whether a line of the backlog says what is so, however a store cuts it into cohorts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from conformance.scene import line_of
from llmrouter.domain.scheduling import group_span

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import timedelta

    from llmrouter.domain.requests import QueuedRequest, Waiting


def check_line(line: Waiting, requests: Collection[QueuedRequest]) -> None:
    """A line of the backlog says of its requests what is so, however it cuts them into cohorts."""
    deadlines = [request.deadline_at for request in requests]
    assert {(r.group.lane, r.group.latency, r.group.model) for r in requests} == {line_of(line)}
    assert line.request_count == len(requests)
    assert line.body_bytes == sum(len(request.body) for request in requests)
    assert line.earliest_deadline_at == min(deadlines)
    assert line.window in windows_at(requests, line.earliest_deadline_at)
    prefixes = Counter(request.group.prefix for request in requests)
    assert dict(line.prefixes) == {prefix: count for prefix, count in prefixes.items() if prefix}
    lowest = datetime.min.replace(tzinfo=UTC)
    for cohort in line.cohorts:
        inside = [request for request in requests if lowest <= request.deadline_at < cohort.before]
        assert cohort.request_count == len(inside) > 0
        assert cohort.body_bytes == sum(len(request.body) for request in inside)
        assert cohort.deadline_at == min(request.deadline_at for request in inside)
        assert cohort.window in windows_at(inside, cohort.deadline_at)
        span = max(request.deadline_at for request in inside) - cohort.deadline_at
        assert span <= max(group_span(window_of(request)) for request in inside) or not span
        lowest = cohort.before
    assert lowest > max(deadlines)


def window_of(request: QueuedRequest) -> timedelta:
    """From its acceptance to its deadline."""
    return request.deadline_at - request.accepted_at


def windows_at(requests: Iterable[QueuedRequest], deadline_at: datetime) -> set[timedelta]:
    """The windows of those that are due at an instant."""
    return {window_of(request) for request in requests if request.deadline_at == deadline_at}
