"""The command line: ``llmrouter …``."""

from llmrouter.cli.app import main

__all__ = ["main"]
