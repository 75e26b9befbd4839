"""Pack a release into one reproducible archive, and unpack one that nobody vouches for yet.

Unpacking trusts nothing: only regular files the manifest names, each of its declared size and hash.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from macd.errors import RefusedError
from macd.host.store import manifest as manifests
from macd.host.store.manifest import File, Manifest, ManifestError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
_SIGNATURE_LIMIT = 64 * 1024
_CHUNK = 1 << 20
# As `pack` begins: no name, comment or time, where something unsigned could travel along.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


class BundleError(RefusedError):
    """The archive is not what its manifest says; nothing of it was kept (exit 6)."""

    def __init__(self, why: str) -> None:
        super().__init__(
            "the bundle was refused",
            why=why,
            live="nothing was unpacked or changed",
            hint="make or fetch it again: invoke release",
        )


def bundle_name(manifest: Manifest) -> str:
    """`macd_models_YYYYMMDD_HHMMSS.tar.gz`, from the moment the release was made (UTC)."""
    return f"macd_models_{manifest.created:%Y%m%d_%H%M%S}.tar.gz"


def pack(release: Path, manifest: Manifest, out: IO[bytes]) -> None:
    """Write the bundle of a release directory: the same bytes for the same release, every time.

    Order, owner, mode and times are fixed; the members lie under the bundle's own name.
    """
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=6) as zipped:
        _write_tar(release, manifest, zipped)


def _write_tar(release: Path, manifest: Manifest, out: IO[bytes] | gzip.GzipFile) -> None:
    top = bundle_name(manifest).removesuffix(".tar.gz")
    when = int(manifest.created.timestamp())
    names = [MANIFEST, SIGNATURE, *(f.path for f in manifest.files)]
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="strict"
    ) as archive:
        for name in names:
            info = tarfile.TarInfo(f"{top}/{name}")
            with (release / name).open("rb") as content:
                info.size = os.fstat(content.fileno()).st_size
                info.mtime, info.mode = when, 0o644
                archive.addfile(info, content)


def read_head(archive: IO[bytes]) -> tuple[bytes, bytes]:
    """The manifest's and the signature's bytes, which stand first. Parses neither.

    Raises:
        BundleError: they are not there, or larger than any real one.
    """
    members = _members(archive, limit=manifests.MAX_BYTES + _SIGNATURE_LIMIT + _CHUNK)
    head = []
    for wanted, limit in ((MANIFEST, manifests.MAX_BYTES), (SIGNATURE, _SIGNATURE_LIMIT)):
        name, size, content = next(members, ("nothing", 0, io.BytesIO()))
        if name != wanted or size > limit:
            raise BundleError(f"{wanted} expected, {name!r} of {size} bytes found")
        head.append(content.read())
    return head[0], head[1]


def unpack(archive: IO[bytes], manifest: Manifest, destination: Path) -> None:
    """Write the files of `manifest` below `destination`, an empty directory of ours.

    Raises:
        BundleError: a member that is not a declared regular file of that size and hash, one twice,
            one missing, or more bytes than declared. Nothing of it is left.
    """
    there = destination.exists()
    try:
        _unpack(archive, manifest, destination)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)
        if there:
            destination.mkdir()
        raise


def _unpack(archive: IO[bytes], manifest: Manifest, destination: Path) -> None:
    declared = {f.path: f for f in manifest.files}
    seen: set[str] = set()
    overhead = (len(declared) + 8) * 4096
    limit = manifest.total_bytes + manifests.MAX_BYTES + _SIGNATURE_LIMIT + overhead + _CHUNK
    for name, size, content in _members(archive, limit=limit):
        if name in seen:
            raise BundleError(f"{name!r} stands in it twice")
        seen.add(name)
        if name in (MANIFEST, SIGNATURE):
            continue
        if name not in declared:
            raise BundleError(f"{name!r} is not in the manifest")
        _write(declared[name], size, content, destination)
    missing = sorted(set(declared) - seen)
    if missing:
        raise BundleError(f"{missing[0]!r} is missing ({len(missing)} in all)")


def check_nothing_else(archive: IO[bytes], release: Path, manifest: Manifest) -> None:
    """Check that the archive holds what `pack` makes of `release`, and not one byte more.

    What no signature covers is looked at too: owners, times, what stands between and behind the
    members. Only how it was compressed is free, because that depends on the version of zlib.

    Raises:
        BundleError: it holds something else, or something beside it.
    """
    with tempfile.TemporaryFile() as expected:
        _write_tar(release, manifest, expected)
        expected.seek(0)
        for chunk in _unzipped_alone(archive):
            if chunk != expected.read(len(chunk)):
                raise BundleError("it holds more than its files: bytes that no release has there")
        if expected.read(1):
            raise BundleError("it ends before a bundle does")


def _unzipped_alone(archive: IO[bytes]) -> Iterator[bytes]:
    """The content of one gzip member with a plain header, and nothing behind it."""
    archive.seek(0)
    if archive.read(len(_GZIP_HEADER)) != _GZIP_HEADER:
        raise BundleError("its gzip header is not the one of a bundle")
    archive.seek(0)
    unzip = zlib.decompressobj(wbits=31)
    try:
        while not unzip.eof:
            if not (fed := unzip.unconsumed_tail or archive.read(_CHUNK)):
                raise BundleError("it is cut off")
            yield unzip.decompress(fed, _CHUNK)
    except zlib.error as error:
        raise BundleError(f"not a readable bundle: {error}") from error
    if unzip.unused_data or archive.read(1):
        raise BundleError("something follows behind its end")


def _write(file: File, size: int, content: IO[bytes], destination: Path) -> None:
    if size != file.size:
        raise BundleError(f"{file.path!r} has {size} bytes, {file.size} were declared")
    target = destination / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("xb") as out:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise BundleError(f"{file.path!r} has another SHA-256 than declared")


def _members(archive: IO[bytes], *, limit: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name below the top directory, size, content) of regular files; refuse all else."""
    archive.seek(0)
    try:
        with (
            gzip.GzipFile(fileobj=archive, mode="rb") as unzipped,
            tarfile.open(fileobj=_Bounded(unzipped, limit), mode="r|", encoding="utf-8") as opened,
        ):
            for info in opened:
                yield _plain_name(info), info.size, _content(opened, info)
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, OverflowError) as error:
        raise BundleError(f"not a readable bundle: {error}") from error


def _content(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(info)
    if content is None:
        raise BundleError(f"{info.name!r} has no content")
    return content


def _plain_name(info: tarfile.TarInfo) -> str:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.sparse is not None:
        raise BundleError(f"{info.name!r} is not a regular file")
    top, _, name = info.name.partition("/")
    try:
        manifests.check_path(top)
        return manifests.check_path(name)
    except ManifestError as error:
        raise BundleError(str(error)) from error


class _Bounded(io.RawIOBase):
    """A reader that stops at a limit, so a bomb ends before it fills memory or disk."""

    def __init__(self, source: gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self._source = source
        self._left = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(_CHUNK if size < 0 else min(size, _CHUNK))
        self._left -= len(chunk)
        if self._left < 0:
            raise BundleError("more bytes than its manifest declares")
        return chunk
