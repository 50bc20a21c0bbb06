# make demo | test | test-all | fast | lint | clean. Python 3.11 or later as `python3`; PYTHON=... names another.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -q -n auto --dist worksteal
# The tests start many processes: each module is compiled once for all of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all fast lint clean
.DEFAULT_GOAL := test

# torch goes first and alone: resolved together with the rest, some indexes hand out a GPU build of several gigabytes.
# With a GPU, install the build that fits your driver here instead; the second command leaves it as it is.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# MODEL=... reads with another model; without one SmolLM2-135M-Instruct is fetched, where it can be had.
demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py demo $(MODEL)
	@echo
	@echo "Open demo/kept.tithe/look.html. On your own data: docs/first-steps.md, or"
	@echo "  $(BIN)/tithe select data.jsonl --scorer ifd --gate 50% --model ... --keep 10% -o kept.jsonl"

test: lint
	$(PYTEST) -m "not thorough"

# And all cells of the large matrices: every family, template and damaged file with everything else.
test-all: lint
	$(PYTEST)

fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not thorough"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo
	find src tests examples docs -name __pycache__ -prune -exec rm -rf {} +
