"""The stacking flag and its guard on a real systemd: timer, reboot, power cut, operator gone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.host.signature import GATE_NAMESPACE
from macd.release.signing import sign
from macd.remote.session import Session, open_session
from tests import signal_lines
from tests.hosts.fleet import Hosts
from tests.hosts.trial import APP, ENDPOINT, NAME, SOCKET, UNIT, Trial, trial_on
from tests.unit.release.releases import IDENTITY, make_key

pytestmark = pytest.mark.hosts

LOG = f"{APP}/data/live/trades_20260302.jsonl"
RULE = {
    "ml_coverage": 0.8, "stacking_activation": 0.9, "tft_normal": 0.8, "lstm_normal": 0.95,
    "min_bars": 20, "rule": "point",
}  # fmt: skip


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("gate"), "gate")


@pytest.fixture(scope="module")
def trial(hosts: Hosts, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with trial_on(hosts, tmp_path_factory.mktemp("key")) as made:
        public = gate.with_suffix(".pub").read_text().strip()
        with session_of(made) as session:
            signers = session.read(f"{APP}/state/allowed_signers").decode()
            signers += f'{IDENTITY} namespaces="{GATE_NAMESPACE}" {public}\n'
            session.write(f"{APP}/state/allowed_signers", signers.encode())
            session.write(LOG, b'{"seq": 1}\n')
        made.on_prod("mkdir", "-p", f"{APP}/state/gate")
        yield made


def session_of(trial: Trial) -> Session:
    host = trial.inventory.host("prod")
    return open_session(host, trial.inventory, modules=("deploying", "watching"))


def flip(trial: Trial, gate: Path, wanted: str, every_s: float = 2.0) -> dict[str, Any]:
    now = datetime.now(UTC)
    with session_of(trial) as session:
        log = session.read(LOG)
        manifest = session.read(f"{APP}/current/manifest.json")
        document = {
            "kind": "gate-report", "verdict": "PASS", "source": "host", "opens_nothing": [],
            "env": "prod", "release": trial.live,
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
            "made": now.isoformat(), "expires": (now + timedelta(hours=1)).isoformat(),
            "logs": [
                {"name": LOG.rpartition("/")[2], "from": 0, "to": len(log),
                 "sha256": hashlib.sha256(log).hexdigest()}
            ],
        }  # fmt: skip
        raw = json.dumps(document).encode()
        service = {"unit": UNIT, "sockets": [SOCKET], "scope": "system", "endpoint": ENDPOINT}
        told: dict[str, Any] = session.call(
            "set_flag",
            app=APP,
            wanted=wanted,
            who="tester",
            service=service,
            health_s=10.0,
            report=raw,
            signature=sign(raw, key=gate, namespace=GATE_NAMESPACE),
            identity=IDENTITY,
            guard={"every_s": every_s, "for_s": 3600.0, "rule": RULE},
        )
    return told


def flags(trial: Trial) -> tuple[str, str]:
    """In the file, and in the process systemd runs."""
    pid = trial.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    running = trial.on_prod("cat", f"/proc/{pid}/environ").split("\0")
    in_file = trial.on_prod("cat", f"{APP}/.env").splitlines()
    (a,), (b,) = (
        [line for line in lines if line.startswith("ML_ENABLE_STACKING=")]
        for lines in (in_file, running)
    )
    return a[-1], b[-1]


def test_the_timer_survives_a_reboot_and_the_guard_takes_back_alone(
    trial: Trial, gate: Path
) -> None:
    assert flip(trial, gate, "1")["outcome"] == "set"
    assert flags(trial) == ("1", "1")
    guard = trial.on_prod("systemctl", "cat", f"{NAME}-guard.service")
    assert "runtime" not in guard  # root runs nothing that came with a release, site-packages too
    assert " -I -S " in guard
    assert "OnBootSec=120" in trial.on_prod("systemctl", "cat", f"{NAME}-guard.timer")
    trial.hosts.prod.machine.reboot()
    assert trial.on_prod("systemctl", "is-active", f"{NAME}-guard.timer") == "active"
    trial.answers()
    assert flags(trial) == ("1", "1")
    lines = signal_lines.lines(
        90,
        release=trial.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        ml_error="tft: broken",
    )
    data = b"".join(map(signal_lines.encode, lines))
    with session_of(trial) as session:
        session.write(f"{APP}/data/live/trades_{datetime.now(UTC):%Y%m%d}.jsonl", data)
    deadline = time.monotonic() + 60  # nobody is connected from here on
    while '"failed"' not in trial.on_prod("grep", "state", f"{APP}/state/guard.json"):
        assert time.monotonic() < deadline, trial.on_prod("journalctl", "-u", f"{NAME}-guard")
        time.sleep(0.5)
    trial.answers()
    assert flags(trial) == ("0", "0")
    timer = trial.on_prod("systemctl", "is-enabled", f"{NAME}-guard.timer", check=False)
    assert timer == "disabled"


def test_a_look_that_a_deploy_kept_out_is_had_again_soon(trial: Trial, gate: Path) -> None:
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    assert flip(trial, gate, "1", every_s=300.0)["outcome"] == "set"
    unit = f"{NAME}-guard.service"
    wait = time.monotonic() + 60  # the look that a host has after boot comes at once here
    while trial.on_prod("systemctl", "is-active", unit, check=False) != "inactive":
        assert time.monotonic() < wait
        time.sleep(0.5)
    with session_of(trial) as session:
        session.call("lock", app=APP, who="ben", doing="deploy")
        told = session.read(f"{APP}/data/live/trades_{datetime.now(UTC):%Y%m%d}.jsonl")
        lines = signal_lines.lines(
            90,
            release=trial.live,
            end=datetime.now(UTC),
            every=timedelta(milliseconds=1),
            first_seq=91,
            ml_error="tft: broken",
        )
        data = told + b"".join(map(signal_lines.encode, lines))
        session.write(f"{APP}/data/live/trades_{datetime.now(UTC):%Y%m%d}.jsonl", data)
        trial.on_prod("systemctl", "start", "--no-block", unit)
        time.sleep(35)
        assert flags(trial) == ("1", "1")
        assert trial.on_prod("systemctl", "show", "-p", "Result", "--value", unit) == "exit-code"
    deadline = time.monotonic() + 60  # far less than every_s
    while '"failed"' not in trial.on_prod("grep", "state", f"{APP}/state/guard.json"):
        assert time.monotonic() < deadline, trial.on_prod("journalctl", "-u", unit)
        time.sleep(0.5)
    trial.answers()
    assert flags(trial) == ("0", "0")


def test_a_power_cut_while_enabling_leaves_shadow(trial: Trial, gate: Path) -> None:
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    # What a kill between the file and the restart leaves (tests/local/test_flag_host.py).
    pending = {
        "wanted": "1", "was": "0", "release": trial.live, "unit": UNIT, "sockets": [SOCKET],
        "scope": "system", "endpoint": ENDPOINT, "health_s": 10.0, "who": "tester", "started": 0.0,
        "state": "begun", "report": "", "reason": "",
    }  # fmt: skip
    with session_of(trial) as session:
        session.write(f"{APP}/state/pending-flag.json", json.dumps(pending).encode())
        env = session.read(f"{APP}/.env").replace(b"STACKING=0", b"STACKING=1")
        session.write(f"{APP}/.env", env, mode=0o600)
    machine = trial.hosts.prod.machine
    machine.power_cut()
    machine.start()
    machine.wait()
    trial.answers()
    assert flags(trial) == ("0", "0")
    assert "pending-flag.json" not in trial.on_prod("ls", f"{APP}/state")
