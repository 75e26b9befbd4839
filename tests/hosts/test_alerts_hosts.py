"""The host's own alarms on a real systemd: timer, sandbox, messages, heartbeat, reboot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from macd.deploy import desired, state
from macd.inventory.models import AlertSettings
from macd.ssh.session import open_session
from tests.support import signal_lines
from tests.support.hosts.fleet import Hosts
from tests.support.hosts.host_app import ACCOUNT, APP, ENDPOINT, NAME, UNIT, HostApp, host_app_on

pytestmark = pytest.mark.hosts

SERVICE, TIMER = f"{NAME}-alerts.service", f"{NAME}-alerts.timer"
# The disk and the clock of the machine under the test are its own.
ALERTS = AlertSettings(every_minutes=0.05, disk_free=0, clock_s=0)
SETTINGS = {"endpoint": ENDPOINT, "tf": "1h", "feed": {"kind": "ccxt"}}
LOG = f"{APP}/data/live/trades_20260302.jsonl"
ADDRESSES = json.dumps(
    {"url": "http://127.0.0.1:8765/t0ken", "heartbeat_url": "http://127.0.0.1:8765/beat"}
).encode()
TAKER = (
    "import http.server, json\n"
    "class Taker(http.server.BaseHTTPRequestHandler):\n"
    "    def do_POST(self):\n"
    "        data = self.rfile.read(int(self.headers.get('Content-Length') or 0)).decode()\n"
    "        with open('/run/took', 'a') as out: out.write(json.dumps([self.path, data]) + '\\n')\n"
    "        self.send_response(204); self.end_headers()\n"
    "    do_GET = do_POST\n"
    "    def log_message(self, *words): pass\n"
    "http.server.HTTPServer(('127.0.0.1', 8765), Taker).serve_forever()\n"
)


@pytest.fixture(scope="module")
def trial(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostApp]:
    with host_app_on(hosts, tmp_path_factory.mktemp("key")) as made:
        with made.session() as session:
            session.write(f"{APP}/service.json", json.dumps(SETTINGS).encode())
        a_bar_closed(made, hours_ago=0)
        yield made
        made.on_prod("systemctl", "disable", "--now", TIMER, check=False)


def a_bar_closed(trial: HostApp, hours_ago: float) -> None:
    """The newest line of the service is about a bar that closed so long ago."""
    now = datetime.now(UTC)
    (line,) = signal_lines.lines(1, end=now)
    line["bar_time"] = f"{now - timedelta(hours=hours_ago + 1):%Y-%m-%dT%H:%M:%SZ}"
    with trial.session() as session:
        session.write(LOG, json.dumps(line).encode() + b"\n")


def provision(trial: HostApp) -> list[str]:
    """What the product's provision does about the alarms; names of what it changed."""
    host = trial.inventory.host("prod").model_copy(update={"unit": NAME, "app_dir": APP})
    inventory = trial.inventory.model_copy(update={"alerts": ALERTS})
    with open_session(host, inventory) as session:
        seen = state.observed(state.ask(session, host, inventory))
        wanted = desired.render(host, inventory, seen)
        units = {name: wanted.units[name] for name in (SERVICE, TIMER)}
        told = session.call(
            "provision",
            app=APP,
            scope="system",
            account=ACCOUNT,
            directories=[],
            files=[{"path": "state/notify.json", "data": ADDRESSES, "mode": 0o600, "secret": True}],
            flags={},
            units={n: str(t).replace("OnActiveSec=60", "OnActiveSec=2") for n, t in units.items()},
            enable=list(units),
            start=[TIMER],
            who="tester",
        )
    return [f"{one['how']} {one['name']}" for one in told["changes"]]


def receive(trial: HostApp) -> None:
    """Start the receiver on prod's loopback, again after a reboot."""
    trial.on_prod("systemd-run", "--quiet", "--unit=taker", "python3", "-c", TAKER)
    probe = "import socket; socket.create_connection(('127.0.0.1', 8765))"
    until(lambda: trial.on_prod("sh", "-c", f'python3 -c "{probe}" 2>&1', check=False) == "")


def took(trial: HostApp) -> list[tuple[str, str]]:
    said = trial.on_prod("sh", "-c", "cat /run/took 2>/dev/null", check=False)
    return [tuple(json.loads(line)) for line in said.splitlines()]


def messages(trial: HostApp) -> list[dict[str, Any]]:
    return [json.loads(data) for path, data in took(trial) if path == "/t0ken"]


def told(trial: HostApp, name: str) -> list[str]:
    """What came about this alarm: began, ended. On a slow machine another one may come between."""
    alerts = [alert for message in messages(trial) for alert in message["alerts"]]
    return [alert["what"] for alert in alerts if alert["name"] == name]


def beats(trial: HostApp) -> int:
    return [path for path, _ in took(trial)].count("/beat")


def memory(trial: HostApp) -> dict[str, Any]:
    said = trial.on_prod("sh", "-c", f"cat {APP}/state/alerts.json 2>/dev/null", check=False)
    return dict(json.loads(said or "{}"))


def until(wanted: Callable[[], bool], why: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + 240
    while not wanted():
        assert time.monotonic() < deadline, why()
        time.sleep(0.5)


def looks(trial: HostApp, count: int = 2) -> None:
    """Wait for so many further looks."""
    for _ in range(count):
        last = memory(trial).get("checked")
        until(
            lambda last=last: memory(trial).get("checked") != last,  # type: ignore[misc]
            lambda: trial.on_prod("journalctl", "--no-pager", "-u", SERVICE, check=False),
        )


def test_each_alarm_is_told_once_and_its_end_once_across_a_reboot(trial: HostApp) -> None:
    receive(trial)
    assert provision(trial) == [
        f"created {APP}/state/notify.json", f"created {SERVICE}", f"created {TIMER}",
        f"enabled {TIMER}", f"started {TIMER}",
    ]  # fmt: skip
    assert provision(trial) == []
    looks(trial)
    assert memory(trial)["open"] == [] and messages(trial) == []
    assert beats(trial) == 1  # one bar so far

    trial.on_prod("systemctl", "stop", UNIT)
    until(lambda: told(trial, "service"), lambda: memory(trial))
    (began,) = messages(trial)
    assert "the service is inactive" in began["text"] and began["app"] == APP
    looks(trial, 3)
    assert told(trial, "service") == ["began"]
    trial.on_prod("systemctl", "start", UNIT)
    until(lambda: len(told(trial, "service")) > 1, lambda: memory(trial))
    looks(trial, 3)
    assert told(trial, "service") == ["began", "ended"]

    a_bar_closed(trial, hours_ago=5)
    until(lambda: told(trial, "silent"), lambda: memory(trial))
    assert "began: silent: no bar for 5 hours" in messages(trial)[-1]["text"]

    trial.hosts.prod.machine.reboot()  # /run is new: what was taken is forgotten
    assert trial.on_prod("systemctl", "is-active", TIMER) == "active"
    receive(trial)
    looks(trial)
    assert told(trial, "silent") == []  # it was told before
    assert "silent" in [one["name"] for one in memory(trial)["open"]]
    a_bar_closed(trial, hours_ago=0)
    until(lambda: told(trial, "silent"), lambda: memory(trial))
    looks(trial)
    assert told(trial, "silent") == ["ended"]
    assert beats(trial) == 1


def test_it_is_confined_and_no_address_is_in_any_log(trial: HostApp) -> None:
    said = trial.on_prod("systemd-analyze", "security", "--no-pager", SERVICE)
    assert float(said.rpartition("exposure level for")[2].split(":")[1].split()[0]) < 3.5
    unit = trial.on_prod("systemctl", "cat", SERVICE)
    (runs,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert " -I -S " in runs and "runtime" not in runs  # nothing that came with a release
    journal = trial.on_prod("journalctl", "--no-pager")
    records = trial.on_prod("cat", f"{APP}/state/journal.jsonl", f"{APP}/state/alerts.json")
    assert "alert.began" in records
    assert "t0ken" not in journal + records


def test_a_crash_loop_is_told_and_a_service_that_is_disabled_is_not(trial: HostApp) -> None:
    for _ in range(3):
        trial.on_prod("systemctl", "kill", "--signal=SIGKILL", UNIT)
        looks(trial, 1)
    says(trial, "began: restarting: systemd restarted the service")
    trial.on_prod("systemctl", "disable", "--now", UNIT)
    says(trial, "ended: restarting")  # nothing is meant to run
    looks(trial, 3)
    assert told(trial, "restarting") == ["began", "ended"] and memory(trial)["open"] == []
    trial.on_prod("systemctl", "reset-failed", UNIT)  # so many starts in a minute are enough for it
    trial.on_prod("systemctl", "enable", "--now", UNIT)


def test_features_that_drift_and_models_of_their_age_are_told(trial: HostApp) -> None:
    share = {"mean": 0.009, "spread": 0.0075}
    blocks = {"count": 98, "features": 82, "outside": share, "worst": share}
    details = {
        "symbol": "BTCUSD",
        "bars": {"last": f"{datetime.now(UTC) - timedelta(days=32):%Y-%m-%dT%H:00:00+00:00}"},
        "drift": {"block": 168, "assets": {"BTCUSD": blocks}},
    }
    release = trial.release(details=details)
    assert trial.deploy(release) == "committed"
    a_block(trial, release.id, outside=9)
    says(trial, "began: features: drift: 11.0 % of the features' values lie outside")
    with trial.session() as session:
        limited = {**SETTINGS, "max_age_days": 30}
        session.write(f"{APP}/service.json", json.dumps(limited).encode())
    says(trial, "32 days ago; 30 are allowed; from ")
    a_block(trial, release.id, outside=0)
    says(trial, "ended: features")
    names = [one["name"] for one in memory(trial)["open"]]
    assert "old" in names and "features" not in names


def says(trial: HostApp, words: str) -> None:
    """Wait for a message with these words."""
    until(lambda: any(words in one["text"] for one in messages(trial)), lambda: memory(trial))


def a_block(trial: HostApp, release: str, outside: int) -> None:
    """168 bars up to now, each with so many features outside."""
    now, hour = datetime.now(UTC), timedelta(hours=1)
    made = list(signal_lines.lines(168, end=now, release=release, ml_features_outside=outside))
    for at, line in enumerate(made):
        line["bar_time"] = f"{now - (168 - at) * hour:%Y-%m-%dT%H:%M:%SZ}"
    with trial.session() as session:
        session.write(LOG, b"".join(map(signal_lines.encode, made)))
