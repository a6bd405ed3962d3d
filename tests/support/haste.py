"""Makes spans short that no setting shortens, so that a test need not wait for them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmrouter import worker
from llmrouter.engine import holds, lease

if TYPE_CHECKING:
    from collections.abc import Iterator


def hastened(
    *,
    hold_seconds: float | None = None,
    most_hold_seconds: float | None = None,
    lease_seconds: float | None = None,
    renew_seconds: float | None = None,
) -> Iterator[tuple[Any, str, timedelta]]:
    """What to set where: modules, names and values.

    Args:
        hold_seconds: How long a lane waits after its first refusal or unclear create; 15 without it.
        most_hold_seconds: And after many; 15 minutes without it.
        lease_seconds: The length of the lease; 30.
        renew_seconds: How often it is prolonged, or asked for; 5, or a sixth of the given length.
    """
    if hold_seconds is not None:
        yield holds, "_FIRST", timedelta(seconds=hold_seconds)
    if most_hold_seconds is not None:
        yield holds, "_MOST", timedelta(seconds=most_hold_seconds)
    if lease_seconds is not None:
        yield lease, "LEASE_LENGTH", timedelta(seconds=lease_seconds)
        renew_seconds = renew_seconds or lease_seconds / 6
    if renew_seconds is not None:
        for module in (lease, worker):
            yield module, "RENEW_EVERY", timedelta(seconds=renew_seconds)


def hasten(**seconds: float) -> None:
    """Sets them in this process; see `hastened`."""
    for module, name, value in hastened(**seconds):
        setattr(module, name, value)
