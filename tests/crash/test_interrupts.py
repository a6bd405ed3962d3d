"""Ctrl-C at any line of a submit: nothing that was accepted is lost, and nobody is blocked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

STORM = """
import os, random, signal, sys, threading, time
from pathlib import Path
import anthropic
from llmrouter import Router
from llmrouter.stores.disk import DiskStore

class Hit(BaseException):
    pass

def hit(*_):
    raise Hit

folder = sys.argv[1]
client = anthropic.Anthropic(api_key="k", base_url="http://127.0.0.1:9")
router = Router(client, store=f"disk://{folder}", worker=False)
request = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x" * 300}]}

def submit():
    return router.submit(request, latency="daily").request_id

accepted = [submit() for _ in range(20)]
signal.signal(signal.SIGALRM, hit)
kept, hits, ends_at = [], 0, time.monotonic() + 3
while time.monotonic() < ends_at:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 120e-6))
        for _ in range(3):
            accepted.append(submit())
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Hit as error:
        kept, hits = [*kept[-20:], error], hits + 1  # As a notebook does: it keeps what was raised.
    signal.setitimer(signal.ITIMER_REAL, 0)
    accepted.append(submit())

def elsewhere():
    accepted.append(submit())
    router.close()

other = threading.Thread(target=elsewhere, daemon=True)
other.start()
other.join(30)
store = DiskStore(Path(folder))
missing = sum(store.find(request_id) is None for request_id in accepted)
print(hits > 100, other.is_alive(), missing, flush=True)
os._exit(0)
"""


@pytest.mark.crash
def test_an_interrupted_submit_loses_and_blocks_nothing(tmp_path: Path) -> None:
    """Hundreds of interrupts at random moments; each submit that returned is in the store."""
    ran = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stdout.split() == ["True", "False", "0"], ran.stderr[-2000:]
