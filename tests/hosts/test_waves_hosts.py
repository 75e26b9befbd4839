"""Waves over two real machines, and a third application: what a stopped wave leaves, and undoes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import small_releases
from tests.hosts.test_deploy_hosts import APP, MORE, UNIT, Bench, bench

__all__ = ["bench"]
pytestmark = pytest.mark.hosts

UNWELL = "/etc/this-host-is-unwell"
# Well everywhere but where that file is: there its check passes, and the service does not come up.
NOT_WELL_THERE = f"""
import os, sys
if "--check" not in sys.argv and os.path.exists("{UNWELL}"):
    sys.exit("not on this host")
"""
SECOND = f"second: {{role: serve, env: prod, ssh: h800, user: root, app_dir: {APP}}}"
THIRD = "third: {role: serve, env: prod, ssh: prod, app_dir: /opt/third, unit: macd-third}"
GONE = f"systemctl disable --now {UNIT} macd-analysis-recover; rm -rf {APP} {UNWELL}; userdel macd"


@pytest.fixture(scope="module")
def fleet(bench: Bench) -> Iterator[Bench]:
    """Three serving hosts: prod, then a second machine, then another application on prod."""
    base = (bench.hosts.root / "inventory" / f"{bench.hosts.inventory}.yml").read_text()
    lines = [line for line in base.splitlines() if not line.startswith("  h800:")]
    at = next(i for i, line in enumerate(lines) if line.startswith("  prod:"))
    lines[at + 1 : at + 1] = [f"  {SECOND}", f"  {THIRD}"]
    text = "\n".join(lines) + "\n" + MORE.replace("soak_s: 1,", "soak_s: 0.2,")
    (bench.hosts.root / "inventory" / "waves.yml").write_text(text)
    try:
        yield bench
    finally:
        bench.hosts.h800.exec("sh", "-c", GONE, check=False)


def ask(bench: Bench, *words: str, code: int = 0) -> Any:
    return bench.json(*words, code=code, inventory="waves")


def test_a_wave_that_fails_leaves_the_first_and_spares_the_rest(fleet: Bench) -> None:
    ask(fleet, "provision", "--yes")
    old = small_releases.make(fleet.inventory, 201)
    assert [one["live"] for one in ask(fleet, "deploy", "--yes")["outcomes"]] == [old] * 3
    before = {one["host"]: one for one in ask(fleet, "status")["hosts"]}

    fleet.hosts.h800.exec("touch", UNWELL)
    new = small_releases.make(fleet.inventory, 202, first=NOT_WELL_THERE)
    told = ask(fleet, "deploy", "--yes", "--wave", "1,100%", code=4)
    ends = [(one["host"], one["result"], one["live"]) for one in told["outcomes"]]
    assert ends == [("prod", "committed", new), ("second", "reverted", old)]
    assert "not on this host" in told["outcomes"][1]["reason"]
    assert told["untouched"] == ["third"]
    after = {one["host"]: one for one in ask(fleet, "status")["hosts"]}
    assert {name: one["live"] for name, one in after.items()} == {
        "prod": new,
        "second": old,
        "third": old,
    }
    assert all(one["well"] for one in after.values())
    assert after["third"]["process"] == before["third"]["process"]
    assert after["second"]["process"]["pid"] != before["second"]["process"]["pid"]

    told = ask(fleet, "rollback", "--yes")
    assert [(one["host"], one["live"]) for one in told["outcomes"]] == [("prod", old)]
    assert told["untouched"] == ["second", "third"]
    last = {one["host"]: one for one in ask(fleet, "status")["hosts"]}
    assert {one["live"] for one in last.values()} == {old}
    assert all(last[name]["process"] == after[name]["process"] for name in ("second", "third"))
