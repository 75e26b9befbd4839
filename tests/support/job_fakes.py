"""A project for the test's lab, and processes in a training's place: quick, or misbehaving.

Only the job's argv is another one than a training's. All that syncs, starts, follows and collects
is the product's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.app.market.bars import read_bars, write_bars
from macd.errors import MacdError
from macd.inventory import Inventory, load, project_root
from macd.jobs import request as requests
from macd.jobs import transfer
from macd.lab import LabState
from macd.ssh.contact import Contact
from tests.support import commands
from tests.support.openssh import eventually

TASKS = """
from invoke import Collection
from macd.cli import release, train, usage
usage.install()
verbs = train.train, train.status, train.attach, train.fetch, train.cancel
namespace = Collection(Collection("train", *verbs), release.release)
"""
SAMPLE = "data/sample/BTCUSD_1h_2017-2019.parquet"

# What a stand-in may use: emit(n) tells event number n, go() waits until the test lets it go on,
# done(name=content) leaves files and a finished result.
PRELUDE = """
import hashlib, json, os, pathlib, signal, sys, time
os.chdir(sys.argv[1])
out = open("events.jsonl", "a", buffering=1)
def emit(n, **more):
    out.write(json.dumps({"t": time.time(), "event": "note", "n": n, **more}) + chr(10))
def go(name="go"):
    while not os.path.exists(name):
        time.sleep(0.02)
def done(**files):
    listed = []
    for name, text in files.items():
        path = pathlib.Path("data", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
        sha256 = hashlib.sha256(text).hexdigest()
        listed.append({"path": str(path), "size": len(text), "sha256": sha256})
    result = json.dumps({"state": "done", "files": listed})
    pathlib.Path("result.json").write_text(result)
"""


def lay_out(lab: LabState, root: Path, *, bars: int = 400) -> Path:
    """A project like a clone, with a short slice of the sample, that uses the test's lab."""
    (root / "inventory").mkdir(parents=True)
    (root / "tasks.py").write_text(TASKS)
    shutil.copy(project_root() / "inventory" / "lab.yml", root / "inventory")
    (root / ".lab").symlink_to(lab.root / ".lab")
    write_bars(read_bars(project_root() / SAMPLE)[:bars], root / "data/sample/BTCUSD_1h.parquet")
    return root


def inventory_of(root: Path, work: str) -> Inventory:
    """The project's inventory, h800 working in a directory of its own."""
    path = root / "inventory" / "lab.yml"
    path.write_text(path.read_text().replace("~/work/macd-analysis", f"~/{work}"))
    return load("lab", root=root)


def contact_to(inventory: Inventory, watcher: Any, *, patience: float = 60.0) -> Contact:
    """A contact with h800 on the real clock."""
    return Contact(inventory.host("h800"), inventory, watcher=watcher, patience=patience)


def begin(contact: Contact, script: str, *, seed: int = 7) -> str:
    """Start a stand-in the way a training is started; returns the run's id."""
    inventory = contact.inventory
    raw = requests.settings_of(inventory, {"seed": seed})
    bars = requests.data_files(raw, inventory.train.data_dir)
    request = requests.make(raw, bars, python="python3", env={}, now=datetime.now(UTC))
    transfer.send(contact, request)
    told = contact.use(
        lambda session: session.call(
            "job_start",
            work=contact.host.work_dir,
            run=request.run,
            argv=["python3", "-c", PRELUDE + script, "{run}"],
            env={},
            tree=request.tree.digest,
            about={},
            files={},
        )
    )
    return str(told["run"])


def soon(true: Callable[[], object]) -> None:
    """Wait for something on a machine that may be busy; the limit only ends a broken test."""
    eventually(true)


@dataclass
class Witness:
    """Looks on and remembers everything, in request."""

    known: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    contact: list[str] = field(default_factory=list)

    def past(self, events: list[dict[str, Any]]) -> None:
        self.known += [event["n"] for event in events]

    def news(self, events: list[dict[str, Any]], status: dict[str, Any]) -> None:
        self.seen += [event["n"] for event in events]

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        self.contact.append("lost")

    def back(self) -> None:
        self.contact.append("back")


def invoke(root: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command as it is typed in the project."""
    return commands.run(root, *argv, env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def records(root: Path, kind: str) -> list[dict[str, Any]]:
    """The fields of the project's journal records of a kind."""
    path = root / ".macd/lab/journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [r["fields"] for r in map(json.loads, lines) if r["kind"] == kind]
