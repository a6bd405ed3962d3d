from __future__ import annotations

import os
from functools import partial

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from conformance.machine import StoreMachine
from llmrouter.stores.disk import DiskStore
from llmrouter.stores.memory import MemoryStore

SETTINGS = settings(
    max_examples=int(os.environ.get("LLMROUTER_MACHINE_EXAMPLES", "50")),
    stateful_step_count=int(os.environ.get("LLMROUTER_MACHINE_STEPS", "30")),
    deadline=None,
)
"""A long search: more of both."""


def test_the_memory_store_does_what_the_model_does() -> None:
    """Whatever its callers do, in whatever order."""

    def machine() -> StoreMachine:
        store = MemoryStore()
        return StoreMachine(lambda: store, durable=False)

    run_state_machine_as_test(machine, settings=SETTINGS)


def test_the_disk_store_does_what_the_model_does(tmp_path_factory) -> None:
    """Whatever its callers do, in whatever order, in two processes that end and begin again."""

    def machine() -> StoreMachine:
        return StoreMachine(partial(DiskStore, tmp_path_factory.mktemp("queue")), durable=True)

    run_state_machine_as_test(machine, settings=SETTINGS)
