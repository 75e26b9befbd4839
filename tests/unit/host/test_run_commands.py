"""Programs on the host end when they should, with what they printed, and leave no orphans."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from macd.host import commands


def run(*argv: str, **options: Any) -> dict[str, Any]:
    return commands.run(None, list(argv), **options)


class Leaver:
    """A client that goes away, as the agent shows it to an operation."""

    def __init__(self) -> None:
        self.gone = threading.Event()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone while it is read
        return False


def test_status_output_and_environment(tmp_path: Path) -> None:
    got = run(
        "sh", "-c", 'pwd; echo "$GIVEN-$HOME" >&2; exit 7',
        cwd=str(tmp_path), env={"GIVEN": "a b", "HOME": None},
    )  # fmt: skip
    assert (got["exit"], got["timed_out"], got["dropped"]) == (7, False, 0)
    assert got["stdout"] == f"{tmp_path}\n".encode()
    assert got["stderr"] == b"a b-\n"


def test_argv_is_never_read_by_a_shell() -> None:
    hostile = "$(touch /tmp/owned); `id` | cat > x & 'quoted' \"twice\" \n *"
    assert run("printf", "%s", hostile)["stdout"].decode() == hostile


def test_input_and_output_larger_than_any_pipe_do_not_block() -> None:
    data = os.urandom(1 << 20)
    assert run("cat", input=data, limit=2 << 20)["stdout"] == data


def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    assert run("true", input=bytes(1 << 20))["exit"] == 0


def test_output_is_bounded_and_its_end_kept() -> None:
    got = run("sh", "-c", "seq 1 200000", limit=1000)
    assert len(got["stdout"]) == 1000
    assert got["stdout"].endswith(b"\n199999\n200000\n")
    assert got["dropped"] == sum(len(f"{n}\n") for n in range(1, 200001)) - 1000


def test_a_signal_is_told() -> None:
    assert run("sh", "-c", "kill -9 $$")["exit"] == -9


def test_a_missing_program_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        run("no-such-program-here")


def test_a_timeout_ends_the_whole_group() -> None:
    got = run("sh", "-c", "sleep 1000 & echo $!; wait", timeout=0.3)
    assert got["timed_out"]
    assert got["exit"] == -15
    assert not alive(int(got["stdout"]))


def test_a_program_that_ignores_the_request_to_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "_GRACE_SECONDS", 0.2)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the program inherits it
    try:
        got = run("sleep", "1000", timeout=0.3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got["exit"] == -9


def test_a_client_that_leaves_ends_the_program() -> None:
    peer = Leaver()
    peer.gone.set()
    got = commands.run(peer, ["sleep", "1000"])  # type: ignore[arg-type]
    assert (got["exit"], got["timed_out"]) == (-15, False)


def test_a_daemon_that_keeps_the_pipes_open_is_not_waited_for() -> None:
    got = run("sh", "-c", "setsid sleep 1000 & echo $!")
    daemon = int(got["stdout"])
    assert got["exit"] == 0
    assert alive(daemon)
    os.kill(daemon, 9)
