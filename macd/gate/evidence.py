"""What a report rests on: which bytes of which logs, whether they are whole, and still the same.

Whether a report still allows stacking on its host is asked by `blockers` of
macd/host/flag/evidence.py, here before the host is asked and there again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from macd.deploy.state import HostState
from macd.gate.logs import Pulled, sha256_of
from macd.host import logname
from macd.host.judge.analyse import Analysis
from macd.host.judge.gate import too_old
from macd.host.judge.own import OwnAnalysis
from macd.host.judge.parse import step_ms
from macd.host.judge.reading import Source, before
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
    """The logs that can hold lines since `start`, and the one before, which proves the beginning;
    of instances that of each.

    A file is named after the day its lines were written, or the one before.
    """
    first = logname.name_of(f"{start - _DAY:%Y%m%d}")
    later = [name for name in pulled.names if name >= first]
    before = logname.newest_of_each(name for name in pulled.names if name < first)
    paths = [pulled.directory / name for name in (*before, *later)]
    return [Source(path, path.stat().st_size) for path in paths if path.exists()]


def earlier(pulled: Pulled, chosen: Sequence[Source], release: str | None) -> list[Source]:
    """The logs before those, for the skill of the release: it is judged since its first bar.

    Left out are those that are not what was fetched before.
    """
    if release is None:
        return []
    paths = [pulled.directory / name for name in pulled.names if name not in pulled.replaced]
    there = [Source(path, path.stat().st_size) for path in paths if path.exists()]
    return before(there, chosen, release)


def manifest_sha256(live: HostState) -> str:
    """Of what is live: as it says itself; of an application of the team's own, as was committed."""
    said = live.health.get("manifest_sha256")
    if said or not live.details.get("own"):
        return str(said or "")
    entries = [entry for entry in live.history if entry["release"] == live.live]
    return str(entries[-1].get("manifest_sha256", "")) if entries else ""


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
    analysis: Analysis | OwnAnalysis,
    *,
    now: datetime,
    heads: Mapping[str, int] = MappingProxyType({}),
    replaced: Sequence[str] = (),
    gone: Sequence[str] = (),
) -> list[str]:
    """Why the lines can't be relied on to be all there is, in words; empty when they can.

    Args:
        now: the host's time.
        heads: the seq the service said it had reached before the logs were pulled; of instances
            by symbol, else of "".
        replaced: analysed logs that are not the files that were fetched before.
        gone: logs that were fetched before and are not on the host any more, of any day.
    """
    begins = datetime.fromtimestamp(analysis.window.start / 1000, UTC)
    began = logname.name_of(f"{begins:%Y%m%d}")
    lost = [f"{name} is not on the host any more" for name in gone if name >= began][:_MOST_NAMED]
    whole, newest = analysis.whole, analysis.newest
    if newest is None:
        none = (
            f"not one of {analysis.lines} lines is evidence"
            if analysis.lines
            else "there are no lines"
        )
        return [*lost, none]
    doubts = [*lost, *_gaps(analysis)]
    cut = [seq for seq, at in whole.firsts.values() if seq > 1 and at > analysis.window.start]
    doubts += [f"the window begins before the first line, whose seq is {seq}" for seq in cut[:1]]
    doubts += _stale(analysis, now)
    if analysis.window.release and not analysis.window.takes(newest):
        of = f"is of release {newest.release}" if newest.release else "names no release"
        doubts.append(f"the newest line {of}")
    for at in analysis.whole.intruders[:1]:
        release = at["release"] or "no release"
        doubts.append(
            f"{at['file']} line {at['line']} of {release} stands between lines of the live"
            f"{_until_it_left(analysis, now)}"
        )
    if analysis.future:
        doubts.append(f"{analysis.future} lines were written in the future: a clock is wrong")
    for writer, head in heads.items():
        if (last := whole.seqs.get(writer, 0)) < head:
            of = f" of {writer}" if writer else ""
            doubts.append(f"lines{of} up to seq {head} were written, the logs end with {last}")
    doubts += [f"{name} on the host is not the file that was fetched before" for name in replaced]
    return doubts + _holes(analysis)


def problems_of_part(part: Analysis, now: datetime) -> list[str]:
    """The same of one symbol's lines: whether its own bars come, and none is missing."""
    return [*_stale(part, now), *_holes(part)]


def _until_it_left(analysis: Analysis | OwnAnalysis, now: datetime) -> str:
    """From when on the window holds no line of another release, as after a rollback."""
    start, last = analysis.window.start, analysis.whole.intruders[-1]["time"]
    if start <= 0:
        return ""
    left = last + round(now.timestamp() * 1000) - start
    return f"; no PASS before it has left the window, at {_bar(left)}Z or later"


def _stale(analysis: Analysis | OwnAnalysis, now: datetime) -> list[str]:
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


def _holes(analysis: Analysis | OwnAnalysis) -> list[str]:
    holes = [
        f"{at['symbol']} {at['tf']}: bars missing between {_bar(at['after'])} "
        f"and {_bar(at['before'])}"
        for at in analysis.whole.holes[:_MOST_NAMED]
    ]
    if analysis.whole.incomplete > _MOST_NAMED:
        holes.append(f"and bars missing at {analysis.whole.incomplete - _MOST_NAMED} more places")
    return holes


def _gaps(analysis: Analysis | OwnAnalysis) -> list[str]:
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
