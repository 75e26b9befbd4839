# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Not compiled: thousands of modules, one after the other, would take a quarter of the set-up.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
# A smaller torch on Linux without a GPU: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Each worker collects all files that it is given, so few are given those that import torch: three, for
# a third of their time is waiting.
UNIT ?= tests/unit -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Much of the other tests' time is waiting for hosts: six workers fill two cores.
OTHER ?= tests/hosts tests/local -n 6 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# The unit tests of what decides a deploy, a release and the gate.
DECIDING := tests/unit/inventory tests/unit/deploy/test_plan.py tests/unit/deploy/test_rollback_targets.py tests/unit/deploy/test_own_desired.py \
	tests/unit/release/test_judge.py $(addprefix tests/unit/gate/test_,bounds.py gate_bars.py gate_decision.py parse.py realised.py skill.py skill_read.py drift.py several_hosts.py own_lines.py own_files.py)

.PHONY: setup demo test test-full hosts-root check check-fast unit-fast coverage docs lock clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock requirements-cuda.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "macd needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python has no venv; on Debian/Ubuntu: apt-get install python3-venv"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up .venv (about a minute, once)"
	@$(PIP) --require-hashes $(PIP_ARGS) -r requirements.lock
	@# torch from PyPI needs CUDA's libraries on Linux, a build for the CPU does not
	@$(BIN)/python -c 'import sys; from importlib import metadata; sys.exit("nvidia-" in str(metadata.requires("torch")))' || $(PIP) --require-hashes $(PIP_ARGS) -r requirements-cuda.lock
	@# compat: a plain path instead of setuptools' finder, which each start of Python would import
	@$(PIP) --no-build-isolation --config-settings editable_mode=compat -e .
	@$(BIN)/python -m pip --quiet check
	@# compiled: what commands import; the rest when it is first imported
	@$(BIN)/python -m compileall -q macd tasks.py
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import tasks, macd.deploy.apply, macd.gate.report, macd.jobs.follow, macd.release.build'
	@touch $@

demo: $(READY)
	@$(BIN)/invoke demo

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What to run before each commit: no network, no root, no hosts.
check-fast: $(READY)
	@$(MAKE) -j 2 check unit-fast

unit-fast: $(READY)
	$(BIN)/python -m pytest -q -m "not full and not slow" --hypothesis-profile=fast $(UNIT)

# The floor is in pyproject.toml.
coverage: $(READY)
	$(BIN)/python -m pytest -q -m "not full" $(DECIDING) -n 2 --dist loadfile --cov

docs: $(READY)
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs site
	@echo "site/index.html"

test: $(READY) hosts-root
	@# side by side: each keeps one core busy
	@$(MAKE) -j 2 check docs
	@$(MAKE) coverage
	@# without what has just been run for its coverage
	$(BIN)/python -m pytest -m "not full" $(UNIT) $(addprefix --ignore=,$(DECIDING))
	$(BIN)/python -m pytest -m "not full" $(OTHER)

test-full: $(READY) hosts-root check
	@# too much for every setup: 97 MB, and it needs pandas, matplotlib and plotly
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt catboost==1.2.10
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(UNIT)
	$(BIN)/python -m pytest --hypothesis-profile=thorough $(OTHER)

# What real systemd hosts boot from. Where there is none yet it is built while other checks run.
hosts-root: $(READY)
	@sh tests/system-packages.sh
	@$(BIN)/python -m tests.support.hosts.rootfs &

# The versions that are installed in .venv, with their hashes. Needs Linux and pip's index.
lock: $(READY)
	@$(PYTHON) -m venv .lock
	@.lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
	@.lock/bin/python tools/lock.py $(PIP_ARGS)
	@rm -rf .lock

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache
