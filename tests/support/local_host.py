"""A production host in a directory: the real agent, a small real service manager, real releases.

Releases here carry a small real service that answers /healthz, in variants that fail in the ways
releases fail. What deploys them is the product's own code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from macd.host.rpc import boot
from macd.host.store.manifest import File, Manifest, release_id, render
from macd.release.signing import sign
from macd.ssh import archive
from macd.ssh.blobs import Blob, put
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel
from tests.support.service_manager import manager
from tests.support.signed_files import IDENTITY, make_key

ACCEPTS = {"app": "macd-analysis", "env": "prod", "identity": IDENTITY}
UNIT = "macd-analysis.service"
FLAGS = ("ML_ENABLE_STACKING", "ML_STACKING_MIN_SAMPLES")
PROGRAM = "macd-host.pyz"
_PARTS = ("app", "home")  # what `Place.restore` puts back
EMPTY_LOCK = b'{"platform":"any","python":"3","wheels":[]}\n'

SERVICE = """
import hashlib, http.server, json, os, select, signal, socket, sys, threading, time
VARIANT = {variant!r}
root = sys.argv[sys.argv.index("--root") + 1]
release = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if "--check" in sys.argv:
    print(json.dumps({{"ok": VARIANT != "check fails"}}))
    sys.exit(VARIANT == "check fails")
if VARIANT == "exits":
    sys.exit("this release gives up")
if VARIANT == "hangs":
    time.sleep(600)
manifest = open(os.path.join(release, "manifest.json"), "rb").read()
name = os.path.basename(release)
answer = {{
    "status": "ok",
    "release": "20200101T000000Z-00000000" if VARIANT == "old id" else name,
    "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    "pid": os.getpid(),
    "golden": {{"ok": VARIANT != "wrong golden", "max_diff": 0.0, "detail": VARIANT}},
    "flags": {{k: v for k, v in os.environ.items() if k.startswith("ML_")}},
    "last_error": None,
}}
share = os.environ.get("ML_STACKING_WEIGHT", "100")
decides = os.environ.get("ML_ENABLE_STACKING") == "1" and share in map(str, range(1, 101))
if VARIANT != "knows no weights":
    answer["stacking_weight"] = int(share) if decides else 0
if VARIANT == "talks":  # as many bytes as its model's file says behind its first two words
    size = int(open(os.path.join(release, "data/ml_models/model.txt")).read().split("=")[1])
    answer.update(status="\x1b[31m" + "s" * (size // 4), last_error="e" * (size // 4))
    answer["golden"] = {{"ok": False, "detail": "d" * (size // 4)}}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
    def address_string(self):
        return "local"
class Server(http.server.HTTPServer):
    address_family = socket.AF_UNIX
    def server_bind(self):
        path = self.server_address
        if os.path.exists(path):
            os.unlink(path)
        self.socket.bind(path)
        self.server_name, self.server_port = "local", 0
def bound():
    if os.environ.get("LISTEN_FDS"):
        server = Server("unused", Handler, bind_and_activate=False)
        server.socket = socket.socket(fileno=3)
        return server
    return Server({endpoint!r}, Handler)
if VARIANT == "slow":
    time.sleep(1.5)
if VARIANT == "waits":  # until it is let go on
    open(root + "/waiting", "w").close()
    while not os.path.exists(root + "/go"):
        time.sleep(0.05)
server = bound()
if os.environ.get("NOTIFY_SOCKET") and VARIANT != "never ready":
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    target = os.environ["NOTIFY_SOCKET"]
    notify.connect("\\0" + target[1:] if target.startswith("@") else target)
    notify.send(b"READY=1")
if VARIANT == "crashes soon":
    threading.Timer(1.0, lambda: os._exit(9)).start()
# What was begun is answered; what waits in the socket is for the next process. Nothing is looked at
# again and again: many such services run at once.
asked_to_end, waker = socket.socketpair()
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
server.timeout = 0
while asked_to_end not in select.select([server, asked_to_end], [], [])[0]:
    server.handle_request()
"""


@dataclass(frozen=True)
class Signed:
    """A signed release, its files by path."""

    id: str
    raw: bytes
    signature: bytes
    files: dict[str, bytes]

    def blobs(self) -> list[Blob]:
        return [Blob.of_bytes(data) for data in self.files.values()]


def signed_release(
    key: Path,
    serial: int,
    files: dict[str, bytes],
    *,
    variant: str = "good",
    env: str = "prod",
    details: Mapping[str, Any] | None = None,
) -> Signed:
    """A release of `files` that was made `serial` minutes after the first one."""
    manifest = Manifest(
        app="macd-analysis",
        env=env,
        serial=serial,
        created=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=serial),
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        files=tuple(
            File(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
        lock=hashlib.sha256(files["lock.json"]).hexdigest(),
        details={"variant": variant, **(details or {})},
    )
    raw = render(manifest)
    return Signed(release_id(raw), raw, sign(raw, key=key), files)


@dataclass(frozen=True)
class Place:
    """One pretended host: its own home, runtime directory and systemctl."""

    top: Path
    app: Path
    key: Path

    @property
    def endpoint(self) -> str:
        return f"unix:{self.top}/h.sock"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.top / "home"),
            "PATH": f"{self.top}/bin:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(self.top / "run"),
            "LANG": "C.UTF-8",
        }

    def session(self) -> Session:
        copy = archive.HostCopy(str(self.app / "bin" / PROGRAM), self.top / "copy")
        return Session(self._channel(), copy=copy, reopen=self._channel)

    def _channel(self) -> PipeChannel:
        return PipeChannel(archive.command(), env=self.environment, cwd=self.top)

    @cached_property
    def watching(self) -> Session:
        """A second session: it follows, asks, and confirms what another one began."""
        return self.session()

    def release(
        self, serial: int, variant: str = "good", *, extra: bytes = b"", env: str = "prod"
    ) -> Signed:
        """A release that was made `serial` minutes after the first one."""
        code = SERVICE.format(variant=variant, endpoint=self.endpoint.removeprefix("unix:"))
        files = {
            "app/serve.py": code.encode(),
            "lock.json": EMPTY_LOCK,
            "data/ml_models/model.txt": f"model {serial}".encode() * 40 + extra,
            "data/ml_models/shared.txt": b"the same in every release\n" * 100,
        }
        return signed_release(self.key, serial, files, variant=variant, env=env)

    def service(self) -> dict[str, Any]:
        return {
            "unit": UNIT,
            "units": [UNIT],
            "scope": "user",
            "endpoint": self.endpoint,
            "check": [
                "{release}/runtime/bin/python", "-I", "{release}/app/serve.py",
                "--root", str(self.app), "--check",
            ],
        }  # fmt: skip

    def unit_text(self) -> str:
        return (
            f"[Service]\nType=notify\nRestart=on-failure\nEnvironmentFile=-{self.app}/.env\n"
            f"ExecStart={self.app}/current/runtime/bin/python -I "
            f"{self.app}/current/app/serve.py --root {self.app}\n"
        )

    def stage(self, session: Session, signed: Signed) -> dict[str, Any]:
        put(session, str(self.app), signed.blobs())
        staged: dict[str, Any] = session.call(
            "stage",
            app=str(self.app),
            manifest=signed.raw,
            signature=signed.signature,
            accepts=ACCEPTS,
            imports=[],
            scope="user",
            unit_text=self.unit_text(),
        )
        return staged

    def begin(
        self, session: Session, kind: str, to: str | None, *, confirm_s: float = 120.0,
        health_s: float = 90.0, soak_s: float = 0.3, keep: int = 3,
        flags: tuple[str, ...] | list[str] = FLAGS, after: dict[str, str | None] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        begun: dict[str, Any] = session.call(
            "activate",
            app=str(self.app),
            kind=kind,
            to=to,
            token="t0ken",
            who="tester",
            service=self.service(),
            times={"health_s": health_s, "soak_s": soak_s, "confirm_s": confirm_s},
            keep=keep,
            after={UNIT: self.unit_text()} if after is None else after,
            accepts=ACCEPTS,
            flags=list(flags),
        )
        return begun

    def finish(self, number: int, *, confirm: bool = True) -> list[dict[str, Any]]:
        """Follow an activation to its end, confirming over a new session; its events."""
        deadline = time.monotonic() + 120
        confirmed = False
        events: list[dict[str, Any]] = []
        ask = {"app": str(self.app), "number": number}
        while time.monotonic() < deadline:
            # Behind those seen: else each answer comes at once, and the asking fills a core.
            told = self.watching.call("follow", seen=len(events), wait=0.2, **ask)
            events += told["events"]
            states = [event["state"] for event in events]
            if confirm and not confirmed and "awaiting confirmation" in states:
                with self.session() as fresh:
                    fresh.call("confirm", token="t0ken", **ask)
                confirmed = True
            if told["over"]:
                return events
        raise AssertionError(f"activation {number} did not end: {states}")

    def deploy(self, signed: Signed, *, confirm: bool = True, **times: Any) -> str:
        """The whole way; how it ended: committed or reverted."""
        with self.session() as session:
            session.call("lock", app=str(self.app), who="tester", doing="deploy")
            session.call("recover", app=str(self.app))
            self.stage(session, signed)
            begun = self.begin(session, "deploy", signed.id, **times)
        return str(self.finish(begun["number"], confirm=confirm)[-1]["state"])

    def rollback(self, to: str | None = None) -> str:
        with self.session() as session:
            session.call("lock", app=str(self.app), who="tester", doing="rollback")
            session.call("recover", app=str(self.app))
            begun = self.begin(session, "rollback", to)
        return str(self.finish(begun["number"])[-1]["state"])

    def facts(self) -> dict[str, Any]:
        return self.asked_facts(flags=list(FLAGS))

    def asked_facts(self, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.watching.call(
            "deploy_facts",
            app=str(self.app),
            unit=UNIT,
            units=[UNIT],
            scope="user",
            endpoint=self.endpoint,
            **more,
        )
        return found

    def save(self, name: str = "deployed") -> None:
        """Keep what the host is now, for `restore`."""
        self._copy(self.top, self.top / "saved" / name)

    def restore(self, name: str = "deployed") -> None:
        """The host as it was saved, its service started anew, and nothing else at work on it."""
        self.systemctl("stop", UNIT)
        _end_all(self.top)
        for part in _PARTS:
            shutil.rmtree(self.top / part)
        self._copy(self.top / "saved" / name, self.top)
        for words in (["daemon-reload"], ["reset-failed", UNIT], ["restart", UNIT]):
            self.systemctl(*words)

    def systemctl(self, *words: str) -> None:
        subprocess.run([str(self.top / "bin/systemctl"), "--user", *words], check=True)

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        parts = [str(source / part) for part in _PARTS]
        subprocess.run(["cp", "-a", *parts, str(target)], check=True)

    @property
    def live(self) -> str | None:
        link = self.app / "current"
        return str(link.readlink()).removeprefix("releases/") if link.is_symlink() else None

    def state(self, name: str, default: Any = None) -> Any:
        path = self.app / "state" / name
        return json.loads(path.read_text()) if path.exists() else default


def _host_program() -> Path:
    """A directory with macd-host.pyz as provision leaves it, compiled once a machine."""
    kept = Path(tempfile.gettempdir()) / f"macd-host-{os.getuid()}-{archive.digest()[:24]}"
    if not kept.is_dir():
        building = Path(tempfile.mkdtemp())
        (building / PROGRAM).write_bytes(archive.build())
        boot.compile_beside(str(building / PROGRAM))
        try:
            building.rename(kept)
        except OSError:  # another test process was faster
            shutil.rmtree(building)
    return kept


@contextmanager
def place() -> Iterator[Place]:
    """A fresh host; everything it started is ended with it."""
    top = Path(tempfile.mkdtemp(prefix="macd-h-"))  # short: socket paths are limited
    try:
        for name in ("home", "bin", "run"):
            (top / name).mkdir()
        scripts = {
            "systemd-run": "exit 1",
            "loginctl": "exit 1",
            "python3": f'exec {sys.executable} "$@"',
        }
        for name, body in scripts.items():
            path = top / "bin" / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        app = top / "app"
        for name in ("state", "data/live", "releases", "runtimes"):
            (app / name).mkdir(parents=True)
        key = make_key(top)
        public = key.with_suffix(".pub").read_text().strip()
        signers = f'{IDENTITY} namespaces="release-manifest@macd" {public}\n'
        (app / "state" / "allowed_signers").write_text(signers)
        (app / "state" / "accepts.json").write_text(json.dumps(ACCEPTS))
        shutil.copytree(_host_program(), app / "bin")
        with manager(top):
            yield Place(top, app, key)
    finally:
        _end_all(top)
        shutil.rmtree(top, ignore_errors=True)


def _end_all(top: Path) -> None:
    listed = subprocess.run(
        ["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        if str(top) in arguments and int(pid) != os.getpid():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
