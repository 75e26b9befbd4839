"""Begin, look at and stop long jobs on this host; looking never changes one.

Layout under a work directory: trees/<digest>/ (code and data, hard links to blobs, never changed),
runs/<id>/ (spec.json, process.json, heartbeat.json, log, exit.json, and what the job writes).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from macd.host import blobs, durable
from macd.host.failure import HostError
from macd.host.jobrunner import CANCEL, EXIT, HEARTBEAT, LOG, PROCESS, SPEC, is_alive
from macd.host.layout import load, save
from macd.host.manifest import ManifestError, check_path
from macd.host.supervisor import Supervisor

_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_START_S = 30.0


def job_tree(work: str, digest: str, files: Sequence[Tuple[str, str]]) -> Dict[str, Any]:
    """Make trees/<digest> from blobs that have landed: (relative path, sha256) each.

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
            try:
                place = os.path.join(building, check_path(path))
            except ManifestError as error:
                raise HostError(f"a file can't be placed on the host: {error}") from error
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.link(blobs.path_of(work, sha256), place)
        with contextlib.suppress(OSError):  # another client made the very same tree meanwhile
            os.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"path": target, "made": True}


def job_start(
    work: str, run: str, argv: List[str], env: Dict[str, str], tree: str, about: Dict[str, Any]
) -> Dict[str, Any]:
    """Start `argv` detached, with the tree `tree` (a digest) as its working directory.

    Starting the same run again answers what it is, and never starts it twice. `{run}` and `{work}`
    in argv and env stand for the absolute directories.
    """
    work = durable.expand(work)
    directory = _directory(work, run)
    code = os.path.join(work, "trees", tree)
    if not os.path.isdir(code):
        raise HostError(f"the code tree {tree} is not on the host", hint="invoke train again")
    durable.make_directories(os.path.dirname(directory))
    try:
        os.mkdir(directory)
    except FileExistsError:
        return job_status(work, run)
    places = {"{run}": directory, "{work}": work}
    spec = {
        "run": run,
        "argv": [_placed(word, places) for word in argv],
        "env": {key: _placed(value, places) for key, value in env.items()},
        "cwd": code,
        "created": time.time(),
        "about": about,
    }
    save(os.path.join(directory, SPEC), spec)
    durable.sync_directory(os.path.dirname(directory))
    runner = [argv[0], "-m", "macd.host.jobrunner", directory]
    scope = "user" if os.geteuid() else "system"
    Supervisor(scope).run_detached(
        f"macd-job-{run}".lower(),
        ["env", f"PYTHONPATH={code}", *runner],
        os.path.join(directory, LOG),
        keep_alive=False,
    )
    _await_process(directory)
    return job_status(work, run)


def _placed(text: str, places: Dict[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(name, value)
    return text


def _await_process(directory: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if any(os.path.exists(os.path.join(directory, name)) for name in (PROCESS, EXIT)):
            return
        time.sleep(0.05)
    raise HostError(
        "the job did not start",
        why=_end_of(os.path.join(directory, LOG)) or f"no sign of its runner in {_START_S:g} s",
        hint="invoke train.status shows it; the host's Python must be 3.9 or newer",
    )


def job_status(work: str, run: str = "", log_tail: int = 0) -> Dict[str, Any]:
    """What is known of a run (the newest when `run` is ""), as the host itself sees it.

    `state` is RUNNING, DONE, FAILED or CANCELLED. A job that exited with 0 but left no result.json
    saying "done" FAILED; so did one whose runner vanished (a reboot, or somebody's SIGKILL).
    """
    work = durable.expand(work)
    run = run or (job_list(work)["runs"] or [""])[-1]
    if not run:
        raise HostError("there is no training run on this host", hint="invoke train", kind="none")
    directory = _directory(work, run)
    if not os.path.isdir(directory):
        known = ", ".join(job_list(work)["runs"][-5:]) or "none"
        raise HostError(f"no run {run} on this host", why=f"newest: {known}", kind="none")
    ended = load(os.path.join(directory, EXIT), None)
    process = load(os.path.join(directory, PROCESS), None)
    result = _result(directory)
    alive = process is not None and is_alive(process["runner"])
    state, reason = _judge(ended, result, process, alive=alive)
    return {
        "run": run,
        "directory": directory,
        "state": state,
        "reason": reason,
        "exit": ended,
        "result": result,
        "spec": load(os.path.join(directory, SPEC), {}),
        "heartbeat": load(os.path.join(directory, HEARTBEAT), {}).get("at"),
        "now": time.time(),
        "log_end": _end_of(os.path.join(directory, LOG), log_tail) if log_tail else "",
    }


def _judge(  # noqa: PLR0911 - one return a finding
    ended: Optional[Dict[str, Any]],
    result: Dict[str, Any],
    process: Optional[Dict[str, Any]],
    *,
    alive: bool,
) -> Tuple[str, str]:
    if ended is None:
        if alive:
            return "RUNNING", ""
        if process is None:
            return "FAILED", "it never started"
        return "FAILED", "its runner is gone: the host was rebooted, or somebody killed it"
    if ended["cancelled"]:
        return "CANCELLED", "stopped on request"
    if ended["signal"]:
        killed = (
            "; on Linux that is mostly the out-of-memory killer" if ended["signal"] == 9 else ""
        )
        return "FAILED", f"killed by signal {ended['signal']}{killed}"
    if ended["code"]:
        return "FAILED", result.get("what") or f"exit code {ended['code']}"
    if result.get("state") != "done":
        return "FAILED", "it ended with 0 but left no finished result"
    return "DONE", ""


def _result(directory: str) -> Dict[str, Any]:
    try:
        found = load(os.path.join(directory, "result.json"), {})
    except HostError:
        return {}
    return dict(found) if isinstance(found, dict) else {}


def job_list(work: str) -> Dict[str, Any]:
    """Ids of the runs in this work directory, oldest first."""
    runs = os.path.join(durable.expand(work), "runs")
    found = os.listdir(runs) if os.path.isdir(runs) else []
    return {"runs": sorted(name for name in found if _RUN_ID.match(name))}


def job_cancel(work: str, run: str) -> Dict[str, Any]:
    """Ask a run to stop: SIGTERM to the job, SIGKILL after 20 s. Fine when it is over already."""
    work = durable.expand(work)
    status = job_status(work, run)
    if status["state"] == "RUNNING":
        durable.replace_file(os.path.join(status["directory"], CANCEL), b"asked\n")
    return status


def _directory(work: str, run: str) -> str:
    if not _RUN_ID.match(run):
        raise HostError(f"not a run id: {run!r}")
    return os.path.join(work, "runs", run)


def _end_of(path: str, size: int = 4096) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


OPERATIONS = {
    "job_tree": job_tree,
    "job_start": job_start,
    "job_status": job_status,
    "job_list": job_list,
    "job_cancel": job_cancel,
}
