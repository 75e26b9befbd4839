"""The stacking flag on a pretended host: evidence, proof in the process, kills, the way back.

The host's own code runs there as an agent or as a killed process; only its service is small.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.errors import MacdError, RefusedError
from macd.host.signature import GATE_NAMESPACE, RELEASE_NAMESPACE
from macd.journal import Journal
from macd.release.signing import sign
from tests.deployment import EMPTY_LOCK, SERVICE, UNIT, Place, Signed, place, signed_release
from tests.unit.release.releases import IDENTITY, make_key

LOG = "trades_20260302.jsonl"
ENV = "# by hand\nML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES=500\n"
# Kills itself right before the n-th change that outlives it.
KILLED = """
import json, os, signal, sys
left = int(sys.argv[1])
def watch(event, arguments):
    global left
    if event == "subprocess.Popen" and "restart" not in map(str, arguments[1]):
        return
    if event in ("os.rename", "os.remove", "subprocess.Popen"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from macd.host import flags
from macd.errors import MacdError
asked = json.load(sys.stdin)
for name in ("report", "signature"):
    asked[name] = bytes.fromhex(asked[name])
sys.addaudithook(watch)
print(flags.set_flag(**asked)["outcome"])
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Place]:
    """Its release is live; it is unwell while a file `unwell` lies in the application directory."""
    with place() as made:
        gate = make_key(made.top, "gate")
        signers = made.app / "state" / "allowed_signers"
        public = gate.with_suffix(".pub").read_text().strip()
        with signers.open("a") as file:
            file.write(f'{IDENTITY} namespaces="{GATE_NAMESPACE}" {public}\n')
        (made.app / ".env").write_text(ENV)
        assert made.deploy(release(made)) == "committed"
        yield made


@pytest.fixture(autouse=True)
def in_shadow(host: Place) -> None:
    (host.app / "unwell").unlink(missing_ok=True)
    (host.app / "data/live" / LOG).write_text('{"seq": 1}\n{"seq": 2}\n')
    flip(host, "0")
    assert flags_now(host) == ("0", "0")


def release(host: Place) -> Signed:
    code = SERVICE.format(variant="good", endpoint=host.endpoint.removeprefix("unix:"))
    code = code.replace('VARIANT != "wrong golden"', 'not os.path.exists(root + "/unwell")')
    files = {"app/serve.py": code.encode(), "lock.json": EMPTY_LOCK}
    return signed_release(host.key, 1, files)


def report(host: Place, **more: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    log = (host.app / "data/live" / LOG).read_bytes()
    manifest = (host.app / "current/manifest.json").read_bytes()
    return {
        "kind": "gate-report",
        "verdict": "PASS",
        "source": "host",
        "opens_nothing": [],
        "env": "prod",
        "release": host.live,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "made": now.isoformat(),
        "expires": (now + timedelta(hours=1)).isoformat(),
        "logs": [
            {"name": LOG, "from": 0, "to": len(log), "sha256": hashlib.sha256(log).hexdigest()}
        ],
        **more,
    }


def request(host: Place, wanted: str, document: Any = None, **more: Any) -> dict[str, Any]:
    raw = json.dumps(document).encode() if document else b""
    key, namespace = more.pop("key", host.top / "gate"), more.pop("namespace", GATE_NAMESPACE)
    return {
        "app": str(host.app),
        "wanted": wanted,
        "who": "tester",
        "service": {
            "unit": UNIT,
            "sockets": [],
            "scope": "user",
            "endpoint": host.endpoint,
        },
        "health_s": 5.0,
        "report": raw,
        "signature": sign(raw, key=key, namespace=namespace) if document else b"",
        "identity": IDENTITY,
        **more,
    }


def flip(host: Place, wanted: str, document: Any = None, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = host.watching.call("set_flag", **request(host, wanted, document, **more))
    return told


def flags_now(host: Place) -> tuple[str, str]:
    """In the file, and in the process that serves, as the kernel has it."""
    lines = (host.app / ".env").read_text().splitlines()
    (in_file,) = [line.partition("=")[2] for line in lines if "ML_ENABLE_STACKING=" in line]
    raw = Path(f"/proc/{pid(host)}/environ").read_bytes().split(b"\0")
    (running,) = [entry.partition(b"=")[2] for entry in raw if b"ML_ENABLE_STACKING=" in entry]
    return in_file, running.decode()


def pid(host: Place) -> int:
    return int(host.facts()["process"]["pid"])


def kinds(host: Place) -> list[str]:
    return [one.kind for one in Journal(host.app / "state/journal.jsonl").records()]


def test_set_with_evidence_proved_and_nothing_the_second_time(host: Place) -> None:
    before = pid(host)
    told = flip(host, "1", report(host))
    assert (told["outcome"], told["value"], told["wrong"]) == ("set", "1", "")
    assert flags_now(host) == ("1", "1")
    assert told["pid"] == pid(host) != before
    assert (host.app / ".env").read_text() == ENV.replace("STACKING=0", "STACKING=1")
    assert kinds(host)[-2:] == ["flag.begun", "flag.set"]
    assert flip(host, "1")["outcome"] == "already"  # needs no evidence: nothing is changed
    assert pid(host) == told["pid"]
    assert flip(host, "0")["outcome"] == "set"
    assert flags_now(host) == ("0", "0")
    assert flip(host, "0")["outcome"] == "already"


def test_a_file_that_the_process_did_not_read_is_not_believed(host: Place) -> None:
    (host.app / ".env").write_text(ENV.replace("STACKING=0", "STACKING=1"))
    assert flags_now(host) == ("1", "0")
    with pytest.raises(RefusedError):
        flip(host, "1")
    assert flip(host, "0")["outcome"] == "set"
    assert flags_now(host) == ("0", "0")


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("why", "changed"),
    [
        ("expired", {"expires": (datetime.now(UTC) - HOUR).isoformat()}),
        ("future", {"made": (datetime.now(UTC) + 2 * HOUR).isoformat()}),
        ("live is", {"release": "20250101T000000Z-deadbeef"}),
        ("another manifest", {"manifest_sha256": "0" * 64}),
        ("another environment", {"env": "staging"}),
        ("FAIL", {"verdict": "FAIL"}),
        ("INCONCLUSIVE", {"verdict": "INCONCLUSIVE"}),
        ("files", {"source": "files"}),
        ("opens nothing", {"opens_nothing": ["min_bars laxer"]}),
        ("names no logs", {"logs": []}),
        ("understood", {"logs": [{"name": LOG, "from": 5, "to": 1, "sha256": "0" * 64}]}),
        ("analysed", {"logs": [{"name": "../../.env", "from": 0, "to": 1, "sha256": "0" * 64}]}),
        ("expires", {"expires": "tomorrow"}),
        ("no gate report", {"kind": "release"}),
    ],
)
def test_a_report_that_is_not_about_this_very_state_is_refused(
    host: Place, why: str, changed: dict[str, Any]
) -> None:
    before = pid(host)
    with pytest.raises(RefusedError) as refused:
        flip(host, "1", report(host, **changed))
    assert why in refused.value.why
    assert (flags_now(host), pid(host)) == (("0", "0"), before)


def test_forged_and_edited_reports_and_changed_logs_are_refused(host: Place) -> None:
    good = report(host)
    for more in (
        {"key": make_key(host.top, "stranger")},
        {"namespace": RELEASE_NAMESPACE},
        {"key": host.key},  # the release key may not open the gate
        {"signature": b"junk"},
        {"report": json.dumps({**good, "verdict": "PASS "}).encode()},
    ):
        with pytest.raises(RefusedError, match="does not take"):
            flip(host, "1", good, **more)
        (host.top / "stranger").unlink(missing_ok=True)
    (host.app / "data/live" / LOG).write_text('{"seq": 1}\n{"seq": 3}\n')
    with pytest.raises(RefusedError) as refused:
        flip(host, "1", good)
    assert "not what was analysed" in refused.value.why
    assert flags_now(host) == ("0", "0")


def test_a_log_that_only_grew_is_the_same(host: Place) -> None:
    good = report(host)
    with (host.app / "data/live" / LOG).open("a") as file:
        file.write('{"seq": 3}\n')
    assert flip(host, "1", good)["outcome"] == "set"


def test_an_unwell_service_is_put_back_but_shadow_is_never_denied(host: Place) -> None:
    (host.app / "unwell").touch()
    told = flip(host, "1", report(host))
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert "golden" in told["reason"]
    assert flags_now(host) == ("0", "0")
    assert kinds(host)[-1] == "flag.reverted"
    (host.app / "unwell").unlink()
    assert flip(host, "1", report(host))["outcome"] == "set"
    (host.app / "unwell").touch()
    told = flip(host, "0")
    assert told["outcome"] == "set"
    assert "golden" in told["wrong"]
    assert flags_now(host) == ("0", "0")


def test_a_process_that_does_not_get_the_flag_is_put_back(host: Place) -> None:
    unit = host.top / "home/.config/systemd/user" / UNIT
    text = unit.read_text()
    (host.top / "other.env").write_text("ML_ENABLE_STACKING=0\n")
    reload = [str(host.top / "bin/systemctl"), "--user", "daemon-reload"]
    unit.write_text(text.replace(f"{host.app}/.env", f"{host.top}/other.env"))
    subprocess.run(reload, check=True)
    told = flip(host, "1", report(host), health_s=1.5)
    assert (told["outcome"], told["value"]) == ("reverted", "0")
    assert "no running process has ML_ENABLE_STACKING=1" in told["reason"]
    assert flags_now(host) == ("0", "0")
    unit.write_text(text)
    subprocess.run(reload, check=True)


def test_a_flags_file_that_could_mean_two_things_is_not_touched(host: Place) -> None:
    text = 'ML_ENABLE_STACKING=0\nA="x\nML_ENABLE_STACKING=1"\n'
    (host.app / ".env").write_text(text)
    with pytest.raises(RefusedError, match="understood"):
        flip(host, "1", report(host))
    assert (host.app / ".env").read_text() == text
    (host.app / ".env").write_text(ENV)


def test_not_while_a_deploy_holds_the_host(host: Place) -> None:
    with host.session() as session:
        session.call("lock", app=str(host.app), who="ben", doing="deploy")
        with pytest.raises(RefusedError, match="another deploy"):
            flip(host, "1", report(host))
    assert flags_now(host) == ("0", "0")


def killed(host: Place, wanted: str, n: int) -> bool:
    """Set it in a process that dies before its n-th change; False when it got through."""
    asked = request(host, wanted, report(host))
    asked = {k: v.hex() if isinstance(v, bytes) else v for k, v in asked.items()}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(n)],
        input=json.dumps(asked).encode(),
        env={**host.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_killed_before_any_change_it_ends_old_or_new(host: Place, wanted: str) -> None:
    ends = []
    for n in range(1, 20):
        if wanted == "0":
            flip(host, "1", report(host))
        got_through = not killed(host, wanted, n)
        in_file = flags_now(host)[0]
        assert in_file in ("0", "1")  # whole, whenever it is read
        if n % 2:
            run_recovery(host)
        else:
            host.watching.call("recover", app=str(host.app))
        now = flags_now(host)
        assert now[0] == now[1], f"killed before change {n}"
        assert host.state("pending-flag.json") is None
        ends.append(now[0])
        flip(host, "0")
        if got_through:
            break
    assert got_through
    assert len(ends) > 5
    # An enabling that was cut short is taken back, a disabling is finished, once it had begun.
    other = "0" if wanted == "1" else "1"
    assert ends[0] == other
    assert ends[-1] == wanted
    assert ends[2] == "0"


def run_recovery(host: Place) -> None:
    program = host.app / "bin" / "macd-host.pyz"
    argv = [sys.executable, "-I", str(program), "recover", "--app", str(host.app)]
    subprocess.run(argv, env=host.environment, check=True, capture_output=True, timeout=60)


def test_at_boot_only_the_file_is_put_right(host: Place) -> None:
    assert killed(host, "1", 3)
    program = host.app / "bin" / "macd-host.pyz"
    argv = [sys.executable, "-I", str(program), "recover", "--booting", "--app", str(host.app)]
    before = pid(host)
    subprocess.run(argv, env=host.environment, check=True, capture_output=True, timeout=60)
    assert flags_now(host)[0] == "0"
    assert pid(host) == before
    assert host.state("pending-flag.json") is None


def test_nothing_live_is_refused() -> None:
    with place() as empty, pytest.raises(MacdError, match="no release is live"):
        flip(empty, "0")
