"""An instance for each symbol on the lab, and one of them fails: what is done, and what is said."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.lab import LabState
from tests.local.test_many_symbols_lab import signals
from tests.support import small_releases
from tests.support.lab_project import Project, project
from tests.support.several_symbols import SYMBOLS
from tests.support.symbols_lab import INSTANCES, answers, provisioned

NAME = "faults"
PATIENCE_S = 90
TASKS = """
from invoke import Collection
from macd.cli import audit, dashboard, deploy, doctor, flag, gate, logs, monitor, provision, status
from macd.cli import usage
usage.install()
namespace = Collection(
    audit.audit, dashboard.dashboard, deploy.deploy, deploy.plan, deploy.rollback, doctor.doctor,
    flag.enable_stacking, flag.disable_stacking, gate.shadow_gate, logs.logs, monitor.monitor,
    provision.provision, status.status, status.why,
)
"""
MORE = """
guard: {every_hours: 0.0005, for_hours: 1, steps: [50, 80]}
alerts: {every_minutes: 0.05, disk_free: 0, clock_s: 0}
"""
# A symbol's models fail while there is a file of its name.
BREAKABLE = """
import os, sys
from macd.app.service.predictor import Predictor
given = dict(zip(sys.argv, sys.argv[1:]))
broken = f"{given['--root']}/broken-{given.get('--symbol')}"
plain = Predictor.predict
def predict(self, *bars):
    return self.refuse("broken by the test") if os.path.exists(broken) else plain(self, *bars)
Predictor.predict = predict
"""
GIVES_UP = "import sys\nif 'ETHUSD' in sys.argv:\n    sys.exit('no bars of ETHUSD')\n"


@pytest.fixture(scope="module")
def bench(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = project(lab, tmp_path_factory.mktemp("faults") / "p", NAME)
    bench = provisioned(made, TASKS, INSTANCES, more=MORE, replays=(*SYMBOLS, "XRPUSD"))
    release(bench, 1)
    bench.invoke("deploy", "--yes")
    yield bench
    bench.systemctl("stop", *(unit(name) for name in answers(bench)))


def release(
    bench: Project, serial: int, symbols: tuple[str, ...] = SYMBOLS, first: str = ""
) -> str:
    return small_releases.make_several(
        bench.inventory, serial, symbols, patched=BREAKABLE, first=first
    )


def unit(symbol: str) -> str:
    return f"{NAME}@{symbol}.service"


def weights(bench: Project) -> list[int | None]:
    return [said.get("stacking_weight") for said in answers(bench).values()]


def all_serve(bench: Project) -> bool:
    return {said.get("status") for said in answers(bench).values()} == {"ok"}


def guard_of(bench: Project) -> int:
    """The guard's process; 0 for none, or where the next one has not taken the lock yet."""
    pid = int(json.loads((bench.app / "state/guard.lock").read_text())["pid"])
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return pid if {b"guard", bytes(bench.app)} <= set(words) else 0
    return 0


def watch(bench: Project) -> dict[str, Any]:
    return dict(json.loads((bench.app / "state/guard.json").read_text()))


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def until_said(bench: Project, word: str, code: int, *words: str) -> str:
    """Type it until it says that word, and ends with that code."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with bench.start(*words) as typed:
            out, err = typed.communicate(timeout=240)
        if word in out and typed.returncode == code:
            return out
        assert time.monotonic() < deadline, out + err


def counted(bench: Project) -> Counter[str]:
    return Counter(line["symbol"] for line in signals(bench) if line["release"] == bench.live)


def judged(bench: Project) -> None:
    """The gate has passed all symbols."""
    until(lambda: min(counted(bench)[name] for name in SYMBOLS) > 30)
    assert "3 symbols: 3 PASS" in bench.invoke("shadow-gate")


def make_due(bench: Project, weight: int, lasted_s: float = 0) -> None:
    """The guard's watch at that weight is at its end, so that its next step is due.

    lasted_s: how long it was, and the next one is; 0 for as long as it really was.
    """
    guard = guard_of(bench)
    if not guard:
        return
    os.kill(guard, signal.SIGSTOP)
    before, now = watch(bench), time.time()
    since = min(before["since"], now - lasted_s)
    if before["weight"] == weight and (before["until"] > now or before["since"] - since > 60):
        due = {**before, "since": since, "until": now, "next": now}
        (bench.app / "state/guard.json").write_text(json.dumps(due))
    os.kill(guard, signal.SIGCONT)


def test_what_looks_at_lines_looks_at_each_symbols(bench: Project, tmp_path: Path) -> None:
    judged(bench)
    said = bench.invoke("audit", "--days", "0.0005")
    assert "✓ every line is repeated" in said
    assert "BTCUSD 1h, one of 3 symbols (--symbol repeats another)" in said
    assert "ETHUSD 1h, one of 3" in bench.invoke("audit", "--days", "0.0005", "--symbol", "ETHUSD")
    assert "lines of ETHUSD said again" in " ".join(bench.invoke("shadow-gate").split())
    said = bench.invoke("logs", "--parquet", str(tmp_path))
    assert "lines in 3 files" in said
    assert {path.stem.rpartition("_")[2] for path in tmp_path.iterdir()} == set(SYMBOLS)
    page = tmp_path / "page.html"
    bench.invoke("dashboard", "--once", str(page))
    assert [name in page.read_text() for name in SYMBOLS] == [True] * 3
    said = bench.invoke("logs", "--unit", "XRPUSD", code=2)
    assert unit("ETHUSD") in said


def test_the_guard_takes_stacking_from_all_when_one_fails(bench: Project) -> None:
    judged(bench)
    said = bench.invoke("enable-stacking", "--yes", "--weight", "20")
    assert "stacking decides with 20 %; 3 processes run with it" in said
    assert weights(bench) == [20] * 3
    # The first one is away: the others still decide with it.
    bench.systemctl("stop", unit(SYMBOLS[0]))
    assert "stacking  decides with 20 %" in bench.invoke("status", code=1)
    assert "decides with 20 %" in bench.invoke("why")
    bench.invoke("enable-stacking", "--yes", "--weight", "30")
    assert weights(bench) == [30] * 3

    # One that is put away is not started by the flag, and the next step waits for it.
    bench.systemctl("disable", unit("ETHUSD"))
    bench.systemctl("stop", unit("ETHUSD"))
    assert "2 processes run with it" in bench.invoke("enable-stacking", "--yes")
    assert weights(bench) == [50, None, 50]
    until(lambda: make_due(bench, 50) or watch(bench).get("waits"))
    said = until_said(bench, "it waits: 0 of at least 20 bars of ETHUSD were judged", 1, "status")
    assert f"{unit('ETHUSD')} is not enabled" in said
    bench.systemctl("enable", unit("ETHUSD"))
    bench.systemctl("start", unit("ETHUSD"))
    until(lambda: make_due(bench, 50, 3600) or watch(bench)["weight"] == 80)
    until(lambda: weights(bench) == [80] * 3)
    assert "decides with 80 %, raised by the guard from 50 %" in bench.invoke("status")

    (bench.app / "broken-ETHUSD").touch()
    why = "ETHUSD: ML coverage"
    assert why in bench.invoke("monitor", code=4)
    (bench.app / "broken-ETHUSD").unlink()
    assert weights(bench) == [0] * 3
    # The alarm that the guard had not disabled it yet may still be open.
    said = until_said(bench, "stacking  in shadow: the guard disabled it at ", 0, "status")
    assert why in said and why in bench.invoke("why")
    until_said(bench, why, 0, "doctor")


def test_one_that_hangs_or_is_put_away_is_named(bench: Project) -> None:
    until(lambda: all_serve(bench))
    until_said(bench, "alerts    none", 0, "status")
    pid = answers(bench)["LTCUSD"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        said = until_said(bench, "✗ service, since", 1, "status")
        assert f"{unit('LTCUSD')}: pid {pid}, active; ✗ it does not answer" in said
        assert "✗ LTCUSD: last bar none yet; it does not answer" in said
        assert "✓ BTCUSD: last bar" in said and "✓ ETHUSD: last bar" in said
        assert f"the service says failed: {unit('LTCUSD')}: it does not answer" in said
        said = bench.invoke("doctor", code=1)
        assert "LTCUSD: it does not answer" in said
        assert f"invoke logs --unit LTCUSD; invoke deploy --restart --release {bench.live}" in said
        assert unit("LTCUSD") in bench.invoke("plan")
        page = bench.root / "page.html"
        assert "needs a person: nothing" not in bench.invoke("dashboard", "--once", str(page))
        assert f"{unit('LTCUSD')}: it does not answer" in page.read_text()
    finally:
        os.kill(pid, signal.SIGCONT)
    until_said(bench, "alerts    none", 0, "status")

    os.kill(pid, signal.SIGKILL)
    until_said(bench, "1 restarts, active", 0, "status")
    bench.systemctl("disable", unit("BTCUSD"))
    bench.systemctl("stop", unit("BTCUSD"))
    until_said(bench, "alerts    none", 1, "status")  # nobody means it to run
    bench.systemctl("stop", unit("LTCUSD"))  # the others are still looked at
    until_said(bench, f"{unit('LTCUSD')} is inactive (success); do", 1, "status")
    bench.invoke("deploy", "--restart", "--yes", "--release", str(bench.live))
    assert all_serve(bench)
    assert "drift     none" in bench.invoke("status")


def killed(bench: Project, number: int) -> None:
    """Type a deploy, and kill it and the host's runner once the host restarts what serves."""
    log = bench.app / f"state/activations/{number}.jsonl"
    with bench.start("deploy", "--yes") as typed:
        until(lambda: log.is_file() and '"restarting"' in log.read_text())
        typed.kill()
        os.kill(
            json.loads((bench.app / "state/activation.lock").read_text())["pid"], signal.SIGKILL
        )
        typed.communicate()


def activations(bench: Project) -> int:
    return max(int(path.stem) for path in (bench.app / "state/activations").glob("*.jsonl"))


def test_a_deploy_that_is_killed_or_fails_in_one_goes_back_in_all(bench: Project) -> None:
    before = str(bench.live)
    book = bench.root / "inventory/lab.yml"
    plain = book.read_text()
    book.write_text(
        plain.replace("  instances: true ", "  symbols: [BTCUSD, ETHUSD]\n  instances: true ")
    )
    release(bench, 2)
    killed(bench, activations(bench) + 1)
    assert "its process died; the next deploy ends it" in bench.invoke("status", code=1)
    until(lambda: "\n  lock " not in bench.invoke("status", code=1))  # of the killed client's agent
    book.write_text(plain)
    # The next one first ends what was interrupted; then one symbol does not start.
    release(bench, 3, first=GIVES_UP)
    said = bench.invoke("deploy", "--yes", code=4)
    assert "ended an interrupted activation first: reverted" in said
    why = f"{unit('ETHUSD')}: it does not start (exit-code): its last words: no bars of ETHUSD"
    assert f"✗ reverted: {why}" in said
    assert {name: one.get("release") for name, one in answers(bench).items()} == dict.fromkeys(
        SYMBOLS, before
    )
    said = bench.invoke("status")
    assert why in said and "drift     none" in said


def test_a_symbol_that_is_renamed_goes_and_comes_back(bench: Project) -> None:
    before = str(bench.live)
    renamed = (*SYMBOLS[:2], "XRPUSD")
    book = bench.root / "inventory/lab.yml"
    plain = book.read_text()
    book.write_text(plain.replace("LTCUSD]", "XRPUSD]"))
    assert "the service is to watch XRPUSD" in bench.invoke("deploy", "--yes", code=6)
    release(bench, 4, renamed)
    said = bench.invoke("plan")
    assert unit("LTCUSD") in said and unit("XRPUSD") in said
    bench.invoke("deploy", "--yes")
    assert tuple(answers(bench)) == renamed and all_serve(bench)
    assert "drift     none" in bench.invoke("status")
    bench.invoke("rollback", "--yes", "--to", before)
    book.write_text(plain)
    assert tuple(answers(bench)) == SYMBOLS and all_serve(bench)
    assert {said["release"] for said in answers(bench).values()} == {before}
