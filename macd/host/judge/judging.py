"""Judge a watch by the logs, in a process with next to no rights: the guard is root.

The logs are not trusted. So the process has the rights of their owner, no open file but the pipe
for its answer, and limits on its memory and time. Its answer is not trusted either.

It judges all bars since the flip, and since later starts. The whole period alone would forgive a
model that breaks after twenty good hours. So the watch is cut into equal parts, and each judgement
is about all bars since the beginning of each part. The starts are fixed when the watch begins and
share the 5 %. The bounds of each start hold at all judgements, and so do all of them together
(Bonferroni; Shin, Ramdas and Rinaldo 2022, "E-detectors", for the idea). Standard library alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import resource
import select
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from macd.host import durable, logname, own, untrusted
from macd.host.judge import by_symbol, drift, gate, reading, skill
from macd.host.judge import own as judge_own
from macd.host.judge.analyse import Analysis, Earlier, Window
from macd.host.judge.by_symbol import BySymbol
from macd.host.judge.gate import Decision, Findings, Plan, Rule, Share
from macd.host.judge.own import OwnAnalysis
from macd.host.judge.parse import Bad, Line, step_ms
from macd.host.own import Signals
from macd.host.rpc.logs import LogFiles, names_in

MEMORY = 256 << 20  # bytes of addresses; the worst logs that we could make took 120 MiB
WITHIN_S = 300.0
_MOST_ANSWER = 2 << 20
_MOST_FILES = 10_000
_MOST_REASONS = 50
_DESCRIPTORS = 4096
_MOST_BARS = 50_000  # of each start: bars of a minute for a month
MOST = 6  # more starts find a break sooner but each needs more bars to be sure of it
_SEVERE_NAMED = 5
_CLOCKS_DIFFER_S = 300
_NEVER = 1 << 62
STALE = "stale: no new bar is logged"


class CannotJudgeError(Exception):
    """The logs were not judged, and why; it says nothing about their content."""


@dataclass(frozen=True)
class Judgement:
    """rates: successes and trials by criterion. document: the report, as `evaluate` makes it.

    symbols: of a service that has several, by name how many bars were judged, and whether the
    newest is too old.
    """

    verdict: str
    reasons: tuple[str, ...]
    rates: dict[str, list[int]]
    document: dict[str, Any]
    symbols: Mapping[str, tuple[int, bool]] = dataclasses.field(default_factory=dict)


def judge(
    live: LogFiles | Path,
    watch: Mapping[str, Any],
    now: datetime,
    *,
    memory: int = MEMORY,
    within_s: float = WITHIN_S,
) -> Judgement:
    """What the logs in `live` say of the watch `watch`.

    live: a directory of the built-in application's logs. Of an application of the team's own it is
    its LogFiles, and the watch holds its signals ("own") and what its release says ("details").

    Raises:
        CannotJudgeError: it needed too much memory or time, was killed, or the logs can't be read.
    """
    files = LogFiles(str(live)) if isinstance(live, Path) else live
    work = functools.partial(_judged, files, watch, now)
    return _understood(apart(_owned(files), work, memory=memory, within_s=within_s))


def _owned(files: LogFiles) -> Path:
    """Whose account reads the logs: their directory's, or a log's where that is root's."""
    place = Path(files.sure)
    with contextlib.suppress(OSError):
        if files.pattern and place.stat().st_uid == 0:
            return next((source.path for source in sources_in(files)), place)
    return place


def apart(
    live: Path, work: Callable[[], bytes], *, memory: int = MEMORY, within_s: float = WITHIN_S
) -> bytes:
    """What `work` answers in a process with next to no rights; the answer is not to be trusted.

    Raises:
        CannotJudgeError: it needed too much memory or time, was killed, or raised.
    """
    try:
        reader, writer = os.pipe()
        child = os.fork()
    except OSError as error:
        raise CannotJudgeError(f"no process could be started: {error.strerror}") from error
    if not child:
        _answer(writer, live, work, memory, within_s)
    os.close(writer)
    try:
        raw, whole = _answer_of(reader, time.monotonic() + within_s)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # no effect on one that has ended
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not whole:
        raise CannotJudgeError(f"no answer within {within_s:g} s")
    if status != 0:
        raise CannotJudgeError(untrusted.line(raw.decode("utf-8", "replace") or _end(status), 300))
    return raw


def _end(status: int) -> str:
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with {status}"


def _answer_of(reader: int, deadline: float) -> tuple[bytes, bool]:
    """All bytes of the pipe; False if its end did not come in time, or too much came."""
    parts: list[bytes] = []
    size = 0
    while size <= _MOST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return b"", False
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"", False


def _understood(raw: bytes) -> Judgement:
    try:
        document = json.loads(raw)
        if document["verdict"] not in (gate.PASS, gate.FAIL, gate.INCONCLUSIVE):
            raise ValueError("no verdict")
        reasons = tuple(untrusted.line(why) for why in document["reasons"][:_MOST_REASONS])
        rates = {
            untrusted.line(row["name"]): [int(row["successes"]), int(row["trials"])]
            for row in document["criteria"]
        }
        symbols = {
            untrusted.line(row["symbol"]): (int(row["bars"]), STALE in row["reasons"])
            for row in document.get("symbols", ())
        }
        document["reasons"] = reasons
        return Judgement(document["verdict"], reasons, rates, document, symbols)
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CannotJudgeError("its answer can't be understood") from error


def _answer(
    writer: int, live: Path, work: Callable[[], bytes], memory: int, within_s: float
) -> NoReturn:
    """In the child: work, write, end. No exit handler of the parent is run."""
    code = 1
    too_much = f"it needed more than {memory >> 20} MiB of memory".encode()
    try:
        _drop_rights(writer, live, memory, within_s)
        answer = work()
        code = 0
    except MemoryError:
        answer = too_much
    except BaseException as error:  # whatever it is, it is reported and ends here
        answer = f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace")
    try:
        durable.write_all(writer, answer)
    finally:
        os._exit(code)


def _judged(files: LogFiles, watch: Mapping[str, Any], now: datetime) -> bytes:
    live = Path(files.sure)
    if live.is_dir():
        with os.scandir(live) as entries:
            for count, _ in enumerate(entries):
                if count >= _MOST_FILES:
                    raise ValueError(f"more than {_MOST_FILES} files in {_shown(files)}")
    _, document = evaluate(files if files.pattern else live, watch, now)
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def _shown(files: LogFiles) -> str:
    return (
        os.path.dirname(files.pattern) or "the application's directory"
        if files.pattern
        else ("data/live")
    )


def _drop_rights(writer: int, live: Path, memory: int, within_s: float) -> None:
    os.closerange(3, writer)
    os.closerange(writer + 1, _DESCRIPTORS)
    seconds = round(within_s) + 1
    limits = [(resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)]
    limits += [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)]
    for which, most in limits:
        resource.setrlimit(which, (most, most))
    if os.geteuid() == 0 and live.exists():
        owner = live.stat()
        if owner.st_uid != 0:  # where root writes the logs, no other account fits
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


class _Several:
    """Several analyses of the same lines, read once."""

    def __init__(self, parts: Sequence[BySymbol]) -> None:
        self.parts = parts

    def add(self, line: Line | Bad, file: str, number: int) -> None:
        for part in self.parts:
            part.add(line, file, number)

    def finish(self) -> None:
        for part in self.parts:
            part.finish()


def starts(watch: Mapping[str, Any]) -> list[float]:
    """The starts of a watch in epoch seconds, the flip first; fixed before its first bar."""
    lasts = watch["until"] - watch["since"]
    count = max(1, min(MOST, int(lasts / watch["every_s"])))
    return [watch["since"] + at * lasts / count for at in range(count)]


def evaluate(
    live: LogFiles | Path, watch: Mapping[str, Any], now: datetime
) -> tuple[Decision, dict[str, Any]]:
    """What the logs in `live` say, and the report of it.

    The verdict is the one since the flip, but FAIL where any later start fails.
    """
    moments = starts(watch)
    whole_alpha = watch.get("alpha", gate.ALPHA)
    alpha = whole_alpha / len(moments)
    rule = Rule(**{"skill": watch.get("skill", skill.OFF), **watch["rule"]})
    end = round(now.timestamp() * 1000)
    begins = [round(at * 1000) for at in moments if at == moments[0] or at < now.timestamp()]
    drifted: drift.Drift | None = None
    reads: Sequence[BySymbol | OwnAnalysis]
    if isinstance(live, LogFiles):
        signals = own.signals_of(watch["own"])
        if not judge_own.compares(signals):
            rule = dataclasses.replace(rule, skill=skill.OFF)
        tf = str(watch.get("details", {}).get("tf") or "")
        sources = sources_in(live, since=watch["since"])
        ran = watch.get("others_ran", ())
        reads = read_own(sources, signals, tf, begins, end, watch["release"], others_ran=ran)
        shares = judge_own.shares(signals, rule)
    else:
        reads = _read(live, watch, begins, end)
        shares = None

    def since_flip(part: Analysis | OwnAnalysis, each: float) -> Decision:
        severe = tuple(group["example"] for group in part.severe.document()[:_SEVERE_NAMED])
        compared = skill.judged(part.compared, rule.skill, each)
        holes, count = _holes(part, end), part.bar_count
        findings = Findings(part.tally(), severe, holes, part.causes(), compared, shares, count)
        return gate.decide(findings, rule, each, _plan(part, watch, whole_alpha, reads[0]))

    def since_later(part: Analysis | OwnAnalysis, each: float) -> Decision:
        findings = _findings(part, rule, each, shares)
        return gate.decide(findings, rule, each, _plan(part, watch, alpha, reads[0]))

    decision, symbols = _decided(reads[0], since_flip, alpha)
    whole, details = _whole(reads[0]), watch.get("details", {})
    if symbols:
        symbols = by_symbol.with_drift(symbols, details)
        drifted = by_symbol.worst_drift(symbols)
    elif not isinstance(live, LogFiles):
        drifted = drift.of_logs(_logs(live), watch["release"], details)
    later = [(_whole(read), _decided(read, since_later, alpha)[0]) for read in reads[1:]]
    failed = [(part, decided) for part, decided in later if decided.verdict == gate.FAIL]
    if failed and decision.verdict != gate.FAIL:
        part, decided = failed[-1]  # the shortest period names the break best
        since = f"{datetime.fromtimestamp(part.window.start / 1000, UTC):%Y-%m-%d %H:%MZ}"
        reasons = tuple(f"since {since}: {reason}" for reason in decided.reasons)
        reasons = (*reasons, *_holes(whole, end))
        decision = Decision(gate.FAIL, decision.criteria, reasons, skill=decision.skill)
    return decision, {
        "kind": "guard-report",
        "release": watch["release"],
        "made": now.isoformat(),
        "window": {"from_ms": begins[0], "to_ms": end},
        "rule": watch["rule"],
        "alpha": alpha,
        **gate.document(decision),
        "later": [_later(part, decided) for part, decided in later],
        "bars": whole.bar_count,
        "drift": drifted.document() if drifted else None,
        **({"symbols": [part.document() for part in symbols]} if symbols else {}),
        "findings": whole.document(),
    }


def _decided(
    read: BySymbol | OwnAnalysis,
    decide: Callable[[Any, float], Decision],
    alpha: float,
) -> tuple[Decision, list[by_symbol.Judged]]:
    """The decision, and each symbol's where there are several."""
    if isinstance(read, OwnAnalysis):
        return decide(read, alpha), []
    return by_symbol.judge(read, decide, alpha)


def _whole(read: BySymbol | OwnAnalysis) -> Analysis | OwnAnalysis:
    return read if isinstance(read, OwnAnalysis) else read.whole


def _read(live: Path, watch: Mapping[str, Any], begins: Sequence[int], end: int) -> list[BySymbol]:
    """The built-in application's lines since each start."""
    # The first one's skill goes on where the gate's ended: at the release's first bar.
    froms = [0, *begins[1:]]
    symbols = watch.get("symbols", ())
    parts = [
        BySymbol(Window(begin, end, watch["release"], compared_from=compared), symbols, _MOST_BARS)
        for begin, compared in zip(begins, froms, strict=True)
    ]
    first = logname.name_of(f"{datetime.fromtimestamp(watch['since'], UTC):%Y%m%d}")
    logs = _logs(live)
    sources = [source for source in logs if source.name >= first]
    earlier = reading.before(logs, sources, watch["release"])
    reading.analyse(earlier, Earlier(parts[0]), workers=1)
    reading.analyse(sources, _Several(parts), workers=1)
    return parts


def _logs(live: Path) -> list[reading.Source]:
    return reading.ordered(live) if live.is_dir() else []


def sources_in(files: LogFiles, *, since: float = 0.0) -> list[reading.Source]:
    """The logs of an application of the team's own that were written `since` (epoch seconds)."""
    sources = []
    for name in names_in(files):
        path = Path(files.root, name)
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime >= since - _CLOCKS_DIFFER_S:
                sources.append(reading.Source(path, status.st_size, name))
    return sources


def read_own(
    sources: Sequence[reading.Source],
    signals: Signals,
    tf: str,
    begins: Sequence[int],
    end: int,
    release: str | None,
    most: int = _MOST_BARS,
    others_ran: Sequence[Mapping[str, Any]] = (),
) -> list[OwnAnalysis]:
    """The lines of an application of the team's own since each start (epoch ms).

    others_ran: as macd/host/deploy/ledger.py has it: what was written then is another release's.
    """
    named = release if "release" in signals.map else None
    without = tuple(_span(ran) for ran in others_ran) if named is None else ()
    parts = [
        OwnAnalysis(Window(begin, end, named, strict=False, without=without), signals, tf, most)
        for begin in begins
    ]
    judge_own.analyse(sources, signals, parts)
    return parts


def _span(ran: Mapping[str, Any]) -> tuple[int, int]:
    """In whole ms, its edges included; what goes on has no end."""
    until = ran["until"]
    return math.floor(ran["since"] * 1000), _NEVER if until is None else math.ceil(until * 1000)


def _plan(
    part: Analysis | OwnAnalysis,
    watch: Mapping[str, Any],
    alpha: float,
    read: BySymbol | OwnAnalysis,
) -> Plan | None:
    """The last look of a watch; None while no bar says how long one is.

    All symbols together have as many bars as there are symbols at a time.
    """
    several = len(read.parts) if isinstance(read, BySymbol) else 0
    count = 1 if part.window.is_part else max(1, several)
    newest, lasts_ms = part.newest_signal, watch["until"] * 1000 - part.window.start
    step = step_ms(newest.tf) if newest and newest.tf else 0
    if not step:
        return None
    bars, is_last = math.ceil(lasts_ms / step) + 1, part.window.end >= watch["until"] * 1000
    return Plan(count * bars, is_last, alpha)


def _findings(
    part: Analysis | OwnAnalysis, rule: Rule, alpha: float, shares: tuple[Share, ...] | None
) -> Findings:
    compared = skill.judged(part.compared, rule.skill, alpha, intervals=False)
    tally, causes = part.tally(), part.causes()
    return Findings(tally, causes=causes, skill=compared, shares=shares, bars=part.bar_count)


def _later(part: Analysis | OwnAnalysis, decision: Decision) -> dict[str, Any]:
    rates = {row.name: [row.successes, row.trials] for row in decision.criteria}
    return {"from_ms": part.window.start, "verdict": decision.verdict, "rates": rates}


def _holes(analysis: Analysis | OwnAnalysis, now_ms: int) -> tuple[str, ...]:
    """Which lines or bars are missing; with holes in the evidence nothing is PASS."""
    newest, whole = analysis.newest_signal, analysis.whole
    holes = []
    if newest is None or gate.too_old(now_ms - newest.time, step_ms(newest.tf)):
        holes.append(STALE)
    if whole.broken or whole.incomplete:
        holes.append(f"lines or bars are missing at {whole.broken + whole.incomplete} places")
    if whole.intruders:
        holes.append("lines of another release stand between those of the live one")
    return tuple(holes)
