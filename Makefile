# make demo      set up, then distil scikit-learn's digits and show what came out (minutes on two cores)
# make sweep-demo  accuracy on digits over RI x M as a picture (under 5 minutes on two cores)
# make install   set up alone
# make test      lint, types, tests, wheel
# make browser   what the tests in a real browser need: Chromium from Debian's packages, Playwright from PyPI
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n + 1 : 8)))
export OMP_NUM_THREADS ?= 1
export PYTHONDONTWRITEBYTECODE :=  # where it is set, as in many containers, every process that a test starts would compile this package again

.PHONY: install demo sweep-demo browser test lint format notebook soak coverage clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/delt experiment digits --preset demo --out papermill_runs/demo

sweep-demo: install
	$(BIN)/delt sweep papermill_runs/sweeps/ri_m.yaml --out papermill_runs/ri_m --jobs 2

browser: install
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
	  || { echo "chromium is missing and could not be installed: as root, apt-get install chromium"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[browser]"

test: lint
	$(BIN)/pytest -n $(JOBS) --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebook: install  # rewrite the parameters cell from the configuration's fields
	$(BIN)/python -m delt.batch

soak: install  # the long proofs of durability: every I/O call, random files and kills, missing syncs and checks (about 40 minutes)
	$(BIN)/python -m benchmarks.soak

coverage: install  # every branch of what reads and writes files (a minute)
	$(BIN)/coverage run -m pytest -p no:xdist tests/test_storage.py tests/test_drift.py tests/test_artifacts_*.py tests/test_data_*.py tests/test_batch_points.py
	$(BIN)/coverage report

clean:
	rm -rf .venv .coverage build dist .mypy_cache .ruff_cache .pytest_cache
