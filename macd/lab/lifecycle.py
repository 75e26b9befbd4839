"""Start, end and look at a clone's lab: what lab.up, lab.down and lab.status do."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import macd
from macd.errors import MacdError, UsageError
from macd.host.durable import one_at_a_time
from macd.lab.processes import end, marked, send
from macd.lab.state import HOSTS, Fault, LabState, Record, ask, host_from, read_record, record_path

_READY_WITHIN = 60.0
_GONE_WITHIN = 20.0
_WAYS = ("up", "down", "both")
_WHEN = ("next", "present")


def up(root: Path) -> LabState:
    """Start this clone's lab; one that runs already is left as it is (`was_running`).

    A stale lab (the machine was rebooted, the daemon killed) is cleaned up first; homes stay.
    Raises MacdError when something is missing, a port can't be had or .lab can't be written.
    """
    root = root.resolve()
    _need_libraries()
    with _alone(root):
        record = read_record(root)
        if record is not None and record.alive():
            return _look(root, record, was_running=True)
        if record is not None:
            _clear(root, record)
        _start(root)
        record = read_record(root)
        assert record is not None  # noqa: S101 - the daemon says ready after writing it
        return _look(root, record)


def down(root: Path, *, wipe: bool = False) -> list[int]:
    """End the lab and every process its hosts started; returns those that outlived the daemon.

    Homes, keys and ports' files stay in .lab for the next `up`, unless `wipe`.
    """
    root = root.resolve()
    if not (root / ".lab").exists():
        return []
    with _alone(root):
        record = read_record(root)
        ended = _clear(root, record) if record is not None else []
    if wipe:
        shutil.rmtree(root / ".lab")
    return ended


def status(root: Path) -> LabState:
    """How the lab is. A stale record is cleaned up on the way; nothing else is changed."""
    root = root.resolve()
    record = read_record(root)
    if record is None:
        return LabState(root, running=False)
    if not record.alive():
        with _alone(root):
            _clear(root, record)
        return LabState(root, running=False)
    return _look(root, record, was_running=True)


def set_fault(root: Path, host: str, fault: Fault) -> LabState:
    """Make the host's link behave so from now on; Fault() is a perfect link."""
    _check(fault)
    return _order(root, {"op": "fault", "host": host, "fault": vars(fault)})


def reset_counters(root: Path, host: str) -> LabState:
    return _order(root, {"op": "reset_counters", "host": host})


def kill_host(root: Path, host: str) -> LabState:
    """Take one host off the network: open connections drop, new ones are refused."""
    return _order(root, {"op": "kill", "host": host})


def revive_host(root: Path, host: str) -> LabState:
    """Put a killed host back on the network, on the same port."""
    return _order(root, {"op": "revive", "host": host})


def restart_host(root: Path, host: str) -> LabState:
    """Drop every connection of one host and serve again; its processes keep running."""
    kill_host(root, host)
    return revive_host(root, host)


def _check(fault: Fault) -> None:
    wrong = [
        f"{name} is {value!r}, {wanted}"
        for name, value, good, wanted in (
            ("rtt_ms", fault.rtt_ms, 0 <= fault.rtt_ms <= 60_000, "not 0 to 60000"),
            ("mbit", fault.mbit, fault.mbit is None or fault.mbit > 0, "not above 0"),
            ("cut_after", fault.cut_after, (fault.cut_after or 0) >= 0, "not 0 or more"),
            ("direction", fault.cut_direction, fault.cut_direction in _WAYS, f"not in {_WAYS}"),
            ("cut_on", fault.cut_on, fault.cut_on in _WHEN, f"not in {_WHEN}"),
        )
        if not good
    ]
    if wrong:
        raise UsageError(
            "no link can do that", why="\n".join(wrong), hint="invoke lab.fault --help"
        )


def _order(root: Path, request: dict[str, Any]) -> LabState:
    if request["host"] not in HOSTS:
        raise UsageError(
            f"the lab has no host {request['host']!r}", hint=f"its hosts are {', '.join(HOSTS)}"
        )
    root = root.resolve()
    record = read_record(root)
    if record is None or not record.alive():
        raise MacdError("the lab isn't running", hint="invoke lab.up")
    ask(record.control, request)
    return _look(root, record, was_running=True)


def _look(root: Path, record: Record, *, was_running: bool = False) -> LabState:
    answer = ask(record.control, {"op": "status"})
    hosts = {fields["name"]: host_from(fields) for fields in answer["hosts"]}
    return LabState(root, True, record.id, record.pid, hosts, was_running)


def _clear(root: Path, record: Record) -> list[int]:
    """End the daemon if it lives, then what it left behind; forget the record last."""
    if record.alive():
        send(record.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GONE_WITHIN
        while record.alive():
            if time.monotonic() > deadline:
                send(record.pid, signal.SIGKILL)
            time.sleep(0.02)
    ended = end(lambda: marked(record.id))
    shutil.rmtree(record.private, ignore_errors=True)
    record_path(root).unlink(missing_ok=True)
    return ended


def _start(root: Path) -> None:
    lab = root / ".lab"
    log = lab / "daemon.log"
    # Found where this very code lies, whatever directory the lab is in.
    path = str(Path(macd.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    reading, writing = os.pipe()
    if log.exists():
        log.replace(log.with_suffix(".log.old"))
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "macd.lab.daemon", str(root), str(writing)],
            cwd=lab,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    with os.fdopen(reading) as stream:
        message = _first_line(stream)
    if message.get("ready"):
        return
    daemon.kill()
    daemon.wait()
    if "what" in message:
        raise MacdError(message["what"], why=message["why"], hint=message["hint"])
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise MacdError("the lab's daemon didn't start", why=tail, hint=f"see {log}")


def _first_line(stream: Any) -> dict[str, Any]:
    ready, _, _ = select.select([stream], [], [], _READY_WITHIN)
    line = stream.readline() if ready else ""
    message: dict[str, Any] = json.loads(line) if line else {}
    return message


def _need_libraries() -> None:
    missing = [name for name in ("asyncssh", "systemctl2") if not importlib.util.find_spec(name)]
    if missing:
        raise MacdError(
            "the lab's libraries aren't installed",
            why=f"this Python has no {' and no '.join(missing)}",
            hint="make setup, then .venv/bin/invoke lab.up",
        )


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One lab command at a time for a clone."""
    lab = root / ".lab"
    with contextlib.ExitStack() as stack:
        try:
            lab.mkdir(mode=0o700, exist_ok=True)
            stack.enter_context(one_at_a_time(lab / "lock"))
        except OSError as error:
            raise MacdError(
                f"{lab} can't be written",
                why=str(error),
                hint="make the directory writable, or work in a clone that belongs to you",
            ) from error
        yield
