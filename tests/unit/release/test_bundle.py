"""Bundles come out the same every time, and no hostile one writes or keeps anything."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.store.manifest import File, Manifest, ManifestError, check_path, render
from macd.release.bundle import BundleError, bundle_name, pack, read_head, unpack
from tests.support.signed_files import CONTENT, Made, make_release

TOP = "macd_models_20260301_120005"
MODEL = "data/ml_models/lgbm_1h_5h.txt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("bundle"))


def _pack(made: Made) -> bytes:
    out = io.BytesIO()
    pack(made.directory, made.manifest, out)
    return out.getvalue()


def test_the_same_release_gives_the_same_bytes(made: Made) -> None:
    assert bundle_name(made.manifest) == f"{TOP}.tar.gz"
    first = _pack(made)
    for path in made.directory.rglob("*"):
        path.chmod(0o700)
        path.touch()
    assert _pack(made) == first


def test_round_trip(made: Made, tmp_path: Path) -> None:
    packed = io.BytesIO(_pack(made))
    assert read_head(packed) == (made.raw, made.signature)
    unpack(packed, made.manifest, tmp_path / "out")
    contents = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert contents == CONTENT


Edit = Callable[[tarfile.TarFile, dict[str, bytes]], None]


def _add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def _special(kind: bytes, linkname: str = "") -> Edit:
    def edit(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
        del files[MODEL]
        _add(archive, f"{TOP}/{MODEL}", type=kind, linkname=linkname)

    return edit


def _named(name: str) -> Edit:
    return lambda archive, files: _add(archive, name, b"owned")


def _content(data: bytes) -> Edit:
    def edit(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
        files[MODEL] = data

    return edit


def _twice(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    _add(archive, f"{TOP}/{MODEL}", CONTENT[MODEL])


def _missing(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    del files[MODEL]


def _pax_path(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    _add(archive, f"{TOP}/{MODEL}", b"x", pax_headers={"path": f"{TOP}/../../evil"})


def _pax_size(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    _add(archive, f"{TOP}/evil", b"x", pax_headers={"size": "99999999999"})


def _sparse(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "e"}
    _add(archive, f"{TOP}/e", b"1\n0\n1\n" + b"\0" * 600, pax_headers=headers)


HOSTILE: dict[str, Edit] = {
    "dot-dot": _named(f"{TOP}/../evil"),
    "dot-dot deep": _named(f"{TOP}/data/../../../evil"),
    "dot-dot top": _named("../evil"),
    "absolute": _named("/tmp/macd-evil"),
    "absolute double": _named("//tmp/macd-evil"),
    "no top": _named("evil"),
    "empty name": _named(f"{TOP}/"),
    "dot": _named(f"{TOP}/."),
    "hidden": _named(f"{TOP}/.bashrc"),
    "backslash": _named(f"{TOP}\\..\\evil"),
    "newline": _named(f"{TOP}/a\nb"),
    "escape": _named(f"{TOP}/\x1b[31m"),
    "option": _named(f"{TOP}/--checkpoint-action=exec"),
    "undeclared": _named(f"{TOP}/data/extra.txt"),
    "undeclared pickle": _named(f"{TOP}/data/ml_models/x.pkl"),
    "unicode dots": _named(f"{TOP}/․․/evil"),
    "symlink": _special(tarfile.SYMTYPE, "/etc/passwd"),
    "symlink inside": _special(tarfile.SYMTYPE, "stacking_meta_1h.json"),
    "hard link": _special(tarfile.LNKTYPE, "/etc/shadow"),
    "hard link inside": _special(tarfile.LNKTYPE, f"{TOP}/app/macd.whl"),
    "character device": _special(tarfile.CHRTYPE),
    "block device": _special(tarfile.BLKTYPE),
    "fifo": _special(tarfile.FIFOTYPE),
    "directory in its place": _special(tarfile.DIRTYPE),
    "contiguous": _special(tarfile.CONTTYPE),
    "unknown type": _special(b"Z"),
    "twice": _twice,
    "missing": _missing,
    "longer": _content(CONTENT[MODEL] + b"x"),
    "shorter": _content(CONTENT[MODEL][:-1]),
    "other content": _content(b"X" + CONTENT[MODEL][1:]),
    "pax path": _pax_path,
    "pax size": _pax_size,
    "pax sparse": _sparse,
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused(made: Made, tmp_path: Path, edit: Edit) -> None:
    raw = io.BytesIO()
    files = {"manifest.json": made.raw, "manifest.json.sig": made.signature, **CONTENT}
    with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        edit(archive, files)
        for path, data in files.items():
            _add(archive, f"{TOP}/{path}", data)
    refused(raw, made, tmp_path)
    assert not Path("/tmp/macd-evil").exists()


@pytest.mark.parametrize("path", CONTENT)
def test_a_file_that_is_gone_or_has_anothers_content_is_refused(
    made: Made, tmp_path: Path, path: str
) -> None:
    whole = {"manifest.json": made.raw, "manifest.json.sig": made.signature, **CONTENT}
    gone = {name: data for name, data in whole.items() if name != path}
    swapped = [
        {**whole, path: whole[other], other: whole[path]} for other in gone if other in CONTENT
    ]
    for number, files in enumerate((gone, *swapped)):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
            for name, data in files.items():
                _add(archive, f"{TOP}/{name}", data)
        place = tmp_path / str(number)
        place.mkdir()
        refused(raw, made, place)


def refused(archive: io.BytesIO, made: Made, place: Path) -> None:
    """With nothing written: not in the directory it was for, nor beside or above it."""
    out = place / "beside" / "out"
    out.mkdir(parents=True)
    before = set(place.rglob("*"))
    with pytest.raises(BundleError):
        unpack(archive, made.manifest, out)
    assert set(place.rglob("*")) == before
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "junk", [b"", b"\x1f\x8b", b"not a tar", gzip.compress(b"x" * 4096, mtime=0)], ids=range(4)
)
def test_junk_is_refused(made: Made, tmp_path: Path, junk: bytes) -> None:
    refused(io.BytesIO(junk), made, tmp_path)


def test_a_bomb_ends_at_the_declared_size(made: Made, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb") as zipped:
        info = tarfile.TarInfo(f"{TOP}/{MODEL}")
        info.size = 1 << 30
        zipped.write(info.tobuf())
        for _ in range(64):
            zipped.write(b"\0" * (1 << 20))
    refused(raw, made, tmp_path)


def test_a_bomb_in_a_header_ends_at_the_declared_size(made: Made, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb") as zipped:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, 1 << 30
        zipped.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            zipped.write(b" " * (1 << 20))
    refused(raw, made, tmp_path)


def test_every_cut_of_a_bundle_is_refused(made: Made, tmp_path: Path) -> None:
    whole = _pack(made)
    for size in range(0, len(whole) - 12, 37):
        with pytest.raises(BundleError):
            unpack(io.BytesIO(whole[:size]), made.manifest, tmp_path / f"cut{size}")
    assert not list(tmp_path.iterdir())


DAY = timedelta(days=1)
_PARTS = st.text(
    st.one_of(
        st.sampled_from("abzAZ09 ._-+()[]{}&'!#%,;~^=@é中文説明한Ω…‥．"),
        st.characters(codec="utf-8"),
    ),
    min_size=1,
    max_size=90,
).filter(lambda part: "/" not in part and "\0" not in part)


@given(st.lists(st.lists(_PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_whatever_name_is_accepted_comes_back_as_it_was(names: list[str]) -> None:
    accepted = {}
    for number, name in enumerate(names):
        with suppress(ManifestError):
            accepted[check_path(f"source/{name}")] = str(number).encode()
    files = [
        File(path, len(data), hashlib.sha256(data).hexdigest())
        for path, data in sorted(accepted.items())
    ]
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    manifest = Manifest("a", "prod", 1, moment, moment + DAY, tuple(files), "f" * 64)
    try:
        raw = render(manifest)
    except ManifestError:  # empty, or two names that a disk may take for one
        return
    with TemporaryDirectory() as top:
        there = Path(top, "made")
        for path, data in accepted.items():
            (there / path).parent.mkdir(parents=True, exist_ok=True)
            (there / path).write_bytes(data)
        (there / "manifest.json").write_bytes(raw)
        (there / "manifest.json.sig").write_bytes(b"signed")
        packed = io.BytesIO()
        pack(there, manifest, packed)
        back = Path(top, "back")
        unpack(packed, manifest, back)
        contents = {
            os.fsdecode(os.path.relpath(path, back)): path.read_bytes()
            for path in back.rglob("*")
            if path.is_file()
        }
        assert contents == accepted
        assert list(Path(top).iterdir()) in ([there, back], [back, there])
