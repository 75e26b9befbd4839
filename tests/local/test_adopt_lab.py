"""A service that a team put on a host by hand: adopted, deployed over, lost nothing, given back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.support import their_app
from tests.support.lab_project import Project

NAME = "adopted"
ENV = "# ours\nexport EXCHANGE_REGION=eu\nEXCHANGE_API_KEY=s3cret-in-env\nHEALTH_PORT={health}\n"
UNIT = """[Unit]
Description=ml signals

[Service]
WorkingDirectory={app}
EnvironmentFile={app}/.env
Environment=BAR_SECONDS=1 EXCHANGE_SECRET=s3cret-in-unit
Environment=PATH=/usr/bin:/bin
ExecStart={python} live_runner.py --phase paper
Restart=on-failure

[Install]
WantedBy=default.target
"""
OVERRIDE = "# systemctl edit; Jun\n[Service]\nEnvironment=ML_ENABLE_STACKING=0\nNice=1\n"


class ByHand:
    """Their application on the lab's prod, as `scp` and an afternoon left it."""

    def __init__(self, made: Project) -> None:
        self.made, self.app = made, made.app
        self.units = made.lab.hosts["prod"].home / ".config/systemd/user"
        self.unit = self.units / f"{NAME}.service"
        self.override = self.units / f"{NAME}.service.d/override.conf"

    def put(self) -> None:
        shutil.copytree(their_app.SOURCE, self.app)
        shutil.copytree(their_app.MODELS, self.app / "data", dirs_exist_ok=True)
        ports = their_app.free_ports()
        (self.app / ".env").write_text(ENV.format(health=ports.health))
        (self.app / ".env").chmod(0o640)
        (self.app / "logs/live").mkdir(parents=True)
        self.override.parent.mkdir(parents=True)
        self.override.write_text(OVERRIDE)
        self.unit.write_text(UNIT.format(app=self.app, python=sys.executable))
        os.utime(self.unit, (1_700_000_000, 1_700_000_000))
        for words in (["daemon-reload"], ["enable", NAME], ["start", NAME]):
            self.systemctl(*words)

    def systemctl(self, *words: str) -> str:
        return self.made.systemctl(*words)

    @property
    def pid(self) -> int:
        return int(self.systemctl("show", NAME, "--value", "-p", "MainPID").strip() or 0)

    def cwd(self) -> str:
        return str(Path(f"/proc/{self.pid}/cwd").readlink())

    def seen(self) -> dict[str, tuple[object, ...]]:
        """What is theirs on the host: units, links, .env, each with its mode and content."""
        paths = [self.unit, self.override, self.app / ".env", self.app, self.app / "data"]
        paths += [self.app / "logs", self.app / "service.json", self.app / "current"]
        paths += sorted(self.units.rglob(f"*{NAME}*"))
        return {str(path): _looks(path) for path in dict.fromkeys(paths)}

    def remove(self) -> None:
        """Take the service away: `invoke init` of another file must not meet it."""
        self.systemctl("disable", "--now", NAME)
        for path in self.units.glob(f"{NAME}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.systemctl("daemon-reload")

    def settle(self) -> None:
        deadline = time.monotonic() + 120
        while not self.pid:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def _looks(path: Path) -> tuple[object, ...]:
    if path.is_symlink():
        return ("link", str(path.readlink()))
    if not path.exists():
        return ("absent",)
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if path.is_dir():
        return ("directory", mode, status.st_uid)
    return ("file", mode, status.st_uid, path.read_bytes())


@pytest.fixture(scope="module")
def theirs(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    made = their_app.project(lab, tmp_path_factory.mktemp("adopt") / "p", NAME)
    theirs = ByHand(made)
    theirs.put()
    theirs.settle()
    yield theirs
    theirs.remove()


def test_it_is_said_what_changes_and_nobody_adopts_unasked(theirs: ByHand) -> None:
    before, pid = theirs.seen(), theirs.pid
    assert pid
    told = theirs.made.invoke("provision", "--dry-run")
    assert f"{NAME}.service was put there by hand ({theirs.unit}); it goes on as pid {pid}" in told
    assert "ExecStart changes from" in told
    assert "variables that go into .env, values not shown: " in told
    for name in ("BAR_SECONDS", "EXCHANGE_SECRET", "EXCHANGE_REGION", "ML_ENABLE_STACKING"):
        assert name in told.partition("values not shown: ")[2].partition("\n")[0]
    assert "variable PATH does not go into .env" in told
    assert f"{theirs.override} would win over macd's unit" in told
    assert "not carried over: Nice" in told
    assert "s3cret" not in told
    assert "by hand, and nobody agreed" not in told
    refused = theirs.made.invoke("provision", "--yes", code=6)
    assert "nobody agreed to adopt it" in refused
    assert "invoke provision --adopt" in refused
    watched = theirs.made.invoke("monitor", "--once")
    assert "stacking is in shadow, nothing is live" in watched
    assert "only" not in watched, "the drop-in is theirs"
    assert theirs.seen() == before
    assert not (theirs.app / "state").exists()


def test_provision_leaves_it_running_and_undo_gives_all_back(theirs: ByHand) -> None:
    before, pid = theirs.seen(), theirs.pid
    theirs.made.invoke("provision", "--yes", "--adopt")
    kept = theirs.app / "state/adopted"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    originals = {path.name: path.read_bytes() for path in (kept / "files").iterdir()}
    assert UNIT.format(app=theirs.app, python=sys.executable).encode() in originals.values()
    assert "  0 changes" in theirs.made.invoke("provision", "--yes")
    assert {path.name: path.read_bytes() for path in (kept / "files").iterdir()} == originals
    assert theirs.pid == pid
    assert theirs.unit.read_text() == UNIT.format(app=theirs.app, python=sys.executable)
    assert theirs.override.read_text() == OVERRIDE
    env = (theirs.app / ".env").read_text()
    assert env.startswith(ENV.format(health=their_app.free_ports().health))
    assert "EXCHANGE_SECRET=s3cret-in-unit\n" in env
    assert "EXCHANGE_REGION=eu\n" in env
    would = theirs.made.invoke("provision", "--undo", "--dry-run")
    assert (theirs.app / "service.json").exists()
    told = theirs.made.invoke("provision", "--undo", "--yes")
    assert f"{NAME}.service as put there by hand goes on as pid {pid}" in told
    assert [line for line in would.splitlines() if "would be" in line] == [
        line.replace("✓", "would be") for line in told.splitlines() if "✓" in line
    ]
    assert theirs.seen() == before
    assert int(theirs.unit.stat().st_mtime) == 1_700_000_000
    assert theirs.pid == pid
    assert "nothing to undo" in theirs.made.invoke("provision", "--undo", "--yes", code=6)


def test_a_first_deploy_that_fails_starts_it_again(theirs: ByHand) -> None:
    before, pid = theirs.seen(), theirs.pid
    theirs.made.invoke("provision", "--yes", "--adopt")
    their_app.release(theirs.made.inventory, 1, "exit")  # its check fails too
    goes_on = f"{NAME}.service as put there by hand goes on as pid {pid}"
    assert f"the first deploy takes over: {goes_on}" in theirs.made.invoke("plan")
    assert f"never switched; {goes_on}" in theirs.made.invoke("deploy", "--yes", code=4)
    their_app.release(theirs.made.inventory, 2, "never_ready")
    inventory = theirs.made.root / "inventory/lab.yml"
    hasty = inventory.read_text().replace("ready_s: 60", "ready_s: 5")
    inventory.with_name("hasty.yml").write_text(hasty)
    told = theirs.made.invoke("deploy", "--yes", "--inventory", "hasty", code=4)
    assert f"{NAME}.service as it was put there by hand runs again as pid {theirs.pid}" in told
    assert theirs.pid not in (0, pid)
    assert theirs.cwd() == str(theirs.app)
    now = theirs.seen()
    changed = {path for path in before if now.get(path) != before[path]}
    assert changed == {str(theirs.app / ".env"), str(theirs.app / "service.json")}
    assert sorted(path.name for path in theirs.units.glob(f"{NAME}.service*")) == [
        f"{NAME}.service",
        f"{NAME}.service.d",
    ]


def test_a_deploy_takes_its_place_and_undo_starts_it_from_the_old_one(theirs: ByHand) -> None:
    release = their_app.release(theirs.made.inventory, 3)
    theirs.made.invoke("deploy", "--yes")
    assert theirs.made.live == release
    assert theirs.cwd() == str(theirs.app / "releases" / release / "source")
    environment = Path(f"/proc/{theirs.pid}/environ").read_bytes().split(b"\0")
    assert b"EXCHANGE_SECRET=s3cret-in-unit" in environment
    assert not theirs.override.exists()
    assert "  0 changes" in theirs.made.invoke("provision", "--yes")
    (theirs.app / ".env").open("a").write("ADDED_SINCE=1\n")
    told = theirs.made.invoke("provision", "--undo", "--yes")
    assert f"now: {NAME}.service as it was put there by hand runs again as pid" in told
    assert theirs.cwd() == str(theirs.app)
    seen = theirs.seen()
    assert seen[str(theirs.unit)][-1] == UNIT.format(app=theirs.app, python=sys.executable).encode()
    assert seen[str(theirs.override)][-1] == OVERRIDE.encode()
    assert seen[str(theirs.app / "current")] == ("absent",)
    assert (theirs.app / ".env").read_text() == ENV.format(health=their_app.free_ports().health)
    assert "ADDED_SINCE=1" in (theirs.app / ".env.before-undo").read_text()
    assert (theirs.app / "releases" / release).is_dir()


def test_a_copy_that_was_started_by_hand_keeps_a_deploy_away(theirs: ByHand) -> None:
    theirs.made.invoke("provision", "--yes", "--adopt")
    theirs.systemctl("stop", NAME)
    ports = {"HEALTH_PORT": str(their_app.free_ports().web), "BAR_SECONDS": "1"}
    words = [sys.executable, "live_runner.py", "--phase", "paper"]
    with subprocess.Popen(words, cwd=theirs.app, env=ports, stdout=subprocess.DEVNULL) as copy:
        try:
            told = theirs.made.invoke("deploy", "--yes", code=6)
            assert f"runs there already: pid {copy.pid}" in told
            assert f"kill {copy.pid}, right before the first deploy" in told
            assert f"pid {copy.pid}" in theirs.made.invoke("provision", "--dry-run")
        finally:
            copy.terminate()
    document = json.loads((theirs.app / "state/adopted/manifest.json").read_text())
    assert document["by_hand"] == [f"{NAME}.service"]
