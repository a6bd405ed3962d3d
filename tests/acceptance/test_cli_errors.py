from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli_support import make_request, write_lines

import llmrouter
from llmrouter.cli import main

if TYPE_CHECKING:
    from cli_support import Cli

COMMANDS = (
    "demo",
    "run",
    "status",
    "why",
    "cancel",
    "worker",
    "flush",
    "pause",
    "resume",
    "prune",
    "repair",
    "sandbox",
)


def fails_with(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return left.value.code, said.err.removeprefix("error: ").rstrip()


RUN = ("run", "in.jsonl", "-o", "out.jsonl")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("rn",), "no such command 'rn'"),
        (("run", "in.jsonl"), "missing option '--output' / '-o' (see: llmrouter run --help)"),
        (("status", "--stor"), "no such option: --stor"),
        (("why",), "missing argument 'REQUEST_ID' (see: llmrouter why --help)"),
        (("why", "req_1"), "there is no store at disk://"),
        (("pause", "daily"), "there is no store at disk://"),
        (("resume", "daily"), "there is no store at disk://"),
        (("repair",), "there is no store at disk://"),
        (("repair", "--store", "memory://"), "there is no store at memory://"),
        (("prune", "--older-than", "soon"), "--older-than: 'soon' is no span: give seconds, or"),
        (("prune", "--older-than", "-3"), "--older-than: '-3' is no span"),
        (("prune", "--older-than", "0"), "--older-than: '0' is no span: it must be longer than nothing"),
        (("cancel",), "give either request ids, --key, --batch or --run"),
        (("cancel", "req_1", "--key", "k"), "give either request ids, --key, --batch or --run"),
        (("cancel", "req_1"), "there is no store at disk://"),
        (("status", "--store", "nope:///x"), "store: 'nope:///x' is no store; write disk:///path/to/folder"),
        (("worker", "--store", "memory://"), "memory:// lives in one process, which has its own worker; "),
        (("sandbox", "--speed", "0"), "--speed: 0 is no speed; give a number above 0"),
        (("worker",), "there is no API key: set ANTHROPIC_API_KEY (llmrouter demo needs none)"),
        (("demo", "--live"), "there is no API key: set ANTHROPIC_API_KEY"),
        (RUN, "there is no API key: set ANTHROPIC_API_KEY"),
        ((*RUN, "--latency", "daly"), "latency: 'daly' is no latency class; did you mean 'daily'?"),
        (("run", "in.jsonl", "-o", "in.jsonl"), "in.jsonl: is the file of requests; give another one"),
        (("run", "in.jsonl", "-o", "/dev/null"), "/dev/null: is no file; results are written to a file"),
        (("run", "in.jsonl", "-o", "/no/such/x"), "/no/such/x: there is no folder /no/such"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    cli: Cli, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    """The line says what is wrong, and often what would be right."""
    write_lines(cli.folder / "in.jsonl", [make_request("hello")])
    code, said = fails_with(capsys, *arguments)
    assert code == 2
    assert said.startswith(line)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "line: should be a JSON object, not an array"),
        ('{"a":', "line: is not JSON: Expecting value (column 6)"),
        ('"\udc80"', "line: is not UTF-8"),
        ('{"custom_id":"x"}', "params: is missing"),
        ('{"custom_id":"x","params":[]}', "params: should be a JSON object, not an array"),
        ('{"custom_id":7,"params":{}}', "custom_id: should be a text, and not an empty one"),
        ('{"params":{},"method":"POST"}', "method: does not belong beside custom_id and params"),
        ('{"model":"m","messages":[]}', "max_tokens: is missing"),
        ('{"model":"m","max_tokens":-1,"messages":[]}', "max_tokens: should be 0 or more"),
        ("[" * 100_000, "line: is not JSON that can be read (RecursionError)"),
    ],
)
def test_a_bad_line_is_named(
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    problem: str,
) -> None:
    """File, line, field and what is wrong with it; nothing is stored."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    (cli.folder / "in.jsonl").write_bytes(b"\n" + line.encode(errors="surrogateescape") + b"\n")
    code, said = fails_with(capsys, *RUN)
    assert code == 2
    assert said.startswith(f"in.jsonl:2: {problem}")
    assert said.endswith("; nothing was sent")
    assert not (cli.folder / "store").exists()


@pytest.mark.usefixtures("here")
def test_other_bad_lines_are_named_too(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are found at once, and nothing is stored."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    bad = make_request("x", max_tokens="50")
    write_lines(cli.folder / "in.jsonl", [make_request("fine"), bad, make_request("fine"), *[bad] * 8])
    problem = "in.jsonl:2: max_tokens: should be a valid integer, not str"
    others = "also wrong: line 4, 5, 6, 7, 8 and 3 more; nothing was sent"
    assert fails_with(capsys, *RUN) == (2, f"{problem}; {others}")
    assert sorted(path.name for path in cli.folder.iterdir()) == ["in.jsonl"]


@pytest.mark.usefixtures("here")
def test_an_empty_file_has_an_empty_result(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to do is no failure."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    (cli.folder / "in.jsonl").write_bytes(b"\n \n")
    with pytest.raises(SystemExit) as left:
        main(RUN)
    assert left.value.code == 0
    assert (cli.folder / "out.jsonl").read_bytes() == b""


@pytest.mark.usefixtures("here")
def test_a_file_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, as it was given."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    assert fails_with(capsys, *RUN) == (2, "in.jsonl: No such file or directory")


@pytest.mark.usefixtures("here")
def test_an_unknown_setting_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the one that was meant."""
    monkeypatch.setenv("LLMROUTER_POL", "3")
    assert fails_with(capsys, "status") == (2, "LLMROUTER_POL: no such setting; did you mean LLMROUTER_POLL?")


@pytest.mark.usefixtures("here")
def test_a_damaged_store_is_a_failure(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and exit code 1: the command was right."""
    (cli.folder / "store").mkdir(mode=0o700)
    (cli.folder / "store" / "cache.db").write_bytes(b"no database" * 100)
    code, said = fails_with(capsys, "status")
    assert code == 1
    assert str(cli.folder / "store") in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """``--help`` says what it does, and what each option does, within 80 columns."""
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert f"Usage: llmrouter {command}" in said
    assert len(said) > 500
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Also when it is called with nothing; and it says what its exit codes mean."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert all(f"│ {command} " in said for command in COMMANDS)
    assert "Exit codes:" in said


@pytest.mark.usefixtures("here")
def test_the_program_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """For reports of bugs."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"llmrouter {llmrouter.__version__}\n"


def test_the_library_does_not_load_the_commands() -> None:
    """An application that imports llmrouter pays for no Typer and no Rich."""
    unwanted = "('llmrouter.cli', 'llmrouter.reports.summary', 'llmrouter.sandbox', 'rich', 'typer')"
    check = f"import sys, llmrouter; print([name for name in sys.modules if name.startswith({unwanted})])"
    ran = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout == "[]\n"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", ["status", "flush", "prune"])
def test_looking_makes_no_store(cli: Cli, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Where there is none, it says so, without an API key, and that is no failure."""
    with pytest.raises(SystemExit) as left:
        main([command])
    said = capsys.readouterr()
    assert (left.value.code, said.err) == (0, "")
    assert said.out.startswith(f"There is no store at {cli.store}")
    assert list(cli.folder.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_no_store_is_told_as_json_too(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs need not read prose."""
    with pytest.raises(SystemExit):
        main(["status", "--json"])
    assert json.loads(capsys.readouterr().out) == {"store": cli.store, "exists": False}
