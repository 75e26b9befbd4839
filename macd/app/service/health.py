"""How the service shows how it is: /healthz, /metrics, and the messages to systemd.

`Status` is written by the loop and read by all. `HealthServer` answers on a loopback port or a unix
socket, in a thread of its own, also while the release is still loading, so that "starting" differs
from "gone"; it only reads. `Systemd` and `inherited_socket` are small protocols over an environment
variable: man sd_notify(3), sd_listen_fds(3).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from macd.app.predict.golden import Outcome
from macd.errors import UsageError
from macd.heads import FAMILIES

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0)
_MODES = ("live", "shadow", "off")


class Status:
    """The state of one life of the service.

    state: "starting", "ok" or "failed". Changing it and reading it whole is safe from any thread.
    """

    def __init__(self, flags: Mapping[str, str], weight: int = 0) -> None:
        """weight: what stacking counts for in this process, in percent; 0 is shadow."""
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = {
            "status": "starting",
            "release": None,
            "manifest_sha256": None,
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "golden": {"ok": False, "max_diff": None, "detail": "not run yet"},
            "flags": dict(flags),
            "last_bar": None,
            "last_error": None,
            "seq": 0,
            "models": {},
            "stacking": "off",
            "stacking_weight": weight,
            "feed": {"state": "starting", "last_arrival": None},
        }
        self._metrics = _Metrics()

    def set(self, **facts: Any) -> None:
        with self._lock:
            self._facts.update(facts)

    def golden(self, outcome: Outcome) -> None:
        self.set(golden=as_document(outcome))

    def symbol(self, name: str, **facts: Any) -> None:
        """The state of one symbol, of a service that has several; None takes a fact away."""
        with self._lock:
            symbols = self._facts.setdefault("symbols", {})
            merged = {**symbols.get(name, {}), **facts}
            symbols[name] = {key: value for key, value in merged.items() if value is not None}

    def error(self, what: str) -> None:
        """Something went wrong and the service goes on."""
        self.set(last_error=what[:1000])

    def feed(self, state: str, *, arrived: bool = False) -> None:
        with self._lock:
            before = self._facts["feed"]
            at = time.time() if arrived else before["last_arrival"]
            self._facts["feed"] = {"state": state, "last_arrival": at}

    def warned(self, event: str) -> None:
        """A line that is no signal was written: a bar refused, a feed in trouble."""
        self._metrics.refused.labels(event).inc()

    def signalled(self, bar: str, seq: int, fields: Mapping[str, Any], seconds: float) -> None:
        self.set(last_bar=bar, seq=seq)
        self._metrics.signal(str(fields.get("ml_stacking_mode")), seconds)

    def bar(self) -> None:
        self._metrics.bars.inc()

    def model_error(self, name: str) -> None:
        self._metrics.errors.labels(name).inc()

    def document(self) -> dict[str, Any]:
        """What /healthz answers."""
        with self._lock:
            facts = dict(self._facts)
            if "symbols" in facts:
                facts["symbols"] = dict(facts["symbols"])
            return facts

    def metrics(self) -> bytes:
        """What /metrics answers, in Prometheus' text form."""
        return self._metrics.render(self.document())


def as_document(outcome: Outcome) -> dict[str, Any]:
    """How golden predictions came out, as JSON may hold it."""
    diff = outcome.max_diff if math.isfinite(outcome.max_diff) else None
    return {"ok": outcome.ok, "max_diff": diff, "detail": outcome.detail}


class _Metrics:
    """A registry of its own, so that nothing is global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.bars = Counter("macd_bars", "closed bars that arrived", registry=here)
        self.signals = Counter("macd_signals", "signal lines written", registry=here)
        self.refused = Counter(
            "macd_warnings",
            "lines that are no signal: refused bars, trouble",
            ["event"],
            registry=here,
        )
        self.errors = Counter(
            "macd_model_errors", "bars a model failed on", ["model"], registry=here
        )
        self.latency = Histogram(
            "macd_bar_seconds",
            "features, models and decision of a bar",
            buckets=_BUCKETS,
            registry=here,
        )
        self._mode = Gauge(
            "macd_stacking_mode", "1 for the mode of the last bar", ["mode"], registry=here
        )
        self._age = Gauge("macd_last_bar_age_seconds", "since a bar last arrived", registry=here)
        self._up = Gauge("macd_ok", "1 while /healthz says ok", registry=here)
        self._seq = Gauge("macd_seq", "of the last line", registry=here)
        for family in (*FAMILIES, "stacking"):
            self.errors.labels(family)

    def signal(self, mode: str, seconds: float) -> None:
        self.signals.inc()
        self.latency.observe(seconds)
        for each in _MODES:
            self._mode.labels(each).set(each == mode)

    def render(self, facts: Mapping[str, Any]) -> bytes:
        arrived = facts["feed"]["last_arrival"]
        self._age.set(time.time() - arrived if arrived else math.nan)
        self._up.set(facts["status"] == "ok")
        self._seq.set(facts["seq"])
        return generate_latest(self.registry)


_SLOWEST_S = 5.0
_AT_ONCE = 8


class HealthServer:
    def __init__(self, endpoint: str, status: Status, given: socket.socket | None) -> None:
        """Bind `endpoint` (unix:/PATH or HOST:PORT), or take the listening socket of systemd.

        Raises UsageError when it can't be bound.
        """
        self._path = ""
        if given is None:
            given, self._path = _bind(endpoint)
        self._server = _Server(given, status)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="health"
        )
        self._thread.daemon = True

    @property
    def address(self) -> Any:
        """Of the listening socket: a path, or (host, port)."""
        return self._server.socket.getsockname()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)


_HERE = {
    "127.0.0.1": (socket.AF_INET, "127.0.0.1"),
    "localhost": (socket.AF_INET, "127.0.0.1"),
    "[::1]": (socket.AF_INET6, "::1"),
}


def _bind(endpoint: str) -> tuple[socket.socket, str]:
    path = endpoint.removeprefix("unix:")
    try:
        if path != endpoint:
            _remove_stale_socket(path)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o117)
            try:
                listening.bind(path)
            finally:
                os.umask(before)
        else:
            host, _, port = endpoint.rpartition(":")
            if host not in _HERE:
                raise ValueError("only this machine may ask: 127.0.0.1:PORT or [::1]:PORT")
            family, address = _HERE[host]
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, int(port)))
            path = ""
        listening.listen(16)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the service can't answer at {endpoint}",
            why=str(error),
            hint="service.health in the inventory names the place; invoke provision",
        ) from error
    return listening, path


def _remove_stale_socket(path: str) -> None:
    """Take a socket away that nobody listens on; one that answers is another service's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(path)
        except FileNotFoundError:
            return
        except OSError:
            Path(path).unlink()
            return
    raise OSError(f"another process answers at {path}")


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """http.server over a socket that is there already; at most _AT_ONCE answers at a time."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, status: Status) -> None:
        name: Any = listening.getsockname()
        super().__init__(name, _Handler)
        self.socket = listening
        self.status = status
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        connection.settimeout(_SLOWEST_S)
        return connection, ("local", 0)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):  # enough for any prober, and bounded
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def server_close(self) -> None:
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "macd"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path == "/healthz":
            document = self.server.status.document()
            code = 200 if document["status"] == "ok" else 503
            body = json.dumps(document, allow_nan=False).encode() + b"\n"
            self._answer(code, "application/json", body)
        elif self.path == "/metrics":
            self._answer(200, "text/plain; version=0.0.4", self.server.status.metrics())
        else:
            self._answer(404, "text/plain", b"/healthz or /metrics\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Probes come every second; they are no news."""


_FIRST_FD = 3


class Systemd:
    """Where messages go; silent where nobody asked for them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")

    def notify(self, *lines: str) -> None:
        """Send e.g. "READY=1", "STATUS=...". Nothing is raised: a lost message must not end us."""
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        text = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(1.0)
                out.sendto(text.encode(), address)
        except OSError:
            return


def inherited_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """The listening socket systemd passed to this very process, if it did."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal() or int(count) < 1:
        return None
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)
