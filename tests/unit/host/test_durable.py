"""A file is replaced whole or not at all: on kills, on a full disk, on a failing fsync."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from macd.host import durable

# Tells each completed replacement, so that a kill lands somewhere inside a later one.
WRITER = """
import sys
import tempfile
from macd.host import durable
path, size = sys.argv[1], 1 << 20
for turn in range(1000000):
    durable.replace_file(path, bytes([65 + turn % 2]) * size)
    print(turn, flush=True)
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def temporaries(directory: Path) -> list[str]:
    return [name for name in names(directory) if name.endswith(".macd-tmp")]


def test_content_mode_and_no_leftover(tmp_path: Path) -> None:
    target = tmp_path / "a file"
    target.write_bytes(b"old")
    durable.replace_file(str(target), b"new", mode=0o640)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a file"]


def test_a_reader_never_sees_anything_between(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = {target.read_bytes() for _ in range(500)}
        writer.kill()
    assert seen <= {b"A" * (1 << 20), b"B" * (1 << 20)}


# Where the kill lands: at the n-th such call, which is in the second replacement; and whether the
# new content is there by then. Of the fsyncs each replacement makes two: file and directory.
KILLS = {"write:2": False, "fchmod:2": False, "fsync:3": False, "rename:2": False, "fsync:4": True}


@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_leaves_the_old_content_or_the_new(tmp_path: Path, kill: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    target = tmp_path / "file"
    call, number = kill.split(":")
    # The signal comes on entering the call, which the kernel then doesn't carry out.
    strace = ["strace", "-f", "-qq", "-o", "/dev/null"]
    traced = [*strace, "-e", f"inject={call}:signal=SIGKILL:when={number}", sys.executable, "-B"]
    done = subprocess.run(
        [
            *traced,
            "-c",
            WRITER.replace("1000000", "2").replace("print(turn, flush=True)", "pass"),
            str(target),
        ],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    renamed = KILLS[kill]
    assert target.read_bytes() == (b"B" if renamed else b"A") * (1 << 20)
    assert len(temporaries(tmp_path)) == (0 if renamed else 1)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "fchmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_system_call_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            durable.replace_file(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_write_left_is_swept_only_when_it_is_old(tmp_path: Path) -> None:
    stale = tmp_path / ".file.0a1b2c.macd-tmp"
    fresh = tmp_path / ".file.3d4e5f.macd-tmp"
    other = tmp_path / ".other.0a1b2c.macd-tmp"
    for path in (stale, fresh, other):
        path.write_bytes(b"half")
    os.utime(stale, (1, 1))
    os.utime(other, (1, 1))
    durable.replace_file(str(tmp_path / "file"), b"new")
    assert temporaries(tmp_path) == [fresh.name, other.name]


def test_a_symbolic_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"untouched")
    (tmp_path / "link").symlink_to("target")
    durable.replace_file(str(tmp_path / "link"), b"new")
    assert (tmp_path / "target").read_bytes() == b"untouched"
    assert not (tmp_path / "link").is_symlink()


def test_directories_are_made_with_all_their_parents(tmp_path: Path) -> None:
    durable.make_directories(str(tmp_path / "a/b/c"))
    durable.make_directories(str(tmp_path / "a/b/c"))
    assert (tmp_path / "a/b/c").is_dir()


@pytest.mark.parametrize("name", ["file", "a/b/file"])
def test_a_path_from_here_is_written_with_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    durable.replace_file(Path(name), b"new", parents=True)
    assert (tmp_path / name).read_bytes() == b"new"
    assert len(names((tmp_path / name).parent)) == 1


def test_a_file_where_a_directory_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        durable.make_directories(str(tmp_path / "a/b"))


def test_home_is_the_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert durable.expand("~/work") == f"{tmp_path}/work"
    assert durable.expand("/opt/$HOME/*") == "/opt/$HOME/*"  # nothing else means anything


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (2 << 20) + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(k % 251 for k in range(size))
    (tmp_path / "file").write_bytes(content)
    assert durable.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


HOLDER = """
import sys, time
from macd.host import durable
with durable.one_at_a_time(sys.argv[1]):
    print("held", flush=True)
    time.sleep(1000)
"""


def is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.mark.parametrize("kind", ["directory", "file", "new file"])
def test_a_lock_is_held_to_its_end_or_its_holders(tmp_path: Path, kind: str) -> None:
    lock = tmp_path if kind == "directory" else tmp_path / "lock"
    if kind == "file":
        lock.write_text("kept")
    with durable.one_at_a_time(lock):
        assert not is_free(lock)
    assert is_free(lock)
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert not is_free(lock)
        holder.kill()
    with durable.one_at_a_time(lock):
        with pytest.raises(KeyError), durable.one_at_a_time(lock, taken=KeyError("taken")):
            raise AssertionError("it is held")
        assert not is_free(lock)
    with pytest.raises(BlockingIOError), durable.one_at_a_time(lock, taken=KeyError("taken")):
        raise BlockingIOError  # what fails inside is no lock that is taken
    assert kind != "file" or lock.read_text() == "kept"


def test_a_link_is_a_copy_on_another_file_system(tmp_path: Path) -> None:
    source, beside = tmp_path / "blob", tmp_path / "linked"
    source.write_bytes(b"x" * 3_000_000)
    source.chmod(0o640)
    durable.link_or_copy(str(source), str(beside))
    assert beside.samefile(source)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        there = Path(elsewhere, "copy")
        if Path(elsewhere).stat().st_dev == source.stat().st_dev:
            pytest.skip("/dev/shm is no file system of its own here")
        durable.link_or_copy(str(source), str(there))
        assert there.read_bytes() == source.read_bytes()
        assert there.stat().st_mode & 0o777 == 0o640
        with pytest.raises(FileExistsError):  # what lies there is never replaced
            durable.link_or_copy(str(source), str(there))
    with pytest.raises(FileNotFoundError):
        durable.link_or_copy(str(tmp_path / "none"), str(tmp_path / "other"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_stays_whose_it_was_where_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("A=1")
    os.chown(path, 4242, 4343)
    durable.replace_file(path, b"A=2", mode=0o640, keep_owner=True)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4242, 4343, 0o640)
    durable.replace_file(path, b"A=3")
    assert path.stat().st_uid == 0
    durable.replace_file(tmp_path / "new", b"A=1", keep_owner=True)  # nothing there before
