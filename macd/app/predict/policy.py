"""What to do when a bar closes: the base rule, the models' word, and the position that follows.

One code decides in the service and in the evaluation of a training. Pure: the position before and
what is known at the close go in, the action and the position after come out.

The base rule needs no model: MACD is EMA 12 minus EMA 26 of the close, its signal line EMA 9 of
that (Appel, 1979). Its scores are sums of four conditions, 100 at most. A policy of kind `tilt`
lets the models move them by up to ML_WEIGHT points; one of kind `threshold` goes by the models'
probability alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import polars as pl

from macd.heads import HORIZONS, bars_ahead, is_head
from macd.train_options import FEE_BPS, LONG, SHORT, SLIPPAGE_BPS, Hold, PolicyKind

FAST, SLOW, SIGNAL = 12, 26, 9
CROSSED, SIDE, RISING, TREND = 50.0, 20.0, 15.0, 15.0
ACT = 60.0  # a score from here on acts, when the other one is smaller
ML_WEIGHT = 30.0
ANY_HEAD = "all"  # thresholds of every head that is not named
_WORDS = {1: "BUY", -1: "SELL", 0: "HOLD"}
_SIDES = {1: "long", -1: "short", 0: "flat"}
_LONGEST_LEFT = 10_000  # bars; no horizon comes near


@dataclass(frozen=True)
class Thresholds:
    """Long at a probability of "up" of `long` and above, short at `short` and below."""

    long: float = LONG
    short: float = SHORT


@dataclass(frozen=True)
class Policy:
    """How actions and positions follow from what is known at a bar's close, and what a trade costs.

    thresholds: by head (5h, h5) or ANY_HEAD; only kind `threshold` reads them. size: share of the
    capital that a position holds. hold: `horizon` closes a position when the forecast it rests on
    has run out, `signal` keeps it until the signal turns. fee_bps, slippage_bps: basis points of
    what is bought or sold, each time.
    """

    kind: PolicyKind = "tilt"
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    long_only: bool = False
    size: float = 1.0
    hold: Hold = "horizon"
    fee_bps: float = FEE_BPS
    slippage_bps: float = SLIPPAGE_BPS

    @property
    def cost(self) -> float:
        """What buying or selling one unit costs, as a fraction."""
        return (self.fee_bps + self.slippage_bps) / 10_000

    def at(self, head: str | None) -> Terms:
        """The policy where this head decides; None, where no model names one, is the longest."""
        bars = bars_ahead(head) if head and is_head(head) else max(HORIZONS)
        named = {bars_ahead(name): t for name, t in self.thresholds.items() if name != ANY_HEAD}
        chosen = named.get(bars) or self.thresholds.get(ANY_HEAD) or Thresholds()
        return Terms(
            self.kind, chosen.long, chosen.short, self.long_only, self.hold == "horizon", bars
        )

    def as_json(self) -> dict[str, Any]:
        """As `read_policy` reads it."""
        return dataclasses.asdict(self)


KEYS = frozenset(f.name for f in dataclasses.fields(Policy))


class Terms(NamedTuple):
    """A policy at one head; a tuple, because an evaluation asks it a million times."""

    kind: PolicyKind
    long: float
    short: float
    long_only: bool
    expires: bool
    horizon: int


class Position(NamedTuple):
    """side: 1 long, -1 short, 0 flat. left: bars until the last signal for it has run out."""

    side: int = 0
    left: int = 0

    def as_json(self, size: float) -> dict[str, Any]:
        """As a signal line has it."""
        return {
            "side": _SIDES[self.side],
            "size": size if self.side else 0.0,
            "bars_left": self.left,
        }


FLAT = Position()


@dataclass(frozen=True)
class Base:
    """The base rule on one bar: macd, signal, hist in units of price; scores from 0 to 100."""

    macd: float
    signal: float
    hist: float
    buy: float
    sell: float


class Decision(NamedTuple):
    """action: BUY, SELL or HOLD. buy, sell: the scores it was made from. position: after it."""

    action: str
    buy: float
    sell: float
    position: Position


def read_policy(raw: Any) -> Policy:
    """A policy from plain values; what is left out is as usual.

    Raises ValueError naming every unknown key and wrong value.
    """
    if not isinstance(raw, Mapping):
        raise ValueError('must look like {"kind": "threshold", "fee_bps": 10}')
    unknown = sorted(set(raw) - KEYS)
    problems = [f"{name} is unknown (known: {', '.join(sorted(KEYS))})" for name in unknown]
    values = {name: value for name, value in raw.items() if name in KEYS}
    if "thresholds" in values:
        values["thresholds"] = _thresholds(values["thresholds"], problems)
    policy = Policy(**values)
    problems += [text for good, text in _ranges(policy) if not good]
    if problems:
        raise ValueError("; ".join(problems))
    return policy


def read_position(raw: Any) -> Position:
    """The position that a signal line has; flat where it has none that can be read."""
    if not isinstance(raw, Mapping):
        return FLAT
    side = next((number for number, name in _SIDES.items() if name == raw.get("side")), 0)
    left = raw.get("bars_left")
    if not side or type(left) is not int or not 0 <= left <= _LONGEST_LEFT:
        return FLAT
    return Position(side, left)


def bases(closes: pl.Series) -> pl.DataFrame:
    """The base rule on every bar: columns macd, signal, hist, buy, sell; closes oldest first.

    A row depends on its own and earlier closes alone.
    """
    level = _ema(closes, FAST) - _ema(closes, SLOW)
    signal = _ema(level, SIGNAL)
    hist = level - signal
    before = hist.shift(1, fill_value=0.0)

    def points(crossed: pl.Series, side: pl.Series, moved: pl.Series, trend: pl.Series) -> Any:
        parts = ((crossed, CROSSED), (side, SIDE), (moved, RISING), (trend, TREND))
        return sum(condition.cast(pl.Float64) * worth for condition, worth in parts)

    buy = points((before <= 0) & (hist > 0), hist > 0, hist > before, level > 0)
    sell = points((before >= 0) & (hist < 0), hist < 0, hist < before, level < 0)
    return pl.DataFrame({"macd": level, "signal": signal, "hist": hist, "buy": buy, "sell": sell})


def base(closes: pl.Series) -> Base:
    """The base rule on the last close; at least two closes, oldest first."""
    return Base(*bases(closes).row(-1))


def decide(
    terms: Terms,
    buy: float,
    sell: float,
    p: float | None,
    position: Position = FLAT,
    elapsed: int = 1,
) -> Decision:
    """What to do at the close of a bar.

    The action is what the signal says; where it says nothing, the closing of a position whose time
    is over; else HOLD.

    Args:
        buy, sell: the base rule's scores. p: probability of "up" within the horizon; None or NaN
            where no model speaks: a tilt is then zero, and a threshold gives no signal.
        position: the one that is held. elapsed: bars since it was decided on.
    """
    if terms.kind == "tilt":
        tilt = ML_WEIGHT * (2.0 * p - 1.0) if p is not None and math.isfinite(p) else 0.0
        buy = min(100.0, max(0.0, buy + tilt))
        sell = min(100.0, max(0.0, sell - tilt))
        signal = (buy >= ACT and buy > sell) - (sell >= ACT and sell > buy)
    else:  # a comparison with NaN is false
        signal = 0 if p is None else (p >= terms.long) - (p <= terms.short)
    after = _moved(terms, position, signal, elapsed)
    closing = (after.side == 0) * -position.side
    return Decision(_WORDS[signal or closing], buy, sell, after)


def _moved(terms: Terms, position: Position, signal: int, elapsed: int) -> Position:
    if signal < 0 and terms.long_only:
        return FLAT
    if signal:
        return Position(signal, terms.horizon)
    left = max(0, position.left - elapsed)
    if terms.expires and not left:
        return FLAT
    return Position(position.side, left)


def _thresholds(raw: Any, problems: list[str]) -> dict[str, Thresholds]:
    if not isinstance(raw, Mapping):
        problems.append('thresholds must look like {"5h": {"long": 0.6, "short": 0.4}}')
        return {}
    made = {}
    for head, given in raw.items():
        if head != ANY_HEAD and not is_head(head):
            problems.append(f"thresholds: {head!r} is no head, and not {ANY_HEAD}")
        elif not isinstance(given, Mapping) or set(given) - {"long", "short"}:
            problems.append(f"thresholds: {head}: only long and short")
        else:
            made[head] = Thresholds(**given)
    return made


def _ranges(policy: Policy) -> list[tuple[bool, str]]:
    kinds, holds = get_args(PolicyKind), get_args(Hold)
    ordered = all(
        _number(t.long) and _number(t.short) and 0 <= t.short < t.long <= 1
        for t in policy.thresholds.values()
    )
    costs = all(_number(c) and 0 <= c <= 1000 for c in (policy.fee_bps, policy.slippage_bps))
    return [
        (policy.kind in kinds, f"kind: {policy.kind!r} is none of {', '.join(kinds)}"),
        (policy.hold in holds, f"hold: {policy.hold!r} is none of {', '.join(holds)}"),
        (isinstance(policy.long_only, bool), "long_only: true or false"),
        (_number(policy.size) and 0 < policy.size <= 1, "size: above 0, at most 1"),
        (ordered, "thresholds: numbers from 0 to 1, short below long"),
        (costs, "fee_bps and slippage_bps: from 0 to 1000"),
    ]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ema(values: pl.Series, span: int) -> pl.Series:
    return values.ewm_mean(span=span, adjust=False)
