"""What the engine needs of the world, as Protocols. The prose here is the contract.

Adapters live in ``stores/`` and ``claude/``; ``wiring.py`` puts them together. The conformance
suite in ``tests/conformance`` proves that a store keeps what is promised here.
"""

from llmrouter.ports.apis import BatchApi, BatchBody, LiveApi
from llmrouter.ports.clocks import Clock
from llmrouter.ports.engine import EngineStore, Lease
from llmrouter.ports.store import Store

__all__ = ["BatchApi", "BatchBody", "Clock", "EngineStore", "Lease", "LiveApi", "Store"]
