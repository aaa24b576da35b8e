PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e

.DEFAULT_GOAL := run
.PHONY: run test lint clean

run: $(READY)
	$(BIN)/hypermask train $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hypermask_fast benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are touched only after a complete install, so a broken one is tried again.
$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	@touch $@

$(READY_DEV): $(READY)
	$(INSTALL) ".[dev]"
	@touch $@
