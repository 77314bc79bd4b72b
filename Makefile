# Everything runs in .venv, which make creates. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CHECKED := neuron_mlir tests $(wildcard benchmarks)
LIT_WORKERS ?= 2
# BLAS threads do not help at these sizes and make timings noisy.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint unit lit bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,demo]'
	touch $@

install: $(STAMP) ## create .venv and install the package with all extras

demo: $(STAMP) ## compile ResNet-50 for 4 cores, run it on the simulated Inferentia, compare with ONNX Runtime
	$(BIN)/python -m neuron_mlir.tools.demo

test: lint unit lit ## every check: format, lint, types, import directions, unit tests, lit tests

lint: $(STAMP) ## formatter, linter, strict types, import directions
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/basedpyright $(CHECKED)
	$(BIN)/lint-imports

unit: $(STAMP) ## unit tests
	$(BIN)/pytest -q -W error

lit: $(STAMP) ## FileCheck tests
	$(BIN)/lit --quiet --time-tests -j $(LIT_WORKERS) tests/lit

bench: $(STAMP) ## the benchmarks of benchmarks/, with ONNX Runtime beside them
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## write docs/reference/ from the docstrings
	$(BIN)/python -m neuron_mlir.tools.reference_docs

clean: ## remove the environment and the caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
