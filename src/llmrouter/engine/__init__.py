"""The engine: what happens to a request between its acceptance and its answer.

Each part has one duty and a ``run_once``; `llmrouter.worker` calls them on its clockwork.
"""
