"""The contract of `Store`, a behavior a test. An adapter's tests are a subclass with two lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from conformance.calling import BeginCallsContract, EscalatingContract
from conformance.canceling import (
    DeliverContract,
    FindKeysContract,
    GiveUpContract,
    MassCancelContract,
    PauseContract,
)
from conformance.claiming import BodyContract, ClaimContract
from conformance.counting import ClosedBatchesContract, TallyContract
from conformance.crowd import CrowdContract
from conformance.escalating import EscalateBatchContract, EscalateWaitingContract, NoteDecisionContract
from conformance.intake import CancelContract, EnqueueContract, KeyContract
from conformance.pruning import PruneContract, PrunedBatchContract
from conformance.racing import AnswerContract, RaceContract
from conformance.recording import CreatedContract, FindBatchContract, InFlightContract
from conformance.reporting import EngineContract
from conformance.running import CloseContract, FlushRequestContract, LeaseContract, SweepContract
from conformance.runs import RunsContract
from conformance.scene import Scene
from conformance.settling import BatchContract, LogContract, OutcomesContract, SettleContract
from conformance.traffic import TrafficContract
from conformance.waiting import WaitingContract
from conformance.warming import SampleContract, WarmUpContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.ports import Store

__all__ = ["StoreConformance"]


class StoreConformance(
    EnqueueContract,
    KeyContract,
    WaitingContract,
    SampleContract,
    CancelContract,
    MassCancelContract,
    GiveUpContract,
    DeliverContract,
    FindKeysContract,
    RunsContract,
    PauseContract,
    ClaimContract,
    BodyContract,
    SettleContract,
    OutcomesContract,
    BatchContract,
    CreatedContract,
    InFlightContract,
    FindBatchContract,
    LogContract,
    EscalateWaitingContract,
    EscalateBatchContract,
    EscalatingContract,
    NoteDecisionContract,
    RaceContract,
    BeginCallsContract,
    AnswerContract,
    TallyContract,
    WarmUpContract,
    TrafficContract,
    ClosedBatchesContract,
    LeaseContract,
    EngineContract,
    FlushRequestContract,
    SweepContract,
    PruneContract,
    PrunedBatchContract,
    CloseContract,
    CrowdContract,
):
    """Every promise of the contract.

    A subclass has a fixture ``opening``: a callable that opens one and the same store each time.
    """

    durable: ClassVar[bool]
    """Whether what one instance stored is seen by another one, and after a close."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Lets tests look with the eyes of other processes too, and go on working in them."""
        for fixture in {"look", "work"}.intersection(metafunc.fixturenames):
            others = ["rival", "reopened"] if self.durable else []
            metafunc.parametrize(fixture, ["same", *others], indirect=True)

    def test_no_promise_hides_another(self) -> None:
        """Two tests of one name in two parts of the contract would be one test."""
        names = [
            name for part in StoreConformance.__bases__ for name in vars(part) if name.startswith("test_")
        ]
        assert sorted(names) == sorted(set(names))

    @pytest.fixture
    def scene(self, opening: Callable[[], Store]) -> Iterator[Scene]:
        """A new store."""
        scene = Scene(opening)
        yield scene
        scene.close()

    @pytest.fixture
    def look(self, scene: Scene, request: pytest.FixtureRequest) -> Callable[[], Store]:
        """The store as its writer sees it, or a process that had it open before, or one that opens it."""
        ways = {"same": lambda: scene.store, "rival": lambda: scene.rival, "reopened": scene.reopen}
        return ways[request.param]

    @pytest.fixture
    def work(self, scene: Scene, request: pytest.FixtureRequest) -> Callable[[], Store]:
        """The engine goes on where it is, in a process that takes the lease over, or after a restart."""
        ways = {"same": lambda: scene.store, "rival": scene.hand_over, "reopened": scene.reopen}
        return ways[request.param]
