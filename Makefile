# Everything below makes and uses .venv in this checkout; nothing outside it is touched.
PYTHON ?= python3
VENV := .venv
# Processes that the tests run in; each has a database and a Prefect server of its own.
JOBS ?= 2
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install demo screenshots test browser check bench-fidelity bench-engine bench-review bench-clients bench-regions clean

help:  ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# torch first and alone: other packages would pull its newest build with gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt deploy/building.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Onmodel needs Python 3.11 or newer: make PYTHON=python3.11 demo"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/installed  ## make .venv with pinned dependencies

demo: $(VENV)/installed  ## a library from S3, new pictures, review, release, lineage
	@$(BIN)/python deploy/demo.py

screenshots: $(VENV)/installed browser  ## the pictures of docs/review.md, of the demo
	$(BIN)/python -m deploy.screenshots

check: $(VENV)/installed  ## ruff, mypy, import contracts, migrations
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m migrations.check

# The tests of the pages run in Debian's Chromium; where it may not be installed they are skipped, and say so.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		[ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "The tests in a browser are skipped: sudo apt-get install chromium"

test: check browser  ## all checks, then all tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

bench-fidelity: $(VENV)/installed  ## is the shipped model on model? 200 characters it never saw
	$(BIN)/python -m ipadapter_engine.evaluation.fidelity

# ROWS: which of them, by commas, where not all are wanted: make bench-engine ROWS=studio,encoder
bench-engine: $(VENV)/installed  ## how much faster than diffusers and transformers, for the same pictures?
	$(BIN)/python -m benchmarks.engine $(if $(ROWS),--rows $(ROWS))

bench-review: $(VENV)/installed browser  ## is deciding as quick among 100,000 assets as among 1,000?
	$(BIN)/python -m benchmarks.review

bench-clients: $(VENV)/installed  ## does the API hold with 50 clients at once, with keys of all kinds?
	$(BIN)/python -m benchmarks.clients

bench-regions: $(VENV)/installed  ## two characters in one picture: does one bleed into the other?
	$(BIN)/python -m benchmarks.regions

clean:  ## remove the environment and the demo's data
	rm -rf $(VENV) demo
