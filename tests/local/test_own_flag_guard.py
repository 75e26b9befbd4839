"""The flag and the guard of an application of a team's own, on a pretended host.

Its engine writes a signal line for each second. Its flag has a name and values of its own, and is
in .env or in a drop-in of the unit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.errors import RefusedError
from macd.gate import logs
from macd.host import own
from macd.host.flag.dropin import values_of
from macd.host.own import Flag, Probe, Service, Signals
from macd.host.store.signature import GATE_NAMESPACE
from macd.journal import Journal
from macd.release.signing import sign
from tests.support.gate_rule import RULE
from tests.support.local_host import UNIT, Signed
from tests.support.own_host import NAME, WEB, WRITES, OwnPlace, own_place
from tests.support.signed_files import IDENTITY, make_key
from tests.support.sweeps import sweep

FLAG = Flag("USE_STACK", "on", "off", "env")
DROPIN = dataclasses.replace(FLAG, where="dropin")
SIGNALS = Signals(
    "logs/trade_*.jsonl",
    "SIGNAL",
    {"time": "ts", "bar_time": "bar", "coverage": "p.mean", "activation": "p.stack"},
)
RATES = {name: value for name, value in RULE.__dict__.items() if name != "skill"}
TERMS = {"every_s": 0.4, "for_s": 3600.0, "rule": RATES, "steps": []}
WRONG = "this release does not want the stack"
# The last words of a process that is not to run with the flag.
ENGINE = f"""
import os, sys, time
if "--check" in sys.argv:
    sys.exit(0)
if os.environ.get("USE_STACK") == "on" and os.path.exists("logs/unwilling"):
    sys.exit({WRONG!r})
print("engine runs", flush=True)
time.sleep(600)
"""


@dataclasses.dataclass(frozen=True)
class Signalling(OwnPlace):
    """Its settings name its signals as well."""

    def texts(self, units: Any = None) -> dict[str, str | None]:
        service = Service(NAME, units or self.units, WRITES, self.flag, SIGNALS)
        settings = json.dumps({own.KEY: service.document()}) + "\n"
        return {**super().texts(units), "service.json": settings}

    def release(self, serial: int, *words: Any, **more: Any) -> Signed:
        more["more"] = {"source/engine.py": ENGINE.encode()}
        return super().release(serial, *words, **more)


@pytest.fixture(scope="module")
def deployed() -> Iterator[Signalling]:
    with own_place() as made:
        units = {UNIT: Probe(log="^engine runs"), WEB: Probe(log="^listening")}
        host = Signalling(made.top, made.app, made.key, made.port, units, FLAG)
        gate = make_key(made.top, "gate")
        public = gate.with_suffix(".pub").read_text().strip()
        with (made.app / "state/allowed_signers").open("a") as file:
            file.write(f'{IDENTITY} namespaces="{GATE_NAMESPACE}" {public}\n')
        assert host.deploy(host.release(1)) == "committed"
        yield host


@pytest.fixture(params=["env", "dropin"])
def host(deployed: Signalling, request: Any) -> Iterator[Signalling]:
    """In shadow, with a flag in .env or in a drop-in that people made."""
    env, beside = deployed.app / ".env", override(deployed)
    env.write_text("KEY=secret\r\nUSE_STACK=off\r\n" if request.param == "env" else "KEY=secret\n")
    host = dataclasses.replace(deployed, flag=FLAG if request.param == "env" else DROPIN)
    if request.param == "dropin":
        beside.parent.mkdir(exist_ok=True)
        beside.write_text('[Service]\nEnvironment="A=b c" USE_STACK=off\nNice=5\n')
    (host.app / "service.json").write_text(str(host.texts()["service.json"]))
    systemctl(host, "daemon-reload")
    systemctl(host, "restart", UNIT)
    (host.app / "logs/unwilling").unlink(missing_ok=True)
    write(host, 30)
    yield host
    end_guard(host)
    flip(host, "0")
    (host.app / "state/guard.json").unlink(missing_ok=True)
    beside.unlink(missing_ok=True)


def override(host: Signalling) -> Path:
    return host.top / f"home/.config/systemd/user/{UNIT}.d/override.conf"


def systemctl(host: Signalling, *words: str) -> None:
    subprocess.run([str(host.top / "bin/systemctl"), "--user", *words], check=True)


def write(host: Signalling, count: int, **probabilities: Any) -> None:
    """Signal lines of the last moments, a millisecond and a bar apart."""
    now = datetime.now(UTC).timestamp()
    log = host.app / "logs/trade_1.jsonl"
    made = []
    for at in range(count):
        p = {"mean": 0.5 + at / 1000, "stack": 0.4 + at / 1000, **probabilities}
        moment = now - (count - at) / 1000
        made.append(json.dumps({"ts": moment, "level": "signal", "bar": moment, "p": p}))
    with log.open("a") as file:
        file.write("\n".join(made) + "\n")


def report(host: Signalling, **more: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    data = (host.app / "logs/trade_1.jsonl").read_bytes()
    manifest = (host.app / "current/manifest.json").read_bytes()
    log = {"name": "logs/trade_1.jsonl", "from": 0, "to": len(data)}
    return {
        "kind": "gate-report",
        "verdict": "PASS",
        "source": "host",
        "blockers": [],
        "env": "prod",
        "release": host.live,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "made": now.isoformat(),
        "expires": (now + timedelta(hours=1)).isoformat(),
        "logs": [{**log, "sha256": hashlib.sha256(data).hexdigest()}],
        **more,
    }


def request_of(host: Signalling, wanted: str, document: Any = None, **more: Any) -> dict[str, Any]:
    raw = json.dumps(document).encode() if document else b""
    key = host.top / "gate"
    service = {"unit": UNIT, "sockets": [], "scope": "user", "endpoint": host.endpoint}
    return {
        "app": str(host.app),
        "wanted": wanted,
        "who": "tester",
        "service": service,
        "health_s": 15.0,
        "report": raw,
        "signature": sign(raw, key=key, namespace=GATE_NAMESPACE) if document else b"",
        "identity": IDENTITY,
        **more,
    }


def flip(host: Signalling, wanted: str, document: Any = None, **more: Any) -> dict[str, Any]:
    asked = request_of(host, wanted, document, **more)
    told: dict[str, Any] = host.watching.call("set_flag", **asked)
    return told


def flags_now(host: Signalling) -> tuple[str, str]:
    """Where it is set, and in the process, as the kernel has it."""
    if host.flag == DROPIN:
        (said,) = values_of(override(host).read_bytes(), "USE_STACK")
    else:
        lines = (host.app / ".env").read_bytes().split(b"\r\n")
        (said,) = [x.partition(b"=")[2].decode() for x in lines if x.startswith(b"USE_STACK=")]
    pid = host.facts()["process"]["pid"]
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (running,) = [x.partition(b"=")[2].decode() for x in raw if x.startswith(b"USE_STACK=")]
    return said, running


def kinds(host: Signalling) -> list[str]:
    return [record.kind for record in Journal(host.app / "state/journal.jsonl").records()]


def status(host: Signalling) -> dict[str, Any]:
    asked = {"app": str(host.app), "scope": "user"}
    told: dict[str, Any] = host.watching.call("guard_status", **asked)
    return told


def until(host: Signalling, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while not wanted(told := status(host)):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return told


def end_guard(host: Signalling) -> None:
    deadline = time.monotonic() + 120
    while status(host)["loop"]:
        try:
            pid = host.state("guard.lock")["pid"]
        except (TypeError, ValueError):
            continue
        subprocess.run(["kill", f"-{int(signal.SIGKILL)}", str(pid)], check=False)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_set_with_evidence_proved_and_back(host: Signalling) -> None:
    texts = (host.app / ".env").read_bytes(), override(host).exists()
    assert flags_now(host) == ("off", "off")
    with pytest.raises(RefusedError, match="does not take the gate report"):
        flip(host, "1", report(host, verdict="FAIL"), guard=TERMS)
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"], told["weight"], told["wrong"]) == ("set", "1", 100, "")
    assert flags_now(host) == ("on", "on")
    stacking = host.facts()["stacking"]
    assert (stacking["name"], stacking["next"], stacking["running"]) == ("USE_STACK", "1", "1")
    assert (stacking["guard"], stacking["beside"]) == ("watches", [])
    assert flip(host, "1")["outcome"] == "already"
    assert flip(host, "0")["outcome"] == "set"
    assert flags_now(host) == ("off", "off")
    assert flip(host, "0")["outcome"] == "already"
    records = Journal(host.app / "state/journal.jsonl").records()
    last = [one.fields for one in records if one.kind.startswith("flag.")][-1]  # a guard writes too
    assert last["weighed"] is False  # past.py says by it that there are no percents
    assert (last["flag"], last["wanted"]) == ("USE_STACK", "0")
    # Every other byte is as it was.
    assert texts == ((host.app / ".env").read_bytes(), override(host).exists())
    if host.flag == DROPIN:
        text = '[Service]\nEnvironment="A=b c" USE_STACK=off\nNice=5\n'
        assert override(host).read_text() == text


def test_a_process_that_gives_up_with_the_flag_is_put_back(host: Signalling) -> None:
    (host.app / "logs/unwilling").touch()
    told = flip(host, "1", report(host), guard=TERMS)
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert WRONG in told["reason"]
    assert flags_now(host) == ("off", "off")


def test_the_guard_lets_good_be_and_takes_bad_back(host: Signalling) -> None:
    evidence = report(host)
    assert flip(host, "1", evidence, guard=TERMS)["outcome"] == "set"
    time.sleep(0.1)
    write(host, 40)
    told = until(host, lambda told: [r["report"]["bars"] for r in told["reports"]][-1:] == [40])
    assert told["reports"][-1]["report"]["drift"] is None
    assert (told["order"]["state"], told["flag"]) == ("watching", "1")
    write(host, 60, mean=None)
    told = until(host, lambda told: told["order"]["state"] not in ("watching", "failing"))
    assert told["order"]["state"] == "failed"
    assert "ML coverage" in told["order"]["reason"]
    assert flags_now(host) == ("off", "off")
    assert kinds(host)[-2:] == ["flag.set", "guard.failed"]
    with pytest.raises(RefusedError, match="older than the guard's"):
        flip(host, "1", evidence, guard=TERMS)


KILLED = """
import json, os, signal, sys
left = int(sys.argv[1])
def watch(event, arguments):
    global left
    words = {"restart", "daemon-reload"}.intersection(map(str, arguments[1])) if (
        event == "subprocess.Popen") else set()
    if words or event in ("os.rename", "os.remove"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from macd.host.flag import flag
asked = json.load(sys.stdin)
for name in ("report", "signature"):
    asked[name] = bytes.fromhex(asked[name])
sys.addaudithook(watch)
print(flag.set_flag(**asked)["outcome"])
"""


@pytest.mark.parametrize("at", sweep([1, 3, 5, 6, 7], 1, 5, 7))
def test_killed_anywhere_it_ends_in_shadow(host: Signalling, at: int) -> None:
    asked = request_of(host, "1", report(host))
    for name in ("report", "signature"):
        asked[name] = asked[name].hex()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(at)],
        input=json.dumps(asked),
        env=host.environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    told = flip(host, "0")
    assert (told["outcome"], told["value"]) in {("set", "0"), ("already", "0")}
    assert flags_now(host) == ("off", "off")


def test_what_only_the_built_in_application_has_is_refused_in_words(host: Signalling) -> None:
    for more in ({"weight": 25}, {"guard": {**TERMS, "steps": [25, 100]}}):
        with pytest.raises(RefusedError, match="can't be given to an application of one's own"):
            flip(host, "1", report(host), **more)
    settings = host.app / "service.json"
    settings.write_text(str(dataclasses.replace(host, flag=None).texts()["service.json"]))
    for wanted in ("1", "0"):
        with pytest.raises(RefusedError, match="has no flag") as refused:
            flip(host, wanted)
        assert "app.flag" in refused.value.why
    assert host.facts()["stacking"] == {}
    settings.write_text(str(host.texts()["service.json"]))


def test_the_logs_below_the_application_are_copied_and_followed(
    host: Signalling, tmp_path: Path
) -> None:
    (host.app / "logs/trade_9.jsonl").symlink_to("/etc/passwd")
    copy = logs.pull(host.watching, str(host.app), tmp_path / "copy", own=True)
    assert copy.names == ("logs/trade_1.jsonl",)
    assert [name for name, _ in copy.refused] == ["'logs/trade_9.jsonl'"]
    ours = (copy.directory / "logs/trade_1.jsonl").read_bytes()
    assert ours == (host.app / "logs/trade_1.jsonl").read_bytes()
    (host.app / "logs/trade_9.jsonl").unlink()
    tail = logs.OwnTail(copy)
    assert tail.more(host.watching, str(host.app)) == []
    write(host, 2)
    (host.app / "logs/trade_2.jsonl").write_text('{"ts": 1}\n{"to')
    came = tail.more(host.watching, str(host.app))
    assert len(came) == 3
    assert came[-1] == b'{"ts": 1}'
    assert "coverage=0.5" in logs.own_shown(came[0], SIGNALS)
    assert logs.pull(host.watching, str(host.app), tmp_path / "copy", own=True).fetched > 0
    (host.app / "logs/trade_2.jsonl").unlink()


def test_the_journals_of_its_units_are_shown(host: Signalling) -> None:
    tail = logs.JournalTail([UNIT, WEB], "user")
    first = tail.newest(host.watching, 200)
    assert {message.unit for message in first} == {UNIT, WEB}
    assert any(message.text == "engine runs" for message in first)
    assert tail.more(host.watching) == []
    systemctl(host, "restart", WEB)
    deadline = time.monotonic() + 120
    while not (came := tail.more(host.watching)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert came[0].unit == WEB
