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

import json
import os
import resource
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from macd.host import durable, untrusted
from macd.host.judge import gate, reading
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import Decision, Findings, Rule
from macd.host.judge.parse import Bad, Line, step_ms

MEMORY = 256 << 20  # bytes of addresses; the worst logs that we could make took 120 MiB
WITHIN_S = 300.0
_MOST_ANSWER = 2 << 20
_MOST_FILES = 10_000
_MOST_REASONS = 50
_DESCRIPTORS = 4096
_MOST_BARS = 50_000  # of each start: bars of a minute for a month
MOST = 6  # more starts find a break sooner but each needs more bars to be sure of it
_SEVERE_NAMED = 5


class CannotJudgeError(Exception):
    """The logs were not judged, and why; it says nothing about their content."""


@dataclass(frozen=True)
class Judgement:
    """rates: successes and trials by criterion. document: the report, as `evaluate` makes it."""

    verdict: str
    reasons: tuple[str, ...]
    rates: dict[str, list[int]]
    document: dict[str, Any]


def judge(
    live: Path,
    watch: Mapping[str, Any],
    now: datetime,
    *,
    memory: int = MEMORY,
    within_s: float = WITHIN_S,
) -> Judgement:
    """What the logs in `live` say of the watch `watch`.

    Raises:
        CannotJudgeError: it needed too much memory or time, was killed, or the logs can't be read.
    """
    try:
        reader, writer = os.pipe()
        child = os.fork()
    except OSError as error:
        raise CannotJudgeError(f"no process could be started: {error.strerror}") from error
    if not child:
        _answer(writer, live, watch, now, memory, within_s)
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
    return _understood(raw)


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
        return Judgement(document["verdict"], reasons, rates, {**document, "reasons": reasons})
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CannotJudgeError("its answer can't be understood") from error


def _answer(
    writer: int,
    live: Path,
    watch: Mapping[str, Any],
    now: datetime,
    memory: int,
    within_s: float,
) -> NoReturn:
    """In the child: judge, write, end. No exit handler of the parent is run."""
    code = 1
    too_much = f"it needed more than {memory >> 20} MiB of memory".encode()
    try:
        _drop_rights(writer, live, memory, within_s)
        answer = _judged(live, watch, now)
        code = 0
    except MemoryError:
        answer = too_much
    except BaseException as error:  # whatever it is, it is reported and ends here
        answer = f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace")
    try:
        durable.write_all(writer, answer)
    finally:
        os._exit(code)


def _judged(live: Path, watch: Mapping[str, Any], now: datetime) -> bytes:
    if live.is_dir():
        with os.scandir(live) as entries:
            for count, _ in enumerate(entries):
                if count >= _MOST_FILES:
                    raise ValueError(f"more than {_MOST_FILES} files in data/live")
    _, document = evaluate(live, watch, now)
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


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

    def __init__(self, parts: Sequence[Analysis]) -> None:
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
    live: Path, watch: Mapping[str, Any], now: datetime
) -> tuple[Decision, dict[str, Any]]:
    """What the logs in `live` say, and the report of it.

    The verdict is the one since the flip, but FAIL where any later start fails.
    """
    moments = starts(watch)
    alpha, rule = gate.ALPHA / len(moments), Rule(**watch["rule"])
    end = round(now.timestamp() * 1000)
    begins = [round(at * 1000) for at in moments if at == moments[0] or at < now.timestamp()]
    parts = [Analysis(Window(begin, end, watch["release"]), _MOST_BARS) for begin in begins]
    first = f"trades_{datetime.fromtimestamp(watch['since'], UTC):%Y%m%d}.jsonl"
    logs = reading.ordered(live) if live.is_dir() else []
    sources = [source for source in logs if source.name >= first]
    reading.analyse(sources, _Several(parts), workers=1)
    whole = parts[0]
    severe = tuple(group["example"] for group in whole.severe.document()[:_SEVERE_NAMED])
    decision = gate.decide(
        Findings(whole.tally(), severe, _holes(whole, end), whole.causes()), rule, alpha
    )
    later = [
        (part, gate.decide(Findings(part.tally(), causes=part.causes()), rule, alpha))
        for part in parts[1:]
    ]
    failed = [(part, decided) for part, decided in later if decided.verdict == gate.FAIL]
    if failed and decision.verdict != gate.FAIL:
        part, decided = failed[-1]  # the shortest period names the break best
        since = f"{datetime.fromtimestamp(part.window.start / 1000, UTC):%Y-%m-%d %H:%MZ}"
        reasons = tuple(f"since {since}: {reason}" for reason in decided.reasons)
        decision = Decision(gate.FAIL, decision.criteria, (*reasons, *_holes(whole, end)))
    return decision, {
        "kind": "guard-report",
        "release": watch["release"],
        "made": now.isoformat(),
        "window": {"from_ms": begins[0], "to_ms": end},
        "rule": watch["rule"],
        "alpha": alpha,
        **gate.document(decision),
        "later": [_later(part, decided) for part, decided in later],
        "bars": len(whole.bars) + whole.junk,
        "findings": whole.document(),
    }


def _later(part: Analysis, decision: Decision) -> dict[str, Any]:
    rates = {row.name: [row.successes, row.trials] for row in decision.criteria}
    return {"from_ms": part.window.start, "verdict": decision.verdict, "rates": rates}


def _holes(analysis: Analysis, now_ms: int) -> tuple[str, ...]:
    """Which lines or bars are missing; with holes in the evidence nothing is PASS."""
    newest, whole = analysis.newest_signal, analysis.whole
    holes = []
    if newest is None or gate.too_old(now_ms - newest.time, step_ms(newest.tf)):
        holes.append("stale: no new bar is logged")
    if whole.broken or whole.incomplete:
        holes.append(f"lines or bars are missing at {whole.broken + whole.incomplete} places")
    if whole.intruders:
        holes.append("lines of another release stand between those of the live one")
    return tuple(holes)
