"""A gate report: made from a host's logs or from files, signed, and stored for the next command.

It is one canonical JSON document. state_dir/gate/<host>/<moment>/ holds report.json,
report.json.sig and the page. A report that can't enable stacking (from files, not PASS, or by a
rule laxer than the inventory's) says so itself.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median_low
from typing import Any

from macd import application
from macd.deploy import state
from macd.errors import MacdError, RefusedError, UsageError
from macd.gate import audit, evidence, foreign_logs, logs, own
from macd.heads import bars_ahead
from macd.host.durable import replace_file, sha256_of
from macd.host.judge import by_symbol, drift, gate, reading, skill
from macd.host.judge.analyse import Analysis, Earlier, Window
from macd.host.judge.by_symbol import BySymbol
from macd.host.judge.drift import Drift
from macd.host.judge.gate import Decision, Findings, Rule
from macd.host.judge.own import OwnAnalysis
from macd.host.judge.parse import Line, parse, step_ms
from macd.host.record import canonical
from macd.host.store.manifest import symbols_of
from macd.host.store.signature import GATE_NAMESPACE, SignatureError
from macd.inventory import Host, Inventory, revoked
from macd.release.signing import sign
from macd.release.verify import Signers
from macd.report import numbers
from macd.ssh.session import open_session

KIND = "gate-report"
NAME, SIGNATURE, PAGE = "report.json", "report.json.sig", "report.html"
_KEPT = 50


@dataclass(frozen=True)
class About:
    """What a report is about. host, env, manifest_sha256: "" for local files; days: 0 for all."""

    host: str
    env: str
    release: str | None
    manifest_sha256: str
    made: datetime
    days: float
    flags: Mapping[str, str]


def rule_of(inventory: Inventory) -> Rule:
    """The inventory's own rule."""
    settings = inventory.gate
    skilled = settings.skill if application.of(inventory).compares else skill.OFF
    return Rule(
        settings.ml_coverage,
        settings.stacking_activation,
        settings.tft_normal,
        settings.lstm_normal,
        settings.min_bars,
        settings.rule,
        skilled,
    )


def build(
    about: About,
    analysis: Analysis | OwnAnalysis,
    decision: Decision,
    rule: Rule,
    logs: list[evidence.LogRange],
    inventory: Inventory,
    parts: Sequence[by_symbol.Judged] = (),
) -> dict[str, Any]:
    """The document, all but its signature. parts: of each symbol, the worst first."""
    closed = []
    if not about.host:
        closed.append("local files were analysed; only a host's own logs are evidence")
    if decision.verdict != gate.PASS:
        closed.append(f"the verdict is {decision.verdict}")
    own = rule_of(inventory)
    if laxer := rule.laxer_than(own, days=about.days or math.inf, other_days=inventory.gate.days):
        closed.append(f"{', '.join(laxer)} laxer than in inventory {inventory.name}")
    expires = about.made + timedelta(hours=inventory.gate.expires_hours)
    return {
        "kind": KIND,
        "version": 1,
        "source": "host" if about.host else "files",
        "host": about.host,
        "env": about.env,
        "inventory": inventory.name,
        "release": about.release,
        "manifest_sha256": about.manifest_sha256,
        "flags": dict(about.flags),
        "made": about.made.isoformat(),
        "expires": expires.isoformat(),
        "window": {
            "days": about.days,
            "from_ms": analysis.window.start,
            "to_ms": analysis.window.end,
        },
        "rule": asdict(rule),
        **gate.document(decision),
        "meaning": gate.meaning(decision.skill, decision.verdict),
        "blockers": closed,
        "opens_nothing": closed,  # its name up to 0.1
        "drift": None,
        "notes": [],
        "replay": None,
        "bars": analysis.bar_count,
        "logs": [entry.document() for entry in logs],
        **({"symbols": [part.document() for part in parts]} if parts else {}),
        "findings": analysis.document(),
    }


def directory_of(inventory: Inventory, host: str, made: datetime) -> Path:
    """Where the report of that moment goes."""
    return inventory.state_dir / "gate" / (host or "files") / f"{made:%Y%m%dT%H%M%S.%fZ}"


def save(document: Mapping[str, Any], directory: Path, inventory: Inventory) -> Path:
    """Sign and keep a report; a report of local files is not signed. Returns report.json's path.

    Raises UsageError when the inventory names no gate key, or none is there.
    """
    raw = canonical(document) + b"\n"
    directory.mkdir(parents=True, exist_ok=True)
    if document["source"] == "host":
        key = inventory.release.gate_key
        if key is None:
            raise UsageError(
                f"inventory {inventory.name} names no key that signs gate reports",
                hint=f"set release.gate_key in {inventory.path}",
            )
        # The signature first: a report is only found once it is complete.
        signature = sign(raw, key=key, namespace=GATE_NAMESPACE)
        replace_file(str(directory / SIGNATURE), signature)
    replace_file(str(directory / NAME), raw)
    return directory / NAME


@dataclass(frozen=True)
class Report:
    """A report whose signature was verified. raw: the very bytes that are signed."""

    path: Path
    raw: bytes
    signature: bytes
    document: Mapping[str, Any]


def note_on_host(path: Path, document: Mapping[str, Any], inventory: Inventory) -> str:
    """Store the verdict on the host, so that no older report from elsewhere enables stacking.

    Returns why it is not stored, "" if it is: the report itself holds either way.
    """
    host = inventory.host(str(document["host"]))
    note = {name: document[name] for name in ("verdict", "release", "made")}
    note |= {"sha256": sha256_of(path)}
    note |= {"opens": not document["blockers"]}
    try:
        with open_session(host, inventory) as session:
            session.call("gate_note", app=host.app_dir, note=note)
    except MacdError as error:
        return f"the host does not know of this verdict: {error.what}"
    return ""


def prune(inventory: Inventory, host: str, keep: Collection[str]) -> None:
    """Leave the newest reports about a host, and those whose directories are in `keep`."""
    there = sorted(path.parent for path in (inventory.state_dir / "gate" / host).glob(f"*/{NAME}"))
    for old in there[:-_KEPT]:
        if str(old.relative_to(inventory.state_dir)) not in keep:
            shutil.rmtree(old, ignore_errors=True)


def newest(inventory: Inventory, host: str) -> Path:
    """Path of the newest report about a host. Raises RefusedError when there is none."""
    reports = sorted((inventory.state_dir / "gate" / host).glob(f"*/{NAME}"))
    if reports:
        return reports[-1]
    raise RefusedError(f"there is no gate report about {host}", hint="invoke shadow-gate makes one")


def read(path: Path, inventory: Inventory) -> Report:
    """A report by somebody who may sign reports.

    Raises:
        RefusedError: no signature, a wrong one, or no report inside.
    """
    signers = inventory.release.allowed_signers
    if signers is None:
        raise UsageError(
            f"inventory {inventory.name} does not say who may sign gate reports",
            hint=f"set release.allowed_signers in {inventory.path}",
        )
    if not signers.is_file():
        raise UsageError(
            f"there is no allowed_signers file at {signers}",
            why="it names the keys whose gate reports count",
            hint="invoke provision says how to make it",
        )
    trusted = Signers(signers, inventory.release.identity, revoked(inventory))
    try:
        raw, signature = path.read_bytes(), path.with_name(SIGNATURE).read_bytes()
        trusted.verify(raw, signature, GATE_NAMESPACE)
        document = json.loads(raw)
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ValueError("it is something else")
    except (OSError, SignatureError, ValueError) as error:
        raise RefusedError(
            f"the gate report {path} can't be trusted",
            why=str(error),
            hint="invoke shadow-gate makes a new one",
        ) from error
    return Report(path, raw, signature, document)


def read_document(path: Path) -> Mapping[str, Any]:
    """Any report, trusted or not, for showing. Raises MacdError when it is none."""
    try:
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and document.get("kind") == KIND:
            return document
    except (OSError, ValueError) as error:
        raise MacdError(f"{path} can't be read", why=str(error)) from error
    raise MacdError(f"{path} is no gate report")


_TAIL = 1 << 20
_CLOCKS_DIFFER = timedelta(minutes=5)
_MOST_NAMED = 10
_LAST = 5
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Judged:
    """A report in the making. document: see build."""

    document: Mapping[str, Any]
    decision: Decision
    made: datetime
    fetched: int = 0


def of_host(inventory: Inventory, host: Host, rule: Rule, days: float) -> Judged:
    """Judge what the live release of `host` did in the last `days`."""
    if inventory.app is not None:
        return _of_own(inventory, own.of_host(inventory, host, rule, days), rule, host, days)
    with open_session(host, inventory) as session:
        live = state.observed(state.ask(session, host, inventory))
        copy = logs.pull(session, host.app_dir, logs.logs_of(inventory, host))
        now = datetime.fromtimestamp(session.clock.offset + datetime.now(UTC).timestamp(), UTC)
        start = now - timedelta(days=days)
        sources = evidence.choose(copy, start)
        earlier = evidence.earlier(copy, sources, live.live)
        ranges = evidence.ranges([*earlier, *sources])
        differing = evidence.same_on_host(
            session, host.app_dir, [entry.document() for entry in ranges]
        )
    window = Window(_ms(start), _ms(now), live.live or "", compared_from=0)
    read = BySymbol(window, _served(live))
    reading.analyse(earlier, Earlier(read))
    reading.analyse(sources, read)
    analysis = read.whole
    health = live.health
    answers = live.live is not None and health.get("release") == live.live
    problems = [
        *_not_serving(live, answers),
        *_unknown_symbols(live, analysis),
        *evidence.problems(
            analysis,
            now=now,
            heads=_heads(health) if answers else {},
            replaced=[entry.name for entry in ranges if entry.name in copy.replaced],
            gone=copy.gone,
        ),
        *differing,
    ]
    decision, parts = _decide(read, rule, problems, now)
    parts = by_symbol.with_drift(parts, live.details)
    about = About(
        host=host.name,
        env=host.env,
        release=live.live,
        manifest_sha256=str(health.get("manifest_sha256", "")) if answers else "",
        made=now,
        days=days,
        flags={str(k): str(v) for k, v in dict(health.get("flags") or {}).items()},
    )
    replayed = audit.for_gate(audit.newest(inventory, host.name, live.live))
    document = build(about, analysis, decision, rule, ranges, inventory, parts)
    drifted = by_symbol.worst_drift(parts) if parts else _drift(copy, live)
    document["drift"] = drifted and drifted.document()
    document["notes"] = [
        *_drift_note(drifted),
        *_too_short(*_neediest(read, decision, parts), days),
        *_lacking_ml_error(analysis),
        *_worth(document, inventory.train.min_n_eff),
        *_notes(copy),
        *audit.notes(replayed, live.live, live.details),
    ]
    document["replay"] = replayed
    return Judged(document, decision, now, copy.fetched)


def of_files(
    inventory: Inventory, place: Path, rule: Rule, days: float | None, now: datetime
) -> Judged:
    """Judge a folder of logs or one file, all of it or its last `days`; it can't enable stacking.

    The release is the one of the newest line that names one and lies not in the future; how old
    the logs are does not count. Lines without a release count too, and the report says so.
    Raises UsageError when there are no logs.
    """
    with tempfile.TemporaryDirectory() as copies:
        read = foreign_logs.plain(place, Path(copies))
        if not read.sources:
            raise UsageError(
                f"there are no signal logs in {place}",
                why="\n".join(read.notes),
                hint="they are called trades_YYYYMMDD.jsonl or trade_....jsonl; else .jsonl, "
                ".json, .log or .txt, also compressed",
            )
        if inventory.app is None:
            return _of_sources(inventory, read, rule, days, now)
        own_evidence = own.of_files(inventory, read.sources, rule, days, now)
        own_evidence = replace(own_evidence, notes=[*read.notes, *own_evidence.notes])
        return _of_own(inventory, own_evidence, rule, None, days or 0.0)


def _of_sources(
    inventory: Inventory, read: foreign_logs.Logs, rule: Rule, days: float | None, now: datetime
) -> Judged:
    sources = read.sources
    last, release = _newest(sources, now)
    end = datetime.fromtimestamp(last / 1000, UTC) if last else now
    start = end - timedelta(days=days) if days is not None else datetime(1970, 1, 1, tzinfo=UTC)
    window = Window(_ms(start), _ms(end), release, strict=False, compared_from=0)
    read_by = BySymbol(window, by_symbol.symbols_at_end(sources))
    reading.analyse(sources, read_by)
    analysis = read_by.whole
    decision, parts = _decide(read_by, rule, evidence.problems(analysis, now=end), end)
    about = About("", "", release, "", now, days or 0.0, {})
    ranges = evidence.ranges(sources)
    document = build(about, analysis, decision, rule, ranges, inventory, parts)
    worth = _worth(document, inventory.train.min_n_eff)
    document["notes"] = [*read.notes, *_lacking_ml_error(analysis), *worth]
    if analysis.unnamed:
        document["notes"].append(f"{analysis.unnamed} lines without seq or release count as well")
    return Judged(document, decision, now)


def _of_own(
    inventory: Inventory, own_evidence: own.Evidence, rule: Rule, host: Host | None, days: float
) -> Judged:
    """The report about an application of the team's own."""
    app, live = application.of(inventory), own_evidence.live
    decision = gate.decide(own_evidence.findings, rule)
    about = About(
        host=host.name if host else "",
        env=host.env if host else "",
        release=live.live if live else None,
        manifest_sha256=evidence.manifest_sha256(live) if live else "",
        made=own_evidence.now,
        days=days,
        flags=own.flags(inventory, live) if live else {},
    )
    document = build(about, own_evidence.analysis, decision, rule, own_evidence.ranges, inventory)
    document["meaning"] = own.meaning(app.flag, decision, own_evidence.signals)
    document |= own.about(inventory, own_evidence)
    document["notes"] = [*own_evidence.notes, *_warned(decision)]
    if host:
        document["notes"] += _too_short(own_evidence.analysis, decision, days)
    return Judged(document, decision, own_evidence.now, own_evidence.fetched)


def _warned(decision: Decision) -> list[str]:
    """The shares of level warn that are missed: they change no verdict."""
    return [
        f"{row.title} misses {100 * row.threshold:g} % ({row.successes} of {row.trials}): "
        "it warns, and does not block"
        for row in decision.criteria
        if row.level == "warn" and row.outcome == gate.FAIL
    ]


def _drift(copy: logs.Pulled, live: state.HostState) -> Drift | None:
    """The newest block of the release's bars, however long ago it began; it only warns."""
    paths = [copy.directory / name for name in copy.names]
    sources = [reading.Source(path, path.stat().st_size) for path in paths if path.exists()]
    return drift.of_logs(sources, live.live, live.details) if live.live else None


def _drift_note(drifted: Drift | None) -> list[str]:
    if drifted is None or drifted.outcome != drift.DRIFT:
        return []
    return [f"drift: {drifted.text}; that is a warning, and no reason for a FAIL"]


def together(verdicts: Iterable[str]) -> str:
    """The verdict on several hosts, each judged on its own evidence; "": it could not be judged."""
    each = set(verdicts)
    if gate.FAIL in each:
        return gate.FAIL
    return gate.PASS if each == {gate.PASS} else gate.INCONCLUSIVE


def _notes(copy: logs.Pulled) -> list[str]:
    notes = [f"{name} is not read as a log: {why}" for name, why in copy.refused]
    notes += [
        f"{name} was fetched before and is not on the host any more"
        for name in copy.gone[-_MOST_NAMED:]
    ]
    if len(copy.gone) > _MOST_NAMED:
        notes.append(f"and {len(copy.gone) - _MOST_NAMED} older logs that are gone")
    return notes


def _worth(document: Mapping[str, Any], wanted: float) -> list[str]:
    """How many more bars it takes until the known outcomes are worth `wanted` of their own.

    Labels h bars ahead overlap, so h of them are worth one. The head is the one that decides. What
    counts is what the skill is judged by: all bars since the release's first, and not the window,
    which may never hold so many.
    """
    compared = document.get("skill") or {}
    head, row = compared.get("head"), compared.get("against", {}).get(skill.MEAN)
    if not wanted or not head:
        return []
    n = row["n"] if row else _in_window(document, head)
    apart = bars_ahead(str(head))
    worth, more = n / apart, math.ceil(wanted * apart) - n
    if worth >= wanted:
        return []
    where = "" if row else " in this window"
    what = f"outcomes at {head}{where}: {n:,} bars, worth {worth:.0f} that don't overlap"
    if wanted * apart > skill.MOST - apart:
        most = f"the newest {skill.MOST:,} bars are never worth so many"
        return [f"{what}; train.min_n_eff asks for {wanted:g}: {most}"]
    return [f"{what}; train.min_n_eff asks for {wanted:g}: {more:,} more bars"]


def _in_window(document: Mapping[str, Any], head: str) -> int:
    """Bars of the window whose outcome is known, by stacking at a head."""
    rows = document["findings"]["realised"]
    return next((r["n"] for r in rows if (r["model"], r["head"]) == ("stacking", head)), 0)


def _too_short(analysis: Analysis | OwnAnalysis, decision: Decision, days: float) -> list[str]:
    """Where so many days never hold the bars that it takes: waiting alone would help nobody.

    How many they hold is by the bars' own length, or by the pace at which they came so far where
    that is faster: a replay's bars don't wait for the clock.
    """
    first, newest, more = analysis.first_signal, analysis.newest_signal, decision.more_bars
    step = step_ms(newest.tf) if newest else 0
    if not step or not first or not newest or not more or decision.verdict != gate.INCONCLUSIVE:
        return []
    have, lasted = analysis.bar_count, newest.time - first.time
    apart = min(step, lasted / (have - 1)) if have > 1 and lasted > 0 else step
    needed, holds = have + more, int(days * _DAY_MS / apart)
    if needed <= holds:
        return []
    enough = math.ceil(needed * apart / _DAY_MS) + 1
    return [
        f"{numbers.counted(days, 'day')} hold{'s' if days == 1 else ''} {holds} bars of "
        f"{newest.tf}, it takes {needed}: "
        f"invoke shadow-gate --days {enough}"
    ]


def _decide(
    read: BySymbol, rule: Rule, problems: list[str], now: datetime
) -> tuple[Decision, list[by_symbol.Judged]]:
    """The verdict, and each symbol's where there are several. problems: of the whole log."""

    def decide(part: Analysis, alpha: float) -> Decision:
        severe = tuple(entry["example"] for entry in part.severe.document()[:5])
        compared = skill.judged(part.compared, rule.skill, alpha)
        doubts = evidence.problems_of_part(part, now) if part.window.is_part else problems
        findings = Findings(part.tally(), severe, tuple(doubts), part.causes(), compared)
        return gate.decide(findings, rule, alpha)

    return by_symbol.judge(read, decide, gate.ALPHA)


def _neediest(
    read: BySymbol, decision: Decision, parts: Sequence[by_symbol.Judged]
) -> tuple[Analysis, Decision]:
    """What needs the most bars: of several symbols one, whose bars come one at a time."""
    if not parts:
        return read.whole, decision
    most = max(parts, key=lambda part: part.decision.more_bars)
    return most.analysis, most.decision


def _lacking_ml_error(analysis: Analysis) -> list[str]:
    if not analysis.lacks_ml_error:
        return []
    return [
        f"{analysis.lacks_ml_error} lines have no field ml_error and a number of every model: they "
        "count as lines without an error"
    ]


def _served(live: state.HostState) -> tuple[str, ...]:
    """The symbols that service.json names there; with one that is no JSON no service starts."""
    try:
        return by_symbol.served(live.service_settings)
    except ValueError:
        return ()


def _heads(health: Mapping[str, Any]) -> dict[str, int]:
    """How far the lines went by what the service says: of instances by symbol, else of ""."""
    symbols = health.get("symbols") or {}
    said = {"": health, **{n: one for n, one in symbols.items() if isinstance(one, Mapping)}}
    return {name: one["seq"] for name, one in said.items() if type(one.get("seq")) is int}


def _not_serving(live: state.HostState, answers: bool) -> list[str]:
    if live.live is None:
        return ["no release is live on the host"]
    if not answers:
        answer = live.unhealthy or f"it says {live.health.get('release')}"
        return [f"what runs does not answer as release {live.live}: {answer}"]
    return []


def _unknown_symbols(live: state.HostState, analysis: Analysis) -> list[str]:
    """Bars of assets that no model of the live release was trained on are no evidence for it."""
    known = symbols_of(live.details)
    unknown = sorted(analysis.symbols - set(known)) if known else []
    if not unknown:
        return []
    return [
        f"the service watches {', '.join(unknown)}, and the models of {live.live} know "
        f"{', '.join(known)}; it gives the base signal. Set service.symbol to one of these and "
        f"deploy, or train with {unknown[0]} in train.panel"
    ]


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
        lines = [
            line for line in map(parse, raws) if isinstance(line, Line) and line.time <= latest
        ]
        time = max([time, *(line.time for line in lines)])
        named = [line for line in lines if line.release]
        ours = [line for line in named if not line.foreign]
        last = (ours or named)[-_LAST:]
        if last and (written := (bool(ours), median_low(line.time for line in last))) >= newest:
            newest, release = written, last[-1].release
    return time, release


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
