"""The host looks for alarms by itself: on the embedded lab, from provision on, until it is off."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd.lab import LabState
from macd.lab.processes import marked
from tests.support.lab_project import Project, project
from tests.support.receiver import Receiver, receiving

TASKS = """
from invoke import Collection
from macd.cli import deploy, doctor, provision, status, usage
usage.install()
namespace = Collection(
    deploy.plan, deploy.deploy, provision.provision, status.status, doctor.doctor,
)
"""
TOKEN = "t0psecret"
# Any machine's disk, clock and load must do.
ALERTS = """
alerts:
  every_minutes: {every}
  disk_free: 0
  clock_s: 0
  notify_url: ${{T_ALERTS_URL}}
  format: feishu
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        server.body = b'{"code": 0}'
        yield server


@pytest.fixture
def made(
    lab: LabState, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    made = project(lab, tmp_path, "alerts-a")
    (made.root / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("T_ALERTS_URL", f"http://127.0.0.1:{receiver.server_port}/{TOKEN}")
    return made


def set_every(made: Project, plain: str, minutes: float) -> None:
    (made.root / "inventory/lab.yml").write_text(plain + ALERTS.format(every=minutes))


def until(wanted: Callable[[], bool], what: object = "") -> None:
    deadline = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def loops(lab: LabState, made: Project) -> list[int]:
    """The loops of this application that the lab would end; not what one has just forked."""
    found: list[int] = []
    for pid in marked(lab.id):
        with contextlib.suppress(OSError):  # it has just ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if "--loop" in words and str(made.app) in words and parent not in found:
                found.append(pid)
    return found


def texts(receiver: Receiver) -> list[str]:
    return [got["content"]["text"] for _, _, got in receiver.got]


def test_a_stopped_service_is_told_once_and_its_end_once(
    lab: LabState, made: Project, receiver: Receiver
) -> None:
    plain = (made.root / "inventory/lab.yml").read_text()
    set_every(made, plain, 0)
    made.invoke("provision", "--yes")
    made.release(1)
    made.invoke("deploy", "--yes")
    assert "alerts-a-alerts" not in made.invoke("plan")
    assert "nobody looks for alarms here" in made.invoke("status")
    set_every(made, plain, 0.04)
    # As on a host that an earlier version provisioned.
    planned = made.invoke("plan")
    assert "alerts-a-alerts.timer" in planned and "invoke provision" in planned
    said = made.invoke("provision", "--yes")
    assert "created: unit alerts-a-alerts.timer" in said and "started: unit" in said
    assert "  0 changes" in made.invoke("provision", "--yes")
    state = made.app / "state/alerts.json"
    until(state.is_file)
    assert len(loops(lab, made)) == 1
    until(lambda: "none; the last look: " in made.invoke("status"))
    assert texts(receiver) == []

    made.systemctl("stop", "alerts-a.service")
    until(lambda: len(receiver.got) == 1)
    assert "began: service: the service is inactive" in texts(receiver)[0]
    told = made.invoke("status", code=1)
    assert "✗ service, since " in told and "do: invoke doctor" in told
    assert "service, since " in made.invoke("doctor", code=1)
    (pid,) = loops(lab, made)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not loops(lab, made))
    assert "nobody looks for alarms here: the last look was" in made.invoke("status", code=1)
    state.write_text("{")  # a damaged memory begins anew, and says again what is open
    assert "started: unit alerts-a-alerts.timer" in made.invoke("provision", "--yes")
    until(lambda: len(loops(lab, made)) == 1)
    until(lambda: len(receiver.got) == 2, receiver.got)
    made.systemctl("start", "alerts-a.service")
    until(lambda: len(receiver.got) == 3)
    looked = json.loads(state.read_text())["checked"]
    until(lambda: json.loads(state.read_text())["checked"] > looked)
    began, again, ended = texts(receiver)
    assert again == began and "ended: service, it was: the service is inactive" in ended
    assert "a test message was sent" in made.invoke("doctor", "--notify-test")
    assert "a test message" in texts(receiver)[3]

    records = (made.app / "state/journal.jsonl").read_text()
    assert '"alert.began"' in records and '"alert.ended"' in records
    for path in (made.app / "state").glob("*.*"):
        assert path.name == "notify.json" or TOKEN not in path.read_text(errors="replace")

    set_every(made, plain, 0)
    assert "removed: unit alerts-a-alerts.timer" in made.invoke("provision", "--yes")
    until(lambda: not loops(lab, made))
