"""An archive that somebody made by hand: plain files below one folder, or nothing of it."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
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
    ("members", "message"),
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
        ([member("a"), member("a/b")], "no archive that can be read"),
    ],
)
def test_what_could_write_elsewhere_is_refused(
    tmp_path: Path, place: Path, members: list[tarfile.TarInfo], message: str
) -> None:
    with pytest.raises(ArchiveError) as refused:
        unpack(archive(tmp_path / "a", *members), place)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not Path("/tmp/out").exists()


def zipped(path: Path, *members: zipfile.ZipInfo | str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for one in members:
            out.writestr(one, b"xxx")
    return path


def test_what_zip_makes_by_hand_is_unpacked(tmp_path: Path, place: Path) -> None:
    made = zipped(tmp_path / "a.zip", "ml_models/", "ml_models/a.onnx", "b", "c\\d.onnx")
    unpack(made, place)
    assert (place / "ml_models/a.onnx").read_bytes() == b"xxx"
    assert (place / "b").is_file()
    assert (place / "c/d.onnx").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [("../out", "leads out"), ("/tmp/out", "leads out"), ("l", "is a link"), ("a", "twice")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_a_zip_could_write_elsewhere_is_refused(
    tmp_path: Path, place: Path, name: str, message: str
) -> None:
    hostile = zipfile.ZipInfo(name)
    hostile.create_system = 3
    hostile.external_attr = (stat.S_IFLNK if name == "l" else stat.S_IFREG | 0o644) << 16
    with pytest.raises(ArchiveError, match=message):
        unpack(zipped(tmp_path / "a.zip", "a", hostile), place)
    assert not (tmp_path / "out").exists()


def test_a_zip_bomb_is_refused_before_it_is_written(tmp_path: Path, place: Path) -> None:
    made = zipped(tmp_path / "a.zip", "a", "b", "bomb")
    raw = bytearray(made.read_bytes())
    at = 0
    while (at := raw.find(b"PK\x01\x02", at + 1)) > 0:
        raw[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    made.write_bytes(raw)
    with pytest.raises(ArchiveError, match=r"more than .* bytes in all at 'bomb'"):
        unpack(made, place)
    assert not (place / "bomb").exists()


def test_a_zip_that_lies_about_a_size_writes_no_more(tmp_path: Path, place: Path) -> None:
    made = tmp_path / "a.zip"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("bomb", bytes(50_000_000))
    raw = bytearray(made.read_bytes())
    for mark, field in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = raw.find(mark)
        raw[at + field : at + field + 4] = (10).to_bytes(4, "little")
    made.write_bytes(raw)
    with pytest.raises(ArchiveError, match="no archive that can be read: Bad CRC-32"):
        unpack(made, place)
    assert (place / "bomb").stat().st_size <= 10


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_a_mac_puts_beside_each_file_is_left_out(
    tmp_path: Path, place: Path, kind: str
) -> None:
    names = ["._ml_models", "ml_models/._a.onnx", "__MACOSX/ml_models/._a.onnx", ".DS_Store"]
    wanted = "ml_models/a.onnx"
    if kind == "tar":
        made = archive(tmp_path / "a", *(member(name) for name in (*names, wanted)))
    else:
        made = zipped(tmp_path / "a", *names, wanted)
    unpack(made, place)
    assert [path for path in sorted(place.rglob("*")) if path.is_file()] == [place / wanted]


def test_a_tar_that_ends_as_a_zip_does_is_a_tar(tmp_path: Path, place: Path) -> None:
    """A .pt is a zip; and where tar was told to write no padding its end is the archive's."""
    weights = zipped(tmp_path / "net.pt", "archive/data.pkl")
    with tarfile.open(tmp_path / "a", "w") as out:
        out.add(weights, "net.pt")
    raw = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(raw.rstrip(b"\0") + bytes(1024))
    unpack(tmp_path / "a", place)
    assert (place / "net.pt").read_bytes() == weights.read_bytes()


def test_a_byte_that_changed_on_its_way_is_told(tmp_path: Path, place: Path) -> None:
    made = archive(tmp_path / "a", member("a", size=100_000))
    raw = bytearray(made.read_bytes())
    raw[-6] ^= 1  # of the checksum over all of it
    made.write_bytes(raw)
    with pytest.raises(ArchiveError, match="no archive that can be read: CRC check failed"):
        unpack(made, place)


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
    with pytest.raises(ArchiveError, match="no archive that can be read"):
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
