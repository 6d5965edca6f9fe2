# Two commands do all set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The virtual environment is rebuilt when the list of dependencies changes.
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-slow lint bench clean

quickstart: $(INSTALLED)
	$(BIN)/tfllm quickstart

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# One mark at a time, so that a skip says which part is missing.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or edge or parity" --durations 15

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
