"""Unpack an archive of models that nobody vouches for: plain files below one folder, or nothing.

A release's own bundle is bundle.py's, which knows what has to be in it. This one takes any tar that
was made by hand, in a child process with limits, and refuses what could write or read elsewhere.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from macd import childprocess

LARGEST_BYTES = 8 << 30  # of all files together, or half of what the disk has left
_LARGEST_FILE = 4 << 30
_MOST_MEMBERS = 10_000
_LONGEST_NAME = 240
_CHUNK = 1 << 20


class ArchiveError(Exception):
    """It is no archive to be unpacked; nothing of it is kept."""


def unpack(archive: Path, destination: Path) -> None:
    """Put the files of `archive` into `destination`, an empty directory of ours.

    Raises ArchiveError naming the member that is a link, a device, twice there, or leads elsewhere;
    or when it holds too much, or is no tar.
    """
    question = {"archive": str(archive.resolve()), "destination": str(destination.resolve())}
    limits = childprocess.Limits(file_bytes=_LARGEST_FILE)
    try:
        refused = str(childprocess.ask("macd.release.unpacking", question, limits)["refused"])
    except childprocess.EndedError as error:
        refused = str(error)
    if refused:
        raise ArchiveError(refused)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    destination = Path(question["destination"])
    try:
        with tarfile.open(question["archive"], mode="r|*") as opened:
            _unpack(opened, destination)
    except ArchiveError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": "it takes too much memory to unpack"}
    except Exception as error:  # each kind of damage and compression raises types of its own
        text = "".join(c if c.isprintable() else " " for c in str(error))
        return {"refused": f"no tar archive that can be read: {text[:200]}"}
    return {"refused": ""}


def _unpack(opened: tarfile.TarFile, destination: Path) -> None:
    seen: set[PurePosixPath] = set()
    left = most = min(LARGEST_BYTES, shutil.disk_usage(destination).free // 2)
    for number, member in enumerate(opened):
        if number >= _MOST_MEMBERS:
            raise ArchiveError(f"more than {_MOST_MEMBERS} files")
        name = _safe(member.name)
        if member.isdir():
            continue
        if not member.isreg() or member.sparse is not None:
            raise ArchiveError(f"{str(name)!r} is a link, a device or such, no plain file")
        if name in seen:
            raise ArchiveError(f"{str(name)!r} stands in it twice")
        seen.add(name)
        left -= member.size
        if member.size > _LARGEST_FILE or left < 0:
            raise ArchiveError(f"more than {most:,} bytes in all at {str(name)!r}")
        content = opened.extractfile(member)
        if content is not None:
            _write(content, destination / name)


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
