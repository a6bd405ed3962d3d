from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from conformance.suite import StoreConformance
from llmrouter.stores.disk import DiskStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class TestDiskStore(StoreConformance):
    durable = True

    @pytest.fixture
    def opening(self, tmp_path: Path) -> Callable[[], DiskStore]:
        return partial(DiskStore, tmp_path / "queue")
