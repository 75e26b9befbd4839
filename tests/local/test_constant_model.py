"""A model that answers a constant: health, gate and doctor each catch it, on the lab, typed.

And a feed that ended: both need the real service.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macd.app.predict import health
from macd.lab import LabState
from tests.support.constant_model import make_constant
from tests.support.deployed_app import App, make_app
from tests.support.lab_project import Project, project
from tests.support.sweeps import sweep

TASKS = """
from invoke import Collection
from macd.cli import doctor, gate, provision, usage
usage.install()
namespace = Collection(provision.provision, gate.shadow_gate, doctor.doctor)
"""
SERVE = "import sys\nfrom macd.app.service.__main__ import main\nsys.exit(main())\n"
PATIENCE_S = 180


@dataclass(frozen=True)
class Running:
    """A project whose prod runs the real service on the small models."""

    project: Project
    app: App

    def restart(self, lines: int) -> None:
        """Start it anew and wait until it wrote that many lines more."""
        before = self._count()
        self.project.systemctl("daemon-reload")
        self.project.systemctl("restart", f"{self.unit}.service")
        deadline = time.monotonic() + PATIENCE_S
        while self._count() < before + lines:
            assert time.monotonic() < deadline, self._count() - before
            time.sleep(0.2)

    @property
    def unit(self) -> str:
        return self.project.inventory.host("prod").unit

    def stop(self) -> None:
        """Its replay would take CPU time from every test that follows."""
        self.project.systemctl("stop", f"{self.unit}.service")

    def _count(self) -> int:
        logs = (self.app.root / "data/live").glob("trades_*.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in logs)

    def diagnosed(self, code: int) -> dict[str, dict[str, Any]]:
        (one,) = self.project.json("doctor", code=code)["hosts"]
        return {finding["name"]: finding for finding in one["findings"]}


@contextlib.contextmanager
def run(lab: LabState, top: Path, name: str, feed: str) -> Iterator[Running]:
    made = project(lab, top, name)
    (made.root / "tasks.py").write_text(TASKS)
    book = made.root / "inventory" / "lab.yml"
    text = book.read_text()
    assert "speed: 2, start: 0.85" in text
    book.write_text(text.replace("speed: 2, start: 0.85", feed))
    app = make_app(made.app)
    (app.release / "app").mkdir()
    (app.release / "app/serve.py").write_text(SERVE)
    (app.release / "runtime").symlink_to(sys.prefix)
    made.invoke("provision", "--yes")
    env = made.app / ".env"
    env.write_text(env.read_text() + "ML_STACKING_MIN_SAMPLES=0\n")
    running = Running(made, app)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("model", sweep(["TFT", "LSTM"], "TFT"))
def test_each_of_the_three_catches_it(lab: LabState, tmp_path: Path, model: str) -> None:
    with run(lab, tmp_path, f"k{model[0].lower()}", "speed: 10, start: 0.85") as running:
        catch(running, model)


def catch(running: Running, model: str) -> None:
    output, file = f"{model} output", f"{model.lower()}_1h.onnx"
    running.restart(30)
    assert [item.name for item in health.check(running.app.release) if not item.ok] == []
    assert running.project.json("shadow-gate", code=0)["verdict"] == "PASS"
    assert running.diagnosed(1)[output]["ok"] is True  # never committed: one problem at least

    make_constant(running.app.models / file)
    running.restart(60)
    bad = {item.name: item.detail for item in health.check(running.app.release) if not item.ok}
    assert any(model in name for name in bad), bad
    assert "golden" in " ".join(bad).lower()
    told = running.project.json("shadow-gate", code=1)
    assert told["verdict"] == "FAIL"
    found = running.diagnosed(1)
    for name in ("serving", "release", "dependencies", output):
        assert found[name]["ok"] is False, (name, found[name])
    assert file in found["release"]["evidence"]
    assert f"invoke train --mode {model.lower()}" in found[output]["remedy"]


def test_a_feed_that_is_at_its_end_is_named(lab: LabState, tmp_path: Path) -> None:
    with run(lab, tmp_path, "e", "speed: 10, start: 0.999, loop: false") as running:
        running.restart(3)
        deadline = time.monotonic() + PATIENCE_S
        while (found := running.diagnosed(1)["feed"])["ok"] is not False:
            assert time.monotonic() < deadline, found
        assert "at the end of its file" in found["evidence"]
        assert "service.feed" in found["remedy"]
