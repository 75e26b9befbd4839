"""What `invoke facts` makes of a GPU box, and what it says when no host is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.cli.host import _lines
from macd.ssh.facts import Clock, Disk, Facts, Gpu, OperatingSystem, Python, Systemd, User
from tests.support import commands

TASKS = """
from invoke import Collection
from macd.cli import host, usage
usage.install()
namespace = Collection(host.facts)
"""
INVENTORY = "hosts:\n  jump: {role: jump, ssh: somewhere}\n  other: {role: jump, ssh: elsewhere}\n"

BOX = Facts(
    hostname="h800",
    user=User("quant", 1000, 1000, "/home/quant", "/bin/zsh"),
    os=OperatingSystem(
        "Linux", "5.15.0", "x86_64", "ubuntu", "22.04", "Ubuntu 22.04.4 LTS",
        {"name": "glibc", "version": "2.35"}, "boot", 432_000.0,
    ),
    python=Python("/usr/bin/python3", "3.10.12", "cpython", "", "linux-x86_64", venv=False),
    cpus=192,
    load=(1.0, 2.5, 0.25),
    memory={"total": 2 << 40, "available": 1 << 40},
    disks=(Disk("/data", True, False, 1 << 40, 300 << 20, 1, 1),),
    systemd=Systemd("/usr/bin/systemctl", True, "249", "user", "degraded"),
    gpus=(
        Gpu("NVIDIA H800", "GPU-1", 80 << 30, 79 << 30, "550.54.15"),
        Gpu("NVIDIA H800", "GPU-2", None, None, "550.54.15"),
    ),
    tools={"rsync": None, "tar": "/bin/tar", "nvidia-smi": "/usr/bin/nvidia-smi"},
    time=0.0,
    clock=Clock(0.0, 0.1),
)  # fmt: skip


def test_everything_a_person_decides_by_is_shown() -> None:
    shown = dict.fromkeys(name for name, _ in _lines(BOX))
    assert list(shown) == [
        "host", "system", "up", "python", "cpu", "disk", "services", "gpu", "missing",
    ]  # fmt: skip
    text = "\n".join(value for _, value in _lines(BOX))
    assert "Ubuntu 22.04.4 LTS, Linux 5.15.0, x86_64, glibc 2.35" in text
    assert "5.0 days, load 1.00, 2.50, 0.25" in text
    assert "3.10.12, /usr/bin/python3, without venv" in text
    assert "192, memory 1024.0 GiB free of 2048.0 GiB" in text
    assert "/data: 300 MiB free of 1024.0 GiB (not writable)" in text
    assert "systemd 249, scope user, degraded" in text
    assert "NVIDIA H800, 79.0 GiB free of 80.0 GiB, driver 550.54.15" in text
    assert "NVIDIA H800, driver 550.54.15" in text
    assert text.endswith("rsync")


@pytest.mark.parametrize("argv", [[], ["--json"]])
def test_without_a_host_the_names_are_listed(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "lab.yml").write_text(INVENTORY)
    done = commands.run(tmp_path, "facts", *argv)
    assert done.returncode == 2
    assert "jump, other" in done.stdout + done.stderr
    assert "invoke facts --host jump" in done.stdout + done.stderr
