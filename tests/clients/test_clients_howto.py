"""The programs in docs/howto that need more than llmrouter run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from answering import call_tool
from starlette.testclient import TestClient

from llmrouter.sandbox import Sandbox, ScaledClock, Turnaround
from support.programs import HOWTO, check_runs, environment, programs_in
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmrouter.sandbox import Reply
    from support.world import World

pytestmark = pytest.mark.timeout(90)

_LIBRARIES = ("pydantic-ai", "instructor", "langchain", "inspect")
_PROGRAMS = dict(zip(_LIBRARIES, programs_in(HOWTO / "clients.md", len(_LIBRARIES)), strict=True))
[_APP] = programs_in(HOWTO / "fastapi.md", 1)


def reply(params: dict[str, Any]) -> str | Reply:
    """Calls the first tool there is, once."""
    if len(params["messages"]) > 1 or not params.get("tools"):
        return "Paris"
    tools = {"Person": {"name": "Ada", "age": 36}, "temperature": {"city": "Oslo"}}
    name = params["tools"][0]["name"]
    return call_tool(name, **tools[name])


@pytest.mark.parametrize("library", _LIBRARIES)
def test_programs_of_other_peoples_clients_run(library: str, tmp_path: Path) -> None:
    """Each to its end, with batches only."""
    sandbox = Sandbox(clock=ScaledClock(speed=3600), turnaround=Turnaround.typical(seed=0), reply=reply)
    check_runs(_PROGRAMS[library], tmp_path, sandbox=sandbox, warnings=library != "inspect")

    assert sandbox.batches
    assert sandbox.books.calls["messages.create"] == 0
    assert set(sandbox.books.count_charges().values()) == {1}


def test_the_fastapi_application_enqueues_and_reads(
    start: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another router, a worker, does the work; the same document is one request."""
    world = start(reply=lambda _: "Short.")
    for name, value in environment(world.server.base_url, tmp_path).items():
        monkeypatch.setenv(name, value)
    page: dict[str, Any] = {}
    exec(compile(_APP, "app.py", "exec", dont_inherit=True), page)

    with TestClient(page["app"]) as web:
        assert web.get("/summaries/7").status_code == 404
        first, again = (web.post("/summaries/7", params={"text": "Long."}) for _ in range(2))
        assert (first.status_code, first.json()) == (202, again.json())
        assert web.get("/summaries/7").json() == {"status": "queued", "text": None}
        world.router()
        wait_until(lambda: web.get("/summaries/7").json() == {"status": "succeeded", "text": "Short."})
    world.check_books(1)
