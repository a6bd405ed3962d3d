"""What `import llmrouter` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import llmrouter
from llmrouter import errors, sandbox, testing

NOT_LOADED = [
    "apscheduler",
    "diskcache",
    "genai_prices",
    "llmrouter.cli",
    "llmrouter.sandbox",
    "llmrouter.stores.disk",
    "llmrouter.testing",
    "pytest",
    "rich",
    "starlette",
    "typer",
    "uvicorn",
]


def test_public_names_are_sorted_and_exist() -> None:
    """Of every module that users import from."""
    for module in (llmrouter, errors, sandbox, testing):
        assert module.__all__ == sorted(module.__all__)
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            assert hasattr(module, name)


def test_public_names_are_documented() -> None:
    """Each class and function says what it is for."""
    for module in (llmrouter, errors, sandbox):
        assert module.__doc__
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                assert value.__doc__, name


def test_every_error_is_public() -> None:
    """Whatever is raised can be caught by name."""
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }

    assert defined == set(errors.__all__)


def test_the_version_is_that_of_the_distribution() -> None:
    """In numbers."""
    major, minor, patch = llmrouter.__version__.split(".")[:3]

    assert (major + minor).isdigit()
    assert patch[:1].isdigit()


def loaded_after(code: str) -> set[str]:
    """The modules that an interpreter has loaded after running some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stderr == ""
    return set(result.stdout.split())


def test_importing_llmrouter_loads_only_what_it_needs() -> None:
    """No command line, no scheduler, no store, no server, no price table, no test kit."""
    loaded = loaded_after("import llmrouter")

    assert "anthropic" in loaded
    assert sorted(loaded.intersection(NOT_LOADED)) == []


def test_a_router_that_only_enqueues_loads_no_scheduler() -> None:
    """Nor any store but its own."""
    loaded = loaded_after(
        "import anthropic, llmrouter\n"
        "client = anthropic.Anthropic(api_key='k')\n"
        "llmrouter.Router(client, store='memory://', worker=False).close()"
    )

    assert sorted(loaded.intersection(NOT_LOADED)) == []
