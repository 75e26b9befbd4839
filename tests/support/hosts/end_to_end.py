"""The project directory of the story: its inventory, bars and keys, and eyes on the prod host."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macd.app.market.bars import read_bars, write_bars
from macd.cli import demo
from macd.host.store.manifest import release_id, render
from macd.host.store.releases import MANIFEST, SIGNATURE
from macd.host.store.signature import GATE_NAMESPACE
from macd.release.signing import sign
from macd.release.store import Store
from tests.support import commands, wheels
from tests.support.hosts.fleet import Hosts
from tests.support.signed_files import IDENTITY, make_key
from tests.support.training_run import BARS, ROOT, SAMPLE, SETTINGS

APP = "/opt/macd-analysis"
UNIT = "macd-analysis.service"
ENDPOINT = f"{APP}/state/run/health.sock"
WATCHDOG_S = 10
# h800's Python for trainings: what fleet.TRAINS_WITH shows there, wherever it was installed here.
TRAINING = "/usr/local/bin/training-python"
TRAINING_PYTHON = f"""\
#!/bin/sh
export LD_LIBRARY_PATH=/srv/python/lib PYTHONPATH="$PYTHONPATH:/srv/packages"
exec /srv/python/bin/{Path(sys.executable).resolve().name} "$@"
"""
PATIENCE_S = 300
REPLAY = "{kind: replay, speed: 3, start: 0.5}"
EXCHANGE = "{{kind: ccxt, exchange: binance, api_url: '{url}', stale_bars: 6}}"
BARS_DIRECTORY, WRITER = "/srv/bars", "daemon"  # not the service's own account
FILES = f"{{kind: directory, directory: {BARS_DIRECTORY}, stale_bars: 6}}"
SMALLER: dict[str, Any] = {
    "folds": 2,
    "params": {
        "lgbm": {"rounds": 20},
        "lstm": {"hidden": 8, "projection": 8, "epochs": 2, "rows_per_epoch": 512},
        "tft": {"width": 8, "attention_heads": 2, "epochs": 1, "rows_per_epoch": 256},
    },
}
FEW = {"OMP_NUM_THREADS": "1", "ML_STACKING_MIN_SAMPLES": "100"}
# The tiny nets reach no criterion: told, not blocked. Bars come quickly, so that 20 of them (what
# the gate asks for) need seconds. Not more quickly: each costs CPU time while the story runs.
INVENTORY = f"""\
ssh_config: {{hosts.ssh_config}}
known_hosts: known_hosts
hosts:
  jump: {{{{role: jump, ssh: jumphost}}}}
  h800: {{{{role: train, ssh: h800, work_dir: ~/work/story, scope: user, python: {TRAINING}}}}}
  prod: {{{{role: serve, env: prod, ssh: prod, app_dir: {APP}, unit: macd-analysis}}}}
train:
  symbol: BTCUSD
  data_dir: ../bars
  profile: demo
  require_gpu: false
  min_free_gb: 1
  criteria:
    lstm_val_auc: {{{{level: warn}}}}
    test_val_gap: {{{{level: warn}}}}
    stacking_oof_auc: {{{{level: warn}}}}
    n_oof: {{{{level: warn}}}}
    stacking_vs_mean: {{{{level: warn}}}}
guard: {{{{steps: [25, 50, 100]}}}}
soak: {{{{ready_s: 120, soak_s: 1, confirm_s: 120}}}}
release:
  keep: 3
  sign_key: ../keys/release
  gate_key: ../keys/gate
  allowed_signers: ../keys/allowed_signers
  identity: {IDENTITY}
service:
  watchdog_s: {WATCHDOG_S}
  challenger: true
  feed: {{feed}}
  env: {{{{ML_STACKING_MIN_SAMPLES: "100"}}}}
"""


@dataclass(frozen=True)
class EndToEnd:
    """`root` is laid out like a clone, with bars and the inventory `story`."""

    hosts: Hosts
    root: Path

    def invoke(self, *words: str, code: int = 0) -> str:
        """What it printed, both streams; the exit code is part of the story."""
        done = self._run(words)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *words: str, code: int | None = 0) -> Any:
        """code: None where any will do."""
        done = self._run([*words, "--json"])
        told = json.loads(done.stdout) if done.stdout else {}
        for one in told.get("outcomes", ()):
            one.pop("plan", None)
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{told}{done.stderr}"
        return told

    def _run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        began = time.monotonic()
        environment = {**os.environ, "MACD_ROOT": str(self.root), **FEW}
        done = commands.run(self.root, *words, "--inventory", "story", env=environment)
        print(f"{time.monotonic() - began:5.1f} s  invoke {' '.join(words)}")  # shown by pytest -s
        return done

    def on_prod(self, *argv: str) -> str:
        return self.hosts.prod.exec(*argv).strip()

    def unit(self, *names: str) -> dict[str, str]:
        told = self.on_prod("systemctl", "show", UNIT, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in told.splitlines())

    @property
    def run(self) -> str:
        """The id of the one training there was."""
        (found,) = (self.root / "runs").glob("*/result.json")
        return found.parent.name

    @property
    def live(self) -> str:
        return self.on_prod("readlink", f"{APP}/current").removeprefix("releases/")

    @property
    def pid(self) -> str:
        return self.unit("MainPID")["MainPID"]

    @property
    def environ(self) -> dict[str, str]:
        """Of the process that systemd runs now."""
        words = self.on_prod("cat", f"/proc/{self.pid}/environ").split("\0")
        return dict(word.split("=", 1) for word in words if word)

    @property
    def healthz(self) -> dict[str, Any]:
        """Asked on the host, through the socket that systemd holds."""
        program = (
            "import socket,sys;s=socket.socket(1);s.settimeout(20);s.connect(sys.argv[1]);"
            "s.send(b'GET /healthz HTTP/1.0\\r\\n\\r\\n');d=b''\n"
            "while (p:=s.recv(65536)): d+=p\n"
            "print(d.partition(b'\\r\\n\\r\\n')[2].decode())"
        )
        told: dict[str, Any] = json.loads(self.on_prod("python3", "-c", program, ENDPOINT))
        return told

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every signal line the service has finished."""
        text = self.on_prod("sh", "-c", f"cat {APP}/data/live/trades_*.jsonl 2>/dev/null || true")
        whole = [line for line in text.splitlines() if line.endswith("}")]
        return [json.loads(line) for line in whole]

    def feed(self, wanted: str) -> None:
        """Where the service's bars are to come from, from the next command on."""
        inventory = self.root / "inventory" / "story.yml"
        feed = f"  feed: {wanted}"
        inventory.write_text(re.sub("(?m)^  feed: .*$", lambda _: feed, inventory.read_text()))

    def append(self, bars: str) -> None:
        """As the process does that brings bars: under its own account, to a file of its own."""
        path = f"{BARS_DIRECTORY}/BTCUSD_1h.csv"
        writing = f"umask 022; cat >> {path}"
        argv = ("setpriv", f"--reuid={WRITER}", f"--regid={WRITER}", "--clear-groups")
        self.hosts.prod.exec(*argv, "sh", "-c", writing, input=bars)

    def until(self, what: str, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not check():
            if time.monotonic() > deadline:
                log = self.on_prod("journalctl", "-u", UNIT, "-n", "40", "--no-pager")
                raise AssertionError(f"{what} did not come\n{log}")
            time.sleep(0.3)

    def until_bars(self, count: int) -> None:
        """So many bars of the live release lie in the logs."""
        live = self.live
        self.until(
            f"{count} bars of {live}",
            lambda: sum(line.get("release") == live for line in self.lines) >= count,
        )


def lay_out(hosts: Hosts, root: Path) -> EndToEnd:
    """A clone in small: the shipped verbs and pages, some bars, keys of its own."""
    for name in ("tasks.py", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "templates", root / "templates")
    write_bars(read_bars(SAMPLE)[:BARS], root / "bars/BTCUSD_1h.parquet")
    (root / "small.json").write_text(json.dumps({**SETTINGS, **SMALLER}))
    (root / "inventory").mkdir()
    (root / "inventory" / "story.yml").write_text(INVENTORY.format(hosts=hosts, feed=REPLAY))
    keys = root / "keys"
    keys.mkdir()
    lines = []
    for name, namespace in (("release", "release-manifest@macd"), ("gate", GATE_NAMESPACE)):
        public = make_key(keys, name).with_suffix(".pub").read_text().strip()
        lines.append(f'{IDENTITY} namespaces="{namespace}" {public}\n')
    (keys / "allowed_signers").write_text("".join(lines))
    wheels.share(root / ".macd/story")
    wrapper = f"cat > {TRAINING}; chmod 755 {TRAINING}"
    hosts.h800.exec("sh", "-c", wrapper, input=TRAINING_PYTHON)
    return EndToEnd(hosts, root)


def bars_up_to_now(count: int) -> list[str]:
    """Lines of bars of the sample, moved to the newest hours that have closed."""
    bars = read_bars(SAMPLE)[:count]
    hour = 3_600_000
    first = (int(time.time() * 1000) // hour - count) * hour
    return [
        ",".join(map(str, (first + row * hour, *prices))) + "\n"
        for row, (_, *prices) in enumerate(bars.iter_rows())
    ]


def signed_again(story: EndToEnd, named: str, change: Callable[[Path], None]) -> str:
    """A newer release of the same files, after `change` had its way with them; its id.

    `invoke release` would refuse to make some of these; a key holder with a script would not.
    """
    store = Store(story.root / "releases")
    one = store.load(named)
    building = Path(tempfile.mkdtemp(dir=story.root))
    shutil.copytree(one.directory, building, dirs_exist_ok=True)
    change(building)
    files = []
    for file in one.manifest.files:
        data = (building / file.path).read_bytes()
        files.append(replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest()))
    serial = max(other.manifest.serial for other in store.readable()) + 1
    raw = render(replace(one.manifest, files=tuple(files), serial=serial))
    (building / MANIFEST).write_bytes(raw)
    (building / SIGNATURE).write_bytes(sign(raw, key=story.root / "keys/release"))
    building.rename(store.root / release_id(raw))
    return release_id(raw)


def no_change(_: Path) -> None:
    """The same files."""


def another_model(top: Path) -> None:
    """A LightGBM that is not the one the golden predictions were made with."""
    models = top / "data/ml_models"
    shutil.copy(models / "lgbm_1h_24h.txt", models / "lgbm_1h_5h.txt")


def mistaken_code(top: Path) -> None:
    """A service that loads, answers its check, and ends at its first turn."""
    (wheel,) = (top / "app").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["macd/app/service/loop.py"] += f"\n{demo.MISTAKE}\n".encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
