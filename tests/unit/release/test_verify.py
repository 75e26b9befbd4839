"""A changed release is told in three lists; a signature that does not count is refused, exit 6."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.errors import RefusedError, UsageError
from macd.host.store.manifest import release_id
from macd.release import verify
from macd.release.bundle import BundleError, bundle_name, pack
from macd.release.signing import sign
from macd.release.verify import Signers
from tests.support.signed_files import IDENTITY, Made, make_key, make_release


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A release in a directory of its id, its bundle beside the files."""
    one = make_release(tmp_path)
    place = one.directory.rename(tmp_path / release_id(one.raw))
    with (place / bundle_name(one.manifest)).open("wb") as out:
        pack(place, one.manifest, out)
    return replace(one, directory=place)


@pytest.fixture
def signers(made: Made) -> Signers:
    return Signers(made.allowed_signers, IDENTITY)


def test_an_untouched_release_has_no_differences(made: Made, signers: Signers) -> None:
    report = verify.directory(made.directory, signers)
    assert report.ok
    assert report.files == 3


def test_extra_missing_and_changed_are_told_apart(made: Made, signers: Signers) -> None:
    top = made.directory
    (top / "app/more.py").write_text("import os")
    (top / "data/link").symlink_to("/etc/passwd")
    (top / "data/ml_models/stacking_meta_1h.json").unlink()
    whl = top / "app/macd.whl"
    whl.write_bytes(whl.read_bytes()[:-1] + b"!")
    report = verify.directory(top, signers)
    assert not report.ok
    assert report.extra == ("app/more.py", "data/link")
    assert report.missing == ("data/ml_models/stacking_meta_1h.json",)
    assert report.changed == ("app/macd.whl",)


def test_the_right_content_behind_a_link_is_changed(made: Made, signers: Signers) -> None:
    whl = made.directory / "app/macd.whl"
    shutil.move(whl, made.directory.parent / "elsewhere")
    whl.symlink_to(made.directory.parent / "elsewhere")
    assert verify.directory(made.directory, signers).changed == ("app/macd.whl",)


@pytest.mark.parametrize("damage", ["gone", "cut", "another's", "another's head"])
def test_the_bundle_beside_is_checked_too(made: Made, signers: Signers, damage: str) -> None:
    archive = made.directory / bundle_name(made.manifest)
    if damage == "gone":
        archive.unlink()
    elif damage == "cut":
        archive.write_bytes(archive.read_bytes()[:-40])
    elif damage == "another's head":
        changed = made.raw.replace(b'"serial":7', b'"serial":6')
        other = Path(shutil.copytree(made.directory, made.directory.parent / "other"))
        (other / "manifest.json").write_bytes(changed)
        with archive.open("wb") as out:
            pack(other, made.manifest, out)
    else:
        other = made.directory.parent / "other"
        other.mkdir()
        foreign = make_release(other, {"app/macd.whl": b"another"})
        with archive.open("wb") as out:
            pack(foreign.directory, foreign.manifest, out)
    report = verify.directory(made.directory, signers)
    names = report.missing if damage == "gone" else report.changed
    assert names == (archive.name,)


def zipped(content: bytes, **about: Any) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(mode="wb", fileobj=out, **{"filename": "", "mtime": 0, **about}) as archive:
        archive.write(content)
    return out.getvalue()


def with_member_info(tar: bytes, **about: Any) -> bytes:
    """The same members, each with something in its header that `pack` does not put there."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as old,
        tarfile.open(
            fileobj=out, mode="w", format=tarfile.PAX_FORMAT if "pax_headers" in about else None
        ) as new,
    ):
        for info in old:
            for name, value in about.items():
                setattr(info, name, value)
            new.addfile(info, old.extractfile(info))
    return out.getvalue()


SMUGGLED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "bytes behind": lambda raw, tar: raw + b"#!/bin/sh",
    "zeros behind": lambda raw, tar: raw + bytes(512),
    "a second gzip member": lambda raw, tar: raw + zipped(b"#!/bin/sh"),
    "an empty second member": lambda raw, tar: raw + zipped(b""),
    "a name in the gzip header": lambda raw, tar: zipped(tar, filename="payload"),
    "a time in the gzip header": lambda raw, tar: zipped(tar, mtime=7),
    "bytes behind the tar": lambda raw, tar: zipped(tar + b"#!/bin/sh"),
    "bytes in the tar's padding": lambda raw, tar: zipped(tar[:-9] + b"#!/bin/sh"),
    "cut padding": lambda raw, tar: zipped(tar[:-512]),
    "an owner": lambda raw, tar: zipped(with_member_info(tar, uname="mallory")),
    "a mode": lambda raw, tar: zipped(with_member_info(tar, mode=0o4755)),
    "a time": lambda raw, tar: zipped(with_member_info(tar, mtime=0)),
    "a comment": lambda raw, tar: zipped(with_member_info(tar, pax_headers={"comment": "payload"})),
}


@pytest.mark.parametrize("how", SMUGGLED)
def test_nothing_travels_along_in_a_bundle(made: Made, signers: Signers, how: str) -> None:
    archive = made.directory / bundle_name(made.manifest)
    raw = archive.read_bytes()
    archive.write_bytes(SMUGGLED[how](raw, gzip.decompress(raw)))
    assert archive.read_bytes() != raw
    assert verify.directory(made.directory, signers).changed == (archive.name,)
    with pytest.raises(BundleError):
        verify.bundle(archive, signers)


def test_another_compressor_makes_the_same_bundle(made: Made, signers: Signers) -> None:
    archive = made.directory / bundle_name(made.manifest)
    archive.write_bytes(zipped(gzip.decompress(archive.read_bytes()), compresslevel=3))
    assert verify.directory(made.directory, signers).ok
    assert verify.bundle(archive, signers).ok


def test_another_signature_in_the_bundle_is_a_change(made: Made, signers: Signers) -> None:
    archive = made.directory / bundle_name(made.manifest)
    beside = made.directory / "manifest.json.sig"
    beside.write_bytes(made.signature + b"\n")
    with archive.open("wb") as out:
        pack(made.directory, made.manifest, out)
    beside.write_bytes(made.signature)
    assert verify.directory(made.directory, signers).changed == (archive.name,)


@pytest.mark.parametrize(
    "damage",
    ["manifest", "signature", "no signature", "other key", "identity", "namespace", "name"],
)
def test_a_signature_that_does_not_count_is_refused(
    made: Made, signers: Signers, damage: str, tmp_path: Path
) -> None:
    manifest, signature = (made.directory / n for n in ("manifest.json", "manifest.json.sig"))
    place = made.directory
    if damage == "manifest":
        manifest.write_bytes(made.raw.replace(b'"serial":7', b'"serial":8'))
    elif damage == "signature":
        signature.write_bytes(made.signature[:-60] + b"AAAA" + made.signature[-56:])
    elif damage == "no signature":
        signature.unlink()
    elif damage == "other key":
        signature.write_bytes(sign(made.raw, key=make_key(tmp_path, "other")))
    elif damage == "identity":
        signers = replace(signers, identity="somebody@else")
    elif damage == "namespace":
        signature.write_bytes(sign(made.raw, key=made.key, namespace="gate-report@macd"))
    else:
        place = place.rename(place.with_name("20260301T120005Z-00000000"))
    with pytest.raises(RefusedError) as caught:
        verify.directory(place, signers)
    assert caught.value.exit_code == 6


def test_a_release_whose_key_was_revoked_is_called_revoked(
    made: Made, signers: Signers, tmp_path: Path
) -> None:
    listed = shutil.copy(made.key.with_suffix(".pub"), tmp_path / "revoked")
    signers = replace(signers, revoked=Path(listed))
    archive = made.directory / bundle_name(made.manifest)
    for look in (lambda: verify.directory(made.directory, signers),
                 lambda: verify.bundle(archive, signers)):  # fmt: skip
        with pytest.raises(RefusedError, match="is revoked") as caught:
            look()
        assert f"the key that signed it is revoked: {listed} names it" in caught.value.why


def test_a_bundle_file_is_verified_wherever_it_lies(made: Made, signers: Signers) -> None:
    archive = shutil.copy(made.directory / bundle_name(made.manifest), made.directory.parent)
    assert verify.bundle(Path(archive), signers).id == made.directory.name


def test_a_bundle_with_another_file_in_it_is_refused(made: Made, signers: Signers) -> None:
    (made.directory / "app/macd.whl").write_bytes(b"wheel? " * 43)
    archive = made.directory.parent / "bad.tar.gz"
    with archive.open("wb") as out:
        pack(made.directory, made.manifest, out)
    with pytest.raises(BundleError, match=r"app/macd\.whl"):
        verify.bundle(archive, signers)
    with pytest.raises(RefusedError):
        verify.bundle(archive, replace(signers, identity="somebody@else"))
    with pytest.raises(UsageError):
        verify.bundle(archive.with_name("nothing.tar.gz"), signers)
