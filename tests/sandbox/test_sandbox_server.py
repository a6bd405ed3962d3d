"""The sandbox as a server, as a command, and driven from another process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import anthropic
import httpx2
import pytest
from sandbox_requests import entries, entry, params

from llmrouter.sandbox import Fault, ManualClock, PortInUseError, Sandbox, __main__, params_hash, run

ROOT = Path(__file__).parents[2]


def test_a_server_listens_inside_its_block_only(sandbox):
    with sandbox.serve() as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        assert httpx2.get(f"{server.base_url}/_sandbox/books").status_code == 200
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.base_url}/_sandbox/books")


def test_two_servers_of_one_sandbox_share_its_state(sandbox, client):
    batch = client.messages.batches.create(requests=entries(1))
    with (
        sandbox.serve() as server,
        anthropic.Anthropic(base_url=server.base_url, api_key="other") as other,
    ):
        assert other.messages.batches.retrieve(batch.id).id == batch.id


def test_a_taken_port_is_a_clear_error(server):
    with pytest.raises(PortInUseError, match=f"port {server.port} on 127.0.0.1 is in use"):
        Sandbox().serve(port=server.port).start()


def test_a_server_can_be_started_again_but_not_twice(sandbox):
    server = sandbox.serve()
    for _ in range(2):
        with server:
            with pytest.raises(RuntimeError, match="runs already"):
                server.start()
            assert httpx2.get(f"{server.base_url}/_sandbox/clock").status_code == 200
    server.stop()


def test_stopping_breaks_off_what_nobody_reads(caplog):
    """A client in the middle of 50 MB of results does not hold the server up, and nothing is logged."""
    sandbox = Sandbox(clock=ManualClock(), reply=lambda _: "x" * 500_000)
    server = sandbox.serve()
    server.start()
    with anthropic.Anthropic(base_url=server.base_url, api_key="k") as client:
        requests = [entry(f"r{index}", max_tokens=128_000) for index in range(100)]
        batch = client.messages.batches.create(requests=requests)
        sandbox.clock.advance(timedelta(days=1))
        results = client.messages.batches.results(batch.id)
        next(iter(results))
        server.stop()
        with pytest.raises(httpx2.TransportError):
            list(results)
    assert caplog.records == []


def test_a_client_killed_while_it_sends_leaves_nothing_behind(sandbox, server, caplog):
    """Half a create is no create, and no error of the sandbox either."""
    head = b"POST /v1/messages/batches HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\ncontent-length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        half.sendall(head + b'{"requests": [')
    server.stop()
    assert sandbox.batches == {}
    assert caplog.records == []


def test_run_ends_quietly_on_ctrl_c():
    code = """
import signal
from llmrouter.sandbox import run
signal.signal(signal.SIGINT, signal.default_int_handler)
run(port=0, on_ready=lambda server: print(server.base_url, flush=True))
"""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, cwd=ROOT
    ) as running:
        base_url = running.stdout.readline().strip()
        assert httpx2.get(f"{base_url}/_sandbox/clock").status_code == 200
        running.send_signal(signal.SIGINT)
        rest = running.communicate(timeout=30)
    assert (running.returncode, *rest) == (0, "", "")


def test_a_failing_reply_function_is_answered_with_500(start):
    def fail(_):
        raise KeyError("oops")

    _, client = start(reply=fail)
    with pytest.raises(anthropic.InternalServerError, match="oops"):
        client.messages.create(**params())


def test_another_process_can_look_at_the_books(sandbox, client, http):
    client.messages.create(**params())
    books = http.get("/_sandbox/books").json()
    assert books["calls"] == {"messages.create": 1}
    assert books["charges"]["live"]["answers"] == 1
    assert books["charges"]["batch"] == {"answers": 0, "input_tokens": 0, "output_tokens": 0}


def test_another_process_can_read_what_was_charged(sandbox, client, http):
    """By the name that each request has in its batch."""
    client.messages.create(**params("live"))
    batch = client.messages.batches.create(requests=entries(2))
    assert len(http.get("/_sandbox/charges").json()) == 1
    sandbox.clock.advance(timedelta(minutes=10))
    live, first, second = http.get("/_sandbox/charges").json()
    assert (live["route"], live["batch_id"], live["custom_id"]) == ("live", None, None)
    assert live["params_hash"] == params_hash(params("live"))
    assert {(one["route"], one["batch_id"]) for one in (first, second)} == {("batch", batch.id)}
    assert {one["custom_id"]: one["params_hash"] for one in (first, second)} == {
        name: params_hash(params(name)) for name in ("r0", "r1")
    }
    assert first["usage"]["output_tokens"] > 0


def test_another_process_can_read_the_batches(sandbox, client, http):
    """And what became of their items, deleted ones too."""
    sandbox.faults.add(Fault(kind="item", custom_id="r0"))
    first = client.messages.batches.create(requests=entries(2))
    sandbox.clock.advance(timedelta(minutes=10))
    client.messages.batches.delete(first.id)
    second = client.messages.batches.create(requests=[entry("x")])
    client.messages.batches.cancel(second.id)

    deleted, canceling = http.get("/_sandbox/batches").json()

    assert (deleted["id"], deleted["processing_status"]) == (first.id, "ended")
    assert None not in (deleted["deleted_at"], deleted["ended_at"])
    assert {item["custom_id"]: item["outcome"] for item in deleted["items"]} == {
        "r0": "errored",
        "r1": "succeeded",
    }
    assert (canceling["id"], canceling["processing_status"]) == (second.id, "canceling")
    assert canceling["cancel_initiated_at"] is not None
    assert canceling["deleted_at"] is canceling["ended_at"] is None
    assert canceling["items"] == [
        {"custom_id": "x", "params_hash": params_hash(params("x")), "outcome": None}
    ]
    assert sum(http.get("/_sandbox/books").json()["calls"].values()) == 4


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(days=400), timedelta(days=-3)])
def test_every_answer_is_dated_by_the_sandboxs_clock(start, ahead):
    """Once, whatever the machine's clock says: errors and results too."""
    sandbox, client = start(clock=ManualClock(datetime.now(UTC) + ahead))
    batch = client.messages.batches.create(requests=entries(1))
    sandbox.clock.advance(timedelta(minutes=10))
    path = f"/v1/messages/batches/{batch.id}"
    with httpx2.Client(base_url=client.base_url, headers={"x-api-key": "k"}) as plain:
        version = {"anthropic-version": "2023-06-01"}
        answers = [
            plain.get(path, headers=version),
            plain.get(f"{path}/results", headers=version),
            plain.get(path),
            plain.get("/nowhere"),
            plain.get("/_sandbox/clock"),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 200]
    for answer in answers:
        (date,) = answer.headers.get_list("date")
        assert parsedate_to_datetime(date) == sandbox.clock.now().replace(microsecond=0)


def test_another_process_can_add_list_and_clear_faults(client, http):
    added = http.post("/_sandbox/faults", json={"kind": "status", "status": 529, "count": None}).json()
    assert added["strikes"] == 0
    with pytest.raises(anthropic.OverloadedError):
        client.messages.create(**params())
    (listed,) = http.get("/_sandbox/faults").json()
    assert (listed["kind"], listed["status"], listed["count"], listed["strikes"]) == ("status", 529, None, 1)
    http.delete("/_sandbox/faults")
    assert client.messages.create(**params())


@pytest.mark.parametrize(
    "wrong", [{}, {"kind": "drop", "colour": 1}, {"kind": "nothing"}, {"kind": "drop", "skip": "x"}]
)
def test_a_wrong_fault_from_another_process_is_refused(http, wrong):
    answer = http.post("/_sandbox/faults", json=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_another_process_can_move_the_clock(sandbox, http):
    before = sandbox.clock.now()
    moved = http.post("/_sandbox/advance", json={"seconds": 90}).json()
    assert sandbox.clock.now() == before + timedelta(seconds=90)
    assert datetime.fromisoformat(moved["now"]) == sandbox.clock.now()
    assert http.get("/_sandbox/clock").json() == moved
    for wrong in ({}, {"seconds": -1}, {"seconds": "x"}, {"seconds": 1e300}):
        assert http.post("/_sandbox/advance", json=wrong).status_code == 400


def test_another_process_can_reset(sandbox, client, http):
    client.messages.batches.create(requests=entries(1))
    assert http.post("/_sandbox/reset").status_code == 200
    assert sandbox.batches == {}


def test_run_serves_until_it_is_stopped():
    """What the command calls: it hands over the server when it is ready, and returns when that stops."""
    seen = []

    def look(server):
        seen.append(httpx2.get(f"{server.base_url}/_sandbox/clock").status_code)
        threading.Thread(target=server.stop).start()

    run(port=0, speed=3600, seed=1, on_ready=look)
    assert seen == [200]


def test_the_module_as_a_command_says_what_is_wrong(server, capsys):
    for arguments, message in ((["--port", str(server.port)], "in use"), (["--speed", "0"], "speed")):
        with pytest.raises(SystemExit) as left:
            __main__.main(arguments)
        assert left.value.code == 1
        assert message in capsys.readouterr().err


def test_without_its_extra_the_import_says_what_to_install():
    code = "import sys; sys.modules['uvicorn'] = None; import llmrouter.sandbox"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "ImportError: the sandbox needs starlette and uvicorn: install llmrouter[sandbox]" in done.stderr


def test_the_sandbox_imports_nothing_of_the_router():
    code = """
import sys, llmrouter
before = set(sys.modules)
import llmrouter.sandbox
new = set(sys.modules) - before
print([name for name in new if name.startswith("llmrouter.") and not name.startswith("llmrouter.sandbox")])
print("anthropic" in new)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", "False"]
