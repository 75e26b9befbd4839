"""The two endpoints over real sockets, and the words systemd hears."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.app.predict.golden import Outcome
from macd.app.service.health import HealthServer, Status, Systemd, inherited_socket
from macd.errors import UsageError
from macd.host.deploy import health


@pytest.fixture
def status() -> Status:
    return Status({"ML_ENABLE_STACKING": "0"})


@pytest.fixture
def served(status: Status, tmp_path: Path) -> Iterator[str]:
    endpoint = f"unix:{tmp_path}/h.sock"
    server = HealthServer(endpoint, status, None)
    server.start()
    yield endpoint
    server.close()
    assert not (tmp_path / "h.sock").exists()


def test_the_host_reads_what_the_service_answers(status: Status, served: str) -> None:
    assert health.ask(served)["status"] == "starting"
    status.golden(Outcome(True, 2e-7, "12 outputs agree"))
    status.set(status="ok", release="R", manifest_sha256="M")
    answer = health.ask(served)
    process = health.Process(
        "active", "running", os.getpid(), "i", 0, "success", "enabled", "loaded"
    )
    assert health.problems(answer, release="R", manifest_sha256="M", process=process) == []
    assert answer["flags"] == {"ML_ENABLE_STACKING": "0"}

    status.golden(Outcome(False, math.inf, "tft_5h: no output"))
    status.set(status="failed")
    answer = health.ask(served)
    assert answer["golden"]["max_diff"] is None
    assert len(health.problems(answer, release="R", manifest_sha256="M", process=process)) == 2


def get(path: str, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("local")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request("GET", target)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_only_ok_answers_200(status: Status, served: str) -> None:
    path = served.removeprefix("unix:")
    assert get(path, "/healthz")[0] == 503
    status.set(status="ok")
    assert get(path, "/healthz")[0] == 200
    assert get(path, "/etc/passwd")[0] == 404


def test_metrics_are_prometheus_text(status: Status, served: str) -> None:
    status.bar()
    status.feed("polling", arrived=True)
    status.signalled("2026-03-01T00:00:00Z", 7, {"ml_stacking_mode": "shadow"}, 0.004)
    status.model_error("tft")
    text = get(served.removeprefix("unix:"), "/metrics")[1]
    for line in (
        "macd_bars_total 1.0",
        "macd_signals_total 1.0",
        'macd_model_errors_total{model="tft"} 1.0',
        'macd_model_errors_total{model="lgbm"} 0.0',
        'macd_bar_seconds_bucket{le="0.005"} 1.0',
        'macd_stacking_mode{mode="shadow"} 1.0',
        "macd_seq 7.0",
    ):
        assert line in text.splitlines()


def test_clients_that_hang_do_not_hold_the_answers_up(served: str) -> None:
    path = served.removeprefix("unix:")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(5)]
    for one in silent:
        one.connect(path)
    assert get(path, "/healthz")[0] == 503
    for one in silent:
        one.close()


def test_a_socket_left_by_a_killed_service_is_replaced_one_that_answers_is_not(
    status: Status, served: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="can't answer"):
        HealthServer(served, status, None)
    left = tmp_path / "left.sock"
    old = socket.socket(socket.AF_UNIX)
    old.bind(str(left))
    old.close()
    server = HealthServer(f"unix:{left}", status, None)
    server.start()
    assert stat.S_IMODE(left.stat().st_mode) == 0o660
    server.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_is_bound_on_this_machine_only(status: Status, host: str) -> None:
    server = HealthServer(f"{host}:0", status, None)
    assert server.address[0] == host.strip("[]")
    server.start()
    assert health.ask(f"{host}:{server.address[1]}")["status"] == "starting"
    server.close()
    with pytest.raises(UsageError, match="can't answer"):
        HealthServer("0.0.0.0:0", status, None)


def test_the_socket_systemd_holds_is_taken_and_stays_there(tmp_path: Path) -> None:
    """What waits in the queue while nobody serves is answered by the next process."""
    path = tmp_path / "held.sock"
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(path))
    held.listen(8)
    waiting: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: waiting.append(get(str(path), "/healthz")))
    asking.start()
    code = f"""
import os
os.dup2({held.fileno()}, 3)
os.environ["LISTEN_PID"] = str(os.getpid())
from macd.app.service.health import HealthServer
from macd.app.service.health import inherited_socket
from macd.app.service.health import Status
status = Status({{}})
server = HealthServer("unix:{path}", status, inherited_socket(os.environ))
status.set(status="ok", release="by the new process")
server.start()
input()
server.close()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "LISTEN_FDS": "1"},
        stdin=subprocess.PIPE,
        pass_fds=[held.fileno()],
    )
    asking.join(60)
    child.communicate(b"\n", timeout=60)
    assert waiting[0][0] == 200
    assert json.loads(waiting[0][1])["release"] == "by the new process"
    assert path.exists()


def test_what_systemd_hears(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(120)
        systemd = Systemd({"NOTIFY_SOCKET": str(path)})
        systemd.notify("READY=1", "STATUS=two\nlines")
        assert heard.recv(1000) == b"READY=1\nSTATUS=two lines"
    Systemd({"NOTIFY_SOCKET": str(path)}).notify("WATCHDOG=1")  # nobody listens: nothing happens
    Systemd({}).notify("READY=1")


def test_a_socket_for_another_process_is_not_taken() -> None:
    assert inherited_socket({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None
    assert inherited_socket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}) is None
    assert inherited_socket({}) is None
