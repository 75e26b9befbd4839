"""What holds for every test, whoever runs them wherever."""

import gc
import os
import signal
import sys
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from macd.cli import interrupts

# No deadline: a busy machine is no defect. `make check-fast` asks for the fast profile, `make
# test-full` for the thorough one.
for profile, examples in (("fast", 4), ("quick", 15), ("thorough", 300)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("quick")

for name in ("MACD_INVENTORY", "MACD_ROOT"):  # an operator's own must not steer the commands typed
    os.environ.pop(name, None)

# Each worker and each command that is typed would compile every source anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# nohup and a shell's `&` have signals ignored, which every command that a test types would inherit.
for number, usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# Several workers share the cores: threads that wait for each other by spinning only take CPU time.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end: to look for garbage among them only takes CPU time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# A worker is given whole files. The longest begin first: one that began last would run on alone.
LONGEST = (
    *("test_cluster_hosts.py", "test_end_to_end_hosts.py", "test_own_app_lab.py"),
    *("test_client_killed.py", "test_own_app_hosts.py", "test_demo_whole.py"),
    *("test_own_waves_lab.py", "test_flag_hosts.py", "test_guard_host.py", "test_tampering.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a run left out is counted where everybody reads it."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("could not import 'catboost'" in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests were NOT run: they need catboost")


@pytest.fixture(autouse=True)
def ctrl_c_as_usual() -> None:
    """Importing tasks.py lets Ctrl-C end the process; a test that presses it would end them all."""
    interrupts.as_usual()
