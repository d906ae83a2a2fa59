# Two commands do everything on a fresh machine: `make demo` and `make test`. `make help` lists the others.
#   PYTHON=python3.12 make test    another interpreter for .venv
#   make test V=1                  show what pip installs
#   make test MARKS='not slow'     leave out marked tests
# pip's own settings (index, proxy, cache) are honoured; nothing here overrides them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP_QUIET := $(if $(V),,--quiet)
MARKS ?=
WORKERS ?= 2

# The plain interpreter first: version managers leave python3.x names on PATH that do not run.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10)
PYTHON_FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))

# The demo is content with an environment that has the development tools as well.
DEMO_STAMP := $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(RUN_STAMP))

.PHONY: help demo test gpu lint fmt lock clean install install-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO_STAMP) ## Distil a small student end to end on this machine
	@$(BIN)/raybrew demo

test: lint ## Run every check: style, types, import layers, all tests
	@echo "== contracts, unit, numerics, trajectories"
	@$(BIN)/python -m pytest tests/contracts tests/unit tests/numerics tests/trajectories -q -n $(WORKERS) --dist loadfile -m "$(MARKS)"
	@echo "== devices: in processes of their own, which have one more device"
	@$(BIN)/python -m pytest tests/devices -q -n $(WORKERS) --dist loadfile -m "$(MARKS)"
	@echo "== integration: one local Ray cluster"
	@$(BIN)/python -m pytest tests/integration -q -m "$(MARKS)"

gpu: $(DEV_STAMP) ## On a machine with a GPU: its tests and both benchmarks, in under 10 minutes
	@$(BIN)/python experiments/benchmarks/gpu.py

lint: $(DEV_STAMP) ## Check style, types and import layers
	@echo "== ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "formatting differs: run make fmt" >&2; exit 1; }
	@echo "== mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "== import layers"
	@$(BIN)/lint-imports --no-logo

fmt: $(DEV_STAMP) ## Format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

install: $(RUN_STAMP) ## Set up .venv with raybrew
install-dev: $(DEV_STAMP) ## Set up .venv with raybrew and the development tools

$(BIN)/python:
	@for candidate in $(PYTHONS); do \
	  if "$$candidate" -c '$(PYTHON_FITS)' > /dev/null 2>&1; then \
	    echo "== creating $(VENV) with $$("$$candidate" --version)"; \
	    "$$candidate" -m venv --clear $(VENV) && exit 0; \
	    rm -f $@; \
	    echo "$$candidate cannot create $(VENV) (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; \
	  fi; \
	done; \
	echo "raybrew needs Python 3.10 to 3.13; none of these runs and fits: $(PYTHONS)." >&2; \
	echo "Name one: make PYTHON=/path/to/python3.12 test" >&2; exit 1

# $(call install,what to install): the environment may be older than this file, so its version is checked too.
define install
@$(BIN)/python -c '$(PYTHON_FITS)' || { echo "$(VENV) is not Python 3.10 to 3.13: make clean, then try again" >&2; exit 1; }
@echo "== installing $(1) into $(VENV) (several minutes and some gigabytes the first time)"
@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check -c $(CONSTRAINTS) -e '$(1)'
endef

$(RUN_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(call install,.)
	@touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(call install,.[dev])
	@touch $(RUN_STAMP) $@

# Not the development stamp: a pyproject.toml that the old pins refuse must still be lockable.
$(BIN)/uv: | $(BIN)/python
	@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check -c $(CONSTRAINTS) uv

# One file for every platform and Python we support: versions only, no hosts, no hashes, no paths. uv says of each line
# again where all lines hold (tool.uv.environments of pyproject.toml); that is left out.
# Pins already in the file are kept where they still fit; `make lock UPGRADE=1` takes the newest.
lock: $(BIN)/uv ## Write constraints.txt anew from pyproject.toml
	@cp $(CONSTRAINTS) $(CONSTRAINTS).new
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.10 --all-extras $(if $(UPGRADE),--upgrade) \
	  --no-header --no-annotate --output-file $(CONSTRAINTS).new \
	  || { rm -f $(CONSTRAINTS).new; exit 1; }
	@{ echo "# The versions raybrew is tested with: Linux and macOS, Python 3.10 to 3.13. Made by \`make lock\`, not by hand."; \
	  sed -E "s/ and sys_platform != 'emscripten' and sys_platform != 'win32'//g; s/ ; python_full_version < '3\.14'$$//; s/python_full_version < '3\.14' and //; s/ and python_full_version < '3\.14'//" \
	  $(CONSTRAINTS).new; } > $(CONSTRAINTS).done
	@rm -f $(CONSTRAINTS).new && mv $(CONSTRAINTS).done $(CONSTRAINTS)

clean: ## Remove .venv and caches; runs and stores stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -type d -name __pycache__ -prune -exec rm -rf {} +
