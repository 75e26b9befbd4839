"""A host's signal logs: a local copy of them, and every line that is written from there on.

Only what is new travels, and only whole lines are stored. The copy's own size is where to go on, so
a pull may be cut or killed anywhere and done again. Each file is identified by inode and by
fingerprints of its beginning and of where the copy ends: one that was replaced, or cut and written
on, is fetched anew, and the old copy is set aside and named, never mixed. A follower's place is a
file and an offset after a whole line, so it survives a lost link.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from macd.errors import RefusedError
from macd.host.durable import one_at_a_time, replace_file
from macd.host.judge.parse import LONGEST, Line, clean, parse
from macd.host.judge.reading import raw_lines
from macd.host.judge.tallies import Continuity
from macd.host.rpc.logs import HEAD, NAME
from macd.ssh.failures import RemoteError
from macd.ssh.session import Pending, Session, in_flight

LARGEST = 8 << 30
_INDEX = "index.json"
_LOCK = ".lock"
_PIECE = 1 << 20
_AHEAD = 7
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
        RefusedError: the host lists impossible names or sizes; the copy is as before.
        ContactLostError: cut; what came is stored, the next pull continues there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(directory / _LOCK):  # two pulls into one copy take turns
        return _pull(session, app, directory)


def _pull(session: Session, app: str, directory: Path) -> Pulled:
    before = _read_index(directory)
    here = [path for path in directory.iterdir() if NAME.fullmatch(path.name)]
    sizes = {path.name: _whole_size(path) for path in here}
    heads = {name: min(size, HEAD) for name, size in sizes.items()}
    listing = session.call("log_files", app=app, heads=heads)
    files = [_checked(entry) for entry in listing["files"]]
    index = dict(before)
    replaced = list(_marked(before))
    copied = [entry for entry in files if sizes.get(entry["name"])]
    others = _others(session, app, directory, copied, before, sizes)
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
        if index[name] != before.get(name):
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
        tuple((str(name)[:120], str(why)[:200]) for name, why in listing["refused"][:20]),
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
    index: Mapping[str, Mapping[str, Any]],
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
        is_known = entry["inode"] == index.get(name, {}).get("inode")
        start = max(0, size - HEAD) if is_known else 0
        asked.append([name, start, size])
        ours.append(sha256_of(path, size, start))
    hashes = session.call("log_hashes", app=app, ranges=asked) if asked else []
    if type(hashes) is not list or len(hashes) != len(asked):
        raise RefusedError("the host did not answer for every log", live="the copy is as it was")
    other.update(
        entry[0] for entry, there, here in zip(asked, hashes, ours, strict=True) if there != here
    )
    return other


def _fetch(session: Session, app: str, entry: Mapping[str, Any], path: Path, at: int) -> int:
    """Append what the host has behind `at`, then cut what is no whole line."""

    def request(start: int) -> tuple[Pending, int]:
        wanted = min(_PIECE, entry["size"] - start)
        asked = {"name": entry["name"], "offset": start, "inode": entry["inode"]}
        return session.submit("log_read", app=app, limit=wanted, **asked), wanted

    came = 0
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(at)
        file.seek(at)
        requests = map(request, range(at, entry["size"], _PIECE))
        for pending, wanted in in_flight(requests, _AHEAD):
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
            line_end = os.pread(file.fileno(), end - begin, begin).rfind(b"\n")
            end = begin
            if line_end >= 0:
                end = begin + line_end + 1
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


def _marked(index: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return [name for name, entry in index.items() if entry.get("replaced")]


def _read_index(directory: Path) -> dict[str, dict[str, Any]]:
    """The stored index of the copies; a copy without an entry is compared whole."""
    try:
        document = json.loads((directory / _INDEX).read_bytes())
        return {
            name: dict(entry)
            for name, entry in document.items()
            if NAME.fullmatch(name) and "inode" in entry
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_index(directory: Path, index: Mapping[str, Any]) -> None:
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    replace_file(directory / _INDEX, text.encode())


_FOLLOWED = 256 << 10
_WAIT_S = 2.0
_TAIL = 4 << 20
_MOST_NAMED = 5


@dataclass(frozen=True)
class Place:
    """Behind a whole line. name: "" before the first file; inode: 0 for any."""

    name: str = ""
    offset: int = 0
    inode: int = 0


def newest_lines(copy: Pulled) -> Iterator[bytes]:
    """The lines at the end of a copy, oldest first: a few megabytes of the last two files."""
    for name in copy.names[-2:]:
        path = copy.directory / name
        size = path.stat().st_size
        yield from raw_lines(path, max(0, size - _TAIL), size)


def merged(lines: Mapping[str, Iterable[bytes]]) -> list[tuple[str, bytes]]:
    """The lines of several hosts by the times in them, each with its host; a host's stay in order.

    A line without a time goes after the line before it.
    """
    timed = (_timed(host, raws) for host, raws in lines.items())
    return [(host, raw) for _, host, raw in heapq.merge(*timed, key=itemgetter(0))]


def _timed(host: str, lines: Iterable[bytes]) -> Iterator[tuple[int, str, bytes]]:
    latest = 0
    for raw in lines:
        line = parse(raw)
        latest = max(latest, line.time) if isinstance(line, Line) else latest
        yield latest, host, raw


def notes(copy: Pulled) -> list[str]:
    """What is odd about a copy, in words: logs that are gone or others, lines that are missing.

    Gaps and repeats of seq are looked for in what `newest_lines` gives.
    """
    remarks = [f"{name} is not read as a log: {why}" for name, why in copy.refused]
    remarks += [f"{name} was fetched before and is not on the host any more" for name in copy.gone]
    remarks += [
        f"{name} on the host is not the file that was fetched before" for name in copy.replaced
    ]
    order = Continuity()
    for at, line in enumerate(map(parse, newest_lines(copy))):
        if isinstance(line, Line):
            order.check_seq(line, True, "", at)
    for place in order.breaks[:_MOST_NAMED]:
        if place["kind"] == "gap":
            remarks.append(f"gap: seq {place['after'] + 1} to {place['seq'] - 1} are missing")
        else:
            remarks.append(f"repeat: seq {place['seq']} comes after {place['after']}")
    if order.broken > _MOST_NAMED:
        remarks.append(f"and {order.broken - _MOST_NAMED} more gaps or repeats")
    return remarks


def end_of(copy: Pulled) -> Place:
    """Where the copy ends."""
    if not copy.names:
        return Place()
    return Place(copy.names[-1], (copy.directory / copy.names[-1]).stat().st_size)


def more(session: Session, app: str, place: Place) -> tuple[list[bytes], Place]:
    """Whole lines behind `place`, after a short wait if there are none; and the new place.

    Goes on with the next file once the one at hand has no more, or was replaced or cut.
    """
    if place.name and (lines := _behind(session, app, place, _WAIT_S)):
        return lines
    listed = [entry["name"] for entry in session.call("log_files", app=app)["files"]]
    later = [name for name in sorted(listed) if name > place.name]
    if not later:
        return [], place
    # What was written after the look above, and before the later file began, must not be skipped;
    # now that there is a later one, nothing more is written here.
    if place.name and (lines := _behind(session, app, place, 0.0)):
        return lines
    return [], Place(later[0])


def _behind(
    session: Session, app: str, place: Place, wait: float
) -> tuple[list[bytes], Place] | None:
    """Whole lines of the file at hand and the place behind them; None when there are none."""
    try:
        answer = session.call(
            "log_read",
            app=app,
            name=place.name,
            offset=place.offset,
            limit=_FOLLOWED,
            inode=place.inode,
            wait=wait,
        )
    except RemoteError as error:
        if error.kind == "FileNotFoundError":
            return None
        if error.kind != "rotated":
            raise
        return [], Place(place.name)
    if answer["size"] < place.offset:
        return [], Place(place.name)
    whole, newline, rest = answer["data"].rpartition(b"\n")
    if newline:
        offset = place.offset + len(whole) + 1
        return whole.split(b"\n"), Place(place.name, offset, answer["inode"])
    if len(rest) >= min(_FOLLOWED, LONGEST):  # longer than any line: pass it by
        return [rest], Place(place.name, place.offset + len(rest), answer["inode"])
    return None


def shown(raw: bytes) -> str:
    """A line for a terminal: whatever stands in it moves no cursor."""
    text = raw[: 4 * _FOLLOWED].decode("utf-8", "replace")
    return "".join(clean(text[at : at + 300]) for at in range(0, len(text), 300))
