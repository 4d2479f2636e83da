# A fresh machine needs Python (3.11 or newer) and make; the rest is set up here.
PYTHON ?= python3
BIN := .venv/bin

# Without compiled byte code every process would compile what it imports again.
unexport PYTHONDONTWRITEBYTECODE
export UV_COMPILE_BYTECODE = 1

.PHONY: demo test check bench soak install wheel clean

demo: .venv/installed          ## networks learn real digits and a sweep looks for one, in about two minutes
	$(BIN)/python scripts/demo.py

test: .venv/installed          ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed         ## lint, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed         ## what the framework costs, as ratios (needs full MNIST)
	$(BIN)/python scripts/bench.py

soak: .venv/installed          ## runs and sweeps killed at random moments, compared with undisturbed ones
	LIT_MNIST_SOAK=20 $(BIN)/python -m pytest -s tests/training/test_soak.py tests/sweeps/test_soak_sweep.py

install: .venv/installed       ## the environment alone

wheel: .venv/installed         ## a wheel in dist/
	$(BIN)/uv build --wheel --quiet --python $(BIN)/python

clean:
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@
