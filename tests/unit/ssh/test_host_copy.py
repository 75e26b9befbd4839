"""The copy of the archive that lies on a host is run where it is ours; otherwise ours travels."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from macd.errors import MacdError
from macd.host.rpc import boot
from macd.ssh import archive
from macd.ssh.archive import HostCopy
from macd.ssh.session import Session
from tests.support.pipe_channel import PipeChannel

OLDER = "0" * 64


class CountingChannel(PipeChannel):
    """Counts what the client sends; `sent` is the sum over all channels of one test."""

    sent = 0

    def send(self, data: bytes) -> None:
        CountingChannel.sent += len(data)
        super().send(data)


@pytest.fixture
def copy(tmp_path: Path) -> HostCopy:
    (tmp_path / "app" / "bin").mkdir(parents=True)
    return HostCopy(str(tmp_path / "app/bin/macd-host.pyz"), tmp_path / "memory" / "prod")


@pytest.fixture
def start(copy: HostCopy) -> Iterator[Callable[[], Session]]:
    CountingChannel.sent = 0
    with ExitStack() as stack:

        def channel() -> PipeChannel:
            made = CountingChannel(archive.command(sys.executable))
            stack.callback(made.close)
            return made

        yield lambda: stack.enter_context(
            Session(channel(), name="prod", copy=copy, reopen=channel)
        )


def provisioned(copy: HostCopy, data: bytes | None = None) -> Path:
    path = Path(copy.path)
    path.write_bytes(archive.build() if data is None else data)
    return path


def test_the_first_command_ships_the_archive_and_the_next_one_runs_the_copy(
    copy: HostCopy, start: Callable[[], Session]
) -> None:
    provisioned(copy)
    start().ping()
    first, CountingChannel.sent = CountingChannel.sent, 0
    assert copy.remembered() == archive.digest()
    session = start()
    assert session.facts().python.executable
    assert session.run(["echo", "hello"]).stdout == b"hello\n"
    assert CountingChannel.sent < 2000 < len(archive.compressed()) < first


def test_without_a_copy_nothing_is_remembered(copy: HostCopy, start: Callable[[], Session]) -> None:
    start().ping()
    assert copy.remembered() == ""
    assert not copy.memory.exists()


def nothing(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    path.write_bytes(b"the archive of another version")


def unreadable(path: Path) -> None:
    path.chmod(0)


@pytest.mark.parametrize("change", [nothing, another, unreadable])
def test_a_wrong_memory_costs_bytes_and_nothing_else(
    copy: HostCopy, start: Callable[[], Session], change: Callable[[Path], None]
) -> None:
    """A host made anew, provisioned by another version, or entered by a login that may not read."""
    change(provisioned(copy))
    copy.remember(archive.digest())
    session = start()
    pending = [session.submit("read", path=__file__, limit=n) for n in range(20)]
    assert [len(each.result()["data"]) for each in pending] == list(range(20))
    session.close()
    if change is unreadable and os.geteuid() == 0:
        return  # root reads it
    assert copy.remembered() != archive.digest()
    assert CountingChannel.sent > len(archive.compressed())


def test_an_older_copy_is_not_run(copy: HostCopy, start: Callable[[], Session]) -> None:
    provisioned(copy, b"raise SystemExit")
    copy.remember(OLDER)
    assert start().call("ping")["pid"]
    assert copy.remembered() not in ("", OLDER, archive.digest())


def test_a_memory_that_cannot_be_written_is_no_error(
    copy: HostCopy, start: Callable[[], Session]
) -> None:
    provisioned(copy)
    copy.memory.parent.write_text("in the way")
    assert start().call("ping")["pid"]
    assert copy.remembered() == ""


def test_a_host_without_python_is_reported_as_ever(copy: HostCopy) -> None:
    copy.remember(archive.digest())

    def channel() -> PipeChannel:
        return PipeChannel(archive.command("/no/such/python3"))

    with (
        Session(channel(), python="/no/such/python3", copy=copy, reopen=channel) as session,
        pytest.raises(MacdError, match="there is no /no/such/python3"),
    ):
        session.call("ping")


# -- compiled code --------------------------------------------------------------------------


def compiled(copy: HostCopy) -> Path:
    (path,) = Path(copy.path).parent.glob("macd-host.*.code")
    return path


def test_compiled_code_is_run_and_its_tracebacks_show_the_line(
    copy: HostCopy, start: Callable[[], Session]
) -> None:
    provisioned(copy)
    boot.compile_beside(copy.path)
    codes = boot.read_compiled(copy.path, archive.digest())
    assert "<macd-host>/macd/host/rpc/agent.py" in codes
    copy.remember(archive.digest())
    with pytest.raises(MacdError) as caught:
        start().call("read", path=1)
    assert "descriptor = _open_regular(durable.expand(path))" in "".join(caught.value.__notes__)


def test_compiled_code_that_is_there_is_not_made_again(copy: HostCopy) -> None:
    provisioned(copy)
    boot.compile_beside(copy.path)
    before = compiled(copy).stat()
    boot.compile_beside(copy.path)
    assert compiled(copy).stat().st_ino == before.st_ino


def help_of(copy: HostCopy) -> str:
    """What the archive says, run as a host runs it with nobody connected."""
    command = [sys.executable, "-I", "-S", copy.path, "activate", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_acts_with_nobody_connected_runs_the_compiled_code_too(copy: HostCopy) -> None:
    provisioned(copy)
    assert "usage: macd-host" in help_of(copy)
    boot.compile_beside(copy.path)
    assert "usage: macd-host" in help_of(copy)
    codes = boot.read_compiled(copy.path, archive.digest())
    main = "<macd-host>/macd/host/__main__.py"
    codes[main] = compile("def main():\n    print('the compiled one')", main, "exec")
    body = marshal.dumps(codes)
    compiled(copy).write_bytes(boot._compiled_head(archive.digest(), body) + body)
    assert help_of(copy) == "the compiled one\n"


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def of_another_archive(path: Path) -> None:
    path.write_bytes(OLDER.encode() + path.read_bytes()[64:])


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("change", [damaged, of_another_archive, writable_by_others, nothing])
def test_compiled_code_that_cannot_be_trusted_is_not_run(
    copy: HostCopy, start: Callable[[], Session], change: Callable[[Path], None]
) -> None:
    provisioned(copy)
    boot.compile_beside(copy.path)
    change(compiled(copy))
    assert boot.read_compiled(copy.path, archive.digest()) == {}
    copy.remember(archive.digest())
    assert start().call("ping")["pid"]
