"""Several hosts on the embedded lab: waves that stop, rollbacks that pass by who is away."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from macd.journal import Journal
from macd.lab import LabState
from tests.support.lab_project import Project, project


def test_waves_stop_at_the_first_host_that_reverts(lab: LabState, tmp_path: Path) -> None:
    made = project(lab, tmp_path / "w", "wave-a")
    path = made.root / "inventory" / "lab.yml"
    other = "{role: serve, env: prod, ssh: lab-prod, app_dir: ~/wave-b, unit: wave-b, scope: user}"
    text = path.read_text()
    path.write_text(text.replace("  prod:\n", f"  prod-b: {other}\n  prod:\n"))
    made.invoke("provision", "--yes")
    made.release(1, "check fails")
    told = made.invoke("deploy", "--yes", "--wave", "1,100%", code=4)
    assert "prod: untouched" in told
    good = made.release(2)
    told = made.invoke("deploy", "--yes", "--wave", "1,100%")
    assert f"✓ prod-b: {good} is live" in told
    assert f"✓ prod: {good} is live" in told
    lives = [host["live"] for host in made.json("status")["hosts"]]
    assert lives == [good, good]
    newer = made.release(3)
    made.invoke("deploy", "--yes", "--host", "prod-b")
    told = made.json("rollback", "--dry-run")["to"]
    assert told == {"prod-b": good, "prod": None}
    told = made.json("rollback", "--yes")
    assert [one["host"] for one in told["outcomes"]] == ["prod-b"]
    assert told["untouched"] == ["prod"]  # nobody brought it anything since
    # A host that refuses ends it: what became of the first is told with the error.
    ended = made.json("rollback", "--yes", "--to", newer, code=6)
    assert [one["live"] for one in ended["outcomes"]] == [newer]
    assert "never committed" in ended["error"]["what"]
    assert ended["exit_code"] == 6

    # One that can't be reached is passed by, and what may be live on it counts.
    # The end of a guard's watch there, as `invoke monitor` records it, says nothing about that.
    fields = {"env": "prod", "host": "prod-b", "release": newer, "result": "over", "reason": ""}
    journal = Journal(made.inventory.state_dir / "journal.jsonl")
    journal.append("guard.ended", fields, now=datetime.now(UTC))
    whole = path.read_text()
    path.write_text(whole.replace(other, other.replace("lab-prod", "127.0.0.1, port: 1")))
    told = made.json("rollback", "--dry-run", code=5)
    assert told["to"] == {"prod": None}  # the newest is on the one that does not answer
    assert told["error"]["what"] == "not taken back: prod-b"
    path.write_text(whole)
    made.invoke("deploy", "--yes")
    path.write_text(whole.replace(other, other.replace("lab-prod", "127.0.0.1, port: 1")))
    said = made.invoke("rollback", "--yes", code=5)
    assert f"✓ prod: {good} is live" in said
    assert "✗ not taken back: prod-b" in said
    assert "invoke rollback --host prod-b" in said
    told = made.json("status", code=5)  # who answers is shown all the same
    assert ([one["live"] for one in told["hosts"]], told["well"]) == ([good], False)
    assert "refused the connection" in told["away"]["prod-b"]["error"]["what"]
    path.write_text(whole)
    assert [one["live"] for one in made.json("status")["hosts"]] == [newer, good]


def several(lab: LabState, root: Path, name: str, **hosts: str) -> Project:
    """A project with these hosts (name -> how ssh gets there) before its own, prod."""
    made = project(lab, root, name)
    path = made.root / "inventory" / "lab.yml"
    more = "".join(
        f"  {host}: {{role: serve, env: prod, ssh: {ssh}, app_dir: ~/{name}-{host}, "
        f"unit: {name}-{host}, scope: user}}\n"
        for host, ssh in hosts.items()
    )
    text = path.read_text().replace("  prod:\n", f"{more}  prod:\n")
    path.write_text(text)
    return made


def deploys(made: Project) -> list[tuple[str, str]]:
    """What the journal has of deploys, oldest first: (began or ended, host)."""
    records = Journal(made.inventory.state_dir / "journal.jsonl").records()
    kinds = [(record.kind.partition("."), record.fields.get("host", "")) for record in records]
    return [(what, host) for (noun, _, what), host in kinds if noun == "deploy"]


@pytest.mark.timeout(300)
def test_who_is_away_hides_and_stops_nobody(lab: LabState, tmp_path: Path) -> None:
    made = several(
        lab, tmp_path / "w", "away", gone="127.0.0.1, port: 1", b="lab-prod", c="lab-prod"
    )
    told = made.json("provision", "--yes", code=5)
    assert [host["host"] for host in told["hosts"]] == ["b", "c", "prod"]
    assert "refused the connection" in told["away"]["gone"]["error"]["what"]
    release = made.release(1)

    told = made.json("plan", code=5)
    assert [host["host"] for host in told["hosts"]] == ["b", "c", "prod"]
    assert list(told["away"]) == ["gone"]
    said = made.invoke("plan", code=5)
    assert "✗ gone" in said
    assert "next: invoke deploy" in said
    assert list(made.json("deploy", "--dry-run", code=5)["away"]) == ["gone"]

    said = made.invoke("deploy", code=5)
    assert "no deploy was started: gone could not be asked" in said
    assert "invoke deploy --skip-unreachable" in said
    assert made.json("deploy", code=5)["error"]["what"].startswith("no deploy was started: gone")
    assert deploys(made) == []
    told = made.json("deploy", "--yes", "--parallel", "1", code=5)
    assert (told["outcomes"], told["untouched"]) == ([], ["b", "c", "prod"])
    assert told["stopped"].startswith("stopped: 1 host failed or reverted")
    assert list(told["errors"]) == ["gone"]

    before = len(deploys(made))
    told = made.json("deploy", "--yes", "--skip-unreachable", "--wave", "2,100%", code=5)
    assert [(one["host"], one["live"]) for one in told["outcomes"]] == [
        ("b", release),
        ("c", release),
        ("prod", release),
    ]
    assert (told["unreachable"], told["untouched"], told["exit_code"]) == (["gone"], [], 5)
    assert told["away"] == told["unreachable"]  # its name up to 0.1
    assert told["error"]["what"] == "not deployed: gone"
    acted = deploys(made)[before:]
    assert sorted(acted[:4]) == [(w, h) for w in ("began", "ended") for h in ("b", "gone")]
    # prod and c are of one wave: each began before the other had ended.
    assert sorted(acted[4:6]) == [("began", "c"), ("began", "prod")]

    said = made.invoke("deploy", "--yes", "--skip-unreachable", code=5)
    assert "c    | deploying" in said
    assert "gone |   ✗ " in said
    assert f"prod: nothing to do, {release} is live" in said
    assert "✗ not deployed: gone" in said
    assert f"invoke deploy --host gone --release {release}" in said
    said = made.invoke("deploy", "--attach", code=5)
    assert "b: nothing is under way" in said
    assert "✗ gone" in said


@pytest.mark.timeout(300)
def test_ctrl_c_lets_the_wave_end_and_a_second_one_leaves_it_to_the_hosts(
    lab: LabState, tmp_path: Path
) -> None:
    made = several(lab, tmp_path / "w", "halt", b="lab-prod", c="lab-prod")
    made.invoke("provision", "--yes")
    release = made.release(1)
    wave = ("deploy", "--yes", "--wave", "2,100%")
    code, said = made.interrupt_at(r"\| .*soaking", *wave)
    assert code == 130
    assert "no other host is started" in said
    assert "Ctrl-C again waits no longer" in said
    assert f"✓ b: {release} is live" in said
    assert f"✓ c: {release} is live" in said
    assert "prod: untouched" in said
    assert "stopped: interrupted; not touched: prod" in said
    assert sorted(deploys(made)) == [(w, h) for w in ("began", "ended") for h in ("b", "c")]

    newer = made.release(2)
    path = made.root / "inventory" / "lab.yml"
    path.write_text(path.read_text().replace("soak_s: 1", "soak_s: 20"))  # none ends meanwhile
    with made.start(*wave) as typed:
        assert typed.stdout is not None
        assert typed.stderr is not None
        until(typed.stdout, "the host has taken over")
        until(typed.stdout, "the host has taken over")
        typed.send_signal(signal.SIGINT)
        until(typed.stderr, "Ctrl-C again")
        typed.send_signal(signal.SIGINT)
        said, told = typed.communicate(timeout=240)
    assert typed.returncode == 5, said
    print("SAID", said, "TOLD", told)
    assert re.search("✗ not waited for: (b, c|c, b)", told)
    assert "invoke deploy --attach" in told
    assert deploys(made)[4:6] in (both := [("began", "b"), ("began", "c")], both[::-1])

    told = made.invoke("deploy", "--attach")  # on whichever has it, confirmed from here
    assert "prod: nothing is under way" in told
    assert f"✓ b: {newer} is live" in told
    ends = [record for record in deploys(made)[6:] if record == ("ended", "b")]
    assert len(ends) == 1
    assert "b: nothing is under way" in made.invoke("deploy", "--attach")


def until(lines: Iterable[str], word: str) -> None:
    assert any(word in line for line in lines), f"{word!r} was never said"
