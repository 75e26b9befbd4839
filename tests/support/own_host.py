"""The pretended host of tests/support/local_host.py, with an application of a team's own on it.

An engine that answers by HTTP and a web part that says in its log that it listens. Both are small
real processes, in variants that fail in the ways such applications fail.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from macd.host import own
from macd.host.own import Flag, Probe, Service
from tests.support import ports
from tests.support.local_host import EMPTY_LOCK, UNIT, Place, Signed, place, signed_release

WEB = "macd-analysis-web.service"
NAME = "macd-analysis"
WRITES = ("logs", "data/live")
FLAG = Flag("USE_STACK", "on", "off", "env")

ENGINE = """
import http.server, os, socket, sys, threading, time
VARIANT = {variant!r}
if "--check" in sys.argv:
    print("all models load" if VARIANT != "check fails" else "lstm_1h.onnx is broken")
    sys.exit(VARIANT == "check fails")
if VARIANT == "exits":
    sys.exit("no models, no service")
if VARIANT == "hangs":
    time.sleep(600)
if VARIANT == "exits 0":
    print("nothing to do")
    sys.exit(0)
if VARIANT == "forks away":
    first = os.getpid()
    if os.fork():
        sys.exit(0)
    while os.getppid() == first:  # what answers is never the process that was started
        time.sleep(0.01)
if VARIANT == "other python":
    os.execv("/bin/sh", ["/bin/sh", "-c", "exec python3 -c 'import time; time.sleep(600)'"])
if VARIANT == "forgets its name":
    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {{}})
with open("logs/signals.jsonl", "a") as log:
    log.write(os.environ["MACD_RELEASE"] + "\\n")
if VARIANT == "other directory":
    os.chdir("/")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if VARIANT == "never ready" else 200)
        self.end_headers()
    def log_message(self, *words):
        pass
if VARIANT == "no port":  # as one that tries for ever while another holds it
    print("port taken, trying again")
    time.sleep(600)
if VARIANT == "crashes soon":
    threading.Timer(1.0, lambda: os._exit(9)).start()
class Server(http.server.HTTPServer):
    def server_bind(self):  # without the name of this machine, which takes a while
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address
Server(("127.0.0.1", {port}), Handler).serve_forever()
"""

PAGE = """
import os, sys, time
VARIANT = {variant!r}
if VARIANT == "web exits":
    sys.exit("no template")
if VARIANT != "web is silent":
    print("listening on 1, release", os.environ["MACD_RELEASE"], flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class OwnPlace(Place):
    """port: of the engine. units: what the application is made of."""

    port: int = 0
    units: Mapping[str, Probe] = field(default_factory=dict)
    flag: Flag | None = FLAG

    def release(
        self,
        serial: int,
        variant: str = "good",
        *,
        extra: bytes = b"",
        env: str = "prod",
        writes: Sequence[str] = WRITES,
        more: Mapping[str, bytes] | None = None,
    ) -> Signed:
        files = {
            "source/engine.py": ENGINE.format(variant=variant, port=self.port).encode(),
            "source/web.py": PAGE.format(variant=variant).encode(),
            "source/data/model.txt": f"model {serial}".encode() * 40 + extra,
            "lock.json": EMPTY_LOCK,
            **(more or {}),
        }
        details: dict[str, Any] = {"name": NAME, "writes": list(writes)}
        details |= {"check": "python3 engine.py --check", "units": ["web"]}
        return signed_release(
            self.key, serial, files, variant=variant, env=env, details={"own": details}
        )

    def service(self) -> dict[str, Any]:
        return {**super().service(), "units": list(self.units), "check": []}

    def unit_text(self, unit: str = UNIT) -> str:
        script = "engine.py" if unit == UNIT else "web.py"
        command = " ".join(own.argv(f"python3 {script}", f"{self.app}/current"))
        return (
            f"[Service]\nType=exec\nRestart=on-failure\nExecStart={command}\n"
            f"WorkingDirectory={self.app}/current/source\n"
            f"EnvironmentFile=-{self.app}/.env\n"
            f"EnvironmentFile=-{self.app}/current/release.env\n"
        )

    def texts(self, units: Mapping[str, Probe] | None = None) -> dict[str, str | None]:
        """What goes live with a release that is made of `units`."""
        made_of = self.units if units is None else units
        service = Service(NAME, made_of, WRITES, self.flag)
        settings = json.dumps({own.KEY: service.document()}) + "\n"
        return {**{name: self.unit_text(name) for name in made_of}, "service.json": settings}

    def begin(self, *words: Any, after: Any = None, **more: Any) -> dict[str, Any]:
        kind = words[1]
        given = after if after is not None else self.texts() if kind == "deploy" else {}
        return super().begin(*words, after=given, **more)

    def facts(self) -> dict[str, Any]:
        return self.asked_facts(writes=list(WRITES))


@contextlib.contextmanager
def own_place() -> Iterator[OwnPlace]:
    """A fresh host, as provision leaves it for this application."""
    with ports.reserved() as kept, place() as made:
        port = ports.number(kept)
        units = {
            UNIT: Probe(http=f"http://127.0.0.1:{port}/health"),
            WEB: Probe(log="^listening on"),
        }
        (made.app / "logs").mkdir()
        (made.app / ".env").write_text("KEY=secret\nUSE_STACK=off\n")
        yield OwnPlace(made.top, made.app, made.key, port, units)
