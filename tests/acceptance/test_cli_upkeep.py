from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from anthropic import Anthropic
from cli_support import make_request, wait_until, write_lines

from llmrouter import Router, Settings
from llmrouter.cli import main
from support.stores import StoreFiles

if TYPE_CHECKING:
    from cli_support import Cli

    from llmrouter.sandbox import Sandbox


def enqueue(cli: Cli, latency: str = "weekly") -> str:
    """Puts a request into the store; nobody works on it."""
    client = Anthropic(api_key="sandbox", base_url=cli.env.get("ANTHROPIC_BASE_URL"))
    with client, Router(client, store=cli.store, worker=False) as router:
        return router.submit(make_request("the secret prompt"), latency=latency).request_id


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.mark.usefixtures("here")
def test_a_class_is_paused_and_resumed(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Both may be repeated, and say what they did; no API key is needed."""
    enqueue(cli)
    paused = f"Paused weekly in {cli.store}: 1 request waits.\n"
    for _ in range(2):
        assert run_here(capsys, "pause", "weekly") == (0, paused, "")
    assert run_here(capsys, "resume", "weekly") == (0, f"Resumed weekly in {cli.store}.\n", "")
    assert run_here(capsys, "resume", "weekly") == (0, f"weekly was not paused in {cli.store}.\n", "")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", ["pause", "resume"])
@pytest.mark.parametrize(
    ("latency", "said"),
    [
        ("weakly", "latency: 'weakly' is no latency class; did you mean 'weekly'?"),
        ("real-time", "latency: real-time requests do not wait: there is nothing to pause"),
    ],
)
def test_only_a_class_can_be_paused(
    cli: Cli, capsys: pytest.CaptureFixture[str], command: str, latency: str, said: str
) -> None:
    """One line, and exit code 2."""
    enqueue(cli)
    assert run_here(capsys, command, latency) == (2, "", f"error: {said}\n")


def test_a_worker_leaves_a_paused_class_alone(cli: Cli, slow_api: Sandbox) -> None:
    """Also one that was started before; it goes on when the class is resumed."""
    enqueue(cli)
    assert cli.run("pause", "weekly").code == 0
    running = cli.start("worker")
    running.wait_for("this process works on the store now")
    enqueue(cli, latency="daily")
    wait_until(lambda: slow_api.batches)
    assert json.loads(cli.run("status", "--json").out)["backlog"][0]["paused"] is True
    assert cli.run("resume", "weekly").code == 0
    wait_until(lambda: len(slow_api.batches) == 2)


@pytest.mark.usefixtures("here")
def test_why_is_one_sentence(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Without an API key, and without the prompt."""
    request_id = enqueue(cli)
    code, out, err = run_here(capsys, "why", request_id)
    assert (code, err) == (0, "")
    assert out.startswith(f"{request_id} (weekly, due ")
    assert out.endswith("no process works on this store; llmrouter worker starts one.\n")
    assert "secret" not in out
    assert "credential" not in out
    assert out.count("\n") == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("request_id", ["req_x", "live_00", "../x"])
def test_why_of_nothing_known_is_wrong_input(
    cli: Cli, capsys: pytest.CaptureFixture[str], request_id: str
) -> None:
    """One line, and exit code 2."""
    enqueue(cli)
    code, out, err = run_here(capsys, "why", request_id)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert request_id in err


def test_prune_forgets_what_was_answered(cli: Cli, quick_api: Sandbox) -> None:
    """By its own limit, and never what waits; the same run is paid again after it."""
    write_lines(cli.folder / "in.jsonl", [make_request("a"), make_request("b")])
    command = ("run", "in.jsonl", "-o", "out.jsonl")
    assert cli.run(*command).code == 0
    waits = enqueue(cli)
    kept = cli.run("prune")
    assert (kept.code, kept.out) == (0, "Forgot 0 requests that ended more than 29.0 d ago.\n")
    gone = cli.run("prune", "--older-than", "1ms")
    assert (gone.code, gone.out) == (0, "Forgot 2 requests that ended more than 1 ms ago.\n")
    assert cli.run("why", waits).code == 0
    assert cli.run(*command).code == 0
    assert sorted(quick_api.books.count_charges().values())[-2:] == [2, 2]


@pytest.mark.usefixtures("quick_api")
def test_prune_keeps_what_nobody_has_picked_up(cli: Cli) -> None:
    """Unless it is told otherwise. A canceled request has nothing to pick up."""
    canceled, answered = enqueue(cli), enqueue(cli)
    assert cli.run("cancel", canceled).code == 0
    client = Anthropic(api_key="sandbox", base_url=cli.env.get("ANTHROPIC_BASE_URL"))
    with client, Router(client, store=cli.store, settings=Settings(poll=0.05)) as router:
        assert router.drain(30)
    prune = ("prune", "--older-than", "1ms")
    assert "Forgot 1 request that" in cli.run(*prune).out
    assert "Forgot 0 requests" in cli.run(*prune).out
    assert "Forgot 1 request that" in cli.run(*prune, "--undelivered").out
    assert cli.run("why", answered).code == 2


def test_prune_is_refused_while_a_worker_works(cli: Cli, slow_api: Sandbox) -> None:
    """It prunes by itself: exit code 1, and a line that says so."""
    running = cli.start("worker")
    running.wait_for("this process works on the store now")
    ended = cli.run("prune", "--older-than", "1d")
    assert ended.code == 1
    assert ended.error.startswith("another process works on this store, and prunes it every hour by itself")


@pytest.mark.usefixtures("here")
def test_a_healthy_store_is_left_as_it_is(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Repair says that it found nothing."""
    request_id = enqueue(cli)
    code, out, err = run_here(capsys, "repair")
    assert (code, err) == (0, "")
    assert out.startswith(f"Found no damage in {cli.store} (")
    assert out.endswith("; nothing was changed.\n")
    assert run_here(capsys, "why", request_id)[0] == 0


@pytest.mark.usefixtures("here")
def test_a_damaged_index_is_rebuilt(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it found, that nothing was lost, and where the damaged file is."""
    request_id = enqueue(cli)
    files = StoreFiles(cli.folder / "store")
    files.checkpoint()
    for page in files.pages("Cache_key_raw"):
        files.overwrite(page, bytes(4096))
    assert run_here(capsys, "why", request_id)[0] == 1

    code, out, err = run_here(capsys, "repair")
    assert (code, err) == (0, "")
    assert out.startswith("Found: ")
    assert f"Rebuilt {cli.store} with all of its " in out
    assert "cache.db.damaged-" in out
    assert run_here(capsys, "why", request_id)[0] == 0


@pytest.mark.usefixtures("here")
def test_a_store_that_cannot_be_repaired_is_a_failure(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says so, and exit code 1."""
    (cli.folder / "store").mkdir(mode=0o700)
    (cli.folder / "store" / "cache.db").write_bytes(b"no database" * 100)
    code, out, err = run_here(capsys, "repair")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_store_in_use_is_not_repaired(cli: Cli, slow_api: Sandbox) -> None:
    """Stop the worker first."""
    running = cli.start("worker")
    running.wait_for("this process works on the store now")
    ended = cli.run("repair")
    assert ended.code == 1
    assert "a process works on the store" in ended.error
