# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A smaller torch on Linux without a GPU: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Each worker collects all files that it is given, so few are given those that import torch.
UNIT ?= tests/unit -n 2 --dist loadfile --no-loadscope-reorder
# Much of the other tests' time is waiting for hosts: five workers fill two cores.
OTHER ?= tests/hosts tests/local -n 5 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-full check check-fast docs lock clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "macd needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python has no venv; on Debian/Ubuntu: apt-get install python3-venv"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up .venv (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	@# compat: a plain path instead of setuptools' finder, which each start of Python would import
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	@$(BIN)/python -m compileall -q macd tasks.py
	@touch $@

demo: $(READY)
	@$(BIN)/invoke demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What to run before each commit: no network, no root, no hosts.
check-fast: check
	$(BIN)/python -m pytest -q -m "not full and not slow" $(UNIT)

docs: $(READY)
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs site
	@echo "site/index.html"

test: $(READY) check docs
	@sh tests/system-packages.sh
	$(BIN)/python -m pytest -m "not full" $(UNIT)
	$(BIN)/python -m pytest -m "not full" $(OTHER)

test-full: $(READY) check
	@sh tests/system-packages.sh
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(UNIT)
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(OTHER)

lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache
