"""Lines as they are written on a host: where they end here, then every further one, once.

A follower's place is a file and an offset behind a whole line, so it survives a lost link.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter

from macd.gate.pull import Pulled
from macd.host.judge.continuity import Continuity
from macd.host.judge.parse import LONGEST, Line, clean, parse
from macd.host.judge.reading import raw_lines
from macd.ssh.failures import RemoteError
from macd.ssh.session import Session

_PIECE = 256 << 10
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

    What tells no time goes behind the line before it.
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
    told = [f"{name} is not read as a log: {why}" for name, why in copy.refused]
    told += [f"{name} was fetched before and is not on the host any more" for name in copy.gone]
    told += [
        f"{name} on the host is not the file that was fetched before" for name in copy.replaced
    ]
    order = Continuity()
    for at, line in enumerate(map(parse, newest_lines(copy))):
        if isinstance(line, Line):
            order.number(line, True, "", at)
    for one in order.breaks[:_MOST_NAMED]:
        if one["kind"] == "gap":
            told.append(f"gap: seq {one['after'] + 1} to {one['seq'] - 1} are missing")
        else:
            told.append(f"repeat: seq {one['seq']} comes after {one['after']}")
    if order.broken > _MOST_NAMED:
        told.append(f"and {order.broken - _MOST_NAMED} more gaps or repeats")
    return told


def end_of(copy: Pulled) -> Place:
    """Where the copy ends."""
    if not copy.names:
        return Place()
    return Place(copy.names[-1], (copy.directory / copy.names[-1]).stat().st_size)


def more(session: Session, app: str, place: Place) -> tuple[list[bytes], Place]:
    """Whole lines behind `place`, after a short wait if there are none; and the new place.

    Goes on with the next file once the one at hand has no more, or was replaced or cut.
    """
    if place.name and (found := _behind(session, app, place, _WAIT_S)):
        return found
    listed = [one["name"] for one in session.call("log_files", app=app)["files"]]
    later = [name for name in sorted(listed) if name > place.name]
    if not later:
        return [], place
    # What was written after the look above, and before the later file began, must not be skipped;
    # now that there is a later one, nothing more is written here.
    if place.name and (found := _behind(session, app, place, 0.0)):
        return found
    return [], Place(later[0])


def _behind(
    session: Session, app: str, place: Place, wait: float
) -> tuple[list[bytes], Place] | None:
    """Whole lines of the file at hand and the place behind them; None when there are none."""
    try:
        told = session.call(
            "log_read",
            app=app,
            name=place.name,
            offset=place.offset,
            limit=_PIECE,
            inode=place.inode,
            wait=wait,
        )
    except RemoteError as error:
        if error.kind == "FileNotFoundError":
            return None
        if error.kind != "rotated":
            raise
        return [], Place(place.name)
    if told["size"] < place.offset:
        return [], Place(place.name)
    whole, newline, rest = told["data"].rpartition(b"\n")
    if newline:
        offset = place.offset + len(whole) + 1
        return whole.split(b"\n"), Place(place.name, offset, told["inode"])
    if len(rest) >= min(_PIECE, LONGEST):  # longer than any line: pass it by
        return [rest], Place(place.name, place.offset + len(rest), told["inode"])
    return None


def shown(raw: bytes) -> str:
    """A line for a terminal: whatever stands in it moves no cursor."""
    text = raw[: 4 * _PIECE].decode("utf-8", "replace")
    return "".join(clean(text[at : at + 300]) for at in range(0, len(text), 300))
