"""The API's errors: one exception, its envelope, and the status of each type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STATUS_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
TYPE_BY_STATUS = {status: error_type for error_type, status in STATUS_BY_TYPE.items()}


class ApiError(Exception):
    """A refusal, to be answered as the API's error envelope.

    Args:
        error_type: the `error.type` of the envelope.
        message: the `error.message` of the envelope.
        status: the HTTP status; by default the one that belongs to `error_type`.
        headers: further headers of the answer, such as `retry-after`.
        details: the `error.details` of the envelope, left out when None.
    """

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.status = status if status is not None else STATUS_BY_TYPE.get(error_type, 500)
        self.headers = dict(headers or {})
        self.details = details


class PortInUseError(OSError):
    """The address a sandbox was to listen on is taken."""


def error_envelope(
    error_type: str, message: str, *, request_id: str | None, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The API's error body: `{"type": "error", "error": {...}, "request_id": ...}`."""
    error: dict[str, Any] = {"type": error_type, "message": message}
    if details is not None:
        error["details"] = dict(details)
    return {"type": "error", "error": error, "request_id": request_id}
