# One file of commands; each installs what it needs into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak check bench bench-policy clean

demo: $(VENV)/.demo
	$(BIN)/llmrouter demo

test: $(VENV)/.dev $(VENV)/.clients
	$(BIN)/python -m pytest -n 2 --dist loadfile
	$(VENV)/clients/bin/python -m pytest tests/clients

soak: $(VENV)/.dev
	SOAK_SECONDS=$${SOAK_SECONDS:-300} $(BIN)/python -m pytest -s tests/crash/test_soak.py

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

bench-policy: $(VENV)/.bench
	$(BIN)/python -m benchmarks.policy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmrouter needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.pip: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[sandbox]'
	touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[sandbox]' --group test --group check
	touch $@

$(VENV)/.clients: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(VENV)/clients/bin/python -m pip install --quiet --editable '.[sandbox]' --group clients
	touch $@

$(VENV)/.bench: $(VENV)/.pip pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[sandbox]' --group bench
	touch $@
