# What a developer does here; `make help` lists it. Every target builds the virtual environment first if need be.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.built-from-lock
INSTALLED := $(VENV)/.installed

# torch goes first and alone: asked for together with the rest, a plain resolver may choose a build with several
# gigabytes of CUDA libraries. To choose a build: make venv TORCH="torch==2.13.0 --index-url ADDRESS"
TORCH ?= $(shell sed -n '/^torch==/p' requirements.lock)

# make test PYTEST="-x -k patches" narrows a test run; PYTEST="-n 0" runs it in one process.
PYTEST ?=
# One process a core, of one thread each: with several threads, kernels spin at barriers and stall one another.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
# make bench MINUTES=5 is a quick look.
MINUTES ?= 30

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(INSTALLED) ## Build .venv from requirements.lock (again when the lock has changed)

$(LOCKED): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old: Python 3.11 or later is needed; try make venv PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: venv ## Mine the embedded emoji by design year, offline, into reports/emoji-year
	$(BIN)/typicality mine --label year --out reports/emoji-year
	@echo "Report: $(CURDIR)/reports/emoji-year/index.html"

.PHONY: test
test: venv ## Run all tests but the browser's
	$(TESTS) -m "not browser" $(PYTEST)

.PHONY: test-fast
test-fast: venv ## Run the tests that take no more than a few seconds each
	$(TESTS) -m "not slow and not browser" $(PYTEST)

.PHONY: test-browser
test-browser: venv ## Open the report in headless Chromium (needs /usr/bin/chromium)
	$(BIN)/python -m pytest -m browser $(PYTEST)

.PHONY: lint
lint: venv ## Check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: venv ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: venv ## Check types with mypy
	$(BIN)/mypy

.PHONY: docs
docs: venv ## Write docs/cli.md from the commands' own help
	$(BIN)/python docs/cli_reference.py > docs/cli.md.new
	@mv docs/cli.md.new docs/cli.md

.PHONY: bench
bench: venv ## Measure speed, and held-out accuracy after 30 minutes of fine-tuning, into reports/benchmarks
	mkdir -p reports/benchmarks
	$(BIN)/typicality doctor --json > reports/benchmarks/doctor.json
	$(BIN)/typicality bench --write reports/benchmarks/bench.json
	$(BIN)/typicality finetune emoji --label year --minutes $(MINUTES) --out reports/bench-emoji-year \
		--set finetune.label_blocks=0 --set finetune.rate=6e-4 --set finetune.cross_attention_rate=2 \
		--set finetune.validate_every=340
	$(BIN)/typicality evaluate classify reports/bench-emoji-year --draws 8 \
		--write reports/benchmarks/classify-emoji-year-$(MINUTES)min.json

.PHONY: wheel
wheel: venv ## Build the wheel and the source archive into dist
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

.PHONY: ci
ci: ## Do what continuous integration does, in a new environment (about 20 minutes)
	.ci/run

.PHONY: clean
clean: ## Remove caches and builds; runs in reports/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find cli configs docs tests typicality -name __pycache__ -type d -prune -exec rm -rf {} +
