"""An archive that somebody made by hand: plain files below one folder, or nothing of it."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from macd.release import unpacking
from macd.release.unpacking import ArchiveError, unpack


def archive(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for member in members:
            out.addfile(member, io.BytesIO(b"x" * member.size) if member.isreg() else None)
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 3
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    made.size = size if kind == tarfile.REGTYPE else 0
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = tmp_path / "place"
    made.mkdir()
    return made


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_what_tar_makes_by_hand_is_unpacked(tmp_path: Path, place: Path, mode: str) -> None:
    folder = member("./ml_models", tarfile.DIRTYPE)
    made = archive(tmp_path / "a", folder, member("./ml_models/a.onnx"), member("b"), mode=mode)
    unpack(made, place)
    assert (place / "ml_models/a.onnx").read_bytes() == b"xxx"
    assert (place / "b").is_file()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([member("../out")], "'../out' leads out of the folder"),
        ([member("a/../../out")], "leads out of the folder"),
        ([member("/tmp/out")], "'/tmp/out' leads out of the folder"),
        ([member("l", tarfile.SYMTYPE, "/etc"), member("l/passwd")], "'l' is a link"),
        ([member("a"), member("l", tarfile.LNKTYPE, "a")], "'l' is a link"),
        ([member("p", tarfile.FIFOTYPE)], "'p' is a link, a device or such"),
        ([member("d", tarfile.CHRTYPE)], "'d' is a link, a device or such"),
        ([member("a"), member("./a")], "'a' stands in it twice"),
        ([member("a\x1b[2J")], "is no name for a file of models"),
        ([member("a"), member("a/b")], "no tar archive that can be read"),
    ],
)
def test_what_could_write_elsewhere_is_refused(
    tmp_path: Path, place: Path, members: list[tarfile.TarInfo], told: str
) -> None:
    with pytest.raises(ArchiveError) as refused:
        unpack(archive(tmp_path / "a", *members), place)
    assert told in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/out").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"no archive",
        lambda raw: b"",
        lambda raw: gzip.compress(b"no archive" * 100),
        lambda raw: b"PK\x03\x04" + raw,
    ],
)
def test_what_is_no_archive_is_refused(
    tmp_path: Path, place: Path, spoil: Callable[[bytes], bytes]
) -> None:
    made = archive(tmp_path / "a", member("a", size=100_000))
    made.write_bytes(spoil(made.read_bytes()))
    with pytest.raises(ArchiveError, match="no tar archive that can be read"):
        unpack(made, place)


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, place: Path) -> None:
    head = member("bomb", size=unpacking.LARGEST_BYTES + 1)
    with gzip.open(tmp_path / "a", "wb") as out:
        out.write(head.tobuf() + b"\0" * 10_000)
    with pytest.raises(ArchiveError, match="more than"):
        unpack(tmp_path / "a", place)
    assert list(place.iterdir()) == []


def test_a_header_that_fills_the_memory_is_refused(tmp_path: Path, place: Path) -> None:
    head = member("pax", tarfile.XHDTYPE)
    head.size = 64 << 30
    with gzip.open(tmp_path / "a", "wb") as out:
        out.write(head.tobuf() + b"\0" * 10_000)
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "a", place)


def test_no_more_files_than_a_folder_of_models_has(tmp_path: Path, place: Path) -> None:
    many = [member(f"f{n}", size=0) for n in range(10_001)]
    with pytest.raises(ArchiveError, match="more than 10000 files"):
        unpack(archive(tmp_path / "a", *many), place)
