"""Findings that a person looked at and accepted: which, of what, from when to when, and why.

Markets do crash, exchanges do stop, stocks do rest at night. Whoever knows that a finding is the
market itself says so here; the findings stay on record, with the reason. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from macd.app.market.bars import symbol_name
from macd.app.market.findings import Finding, Limits

# What can be the market itself. The other findings are damage, and no bars to compute with.
ACCEPTABLE = (
    *("gap", "missing", "zero-volume", "frozen", "spike", "jump", "denomination"),
    *("overlap", "shifted", "local-time"),
)
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
        """Whether this finding is meant."""
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
        match = next((one for one in accepted if one.covers(finding)), None)
        level = replace(finding, level="accepted", reason=match.reason) if match else finding
        made.append(level)
    return made


def counted(findings: Sequence[Finding]) -> str:
    """How many findings there are beside the errors, as ", 3 warnings, 1 accepted"."""
    levels = (("warn", "warnings"), ("accepted", "accepted"))
    counts = [(sum(f.level == level for f in findings), word) for level, word in levels]
    return "".join(f", {count:,} {word}" for count, word in counts if count)


def unused(findings: Sequence[Finding], accepted: Sequence[Accepted]) -> list[Accepted]:
    """What was accepted and isn't there: a slip in symbol or times, or bars mended since."""
    return [one for one in accepted if not any(one.covers(finding) for finding in findings)]


def record(findings: Sequence[Finding], limits: Limits) -> dict[str, Any]:
    """For run, card and manifest: limits other than the usual, and what was accepted, counted."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        if finding.level == "accepted":
            key = (finding.symbol, finding.check, finding.reason)
            groups.setdefault(key, []).append(finding)
    return {
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
    errors = [one for one in findings if one.level == "error" and one.check in ACCEPTABLE]
    limits: dict[str, float] = {}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in errors:
        groups.setdefault((finding.check, finding.symbol), []).append(finding)
        if finding.allow:
            name, value = finding.allow
            limits[name] = max(limits.get(name, value), value)
    if any(not one.allow for one in errors):
        limits = {}  # some have no limit, so none would be enough
    accept = []
    for (check, symbol), several in groups.items():
        spans = sorted(one.whole for one in several if one.whole)
        if len(spans) > _FEW:
            spans = [(spans[0][0], max(last for _, last in spans))]
        accept += [Accepted(check, symbol, since, until, "WHY") for since, until in spans]
        accept += [] if spans else [Accepted(check, symbol, None, None, "WHY")]
    return limits, accept


def way_out(findings: Sequence[Finding]) -> str:
    """How to go on where the market was really so, in the words to type; "" where nothing helps.

    The options are those of `data.verify` and of `python -m macd.app.train`.
    """
    limits, accept = wanted(findings)
    if not accept:
        return ""
    typed = [f'--accept "{one}"' for one in accept[:_LISTED]]
    lines = [
        "if the market was really so, accept it (your reason is kept in run, card and manifest):",
        *(f"  {text}" for text in typed),
    ]
    if len(accept) > _LISTED:
        lines.append(f"  and {len(accept) - _LISTED} more, one for each kind and symbol")
    if limits:
        text = ",".join(f"{name}={value}" for name, value in limits.items())
        lines += ["or allow as much for all bars:", f"  --limits {text}"]
    lines.append("in an inventory, which data.verify and train both read:")
    entries = ", ".join(_yaml(one) for one in accept[:_LISTED])
    lines.append(f"  train: {{accept: [{entries}]}}")
    if limits:
        text = ", ".join(f"{name}: {value}" for name, value in limits.items())
        lines.append(f"  train: {{limits: {{{text}}}}}")
    return "\n".join(lines)


def _yaml(one: Accepted) -> str:
    values = one.as_json()
    values |= {name: f'"{values[name]}"' for name in ("from", "to") if name in values}
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def _parts(text: str) -> dict[str, str]:
    made: dict[str, str] = {}
    rest = text
    while rest:
        name, equals, rest = rest.partition("=")
        name = name.strip()
        if not equals or name not in _KEYS or name in made:
            raise ValueError(f"{text!r} is not understood; it looks like {EXAMPLE}")
        value, rest = (rest, "") if name == "reason" else _split(rest)
        made[name] = value.strip()
    return made


def _split(rest: str) -> tuple[str, str]:
    value, _, after = rest.partition(",")
    return value, after


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
    spans = [one.whole for one in findings if one.whole]
    first = min((since for since, _ in spans), default=None)
    last = max((until for _, until in spans), default=None)
    return {"from": _time_text(first), "to": _time_text(last)}


def _time_text(time: datetime | None) -> str | None:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M}" if time else None
