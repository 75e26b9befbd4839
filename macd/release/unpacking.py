"""Unpack an archive of models that nobody vouches for: plain files below one folder, or nothing.

A release's own bundle is bundle.py's, which knows what has to be in it. This one takes any tar or
zip that was made by hand, in a child process with limits, and refuses what could write or read
elsewhere. What a Mac puts beside each file is left out.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from macd import childprocess

LARGEST_BYTES = 8 << 30  # of all files together, or half of what the disk has left
_LARGEST_FILE = 4 << 30
_MOST_MEMBERS = 10_000
_LONGEST_NAME = 240
_MOST_PADDING = 64 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    """size: in bytes, as the archive says; None for what is no plain file."""

    name: str
    size: int | None
    open: Callable[[], IO[bytes] | None]


class ArchiveError(Exception):
    """It is no archive to be unpacked; nothing of it is kept."""


class LinkError(ArchiveError):
    """It holds links, as tar packs them unless told otherwise."""


def unpack(archive: Path, destination: Path) -> None:
    """Put the files of `archive` into `destination`, an empty directory of ours.

    Raises ArchiveError naming the member that is a link, a device, twice there, or leads elsewhere;
    or when it holds too much, or is neither a tar nor a zip.
    """
    question = {"archive": str(archive.resolve()), "destination": str(destination.resolve())}
    limits = childprocess.Limits(file_bytes=_LARGEST_FILE)
    try:
        said = childprocess.ask("macd.release.unpacking", question, limits)
    except childprocess.EndedError as error:
        raise ArchiveError(str(error)) from error
    if refused := str(said["refused"]):
        raise LinkError(refused) if said.get("links") else ArchiveError(refused)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    destination = Path(question["destination"])
    try:
        with Path(question["archive"]).open("rb") as file:
            is_zip = file.read(2) == b"PK"  # a tar may end as a zip does: with a .pt
            file.seek(0)
            _unpack(_of_zip(file) if is_zip else _of_tar(file), destination)
    except ArchiveError as error:
        return {"refused": str(error), "links": isinstance(error, LinkError)}
    except MemoryError:
        return {"refused": "it takes too much memory to unpack"}
    except Exception as error:  # each kind of damage and compression raises types of its own
        text = "".join(c if c.isprintable() else " " for c in str(error))
        return {"refused": f"no archive that can be read: {text[:200]}"}
    return {"refused": ""}


def _of_tar(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:*") as opened:
        for one in opened:
            if not one.isdir():
                plain = one.isreg() and one.sparse is None
                size = one.size if plain else None
                yield _Member(one.name, size, partial(opened.extractfile, one))
        _read_on(opened)


def _read_on(opened: tarfile.TarFile) -> None:
    """To the end of what is packed: only there its checksum is compared."""
    left = _MOST_PADDING
    while opened.fileobj is not None and (chunk := opened.fileobj.read(_CHUNK)):
        left -= len(chunk)
        if left < 0:
            raise ArchiveError("more follows after its end")


def _of_zip(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        for one in opened.infolist():
            if not one.is_dir():
                kind = stat.S_IFMT(one.external_attr >> 16)
                size = one.file_size if kind in (0, stat.S_IFREG) else None
                name = one.filename.replace("\\", "/")  # as Windows packed it once
                yield _Member(name, size, partial(opened.open, one))


def _unpack(members: Iterator[_Member], destination: Path) -> None:
    seen: set[PurePosixPath] = set()
    left = most = min(LARGEST_BYTES, shutil.disk_usage(destination).free // 2)
    for number, member in enumerate(members):
        if number >= _MOST_MEMBERS:
            raise ArchiveError(f"more than {_MOST_MEMBERS} files")
        name = _safe(member.name)
        if member.size is None:
            raise LinkError(f"{str(name)!r} is a link, a device or such, no plain file")
        if name in seen:
            raise ArchiveError(f"{str(name)!r} stands in it twice")
        seen.add(name)
        left -= member.size
        if member.size > _LARGEST_FILE or left < 0:
            raise ArchiveError(f"more than {most:,} bytes in all at {str(name)!r}")
        content = None if _is_of_a_mac(name) else member.open()
        if content is not None:
            _write(content, destination / name)


def _is_of_a_mac(name: PurePosixPath) -> bool:
    return "__MACOSX" in name.parts or name.name.startswith("._") or name.name == ".DS_Store"


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"{name[:_LONGEST_NAME]!r} leads out of the folder")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ArchiveError(f"{name[:60]!r} is no name for a file of models")
    return path


def _write(content: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        shutil.copyfileobj(content, out, _CHUNK)


if __name__ == "__main__":
    childprocess.main(answer)
