"""Three symbols on the lab: one release, one process, one gate, one flag; all verbs typed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.deploy import health
from macd.lab import LabState
from macd.ssh.session import open_session
from tests.local.test_flag_lab import TASKS
from tests.support import signal_lines, small_releases
from tests.support.lab_project import Project, project
from tests.support.several_symbols import SYMBOLS
from tests.support.symbols_lab import provisioned

PATIENCE_S = 180


@pytest.fixture
def bench(lab: LabState, tmp_path: Path) -> Iterator[Project]:
    made = project(lab, tmp_path / "p", "many")
    tasks = TASKS.replace("deploy.deploy,", "deploy.deploy, deploy.plan,")
    bench = provisioned(made, tasks, more="guard:\n  every_hours: 0.0005\n  for_hours: 1\n")
    yield bench
    stop(bench)


def stop(bench: Project) -> None:
    host = bench.inventory.host("prod")
    with open_session(host, bench.inventory) as session:
        session.run(["systemctl", "--user", "stop", f"{host.unit}.service"])


def lines(bench: Project) -> list[dict[str, Any]]:
    """All whole lines but those that a kill tore."""
    made = []
    for log in sorted((bench.app / "data/live").glob("trades_*.jsonl")):
        for raw in log.read_bytes().split(b"\n")[:-1]:
            try:
                made.append(json.loads(raw))
            except ValueError:
                assert b'"level":"WARN"' not in raw
    return made


def signals(bench: Project) -> list[dict[str, Any]]:
    return [line for line in lines(bench) if line["level"] == "SIGNAL"]


def answer(bench: Project) -> dict[str, Any]:
    try:
        endpoint = json.loads((bench.app / "service.json").read_text())["endpoint"]
        return health.ask(endpoint)
    except (health.ProbeError, OSError):
        return {}


def until(true: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_one_release_one_process_one_gate_and_one_flag(bench: Project) -> None:
    small_releases.make_several(bench.inventory, 1)
    refused(bench, "symbols: [BTCUSD, XRPUSD]", "the service is to watch XRPUSD")
    bench.invoke("deploy", "--yes")
    assert json.loads((bench.app / "service.json").read_text())["symbols"] == list(SYMBOLS)
    until(lambda: len(signals(bench)) > 20)

    killed = until(lambda: answer(bench))
    assert list(killed["symbols"]) == list(SYMBOLS)
    os.kill(killed["pid"], signal.SIGKILL)
    until(lambda: (a := answer(bench)).get("status") == "ok" and a["pid"] != killed["pid"])
    until(lambda: len(signals(bench)) > 90)
    told = bench.invoke("status")
    assert [f"✓ {name}: last bar" in told for name in SYMBOLS] == [True] * 3

    shown = bench.invoke("shadow-gate")
    assert "3 symbols: 3 PASS; the worst first" in shown
    assert "✓ PASS  ETHUSD, one of 3 symbols" in bench.invoke("shadow-gate", "--symbol", "ETHUSD")
    bench.invoke("enable-stacking", "--yes")
    newest = lines(bench)[-1]["seq"]
    until(lambda: len([x for x in signals(bench) if x["seq"] > newest + 6]) > 6)
    modes = {
        (x["symbol"], x["data"]["components"]["ml_stacking_mode"])
        for x in signals(bench)
        if x["seq"] > newest + 6
    }
    assert modes == {(name, "live") for name in SYMBOLS}

    stop(bench)
    written = lines(bench)
    assert [line["seq"] for line in written] == list(range(1, len(written) + 1))
    counted = Counter((x["symbol"], x["bar_time"]) for x in signals(bench))
    assert set(counted.values()) == {1}
    times = sorted({when for _, when in counted})
    # All but the last bar, in which the service was stopped, have a line of each symbol.
    assert {(name, when) for name in SYMBOLS for when in times[:-1]} <= set(counted)

    bad = signal_lines.lines(
        90,
        release=bench.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        first_seq=len(written) + 1,
        ml_error="lstm: broken",
    )
    signal_lines.write(bench.app / "data/live", ({**line, "symbol": "ETHUSD"} for line in bad))
    out = bench.invoke("monitor", code=4)
    assert "ETHUSD: ML coverage" in out
    assert "the guard disabled stacking" in out


def refused(bench: Project, key: str, why: str) -> None:
    book = bench.root / "inventory/lab.yml"
    text = book.read_text()
    assert "\nservice:\n" in text
    book.write_text(text.replace("\nservice:\n", f"\nservice:\n  {key}\n"))
    assert why in bench.invoke("deploy", "--yes", code=6)
    book.write_text(text)
