"""Rules for call sites that change under a running application."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import llmrouter.reloading
from llmrouter.sandbox import Turnaround
from support.requests import ask
from support.waiting import wait_until
from support.world import World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)


def test_a_rule_that_is_written_while_it_runs_routes_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a client that was wrapped before, with `submit` too; and back again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llmrouter.reloading, "LOOK_SECONDS", 0.01)
    rules = tmp_path / "llmrouter.toml"
    names = {thread.name for thread in threading.enumerate()}
    with World(tmp_path, turnaround=Turnaround.fixed(timedelta(0))) as world:
        router = world.router()
        client = router.wrap(world.client())

        def tier() -> str | None:
            return client.messages.create(**ask()).usage.service_tier

        assert tier() == "standard"
        rules.write_text(f'[sites]\n"{__name__}:*" = "daily"\n')
        wait_until(lambda: tier() == "batch", what="the rule to count")
        rules.write_text(f'never_batch = ["{__name__}:*"]\n')
        wait_until(lambda: tier() == "standard", what="never_batch to count")
        live = router.submit(ask("x"), latency="daily").result(30)
        assert live.usage.service_tier == "standard"
        router.close()
    assert {thread.name for thread in threading.enumerate()} <= names | {"llmrouter-sandbox"}
