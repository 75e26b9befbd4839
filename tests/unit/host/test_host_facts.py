"""Facts come from the machine and from programs on PATH, and survive those that fail or hang."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from macd.host.rpc import facts

GPUS = """\
NVIDIA H800, GPU-1234, 81559, 81004, 550.54.15
NVIDIA H800, GPU-5678, 81559, [N/A], 550.54.15
"""


def program(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def test_this_machine_in_all_its_facts(tmp_path: Path) -> None:
    machine = facts.facts(disks=[str(tmp_path / "not/there/yet")])
    assert machine["user"]["uid"] == os.getuid()
    assert machine["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["os"]["arch"] == os.uname().machine
    assert machine["cpus"] >= 1
    assert machine["memory"]["total"] > 1 << 20
    (disk,) = machine["disks"]
    assert (disk["exists"], disk["writable"]) == (False, True)
    assert disk["device"] == tmp_path.stat().st_dev
    assert 0 <= disk["free"] <= disk["total"]


def test_gpus_are_read_from_nvidia_smi(path: Path) -> None:
    program(path, "nvidia-smi", f"cat <<'EOF'\n{GPUS}EOF")
    first, second = facts.gpus()
    assert first["name"] == "NVIDIA H800"
    assert (first["memory_total"], first["memory_free"]) == (81559 << 20, 81004 << 20)
    assert second["memory_free"] is None
    assert first["driver"] == "550.54.15"


@pytest.mark.parametrize("body", ["echo 'NVIDIA-SMI has failed'; exit 9", "exec /nonexistent"])
def test_a_broken_driver_is_no_gpu(path: Path, body: str) -> None:
    program(path, "nvidia-smi", body)
    assert facts.gpus() == []


def test_a_program_that_hangs_is_given_up(path: Path) -> None:
    program(path, "nvidia-smi", "exec sleep 1000")
    assert facts._output(["nvidia-smi"], seconds=0.2) == ""


SYSTEMCTL = """\
[ "$1" = --version ] && echo 'systemd 252 (252.38-1~deb12u1)' && exit
[ "$1" = --user ] && echo {user} && exit
echo {system}
exit 1
"""


@pytest.mark.parametrize(
    ("uid", "system", "user", "scope", "state"),
    [
        (0, "running", "running", "system", "running"),
        (0, "degraded", "running", "system", "degraded"),
        (0, "offline", "running", "user", "running"),
        (1000, "running", "running", "user", "running"),
        (1000, "running", "", "", ""),
        (0, "offline", "offline", "", ""),
    ],
)
def test_the_scope_is_the_manager_this_user_can_reach(
    path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, system: str, user: str, scope: str,
    state: str,
) -> None:  # fmt: skip
    program(path, "systemctl", SYSTEMCTL.format(system=system, user=user))
    monkeypatch.setattr(os, "getuid", lambda: uid)
    manager = facts.systemd()
    assert (manager["scope"], manager["state"], manager["version"]) == (scope, state, "252")


def test_no_systemctl_is_a_fact_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts.systemd()["systemctl"] is None
    assert facts.systemd()["scope"] == ""
