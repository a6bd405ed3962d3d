from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A sandbox that serves; its batches end when the test says so."""
    with World(tmp_path) as one:
        yield one
