"""Three symbols on the lab, an instance each: units of one application; all verbs typed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.host.deploy import health
from macd.host.own import parse
from macd.inventory import load
from macd.lab import LabState
from macd.ssh.session import open_session
from tests.local.test_flag_lab import TASKS
from tests.local.test_many_symbols_lab import signals, until
from tests.support import several_symbols, small_releases
from tests.support.lab_project import Project, project
from tests.support.several_symbols import SYMBOLS

NAME = "apart"


@pytest.fixture
def bench(lab: LabState, tmp_path: Path) -> Iterator[Project]:
    made = project(lab, tmp_path / "p", NAME)
    verbs = "deploy.deploy, deploy.plan, deploy.rollback,"
    (made.root / "tasks.py").write_text(TASKS.replace("deploy.deploy,", verbs))
    write(made, "  symbol: BTCUSD\n", f"  symbols: [{', '.join(SYMBOLS)}]\n")
    write(made, "data_dir: ../data/sample", "data_dir: ../bars")
    write(made, "speed: 2, start: 0.85}", "speed: 5, start: 0.85}")
    write(made, "  socket: false ", "  instances: true ")
    (made.root / "bars").mkdir()
    several_symbols.write_replay(made.root / "bars")
    bench = Project(made.root, made.lab, load("lab", root=made.root))
    bench.invoke("provision", "--yes")
    env = made.app / ".env"
    env.write_text(env.read_text() + "ML_STACKING_MIN_SAMPLES=0\n")
    yield bench
    host = bench.inventory.host("prod")
    with open_session(host, bench.inventory) as session:
        session.run(["systemctl", "--user", "stop", *units(bench), f"{NAME}.service"])


def write(bench: Project, old: str, new: str) -> None:
    book = bench.root / "inventory/lab.yml"
    text = book.read_text()
    assert old in text
    book.write_text(text.replace(old, new))


def units(bench: Project) -> list[str]:
    return list(parse((bench.app / "service.json").read_text()).units)


def answers(bench: Project) -> dict[str, dict[str, Any]]:
    """What each instance says, by symbol; {} of one that does not answer."""
    said = {}
    for one in parse((bench.app / "service.json").read_text()).instances.values():
        try:
            said[one.symbol] = health.ask(one.endpoint)
        except (health.ProbeError, OSError):
            said[one.symbol] = {}
    return said


def files(bench: Project) -> set[str]:
    """Unit files and links of the application, but for those that provision owns."""
    place = bench.lab.hosts["prod"].home / ".config/systemd/user"
    named = (path.name for path in (*place.glob("*"), *place.glob("*.wants/*")))
    ours = {name for name in named if name.startswith(NAME)}
    return {n for n in ours if not n.startswith((f"{NAME}-recover", f"{NAME}-alerts"))}


def test_each_symbol_has_a_process_and_they_are_one_application(bench: Project) -> None:
    first = small_releases.make_several(bench.inventory, 1)
    bench.invoke("deploy", "--yes")
    assert files(bench) == {f"{NAME}@.service", *(f"{NAME}@{name}.service" for name in SYMBOLS)}
    pids = {name: said["pid"] for name, said in answers(bench).items()}
    assert len(set(pids.values())) == 3

    os.kill(pids["ETHUSD"], signal.SIGKILL)
    until(lambda: answers(bench)["ETHUSD"].get("pid") not in (None, pids["ETHUSD"]))
    until(lambda: answers(bench)["ETHUSD"]["status"] == "ok")
    now = {name: said["pid"] for name, said in answers(bench).items()}
    assert {name for name in SYMBOLS if now[name] != pids[name]} == {"ETHUSD"}

    until(lambda: min(Counter(x["symbol"] for x in signals(bench)).values()) > 30)
    told = bench.invoke("status")
    assert [f"✓ {name}: last bar" in told for name in SYMBOLS] == [True] * 3
    assert "3 symbols: 3 PASS; the worst first" in bench.invoke("shadow-gate")
    bench.invoke("enable-stacking", "--yes")
    assert {said["stacking_weight"] for said in answers(bench).values()} == {100}
    bench.invoke("disable-stacking", "--yes")
    assert {said["stacking_weight"] for said in answers(bench).values()} == {0}

    # A symbol is taken away with the deploy, and comes back with the rollback.
    write(bench, "  instances: true ", f"  symbols: [{', '.join(SYMBOLS[:2])}]\n  instances: true ")
    small_releases.make_several(bench.inventory, 2)
    assert f"{NAME}@LTCUSD.service" in bench.invoke("plan")
    bench.invoke("deploy", "--yes")
    left = {f"{NAME}@.service", *(f"{NAME}@{name}.service" for name in SYMBOLS[:2])}
    assert files(bench) == left and list(answers(bench)) == list(SYMBOLS[:2])
    bench.invoke("rollback", "--yes")
    assert {said["release"] for said in answers(bench).values()} == {first}
    assert len(answers(bench)) == 3 and len(files(bench)) == 4

    # One process again: it goes on where the instances ended.
    write(bench, "  instances: true ", "  socket: false ")
    third = small_releases.make_several(bench.inventory, 3)
    bench.invoke("deploy", "--yes")
    assert files(bench) == {f"{NAME}.service"} and units(bench) == []
    said = health.ask(json.loads((bench.app / "service.json").read_text())["endpoint"])
    assert said["release"] == third and list(said["symbols"]) == list(SYMBOLS[:2])
    until(lambda: any(line["release"] == third for line in signals(bench)))
    bench.invoke("rollback", "--yes")
    assert len(answers(bench)) == 3 and len(files(bench)) == 4
    counted = Counter((line["symbol"], line["bar_time"]) for line in signals(bench))
    assert set(counted.values()) == {1}
