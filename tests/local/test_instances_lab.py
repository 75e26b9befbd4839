"""Three symbols on the lab, an instance each: units of one application; all verbs typed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.host.deploy import health
from macd.host.own import parse
from macd.lab import LabState
from macd.ssh.session import open_session
from tests.local.test_flag_lab import TASKS
from tests.local.test_many_symbols_lab import signals, until
from tests.support import small_releases
from tests.support.lab_project import Project, project
from tests.support.several_symbols import SYMBOLS
from tests.support.symbols_lab import INSTANCES, answers, provisioned, replace

NAME = "apart"


@pytest.fixture
def bench(lab: LabState, tmp_path: Path) -> Iterator[Project]:
    made = project(lab, tmp_path / "p", NAME)
    verbs = "deploy.deploy, deploy.plan, deploy.rollback,"
    bench = provisioned(made, TASKS.replace("deploy.deploy,", verbs), INSTANCES)
    yield bench
    host = bench.inventory.host("prod")
    with open_session(host, bench.inventory) as session:
        session.run(["systemctl", "--user", "stop", *units(bench), f"{NAME}.service"])


def units(bench: Project) -> list[str]:
    return list(parse((bench.app / "service.json").read_text()).units)


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
    replace(
        bench, {"  instances: true ": f"  symbols: [{', '.join(SYMBOLS[:2])}]\n  instances: true "}
    )
    small_releases.make_several(bench.inventory, 2)
    assert f"{NAME}@LTCUSD.service" in bench.invoke("plan")
    bench.invoke("deploy", "--yes")
    left = {f"{NAME}@.service", *(f"{NAME}@{name}.service" for name in SYMBOLS[:2])}
    assert files(bench) == left and list(answers(bench)) == list(SYMBOLS[:2])
    bench.invoke("rollback", "--yes")
    assert {said["release"] for said in answers(bench).values()} == {first}
    assert len(answers(bench)) == 3 and len(files(bench)) == 4

    # One process again: it goes on where the instances ended.
    replace(bench, {"  instances: true ": "  socket: false "})
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
