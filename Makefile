# Two commands: `make demo` and `make test`. Both make .venv first; PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint clean

demo: .venv/installed
	$(BIN)/mrhdata demo

# One file of tests per process, and one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test: lint
	$(PYTEST) -m "not full"

# The long form: every test at full counts, with coverage.
check: lint
	MRHDATA_FULL=1 $(PYTEST) --cov --cov-report=term-missing:skip-covered

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-test: .venv/installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

clean:
	rm -rf .venv mrhdata-demo
