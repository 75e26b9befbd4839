"""Do the features still lie where they lay in training? Blocks of bars are judged, not single ones.

Features persist: bars outside the training's quantiles come in runs, so a test of single bars would
alarm always. The mean of a block is compared with the spread of the training's own blocks. Two
shares are judged: of all values those outside, and of the bars those at which one and the same
feature is the furthest out. Of a whole block, mean and spread of the models' mean prediction are
compared with those of out-of-fold predictions. Drift only warns. Pure; standard library alone:
hosts run it too.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from macd.host.judge import reading
from macd.host.judge.parse import SIGNAL, Bad
from macd.host.judge.reading import Source

BLOCK = 168  # bars; a week at 1h
SPREADS = 6.0  # from the training's mean to the limit; docs/gate.md has the figures
_LEAST_BLOCKS = 10  # fewer say nothing about a spread
_MOST_FEATURES = 100_000
_MOST_FILES = 200
_READ_OF_EACH, _MOST_READ = 1 << 18, 16 << 20  # bytes of a log's end, of several symbols
Range = tuple[float, float]
DRIFT, NONE, UNPROVED = "drift", "none", "unproved"


class Bar(NamedTuple):
    """Of one bar: how many features lie outside, which one furthest ("": none), whose bar it is.

    p: the mean of the models, where it is a probability.
    """

    outside: float
    worst: str = ""
    symbol: str = ""
    p: float | None = None


@dataclass(frozen=True)
class Expected:
    """What the training said of its blocks. outside, worst: the largest shares that are no drift.

    features: how many there are. p, spread: the limits of the predictions' mean and spread, where
    the training said them. why: why there are no limits (they are 1 then); "" where there are.
    """

    features: int
    outside: float
    worst: float
    p: Range | None = None
    spread: Range | None = None
    why: str = ""


@dataclass(frozen=True)
class Drift:
    """What a block says. bars: at most BLOCK. more: bars to come before it is one.

    outside, worst: the shares of the block; feature: the one that `worst` is about. p, spread: of
    the predictions of a whole block, the mean and the standard deviation.
    """

    outcome: str
    bars: int
    more: int
    outside: float
    outside_limit: float
    worst: float
    worst_limit: float
    feature: str | None
    text: str
    p: float | None = None
    spread: float | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)


def of_logs(
    sources: Sequence[Source], release: str | None, details: Mapping[str, Any]
) -> Drift | None:
    """What the newest block of a release's bars says; None where the release expects nothing.

    sources: logs, the oldest first. details: of the release's manifest.
    """
    bars = recent(sources, release)
    said = expected(details, bars[-1].symbol if bars else "")
    return judge(said, bars) if said else None


def recent(sources: Sequence[Source], release: str | None) -> list[Bar]:
    """The newest bars of a release, at most BLOCK, of one asset, oldest first.

    The end of each log is read, and no more logs than it takes.
    """
    bars: list[Bar] = []
    for source in sources[: -_MOST_FILES - 1 : -1]:
        for line in reading.from_end(source):
            if isinstance(line, Bad) or line.kind != SIGNAL or line.outside is None:
                continue
            if release in (None, line.release) and (not bars or line.symbol == bars[0].symbol):
                bars.append(Bar(line.outside, line.worst, line.symbol, line.average))
            if len(bars) == BLOCK:
                return bars[::-1]
    return bars[::-1]


def recent_of(
    sources: Sequence[Source], release: str | None, symbols: Sequence[str]
) -> dict[str, list[Bar]]:
    """The newest bars of each of several symbols, at most BLOCK, oldest first; see `recent`."""
    bars: dict[str, list[Bar]] = {symbol: [] for symbol in symbols}
    lacking = set(symbols)
    most = min(_MOST_READ, len(symbols) * _READ_OF_EACH)
    newest = [source for day in reading.by_day(sources)[-_MOST_FILES:] for source in day]
    for source in reversed(newest):
        for line in reading.from_end(source, most) if lacking else ():
            if isinstance(line, Bad) or line.kind != SIGNAL or line.outside is None:
                continue
            if line.symbol in lacking and release in (None, line.release):
                of_symbol = bars[line.symbol]
                of_symbol.append(Bar(line.outside, line.worst, line.symbol, line.average))
                if len(of_symbol) == BLOCK:
                    lacking.discard(line.symbol)
    return {symbol: of_symbol[::-1] for symbol, of_symbol in bars.items()}


def expected(details: Mapping[str, Any], symbol: str = "") -> Expected | None:
    """What a release's details say of an asset ("": the trained one); None where they say nothing.

    They are signed, but not by this code: what can't be used counts as not there.
    """
    try:
        said = details["drift"]
        blocks = said["assets"][symbol or details["symbol"]]
        features, count = int(blocks["features"]), int(blocks["count"])
        if int(said["block"]) != BLOCK or not 0 < features < _MOST_FEATURES:
            return None
        if count < _LEAST_BLOCKS:
            why = f"the training had {count} blocks of {BLOCK} bars, it takes {_LEAST_BLOCKS}"
            return Expected(features, 1.0, 1.0, why=why)
        p, spread = _predictions(said) if symbol in ("", details["symbol"]) else (None, None)
        return Expected(features, _limit(blocks["outside"]), _limit(blocks["worst"]), p, spread)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _predictions(said: Mapping[str, Any]) -> tuple[Range | None, Range | None]:
    """The limits of a block's mean and spread; they are of the trained asset's models alone."""
    given = said.get("predictions")
    if given is None or int(given["count"]) < _LEAST_BLOCKS:
        return None, None
    return _range(given["mean"]), _range(given["spread"])


def _range(of: Mapping[str, Any]) -> Range:
    mean, spread = float(of["mean"]), float(of["spread"])
    if not (0 <= mean <= 1 and 0 <= spread <= 1):
        raise ValueError("no probability")
    return max(0.0, mean - SPREADS * spread), min(1.0, mean + SPREADS * spread)


def _limit(of: Mapping[str, Any]) -> float:
    return _range(of)[1]


def judge(expected: Expected, bars: Sequence[Bar]) -> Drift:
    """The newest BLOCK bars against what is expected; of each, how many outside, and the worst.

    A block that holds too much already need not be full.
    """
    bars = bars[-BLOCK:]
    more = BLOCK - len(bars)
    outside = math.fsum(bar.outside for bar in bars) / (BLOCK * expected.features)
    names = Counter(bar.worst for bar in bars if bar.worst)
    feature, times = names.most_common(1)[0] if names else (None, 0)
    worst = times / BLOCK
    findings = []
    if outside > expected.outside:
        share = f"{100 * outside:.1f} % of the features' values lie outside the training's range"
        findings.append(f"{share}, {100 * expected.outside:.1f} % are its limit")
    if worst > expected.worst:
        share = f"{feature} is the furthest outside on {times} of {len(bars)} bars"
        findings.append(f"{share}, {expected.worst * BLOCK:.0f} are its limit")
    p, spread = _moments(bars)
    for what, value, limits in (
        ("the mean prediction", p, expected.p),
        ("the predictions' spread", spread, expected.spread),
    ):
        if value is not None and limits and not limits[0] <= value <= limits[1]:
            findings.append(
                f"{what} is {value:.3f}, its limits are {limits[0]:.3f} to {limits[1]:.3f}"
            )
    outcome = DRIFT if findings else UNPROVED if more or expected.why else NONE
    text = "; ".join(findings) or expected.why
    if not text and more:
        text = f"{len(bars)} of {BLOCK} bars so far"
    return Drift(
        outcome,
        len(bars),
        more,
        outside,
        expected.outside,
        worst,
        expected.worst,
        feature,
        text or f"{100 * outside:.1f} % of the features' values lie outside the training's range",
        p,
        spread,
    )


def _moments(bars: Sequence[Bar]) -> tuple[float | None, float | None]:
    """Mean and standard deviation of a whole block's predictions, if each bar has one."""
    known = [bar.p for bar in bars if bar.p is not None]
    if len(known) < BLOCK:
        return None, None
    return statistics.fmean(known), statistics.pstdev(known)
