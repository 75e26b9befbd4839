"""The stacking flag and its guard on a real systemd: timer, reboot, power cut, operator gone."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.deploy.drift import about_stacking
from macd.host.envfile import EnvFileError, readings, rewritten
from macd.host.flagfile import FLAG
from macd.host.signature import GATE_NAMESPACE
from macd.release.signing import sign
from macd.remote.session import Session, open_session
from tests import signal_lines
from tests.hosts.fleet import Hosts
from tests.hosts.trial import APP, ENDPOINT, NAME, SOCKET, UNIT, Trial, trial_on
from tests.unit.host.test_envfile import READ
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
    return open_session(host, trial.inventory, modules=("deploying", "watching", "stacking"))


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


@pytest.mark.parametrize(
    ("more", "is_disabled"),
    [
        (b"https_proxy=http://proxy.example:3128\n", False),
        (b'A=1\r\nNAME="two words"\r\nexport X=1\r\nML_ENABLE_STACKING=1\r\n', False),
        (b"DB_URL=postgres://u:p!w@h/db?sslmode=require&x=1\n", True),
    ],
)
def test_no_line_of_the_flags_file_keeps_stacking_on(
    trial: Trial, gate: Path, more: bytes, is_disabled: bool
) -> None:
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    assert flip(trial, gate, "1", every_s=3000.0)["outcome"] == "set"
    with session_of(trial) as session:
        on = session.read(f"{APP}/.env") + more
        session.write(f"{APP}/.env", on, mode=0o600)
    off = on.replace(b"STACKING=1", b"STACKING=0")
    if is_disabled:
        assert flip(trial, gate, "0")["outcome"] == "set"
    else:
        critical(trial)
        trial.on_prod("systemctl", "start", f"{NAME}-guard.service")
        deadline = time.monotonic() + 60
        while '"failed"' not in trial.on_prod("grep", "state", f"{APP}/state/guard.json"):
            assert time.monotonic() < deadline, trial.on_prod("journalctl", "-u", f"{NAME}-guard")
            time.sleep(0.5)
    trial.answers()
    with session_of(trial) as session:
        assert session.read(f"{APP}/.env") == off
    told = standing(trial)
    assert (told["next"], told["running"], set(told["in_file"])) == ("0", "0", {"0"})
    assert about_stacking(told) == []
    with session_of(trial) as session:
        session.write(f"{APP}/.env", b"ML_ENABLE_STACKING=0\n", mode=0o600)


def critical(trial: Trial) -> None:
    """Lines since the flip of which each says that a model is broken."""
    lines = signal_lines.lines(
        90,
        release=trial.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        level="CRITICAL",
        ml_error="tft: broken",
    )
    data = b"".join(map(signal_lines.encode, lines))
    with session_of(trial) as session:
        session.write(f"{APP}/data/live/trades_{datetime.now(UTC):%Y%m%d}.jsonl", data)


def standing(trial: Trial) -> dict[str, Any]:
    with session_of(trial) as session:
        told: dict[str, Any] = session.call(
            "stacking", app=APP, unit=UNIT, scope="system", endpoint=ENDPOINT
        )
    return told


# Starts a unit for each file and says what systemd gave it: {"version", "variables": [...]}.
PROBE = """
import base64, json, os, subprocess, sys
top = "/run/probe"
os.makedirs(top)
with open("/run/systemd/system/probe@.service", "w") as unit:
    unit.write("[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nType=oneshot\\n")
    unit.write(f"EnvironmentFile=-{top}/%i.env\\nExecStart=/usr/bin/env -0\\n")
    unit.write(f"StandardOutput=file:{top}/%i.out\\n")
subprocess.run(["systemctl", "daemon-reload"], check=True)
files = [base64.b64decode(text) for text in json.load(sys.stdin)]
for n, data in enumerate(files):
    with open(f"{top}/{n}.env", "wb") as file:
        file.write(data)
for n in range(0, len(files), 60):
    units = [f"probe@{m}.service" for m in range(n, min(n + 60, len(files)))]
    subprocess.run(["systemctl", "start", *units], check=True)
found = []
for n in range(len(files)):
    with open(f"{top}/{n}.out", "rb") as file:
        found.append(base64.b64encode(file.read()).decode())
said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout
print(json.dumps({"version": int(said.split()[1]), "variables": found}))
"""
PIECES = [
    *(b"ML_ENABLE_STACKING", b"=", b"0", b"1", b"\n", b"\n", b"\r\n", b"\r", b"\\", b'"', b"'"),
    *(b" ", b"#", b";", b"\t", b"A=", b"B=", b"export ", b"x", b"$A", b"`", b"%h", b"\xc3\xa9"),
    *(b"\nML_ENABLE_STACKING=1\n", b"\nhttps_proxy=http://p:1\r\n", b"\xef\xbb\xbf", b"\x01"),
]


def test_a_real_systemd_reads_the_flags_file_as_we_do(trial: Trial) -> None:
    chance = random.Random(13)
    made = [b"".join(chance.choices(PIECES, k=chance.randrange(1, 20))) for _ in range(100)]
    made += [
        *READ,
        b"A=1\0\n",
        b"A=\xe9\nB=1\n",
        b"A=\xef\xbf\xbf\n",
        b"# c\\\nA=1\n",
        b"1A=1\nA=2",
    ]
    made += [b"A=\xef\xb7\x90", b"# \xff\0", b"A=\x7f\nB=1", b"A=1\nA=\x1b\nB='\r'"]
    on = [rewritten(data, {FLAG: "1", "C": 'two "words"\n$x\\'}) for data in made]
    off = [rewritten(data, {FLAG: "0", "C": None}) for data in on]
    files = [b"", *made, *on, *off]
    asked = json.dumps([base64.b64encode(data).decode() for data in files])
    said = json.loads(trial.hosts.prod.exec("python3", "-c", PROBE, input=asked))
    raw = [base64.b64decode(text).decode().split("\0") for text in said["variables"]]
    found = [dict(pair.partition("=")[::2] for pair in pairs if pair) for pairs in raw]
    own = found[0].keys()  # what systemd adds by itself
    assert "PATH" in own
    for data, variables in zip(files, found, strict=True):
        got = {k: v for k, v in variables.items() if k not in own}
        assert got == read(data, said["version"]), data
    for data, variables in zip([*on, *off], found[1 + len(made) :], strict=True):
        if read(data, said["version"]):  # else systemd took nothing, not even this
            assert variables[FLAG] == ("1" if data in on else "0"), data


def read(data: bytes, version: int) -> dict[str, str]:
    try:
        return readings(data)[version >= 254]
    except EnvFileError:
        return {}


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
