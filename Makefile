# A fresh machine needs Python (3.11 to 3.13) and make; the rest is set up here.
PYTHON ?= python3
BIN := .venv/bin
# The environment belongs to one version of Python: another PYTHON makes it anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := .venv/installed-$(VERSION)
PYTEST := -m pytest -n 2 --dist loadfile

# Without compiled byte code every process would compile what it imports again.
unexport PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE = 1

.PHONY: demo test test-lowest check bench soak install wheel clean help

demo: $(INSTALLED)             ## networks learn real digits and a sweep looks for one, in about two minutes
	$(BIN)/python scripts/demo.py

test: $(INSTALLED)             ## the tests; TESTS="-m full_data" or a path runs some of them, PYTHON=python3.13 another Python
	$(BIN)/python $(PYTEST) $(TESTS)

test-lowest: $(INSTALLED)      ## the tests with the oldest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
# Old releases warn of what newer ones have mended, so that warnings are no errors here.
	.venv-lowest/bin/python $(PYTEST) -o filterwarnings=default $(TESTS)

check: $(INSTALLED)            ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)            ## what the framework costs, as ratios (needs full MNIST)
	$(BIN)/python scripts/bench.py

soak: $(INSTALLED)             ## runs and sweeps killed at random moments, compared with undisturbed ones
	LIT_MNIST_SOAK=20 $(BIN)/python -m pytest -s tests/training/test_soak.py tests/sweeps/test_soak_sweep.py \
		tests/sweeps/test_soak_array.py tests/cluster

install: $(INSTALLED)          ## the environment alone

wheel: $(INSTALLED)            ## a wheel in dist/
	$(BIN)/uv build --wheel --quiet --python $(BIN)/python

clean:                         ## remove the environments and what tools have cached
	rm -rf .venv .venv-lowest dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache

help:                          ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@
