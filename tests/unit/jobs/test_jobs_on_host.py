"""The host's side of a job, in real processes: started once, owned, stopped, honest at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import macd
from macd.host.failure import HostError
from macd.host.jobs import operations
from macd.host.rpc import blobs

RUN = "20260101T000000Z-abc"
DONE = 'open("result.json", "w").write(\'{"state": "done", "files": []}\')'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def land(work: Path, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    path = Path(blobs.path_of(str(work), sha256))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return sha256


@pytest.fixture
def tree(work: Path) -> str:
    """The code that the runner is made of, as job_tree lays it out."""
    top = Path(macd.__file__).parent
    files = []
    for path in [top / "__init__.py", *sorted((top / "host").rglob("*.py"))]:
        files.append((f"macd/{path.relative_to(top)}", land(work, path.read_bytes())))
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    assert operations.job_tree(str(work), digest, files)["made"]
    assert not operations.job_tree(str(work), digest, files)["made"]
    return digest


def start(work: Path, tree: str, script: str, *, run: str = RUN, **files: str) -> dict[str, Any]:
    script = f"import os, signal, sys, time; os.chdir(sys.argv[1]); {script}"
    argv = [sys.executable, "-c", script, "{run}"]
    return operations.job_start(str(work), run, argv, {"X": "{work}"}, tree, {"k": 1}, files)


def until(work: Path, state: str, *, run: str = RUN) -> dict[str, Any]:
    return eventually(lambda: (s := operations.job_status(str(work), run))["state"] == state and s)


def eventually(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (answer := what()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return answer


def process(work: Path, *, run: str = RUN) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((work / "runs" / run / "process.json").read_text())
    return record


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # gone while it is read
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_job_that_leaves_its_result_is_done(work: Path, tree: str) -> None:
    files = {"request.json": "{}"}
    record = start(work, tree, f"assert os.path.exists('request.json'); {DONE}", **files)
    assert record["detached"] in ("setsid", "system unit", "user unit")
    done = until(work, "DONE")
    assert (done["exit"]["code"], done["reason"]) == (0, "")
    assert done["spec"]["env"]["X"] == str(work)
    assert done["spec"]["about"] == {"k": 1}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("pass", "left no finished result"),
        ('open("result.json", "w").write("{}")', "left no finished result"),
        ('open("result.json", "w").write("torn {")', "left no finished result"),
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "out-of-memory killer"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        (f"{DONE}; sys.exit(1)", "exit code 1"),
    ],
)
def test_whatever_ends_otherwise_failed_and_says_how(
    work: Path, tree: str, script: str, reason: str
) -> None:
    start(work, tree, script)
    assert reason in until(work, "FAILED")["reason"]


def test_the_result_tells_why_a_job_failed(work: Path, tree: str) -> None:
    document = json.dumps({"state": "failed", "what": "the loss became nan"})
    start(work, tree, f"open('result.json', 'w').write({document!r}); sys.exit(1)")
    assert until(work, "FAILED")["reason"] == "the loss became nan"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PDEATHSIG is Linux's")
def test_a_job_ends_with_its_killed_runner_and_is_failed(work: Path, tree: str) -> None:
    start(work, tree, "time.sleep(600)")
    pids = eventually(lambda: (p := process(work))["child"] and p)
    os.kill(pids["runner"]["pid"], signal.SIGKILL)
    assert "runner was killed" in until(work, "FAILED")["reason"]
    eventually(lambda: not alive(pids["child"]["pid"]))


def test_a_reboot_is_told_from_a_kill(work: Path, tree: str) -> None:
    start(work, tree, "time.sleep(600)")
    pids = eventually(lambda: (p := process(work))["child"] and p)
    os.kill(pids["runner"]["pid"], signal.SIGKILL)
    until(work, "FAILED")
    for who in ("runner", "child"):
        pids[who]["boot"] = "another boot"
    (work / "runs" / RUN / "process.json").write_text(json.dumps(pids))
    assert "rebooted" in operations.job_status(str(work), RUN)["reason"]


def test_a_result_outlives_the_runner_that_could_not_say_so(work: Path, tree: str) -> None:
    start(work, tree, f"{DONE}; time.sleep(600)")
    result = work / "runs" / RUN / "result.json"
    eventually(lambda: result.exists() and result.read_text())
    assert operations.job_status(str(work), RUN)["state"] == "RUNNING"
    os.kill(process(work)["runner"]["pid"], signal.SIGKILL)
    until(work, "DONE")


def test_cancel_lets_the_job_end_by_itself(work: Path, tree: str) -> None:
    start(
        work,
        tree,
        "signal.signal(15, lambda *_: sys.exit(9)); print(1, flush=True); time.sleep(600)",
    )
    log = work / "runs" / RUN / "log"
    eventually(lambda: log.exists() and log.read_bytes())  # then it has its handler
    operations.job_cancel(str(work), RUN)
    status = until(work, "CANCELLED")
    assert status["exit"]["code"] == 9
    assert operations.job_cancel(str(work), RUN)["state"] == "CANCELLED"


def test_a_terminated_runner_is_no_cancel(work: Path, tree: str) -> None:
    """What a shutdown does: nobody asked for this run to end."""
    start(work, tree, "time.sleep(600)")
    eventually(lambda: process(work)["child"])
    os.kill(process(work)["runner"]["pid"], signal.SIGTERM)
    assert "shutdown" in until(work, "FAILED")["reason"]


def test_asked_twice_it_is_started_once(work: Path, tree: str) -> None:
    script = "print('x', end='', file=open('starts', 'a'), flush=True); time.sleep(600)"
    first = start(work, tree, script)
    second = start(work, tree, script)
    assert first["run"] == second["run"]
    starts = work / "runs" / RUN / "starts"
    eventually(lambda: starts.exists() and starts.read_text())
    assert starts.read_text() == "x"
    operations.job_cancel(str(work), RUN)
    until(work, "CANCELLED")


def test_a_second_run_is_refused_while_one_goes_on(work: Path, tree: str) -> None:
    start(work, tree, "time.sleep(600)")
    with pytest.raises(HostError) as caught:
        start(work, tree, "pass", run="20260101T000001Z-def")
    assert caught.value.kind == "refused"
    assert RUN in caught.value.what
    operations.job_cancel(str(work), RUN)
    until(work, "CANCELLED")
    start(work, tree, DONE, run="20260101T000001Z-def")
    until(work, "DONE", run="20260101T000001Z-def")
    assert operations.job_list(str(work))["runs"] == [RUN, "20260101T000001Z-def"]
    assert operations.job_status(str(work))["run"] == "20260101T000001Z-def"


def test_without_a_name_the_run_in_progress_is_meant(work: Path, tree: str) -> None:
    """Whoever started the other one had a clock that was ahead."""
    start(work, tree, DONE, run="20270101T000000Z-def")
    until(work, "DONE", run="20270101T000000Z-def")
    start(work, tree, "time.sleep(600)")
    assert operations.job_status(str(work))["run"] == RUN
    operations.job_cancel(str(work), RUN)
    until(work, "CANCELLED")
    assert operations.job_status(str(work))["run"] == "20270101T000000Z-def"


def test_events_come_in_order_to_the_last_byte(work: Path, tree: str) -> None:
    loop = (
        "exec('for i in range(40):\\n out.write(str(i) + chr(10)); out.flush(); time.sleep(.01)')"
    )
    start(work, tree, f"out = open('events.jsonl', 'w'); {loop}; {DONE}")
    seen, state = b"", "RUNNING"
    while True:
        answer = operations.job_follow(str(work), RUN, len(seen), wait=10.0)
        seen += answer["data"]
        state = answer["status"]["state"]
        if state != "RUNNING" and not answer["data"]:
            break
    assert state == "DONE"
    assert seen.split() == [str(i).encode() for i in range(40)]


def test_files_of_a_run_are_listed_once_it_is_over(work: Path, tree: str) -> None:
    start(work, tree, "time.sleep(600)")
    with pytest.raises(HostError, match="in progress"):
        operations.job_files(str(work), RUN)
    operations.job_cancel(str(work), RUN)
    until(work, "CANCELLED")
    listing = operations.job_files(str(work), RUN)
    assert listing["files"] == []
    names = {name for name, _, _ in listing["records"]}
    assert {"log", "spec.json", "exit.json"} <= names
    log = next(entry for entry in listing["records"] if entry[0] == "log")
    assert log[1:] == [0, hashlib.sha256(b"").hexdigest()]


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "", ".hidden", "a//b"])
def test_a_tree_stays_inside_itself(work: Path, path: str) -> None:
    sha256 = land(work, b"x")
    with pytest.raises(HostError):
        operations.job_tree(str(work), "0" * 64, [(path, sha256)])
    assert not list((work / "trees").glob("*"))


def test_a_tree_without_its_blobs_is_not_made(work: Path) -> None:
    with pytest.raises(HostError, match="has not arrived"):
        operations.job_tree(str(work), "0" * 64, [("a", "1" * 64)])
    assert not list((work / "trees").glob("*"))


@pytest.mark.parametrize("run", ["../x", "20260101T000000Z-A", "x", "20260101T000000Z-a/../b"])
def test_a_run_id_is_never_a_way_out(work: Path, run: str) -> None:
    for operation in (operations.job_status, operations.job_cancel, operations.job_files):
        with pytest.raises(HostError):
            operation(str(work), run)


def test_a_host_without_that_program_says_so(work: Path, tree: str) -> None:
    with pytest.raises(HostError, match="no such-python"):
        operations.job_start(str(work), RUN, ["such-python"], {}, tree, {}, {})
    assert not (work / "runs" / RUN).exists()


def test_no_run_at_all_is_told(work: Path) -> None:
    with pytest.raises(HostError) as caught:
        operations.job_status(str(work))
    assert caught.value.kind == "none"
    shutil.rmtree(work, ignore_errors=True)
