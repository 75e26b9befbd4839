"""The evidence about an application of the team's own: which of its lines count, and their doubts.

Its lines name no seq and mostly no release. So what counts begins where the host committed the
release that is live, but for the times in which the host ran another one and took it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from macd import application
from macd.deploy import state
from macd.deploy.lineage import time_shown
from macd.deploy.state import HostState
from macd.errors import UsageError
from macd.gate import evidence, logs
from macd.host.judge import gate, judging, skill
from macd.host.judge import own as judge_own
from macd.host.judge.gate import PASS, Decision, Findings, Rule
from macd.host.judge.own import OwnAnalysis
from macd.host.judge.reading import Source, raw_lines
from macd.host.own import Flag, Signals
from macd.host.own import parse as parse_service
from macd.inventory import Host, Inventory
from macd.report import numbers
from macd.ssh.session import open_session

_SKILL = "skill against the mean of the models, "
_NOT_JUDGED = (
    "golden predictions, {}drift of features and a replay: "
    "an application of one's own has none that macd knows of"
)
_MOST_BARS = 200_000
_SEVERE_NAMED = 5
_RUNS_NAMED = 3
_CLOCKS_DIFFER_S = 300
_TAIL = 1 << 20


@dataclass(frozen=True)
class Evidence:
    """The evidence of a host, or of files (live: None). since: when its release went live."""

    analysis: OwnAnalysis
    findings: Findings
    ranges: list[evidence.LogRange]
    now: datetime
    notes: Sequence[str]
    signals: Signals
    live: HostState | None = None
    since: float | None = None
    fetched: int = 0


def signals_of(inventory: Inventory) -> Signals:
    """Raises UsageError where the inventory does not say what the application logs."""
    signals = application.of(inventory).signals
    if signals is None:
        raise UsageError(
            "there is nothing to judge: the inventory does not say what the application logs",
            why=f"app.signals is not set in {inventory.path}",
            hint="set app.signals (files, level, map), then: invoke deploy",
        )
    return signals


def of_host(inventory: Inventory, host: Host, rule: Rule, days: float) -> Evidence:
    """What the live release wrote on `host` in the last `days`, at most since it went live."""
    signals = signals_of(inventory)
    with open_session(host, inventory) as session:
        live = state.observed(state.ask(session, host, inventory))
        copy = logs.pull(session, host.app_dir, logs.logs_of(inventory, host), own=True)
        now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
        since = went_live(live)
        start = max((now - timedelta(days=days)).timestamp(), since or 0.0)
        late = start - _CLOCKS_DIFFER_S
        sources = [s for s in copy.sources if copy.written.get(s.name, start) >= late]
        ranges = evidence.ranges(sources)
        differing = evidence.same_on_host(
            session, host.app_dir, [entry.document() for entry in ranges]
        )
    tf = str(live.details.get("tf") or inventory.train.tf)
    ran = live.others_ran
    analysis = _analysed(sources, signals, tf, start, now, live.live, ran)
    problems = [
        *_not_serving(live, since),
        *_none_so_far(analysis, signals, since),
        *evidence.problems(
            analysis,
            now=now,
            replaced=[r.name for r in ranges if copy.replaced_at.get(r.name, -1.0) >= start],
        ),
        *_gone(copy, signals, start),
        *differing,
    ]
    notes = [*_notes(copy, live, signals), *_left_out(analysis, ran, start)]
    findings = _findings(analysis, signals, rule, problems)
    return Evidence(analysis, findings, ranges, now, notes, signals, live, since, copy.fetched)


def of_files(
    inventory: Inventory, sources: Sequence[Source], rule: Rule, days: float | None, now: datetime
) -> Evidence:
    """What the lines of some files say, all of them or their last `days`, whatever wrote them."""
    signals = signals_of(inventory)
    tf, last = inventory.train.tf, now
    analysis = _analysed(sources, signals, tf, 0.0, now, None)
    if analysis.newest is not None:
        last = min(now, datetime.fromtimestamp(analysis.newest.time / 1000, UTC))
    if days is not None:
        start = (last - timedelta(days=days)).timestamp()
        analysis = _analysed(sources, signals, tf, start, now, None)
    problems = [*_none_so_far(analysis, signals, 0.0), *evidence.problems(analysis, now=last)]
    findings = _findings(analysis, signals, rule, problems)
    notes = ["files say nothing of a release: every line counts, whatever wrote it"]
    return Evidence(analysis, findings, evidence.ranges(sources), now, notes, signals)


def _analysed(
    sources: Sequence[Source],
    signals: Signals,
    tf: str,
    start: float,
    now: datetime,
    release: str | None,
    others_ran: Sequence[Mapping[str, Any]] = (),
) -> OwnAnalysis:
    begin, end = round(start * 1000), round(now.timestamp() * 1000)
    parts = judging.read_own(
        sources, signals, tf, [begin], end, release, _MOST_BARS, others_ran=others_ran
    )
    return parts[0]


def _left_out(
    analysis: OwnAnalysis, others_ran: Sequence[Mapping[str, Any]], start: float
) -> list[str]:
    """How many lines are not of the live release, and why."""
    if not analysis.elsewhere:
        return []
    ran = [each for each in others_ran if each["until"] is None or each["until"] >= start]
    named = []
    for each in ran[-_RUNS_NAMED:]:
        until = "now" if each["until"] is None else time_shown(each["until"])
        named.append(f"{each['release']} from {time_shown(each['since'])} to {until}")
    lines = numbers.counted(analysis.elsewhere, "line")
    return [f"{lines} left out, written while another release was tried: {'; '.join(named)}"]


def _findings(
    analysis: OwnAnalysis, signals: Signals, rule: Rule, problems: Sequence[str]
) -> Findings:
    severe = tuple(entry["example"] for entry in analysis.severe.document()[:_SEVERE_NAMED])
    compared = {}
    if judge_own.compares(signals):
        compared = skill.judged(analysis.compared, rule.skill, gate.ALPHA)
    return Findings(
        analysis.tally(),
        severe,
        tuple(problems),
        analysis.causes(),
        compared,
        shares=judge_own.shares(signals, rule),
        bars=analysis.bar_count,
    )


def not_judged(signals: Signals) -> str:
    """What can't be judged of such an application, in words."""
    return _NOT_JUDGED.format("" if judge_own.compares(signals) else _SKILL)


def went_live(live: HostState) -> float | None:
    """When the host committed what is live (epoch seconds); None where it never did."""
    entries = [entry for entry in live.history if entry["release"] == live.live]
    return float(entries[-1]["at"]) if entries and "at" in entries[-1] else None


def _not_serving(live: HostState, since: float | None) -> list[str]:
    if live.live is None:
        return ["no release is live on the host"]
    if since is None:
        return [f"{live.live} was never committed here, so nothing says since when it is live"]
    if live.unhealthy:
        return [f"what runs does not serve as release {live.live}: {live.unhealthy}"]
    return []


def _none_so_far(analysis: OwnAnalysis, signals: Signals, since: float | None) -> list[str]:
    """No bar although there are lines: a level or a map that does not fit is the usual cause."""
    if analysis.bar_count or not analysis.lines:
        return []
    level = f"of level {signals.level}" if signals.level else "that is a signal"
    when = "" if not since else " since the release went live"
    return [f"not one of {analysis.lines} lines is a line {level} written{when}"]


def _gone(copy: logs.Pulled, signals: Signals, start: float) -> list[str]:
    """Logs that are not on the host any more and held lines of the window."""
    time = logs.own_time(signals)
    lost = []
    for name in copy.gone:
        path = copy.directory / name
        if path.is_file():
            size = path.stat().st_size
            ends = [time(raw) for raw in raw_lines(path, max(0, size - _TAIL), size)]
            if max(ends, default=0) >= start * 1000:
                lost.append(f"{name} is not on the host any more")
    return lost


def _notes(copy: logs.Pulled, live: HostState, signals: Signals) -> list[str]:
    notes = [f"{name} is not read as a log: {why}" for name, why in copy.refused]
    deployed = parse_service(live.service_settings)
    if deployed.name and deployed.signals != signals:
        notes.append(
            "app.signals is not as it was deployed: the guard reads by what was deployed; "
            "invoke deploy brings the inventory's there"
        )
    return notes


def meaning(flag: Flag | None, decision: Decision, signals: Signals) -> str:
    """In one sentence: what a PASS permits, or would permit, and what is not judged."""
    verdict = decision.verdict
    what = f"to set {flag.name}={flag.live}" if flag else "nothing here, for app.flag is not set"
    permits = "permits" if verdict == PASS else "would permit"
    if flag:
        permits += f" {what} for this release on this host until the report expires"
    else:
        permits += f" {what}"
    row = decision.skill.get("against", {}).get(skill.MEAN)
    compared = f", and that stacking is not proved worse on {row['n']} bars" if row else ""
    return (
        f"A PASS {permits}; it takes that the lines written since the release went live are as "
        f"app.signals and gate ask{compared}; not judged are {not_judged(signals)}; not tested "
        "are profit after "
        "costs, other markets, and whether the bars to come are like these."
    )


def flags(inventory: Inventory, live: HostState) -> dict[str, str]:
    """The flag of the process, as it has it; none where nobody knows it."""
    flag = application.of(inventory).flag
    values = {"1": flag.live, "0": flag.shadow} if flag else {}
    running = live.stacking.get("running")
    return {flag.name: values[running]} if flag and running in values else {}


def about(inventory: Inventory, own_evidence: Evidence) -> dict[str, Any]:
    """What a report says beyond one about the built-in application."""
    since = own_evidence.since
    known = {
        "name": application.of(inventory).name,
        "since": None if since is None else datetime.fromtimestamp(since, UTC).isoformat(),
        "signals": asdict(own_evidence.signals),
    }
    return {"own": known, "not_judged": not_judged(own_evidence.signals)}
