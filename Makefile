# Two commands: `make demo` and `make test`. Both make .venv first; PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

# The tests start many processes; each would compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint docs clean

demo: .venv/installed
	$(BIN)/mrhdata demo

# One thread per process; those of a file stay together, but for what an idle process takes over.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

test: lint
	$(PYTEST) -m "not full"

# The long form: every test at full counts, with coverage.
check: lint .venv/installed-docs
	MRHDATA_FULL=1 $(PYTEST) --cov --cov-report=term-missing:skip-covered

# The site, in docs/_build: guides are run, and a warning is an error.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs docs/_build

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.plain_english

INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e '.[test]'
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv mrhdata-demo docs/_build docs/reference/generated docs/guides/*.png
