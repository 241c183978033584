# make demo      set up, then distil scikit-learn's digits and show what came out (minutes on two cores)
# make install   set up alone
# make test      lint, types, tests, wheel
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test lint format notebook clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/delt experiment digits --preset demo --out papermill_runs/demo

test: lint
	$(BIN)/pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: install  # rewrite the parameters cell from the configuration's fields
	$(BIN)/python -m delt.batch

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
