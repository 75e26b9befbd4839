"""The gate as one step: look at the host, pull, analyse, decide; or all that for local files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median_low
from typing import Any

from macd.deploy import state
from macd.errors import UsageError
from macd.gate import evidence, pull, report
from macd.host.judge import gate, reading
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.continuity import step_ms
from macd.host.judge.gate import Decision, Findings, Rule
from macd.host.judge.parse import Line, parse
from macd.inventory import Host, Inventory
from macd.ssh.session import open_session

_TAIL = 1 << 20
_CLOCKS_DIFFER = timedelta(minutes=5)
_MOST_NAMED = 10
_LAST = 5
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Judged:
    """A report in the making. document: see report.build."""

    document: Mapping[str, Any]
    decision: Decision
    made: datetime
    fetched: int = 0


def logs_of(inventory: Inventory, host: Host) -> Path:
    """Where the copy of a host's logs lies."""
    return inventory.state_dir / "logs" / host.name


def of_host(inventory: Inventory, host: Host, rule: Rule, days: float) -> Judged:
    """Judge what the live release of `host` did in the last `days`."""
    with open_session(host, inventory) as session:
        live = state.observed(state.ask(session, host, inventory))
        copy = pull.pull(session, host.app_dir, logs_of(inventory, host))
        now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
        start = now - timedelta(days=days)
        sources = evidence.choose(copy, start)
        logs = evidence.ranges(sources)
        differing = evidence.same_on_host(session, host.app_dir, [one.document() for one in logs])
    found = Analysis(Window(_ms(start), _ms(now), live.live or ""))
    reading.analyse(sources, found)
    health = live.health
    answers = live.live is not None and health.get("release") == live.live
    seq = health.get("seq") if answers else None
    problems = [
        *_not_serving(live, answers),
        *evidence.problems(
            found,
            now=now,
            head_seq=seq if type(seq) is int else None,
            replaced=[one.name for one in logs if one.name in copy.replaced],
            gone=copy.gone,
        ),
        *differing,
    ]
    decision = _decide(found, rule, problems)
    about = report.About(
        host=host.name,
        env=host.env,
        release=live.live,
        manifest_sha256=str(health.get("manifest_sha256", "")) if answers else "",
        made=now,
        days=days,
        flags={str(k): str(v) for k, v in dict(health.get("flags") or {}).items()},
    )
    document = report.build(about, found, decision, rule, logs, inventory)
    document["notes"] = [*_too_short(found, decision, days), *_untold(found), *_notes(copy)]
    return Judged(document, decision, now, copy.fetched)


def of_files(
    inventory: Inventory, directory: Path, rule: Rule, days: float | None, now: datetime
) -> Judged:
    """Judge a folder of logs, all of it or its last `days`; such a report opens nothing.

    The release is the one of the newest line that names one and lies not in the future; how old
    the logs are does not count. Lines without a release count too, and the report says so.
    Raises UsageError when there are no logs.
    """
    sources = reading.ordered(directory) if directory.is_dir() else []
    if not sources:
        raise UsageError(
            f"there are no signal logs in {directory}",
            hint="they are called trades_YYYYMMDD.jsonl or trade_....jsonl",
        )
    last, release = _newest(sources, now)
    end = datetime.fromtimestamp(last / 1000, UTC) if last else now
    start = end - timedelta(days=days) if days is not None else datetime(1970, 1, 1, tzinfo=UTC)
    found = Analysis(Window(_ms(start), _ms(end), release, strict=False))
    reading.analyse(sources, found)
    decision = _decide(found, rule, evidence.problems(found, now=end))
    about = report.About("", "", release, "", now, days or 0.0, {})
    document = report.build(about, found, decision, rule, evidence.ranges(sources), inventory)
    document["notes"] = _untold(found)
    if found.unnamed:
        document["notes"].append(f"{found.unnamed} lines without seq or release count as well")
    return Judged(document, decision, now)


def together(verdicts: Iterable[str]) -> str:
    """The verdict on several hosts, each judged on its own evidence; "": it could not be judged."""
    each = set(verdicts)
    if gate.FAIL in each:
        return gate.FAIL
    return gate.PASS if each == {gate.PASS} else gate.INCONCLUSIVE


def _notes(copy: pull.Pulled) -> list[str]:
    told = [f"{name} is not read as a log: {why}" for name, why in copy.refused]
    told += [
        f"{name} was fetched before and is not on the host any more"
        for name in copy.gone[-_MOST_NAMED:]
    ]
    if len(copy.gone) > _MOST_NAMED:
        told.append(f"and {len(copy.gone) - _MOST_NAMED} older logs that are gone")
    return told


def _too_short(found: Analysis, decision: Decision, days: float) -> list[str]:
    """Where so many days never hold the bars that it takes: waiting alone would help nobody."""
    newest, more = found.newest_signal, decision.more_bars
    step = step_ms(newest.tf) if newest else 0
    if not step or newest is None or decision.verdict != gate.INCONCLUSIVE:
        return []
    needed, holds = len(found.bars) + found.junk + more, int(days * _DAY_MS / step)
    if needed <= holds:
        return []
    enough = math.ceil(needed * step / _DAY_MS) + 1
    return [
        f"{days:g} days hold {holds} bars of {newest.tf}, it takes {needed}: "
        f"invoke shadow-gate --days {enough}"
    ]


def _decide(found: Analysis, rule: Rule, problems: list[str]) -> Decision:
    severe = tuple(one["example"] for one in found.severe.document()[:5])
    return gate.decide(Findings(found.tally(), severe, tuple(problems), found.causes()), rule)


def _untold(found: Analysis) -> list[str]:
    if not found.untold:
        return []
    return [
        f"{found.untold} bars have no field ml_error, and no line has it: with a number of every "
        "model they count as bars without an error"
    ]


def _not_serving(live: state.HostState, answers: bool) -> list[str]:
    if live.live is None:
        return ["no release is live on the host"]
    if not answers:
        told = live.health.get("unreachable") or f"it says {live.health.get('release')}"
        return [f"what runs does not answer as release {live.live}: {told}"]
    return []


def _newest(sources: list[reading.Source], now: datetime) -> tuple[int, str | None]:
    """When the newest line was written (epoch ms, 0 without one), and the newest release named.

    The release is the last one named in the newest file that names one of ours; one in another
    style only where none does. A line from the future decides nothing, and no single line whose
    time or name is damaged decides which file that is.
    """
    latest = _ms(now + _CLOCKS_DIFFER)
    time, newest, release = 0, (False, -1), None
    for source in sources:
        raws = reading.raw_lines(source.path, max(0, source.size - _TAIL), source.size)
        lines = [one for one in map(parse, raws) if isinstance(one, Line) and one.time <= latest]
        time = max([time, *(one.time for one in lines)])
        named = [one for one in lines if one.release]
        ours = [one for one in named if not one.foreign]
        last = (ours or named)[-_LAST:]
        if last and (written := (bool(ours), median_low(one.time for one in last))) >= newest:
            newest, release = written, last[-1].release
    return time, release


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
