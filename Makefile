# Everything a working copy needs. Only make and Python >= 3.11 with its venv module have to be there.

.DEFAULT_GOAL := venv
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
# One stamp says the environment is whole. Touched last, so an interrupted install is done again.
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
UV := $(BIN)/uv
# With UPGRADE=1 `make lock` takes the newest versions; without it, only what pyproject.toml made necessary.
UPGRADE ?=
LOCK_OPTIONS = --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade)
# The first Python new enough; `make PYTHON=... venv` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo "$$python"; break; }; done)
# Processes for the tests, some of which mostly wait; `make test JOBS=0` runs them in one.
JOBS ?= 3
# How much of the long tests' rounds; `make soak SHARE=0.01` shows whether the long run would work.
SHARE ?= 1
# Which benchmarks, and options; all of them without.
BENCH ?=

.PHONY: venv
venv: $(STAMP) ## Create .venv from the lock and install the project into it (default)

# An environment without pip is what a failed `python -m venv` leaves behind.
$(STAMP): pyproject.toml requirements/uv.txt requirements/dev.txt
	@test -n "$(PYTHON)" || { echo 'make: whimbrel needs Python 3.11 or newer, with its venv module' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: venv ## Show it at work
	$(BIN)/whimbrel demo

.PHONY: test
test: venv ## Run all tests
	@$(BIN)/pytest -n $(JOBS)

.PHONY: soak
soak: venv ## Run the long tests with release figures, into build/soak.json (hours)
	@$(BIN)/pytest -n $(JOBS) --soak --soak-share $(SHARE)

.PHONY: bench
bench: venv ## Measure, beside others, into build/bench.json (BENCH="rate --pairs 7"; on a quiet machine)
	@$(BIN)/python -m benchmarks $(BENCH)

.PHONY: check
check: venv ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(DOCS_STAMP) ## Build the documentation into site/; fails on a broken link, anchor or name
	$(BIN)/zensical build --strict --clean

$(DOCS_STAMP): $(STAMP) requirements/docs.txt
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/docs.txt
	@touch $@

# What is made from the code: the reference of the command line, the diagrams, the recording of the demo.
.PHONY: pages
pages: venv ## Make anew the pages that are made from the code (a test compares them)
	$(BIN)/python -m docs.making.command_line docs/reference/command-line.md
	$(BIN)/python -m whimbrel.testing.diagrams docs/architecture.md

.PHONY: recording
recording: venv ## Run the demo and record it into docs/demo.svg (a minute)
	$(BIN)/python -m docs.making.recording docs/demo.svg

.PHONY: format
format: venv ## Format the code and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# Needs the present lock only for uv itself. One resolution holds for all supported versions of Python.
.PHONY: lock
lock: venv ## Compile requirements/*.txt anew (UPGRADE=1: with the newest versions)
	$(UV) pip compile $(LOCK_OPTIONS) --all-extras --group dev --group bench pyproject.toml --output-file requirements/dev.txt
	$(UV) pip compile $(LOCK_OPTIONS) --group docs --constraints requirements/dev.txt --output-file requirements/docs.txt
	echo uv | $(UV) pip compile $(LOCK_OPTIONS) --no-annotate - --output-file requirements/uv.txt

.PHONY: clean
clean: ## Remove the environment, caches and what was built
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
