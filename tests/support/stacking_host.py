"""A pretended host whose stacking flag is set, proved and watched; with the operator gone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from macd.host.flag.flag_file import BUILT_IN
from macd.host.store.signature import GATE_NAMESPACE
from macd.journal import Journal
from macd.release.signing import sign
from tests.support import signal_lines
from tests.support.local_host import EMPTY_LOCK, SERVICE, UNIT, Place, Signed, place, signed_release
from tests.support.signed_files import IDENTITY, make_key

LOG = "trades_20260302.jsonl"
ENV = "# by hand\nML_ENABLE_STACKING=0\nML_STACKING_MIN_SAMPLES=500\n"
RULE = {
    "ml_coverage": 0.8, "stacking_activation": 0.9, "tft_normal": 0.8, "lstm_normal": 0.95,
    "min_bars": 20, "rule": "point",
}  # fmt: skip
UNWELL = """(
    not os.path.exists(root + "/unwell")
    and not (os.path.exists(root + "/unwell at") and os.environ["ML_ENABLE_STACKING"] == "1"
             and os.environ.get("ML_STACKING_WEIGHT", "100")
             in open(root + "/unwell at").read().split())
)"""
# Looks once; kills itself right before the n-th change that outlives it, or the n-th message.
KILLED_LOOK = """
import os, signal, sys
left = int(sys.argv[1])
def watch(event, arguments):
    global left
    lasting = event in ("os.rename", "os.remove", "socket.connect")
    if lasting or (event == "subprocess.Popen" and "restart" in arguments[1]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
from datetime import UTC, datetime
from macd.host.layout import Layout
from macd.host.flag import guard
sys.addaudithook(watch)
print(guard.step(Layout(sys.argv[2]), datetime.now(UTC)))
"""
# strace's words for a disk that is full: nothing new is taken, and not the text of a lock either.
# What stands there can still be overwritten in its place.
NOTHING = (
    "trace=write,pwrite64",
    "inject=write:error=ENOSPC",
    "inject=pwrite64:error=ENOSPC:when=1",
)
LOOK = """
import os, sys
from datetime import UTC, datetime
from macd.host.layout import Layout
from macd.host.flag import guard
try:
    guard.step(Layout(sys.argv[1]), datetime.now(UTC))
except OSError:
    os._exit(1)
os._exit(0)
"""


@contextmanager
def deployed_place(**details: Any) -> Iterator[Place]:
    """Its release is live; it is unwell while a file `unwell` lies in the application directory."""
    with place() as made:
        gate = make_key(made.top, "gate")
        public = gate.with_suffix(".pub").read_text().strip()
        with (made.app / "state" / "allowed_signers").open("a") as file:
            file.write(f'{IDENTITY} namespaces="{GATE_NAMESPACE}" {public}\n')
        (made.app / ".env").write_text(ENV)
        assert made.deploy(release(made, **details)) == "committed"
        yield made


def release(host: Place, serial: int = 1, variant: str = "good", **details: Any) -> Signed:
    code = SERVICE.format(variant=variant, endpoint=host.endpoint.removeprefix("unix:"))
    code = code.replace('VARIANT != "wrong golden"', UNWELL)
    files = {"app/serve.py": code.encode(), "lock.json": EMPTY_LOCK}
    return signed_release(host.key, serial, files, details=details)


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
        "health_s": 90.0,
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
    raw = Path(f"/proc/{pid(host)}/environ").read_bytes().split(b"\0")
    (running,) = [entry.partition(b"=")[2] for entry in raw if b"ML_ENABLE_STACKING=" in entry]
    return flag_in_file(host), running.decode()


def flag_in_file(host: Place) -> str:
    lines = (host.app / ".env").read_text().splitlines()
    (value,) = [line.partition("=")[2] for line in lines if "ML_ENABLE_STACKING=" in line]
    return value


def pid(host: Place) -> int:
    return int(host.facts()["process"]["pid"])


def kinds(host: Place) -> list[str]:
    return [one.kind for one in Journal(host.app / "state/journal.jsonl").records()]


def end_guard(host: Place) -> None:
    """Kill the loop that is there, if one is."""
    deadline = time.monotonic() + 120
    while host.watching.call("guard_status", app=str(host.app))["loop"]:
        # ValueError: it has the lock, and has not written yet who it is
        with contextlib.suppress(ProcessLookupError, TypeError, ValueError):
            os.kill(host.state("guard.lock")["pid"], signal.SIGKILL)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def weights_now(host: Place) -> tuple[int | None, int | None, int | None]:
    """At the next start, in the process as the kernel has it, and as the service says."""
    asked = {"unit": UNIT, "scope": "user", "endpoint": host.endpoint, "flag": asdict(BUILT_IN)}
    said = host.watching.call("stacking", app=str(host.app), **asked)["weight"]
    return said["next"], said["running"], host.facts()["health"].get("stacking_weight")


def broken(host: Place, weights: str) -> None:
    """With these weights the service is unwell."""
    (host.app / "unwell at").write_text(weights)


def looked(host: Place, n: int = 0, program: str = KILLED_LOOK) -> str:
    """What one look said; "killed" before its n-th change."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(n), str(host.app)],
        env={**host.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return "killed" if done.returncode else done.stdout.strip()


def write(host: Place, n: int, **components: Any) -> None:
    """`n` lines since the flip, a millisecond apart."""
    made = signal_lines.lines(
        n,
        release=host.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        **components,
    )
    signal_lines.write(host.app / "data/live", made)


def status(host: Place) -> dict[str, Any]:
    told: dict[str, Any] = host.watching.call("guard_status", app=str(host.app))
    return told


def until(host: Place, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while not wanted(told := status(host)):
        assert time.monotonic() < deadline, told
        time.sleep(0.1)
    return told


@contextmanager
def listening(code: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server here that takes what is posted to it, and answers `code`."""
    came: list[dict[str, Any]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(code)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook/t0psecret", came
        server.shutdown()


def message_on(host: Place, url: str) -> None:
    (host.app / "state/notify.json").write_text(json.dumps({"url": url}))


def on_a_full_disk(host: Place, program: str, *words: str) -> int:
    """The program's exit code; it can't even print."""
    traced = [word for one in NOTHING for word in ("-e", one)]
    done = subprocess.run(
        ["strace", "-o", os.devnull, *traced, sys.executable, "-c", program, *words],
        env={**host.environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    return done.returncode
