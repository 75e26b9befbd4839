"""A host that an earlier version provisioned and deployed to keeps working with this one.

tests/support/earlier/ holds the code of commit 72db35f for operator and host (no training, no
service). It is run as it was, in processes of its own: it makes and signs the first releases,
provisions the host and deploys to it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from macd.lab import LabState
from tests.support.lab_project import TASKS, Project, project

ARCHIVE = Path(__file__).parents[1] / "support/earlier/macd-72db35f.tar.xz"
DOCTOR = TASKS.replace("deploy, history", "deploy, doctor, gate, history").replace(
    "deploy.plan,", "doctor.doctor, gate.shadow_gate, deploy.plan,"
)


@dataclass(frozen=True)
class Earlier:
    """The earlier version, typed in a project."""

    code: Path
    project: Project

    def release(self, serial: int) -> str:
        """A small signed release, made by the earlier code."""
        code = (
            "import sys; from pathlib import Path; from tests import small_releases as made; "
            "from macd.inventory import load; "
            "print(made.make(load('lab', root=Path(sys.argv[1])), int(sys.argv[2])))"
        )
        return self._run("-c", code, str(self.project.root), str(serial)).strip()

    def invoke(self, *words: str) -> str:
        """What it prints, typed."""
        return self._run("-m", "invoke", *words)

    def _run(self, *words: str) -> str:
        environment = {
            **os.environ,
            "MACD_ROOT": str(self.project.root),
            "PYTHONPATH": str(self.code),
        }
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.project.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def earlier(lab: LabState, tmp_path: Path) -> Earlier:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "earlier", filter="data")
    made = project(lab, tmp_path / "p", "earlier-test")
    (made.root / "tasks.py").write_text(TASKS)
    inventory = made.root / "inventory/lab.yml"  # without what it doesn't know yet
    lines = inventory.read_text().splitlines(keepends=True)
    later = ("stacking_vs_mean", "policy:")
    inventory.write_text("".join(line for line in lines if not any(key in line for key in later)))
    templates = made.root / "templates"
    today = templates.resolve()
    templates.unlink() if templates.is_symlink() else shutil.rmtree(templates)
    shutil.copytree(today, templates)
    unit = templates / "service.unit.j2"  # it knows no instances either
    unit.write_text("{% set instances = false %}\n" + unit.read_text())
    return Earlier(tmp_path / "earlier", made)


def test_a_host_of_an_earlier_version_is_looked_at_deployed_to_and_rolled_back(
    earlier: Earlier,
) -> None:
    made = earlier.project
    first, second = earlier.release(1), earlier.release(2)
    earlier.invoke("provision", "--yes")
    earlier.invoke("deploy", "--yes", "--release", first)
    earlier.invoke("deploy", "--yes", "--release", second)
    assert made.live == second

    # This version looks at it: nothing is misread, nothing is changed.
    (made.root / "tasks.py").write_text(DOCTOR)
    (host,) = made.json("status")["hosts"]
    assert (host["live"]["id"] if isinstance(host["live"], dict) else host["live"]) == second
    assert first in str(host["rollback"])
    (examined,) = made.json("doctor", code=0)["hosts"]
    findings = {finding["name"]: finding for finding in examined["findings"]}
    assert [name for name, finding in findings.items() if finding["ok"] is False] == []
    assert second in made.invoke("history")
    verdict = made.json("shadow-gate", code=3)  # judged: no signal lines are no evidence
    assert verdict["verdict"] == "INCONCLUSIVE"

    # It rolls back to a release that only the earlier version ever committed, and forward again.
    made.invoke("rollback", "--yes")
    assert made.live == first

    # It deploys to the host as the earlier version left it, after its own provision.
    made.invoke("provision", "--yes")
    third = made.release(3)
    made.invoke("deploy", "--yes")
    assert made.live == third
    made.invoke("rollback", "--yes")
    assert made.live == first
