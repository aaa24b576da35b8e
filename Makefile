PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= logical

TRITONS := 3.6.0 3.7.1 3.9.0
KERNEL_TESTS := $(sort $(shell find tests -name 'test_*_kernel.py'))

BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
READY_DOCS := $(VENV)/.ready-docs
# A long test begins first, and each process takes the next test when it is done with one.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --benchmark-disable
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e

.DEFAULT_GOAL := run
.PHONY: run test test-all fuzz campaign kernel-compat lint docs dist-check clean

run: $(READY)
	$(BIN)/hypermask train $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow and not alone" $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m pytest -q -m alone tests/benchmarks)

test-all: $(READY)
	$(BIN)/python -m pytest -q -m "" $(ARGS)

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(ARGS)

campaign: $(READY)
	$(BIN)/python -m tests.campaign $(ARGS)

# The kernels under other versions of Triton, laid over the installed one. They have to compile and
# to be right; that nothing spills is asked of the installed version, by the compile gate's test.
kernel-compat: $(TRITONS:%=.compat/%/.ready)
	for version in $(TRITONS); do \
	  echo "Triton $$version"; \
	  export PYTHONPATH=.compat/$$version; \
	  $(BIN)/python -m pytest -q $(KERNEL_TESTS) && \
	  $(BIN)/python tests/kernels/compile_gate.py > .compat/$$version/compiled.jsonl || exit 1; \
	done

.compat/%/.ready: $(READY)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade \
	  --target .compat/$* triton==$* $(if $(filter 3.6.%,$*),"numpy<2.4")
	@touch $@

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hypermask_fast benchmarks tests/fuzz tests/campaign

# The site, with warnings as errors: links, anchors, pages outside the navigation.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q $(ARGS)

# A wheel and an sdist, installed into environments of their own and tried there.
# ARGS: other interpreters, as python3.12 python3.13
dist-check: $(READY_DEV)
	$(BIN)/python -m tests.dist $(ARGS)

clean:
	rm -rf $(VENV) .compat build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are touched only after a complete install, so a broken one is tried again.
$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	@touch $@

$(READY_DEV): $(READY)
	$(INSTALL) ".[dev]"
	@touch $@

$(READY_DOCS): $(READY)
	$(INSTALL) ".[docs]"
	@touch $@
