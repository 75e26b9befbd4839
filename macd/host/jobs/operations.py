"""Long jobs of this host: start one, show its state, list its files, stop it.

Layout under a work directory: trees/<digest>/ (code and data, hard links to blobs, never changed),
runs/<id>/ (spec.json, process.json, heartbeat.json, log, exit.json, and what the job writes,
events.jsonl and result.json among it). Only job_tree, job_start and job_cancel change anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.jobs.runner import (
    CANCEL,
    EXIT,
    HEARTBEAT,
    LOG,
    PROCESS,
    SPEC,
    is_alive,
)
from macd.host.layout import load, save
from macd.host.processes import boot_id
from macd.host.rpc import blobs
from macd.host.store.manifest import ManifestError, check_path
from macd.host.systemd import detach

EVENTS, RESULT, DETACHED = "events.jsonl", "result.json", "detached.json"
BARS = "bars"  # that a scheduled run was trained on: new on the host, unknown elsewhere
LOGS = "logs"  # of the stages of an own application, one file each
RECORDS = (LOG, EVENTS, SPEC, EXIT, "request.json", RESULT, "settings.json", "verify.json")
START_S = 30.0
_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_FOLLOW_S = 0.2
_EVENTS_PIECE = 1 << 20


def job_tree(work: str, digest: str, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Make trees/<digest> from blobs that are here: (relative path, sha256) each.

    Raises HostError when a path is unsafe or a blob is missing; an existing tree is left as it is.
    """
    work = durable.expand(work)
    if not _DIGEST.match(digest):
        raise HostError(f"not a digest: {digest!r}")
    target = os.path.join(work, "trees", digest)
    if os.path.isdir(target):
        return {"path": target, "made": False}
    building = f"{target}.building-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        for path, sha256 in files:
            target_file = os.path.join(building, _checked(path))
            os.makedirs(os.path.dirname(target_file), exist_ok=True)
            _link(blobs.path_of(work, sha256), target_file)
        with contextlib.suppress(OSError):  # another client made the very same tree meanwhile
            os.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"path": target, "made": True}


def _link(blob: str, target: str) -> None:
    try:
        durable.link_or_copy(blob, target)
    except FileNotFoundError as error:
        raise HostError(f"the blob {os.path.basename(blob)[:12]} has not arrived") from error


def job_start(
    work: str,
    run: str,
    argv: list[str],
    env: dict[str, str],
    tree: str,
    about: dict[str, Any],
    files: dict[str, str],
) -> dict[str, Any]:
    """Start `argv` detached, with the tree `tree` (a digest) as its working directory.

    Starting the same run again returns its status and never starts it twice: a client that lost
    contact may simply repeat the call. `{run}`, `{work}` and `{tree}` in argv and env mean the
    absolute directories. `files` (name to text) are written into the run's directory first.

    Raises HostError of kind "refused" while another run is in progress in this work directory.
    """
    work = durable.expand(work)
    directory = _run_directory(work, run)
    code = os.path.join(work, "trees", tree)
    python = shutil.which(argv[0])
    if python is None:
        raise HostError(f"there is no {argv[0]} on this host", hint="see `python` in the inventory")
    if not _DIGEST.match(tree) or not os.path.isdir(code):
        raise HostError(f"the code tree {tree} is not on the host", hint="invoke train again")
    durable.make_directories(os.path.dirname(directory))
    with durable.one_at_a_time(os.path.join(work, "runs", ".start.lock")):
        if os.path.exists(os.path.join(directory, SPEC)):
            return job_status(work, run)
        refuse_another(work)
        os.makedirs(directory, exist_ok=True)  # an interrupted start may have left it, empty
        for name, text in files.items():
            path = os.path.join(directory, _checked(name))
            durable.replace_file(path, text.encode(), mode=0o600)  # it may hold variables
        directories = {"{run}": directory, "{work}": work, "{tree}": code}
        spec = {
            "run": run,
            "argv": [_filled(part, directories) for part in [python, *argv[1:]]],
            "env": {key: _filled(value, directories) for key, value in env.items()},
            "cwd": code,
            "created": time.time(),
            "about": about,
        }
        save(os.path.join(directory, SPEC), spec)
        durable.sync_directory(os.path.dirname(directory))
        try:
            how = detach.start(
                f"macd-job-{run}".lower(),
                [python, "-m", "macd.host.jobs.runner", directory],
                {"PYTHONPATH": code, "PYTHONDONTWRITEBYTECODE": "1"},
                os.path.join(directory, LOG),
            )
        except HostError:
            shutil.rmtree(directory)  # nothing runs, so there is no run
            raise
        save(os.path.join(directory, DETACHED), {"how": how})
        _await_process(directory)
    return job_status(work, run)


def refuse_another(work: str) -> None:
    """Raises HostError of kind "refused" while a run is in progress in this work directory."""
    if other := _in_progress(work):
        raise HostError(
            f"run {other} is in progress on this host",
            why="two trainings would share its GPU and cache",
            live=f"{other} goes on; nothing was started",
            hint=f"invoke train.attach --run {other} follows it; "
            f"invoke train.cancel --run {other} stops it",
            kind="refused",
        )


def _in_progress(work: str) -> str:
    """The run that goes on, "" for none. Ids begin with the time of whoever started the run: one
    whose clock was behind started a run that is not the newest.
    """
    for run in reversed(job_list(work)["runs"]):
        is_over = os.path.exists(os.path.join(_run_directory(work, run), EXIT))
        if not is_over and job_status(work, run)["state"] == "RUNNING":
            return str(run)
    return ""


def _filled(text: str, directories: dict[str, str]) -> str:
    for name, value in directories.items():
        text = text.replace(name, value)
    return text


def _await_process(directory: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if any(os.path.exists(os.path.join(directory, name)) for name in (PROCESS, EXIT)):
            return
        time.sleep(0.05)
    raise HostError(
        "the job did not start",
        why=_end_of(os.path.join(directory, LOG)) or f"no sign of its runner in {START_S:g} s",
        hint="invoke train.status shows it",
    )


def job_cancel(work: str, run: str) -> dict[str, Any]:
    """Ask a run to stop: SIGTERM to the job, SIGKILL after 20 s. Does nothing once it is over."""
    work = durable.expand(work)
    status = job_status(work, run)
    if status["state"] == "RUNNING":
        durable.replace_file(os.path.join(status["directory"], CANCEL), b"asked\n")
        process = load(os.path.join(status["directory"], PROCESS), {})
        if not is_alive(process.get("runner", {})) and is_alive(process.get("child", {})):
            with contextlib.suppress(ProcessLookupError):  # its runner can't pass it on any more
                os.killpg(process["child"]["pid"], signal.SIGTERM)
    return status


def _checked(path: str) -> str:
    try:
        return check_path(path)
    except ManifestError as error:
        raise HostError(f"a file can't be placed on the host: {error}") from error


def job_status(work: str, run: str = "", log_tail: int = 0) -> dict[str, Any]:
    """The state of a run, as this host sees it; of the one in progress when `run` is "", else the
    newest.

    `state` is RUNNING, DONE, FAILED or CANCELLED. A job that exited with 0 but left no result.json
    saying "done" FAILED; so did one whose runner vanished (a reboot, or somebody's SIGKILL).
    """
    work = durable.expand(work)
    run = run or _in_progress(work) or (job_list(work)["runs"] or [""])[-1]
    if not run:
        raise HostError("there is no training run on this host", hint="invoke train", kind="none")
    directory = _run_directory(work, run)
    if not os.path.isdir(directory):
        newest = ", ".join(job_list(work)["runs"][-5:]) or "none"
        raise HostError(f"no run {run} on this host", why=f"newest: {newest}", kind="none")
    process = load(os.path.join(directory, PROCESS), None)
    # Before exit.json is read: a process that is gone now has written it, or never will.
    alive = {name: is_alive((process or {}).get(name, {})) for name in ("runner", "child")}
    ended = load(os.path.join(directory, EXIT), None)
    result = _result(directory)
    if ended is None:
        state, reason = _unfinished(directory, process, alive)
    else:
        state, reason = _finished(ended, result)
    if state == "FAILED" and ended is None and result.get("state") == "done":
        state, reason = "DONE", ""  # result.json is written last; only exit.json is missing
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
        "log_end": _end_of(os.path.join(directory, LOG), log_tail) if log_tail else "",
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


def _finished(ended: dict[str, Any], result: dict[str, Any]) -> tuple[str, str]:
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
    names = os.listdir(runs) if os.path.isdir(runs) else []
    return {"runs": sorted(name for name in names if _RUN_ID.match(name))}


def job_follow(work: str, run: str, offset: int, wait: float = 0.0) -> dict[str, Any]:
    """The run's state and its event stream after byte `offset`.

    Returns when there are new events, when the run is over, or after `wait` seconds. The state is
    read before the events: an answer without data whose run is over is the last one.
    """
    status = job_status(work, run)
    path = os.path.join(status["directory"], EVENTS)
    deadline = time.monotonic() + wait
    while True:
        data = _read(path, offset)
        if data or status["state"] != "RUNNING" or time.monotonic() >= deadline:
            fields = ("run", "state", "reason", "started", "heartbeat", "now")
            return {"data": data, "status": {name: status[name] for name in fields}}
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
    """The files of a finished run, as [path, size, sha256]: its records, and those it declared.

    Declared files are listed as result.json declares them; the client compares them.
    """
    status = job_status(work, run)
    if status["state"] == "RUNNING":
        raise HostError(
            f"run {run} is still in progress",
            hint=f"invoke train.attach --run {run} follows it and collects at the end",
            kind="running",
        )
    records = []
    logs = os.path.join(status["directory"], LOGS)
    bars = os.path.join(status["directory"], BARS)  # of a scheduled run, for its release
    below = [
        f"{top}/{name}"
        for top, directory in ((LOGS, logs), (BARS, bars))
        if os.path.isdir(directory)
        for name in sorted(os.listdir(directory))
    ]
    for name in (*RECORDS, *below):
        path = os.path.join(status["directory"], name)
        if os.path.isfile(path):
            records.append([name, os.path.getsize(path), durable.sha256_of(path)])
    declared = status["result"].get("files", []) if status["state"] == "DONE" else []
    files = [[file.get("path"), file.get("size"), file.get("sha256")] for file in declared]
    return {"status": status, "records": records, "files": files}


def _result(directory: str) -> dict[str, Any]:
    try:
        result = load(os.path.join(directory, RESULT), {})
    except HostError:
        return {}
    return dict(result) if isinstance(result, dict) else {}


def _run_directory(work: str, run: str) -> str:
    """The directory of a run. Raises HostError for anything that is not a run id."""
    if not _RUN_ID.match(run):
        raise HostError(
            f"not a run id: {run!r}",
            why="a run is called like 20260301T120000Z-1a2b3c4d",
            hint="invoke train.status names the newest",
        )
    return os.path.join(work, "runs", run)


def _end_of(path: str, size: int = 4096) -> str:
    """The last bytes of a log, as text; "" when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
