"""Begin and stop long jobs on this host; macd/host/jobs/views.py looks at them.

Layout under a work directory: trees/<digest>/ (code and data, hard links to blobs, never changed),
runs/<id>/ (spec.json, process.json, heartbeat.json, log, exit.json, and what the job writes,
events.jsonl and result.json among it).
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
from macd.host.jobs.runner import CANCEL, EXIT, LOG, PROCESS, SPEC, is_alive
from macd.host.jobs.views import (
    DETACHED,
    START_S,
    end_of,
    job_list,
    job_status,
    run_directory,
)
from macd.host.layout import load, save
from macd.host.rpc import blobs
from macd.host.store.manifest import ManifestError, check_path
from macd.host.systemd import detach

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def job_tree(work: str, digest: str, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
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
    argv: list[str],
    env: dict[str, str],
    tree: str,
    about: dict[str, Any],
    files: dict[str, str],
) -> dict[str, Any]:
    """Start `argv` detached, with the tree `tree` (a digest) as its working directory.

    Starting the same run again answers what it is, and never starts it twice: a client that lost
    contact may simply ask again. `{run}`, `{work}` and `{tree}` in argv and env stand for the
    absolute directories. `files` (name to text) are written into the run's directory first.

    Raises HostError of kind "refused" while another run goes on in this work directory.
    """
    work = durable.expand(work)
    directory = run_directory(work, run)
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


def _placed(text: str, places: dict[str, str]) -> str:
    for name, value in places.items():
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
        why=end_of(os.path.join(directory, LOG)) or f"no sign of its runner in {START_S:g} s",
        hint="invoke train.status shows it",
    )


def job_cancel(work: str, run: str) -> dict[str, Any]:
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
