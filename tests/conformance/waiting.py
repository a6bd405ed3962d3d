"""What a store promises of its backlog: lines, their sums, and how their deadlines lie."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.lines import check_line
from conformance.scene import (
    LANE,
    MODEL,
    MOMENT,
    OTHER_LANE,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    line_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]


class WaitingContract:
    """`waiting`: the backlog's sums."""

    def test_an_empty_store_has_no_backlog(self, scene: Scene) -> None:
        """No line without requests."""
        assert scene.store.waiting() == []

    def test_a_line_for_each_lane_class_and_model(self, scene: Scene, look: Look) -> None:
        """Sites and prefixes share a line; lanes, classes and models do not."""
        requests = [
            scene.request(size=50, due=timedelta(hours=9)),
            scene.request(size=60, due=timedelta(hours=7), site="b:b", prefix="p"),
            scene.request(size=70, due=timedelta(hours=8), model="other"),
            scene.request(size=80, lane=OTHER_LANE),
            scene.request(size=90, latency="hourly", due=timedelta(hours=1)),
        ]
        scene.enqueue(*requests)
        requests.append(scene.request(size=40, due=timedelta(hours=7) - MOMENT, prefix="p"))
        scene.enqueue(requests[-1])
        lines = {line_of(line): line for line in look().waiting()}
        assert len(lines) == len(look().waiting()) == 4
        check_line(lines[LANE, "daily", MODEL], [requests[place] for place in (0, 1, 5)])
        assert lines[LANE, "daily", MODEL].prefixes == {"p": 2}
        check_line(lines[LANE, "daily", "other"], [requests[2]])
        check_line(lines[OTHER_LANE, "daily", MODEL], [requests[3]])
        check_line(lines[LANE, "hourly", MODEL], [requests[4]])

    def test_a_line_is_cut_into_cohorts(self, scene: Scene, look: Look) -> None:
        """By deadline, none wider than the span of its widest window, whatever the call it came in."""
        order = random.Random(5).sample(range(60), 60)
        requests = [
            scene.request(
                size=60 + place,
                due=timedelta(hours=20, minutes=10 * place),
                accepted_at=START - timedelta(hours=place % 3),
                prefix="p" * (place % 3),
            )
            for place in order
        ]
        for start, stop in ((0, 7), (7, 8), (8, 60)):
            scene.enqueue(*requests[start:stop])
        (line,) = look().waiting()
        check_line(line, requests)
        assert len(line.cohorts) >= 8
        for hours in (21, 25, 29):
            gone = [one for one in requests if one.deadline_at < START + timedelta(hours=hours)]
            cancel_queued(scene.store, *(one.request_id for one in gone))
            requests = [one for one in requests if one not in gone]
            (line,) = look().waiting()
            check_line(line, requests)

    def test_equal_deadlines_are_in_one_cohort(self, scene: Scene, look: Look) -> None:
        """Whatever their windows: one that was accepted later has less time, and the same fate."""
        requests = [
            scene.request(due=timedelta(hours=hours), accepted_at=START + timedelta(hours=accepted))
            for hours, accepted in [(24, 0), (24, 23), (24.5, 24), (24.5, 0), (24.5, 24.4), (48, 0)]
        ]
        scene.enqueue(*requests[:3])
        scene.enqueue(*requests[3:])
        (line,) = look().waiting()
        check_line(line, requests)

    @pytest.mark.parametrize("prefixes", [[""], ["", "a", "", "b", "a"], ["a"] * 3])
    def test_prefixes_are_counted(self, scene: Scene, work: Work, prefixes: list[str]) -> None:
        """Those with none are left out, and those that have left."""
        requests = [scene.request(prefix=prefix, due=timedelta(hours=9)) for prefix in prefixes]
        scene.enqueue(*requests)
        (line,) = work().waiting()
        check_line(line, requests)
        gone = scene.inside(scene.claimed(max_requests=1))
        left = [request for request in requests if request.request_id not in gone]
        lines = work().waiting()
        assert len(lines) == bool(left)
        for line in lines:
            check_line(line, left)

    def test_what_leaves_and_comes_back_is_counted(self, scene: Scene, look: Look) -> None:
        """Claimed, canceled and settled requests do not wait; retried and released ones do."""
        sizes = [51, 52, 54, 58, 66, 82]
        request_ids = scene.enqueue(
            *(scene.request(size=size, due=timedelta(hours=hour)) for hour, size in enumerate(sizes, start=1))
        )

        def sums() -> list[tuple[int, int, timedelta]]:
            return [
                (line.request_count, line.body_bytes, line.earliest_deadline_at - START)
                for line in look().waiting()
            ]

        assert cancel_queued(scene.store, request_ids[0])
        assert sums() == [(5, 52 + 54 + 58 + 66 + 82, timedelta(hours=2))]
        batch = scene.claimed(max_requests=4)
        assert sums() == [(1, 82, timedelta(hours=6))]
        scene.settle(batch, [answered(request_ids[1]), again(request_ids[2])])
        assert sums() == [(2, 54 + 82, timedelta(hours=3))]
        scene.store.release(scene.lease, batch.batch_id)
        assert sums() == [(4, 54 + 58 + 66 + 82, timedelta(hours=3))]
        scene.settle_all(scene.claimed())
        assert sums() == []


__all__ = ["WaitingContract"]
