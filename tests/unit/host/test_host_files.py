"""Reading and writing files: bounded, never hanging."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from macd.host.failure import HostError
from macd.host.rpc import files, frames


def test_pieces_add_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)))
    got = b""
    while True:
        piece = files.read(str(path), offset=len(got), limit=100)
        got += piece["data"]
        if piece["eof"]:
            break
    assert got == bytes(range(256))
    assert piece["size"] == 256


def test_a_negative_offset_counts_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    piece = files.read(str(path), offset=-3)
    assert (piece["data"], piece["offset"]) == (b"789", 7)
    assert files.read(str(path), offset=-30)["data"] == b"0123456789"


def test_one_answer_always_fits_a_message(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(frames.MAX_PAYLOAD * 2)
    piece = files.read(str(path), limit=1 << 40)
    assert not piece["eof"]
    assert frames.encode(b"t" * 16, {"result": piece}, compress=False)


def test_files_without_a_size_are_read_to_their_end() -> None:
    piece = files.read("/proc/self/status")
    assert piece["data"].startswith(b"Name:")
    assert piece["eof"]


def test_what_would_hang_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(HostError, match="not a regular file"):
            files.read(str(path))


def test_write_makes_the_directory_of_a_file_and_replaces_none(tmp_path: Path) -> None:
    target = tmp_path / "a/b"
    files.write(str(target), b"x", mode=0o600)
    assert target.read_bytes() == b"x"
    with pytest.raises(IsADirectoryError):
        files.write(str(tmp_path / "a"), b"x")
