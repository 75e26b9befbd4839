"""Calls over a running agent: pipelined, typed errors, framing that a stray print can't break."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from macd.errors import ContactLostError, ExitCode, MacdError
from macd.host.rpc import frames
from macd.ssh import failures
from macd.ssh.failures import (
    RemoteDiskFullError,
    RemoteError,
    RemoteFileNotFoundError,
    RemotePermissionError,
    RemoteRefusedError,
)
from macd.ssh.session import Session

StartAgent = Callable[..., Session]


def test_facts_are_typed_and_the_clock_is_ours(agent: Session) -> None:
    facts = agent.facts()
    assert facts.user.uid == os.getuid()
    assert facts.os.kernel == os.uname().release
    assert [disk.path for disk in facts.disks] == ["/", str(Path.home()), "/tmp"]
    clock = agent.ping()
    assert clock.error <= facts.clock.error
    assert abs(clock.offset) <= clock.error


def test_many_calls_are_in_flight_and_answered_in_order(agent: Session) -> None:
    pending = [agent.submit("run", argv=["echo", str(n)]) for n in range(30)]
    assert [p.result()["stdout"] for p in pending] == [b"%d\n" % n for n in range(30)]


def test_large_answers_pile_up_nowhere(agent: Session, tmp_path: Path) -> None:
    """More than all buffers hold, both ways, before the first result is asked for."""
    data = os.urandom(2 << 20)
    written = [agent.submit("write", path=f"{tmp_path}/{n}", data=data) for n in range(8)]
    read = [agent.submit("read", path=f"{tmp_path}/{n}") for n in range(8)]
    assert all(p.result()["size"] == len(data) for p in written)
    assert all(p.result()["data"] == data for p in read)


def test_a_file_larger_than_a_message_is_read_whole(agent: Session, tmp_path: Path) -> None:
    data = os.urandom(2 * frames.MAX_PAYLOAD + 12345)
    (tmp_path / "big").write_bytes(data)
    assert agent.read(f"{tmp_path}/big") == data
    assert b"".join(agent.pieces(f"{tmp_path}/big", offset=1_234_567)) == data[1_234_567:]
    with pytest.raises(MacdError, match="larger than the 1000 bytes expected"):
        agent.read(f"{tmp_path}/big", limit=1000)


def test_write_has_mode_and_parents(agent: Session, tmp_path: Path) -> None:
    agent.write(f"{tmp_path}/a/.env", b"SECRET=1\n", mode=0o600)
    assert agent.read(f"{tmp_path}/a/.env") == b"SECRET=1\n"
    assert (tmp_path / "a/.env").stat().st_mode & 0o777 == 0o600


def test_paths_and_arguments_are_never_read_by_a_shell(agent: Session, tmp_path: Path) -> None:
    name = "$(touch owned);`id`&'\"\\ *?\n\t!#~{}[]|<>é\U0001f600"
    agent.write(f"{tmp_path}/{name}", b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert agent.run(["printf", "%s", name]).stdout.decode() == name


def test_a_file_that_is_not_there(agent: Session) -> None:
    with pytest.raises(RemoteFileNotFoundError, match="here: read: No such file") as caught:
        agent.read("/not/there")
    assert caught.value.path == "/not/there"
    assert caught.value.errno == 2
    assert caught.value.kind == "FileNotFoundError"
    assert "Traceback" not in str(caught.value)
    assert "files.py" in caught.value.__notes__[0]  # what --debug shows
    with pytest.raises(RemoteFileNotFoundError):
        agent.run(["no-such-program"])
    assert agent.call("ping")  # and the session goes on


def test_an_error_that_is_a_bug_of_ours_is_told_with_its_type(agent: Session) -> None:
    with pytest.raises(RemoteError, match=r"here: read: TypeError: .*unexpected keyword"):
        agent.call("read", path="/", colour="red")
    with pytest.raises(RemoteError, match="no operation 'fly'"):
        agent.call("fly")


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"type": "OSError", "errno": 28, "message": "full"}, RemoteDiskFullError, 1),
        ({"type": "PermissionError", "errno": 13, "message": "no"}, RemotePermissionError, 1),
        ({"kind": "refused", "what": "locked", "live": "r1"}, RemoteRefusedError, 6),
        ({"kind": "disk full", "what": "no room"}, RemoteDiskFullError, 1),
        ({"type": "KeyError", "message": "'x'"}, RemoteError, 1),
    ],
)
def test_hosts_errors_become_ours(fields: dict, kind: type[RemoteError], code: int) -> None:
    error = failures.from_host("prod", "activate", fields)
    assert type(error) is kind
    assert error.exit_code == ExitCode(code)
    assert error.live == fields.get("live", "")


def test_a_request_too_large_is_refused_here(agent: Session) -> None:
    with pytest.raises(MacdError, match="too large"):
        agent.write("/tmp/never", bytes(frames.MAX_PAYLOAD + 1))
    assert agent.call("ping")


def test_what_writes_to_the_agents_stdout_lands_in_stderr(start_agent: StartAgent) -> None:
    channels = []
    session = start_agent(wrap=lambda channel: channels.append(channel) or channel)
    done = session.run(["sh", "-c", "echo stray print > /proc/$PPID/fd/1"])
    assert (done.exit, done.stdout) == (0, b"")
    assert session.call("ping")
    assert b"stray print" in channels[0].stderr()


def test_noise_between_messages_is_skipped(agent: Session) -> None:
    """A background job of the login shell that kept the real stdout writes into our stream."""
    pid = agent.call("ping")["pid"]
    (out,) = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if _is_kept_stdout(pid, fd)]
    for _ in range(3):
        out.write_bytes(b"You have new mail\n")
        assert agent.call("ping")["pid"] == pid


def _is_kept_stdout(pid: int, fd: Path) -> bool:
    """Whether it is a pipe to write to, and neither stdout nor stderr."""
    flags = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split("flags:")[1].split()[0]
    is_pipe = str(fd.readlink()).startswith("pipe:")
    return int(fd.name) > 2 and is_pipe and int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


# -- ends -----------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):  # gone while it is read
            return True
        time.sleep(0.02)
    return False


def test_the_agent_ends_with_the_session(start_agent: StartAgent) -> None:
    session = start_agent()
    pid = session.call("ping")["pid"]
    session.close()
    assert gone(pid)
    session.close()
    with pytest.raises(ContactLostError):
        session.call("ping")


ROOT = Path(__file__).parents[3]
CLIENT = """
import sys
from macd.ssh import archive
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel
session = Session(PipeChannel(archive.command(sys.executable)))
print(session.call("ping")["pid"], flush=True)
session.run(["sleep", "1000"])
"""


def test_a_client_that_dies_ends_the_agent_and_what_it_runs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, cwd=ROOT
    ) as client:
        assert client.stdout is not None
        agent_pid = int(client.stdout.readline())
        children = Path(f"/proc/{agent_pid}/task/{agent_pid}/children")
        while not (child := children.read_text().split()):
            time.sleep(0.01)
        client.kill()
    assert gone(int(child[0]))
    assert gone(agent_pid)


def test_an_agent_that_dies_is_contact_lost(agent: Session) -> None:
    pid = agent.call("ping")["pid"]
    waiting = [agent.submit("run", argv=["sleep", "1000"]), agent.submit("ping")]
    os.kill(pid, signal.SIGKILL)
    for pending in waiting:
        with pytest.raises(ContactLostError, match="contact with the agent on here was lost"):
            pending.result()
    with pytest.raises(ContactLostError):
        agent.call("ping")


def test_an_answer_that_came_before_the_end_is_kept(agent: Session) -> None:
    pid = agent.call("ping")["pid"]
    answered = agent.submit("ping")
    while not answered.done:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ContactLostError):
        agent.call("ping")
    assert answered.result()["pid"] == pid


def test_patience_for_one_answer_can_be_bounded(agent: Session) -> None:
    agent.call("ping")
    with pytest.raises(ContactLostError, match="has not answered run within"):
        agent.submit("run", argv=["sleep", "1000"]).result(wait=0.1)
