"""Steps of a deploy, each in a forked process of its own, so that one can be killed by itself.

Run as a program in the pretended host's environment: reads one request a line, forks, answers one
line. What a step runs is the product's code for hosts and nothing else; everything is imported
before the fork, so a step costs milliseconds and its only system calls are its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macd.host.deploy import activation, health, ledger, locks, operations
from macd.host.deploy import status as observing
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release
from macd.host.record import recorder
from macd.host.rpc import blobs
from macd.host.store import releases, runtimes
from macd.host.systemd.sandbox import DIRECT

_PR_SET_PTRACER, _ANY = 0x59616D61, -1
TOKEN = "t0ken"
UNIT = "macd-analysis.service"
WEB = "macd-analysis-web.service"  # an application of one's own has it as well
SOCKET = "macd-analysis.socket"
FLAGS = ["ML_ENABLE_STACKING", "ML_STACKING_MIN_SAMPLES"]  # what the tool sets of .env


class Upload:
    """A client that sends files when asked, as the port the upload speaks to."""

    def __init__(self, bodies: dict[str, bytes]) -> None:
        self._bodies = bodies
        self._coming: list[dict[str, Any]] = []
        self.wanted = [(name, len(body)) for name, body in bodies.items()]

    def progress(self, value: dict[str, Any]) -> None:
        for sha256, offset in value.get("missing", []):
            self._coming.append({"sha256": sha256, "data": self._bodies[sha256][offset:]})

    def receive(self) -> dict[str, Any]:
        return self._coming.pop(0)


def send(app: str, release: str, units: dict[str, str], keep: int, who: str = "tester") -> str:
    """All a deploying session does on the host, up to handing over to the runner."""
    folder = Path(release)
    manifest, signature = (
        (folder / n).read_bytes() for n in ("manifest.json", "manifest.json.sig")
    )
    accepts = json.loads((folder / "accepts").read_text())
    locks.lock(app, who, "deploy")
    operations.recover(app)
    upload = Upload(_bodies(folder / "files", manifest))
    blobs.put(upload, app, upload.wanted)  # type: ignore[arg-type]
    staged = operations.stage(app, manifest, signature, accepts, [], "user", None)
    return _activate(app, "deploy", staged["release"], dict(units), keep, accepts)


def _bodies(folder: Path, manifest: bytes) -> dict[str, bytes]:
    """What lies here of a release, under the hashes its manifest gives; its wheels under theirs."""
    try:
        declared = {file["path"]: file["sha256"] for file in json.loads(manifest)["files"]}
    except (ValueError, KeyError):
        declared = {}  # a test has damaged it
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        body = path.read_bytes()
        own = hashlib.sha256(body).hexdigest()
        found[declared.get(str(path.relative_to(folder)), own)] = body
    return found


def deploy(app: str, release: str, units: dict[str, str], keep: int, who: str) -> str:
    """The whole way of one of two clients: runner and confirmation are processes of their own, and
    the session lives, its lock with it, until the other client was refused."""
    refused = Path(app).parent / "sd" / "refused"
    try:
        number = int(send(app, release, units, keep, who))
    except HostError:
        refused.touch()
        raise
    for step, arguments in ((confirm, {"number": number}), (run, {})):
        if _apart(step, app, **arguments) != 0:
            raise RuntimeError(f"{step.__name__} of {who} failed")
    deadline = time.monotonic() + 90
    while not refused.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    return str(operations.follow(app, number)["events"][-1]["state"])


def _apart(step: Callable[..., str], app: str, **arguments: Any) -> int:
    if (child := os.fork()) == 0:
        status = 1
        try:
            step(app, **arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rollback(app: str, keep: int) -> str:
    locks.lock(app, "tester", "rollback")
    operations.recover(app)
    return _activate(app, "rollback", None, {}, keep, {})


def _activate(
    app: str, kind: str, to: str | None, after: dict[str, str | None], keep: int, accepts: Any
) -> str:
    own = bool(os.environ["OWN"])
    service = {
        "unit": UNIT,
        "units": [UNIT, WEB if own else SOCKET],
        "scope": "user",
        "endpoint": "" if own else f"unix:{Path(app).parent}/h.sock",
        "check": [] if own else ["/bin/true"],
    }
    times = {"health_s": 60.0, "soak_s": 0.0, "confirm_s": 0.2}
    sys.executable = str(Path(app).parent / "bin" / "handed-over")
    begun = operations.activate(
        app, kind, to, TOKEN, "tester", service, times, keep, after, accepts or None, FLAGS
    )
    return str(begun["number"])


def confirm(app: str, number: int) -> str:
    """The word of a client, as it stands once it was given; before the run, which then finds it."""
    layout = Layout(app)
    pending = ledger.read_pending(layout)
    if pending is None or pending.number != number:
        return "too late"
    ledger.confirm(layout, pending)
    return "confirmed"


def run(app: str) -> str:
    """What the program on the host does, started or started again."""
    layout = Layout(app)
    return activation.resume(layout, recorder(layout), start=True)


def boot(app: str) -> str:
    layout = Layout(app)
    return activation.resume(layout, recorder(layout), booting=True)


def recover(app: str) -> str:
    locks.lock(app, "tester", "deploy")
    return str(operations.recover(app)["outcome"])


def build_runtime(app: str, lock: str) -> str:
    layout = Layout(app)
    layout.make()
    return json.dumps(runtimes.install(layout, lock.encode(), []))


def look(app: str) -> str:
    """What a plan would be told, hashes of the live release and its way back included."""
    layout = Layout(app)
    live = live_release(layout)
    damage = releases.differences(layout, live) if live else {}
    ready = observing.ReadinessCheck(layout, DIRECT).of(live)
    return json.dumps({"live": live, "damage": damage, "ready": ready})


STEPS = {
    step.__name__: step
    for step in (send, deploy, rollback, confirm, run, boot, recover, build_runtime, look)
}


def _child(request: dict[str, Any], out: int) -> None:
    if request["held"]:  # until a tracer is there
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    os.environ["GENERATION"] = str(request["generation"])
    os.environ["ENDED_AT"], os.environ["ASKER"] = request["ended_at"], str(os.getpid())
    try:
        said = STEPS[request["step"]](**request["arguments"])
        answer = {"said": said}
    except (HostError, OSError) as error:
        answer = {"failed": f"{type(error).__name__}: {error} {getattr(error, 'why', '')}"}
    os.write(out, json.dumps(answer).encode())


def main() -> None:
    health.POLL_S = 0.01  # nothing here takes longer
    operations._RUNNER_START_S = 60.0
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            status = 1
            try:
                _child(json.loads(line), writing)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(writing)
        print(json.dumps({"pid": child}), file=answers)
        told = b""
        while piece := os.read(reading, 65536):
            told += piece
        os.close(reading)
        _, status = os.waitpid(child, 0)
        ended = {"status": os.waitstatus_to_exitcode(status), **json.loads(told or b"{}")}
        print(json.dumps(ended), file=answers)


if __name__ == "__main__":
    main()
