"""What a check says about bars, where its limits are, and what a person accepted of it.

Markets do crash, exchanges do stop, stocks do rest at night. Whoever knows that a finding is the
market itself accepts it with a reason; the finding stays on record with that reason. Pure: no file,
no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from macd.errors import UsageError
from macd.symbols import symbol_name
from macd.train_options import ACCEPTABLE

Level = Literal["error", "warn", "accepted"]
Millis = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One defect. `row` counts from 0 in file order (-1: the file as a whole), `time` is UTC.

    allow: the limit and the value that would make a warning of an error, where one does.
    remedy: what mends just this one; `{bars}` stands for the options that name these bars.
    reason: why a person accepted it (see accepted.py).
    span: the first and the last time it is about, where that is more than `time`.
    """

    check: str
    level: Level
    row: int
    time: datetime | None
    detail: str
    symbol: str = ""
    allow: tuple[str, float] | None = None
    remedy: str = ""
    reason: str = ""
    span: tuple[datetime, datetime] | None = None

    @property
    def whole(self) -> tuple[datetime, datetime] | None:
        """The first and the last time it is about; None for the file as a whole."""
        return self.span or ((self.time, self.time) if self.time else None)

    def __str__(self) -> str:
        where = f"row {self.row}, {self.time:%Y-%m-%d %H:%M}" if self.time else "the whole file"
        reason = f" (accepted: {self.reason})" if self.reason else ""
        return f"{self.level:5} {self.check:12} {where}: {self.detail}{reason}"


@dataclass(frozen=True)
class Limits:
    """Thresholds, made for hourly bars of liquid crypto markets; `--limits name=value` changes one.

    Durations are in bars. `*_warn` is where a finding starts, `*_error` where it becomes an error.
    """

    gap_error: int = 24  # exchanges do stop for hours; longer holes break features that look back
    missing_error: float = 0.01  # share of all bars between first and last
    zero_volume_warn: int = 3
    zero_volume_error: int = 48
    frozen_warn: int = 6
    frozen_error: int = 48
    spike_z: float = 15.0  # in robust standard deviations of the bars around it ...
    spike_min: float = 0.03  # ... and at least this log return
    spike_error: float = 0.7  # twice or half the price for one bar: a wrong digit, not a market
    wick_min: float = 0.15  # log distance of high or low from everything around it
    jump: float = 0.5  # log return that does not come back ...
    jump_error: float = 1.6  # ... and by five times or to a fifth: another unit or asset
    overlap_warn: float = 0.95  # share of the main asset's bars that the other one has too
    overlap_error: float = 0.5
    overlap_bars: int = 1000

    def changed(self, given: str | Mapping[str, float]) -> Limits:
        """With "frozen_warn=12,spike_z=20" applied; UsageError names what can be set."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        made = dict(limits)
        for name, value in (_pairs(given) if isinstance(given, str) else given).items():
            try:
                made[name] = type(limits[name])(value)
                if isinstance(value, bool) or not 0 <= made[name] < float("inf"):
                    raise ValueError
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                shown = f"{name}={value}" if value != "" else name
                raise UsageError(
                    f"limit {shown!r} is not understood",
                    why="known, with their defaults: "
                    + ", ".join(f"{key}={default}" for key, default in limits.items()),
                    hint="--limits frozen_warn=12,spike_z=20",
                ) from error
        return Limits(**made)

    def differing(self) -> dict[str, float]:
        """Those that are not the usual ones."""
        usual = Limits()
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if value != getattr(usual, name)}


def _pairs(text: str) -> dict[str, str]:
    items = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in items}


_AGAIN = "invoke data.import THAT-FILE --overwrite"
_ORIGINAL = "invoke data.import ORIGINAL-FILE --overwrite"
REMEDIES = {  # by check; a finding of another one only a person can judge
    "duplicate": f"{_AGAIN}: it leaves exact repeats out, and names those that differ",
    "empty": "invoke data.import FILE, or invoke data.fetch --symbol BTC/USDT --since 2023-01-01",
    "future": f"{_ORIGINAL} --timezone ZONE; if they are no real bars, --until TIME",
    "gap": "import the missing bars, if anybody has them: invoke data.import THAT-FILE",
    "local-time": f"{_ORIGINAL} --timezone ZONE",
    "misaligned": f"{_ORIGINAL} --timezone OFFSET, or --time-is close",
    "missing": "if these are bars of another timeframe, put them where they belong: "
    "invoke data.import ORIGINAL-FILE --tf TIMEFRAME",
    "overlap": "bring the other asset's bars of the same time, or leave it out of train.cross",
    "shifted": f"{_ORIGINAL} --timezone OFFSET for the one that isn't UTC",
    "unfinished": f"{_AGAIN}: it leaves a bar out that is still open",
    "unsorted": f"{_AGAIN}: it sorts",
}


def moment(ms: int | np.int64) -> datetime:
    """UTC time of epoch milliseconds."""
    return datetime.fromtimestamp(int(ms) / 1000, tz=UTC)


def runs(mask: Mask) -> list[tuple[int, int]]:
    """Half-open [start, stop) of every unbroken stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


# What can be the market itself. The other findings are damage, and no bars to compute with.
_KEYS = ("check", "symbol", "from", "to", "reason")
EXAMPLE = "check=gap,symbol=BTCUSDT,from=2018-02-08,to=2018-02-10,reason=WHY"
_FEW = 3  # findings of one kind that are named one by one; more are named as one span
_LISTED = 12


@dataclass(frozen=True)
class Accepted:
    """Findings of one kind about one symbol, both ends included; None: from the first, to the last.

    A finding about a file as a whole (missing, overlap) has no time, and is met by any. One about
    a stretch is meant where all of it is: a gap that has grown since is another one.
    """

    check: str
    symbol: str
    since: datetime | None
    until: datetime | None
    reason: str

    def covers(self, finding: Finding) -> bool:
        if (finding.check, finding.symbol) != (self.check, self.symbol):
            return False
        if finding.whole is None:
            return True
        first, last = finding.whole
        after = self.since is None or first >= self.since
        return after and (self.until is None or last <= self.until)

    def as_json(self) -> dict[str, str]:
        """As it is written in settings and inventories; ends that are open are left out."""
        ends = {"from": _time_text(self.since), "to": _time_text(self.until)}
        shown = {name: time for name, time in ends.items() if time}
        return {"check": self.check, "symbol": self.symbol, **shown, "reason": self.reason}

    def __str__(self) -> str:
        """As it is typed after --accept."""
        return ",".join(f"{name}={value}" for name, value in self.as_json().items())


def parse(given: Any) -> Accepted:
    """One accepted finding from a mapping, or from text as in EXAMPLE; the reason comes last.

    Raises ValueError saying what is wrong.
    """
    raw = _parts(given) if isinstance(given, str) else given
    if not isinstance(raw, Mapping) or set(raw) - set(_KEYS):
        raise ValueError(f"{given!r} must have {', '.join(_KEYS)}, as in {EXAMPLE}")
    check, symbol = str(raw.get("check", "")), str(raw.get("symbol", ""))
    if check not in ACCEPTABLE:
        raise ValueError(
            f"check {check!r} can't be accepted, only {', '.join(ACCEPTABLE)}: "
            "the others are damage, and the file must be corrected"
        )
    reason = " ".join(str(raw.get("reason", "")).split())
    if not symbol or not reason:
        raise ValueError(f"{given!r} needs a symbol and a reason, as in {EXAMPLE}")
    since, until = _time(raw.get("from")), _time(raw.get("to"), end=True)
    if since and until and until < since:
        raise ValueError(f"{given!r} ends before it begins")
    return Accepted(check, symbol_name(symbol), since, until, reason[:500])


def judged(findings: Iterable[Finding], accepted: Sequence[Accepted]) -> list[Finding]:
    """The findings, those that somebody accepted with the level `accepted` and the reason."""
    made = []
    for finding in findings:
        match = next((entry for entry in accepted if entry.covers(finding)), None)
        made.append(replace(finding, level="accepted", reason=match.reason) if match else finding)
    return made


def counted(findings: Sequence[Finding]) -> str:
    """How many findings there are beside the errors, as ", 3 warnings, 1 accepted"."""
    levels = (("warn", "warnings"), ("accepted", "accepted"))
    counts = [(sum(f.level == level for f in findings), word) for level, word in levels]
    return "".join(f", {count:,} {word}" for count, word in counts if count)


def unused(findings: Sequence[Finding], accepted: Sequence[Accepted]) -> list[Accepted]:
    """What was accepted and isn't there: a wrong symbol or time, or bars corrected since."""
    return [entry for entry in accepted if not any(entry.covers(finding) for finding in findings)]


def record(findings: Sequence[Finding], limits: Limits, market: str = "crypto") -> dict[str, Any]:
    """For run, card and manifest: limits other than the usual, and what was accepted, counted.

    market: whose hours the bars were checked by; named where it is not the usual one.
    """
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        if finding.level == "accepted":
            key = (finding.symbol, finding.check, finding.reason)
            groups.setdefault(key, []).append(finding)
    return {
        **({} if market == "crypto" else {"market": market}),
        "limits": limits.differing(),
        "accepted": [
            {
                "symbol": symbol,
                "check": check,
                "count": len(several),
                **_from_to(several),
                "detail": several[0].detail,
                "reason": reason,
            }
            for (symbol, check, reason), several in groups.items()
        ],
    }


def wanted(findings: Sequence[Finding]) -> tuple[dict[str, float], list[Accepted]]:
    """What would let these errors pass: the limits, and what to accept where no limit does.

    Nothing for errors that can't be accepted. The reason is for a person to write.
    """
    errors = [
        finding for finding in findings if finding.level == "error" and finding.check in ACCEPTABLE
    ]
    limits: dict[str, float] = {}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in errors:
        groups.setdefault((finding.check, finding.symbol), []).append(finding)
        if finding.allow:
            name, value = finding.allow
            limits[name] = max(limits.get(name, value), value)
    if any(not finding.allow for finding in errors):
        limits = {}  # some have no limit, so none would be enough
    accept = []
    for (check, symbol), several in groups.items():
        spans = sorted(finding.whole for finding in several if finding.whole)
        if len(spans) > _FEW:
            spans = [(spans[0][0], max(last for _, last in spans))]
        accept += [Accepted(check, symbol, since, until, "WHY") for since, until in spans]
        accept += [] if spans else [Accepted(check, symbol, None, None, "WHY")]
    return limits, accept


def how_to_accept(findings: Sequence[Finding]) -> str:
    """What to type when the market really was so; "" when nothing can be accepted.

    The options are those of `data.verify` and of `python -m macd.app.train`.
    """
    limits, accept = wanted(findings)
    if not accept:
        return ""
    typed = [f'--accept "{entry}"' for entry in accept[:_LISTED]]
    lines = [
        "if the market really was so, accept it (run, card and manifest record your reason):",
        *(f"  {text}" for text in typed),
    ]
    if len(accept) > _LISTED:
        lines.append(f"  and {len(accept) - _LISTED} more, one for each kind and symbol")
    if limits:
        text = ",".join(f"{name}={value}" for name, value in limits.items())
        lines += ["or allow as much for all bars:", f"  --limits {text}"]
    lines.append("in an inventory, which data.verify and train both read:")
    entries = ", ".join(_yaml(entry) for entry in accept[:_LISTED])
    lines.append(f"  train: {{accept: [{entries}]}}")
    if limits:
        text = ", ".join(f"{name}: {value}" for name, value in limits.items())
        lines.append(f"  train: {{limits: {{{text}}}}}")
    return "\n".join(lines)


def _yaml(entry: Accepted) -> str:
    values = entry.as_json()
    values |= {name: f'"{values[name]}"' for name in ("from", "to") if name in values}
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def _parts(text: str) -> dict[str, str]:
    made: dict[str, str] = {}
    rest = text
    while rest:
        name, equals, rest = rest.partition("=")
        name = name.strip()
        if not equals or name not in _KEYS or name in made:
            raise ValueError(f"{text!r} is no list of name=value, such as {EXAMPLE}")
        value = rest if name == "reason" else rest.partition(",")[0]
        made[name], rest = value.strip(), rest[len(value) + 1 :]
    return made


def _time(given: Any, *, end: bool = False) -> datetime | None:
    """UTC; a day alone is its beginning, or its end."""
    if given in (None, ""):
        return None
    if end and len(str(given)) == len("2025-10-10"):
        given = f"{given}T23:59"
    try:
        time = datetime.fromisoformat(str(given))
    except ValueError:
        raise ValueError(f"{given!r} is not a time such as 2025-10-10T21:00") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _from_to(findings: Sequence[Finding]) -> dict[str, str | None]:
    spans = [finding.whole for finding in findings if finding.whole]
    first = min((since for since, _ in spans), default=None)
    last = max((until for _, until in spans), default=None)
    return {"from": _time_text(first), "to": _time_text(last)}


def _time_text(time: datetime | None) -> str | None:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M}" if time else None
