"""A command that a test types is forked; it behaves as the `invoke` script does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import commands

TASKS = """
import json, os, signal, sys, threading, time
from invoke import Collection, task
from macd.cli import usage
from macd.cli.verb import verb
from macd.errors import ExitCode

@verb()
def show(_):
    streams = sys.stdin, sys.stdout, sys.stderr
    files = os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else []
    print(json.dumps({
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "environment": dict(os.environ),
        "here": time.tzname, "leads": os.getsid(0) == os.getpid(), "umask": os.umask(0o22),
        "streams": [(s.encoding, s.errors, s.line_buffering, s.write_through) for s in streams],
        "same": [sys.__stdin__ is sys.stdin, sys.__stdout__ is sys.stdout],
        "signals": {s.name: str(signal.getsignal(s)) for s in signal.Signals},
        "blocked": [str(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "threads": threading.active_count(), "files": len(files), "macd": usage.__file__,
        "stdin": sys.stdin.read(), "compiles": not sys.dont_write_bytecode,
    }))
    print("warned", file=sys.stderr)

@verb()
def end(_, code):
    return ExitCode(int(code))

@verb()
def rest(_):
    print("unfinished", end="")
    threading.Thread(target=lambda: (time.sleep(0.2), print("the thread too"))).start()

@verb()
def wait(_):
    print("waiting", flush=True)
    time.sleep(60)

@task
def bare(context):
    print("waiting", flush=True)
    time.sleep(60)

@verb()
def crash(_):
    raise ValueError("a bug")

usage.install()
namespace = Collection(show, end, rest, wait, crash, bare)
"""
both = pytest.mark.parametrize("real", [True, False], ids=["script", "forked"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path


def shown(root: Path, **options: Any) -> dict[str, Any]:
    done = commands.run(root, "show", **options)
    assert (done.returncode, done.stderr) == (0, "warned\n")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


MOVED = {"TZ": "Asia/Tokyo", "HERE": "ö"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start_new_session": True},
        {"env": {"PATH": os.environ["PATH"], **MOVED}},
        {"env": {**os.environ, **MOVED, "PYTHONUNBUFFERED": "1"}},
        {"env": {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}},
    ],
    ids=["plain", "session", "another environment", "unbuffered", "python's own"],
)
def test_what_a_command_sees_is_the_same(root: Path, options: dict[str, Any]) -> None:
    forked, script = (shown(root, real=real, **options) for real in (False, True))
    assert forked == script
    assert forked["leads"] == ("start_new_session" in options)


def test_it_reads_what_is_given_to_it(root: Path) -> None:
    (root / "words").write_text("some words")
    with (root / "words").open() as words:
        assert shown(root, stdin=words)["stdin"] == "some words"


@both
def test_its_end_is_told(root: Path, real: bool) -> None:
    codes = [commands.run(root, "end", "--code", str(n), real=real).returncode for n in (0, 3, 6)]
    assert codes == [0, 3, 6]
    assert commands.run(root, "end", "--kode", "1", real=real).returncode == 2
    crashed = commands.run(root, "crash", real=real)
    assert (crashed.returncode, crashed.stderr.splitlines()[-1]) == (1, "ValueError: a bug")
    rest = commands.run(root, "rest", real=real)
    assert (rest.returncode, rest.stdout) == (0, "unfinishedthe thread too\n")


@both
@pytest.mark.parametrize(
    ("task", "number", "code", "last"),
    [
        ("wait", signal.SIGINT, 130, "  do: invoke status, or"),
        ("bare", signal.SIGINT, 1, ""),
        ("wait", signal.SIGTERM, -signal.SIGTERM, ""),
        ("wait", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_ends_it(
    root: Path, real: bool, task: str, number: signal.Signals, code: int, last: str
) -> None:
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with commands.start(root, task, real=real, **options) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "waiting\n"
        assert command.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.01)
        command.send_signal(number)
        _, err = command.communicate(timeout=60)
    assert command.returncode == command.wait() == code
    assert "".join(err.splitlines()[-1:]).startswith(last)
    assert "Traceback" not in err


def test_one_that_takes_too_long_is_killed(root: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        commands.run(root, "wait", timeout=1)
    assert caught.value.output in (b"waiting\n", "waiting\n", None)


def test_a_project_with_a_macd_of_its_own_gets_it(root: Path) -> None:
    ours = Path(commands.__file__).parents[2] / "macd"
    assert Path(shown(root)["macd"]).is_relative_to(ours)
    (root / "macd").mkdir()
    (root / "macd" / "__init__.py").write_text("raise SystemExit(7)")
    assert commands.run(root, "show").returncode == 7


def test_the_server_has_one_thread_only(root: Path) -> None:
    """Forking a process with several is unsafe: a lock may be held for ever in the child."""
    tasks = "import os; print(len(os.listdir(f'/proc/{os.getppid()}/task'))); raise SystemExit"
    if not Path("/proc/self/task").is_dir():
        pytest.skip("only Linux tells a process's threads")
    (root / "tasks.py").write_text(tasks)
    assert commands.run(root, "any").stdout == "1\n"
