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

demo: $(INSTALLED)
	$(BIN)/tithe select starter --scorer ifd --gate 50% --model pocket --device cpu --dtype fp32 --keep 10% -o demo/kept.jsonl --overwrite
	@$(BIN)/python examples/show_demo.py demo/kept.jsonl
	@echo
	@echo "The files: demo/kept.jsonl (what was kept) and demo/kept.tithe: scores.parquet, dropped.jsonl, run.json."
	@$(BIN)/python examples/real_model.py demo
	@echo "This model is for trying out. On your own data: $(BIN)/tithe select data.jsonl --scorer ifd --model ..."

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
