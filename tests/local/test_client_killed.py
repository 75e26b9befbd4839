"""The client killed (SIGKILL) after calls it sends, up to every one: two deploys and a rollback.

After each: the host ends by itself what had begun, the old or the new release is whole and serves,
the lock is free, and the next command works. Each test prints how many trials of how many held.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from macd.deploy import state
from macd.host import manifest, probe
from macd.lab import LabState
from macd.remote.session import open_session
from tests.local.deploying import Project, project

pytestmark = pytest.mark.timeout(1200)  # some fifty kills, each followed by what ends it
# A trial takes a quarter of a minute: every fourth call each time, every call in `make test-full`.
EVERY = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.full)])
CLIENT = Path(__file__).with_name("killed_client.py")
TIMES = (
    ("ready_s: 8", "ready_s: 40"),  # only a trial that fails takes as long
    ("soak_s: 1", "soak_s: 0.3"),
    ("confirm_s: 8", "confirm_s: 5"),
)


def host_of(lab: LabState, root: Path, name: str) -> Project:
    """A provisioned host whose windows to confirm are so short that trials are too."""
    made = project(lab, root, name)
    path = made.root / "inventory" / "lab.yml"
    text = path.read_text()
    for old, new in TIMES:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    made.invoke("provision", "--yes")
    return made


def killed_at(bench: Project, number: int, *words: str) -> list[str] | None:
    """Type it and have it killed after that call; the calls, or None when it ended before."""
    done = subprocess.run(
        [sys.executable, str(CLIENT), *words],
        cwd=bench.root,
        env={**os.environ, "MACD_ROOT": str(bench.root), "KILLED_AT": str(number)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == -9:
        calls = [line for line in done.stderr.splitlines() if line[:1].isdigit()]
        assert len(calls) == number, done.stderr
        return calls
    assert done.returncode == 0, done.stdout + done.stderr
    return None


def settled(bench: Project) -> tuple[str, str]:
    """Wait until the host has ended its newest activation by itself; its release, how it ended.

    Only looks: a repair asked for from here would prove nothing.
    """
    host = bench.inventory.host("prod")
    app = str(bench.app)
    with open_session(host, bench.inventory, modules=state.MODULES) as session:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            told = session.call("follow", app=app, wait=1.0)
            found = state.observed(state.ask(session, host, bench.inventory))
            if told["over"] and found.pending is None and found.lock is None:
                assert session.call("lock", app=app, who="test", doing="test")["held"]
                if not told["number"]:
                    return "", ""
                return str(told["events"][0]["release"]), str(told["events"][-1]["state"])
            time.sleep(0.1)
    raise AssertionError(f"not settled: {told} {found.lock}")


def check_serving(bench: Project) -> None:
    """The release that `current` names is whole, and it is what answers."""
    if bench.live is None:
        with pytest.raises(probe.ProbeError):
            answer_of(bench)
        return
    folder = bench.app / "releases" / bench.live
    for file in manifest.parse((folder / "manifest.json").read_bytes()).files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
    assert (folder / "runtime" / "bin" / "python").exists()
    answer = answer_of(bench)
    assert (answer["release"], answer["status"]) == (bench.live, "ok")


def answer_of(bench: Project) -> dict[str, object]:
    settings = json.loads((bench.app / "service.json").read_text())
    return probe.ask(str(settings["endpoint"]))


@dataclass
class Trials:
    """What every trial showed."""

    calls: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def check(self, bench: Project, calls: list[str], old: str | None, new: str) -> None:
        """After one kill: old or new, whole, serving, the lock free, the matter ended."""
        release, how = settled(bench)
        assert how in ("committed", "reverted") or not release, calls
        assert bench.live == (new if (release, how) == (new, "committed") else old), calls
        check_serving(bench)
        self.calls.append(calls[-1])
        self.ends.append("new" if bench.live == new else "old")

    def tell(self, name: str, step: int) -> None:
        print(f"{name}: {len(self.ends)}/{len(self.calls)} kills, the host whole each time:")
        for call, end in zip(self.calls, self.ends, strict=True):
            print(f"  {call:30} {end} serves")
        assert len(self.ends) >= 8 // step  # lock, recover, facts, activate, follow ..., confirm


@EVERY
def test_the_first_deploy(lab: LabState, tmp_path: Path, step: int) -> None:
    trials = Trials()
    number, bench = 1, host_of(lab, tmp_path / "0", "killed-first-0")
    while True:
        new = bench.release(1)
        calls = killed_at(bench, number, "deploy", "--yes")
        if calls is None:
            break
        trials.check(bench, calls, None, new)
        if bench.live is not None:  # the next deploy is the next trial's, or the one here
            bench.invoke("deploy", "--yes")
            bench = host_of(lab, tmp_path / str(number), f"killed-first-{number}")
        number += step
    assert bench.live == new
    trials.tell("first deploy", step)


@EVERY
def test_an_incremental_deploy(lab: LabState, tmp_path: Path, step: int) -> None:
    bench = host_of(lab, tmp_path / "p", "killed-next")
    bench.release(1)
    bench.invoke("deploy", "--yes")
    trials = Trials()
    number = 1
    while True:
        old, new = bench.live, bench.release(number + 1)
        calls = killed_at(bench, number, "deploy", "--yes")
        if calls is None:
            break
        trials.check(bench, calls, old, new)
        bench.invoke("deploy", "--yes")
        assert bench.live == new
        number += step
    trials.tell("incremental deploy", step)


@EVERY
def test_a_rollback(lab: LabState, tmp_path: Path, step: int) -> None:
    bench = host_of(lab, tmp_path / "p", "killed-back")
    other = bench.release(1)
    bench.invoke("deploy", "--yes")
    bench.release(2)
    bench.invoke("deploy", "--yes")
    trials = Trials()
    number = 1
    while True:
        old = str(bench.live)
        calls = killed_at(bench, number, "rollback", "--yes", "--to", other)
        if calls is None:
            break
        trials.check(bench, calls, old, other)
        if bench.live == old:
            bench.invoke("rollback", "--yes", "--to", other)
        assert bench.live == other
        other = old
        number += step
    trials.tell("rollback", step)
    bench.release(3)
    bench.invoke("deploy", "--yes")
