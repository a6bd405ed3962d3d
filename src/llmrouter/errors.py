"""Every error that llmrouter raises of its own.

    LlmrouterError
    ├── InvalidRequestError (ValueError)     the request, its tag or its deadline cannot be accepted
    │   ├── UnknownLatencyError
    │   ├── InvalidDeadlineError
    │   └── KeyConflictError
    ├── UnknownRequestError (LookupError)    no such request in this store
    ├── SettingsError (ValueError)           a setting is wrong or unknown
    ├── StoreError
    │   ├── StoreBusyError                   another process kept the store locked
    │   ├── StoreUnusableError               damaged, of another version, not ours, not writable
    │   └── LeaseLostError                   another process took the engine's work over
    ├── CreateError                          what became of a batch create
    │   ├── CreateRefusedError               the API said no: nothing was created
    │   └── CreateUnclearError               created, perhaps: the batch is in doubt
    ├── ResultMissingError                   a batch ended without an answer for this request
    ├── RouterClosedError (RuntimeError)
    └── MissingExtraError (ImportError)      an optional part is not installed

What the API itself says reaches callers as the SDK's own typed exceptions, never as one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

__all__ = [
    "CreateError",
    "CreateRefusedError",
    "CreateUnclearError",
    "InvalidDeadlineError",
    "InvalidRequestError",
    "KeyConflictError",
    "LeaseLostError",
    "LlmrouterError",
    "MissingExtraError",
    "ResultMissingError",
    "RouterClosedError",
    "SettingsError",
    "StoreBusyError",
    "StoreError",
    "StoreUnusableError",
    "UnknownLatencyError",
    "UnknownRequestError",
]


class LlmrouterError(Exception):
    """Base of every error of llmrouter's own. All of them can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self.args), self.__dict__


def _remake(kind: type[LlmrouterError], args: tuple[Any, ...]) -> LlmrouterError:
    """An error as it was, without its constructor, which takes other arguments than it keeps."""
    return kind.__new__(kind, *args)


class InvalidRequestError(LlmrouterError, ValueError):
    """A request cannot be accepted. Raised before anything is stored.

    Attributes:
        field: The name of the field that is wrong, such as ``"max_tokens"``.
        index: Its place in the list given to ``submit_many``, or None for a single request.
    """

    def __init__(self, field: str, problem: str, *, index: int | None = None) -> None:
        self.field = field
        self.problem = problem
        self.index = index
        where = "" if index is None else f"request {index}: "
        super().__init__(f"{where}{field}: {problem}")


class UnknownLatencyError(InvalidRequestError):
    """The latency class is not one of the classes in the settings."""


class InvalidDeadlineError(InvalidRequestError):
    """The deadline is in the past, has no time zone, or is no deadline at all."""


class KeyConflictError(InvalidRequestError):
    """The idempotency key already belongs to a request with another body or class."""


class UnknownRequestError(LlmrouterError, LookupError):
    """No request with this id or key is in the store (it may have been pruned)."""


class SettingsError(LlmrouterError, ValueError):
    """A setting is unknown or has a value that cannot be used."""


class StoreError(LlmrouterError):
    """The store could not do what was asked. Nothing was half done."""


class StoreBusyError(StoreError):
    """Other processes kept the store locked for too long. The call may be repeated."""


class StoreUnusableError(StoreError):
    """The store cannot be opened or written: damaged, of another version, or not writable."""


class LeaseLostError(StoreError):
    """The engine of another process has taken over; this one must not write any more."""


class CreateError(LlmrouterError):
    """A batch create did not give a batch.

    At most one of `spent`, `credential`, `limited` and `blames_content` is true.

    Attributes:
        status: The HTTP status, or None when there was no answer.
        retry_after: How long the API asks to wait, or None when it does not say.
        envelope: The API's error body, or None when it sent none.
        blames_content: Whether the API found fault with what was in the batch, and not with the
            account, its limits or the moment.
        names_request: Whether it did so naming one of the requests, or one of their fields.
        spent: Whether a spend limit is reached: trying again is useless until it is raised, or its
            period turns.
        regain_at: When a spend limit lets requests through again, as the API says: aware, UTC; None
            when it does not say.
        credential: Whether the API did not accept the key, or its rights.
        limited: Whether there were too many requests, or too many in the queue, for the moment.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: timedelta | None = None,
        envelope: Mapping[str, Any] | None = None,
        blames_content: bool = False,
        names_request: bool = False,
        spent: bool = False,
        regain_at: datetime | None = None,
        credential: bool = False,
        limited: bool = False,
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        self.envelope = envelope
        self.blames_content = blames_content
        self.names_request = names_request
        self.spent = spent
        self.regain_at = regain_at
        self.credential = credential
        self.limited = limited
        super().__init__(message)

    @property
    def brief(self) -> str:
        """What went wrong without the API's words, which may quote a prompt: for logs."""
        return str(self) if self.status is None else f"the API answered {self.status}"


class CreateRefusedError(CreateError):
    """The API refused the batch: nothing was created, nothing is charged."""


class CreateUnclearError(CreateError):
    """The answer got lost: the batch was created, perhaps. It must not be created again."""


class ResultMissingError(LlmrouterError):
    """Batch after batch ended without a line for this request.

    Attributes:
        request_id: The request that was never answered.
    """

    def __init__(self, request_id: str, attempts: int) -> None:
        self.request_id = request_id
        super().__init__(
            f"{request_id}: {attempts} batches ended without a result for this request; submit it again"
        )


class RouterClosedError(LlmrouterError, RuntimeError):
    """The router was closed, or belongs to the process that this one was forked from."""


class MissingExtraError(LlmrouterError, ImportError):
    """An optional part of llmrouter is not installed; the message says how to install it."""
