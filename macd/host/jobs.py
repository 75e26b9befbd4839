"""Begin, look at and stop long jobs on this host; looking never changes one.

Layout under a work directory: trees/<digest>/ (code and data, hard links to blobs, never changed),
runs/<id>/ (spec.json, process.json, heartbeat.json, log, exit.json, and what the job writes,
events.jsonl and result.json among it).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from macd.host import blobs, detach, durable
from macd.host.failure import HostError
from macd.host.jobrunner import CANCEL, EXIT, HEARTBEAT, LOG, PROCESS, SPEC, boot_id, is_alive
from macd.host.layout import load, save
from macd.host.manifest import ManifestError, check_path

_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-z-]{1,40}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_START_S = 30.0
_FOLLOW_S = 0.2
_EVENTS_PIECE = 1 << 20
EVENTS, DETACHED = "events.jsonl", "detached.json"
RECORDS = (LOG, EVENTS, SPEC, EXIT, "request.json", "result.json", "settings.json", "verify.json")


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
            place = os.path.join(building, _checked(path))
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _link(blobs.path_of(work, sha256), place)
        with contextlib.suppress(OSError):  # another client made the very same tree meanwhile
            os.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"path": target, "made": True}


def _link(blob: str, place: str) -> None:
    try:
        os.link(blob, place)
    except FileNotFoundError as error:
        raise HostError(f"the blob {os.path.basename(blob)[:12]} has not landed") from error


def job_start(
    work: str,
    run: str,
    argv: List[str],
    env: Dict[str, str],
    tree: str,
    about: Dict[str, Any],
    files: Dict[str, str],
) -> Dict[str, Any]:
    """Start `argv` detached, with the tree `tree` (a digest) as its working directory.

    Starting the same run again answers what it is, and never starts it twice: a client that lost
    contact may simply ask again. `{run}`, `{work}` and `{tree}` in argv and env stand for the
    absolute directories. `files` (name to text) are written into the run's directory first.

    Raises HostError of kind "refused" while another run goes on in this work directory.
    """
    work = durable.expand(work)
    directory = _directory(work, run)
    code = os.path.join(work, "trees", tree)
    python = shutil.which(argv[0])
    if python is None:
        raise HostError(f"there is no {argv[0]} on this host", hint="see `python` in the inventory")
    if not _DIGEST.match(tree) or not os.path.isdir(code):
        raise HostError(f"the code tree {tree} is not on the host", hint="invoke train again")
    durable.make_directories(os.path.dirname(directory))
    with _starting(work):
        if os.path.exists(os.path.join(directory, SPEC)):
            return job_status(work, run)
        _refuse_another(work)
        os.makedirs(directory, exist_ok=True)  # a start that was cut may have left it, empty
        for name, text in files.items():
            durable.replace_file(os.path.join(directory, _checked(name)), text.encode())
        places = {"{run}": directory, "{work}": work, "{tree}": code}
        spec = {
            "run": run,
            "argv": [_placed(word, places) for word in [python, *argv[1:]]],
            "env": {key: _placed(value, places) for key, value in env.items()},
            "cwd": code,
            "created": time.time(),
            "about": about,
        }
        save(os.path.join(directory, SPEC), spec)
        durable.sync_directory(os.path.dirname(directory))
        how = detach.start(
            f"macd-job-{run}".lower(),
            [python, "-m", "macd.host.jobrunner", directory],
            {"PYTHONPATH": code, "PYTHONDONTWRITEBYTECODE": "1"},
            os.path.join(directory, LOG),
        )
        save(os.path.join(directory, DETACHED), {"how": how})
        _await_process(directory)
    return job_status(work, run)


@contextlib.contextmanager
def _starting(work: str) -> Iterator[None]:
    """One start at a time in a work directory; the lock goes with the agent."""
    with open(os.path.join(work, "runs", ".start.lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_another(work: str) -> None:
    for other in job_list(work)["runs"]:
        if job_status(work, other)["state"] == "RUNNING":
            raise HostError(
                f"run {other} is in progress on this host",
                why="two trainings would share its GPU and cache",
                live=f"{other} goes on, nothing was started",
                hint=f"invoke train.attach --run {other} follows it; "
                f"invoke train.cancel --run {other} stops it",
                kind="refused",
            )


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
        "log_end": _end_of(os.path.join(directory, LOG), log_tail) if log_tail else "",
    }


def _unfinished(
    directory: str, process: Optional[Dict[str, Any]], alive: Dict[str, bool]
) -> Tuple[str, str]:
    if alive["runner"]:
        return "RUNNING", ""
    if alive["child"]:
        return "RUNNING", "its runner was killed; the training itself goes on"
    if process is None:
        fresh = time.time() - os.stat(directory).st_mtime < _START_S
        return ("RUNNING", "it is being started") if fresh else ("FAILED", "it never started")
    if process["runner"].get("boot") != boot_id():
        return "FAILED", "the host was rebooted, or lost power, while it ran"
    return "FAILED", "its runner was killed on the host (SIGKILL, or out of memory)"


def _judge(ended: Dict[str, Any], result: Dict[str, Any]) -> Tuple[str, str]:
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


def job_follow(work: str, run: str, offset: int, wait: float = 0.0) -> Dict[str, Any]:
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


def job_files(work: str, run: str) -> Dict[str, Any]:
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


def _hashed(path: str) -> Tuple[int, str]:
    total, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            total.update(piece)
            size += len(piece)
    return size, total.hexdigest()


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
    "job_follow": job_follow,
    "job_files": job_files,
}
