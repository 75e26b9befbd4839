"""Several hosts on the embedded lab: waves that stop, rollbacks that pass by who is away."""

from __future__ import annotations

from pathlib import Path

from macd.lab import LabState
from tests.local.deploying import project


def test_waves_stop_at_the_first_host_that_reverts(lab: LabState, tmp_path: Path) -> None:
    made = project(lab, tmp_path / "w", "wave-a")
    path = made.root / "inventory" / "lab.yml"
    other = "{role: serve, env: prod, ssh: lab-prod, app_dir: ~/wave-b, unit: wave-b, scope: user}"
    path.write_text(path.read_text().replace("  prod:\n", f"  prod-b: {other}\n  prod:\n"))
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
    told = made.json("status", code=1)  # who answers is shown all the same
    assert ([one["live"] for one in told["hosts"]], told["well"]) == ([good], False)
    assert "refused the connection" in told["away"]["prod-b"]["error"]["what"]
    path.write_text(whole)
    assert [one["live"] for one in made.json("status")["hosts"]] == [newer, good]
