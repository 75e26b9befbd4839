"""The stacking flag and its guard on a real systemd: timer, reboot, power cut, operator gone."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.deploy.drift import about_stacking
from macd.host.envfile import EnvFileError, readings, rewritten
from macd.host.flag import guard_config
from macd.host.flag.flag_file import BUILT_IN, FLAG
from macd.host.layout import Layout
from macd.host.store.signature import GATE_NAMESPACE
from macd.journal import Journal
from macd.release.signing import sign
from macd.ssh import archive
from macd.ssh.session import Session, open_session
from tests.support import signal_lines
from tests.support.hosts.fleet import Hosts
from tests.support.hosts.host_app import (
    ACCOUNT,
    APP,
    ENDPOINT,
    NAME,
    SOCKET,
    UNIT,
    HostApp,
    host_app_on,
)
from tests.support.hosts.machine import Machine
from tests.support.signed_files import IDENTITY, make_key
from tests.unit.host.test_envfile import READ

pytestmark = pytest.mark.hosts

LOG = f"{APP}/data/live/trades_20260302.jsonl"
NEWEST = f"{APP}/data/live/trades_20991231.jsonl"  # a watch reads it whenever it began
GUARD = f"{NAME}-guard.service"
PATIENCE_S = 240  # only ends a broken test; a guard that is locked out tries for half a minute
RULE = {
    "ml_coverage": 0.8, "stacking_activation": 0.9, "tft_normal": 0.8, "lstm_normal": 0.95,
    "min_bars": 20, "rule": "point",
}  # fmt: skip


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("gate"), "gate")


@pytest.fixture(scope="module")
def trial(hosts: Hosts, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostApp]:
    with host_app_on(hosts, tmp_path_factory.mktemp("key")) as made:
        public = gate.with_suffix(".pub").read_text().strip()
        with session_of(made) as session:
            signers = session.read(f"{APP}/state/allowed_signers").decode()
            signers += f'{IDENTITY} namespaces="{GATE_NAMESPACE}" {public}\n'
            session.write(f"{APP}/state/allowed_signers", signers.encode())
            session.write(LOG, b'{"seq": 1}\n')
        made.on_prod("mkdir", "-p", f"{APP}/state/gate")
        again_soon(made)
        yield made


def again_soon(trial: HostApp) -> None:
    """A guard that could not judge is started again at once: its unit waits half a minute."""
    dropin = f"/etc/systemd/system/{GUARD}.d/again.conf"
    with session_of(trial) as session:
        trial.on_prod("mkdir", "-p", dropin.rpartition("/")[0])
        session.write(dropin, b"[Service]\nRestartSec=1\n")


def until(trial: HostApp, wanted: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < deadline, trial.on_prod("journalctl", "--no-pager", "-u", GUARD)
        time.sleep(0.3)


def session_of(trial: HostApp) -> Session:
    host = trial.inventory.host("prod")
    return open_session(host, trial.inventory)


def flip(
    trial: HostApp,
    gate: Path,
    wanted: str,
    every_s: float = 2.0,
    *,
    weight: int | None = None,
    hardening: str = "full",
    **terms: Any,
) -> dict[str, Any]:
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
        service["hardening"] = hardening
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
            guard={"every_s": every_s, "for_s": 3600.0, "rule": RULE, **terms},
            weight=weight,
        )
    return told


def flags(trial: HostApp) -> tuple[str, str]:
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
    trial: HostApp, gate: Path
) -> None:
    assert flip(trial, gate, "1")["outcome"] == "set"
    assert flags(trial) == ("1", "1")
    guard = trial.on_prod("systemctl", "cat", f"{NAME}-guard.service")
    (runs,) = [line for line in guard.splitlines() if line.startswith("ExecStart=")]
    assert "runtime" not in runs  # root runs nothing that came with a release, site-packages too
    assert " -I -S " in runs
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
        session.write(NEWEST, data)
    until(trial, lambda: order(trial)["state"] == "failed")  # nobody is connected from here on
    trial.answers()
    assert flags(trial) == ("0", "0")
    timer = trial.on_prod("systemctl", "is-enabled", f"{NAME}-guard.timer", check=False)
    assert timer == "disabled"


def weights(trial: HostApp) -> tuple[Any, Any]:
    """At the next start, and in the process that systemd runs."""
    told = standing(trial)["weight"]
    return told["next"], told["running"]


def test_the_guards_timer_raises_stacking_in_steps_and_a_reboot_between_them(
    trial: HostApp, gate: Path
) -> None:
    trial.on_prod("rm", "-f", NEWEST)
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    with taker(trial) as came:
        told = flip(trial, gate, "1", for_s=4.0, steps=[25, 50, 100])
        assert (told["outcome"], told["weight"]) == ("set", 25)
        assert weights(trial) == (25, 25)
        until(trial, lambda: order(trial).get("waits"))  # its time is over, nothing was written
        assert weights(trial) == (25, 25)
        with session_of(trial) as session:
            session.write(NEWEST, written(trial, 60))
        until_raised(trial, 50)
        (message,) = came()
    assert message["event"] == "guard.raised"
    assert "stacking counts for 50 % now, before 25 %" in message["text"]
    assert weights(trial) == (50, 50)
    trial.hosts.prod.machine.reboot()
    trial.answers()
    assert weights(trial) == (50, 50)
    assert order(trial)["steps"] == [50, 100]
    with session_of(trial) as session:
        session.write(NEWEST, written(trial, 120))
    until_raised(trial, 100)
    trial.answers()
    assert weights(trial) == (100, 100)
    assert flags(trial) == ("1", "1")
    assert "ML_STACKING_WEIGHT" not in trial.on_prod("cat", f"{APP}/.env")
    said = trial.on_prod("cat", f"{APP}/state/journal.jsonl")
    raised = [json.loads(line)["fields"] for line in said.splitlines() if '"guard.raised"' in line]
    assert [(one["was_weight"], one["weight"]) for one in raised] == [(25, 50), (50, 100)]
    assert flip(trial, gate, "0")["outcome"] == "set"
    with session_of(trial) as session:
        session.write(NEWEST, b"")


def test_a_step_on_which_stacking_is_proved_worse_is_the_last(trial: HostApp, gate: Path) -> None:
    """Every model answers on every bar; only what the bars became says that stacking is worse."""
    trial.on_prod("rm", "-f", NEWEST)
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    terms = {"steps": [25, 50, 100], "rule": {**RULE, "skill": "worse"}}
    assert flip(trial, gate, "1", every_s=3000.0, **terms)["weight"] == 25
    settled(trial)
    lines = signal_lines.skilled(330, end=datetime.now(UTC), release=trial.live)
    with taker(trial) as came:
        with session_of(trial) as session:
            session.write(NEWEST, b"".join(map(signal_lines.encode, lines)))
        trial.on_prod("systemctl", "start", GUARD)
        until_failed(trial)
        (message,) = came()
    assert "stacking is proved worse than the mean of the models: " in message["text"]
    assert (flags(trial), weights(trial)) == (("0", "0"), (0, 0))
    with session_of(trial) as session:
        session.write(NEWEST, b"")


def until_raised(trial: HostApp, weight: int) -> None:
    def raised() -> bool:
        return any(one["to"] == weight and one["told"] for one in order(trial)["raised"])

    until(trial, raised)  # after a boot the guard's first look may come in 2 minutes


def test_a_drop_in_that_sets_the_weight_is_named_and_nothing_is_believed(
    trial: HostApp, gate: Path
) -> None:
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    folder = f"/etc/systemd/system/{UNIT}.d"
    with session_of(trial) as session:
        session.write(f"{APP}/beside.env", b"ML_STACKING_WEIGHT=90\n")
        dropin = f"[Service]\nEnvironmentFile={APP}/beside.env\n".encode()
        trial.on_prod("mkdir", "-p", folder)
        session.write(f"{folder}/weight.conf", dropin)
    trial.on_prod("systemctl", "daemon-reload")
    told = flip(trial, gate, "1", every_s=3000.0, weight=25)
    assert (told["outcome"], told["weight"]) == ("reverted", 0)
    assert "decides with 25 %" in told["reason"]
    assert flags(trial) == ("0", "0")
    found = standing(trial)["weight"]
    assert found["beside"] == [{"where": f"{APP}/beside.env", "value": "90"}]
    assert flip(trial, gate, "1", every_s=3000.0, weight=90)["outcome"] == "set"
    assert f"{APP}/beside.env sets ML_STACKING_WEIGHT=90; only .env may" in about_stacking(
        standing(trial)
    )
    trial.on_prod("rm", "-r", folder, f"{APP}/beside.env")
    trial.on_prod("systemctl", "daemon-reload")
    assert flip(trial, gate, "0")["outcome"] == "set"
    assert weights(trial) == (0, 0)


def test_a_look_that_a_deploy_kept_out_is_had_again_soon(trial: HostApp, gate: Path) -> None:
    assert flip(trial, gate, "0")["outcome"] in ("already", "set")
    assert flip(trial, gate, "1", every_s=300.0)["outcome"] == "set"
    settled(trial)
    assert "\nRestartSec=30\n" in trial.on_prod("cat", f"/etc/systemd/system/{GUARD}")
    with session_of(trial) as session:
        session.call("lock", app=APP, who="ben", doing="deploy")
        told = session.read(NEWEST)
        lines = signal_lines.lines(
            90,
            release=trial.live,
            end=datetime.now(UTC),
            every=timedelta(milliseconds=1),
            first_seq=91,
            ml_error="tft: broken",
        )
        data = told + b"".join(map(signal_lines.encode, lines))
        session.write(NEWEST, data)
        trial.on_prod("systemctl", "start", "--no-block", GUARD)
        restarts = ("systemctl", "show", "-p", "NRestarts", "--value", GUARD)
        until(trial, lambda: int(trial.on_prod(*restarts)) > 0)  # it gave up, and comes again
        assert flags(trial) == ("1", "1")
        assert order(trial)["state"] == "watching"
    until(trial, lambda: order(trial)["state"] == "failed")
    trial.answers()
    assert flags(trial) == ("0", "0")


@pytest.mark.parametrize(
    ("more", "is_disabled"),
    [
        (
            b"https_proxy=http://proxy.example:3128\n"
            b'A=1\r\nNAME="two words"\r\nexport X=1\r\nML_ENABLE_STACKING=1\r\n',
            False,
        ),
        (b"DB_URL=postgres://u:p!w@h/db?sslmode=require&x=1\n", True),
    ],
)
def test_no_line_of_the_flags_file_keeps_stacking_on(
    trial: HostApp, gate: Path, more: bytes, is_disabled: bool
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
        trial.on_prod("systemctl", "start", GUARD)
        until(trial, lambda: order(trial)["state"] == "failed")
    trial.answers()
    with session_of(trial) as session:
        assert session.read(f"{APP}/.env") == off
    told = standing(trial)
    assert (told["next"], told["running"], set(told["in_file"])) == ("0", "0", {"0"})
    assert about_stacking(told) == []
    with session_of(trial) as session:
        session.write(f"{APP}/.env", b"ML_ENABLE_STACKING=0\n", mode=0o600)


def critical(trial: HostApp) -> None:
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
        session.write(NEWEST, data)


def standing(trial: HostApp) -> dict[str, Any]:
    with session_of(trial) as session:
        asked = {"unit": UNIT, "scope": "system", "endpoint": ENDPOINT, "flag": asdict(BUILT_IN)}
        told: dict[str, Any] = session.call("stacking", app=APP, **asked)
    return told


# Starts a unit for each file and says what systemd gave it: {"version", "variables": [...]}.
PROBE = """
import base64, json, os, shutil, subprocess, sys
top = "/run/probe"
shutil.rmtree(top, ignore_errors=True)  # file: truncates nothing
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


def test_a_real_systemd_reads_the_flags_file_as_we_do(trial: HostApp) -> None:
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


def test_a_power_cut_while_enabling_leaves_shadow(trial: HostApp, gate: Path) -> None:
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


def unguarded(trial: HostApp, gate: Path, lines: bytes) -> None:
    """Stacking is live, `lines` are what the service wrote, and the next look is far away."""
    trial.on_prod("rm", "-f", NEWEST)
    if flags(trial) != ("0", "0"):
        assert flip(trial, gate, "0")["outcome"] == "set"
    assert flip(trial, gate, "1", every_s=3000.0)["outcome"] == "set"
    settled(trial)
    with session_of(trial) as session:
        session.write(NEWEST, lines)
    trial.on_prod("sh", "-c", f"chown {ACCOUNT}: {APP}/data/live/trades_*")


def settled(trial: HostApp) -> None:
    """The look that a host has after boot comes at once here; it is over."""
    over = ("systemctl", "is-active", GUARD)
    until(trial, lambda: trial.on_prod(*over, check=False) == "inactive")


def order(trial: HostApp) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(trial.hosts.prod.machine.read(f"{APP}/state/guard.json"))
    return told


def written(trial: HostApp, n: int, **components: Any) -> bytes:
    """`n` lines since the flip, a millisecond apart."""
    lines = signal_lines.lines(
        n,
        release=trial.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        **components,
    )
    return b"".join(map(signal_lines.encode, lines))


def tries(trial: HostApp) -> int:
    """How often a judgement began in vain, the one that is at work included; 0 between them."""
    now = order(trial)
    return int(now.get("tries", 0)) if now.get("open") else 0


def exposure(trial: HostApp) -> float:
    told = trial.on_prod("systemd-analyze", "security", "--no-pager", GUARD)
    return float(told.rpartition("exposure level for")[2].split(":")[1].split()[0])


def until_failed(trial: HostApp) -> None:
    def failed() -> bool:
        now = order(trial)
        return now["state"] == "failed" and not now.get("untold", True)

    until(trial, failed)
    trial.answers()


def test_the_guards_unit_is_hardened_and_can_do_all_it_must(trial: HostApp, gate: Path) -> None:
    unguarded(trial, gate, b"")
    unit = trial.on_prod("systemctl", "show", GUARD, "-p", "MemoryMax,TasksMax,NoNewPrivileges")
    assert "MemoryMax=402653184" in unit
    assert "TasksMax=32" in unit
    assert "NoNewPrivileges=yes" in unit
    with session_of(trial) as session:
        data = written(trial, 90, ml_error="tft: broken")
        session.write(NEWEST, data)
    with taker(trial) as came:
        trial.on_prod("systemctl", "start", GUARD)
        until_failed(trial)
        (message,) = came()
    assert "ML coverage" in message["text"]
    assert flags(trial) == ("0", "0")


# Bars of as many series as there are lines, refused bars among them, and lines as long as can be.
HOSTILE = """
import json, sys
from datetime import datetime, timedelta, timezone
now = datetime.now(timezone.utc).isoformat()
with open(sys.argv[1], "w") as file:
    for n in range(60_000):
        line = {{"timestamp": now, "seq": n + 1, "release": "{release}", "tf": "1h",
                 "level": "SIGNAL" if n % 2 else "WARN", "symbol": f"{{n:0300}}",
                 "bar_time": (datetime(2019, 1, 1, tzinfo=timezone.utc)
                              + timedelta(hours=n)).isoformat(),
                 "ml_bull_prob": 0.5, "ml_error": None, "ml_stacking_mode": "live",
                 "ml_stacking_prob": 0.5, "ml_lstm_prob": 0.3 + n % 97 / 200,
                 "ml_tft_prob": 0.3 + n % 89 / 200, "close": 1.0, "data": {{"event": "bad_bar"}}}}
        if n % 2:
            del line["data"]
        file.write(json.dumps(line) + "\\n")
    for n in range(30):
        file.write(json.dumps([[]] * 260_000) + "\\n")
"""


def test_a_hostile_log_is_judged_within_the_units_memory(trial: HostApp, gate: Path) -> None:
    """No two lines alike, symbols of 300 characters, and lines of a megabyte."""
    unguarded(trial, gate, b"")
    trial.on_prod("python3", "-c", HOSTILE.format(release=trial.live), NEWEST)
    trial.on_prod("chown", f"{ACCOUNT}:", NEWEST)
    trial.on_prod("systemctl", "start", GUARD)
    deadline, peak = time.monotonic() + 400, 0
    while pids := trial.hosts.prod.machine.processes_of(GUARD):
        assert time.monotonic() < deadline
        peak = max(peak, sum(map(memory_of, pids)))
        time.sleep(0.2)
    until_failed(trial)  # half of what it calls bars it refused
    after = order(trial)
    assert after["reason"].startswith("ML coverage")
    assert after["tries"] == 0
    newest = trial.on_prod("sh", "-c", f"ls {APP}/state/gate/guard-* | tail -1")
    report = json.loads(trial.on_prod("cat", newest))
    assert report["findings"]["lines"] == 60_030
    # The test hosts' systemd has no memory controller: what that would count is added up here.
    assert 0 < peak < 384 << 20, peak
    assert flags(trial) == ("0", "0")


def memory_of(pid: int) -> int:
    """Bytes that a process holds, as the kernel counts them; 0 once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def test_a_guard_that_is_killed_again_and_again_takes_stacking_back(
    trial: HostApp, gate: Path
) -> None:
    """Killed as the kernel kills when memory is short: all of it, while it reads an endless log."""
    unguarded(trial, gate, written(trial, 60))
    trial.on_prod("truncate", "-s", "4T", NEWEST)
    with taker(trial) as came:
        trial.on_prod("systemctl", "start", GUARD)
        for n in (1, 2, 3):
            until(trial, lambda n=n: tries(trial) == n)  # type: ignore[misc]
            assert flags(trial) == ("1", "1")
            trial.on_prod("systemctl", "kill", "-s", "KILL", GUARD)
        until_failed(trial)
        (message,) = came()
    assert flags(trial) == ("0", "0")
    assert message["event"] == "guard.failed"
    assert "could not judge 3 times in a row; the last time: it was killed" in message["text"]
    trial.on_prod("rm", NEWEST)


def test_a_guard_that_runs_out_of_memory_takes_stacking_back(trial: HostApp, gate: Path) -> None:
    """The kernel's own killer, by a limit from outside: the test hosts' systemd can't set one."""
    if not MEMORY_GROUPS.is_dir():
        pytest.skip("this machine has no memory controller of cgroup v1")
    unguarded(trial, gate, written(trial, 60))
    long = "import sys; line = b'[' + b'[],' * 340_000 + b'[]]\\n'; "
    trial.on_prod("python3", "-c", long + "open(sys.argv[1], 'ab').write(line * 200)", NEWEST)
    with taker(trial) as came, limited(trial.hosts.prod.machine, 8 << 20) as kills:
        trial.on_prod("systemctl", "start", "--no-block", GUARD)
        deadline = time.monotonic() + 200
        while order(trial)["state"] == "watching":  # afterwards it must not be hindered
            assert time.monotonic() < deadline, trial.on_prod("journalctl", "-u", GUARD)
            kills()
            time.sleep(0.03)  # judging all of the log takes seconds
        until_failed(trial)
        assert kills() >= 3
        (message,) = came()
    trial.answers()
    assert flags(trial) == ("0", "0")
    assert "could not judge 3 times in a row; the last time: it was killed" in message["text"]
    trial.on_prod("rm", NEWEST)


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@contextmanager
def limited(machine: Machine, limit: int) -> Iterator[Callable[[], int]]:
    """Asked again and again, it puts the guard's processes that judge into a group with a limit.

    It answers how many the kernel has killed there.
    """
    group = MEMORY_GROUPS / f"{machine.name}-guard"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(limit))

    def kills() -> int:
        for pid in machine.processes_of(GUARD)[1:]:  # the first is the guard itself
            with contextlib.suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))
        told = (group / "memory.oom_control").read_text().split()
        return int(told[told.index("oom_kill") + 1])

    try:
        yield kills
    finally:
        deadline = time.monotonic() + 30
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        group.rmdir()


@contextmanager
def taker(trial: HostApp) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A receiver on prod's loopback, to which the guard is to tell; what came to it so far."""
    program = (
        "import http.server\n"
        "class Taker(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        data = self.rfile.read(int(self.headers['Content-Length']))\n"
        "        open('/run/took', 'ab').write(data + b'\\n')\n"
        "        self.send_response(204); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', 8765), Taker).serve_forever()\n"
    )
    trial.on_prod("sh", "-c", "rm -f /run/took; touch /run/took")
    trial.on_prod("systemd-run", "--quiet", "--unit=taker", "python3", "-c", program)
    notify = json.dumps({"url": "http://127.0.0.1:8765/hook"}).encode()
    try:
        with session_of(trial) as session:
            session.write(f"{APP}/state/notify.json", notify, mode=0o600)
        probe = "import socket; socket.create_connection(('127.0.0.1', 8765))"
        asked = ("sh", "-c", f'python3 -c "{probe}" 2>&1')
        until(trial, lambda: "Error" not in trial.on_prod(*asked, check=False))
        yield lambda: [json.loads(x) for x in trial.on_prod("cat", "/run/took").splitlines()]
    finally:
        trial.on_prod("rm", f"{APP}/state/notify.json", check=False)
        trial.on_prod("systemctl", "stop", "taker", check=False)


OLD_UNIT = f"""[Unit]
Description=guard of {NAME}
StartLimitIntervalSec=0
[Service]
Type=simple
Restart=on-failure
RestartSec=30
ExecStart=/usr/bin/python3 -I -S {APP}/bin/macd-host.pyz guard --app {APP}
"""


def test_provision_renews_the_unit_of_a_watch_that_an_earlier_version_ordered(
    trial: HostApp, gate: Path
) -> None:
    unguarded(trial, gate, written(trial, 60))
    path = f"/etc/systemd/system/{GUARD}"
    new = trial.on_prod("cat", path)
    old = {k: v for k, v in order(trial).items() if k not in ("tries", "open", "why")}
    with session_of(trial) as session:
        session.write(path, OLD_UNIT.encode())
        session.write(f"{APP}/state/guard.json", json.dumps(old).encode())
    trial.on_prod("systemctl", "daemon-reload")
    assert exposure(trial) > 9
    trial.on_prod("systemctl", "start", GUARD)  # the old unit carries the new program out
    settled(trial)
    assert order(trial)["tries"] == 0
    for wanted in ([GUARD], []):
        with trial.session() as session:
            told = session.call(
                "provision",
                app=APP,
                scope="system",
                account=ACCOUNT,
                directories=[],
                files=[],
                flags={},
                units={},
                enable=[],
                who="tester",
            )
        assert [one["name"] for one in told["changes"]] == wanted
    assert trial.on_prod("cat", path) == new
    assert exposure(trial) < 3.5
    trial.on_prod("systemctl", "start", GUARD)
    settled(trial)
    assert order(trial)["tries"] == 0
    assert trial.on_prod("systemctl", "is-active", f"{NAME}-guard.timer") == "active"


def test_a_service_that_tells_a_megabyte_of_itself_leaves_a_journal_that_goes_on(
    trial: HostApp, tmp_path: Path
) -> None:
    """Its answers come from a release: unwell, and with text of any length in every field."""
    path = f"{APP}/state/journal.jsonl"
    before = trial.on_prod("cat", path)
    for size in (1 << 20, 60_000):
        begun = trial.begin(trial.release("talks", extra=b"=%d" % size), health_s=15.0)
        assert trial.end(begun)["state"] == "reverted"
    assert trial.deploy(trial.release()) == "committed"
    after = trial.on_prod("cat", path)
    assert after.startswith(before)
    assert max(map(len, after.splitlines())) < 64 << 10
    copy = tmp_path / "journal.jsonl"
    copy.write_text(after + "\n")
    records = Journal(copy).records()
    assert [r.kind for r in records].count("reverted") >= 2
    assert "journal.damaged-set-aside" not in [r.kind for r in records]
    assert all("\x1b" not in str(r.fields) for r in records)


def test_a_users_systemd_takes_the_unit_and_the_guard_judges_there(hosts: Hosts) -> None:
    """Scope user: what needs root or mounts is left out, the rest holds."""
    h800, now = hosts.h800, datetime.now(UTC)
    app, release = "/home/quant/guarded", signal_lines.RELEASE
    watch = {
        "state": "watching", "failed": {}, "release": release, "since": now.timestamp() - 60,
        "until": now.timestamp() + 3600, "every_s": 3000.0, "next": now.timestamp(), "rule": RULE,
        "service": {"unit": "guarded.service", "scope": "user"}, "health_s": 5.0, "reason": "",
    }  # fmt: skip
    units = guard_config._units(Layout(app), watch)
    unit = units["guarded-guard.service"].replace(sys.executable, "/usr/bin/python3")
    assert "ProtectSystem" not in unit
    assert "SystemCallFilter" in unit
    lines = signal_lines.lines(25, release=release, end=now, every=timedelta(milliseconds=1))
    files = {
        "bin/macd-host.pyz": archive.build(),
        "state/guard.json": json.dumps(watch).encode(),
        "state/gate/newest": b"{}",
        ".env": b"ML_ENABLE_STACKING=1\n",
        f"data/live/trades_{now:%Y%m%d}.jsonl": b"".join(map(signal_lines.encode, lines)),
        "../.config/systemd/user/guarded-guard.service": unit.encode(),
    }
    assert h800.ssh("loginctl enable-linger quant", user="root").returncode == 0
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as packing:
        for name, data in files.items():
            member = tarfile.TarInfo(os.path.normpath(f"guarded/{name}"))
            member.size = len(data)
            packing.addfile(member, io.BytesIO(data))
    systemctl = "XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user"
    script = (
        f"base64 -d | tar -xf - && ln -sfn releases/{release} {app}/current && "
        f"{systemctl} daemon-reload && {systemctl} start guarded-guard && "
        f'while [ "$({systemctl} is-active guarded-guard)" = active ]; do sleep 0.5; done; '
        f"{systemctl} show -p Result --value guarded-guard"
    )
    told = h800.ssh(script, input=base64.b64encode(packed.getvalue()).decode())
    assert told.stdout == "success\n", told.stderr
    after = json.loads(h800.machine.read(f"{app}/state/guard.json"))
    assert (after["state"], after["tries"]) == ("watching", 0)
    assert after["next"] > watch["next"]
