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
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from macd.errors import RefusedError
from macd.host import logname
from macd.host.durable import one_at_a_time, replace_file
from macd.host.judge import own_parse
from macd.host.judge.own_parse import Entry
from macd.host.judge.parse import LONGEST, SIGNAL, Line, clean, parse
from macd.host.judge.reading import Source, raw_lines
from macd.host.judge.tallies import Continuity
from macd.host.own import Signals
from macd.host.rpc.logs import HEAD, is_log
from macd.inventory import Host, Inventory
from macd.ssh.failures import RemoteError
from macd.ssh.session import Pending, Session, in_flight

LARGEST = 8 << 30
_OWN = "own"  # the copies of an application of the team's own lie below
_INDEX = "index.json"
_MOVING = ".moving"
_ASIDE = re.compile(r"\.(was-[0-9]+|moving)\Z")
_BEGINNING = 32  # bytes that tell logs apart
_LOCK = ".lock"
_PIECE = 1 << 20
_AHEAD = 7
_UNKNOWN = 0  # no file's inode


@dataclass(frozen=True)
class Pulled:
    """A copy as it is now. fetched: bytes that travelled. gone: logs that are no longer there.

    replaced: logs that on the host are not what was fetched before. refused: (name, why) of what
    only looks like a log. names: oldest first; of an application of the team's own paths below
    its directory, by when they were last written (written: by name, epoch seconds there), and
    replaced_at says when a replaced one was found.
    """

    directory: Path
    fetched: int
    names: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    written: Mapping[str, float] = field(default_factory=dict)
    replaced_at: Mapping[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> list[Source]:
        """The logs that are here, in the order of their names."""
        paths = [(self.directory / name, name) for name in self.names]
        return [Source(path, path.stat().st_size, name) for path, name in paths if path.exists()]


def logs_of(inventory: Inventory, host: Host) -> Path:
    """Where the copy of a host's logs lies."""
    return inventory.state_dir / "logs" / host.name


def pull(session: Session, app: str, directory: Path, *, own: bool = False) -> Pulled:
    """Bring the copy in `directory` up to what the host has.

    own: of an application of the team's own; the host knows where its logs are.

    Raises:
        RefusedError: the host lists impossible names or sizes; the copy is as before.
        ContactLostError: cut; what came is stored, the next pull continues there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(directory / _LOCK):  # two pulls into one copy take turns
        if not own:
            return _pull(session, app, directory, "")
        pattern = session.call("log_files", app=app).get("pattern")
        if type(pattern) is not str or not pattern:
            raise RefusedError(
                "the host does not know where the application's logs are",
                why="nothing of it is live there, or it was deployed without app.signals",
                live="the local copy is as it was",
                hint="invoke deploy brings the inventory's app.signals there",
            )
        (directory / _OWN).mkdir(exist_ok=True)
        return _pull(session, app, directory / _OWN, pattern)


def _pull(session: Session, app: str, directory: Path, pattern: str) -> Pulled:
    before = _read_index(directory, pattern)
    sizes = {name: _whole_size(directory / name) for name in _copies(directory, pattern)}
    listing, files = _listed(session, app, sizes, pattern)
    if pattern and (moves := _rotated(session, app, directory, files, sizes)):
        sizes = _move(directory, moves, sizes)
        marks = {new: before.get(old, {}).get("replaced", False) for old, new in moves.items()}
        before = {name: entry for name, entry in before.items() if name not in {*moves, *marks}}
        before |= {name: {"inode": _UNKNOWN, "replaced": mark} for name, mark in marks.items()}
        listing, files = _listed(session, app, sizes, pattern)
    index = dict(before)
    mark = float(listing["now"]) if pattern else True
    replaced = {name: entry["replaced"] for name, entry in before.items() if entry.get("replaced")}
    copied = [entry for entry in files if sizes.get(entry["name"])]
    others = _others(session, app, directory, copied, before, sizes)
    fetched = 0
    for entry in files:
        name, path = entry["name"], directory / entry["name"]
        size = sizes.get(name, 0)
        if name in others:
            # Known before it is done, or a kill in between would let it look like a first copy.
            index[name] = {"inode": _UNKNOWN, "replaced": mark}
            _write_index(directory, index)
            _set_aside(path)
            replaced[name] = mark
            size = 0
        index[name] = {"inode": entry["inode"], "replaced": replaced.get(name, False)}
        if index[name] != before.get(name):
            _write_index(directory, index)  # before the first byte: a cut pull knows its file
        if entry["size"] > size or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fetched += _fetch(session, app, entry, path, size)
    there = {entry["name"] for entry in files}
    written = {entry["name"]: float(entry["mtime"]) for entry in files if pattern}
    return Pulled(
        directory,
        fetched,
        tuple(sorted(there, key=lambda name: (written.get(name, 0.0), name))),
        tuple(sorted(set(replaced) & there)),
        tuple(sorted(set(index) - there)),
        tuple((str(name)[:120], str(why)[:200]) for name, why in listing["refused"][:20]),
        written,
        {name: float(when) for name, when in replaced.items()} if pattern else {},
    )


def _listed(
    session: Session, app: str, sizes: Mapping[str, int], pattern: str
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """The host's logs, each with a fingerprint of as many bytes as the copy has (HEAD at most)."""
    heads = {name: min(size, HEAD) for name, size in sizes.items()}
    listing = session.call("log_files", app=app, heads=heads)
    return listing, [_checked(entry, pattern) for entry in listing["files"]]


def _rotated(
    session: Session,
    app: str,
    directory: Path,
    files: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
) -> dict[str, str]:
    """Which copies are another file's on the host now, as a rotation leaves them: old name, new.

    By their beginning: it names times, so no two logs begin the same.
    """
    begins = {n: sha256_of(directory / n, min(size, HEAD)) for n, size in sizes.items()}
    still = {
        entry["name"]
        for entry in files
        if sizes.get(entry["name"], _BEGINNING) <= entry["size"]
        and begins.get(entry["name"]) == entry["head_sha256"]
    }
    lost = [name for name, size in sizes.items() if name not in still and size >= _BEGINNING]
    pairs = [
        (old, entry["name"])
        for old in lost
        for entry in files
        if entry["name"] not in still and entry["size"] >= sizes[old]
    ]
    asked = [[new, 0, min(sizes[old], HEAD)] for old, new in pairs]
    hashes = session.call("log_hashes", app=app, ranges=asked) if asked else []
    moves: dict[str, str] = {}
    for (old, new), there in zip(pairs, hashes, strict=True):
        if there == begins[old] and old not in moves and new not in moves.values():
            moves[old] = new
    return moves


def _move(directory: Path, moves: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Give copies the names that their files have; a kill in between has them fetched again."""
    for old in moves:
        (directory / old).rename(directory / f"{old}{_MOVING}")
    for new in moves.values():
        if (directory / new).exists():
            _set_aside(directory / new)
    for old, new in moves.items():
        (directory / new).parent.mkdir(parents=True, exist_ok=True)
        (directory / f"{old}{_MOVING}").rename(directory / new)
    kept = {name: size for name, size in sizes.items() if name not in {*moves, *moves.values()}}
    return kept | {new: sizes[old] for old, new in moves.items()}


def _copies(directory: Path, pattern: str) -> list[str]:
    """The names of the logs that are here; none of those that were set aside."""
    names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    return [name for name in names if is_log(name, pattern) and not _ASIDE.search(name)]


def _checked(entry: Any, pattern: str) -> dict[str, Any]:
    """A listing's entry that can be relied on. Raises RefusedError."""
    try:
        name, size, inode, head = (entry[key] for key in ("name", "size", "inode", "head"))
        sound = (
            type(name) is str
            and is_log(name, pattern)
            and type(entry["mtime"]) in (int, float)
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
        hint="look at the logs on that host",
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


def _read_index(directory: Path, pattern: str) -> dict[str, dict[str, Any]]:
    """The stored index of the copies; a copy without an entry is compared whole."""
    try:
        document = json.loads((directory / _INDEX).read_bytes())
        return {
            name: dict(entry)
            for name, entry in document.items()
            if is_log(name, pattern) and "inode" in entry
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write_index(directory: Path, index: Mapping[str, Any]) -> None:
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    replace_file(directory / _INDEX, text.encode())


_FOLLOWED = 256 << 10
_MOST_FILES = 5  # whose ends are shown, of an application of the team's own
_LOOKED_BACK, _MOST_MESSAGES = 50, 2000
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
    """The lines at the end of a copy, oldest first: a few megabytes of each of the last two days'
    files.
    """
    for names in _last_days(copy):
        for _, raw in merged({name: _end(copy.directory / name) for name in names}):
            yield raw


def _last_days(copy: Pulled) -> list[list[str]]:
    """The logs of the last two days: of instances there are several of a day."""
    return [list(names) for _, names in groupby(copy.names, logname.day_of)][-2:]


def newest_own(copy: Pulled, signals: Signals) -> list[bytes]:
    """The same of an application of the team's own, whose files may be written side by side."""
    lines = [raw for name in copy.names[-_MOST_FILES:] for raw in _end(copy.directory / name)]
    timed = list(_timed("", lines, own_time(signals)))
    return [raw for _, _, raw in sorted(timed, key=itemgetter(0))]


def _end(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    return raw_lines(path, max(0, size - _TAIL), size)


def own_time(signals: Signals) -> Callable[[bytes], int]:
    """When a line of an application of the team's own was written; 0 where it does not say."""

    def time(raw: bytes) -> int:
        entry = own_parse.read(raw, signals)
        return entry.time if isinstance(entry, Entry) else 0

    return time


def built_in_time(raw: bytes) -> int:
    line = parse(raw)
    return line.time if isinstance(line, Line) else 0


def merged(
    lines: Mapping[str, Iterable[bytes]], time: Callable[[bytes], int] = built_in_time
) -> list[tuple[str, bytes]]:
    """The lines of several hosts by the times in them, each with its host; a host's stay in order.

    A line without a time goes after the line before it.
    """
    timed = (_timed(host, raws, time) for host, raws in lines.items())
    return [(host, raw) for _, host, raw in heapq.merge(*timed, key=itemgetter(0))]


def _timed(
    host: str, lines: Iterable[bytes], time: Callable[[bytes], int]
) -> Iterator[tuple[int, str, bytes]]:
    latest = 0
    for raw in lines:
        latest = max(latest, time(raw))
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
    if copy.written:
        return remarks  # its lines have no numbers
    order = Continuity()
    for name in (name for names in _last_days(copy) for name in names):
        for at, line in enumerate(map(parse, _end(copy.directory / name))):
            if isinstance(line, Line):
                order.check_seq(line, True, name, at)
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


class OwnTail:
    """What comes into logs that are written side by side: any of them, also new ones.

    Those of an application of the team's own, and of the built-in one's instances.
    """

    def __init__(self, copy: Pulled) -> None:
        self._places = {
            name: Place(name, (copy.directory / name).stat().st_size) for name in copy.names
        }

    def more(self, session: Session, app: str) -> list[bytes]:
        """Whole lines that came since; none where nothing did, for the caller to wait."""
        came: list[bytes] = []
        listing = session.call("log_files", app=app)
        pattern = str(listing.get("pattern"))
        files = [entry for entry in listing["files"] if is_log(str(entry["name"]), pattern)]
        before = dict(self._places)
        for entry in files:
            name, size = str(entry["name"]), entry["size"]
            place = self._place(entry, before)
            self._places[name] = place
            if size != place.offset:
                lines, self._places[name] = _behind(session, app, place, 0.0) or ([], place)
                came += lines
        return came

    def _place(self, entry: Mapping[str, Any], before: Mapping[str, Place]) -> Place:
        """Where one is in a file: also in one that a rotation gave another name."""
        name, inode = str(entry["name"]), int(entry["inode"])
        known = before.get(name)
        if known is not None and known.inode in (_UNKNOWN, inode) and known.offset <= entry["size"]:
            return Place(name, known.offset, inode)
        moved = [place for place in before.values() if place.inode == inode]
        return Place(name, moved[0].offset if moved and not known else 0, inode)


@dataclass(frozen=True)
class Message:
    """A line of a unit's journal. time: epoch seconds, None where it is not known."""

    unit: str
    time: float | None
    text: str

    @property
    def shown(self) -> str:
        moment = "" if self.time is None else f"{datetime.fromtimestamp(self.time, UTC):%F %TZ} "
        return f"{moment}{self.unit.removesuffix('.service')}: {self.text}"


class JournalTail:
    """The journals of an application's units, from the newest lines on."""

    def __init__(self, units: Sequence[str], scope: str) -> None:
        self._units, self._scope = list(units), scope
        self._cursors: dict[str, str] = {}
        self._seen: dict[str, list[str]] = {}

    def newest(self, session: Session, lines: int) -> list[Message]:
        """The last `lines` of all units together, by time; the others count as seen."""
        came = self._ask(session, max(lines, _LOOKED_BACK))
        return came[len(came) - min(lines, len(came)) :]

    def more(self, session: Session) -> list[Message]:
        """What came since."""
        return self._ask(session, _MOST_MESSAGES)

    def _ask(self, session: Session, lines: int) -> list[Message]:
        asked = {"units": self._units, "scope": self._scope, "lines": lines}
        answer = session.call("unit_log", **asked, after=self._cursors)
        came: list[Message] = []
        for unit in self._units:
            entries = [(at, str(text), str(cursor)) for at, text, cursor in answer.get(unit, [])]
            cursor = entries[-1][2] if entries else ""
            if cursor:
                self._cursors[unit] = cursor
            elif unit not in self._cursors:  # a journal without cursors: the lab's
                entries = _behind_seen(self._seen.get(unit, []), entries)
                self._seen[unit] = [*self._seen.get(unit, []), *(e[1] for e in entries)][-200:]
            came += [Message(unit, at, text) for at, text, _ in entries]
        return sorted(came, key=lambda message: message.time or 0.0)


def _behind_seen(
    seen: Sequence[str], entries: list[tuple[float | None, str, str]]
) -> list[tuple[float | None, str, str]]:
    """The entries after those that were seen: all but these, else after where they last end so."""
    texts = [text for _, text, _ in entries]
    if texts[: len(seen)] == list(seen):
        return entries[len(seen) :]
    for at in range(len(texts), 0, -1):
        most = min(at, len(seen))
        if most and texts[at - most : at] == list(seen[-most:]):
            return entries[at:]
    return entries


def own_shown(raw: bytes, signals: Signals) -> str:
    """A line of an application of the team's own, readable: time, level, bar and mapped fields."""
    entry = own_parse.read(raw, signals)
    if not isinstance(entry, Entry):
        return shown(raw)
    said = [f"{datetime.fromtimestamp(entry.time / 1000, UTC):%Y-%m-%d %H:%M:%SZ}", entry.level]
    if entry.kind != SIGNAL:
        return " ".join(filter(None, [*said, entry.note or shown(raw)]))
    said.append(entry.symbol)
    if entry.bar is not None:
        said.append(f"bar {datetime.fromtimestamp(entry.bar / 1000, UTC):%m-%d %H:%M}")
    hidden = ("time", "bar_time", "symbol", "error", "level")
    said += [f"{n}={_value(v)}" for n, v in entry.values.items() if n not in hidden]
    return " ".join(filter(None, [*said, f"error: {entry.error}" if entry.error else ""]))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(value if isinstance(value, str) else json.dumps(value, default=str))


def shown(raw: bytes) -> str:
    """A line for a terminal: whatever stands in it moves no cursor."""
    text = raw[: 4 * _FOLLOWED].decode("utf-8", "replace")
    return "".join(clean(text[at : at + 300]) for at in range(0, len(text), 300))
