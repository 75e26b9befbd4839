"""Waves over real machines: five applications, of which one reverts and one lost its power."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from macd.journal import Journal
from tests.hosts.test_deploy_hosts import APP, MORE, UNIT, Bench, bench
from tests.support import small_releases

__all__ = ["bench"]
pytestmark = pytest.mark.hosts

# Well everywhere but where that file is: there its check passes, and the service does not come up.
NOT_WELL_THERE = """
import os, sys
if "--check" not in sys.argv and os.path.exists(sys.argv[sys.argv.index("--root") + 1] + "/unwell"):
    sys.exit("not on this host")
"""
ON_PROD = {
    name: f"{name}: {{role: serve, env: prod, ssh: prod, app_dir: /opt/{name}, unit: macd-{name}}}"
    for name in ("second", "third", "fourth")
}
# Another machine, behind the jump host.
FIFTH = f"fifth: {{role: serve, env: prod, ssh: h800, user: root, app_dir: {APP}}}"
GONE = f"systemctl disable --now {UNIT} macd-analysis-recover; rm -rf {APP}; userdel macd"
NAMES = ["prod", "second", "third", "fourth", "fifth"]


@pytest.fixture(scope="module")
def fleet(bench: Bench) -> Iterator[Bench]:
    """Five serving hosts: four applications on prod, each with units of its own, one elsewhere."""
    base = (bench.hosts.root / "inventory" / f"{bench.hosts.inventory}.yml").read_text()
    lines = [line for line in base.splitlines() if not line.startswith("  h800:")]
    at = next(i for i, line in enumerate(lines) if line.startswith("  prod:"))
    lines[at + 1 : at + 1] = [f"  {text}" for text in (*ON_PROD.values(), FIFTH)]
    text = "\n".join(lines) + "\n" + MORE.replace("soak_s: 1,", "soak_s: 0.2,")
    (bench.hosts.root / "inventory" / "waves.yml").write_text(text)
    try:
        yield bench
    finally:
        machine = bench.hosts.h800.machine
        if not machine.running():
            machine.start()
            machine.wait()
        bench.hosts.h800.exec("sh", "-c", GONE, check=False)


def ask(bench: Bench, *words: str, code: int = 0) -> Any:
    return bench.json(*words, code=code, inventory="waves")


def journal(bench: Bench) -> list[tuple[str, str]]:
    records = Journal(bench.hosts.root / ".macd" / "waves" / "journal.jsonl").records()
    return [(record.kind, record.fields.get("host", "")) for record in records]


def lives(bench: Bench, code: int = 0) -> dict[str, Any]:
    return {one["host"]: one for one in ask(bench, "status", code=code)["hosts"]}


def test_five_hosts_of_which_one_reverts_and_one_is_away(fleet: Bench) -> None:
    told = ask(fleet, "provision", "--yes")
    assert [one["host"] for one in told["hosts"]] == NAMES
    assert [host for kind, host in journal(fleet) if kind == "provision.done"] != []
    old = small_releases.make(fleet.inventory, 201)
    told = ask(fleet, "deploy", "--yes")
    assert [(one["host"], one["live"]) for one in told["outcomes"]] == [(n, old) for n in NAMES]
    # One wave: all five had begun before the first of them ended.
    acted = [one for one in journal(fleet) if one[0].startswith("deploy.")]
    assert sorted(acted[:5]) == sorted(("deploy.began", name) for name in NAMES)
    before = lives(fleet)

    fleet.on_prod("touch", "/opt/second/unwell")
    fleet.hosts.h800.machine.power_cut()
    new = small_releases.make(fleet.inventory, 202, first=NOT_WELL_THERE)
    told = ask(fleet, "plan", code=5)
    assert [one["host"] for one in told["hosts"]] == NAMES[:4]
    assert list(told["away"]) == ["fifth"]

    # The wave of the one that reverts ends, and none after it begins.
    told = ask(fleet, "deploy", "--yes", "--skip-unreachable", "--wave", "2,100%", code=4)
    ends = [(one["host"], one["result"], one["live"]) for one in told["outcomes"]]
    assert ends == [("prod", "committed", new), ("second", "reverted", old)]
    assert "not on this host" in told["outcomes"][1]["reason"]
    assert told["untouched"] == ["third", "fourth", "fifth"]
    assert told["stopped"].startswith("stopped: 1 host failed or reverted")

    # As many may fail as was said; who is away is not one of them.
    told = ask(
        fleet,
        "deploy",
        "--yes",
        "--skip-unreachable",
        "--max-failed",
        "1",
        "--wave",
        "2,100%",
        code=5,
    )
    ends = [(one["host"], one["result"], one["live"]) for one in told["outcomes"]]
    assert ends == [
        ("prod", "nothing", new),
        ("second", "reverted", old),
        ("third", "committed", new),
        ("fourth", "committed", new),
    ]
    assert (told["away"], told["untouched"], told["exit_code"]) == (["fifth"], [], 5)
    acted = [one for one in journal(fleet) if one[0].startswith("deploy.")][-10:]
    last = max(acted.index(("deploy.ended", name)) for name in NAMES[:2])
    assert min(acted.index(("deploy.began", name)) for name in NAMES[2:]) > last

    after = lives(fleet, code=5)
    assert {name: one["live"] for name, one in after.items()} == {
        "prod": new,
        "second": old,
        "third": new,
        "fourth": new,
    }
    assert all(one["well"] for one in after.values())
    assert after["second"]["process"]["pid"] != before["second"]["process"]["pid"]

    # Back where it went live and nowhere else, though one machine is off: nothing went live there.
    told = ask(fleet, "rollback", "--yes", code=5)
    assert [(one["host"], one["live"]) for one in told["outcomes"]] == [
        ("prod", old),
        ("third", old),
        ("fourth", old),
    ]
    assert (told["away"], told["untouched"]) == (["fifth"], ["second"])
    fleet.hosts.h800.machine.start()
    fleet.hosts.h800.machine.wait()
    end = lives(fleet)
    assert {one["live"] for one in end.values()} == {old}
    assert all(one["well"] for one in end.values())
    assert end["second"]["process"] == after["second"]["process"]
