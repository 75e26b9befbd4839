"""What a command must not do each time it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from macd.inventory import project_root
from tests.support import commands


@pytest.mark.parametrize("forbidden", [False, True])
def test_compiled_modules_are_kept_unless_that_is_forbidden(
    tmp_path: Path, forbidden: bool
) -> None:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if forbidden:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = commands.run(project_root(), "--list", env=environment, real=True)
    assert done.returncode == 0
    kept = {path.name.split(".")[0] for path in tmp_path.rglob("macd/**/*.pyc")}
    assert ("deploy" in kept) != forbidden


def test_what_needs_no_host_loads_neither_ssh_nor_what_a_deploy_needs() -> None:
    program = """
import sys
from macd.cli import history, host, release
from macd.inventory import load
load("lab")
heavy = {"paramiko", "fabric", "jinja2", "rich", "numpy", "polars", "cryptography"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project_root(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_deploy_dials_before_it_loads_what_it_needs_later() -> None:
    program = """
import sys
from macd.ssh.ahead import LinksAhead
def dial(self, host):
    heavy = {"macd.deploy.plan", "macd.deploy.apply", "paramiko", "fabric", "jinja2", "rich"}
    print(sorted(heavy & set(sys.modules)))
    sys.exit()
LinksAhead._begin = dial
sys.argv = ["invoke", "deploy", "--yes", "--inventory", "lab"]
from invoke.main import program
program.run()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=project_root(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
