"""An Anthropic API to test against, on loopback: messages, batches, faults, and books of what was paid.

    with Sandbox(clock=ManualClock()).serve() as server:
        client = anthropic.Anthropic(base_url=server.base_url, api_key=server.api_key)

It needs the extra `llmrouter[sandbox]`, and nothing of the rest of llmrouter.
"""

try:
    import starlette  # noqa: F401 - only to say clearly what is missing
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError("the sandbox needs starlette and uvicorn: install llmrouter[sandbox]") from error

from llmrouter.sandbox.batches import Batch, Item
from llmrouter.sandbox.books import Books, CallRecord, Charge
from llmrouter.sandbox.clocks import Clock, ManualClock, ScaledClock
from llmrouter.sandbox.core import Sandbox
from llmrouter.sandbox.errors import PortInUseError
from llmrouter.sandbox.faults import ArmedFault, Call, Fault, Faults
from llmrouter.sandbox.foreground import run
from llmrouter.sandbox.limits import Limits
from llmrouter.sandbox.outages import Outage
from llmrouter.sandbox.params import canonical_json, params_hash
from llmrouter.sandbox.replies import Reply
from llmrouter.sandbox.server import SandboxServer
from llmrouter.sandbox.turnaround import Turnaround

__all__ = [
    "ArmedFault",
    "Batch",
    "Books",
    "Call",
    "CallRecord",
    "Charge",
    "Clock",
    "Fault",
    "Faults",
    "Item",
    "Limits",
    "ManualClock",
    "Outage",
    "PortInUseError",
    "Reply",
    "Sandbox",
    "SandboxServer",
    "ScaledClock",
    "Turnaround",
    "canonical_json",
    "params_hash",
    "run",
]
