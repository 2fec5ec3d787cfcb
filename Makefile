# make demo    everything on simulated cameras, or on SOURCE= with MODEL=; DEMO_SECONDS= ends it by itself
# make test    linters, type checker, all tests but the slowest; make test-all runs these too
# They make .venv first. PYTHON=python3.11 chooses another interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# Progress on a terminal, silence in a log.
PIP_OUTPUT = $(if $(MAKE_TERMOUT),--progress-bar on,--quiet)

# DeepSparse, the fastest engine, has wheels up to Python 3.11 only; a newer python3 runs on the other engines.
# A candidate must start (a version manager's shim may not) and be able to make an environment with pip.
ifndef PYTHON
PYTHON := $(shell for name in python3 python3.11 python3.10; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null \
	&& { echo "$$name"; exit; }; done; echo python3)
endif

.PHONY: help demo test test-all lint format compose-test clean

help:
	@sed -n '1,/^$$/s/^# //p' Makefile
	@echo "also: make test-all, make lint, make format, make compose-test, make clean"

demo: $(VENV)/.runtime
	@$(BIN)/sparsecam demo \
		$(if $(SOURCE),--source '$(subst ','\'',$(SOURCE))') \
		$(if $(MODEL),--model '$(subst ','\'',$(MODEL))') \
		$(if $(LABELS),--labels '$(subst ','\'',$(LABELS))') \
		$(if $(DEMO_SECONDS),--seconds '$(subst ','\'',$(DEMO_SECONDS))')

# The tests come last, so that their count is the last line.
test: lint
	@$(BIN)/pytest -n $(JOBS) -m "not slow"

test-all: lint
	@$(BIN)/pytest -n $(JOBS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: $(VENV)/.dev
	@$(BIN)/ruff format .

# Builds images and runs them; needs podman (see deploy/).
compose-test: $(VENV)/.dev
	@PATH="$(abspath $(BIN)):$$PATH" bash deploy/compose_test.sh

# A stamp file a stage: a second run has nothing to do until pyproject.toml changes.
$(VENV)/.runtime: $(VENV)/.made pyproject.toml
	@echo "installing Sparsecam into $(VENV) (some 300 MB the first time)"
	@$(BIN)/python -m pip install $(PIP_OUTPUT) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime pyproject.toml
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install $(PIP_OUTPUT) --editable '.[dev]'
	@touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
		echo "No $(PYTHON) here. Debian/Ubuntu: sudo apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$$($(PYTHON) --version) is too old: Sparsecam needs 3.10 or later. Give another: make PYTHON=python3.11 ..."; \
		exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments. Debian/Ubuntu: sudo apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
		echo "$$($(PYTHON) --version): DeepSparse has no build for it, so onnxruntime detects (slower)."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	@rm -rf $(VENV) build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
