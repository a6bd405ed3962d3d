from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.suite import StoreConformance
from llmrouter.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable


class TestMemoryStore(StoreConformance):
    durable = False

    @pytest.fixture
    def opening(self) -> Callable[[], MemoryStore]:
        store = MemoryStore()
        return lambda: store
