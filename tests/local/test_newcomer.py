"""What a newcomer gets wrong, typed as they would: one message, its exit code, the next command.

Each command is a process of its own, real SSH to the lab's hosts; a project directory each, with
an inventory `mine` that is the lab's, spoilt in one place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from macd.cli.release import target_of
from macd.inventory import load, project_root
from macd.lab import LabState
from macd.ssh.failures import UnfitPythonError
from tests.support import commands, ports, small_releases

NOBODY_HAS = "20200101T000000Z-deadbeef"
_COMMAND = re.compile(r"invoke ([a-z][a-z.-]*[a-z])")


@dataclass(frozen=True)
class Desk:
    """A newcomer's project directory."""

    root: Path

    def types(self, *words: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of `invoke WORDS`."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MACD_")}
        done = commands.run(self.root, *words, env={**clean, "MACD_INVENTORY": "mine"})
        return done.returncode, done.stdout, done.stderr

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / "inventory" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def remains(self) -> set[str]:
        """What a command that failed may not leave behind: releases and runs."""
        made = (path for name in ("releases", "runs") for path in (self.root / name).glob("*"))
        return {path.name for path in made}


@pytest.fixture
def desk(lab: LabState, tmp_path: Path) -> Desk:
    ours = project_root()
    shutil.copy(ours / "tasks.py", tmp_path)
    (tmp_path / "templates").symlink_to(ours / "templates")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(ours / "data/sample")
    (tmp_path / ".lab").symlink_to(lab.root / ".lab")
    shutil.copytree(ours / "inventory", tmp_path / "inventory", ignore=_but_examples)
    shutil.copy(lab.ssh_config, tmp_path / "inventory/ssh_config")
    shutil.copy(lab.known_hosts, tmp_path / "inventory/known_hosts")
    text = (ours / "inventory/lab.yml").read_text().replace("../.lab/ssh_config", "ssh_config")
    text = text.replace("../.lab/known_hosts", "known_hosts")
    text = text.replace("~/macd-analysis", "~/newcomer").replace("~/work/", "~/newcomer-work/")
    (tmp_path / "inventory/mine.yml").write_text(text)
    small_releases.make_keys(load("mine", root=tmp_path))
    return Desk(tmp_path)


def _but_examples(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name not in ("lab.yml", "production.example.yml")]


@pytest.fixture(scope="module")
def task_names() -> set[str]:
    told = commands.run(project_root(), "--list", "--list-format", "flat")
    names = set(re.findall(r"^  ([a-z][a-z.-]+)", told.stdout, re.MULTILINE))
    return names | {"release", "train"} if {"release.list", "train.status"} <= names else names


@dataclass(frozen=True)
class Slip:
    """A mistake: what was typed, how it must end, what is said, and the command named next."""

    typed: str
    code: int
    says: str
    next: str  # "" where the remedy is another option
    spoil: Callable[[Desk], object] = lambda desk: None
    live: bool = False  # says what is live, or that nothing was done


def edit(file: str, old: str, new: str) -> Callable[[Desk], None]:
    return lambda desk: desk.edit(file, old, new)


def wrong_port(desk: Desk) -> None:
    port = ports.kept("nobody listens")
    desk.edit("mine.yml", "ssh: lab-prod", f"ssh: lab-prod\n    port: {port}")


def lab_down(desk: Desk) -> None:
    """The lab's files are there, but nothing listens."""
    wrong_port(desk)
    shutil.copy(desk.root / "inventory/mine.yml", desk.root / "inventory/lab.yml")


def no_lab(desk: Desk) -> None:
    (desk.root / ".lab").unlink()


def strangers_key(desk: Desk) -> None:
    key = desk.root / "inventory/stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    desk.edit("mine.yml", "ssh: lab-prod", "ssh: lab-prod\n    identity: stranger")


def nothing_pinned(desk: Desk) -> None:
    (desk.root / "inventory/known_hosts").write_text("")


def other_pins(desk: Desk) -> None:
    """Each host is pinned with the key of another."""
    path = desk.root / "inventory/known_hosts"
    rows = [line.split() for line in path.read_text().splitlines()]
    keys = [row[2] for row in rows[1:] + rows[:1]]
    path.write_text("".join(f"{r[0]} {r[1]} {key}\n" for r, key in zip(rows, keys, strict=True)))


def a_release(desk: Desk) -> None:
    small_releases.make(load("mine", root=desk.root), 1, "good")


def released_then_changed(desk: Desk) -> None:
    a_release(desk)
    other_pins(desk)


def old_python(desk: Desk) -> None:
    """The real interpreter, which believes to be an older one before our loader runs."""
    old = desk.root / "old-python"
    older = "import sys; sys.version_info = (3, 10, 12); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{older}" "$2"\n')
    old.chmod(0o755)
    a_release(desk)
    for alias in ("lab-prod", "lab-h800", "lab-jump"):
        desk.edit("mine.yml", f"ssh: {alias}", f"ssh: {alias}\n    python: {old}")


def csv(text: str) -> Callable[[Desk], object]:
    return lambda desk: (desk.root / "bars.csv").write_text(text)


HOURS = "".join(f"2024-01-01 {h:02}:00:00,5,7,4,6,10\n" for h in range(20))
HEADER = "timestamp,open,high,low,close,volume\n"

SLIPS = {
    # The way to a host.
    "wrong port": Slip(
        "facts --host prod", 1, "refused the connection", "host.list", wrong_port, True
    ),
    "lab stopped": Slip(
        "facts --host prod --inventory lab", 1, "refused", "lab.up", lab_down, True
    ),
    "key not accepted": Slip(
        "facts --host prod", 1, "does not let deploy in", "facts", strangers_key, True
    ),
    "key file missing": Slip(
        "facts --host prod",
        1,
        "nokey: there is no such file",
        "facts",
        edit("mine.yml", "ssh: lab-prod", "ssh: lab-prod\n    identity: nokey"),
        True,
    ),
    "jump host misspelt": Slip(
        "facts --host h800",
        1,
        "the name of jump host jmp",
        "host.list",
        edit("mine.yml", "ssh: lab-h800", "ssh: lab-h800\n    jump: [jmp.invalid]\n   "),
        True,
    ),
    "jump host has no address": Slip(
        "train --host h800",
        1,
        "nowhere.invalid: ",
        "host.list",
        edit("ssh_config", "HostName 127.0.0.1", "HostName nowhere.invalid"),
        True,
    ),
    "not pinned": Slip("status", 6, "is not known", "host.trust", nothing_pinned, True),
    "not pinned, trust": Slip(
        "host.trust prod", 1, "was not pinned", "host.trust", nothing_pinned, True
    ),
    "changed key": Slip(
        "deploy --yes",
        6,
        "HAS CHANGED",
        "host.trust",
        released_then_changed,
        True,
    ),
    "changed key, trust": Slip(
        "host.trust prod --yes", 6, "was not pinned", "host.trust", other_pins, True
    ),
    "no python": Slip(
        "facts --host prod",
        1,
        "python3.99",
        "facts",
        edit("mine.yml", "ssh: lab-prod", "ssh: lab-prod\n    python: python3.99"),
    ),
    **{
        f"old python, {words}": Slip(
            words, 1, "is Python 3.10; macd needs 3.11 or newer", "facts", old_python, True
        )
        for words in (
            "facts --host prod",
            "provision --yes",
            "deploy --yes",
            "train --host h800 --dry-run",
        )
    },
    "no such host": Slip("facts --host h801", 2, "no host 'h801'", "host.list"),
    # The inventory.
    "variable not set": Slip(
        "status",
        2,
        "MACD_NEWCOMER_HOST",
        "host.list",
        edit("mine.yml", "ssh: lab-prod", "ssh: ${MACD_NEWCOMER_HOST}"),
    ),
    "no such inventory": Slip("status --inventory prod", 2, "no inventory 'prod'", "host.list"),
    "example not copied": Slip("status --inventory production", 2, "no inventory", "host.list"),
    "key misspelt": Slip(
        "status",
        2,
        "did you mean port?",
        "host.list",
        edit("mine.yml", "ssh: lab-prod", "ssh: lab-prod\n    prot: 22"),
    ),
    "yaml broken": Slip(
        "status", 2, "mine.yml", "host.list", edit("mine.yml", "role: serve", "role: [serve")
    ),
    "no such host of the env": Slip(
        "deploy --host h800 --yes", 2, "h800 does not serve prod", "host.list"
    ),
    "no such env": Slip(
        "deploy --env staging", 2, "no host that serves env 'staging'", "host.list"
    ),
    # The lab was never started.
    **{
        f"no lab, {words}": Slip(words, 2, ".lab", "lab.up", no_lab)
        for words in (
            "facts --host prod --inventory lab",
            "train --host h800 --inventory lab",
            "status --inventory lab",
            "logs --inventory lab",
            "shadow-gate --inventory lab",
            "provision --inventory lab",
            "release --inventory lab",
            "doctor --inventory lab",
            "rollback --yes --inventory lab",
            "train.status --inventory lab",
        )
    },
    # Steps in the wrong order.
    "no release, deploy": Slip("deploy --yes", 2, "no release", "release"),
    "no release, plan": Slip("plan", 2, "no release", "release"),
    "no release, health": Slip("health", 2, "no release", "release"),
    "no release, show": Slip("release.show", 2, "no release", "release"),
    "no training": Slip("release", 2, "no finished training", "train"),
    "no training, status": Slip("train.status", 1, "no training run", "train"),
    "not provisioned, deploy": Slip(
        "deploy --yes", 6, "not provisioned", "provision", a_release, True
    ),
    "not provisioned, rollback": Slip(
        "rollback --yes", 6, "not provisioned", "provision", live=True
    ),
    "not provisioned, rollback asked": Slip(
        "rollback", 6, "nothing is provisioned", "provision", live=True
    ),
    "not provisioned, shadow": Slip(
        "disable-stacking --yes", 6, "not provisioned", "provision", live=True
    ),
    "no gate, stacking": Slip("enable-stacking --yes", 6, "no gate report", "shadow-gate"),
    "no such release, show": Slip(f"release.show {NOBODY_HAS}", 2, "no release", "release.list"),
    "no such release, deploy": Slip(
        f"deploy --release {NOBODY_HAS} --yes", 2, "no release", "release.list"
    ),
    # Bars.
    "wrong columns": Slip(
        "data.import bars.csv --symbol BTCUSD --tf 1h",
        2,
        "bars.csv",
        "data.import",
        csv("a,b,c,d,e,f\n" + "x,y,z,u,v,w\n" * 9),
    ),
    "empty": Slip("data.import bars.csv --symbol BTCUSD", 2, "bars.csv", "data.import", csv("")),
    "header only": Slip(
        "data.import bars.csv --symbol BTCUSD", 2, "no rows", "data.import", csv(HEADER)
    ),
    "wrong timeframe": Slip(
        "data.import bars.csv --symbol BTCUSD --tf 4h",
        2,
        "not 4h bars",
        "data.import",
        csv(HEADER + HOURS),
    ),
    "no symbol": Slip(
        "data.import bars.csv", 2, "which market", "data.import", csv(HEADER + HOURS)
    ),
    "no such file": Slip("data.import none.csv --symbol BTCUSD", 2, "can't be read", "data.import"),
    "no bars, verify": Slip(
        "data.verify",
        1,
        "no bars at",
        "data.import",
        edit("mine.yml", "../data/sample", "../nowhere"),
    ),
    "no bars, train": Slip(
        "train --host h800",
        1,
        "no bars at",
        "data.import",
        edit("mine.yml", "../data/sample", "../nowhere"),
    ),
    # The host says no. Nobody may make a directory there, root included.
    "app directory": Slip(
        "provision --yes",
        1,
        "/sys/newcomer",
        "provision",
        edit("mine.yml", "~/newcomer", "/sys/newcomer"),
        False,
    ),
}


# The same slip made at another verb, or another slip with the same answer.
AGAIN = {
    "old python, provision --yes",
    "old python, train --host h800 --dry-run",
    "key file missing",
    "changed key, trust",
    *(f"no lab, {verb} --inventory lab" for verb in ("status", "logs", "shadow-gate", "doctor")),
    "no lab, train.status --inventory lab",
    "no release, plan",
    "no release, health",
    "no release, show",
    "no training, status",
    "not provisioned, rollback asked",
    "not provisioned, shadow",
    "no such release, show",
    "empty",
    "header only",
    "no bars, verify",
}
EVERY = [
    pytest.param(slip, id=name, marks=[pytest.mark.full] * (name in AGAIN))
    for name, slip in SLIPS.items()
]


@pytest.mark.parametrize("slip", EVERY)
def test_a_slip_ends_in_one_message(desk: Desk, task_names: set[str], slip: Slip) -> None:
    slip.spoil(desk)
    before = desk.remains()
    code, out, err = desk.types(*slip.typed.split())
    said = out + err
    assert code == slip.code, said
    assert "Traceback" not in said
    assert err.count("✗ ") == 1, said
    assert slip.says in err, said
    _, _, hint = err.partition("\n  do: ")
    named = set(_COMMAND.findall(hint))
    assert hint and (not slip.next or slip.next in named), said
    assert named <= task_names
    assert not slip.live or "\n  now: " in err, said
    assert desk.remains() == before


def test_a_host_that_is_only_a_jump_needs_no_python(desk: Desk) -> None:
    old_python(desk)
    code, out, err = desk.types("facts", "--host", "jump")
    assert (code, err) == (0, "")
    assert "as a jump host it needs no Python" in out
    assert "is Python 3.10" in out
    code, out, err = desk.types("facts", "--host", "jump", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["python"] is None


def test_a_release_is_not_made_for_what_an_old_python_was(desk: Desk) -> None:
    """A host that answers is asked, whatever it said before."""
    known = load("mine", root=desk.root)
    memory = known.state_dir / "facts" / "prod.json"
    memory.parent.mkdir(parents=True, exist_ok=True)
    remembered = {"python": "3.12", "machine": "x86_64", "libc": "glibc", "libc_version": "2.36"}
    memory.write_text(json.dumps({"prod": {**remembered, "at": "then"}}))
    old_python(desk)
    with pytest.raises(UnfitPythonError, match=r"is Python 3\.10"):
        target_of(load("mine", root=desk.root), "prod")


def test_the_gate_before_any_deploy_is_inconclusive_and_names_deploy(desk: Desk) -> None:
    code, out, err = desk.types("shadow-gate")
    assert code == 3, out + err
    assert "no release is live" in out
    assert "invoke deploy --env prod" in out
    assert "Traceback" not in out + err
    code, _, err = desk.types("enable-stacking", "--yes")
    assert code == 6
    assert "INCONCLUSIVE" in err and "invoke shadow-gate" in err


def test_looking_before_anything_was_done_names_the_next_step(desk: Desk) -> None:
    for words in ("status", "why", "doctor"):
        code, out, err = desk.types(words)
        assert code == 1, out + err
        assert "invoke provision" in out
        assert not err


def test_the_hint_of_missing_bars_puts_them_where_training_looks(desk: Desk) -> None:
    desk.edit("mine.yml", "../data/sample", "../mine")
    _, _, err = desk.types("data.verify")
    hint = err.partition("  do: invoke ")[2].splitlines()[0]
    (desk.root / "bars.csv").write_text(HEADER + HOURS)
    code, out, err = desk.types(*hint.replace("FILE", "bars.csv").split())
    assert code == 0, out + err
    code, out, _ = desk.types("data.verify")
    assert "BTCUSD 1h" in out and code in (0, 1)
