# make demo | test | lint | fast | clean. Python 3.11 or later as `python3`; PYTHON=... names another.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint fast clean
.DEFAULT_GOAL := test

# torch goes first and alone: resolved together with the rest, some indexes hand out a GPU build of several gigabytes.
# With a GPU, install the build that fits your driver here instead; the second command leaves it as it is.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/tithe select starter --scorer ifd --model pocket --device cpu --dtype fp32 --keep 10% -o demo/kept.jsonl --overwrite
	@$(BIN)/python examples/show_demo.py demo/kept.jsonl
	@echo
	@echo "The files: demo/kept.jsonl (what was kept) and demo/kept.tithe: scores.parquet, dropped.jsonl, run.json."
	@echo "This model is for trying out. On your own data: $(BIN)/tithe select data.jsonl --scorer ifd --model ..."

test: lint
	$(BIN)/python -m pytest -q -n auto --dist worksteal

fast: $(INSTALLED)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo
	find src tests examples docs -name __pycache__ -prune -exec rm -rf {} +
