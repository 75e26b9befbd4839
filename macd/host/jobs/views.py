"""Look at the jobs of this host. Nothing here changes one: viewers come, vanish and come again."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.jobs.runner import EXIT, HEARTBEAT, LOG, PROCESS, SPEC, boot_id, is_alive
from macd.host.layout import load

EVENTS, DETACHED = "events.jsonl", "detached.json"
RECORDS = (LOG, EVENTS, SPEC, EXIT, "request.json", "result.json", "settings.json", "verify.json")
START_S = 30.0
_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}\Z")
_FOLLOW_S = 0.2
_EVENTS_PIECE = 1 << 20


def job_status(work: str, run: str = "", log_tail: int = 0) -> dict[str, Any]:
    """What is known of a run (the newest when `run` is ""), as the host itself sees it.

    `state` is RUNNING, DONE, FAILED or CANCELLED. A job that exited with 0 but left no result.json
    saying "done" FAILED; so did one whose runner vanished (a reboot, or somebody's SIGKILL).
    """
    work = durable.expand(work)
    run = run or (job_list(work)["runs"] or [""])[-1]
    if not run:
        raise HostError("there is no training run on this host", hint="invoke train", kind="none")
    directory = run_directory(work, run)
    if not os.path.isdir(directory):
        known = ", ".join(job_list(work)["runs"][-5:]) or "none"
        raise HostError(f"no run {run} on this host", why=f"newest: {known}", kind="none")
    process = load(os.path.join(directory, PROCESS), None)
    # Asked before exit.json is read: who is gone by now has written it already, or never will.
    alive = {name: is_alive((process or {}).get(name, {})) for name in ("runner", "child")}
    ended = load(os.path.join(directory, EXIT), None)
    result = _result(directory)
    state, reason = (
        _judge(ended, result) if ended is not None else _unfinished(directory, process, alive)
    )
    if state == "FAILED" and ended is None and result.get("state") == "done":
        state, reason = "DONE", ""  # the result is written last: only its runner's word is missing
    return {
        "run": run,
        "directory": directory,
        "state": state,
        "reason": reason,
        "exit": ended,
        "result": result,
        "spec": load(os.path.join(directory, SPEC), {}),
        "detached": load(os.path.join(directory, DETACHED), {}).get("how", ""),
        "started": (process or {}).get("started"),
        "heartbeat": load(os.path.join(directory, HEARTBEAT), {}).get("at"),
        "now": time.time(),
        "log_end": end_of(os.path.join(directory, LOG), log_tail) if log_tail else "",
    }


def _unfinished(
    directory: str, process: dict[str, Any] | None, alive: dict[str, bool]
) -> tuple[str, str]:
    if alive["runner"]:
        return "RUNNING", ""
    if alive["child"]:
        return "RUNNING", "its runner was killed; the training itself goes on"
    if process is None:
        fresh = time.time() - os.stat(directory).st_mtime < START_S
        return ("RUNNING", "it is being started") if fresh else ("FAILED", "it never started")
    if process["runner"].get("boot") != boot_id():
        return "FAILED", "the host was rebooted, or lost power, while it ran"
    return "FAILED", "its runner was killed on the host (SIGKILL, or out of memory)"


def _judge(ended: dict[str, Any], result: dict[str, Any]) -> tuple[str, str]:
    done = result.get("state") == "done"
    if done and not ended["code"]:
        return "DONE", ""
    if ended["cancelled"]:
        return "CANCELLED", "stopped on request"
    if ended.get("stopped"):
        return "FAILED", "the host stopped it (a shutdown, or somebody's kill)"
    if ended["signal"]:
        memory = "; on Linux that is mostly the out-of-memory killer"
        return "FAILED", f"killed by signal {ended['signal']}{memory * (ended['signal'] == 9)}"
    if ended["code"]:
        return "FAILED", str(result.get("what") or f"exit code {ended['code']}")
    return "FAILED", "it ended with 0 but left no finished result"


def job_list(work: str) -> dict[str, Any]:
    """Ids of the runs in this work directory, oldest first."""
    runs = os.path.join(durable.expand(work), "runs")
    found = os.listdir(runs) if os.path.isdir(runs) else []
    return {"runs": sorted(name for name in found if _RUN_ID.match(name))}


def job_follow(work: str, run: str, offset: int, wait: float = 0.0) -> dict[str, Any]:
    """The run's state and what its event stream holds after `offset`.

    Answers when there is something new, when the run is over, or after `wait` seconds. The state is
    taken before the events: an answer that is over and without data is the last one.
    """
    status = job_status(work, run)
    path = os.path.join(status["directory"], EVENTS)
    deadline = time.monotonic() + wait
    while True:
        data = _read(path, offset)
        if data or status["state"] != "RUNNING" or time.monotonic() >= deadline:
            brief = ("run", "state", "reason", "started", "heartbeat", "now")
            return {"data": data, "status": {name: status[name] for name in brief}}
        time.sleep(_FOLLOW_S)
        status = job_status(work, run)


def _read(path: str, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_EVENTS_PIECE)
    except FileNotFoundError:
        return b""


def job_files(work: str, run: str) -> dict[str, Any]:
    """What a finished run leaves, as [path, size, sha256]: its records, and what it declared.

    The files that the run itself declared are told as declared; whoever fetches them compares.
    """
    status = job_status(work, run)
    if status["state"] == "RUNNING":
        raise HostError(
            f"run {run} is still in progress",
            hint=f"invoke train.attach --run {run} follows it and collects at the end",
            kind="running",
        )
    records = []
    for name in RECORDS:
        path = os.path.join(status["directory"], name)
        if os.path.isfile(path):
            records.append([name, *_hashed(path)])
    declared = status["result"].get("files", []) if status["state"] == "DONE" else []
    files = [[one.get("path"), one.get("size"), one.get("sha256")] for one in declared]
    return {"status": status, "records": records, "files": files}


def _hashed(path: str) -> tuple[int, str]:
    total, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            total.update(piece)
            size += len(piece)
    return size, total.hexdigest()


def _result(directory: str) -> dict[str, Any]:
    try:
        found = load(os.path.join(directory, "result.json"), {})
    except HostError:
        return {}
    return dict(found) if isinstance(found, dict) else {}


def run_directory(work: str, run: str) -> str:
    """Where a run lies. Raises HostError for anything that is not a run id."""
    if not _RUN_ID.match(run):
        raise HostError(f"not a run id: {run!r}")
    return os.path.join(work, "runs", run)


def end_of(path: str, size: int = 4096) -> str:
    """The last bytes of a log, as text; "" when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
