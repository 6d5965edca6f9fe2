# Two commands do all set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The virtual environment is rebuilt when the list of dependencies changes.
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed

.PHONY: quickstart test test-slow lint bench docs schemas clean

quickstart: $(INSTALLED)
	$(BIN)/tfllm quickstart

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# One mark at a time, so that a skip says which part is missing.
test-slow: $(INSTALLED) $(DOCS_INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or edge or parity" --durations 15

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

# The site, in site/: fails on a warning, such as a broken link.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The JSON Schemas that recipes and profiles name for editors.
schemas: $(INSTALLED)
	for name in recipe profile corpus space; do \
		$(BIN)/tfllm schema $$name --output docs/schemas/$$name.json || exit 1; done

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) site build dist *.egg-info
