"""A local copy of a host's signal logs: only what is new travels, only whole lines are kept.

The copy's own size is where to go on, so a pull may be cut or killed anywhere and done again. Each
file is known by inode and fingerprints of its beginning and of where the copy ends: one that was
replaced, or cut and written on, is fetched anew, and the old copy is kept aside and named, never
mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.errors import RefusedError
from macd.host.durable import one_at_a_time, replace_file
from macd.host.rpc.logs import HEAD, NAME
from macd.ssh.failures import RemoteError
from macd.ssh.pending import Pending
from macd.ssh.session import Session

LARGEST = 8 << 30
_INDEX = "index.json"
_LOCK = ".lock"
_PIECE = 1 << 20
_AHEAD = 8
_UNKNOWN = 0  # no file's inode


@dataclass(frozen=True)
class Pulled:
    """A copy as it is now. fetched: bytes that travelled. gone: logs that are no longer there.

    replaced: logs that on the host are not what was fetched before. refused: (name, why) of what
    only looks like a log.
    """

    directory: Path
    fetched: int
    names: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


def pull(session: Session, app: str, directory: Path) -> Pulled:
    """Bring the copy in `directory` up to what the host has.

    Raises:
        RefusedError: the host told names or sizes that no honest one has; the copy is as before.
        ContactLostError: cut; what came is kept, the next pull goes on there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(directory / _LOCK):  # two pulls into one copy take turns
        return _pull(session, app, directory)


def _pull(session: Session, app: str, directory: Path) -> Pulled:
    known = _read_index(directory)
    here = [path for path in directory.iterdir() if NAME.fullmatch(path.name)]
    sizes = {path.name: _whole_size(path) for path in here}
    heads = {name: min(size, HEAD) for name, size in sizes.items()}
    told = session.call("log_files", app=app, heads=heads)
    files = [_checked(entry) for entry in told["files"]]
    index = dict(known)
    replaced = list(_marked(known))
    copied = [one for one in files if sizes.get(one["name"])]
    others = _others(session, app, directory, copied, known, sizes)
    fetched = 0
    for entry in files:
        name, path = entry["name"], directory / entry["name"]
        size = sizes.get(name, 0)
        if name in others:
            # Known before it is done, or a kill in between would let it look like a first copy.
            index[name] = {"inode": _UNKNOWN, "replaced": True}
            _write_index(directory, index)
            _set_aside(path)
            replaced.append(name)
            size = 0
        index[name] = {"inode": entry["inode"], "replaced": name in replaced}
        if index[name] != known.get(name):
            _write_index(directory, index)  # before the first byte: a cut pull knows its file
        if entry["size"] > size or not path.exists():
            fetched += _fetch(session, app, entry, path, size)
    there = {entry["name"] for entry in files}
    return Pulled(
        directory,
        fetched,
        tuple(sorted(there)),
        tuple(sorted(set(replaced) & there)),
        tuple(sorted(set(index) - there)),
        tuple((str(name)[:120], str(why)[:200]) for name, why in told["refused"][:20]),
    )


def _checked(entry: Any) -> dict[str, Any]:
    """A listing's entry that can be relied on. Raises RefusedError."""
    try:
        name, size, inode, head = (entry[key] for key in ("name", "size", "inode", "head"))
        sound = (
            type(name) is str
            and NAME.fullmatch(name) is not None
            and all(type(n) is int and n >= 0 for n in (size, inode, head))
            and head <= min(size, HEAD)
            and size <= LARGEST
            and type(entry["head_sha256"]) is str
        )
    except (KeyError, TypeError):
        sound = False
    if sound:
        return dict(entry)
    raise RefusedError(
        "the host's list of logs can't be true",
        why=f"it names {ascii(entry)[:300]}",
        live="the local copy is as it was",
        hint="look at data/live on that host",
    )


def _others(
    session: Session,
    app: str,
    directory: Path,
    files: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> set[str]:
    """Which of the host's files don't begin with our copy of them; asks once for all of them.

    What has another inode may be a restored file, so all of it is compared; of the rest the end of
    our copy, where a file that was cut and has grown again differs.
    """
    other, asked, ours = set[str](), list[list[Any]](), list[str]()
    for entry in files:
        name, size = entry["name"], sizes[entry["name"]]
        path = directory / name
        if entry["size"] < size or entry["head_sha256"] != sha256_of(path, min(size, HEAD)):
            other.add(name)
            continue
        is_known = entry["inode"] == known.get(name, {}).get("inode")
        start = max(0, size - HEAD) if is_known else 0
        asked.append([name, start, size])
        ours.append(sha256_of(path, size, start))
    told = session.call("log_hashes", app=app, ranges=asked) if asked else []
    if type(told) is not list or len(told) != len(asked):
        raise RefusedError("the host did not answer for every log", live="the copy is as it was")
    other.update(
        one[0] for one, there, here in zip(asked, told, ours, strict=True) if there != here
    )
    return other


def _fetch(session: Session, app: str, entry: Mapping[str, Any], path: Path, at: int) -> int:
    """Append what the host has behind `at`, then cut what is no whole line."""
    coming: deque[tuple[Pending, int]] = deque()
    came = 0
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(at)
        file.seek(at)
        starts = deque(range(at, entry["size"], _PIECE))
        while starts or coming:
            while starts and len(coming) < _AHEAD:
                start = starts.popleft()
                wanted = min(_PIECE, entry["size"] - start)
                asked = {"name": entry["name"], "offset": start, "inode": entry["inode"]}
                coming.append((session.submit("log_read", app=app, limit=wanted, **asked), wanted))
            pending, wanted = coming.popleft()
            data = _data(pending, wanted)
            came += file.write(data)
            if len(data) < wanted:  # cut on the host meanwhile: the next pull finds out
                break
        file.flush()
        os.fsync(file.fileno())
    _cut_to_whole_lines(path)
    return came


def _data(pending: Pending, wanted: int) -> bytes:
    try:
        answer = pending.result()
    except RemoteError as error:
        raise RefusedError(
            "a log changed while it was fetched",
            why=error.what,
            live="what came before is kept",
            hint="run it again",
        ) from error
    data = answer["data"]
    if type(data) is not bytes or len(data) > wanted:
        raise RefusedError("the host sent something else than a piece of a log")
    return data


def _whole_size(path: Path) -> int:
    _cut_to_whole_lines(path)
    return path.stat().st_size


def _cut_to_whole_lines(path: Path) -> None:
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _PIECE)
            found = os.pread(file.fileno(), end - begin, begin).rfind(b"\n")
            end = begin
            if found >= 0:
                end = begin + found + 1
                break
        if end != size:
            file.truncate(end)


def _set_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.was-{number}")).exists():
        number += 1
    path.rename(aside)


def sha256_of(path: Path, size: int, start: int = 0) -> str:
    """SHA-256 of the first `size` bytes, without the first `start` of them."""
    digest = hashlib.sha256()
    size -= start
    with path.open("rb") as file:
        file.seek(start)
        while size > 0 and (block := file.read(min(_PIECE, size))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _marked(known: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [name for name, entry in known.items() if entry.get("replaced")]


def _read_index(directory: Path) -> dict[str, dict[str, Any]]:
    """What is known of the copies; one without an entry is compared whole."""
    try:
        told = json.loads((directory / _INDEX).read_bytes())
        return {
            name: dict(entry)
            for name, entry in told.items()
            if NAME.fullmatch(name) and "inode" in entry
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_index(directory: Path, index: Mapping[str, Any]) -> None:
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    replace_file(directory / _INDEX, text.encode())
