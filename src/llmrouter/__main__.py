"""``python -m llmrouter``: the command line."""

from llmrouter.cli import main

if __name__ == "__main__":
    main()
