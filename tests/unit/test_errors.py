"""The tree of errors: how they are caught, and how they travel."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import pytest

from llmrouter import LlmrouterError, errors

MADE = [
    errors.CreateRefusedError("no", status=400, retry_after=timedelta(seconds=3), envelope={"error": {}}),
    errors.CreateUnclearError("perhaps", status=500),
    errors.InvalidDeadlineError("deadline", "has passed", index=4),
    errors.InvalidRequestError("max_tokens", "is missing"),
    errors.KeyConflictError("key", "is known", index=0),
    errors.LeaseLostError("lost"),
    errors.MissingExtraError("install llmrouter[sandbox]"),
    errors.ResultMissingError("req_1", 3),
    errors.RouterClosedError("closed"),
    errors.SettingsError("poll: wrong"),
    errors.StoreBusyError("locked"),
    errors.StoreUnusableError("damaged"),
    errors.UnknownLatencyError("latency", "'dayly' is no latency class"),
    errors.UnknownRequestError("no such request"),
]


def test_every_error_has_one_base() -> None:
    """`except LlmrouterError` catches all that is llmrouter's own."""
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), LlmrouterError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidRequestError, ValueError),
        (errors.UnknownRequestError, LookupError),
        (errors.SettingsError, ValueError),
        (errors.RouterClosedError, RuntimeError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_an_error_is_also_the_builtin_that_it_resembles(error: type, builtin: type) -> None:
    """So code that knows nothing of llmrouter can catch it."""
    assert issubclass(error, builtin)


def test_a_request_error_names_its_place_and_field() -> None:
    """The place only where there is a list."""
    assert str(errors.InvalidRequestError("max_tokens", "is missing")) == "max_tokens: is missing"
    assert str(errors.InvalidRequestError("key", "is known", index=3)) == "request 3: key: is known"


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_to_another_process(error: Exception) -> None:
    """A pool of processes pickles what its workers raise; one that cannot be unpickled breaks the pool."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
