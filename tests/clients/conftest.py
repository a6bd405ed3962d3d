"""What the tests of other people's clients share.

They run in an environment of their own (``make test``): some of these packages need older releases of what
the rest of the suite is tested with. Where that environment is not the one that runs, nothing is collected.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.sandbox import Turnaround
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

collect_ignore_glob = [] if find_spec("instructor") else ["test_*.py"]

_LEAKED_BY_INSPECT_AI = "ignore:Unclosed <MemoryObject:ResourceWarning"


def pytest_itemcollected(item: pytest.Item) -> None:
    """inspect_ai leaves streams open, which are found in whatever test the garbage is collected in."""
    item.add_marker(pytest.mark.filterwarnings(_LEAKED_BY_INSPECT_AI))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Starts a sandbox whose batches end as soon as they are created."""
    with ExitStack() as worlds:

        def start_one(**options: Any) -> World:
            return worlds.enter_context(World(tmp_path, turnaround=Turnaround.fixed(timedelta(0)), **options))

        yield start_one
