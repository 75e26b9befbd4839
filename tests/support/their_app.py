"""An application that has never heard of macd (tests/apps): as its team has it, as macd takes it.

A git repository with bars, an inventory with `app:` for the lab, a finished training without one,
and signed releases.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from macd.inventory import Inventory, load, project_root
from macd.lab import LabState
from tests.support import lab_project, small_releases
from tests.support.local_host import EMPTY_LOCK
from tests.support.openssh import eventually
from tests.support.ports import kept

APPS = Path(__file__).parents[1] / "apps"
SOURCE = APPS / "their_repo"
MODELS = APPS / "their_models"
WRITES = ["logs", "data/live"]
_GIT = {
    **{f"GIT_{who}_NAME": "Jun" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "jun@example.com" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_DATE": "2026-01-02T03:04:05Z" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}
TASKS = Path(__file__).parents[2].joinpath("tasks.py").read_text()


@dataclass(frozen=True)
class Ports:
    """Where the engine and its page answer."""

    health: int
    web: int


def repository(directory: Path, *, bars: int = 1500, models: bool = False) -> Path:
    """A git repository of it at `directory`, with bars; with models as well, none in git."""
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "gitignore.txt").rename(directory / ".gitignore")
    git(directory, "init", "-q", "-b", "main")
    commit(directory, "everything")
    klines = directory / "data/klines/ETHUSDT_1h.csv"
    klines.parent.mkdir(parents=True)
    klines.write_text(_bars(bars))
    if models:
        shutil.copytree(MODELS, directory / "data", dirs_exist_ok=True)
    return directory


def commit(directory: Path, message: str) -> None:
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", message)


def git(directory: Path, *words: str) -> str:
    environment = {**os.environ, **_GIT}
    done = subprocess.run(
        ["git", *words], cwd=directory, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def _bars(count: int) -> str:
    """Prices whose moves go on a little: a model finds something."""
    chance = random.Random(11)
    price, last, rows = 2000.0, 0.0, ["time,close"]
    for hour in range(count):
        last = 0.35 * last + chance.gauss(0, 0.004)
        price *= 1 + last
        rows.append(f"{1761955200 + 3600 * hour},{price:.2f}")
    return "\n".join(rows) + "\n"


def free_ports() -> Ports:
    """Two that are this test process's as long as it lives."""
    return Ports(kept("health"), kept("web"))


def alone(name: str) -> dict[str, Any]:
    """Changes for `project`: ports and words of its own, for others of it run beside."""
    ports = Ports(kept(f"health of {name}"), kept(f"web of {name}"))
    return {
        "serve__command": f"python3 live_runner.py --phase paper --symbol {name}",
        "serve__ready": {"http": f"http://127.0.0.1:{ports.health}/health"},
        "serve__env": {"HEALTH_PORT": str(ports.health), "WEB_PORT": str(ports.web)},
    }


def app_section(ports: Ports, **change: Any) -> dict[str, Any]:
    """The `app:` of an inventory; `change` as serve__requirements="requirements.txt".

    Without requirements and a web part unless asked for: then no test needs a package index.
    """
    section: dict[str, Any] = {
        "name": "ml-signals",
        "source": "../their",
        "train": {
            "stages": {
                "verify": "python3 verify_data.py",
                "lgb": "python3 train_gpu.py --mode lgb --tf {tf}",
                "lstm": "python3 train_gpu.py --mode lstm --tf {tf}",
            },
            "data": ["data/klines"],
            "artefacts": ["data/ml_models/*_1h*", "data/gpu_results/train_*.log"],
            "metrics": {
                "lstm_val_auc": "data/ml_models/lstm_1h_meta.json#/val_auc",
                "lgb_val_auc": "data/ml_models/lgb_1h_meta.json#/val_auc",
                "gap": "data/gpu_results/train_lstm.log#gap=([0-9.]+)",
            },
            "criteria": {"lstm_val_auc": {"min": 0.55}, "gap": {"max": 0.04, "level": "warn"}},
        },
        "check": "python3 check_ml_health.py --skip-live-check",
        "serve": {
            "command": "python3 live_runner.py --phase paper",
            "ready": {"http": f"http://127.0.0.1:{ports.health}/health"},
            "writes": WRITES,
            "env": {"HEALTH_PORT": str(ports.health), "WEB_PORT": str(ports.web)},
        },
        "signals": {
            "files": "logs/live/trade_*.jsonl",
            "map": {
                "time": "timestamp",
                "bar_time": "bar_time",
                "symbol": "symbol",
                "error": "data.components.ml_error",
                "coverage": "data.components.ml_bull_prob",
                "activation": "data.components.ml_stacking_prob",
                "tft": "data.components.ml_tft_prob",
                "lstm": "data.components.ml_lstm_prob",
            },
            "rates": {
                "lgb_normal": {
                    "field": "data.components.ml_lgb_prob",
                    "of": "coverage",
                    "needs": "probability",
                    "min": 0.9,
                    "level": "warn",
                }
            },
        },
        "flag": {"name": "ML_ENABLE_STACKING"},
    }
    for path, value in change.items():
        *parents, last = path.split("__")
        here = section
        for parent in parents:
            here = here[parent]
        here[last] = value
    return section


@dataclass(frozen=True)
class Project(lab_project.Project):
    """A project of it on the lab."""

    def release(self, serial: int, variant: str = "", **more: Any) -> str:  # type: ignore[override]
        return release(self.inventory, serial, variant, **more)


WEB = {"web": {"command": "python3 web.py", "ready": {"log": "listening on"}}}


def project(lab: LabState, root: Path, name: str, **change: Any) -> Project:
    """A project on the lab whose hosts run it; its repository is root/their, without models.

    name: of the application's directory and unit on the hosts. change: see `app_section`.
    """
    made = lab_project.project(lab, root, name)
    (root / "tasks.py").write_text(TASKS)
    repository(root / "their")
    path = root / "inventory/lab.yml"
    document = yaml.safe_load((project_root() / "inventory/lab.yml").read_text())
    document["app"] = app_section(free_ports(), **change)
    document["train"] = {"symbol": "ETHUSDT", "tf": "1h", "require_gpu": False, "min_free_gb": 1}
    document["hosts"]["prod"] |= {"app_dir": f"~/{name}", "unit": name}
    document["hosts"]["h800"] |= {"python": sys.executable, "work_dir": f"~/work/{name}"}
    document["soak"] = {"ready_s": 60, "soak_s": 1, "confirm_s": 30}
    document["service"] = {"socket": False, "watchdog_s": 0}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return Project(root, made.lab, load("lab", root=root))


@dataclass(frozen=True)
class ByHand:
    """An installation as its team made it on the lab's prod: copied files, their own units.

    unit: of the engine, without .service; its page is unit-web.
    """

    lab: LabState
    directory: Path
    unit: str

    def systemctl(self, *words: str) -> str:
        argv = ["systemctl", "--user", *words]
        command = " ".join(shlex.quote(word) for word in argv)
        done = subprocess.run(
            ["ssh", "-F", self.lab.ssh_config, "lab-prod", command],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    @property
    def pid(self) -> int:
        shown = self.systemctl("show", f"{self.unit}.service", "-p", "MainPID")
        return int(shown.strip().partition("=")[2] or 0)

    def remove(self) -> None:
        """Stop its units and take them away; whose they are now does not matter."""
        units = self.lab.hosts["prod"].home / ".config/systemd/user"
        for path in units.glob(f"{self.unit}*.service"):
            self.systemctl("disable", "--now", path.name)
        for path in units.glob(f"{self.unit}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.systemctl("daemon-reload")

    @property
    def lines(self) -> list[dict[str, Any]]:
        files = sorted((self.directory / "logs/live").glob("trade_*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def install_by_hand(lab: LabState, name: str, ports: Ports) -> ByHand:
    """Copy it to ~/name on prod, with models, `.env`, two units and a drop-in; both units serve."""
    home = lab.hosts["prod"].home
    directory = home / name
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("__pycache__", "ops"))
    shutil.copytree(MODELS, directory / "data")
    settings = {"HEALTH_PORT": ports.health, "WEB_PORT": ports.web, "EXCHANGE_API_KEY": "s3cret"}
    environment = "# Jun: do not touch\n" + "".join(f"{k}={v}\n" for k, v in settings.items())
    (directory / ".env").write_text(environment)
    units = home / ".config/systemd/user"
    units.mkdir(parents=True, exist_ok=True)
    for end in ("", "-web"):
        text = (SOURCE / f"ops/macd-analysis{end}.service").read_text()
        for old, new in (
            ("User=trader\n", ""),
            ("/opt/macd-analysis/venv/bin/python3", sys.executable),
            ("/opt/macd-analysis", str(directory)),
            ("multi-user.target", "default.target"),
        ):
            text = text.replace(old, new)
        (units / f"{name}{end}.service").write_text(text)
    dropin = units / f"{name}.service.d/override.conf"
    dropin.parent.mkdir()
    dropin.write_text((SOURCE / "ops/override.conf").read_text().replace("Nice=-5\n", ""))
    made = ByHand(lab, directory, name)
    made.systemctl("daemon-reload")
    for end in ("", "-web"):
        made.systemctl("enable", f"{name}{end}.service")
        made.systemctl("start", f"{name}{end}.service")
    for address in (f"{ports.health}/health", f"{ports.web}/"):
        eventually(lambda at=address: _answers(f"http://127.0.0.1:{at}"), every=0.2)  # type: ignore[misc]
    return made


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def finished_run(
    inventory: Inventory, run: str = "20260301T120000Z-theirs", *, val_auc: float = 0.634
) -> Path:
    """runs/<run>/ as a finished training of it leaves it; nothing was trained."""
    directory = inventory.root / "runs" / run
    shutil.copytree(MODELS, directory / "artefacts/data")
    for meta in (directory / "artefacts/data/ml_models").glob("*_meta.json"):
        meta.write_text(json.dumps({**json.loads(meta.read_bytes()), "val_auc": val_auc}))
    (directory / "logs").mkdir()
    (directory / "logs/lstm.log").write_text(f"val_auc={val_auc} gap=0.0559\n")
    metrics = {"lstm_val_auc": val_auc, "lgb_val_auc": val_auc, "gap": 0.0559}
    criteria = [
        _criterion("lstm_val_auc", val_auc, 0.55, val_auc >= 0.55, "block"),
        _criterion("gap", 0.0559, 0.04, False, "warn"),
    ]
    stages = ["verify", "lgb", "lstm"]
    _json(directory / "settings.json", {"own": True, "symbol": "ETHUSDT", "tf": "1h"})
    _json(directory / "metrics.json", {"own": metrics})
    _json(directory / "criteria.json", criteria)
    began = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    events = [{"t": began, "event": "run_started"}, {"t": began + 60, "event": "run_done"}]
    (directory / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    listed = [_listed(path, directory) for path in paths if path.name != "events.jsonl"]
    result = {"state": "done", "complete": True, "stages": stages, "files": listed}
    _json(directory / "result.json", {**result, "host": "h800", "run": run})
    return directory


def _criterion(name: str, value: float, bound: float, ok: bool, level: str) -> dict[str, Any]:
    fields = {"name": name, "title": name, "ok": ok, "level": level, "note": ""}
    return {**fields, "value": value, "threshold": bound}


def _listed(path: Path, directory: Path) -> dict[str, Any]:
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return {"path": path.relative_to(directory).as_posix(), "size": len(data), "sha256": sha256}


def _json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1))


def release(
    inventory: Inventory,
    serial: int,
    fault: str = "",
    *,
    more: Mapping[str, bytes] | None = None,
    lock: bytes = EMPTY_LOCK,
    details: Mapping[str, Any] | None = None,
) -> str:
    """A signed release of it in releases/, built by hand; returns its id.

    fault: what its processes do, see common.py there: exit, hang, never_ready, fork, unhealthy,
    no_models, crash_later, web_exit. more: further files, by path in the release.
    """
    app = inventory.app
    assert app is not None
    sources = {path: path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()}
    left_out = ("__pycache__", "gitignore.txt")
    files = {
        f"source/{at.as_posix()}": path.read_bytes()
        for path, at in sources.items()
        if not any(part in left_out for part in at.parts)
    }
    for path in (one for one in MODELS.rglob("*") if one.is_file()):
        files[f"source/data/{path.relative_to(MODELS).as_posix()}"] = path.read_bytes()
    if fault:
        files["source/FAULT"] = fault.encode()
    files |= {"lock.json": lock, "card.md": b"# card\n", "card.html": b"<p>card</p>\n"}
    files |= {"source/SERIAL": str(serial).encode(), **(more or {})}
    own = {"name": app.name, "writes": list(app.serve.writes), "check": app.check}
    about = {
        "own": {**own, "units": list(app.serve.more)},
        "run": f"run-{serial}",
        "host": "h800",
        "symbol": "ETHUSDT",
        "tf": "1h",
        "code": {"version": "", "commit": "c" * 40, "dirty": False, "changed": []},
        "metrics": {"lstm_val_auc": 0.634},
        "criteria": [],
        "accepted": None,
        **(details or {}),
    }
    small_releases.make_keys(inventory)
    return small_releases.put(inventory, serial, files, about, app.name)
