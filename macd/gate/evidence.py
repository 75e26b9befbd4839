"""What a report rests on: which bytes of which logs, whether they are whole, and still the same.

Whether a report still allows stacking on its host is asked by `blockers` of
macd/host/flag/evidence.py, here before the host is asked and there again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from macd.gate.logs import Pulled, sha256_of
from macd.host.judge.analyse import Analysis
from macd.host.judge.gate import too_old
from macd.host.judge.parse import step_ms
from macd.host.judge.reading import Source
from macd.ssh.session import Session

_DAY = timedelta(days=1)
_MOST_NAMED = 5


@dataclass(frozen=True)
class LogRange:
    """Bytes [start, end) of a log, and their SHA-256."""

    name: str
    start: int
    end: int
    sha256: str

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "from": self.start, "to": self.end, "sha256": self.sha256}


def choose(pulled: Pulled, start: datetime) -> list[Source]:
    """The logs that can hold lines since `start`, and the one before, which proves the beginning.

    A file is named after the day its lines were written, or the one before.
    """
    first = f"trades_{start - _DAY:%Y%m%d}.jsonl"
    later = [name for name in pulled.names if name >= first]
    before = [name for name in pulled.names if name < first][-1:]
    paths = [pulled.directory / name for name in (*before, *later)]
    return [Source(path, path.stat().st_size) for path in paths if path.exists()]


def ranges(sources: Sequence[Source]) -> list[LogRange]:
    """The bytes that are analysed, hashed here."""
    return [LogRange(s.name, 0, s.size, sha256_of(s.path, s.size)) for s in sources]


def same_on_host(session: Session, app: str, logs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between a report's log ranges and the host's own bytes, in words."""
    asked = [[entry["name"], entry["from"], entry["to"]] for entry in logs]
    hashes = session.call("log_hashes", app=app, ranges=asked)
    if type(hashes) is not list or len(hashes) != len(asked):
        return ["the host did not answer for every log"]
    return [
        f"{entry['name']} is not on the host any more, or shorter"
        if there is None
        else f"{entry['name']} on the host has other content than was analysed"
        for entry, there in zip(logs, hashes, strict=True)
        if there != entry["sha256"]
    ]


def problems(
    analysis: Analysis,
    *,
    now: datetime,
    head_seq: int | None = None,
    replaced: Sequence[str] = (),
    gone: Sequence[str] = (),
) -> list[str]:
    """Why the lines can't be relied on to be all there is, in words; empty when they can.

    Args:
        now: the host's time.
        head_seq: the seq the service said it had reached before the logs were pulled.
        replaced: analysed logs that are not the files that were fetched before.
        gone: logs that were fetched before and are not on the host any more, of any day.
    """
    began = f"trades_{datetime.fromtimestamp(analysis.window.start / 1000, UTC):%Y%m%d}.jsonl"
    lost = [f"{name} is not on the host any more" for name in gone if name >= began][:_MOST_NAMED]
    first, newest = analysis.first, analysis.newest
    if newest is None:
        none = (
            f"not one of {analysis.lines} lines is evidence"
            if analysis.lines
            else "there are no lines"
        )
        return [*lost, none]
    doubts = [*lost, *_gaps(analysis)]
    if first is not None and (first.seq or 1) > 1 and first.time > analysis.window.start:
        doubts.append(f"the window begins before the first line, whose seq is {first.seq}")
    doubts += _stale(analysis, now)
    if analysis.window.release and not analysis.window.takes(newest):
        of = f"is of release {newest.release}" if newest.release else "names no release"
        doubts.append(f"the newest line {of}")
    for at in analysis.whole.intruders[:1]:
        release = at["release"] or "no release"
        doubts.append(
            f"{at['file']} line {at['line']} of {release} stands between lines of the live"
        )
    if analysis.future:
        doubts.append(f"{analysis.future} lines were written in the future: a clock is wrong")
    if head_seq is not None and (analysis.whole.seq or 0) < head_seq:
        doubts.append(
            f"lines up to seq {head_seq} were written, the logs end with {analysis.whole.seq}"
        )
    doubts += [f"{name} on the host is not the file that was fetched before" for name in replaced]
    return doubts + _holes(analysis)


def _stale(analysis: Analysis, now: datetime) -> list[str]:
    newest = analysis.newest_signal
    if newest is None:
        return ["no bar of this release lies in the window"]
    step = step_ms(newest.tf)
    if not step and not analysis.window.strict:
        return []  # earlier versions did not write the timeframe, so nothing says when one was due
    age = now - datetime.fromtimestamp(newest.time / 1000, UTC)
    if not too_old(round(age.total_seconds() * 1000), step):
        return []
    return [f"stale: the newest bar was logged {_hours(age)} ago"]


def _holes(analysis: Analysis) -> list[str]:
    holes = [
        f"{at['symbol']} {at['tf']}: bars missing between {_bar(at['after'])} "
        f"and {_bar(at['before'])}"
        for at in analysis.whole.holes[:_MOST_NAMED]
    ]
    if analysis.whole.incomplete > _MOST_NAMED:
        holes.append(f"and bars missing at {analysis.whole.incomplete - _MOST_NAMED} more places")
    return holes


def _gaps(analysis: Analysis) -> list[str]:
    gaps = []
    for at in analysis.whole.breaks[:_MOST_NAMED]:
        where = f"{at['file']} line {at['line']}"
        if at["kind"] == "gap":
            gaps.append(f"gap: seq {at['after'] + 1} to {at['seq'] - 1} are missing ({where})")
        else:
            gaps.append(f"repeat: seq {at['seq']} comes after {at['after']} ({where})")
    if analysis.whole.broken > _MOST_NAMED:
        gaps.append(f"and {analysis.whole.broken - _MOST_NAMED} more gaps or repeats")
    return gaps


def _bar(epoch_ms: int) -> str:
    return f"{datetime.fromtimestamp(epoch_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _hours(age: timedelta) -> str:
    minutes = age.total_seconds() / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
