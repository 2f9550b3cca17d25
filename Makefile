# Everything a developer runs; each target sets up what it needs in .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/hubhound demo

# Two at a time, with a thread each: tests wait more than they compute, and two that share busy cores crawl. In the order of
# the folders: the slow ones come first, and the many quick ones fill both processes to the end.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/scan.py --small
	$(BIN)/python benchmarks/store.py --small
	$(BIN)/python benchmarks/probing.py --small
	$(BIN)/python benchmarks/realhub.py --small
	$(BIN)/python benchmarks/conductance.py --small
	$(BIN)/python benchmarks/recommend.py --small
	$(BIN)/python benchmarks/crawl.py --small
	$(BIN)/python benchmarks/http.py --small
	$(BIN)/python benchmarks/server.py --small
	$(BIN)/python benchmarks/over_grpc.py --small
	$(BIN)/python benchmarks/catch_up.py --small
	$(BIN)/python benchmarks/candidates.py --small
	$(BIN)/python benchmarks/fleet.py --small

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
