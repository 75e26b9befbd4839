"""The last bars of each symbol, and the judgement whether a bar that arrives belongs behind them.

Pure: no clock and no file. A bar that does not fit is refused with a reason, so that no feature is
ever computed from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from macd.app.market.bars import COLUMNS, SCHEMA
from macd.app.service.feed import Bar

LONGEST_REFUSAL = 48  # bars: a model's whole window
_LAST_MS = 253_402_300_800_000  # the year 10,000
_CLOCKS_DIFFER_MS = 60_000


@dataclass(frozen=True)
class Verdict:
    """`refused`: why the bar was not taken (event, detail). `missing`: bars lacking before it."""

    refused: tuple[str, str] | None = None
    missing: int = 0


class History:
    """The last `need` bars of one symbol.

    frame: canonical bars, oldest first. doubtful: for how many bars more the models are not asked,
    this one included, because a gap is near.
    """

    def __init__(self, symbol: str, step: int, need: int, bars: Iterable[Bar] = ()) -> None:
        self.symbol = symbol
        self._step, self._need = step, need
        self.frame = pl.DataFrame(schema=SCHEMA)
        self.last: Bar | None = None
        self.doubtful = 0
        accepted: list[Bar] = []
        for bar in bars:  # what was stored may be as wrong, and as full of holes, as what arrives
            verdict = self._judged(bar)
            if verdict.refused is None:
                self._take(bar, verdict)
                accepted.append(bar)
        if accepted:
            self.frame = _rows(accepted).tail(need)

    @property
    def warm(self) -> bool:
        return len(self.frame) >= self._need

    def accept(self, bar: Bar) -> Verdict:
        """Put the bar behind the others unless it has to be refused."""
        verdict = self._judged(bar)
        if verdict.refused is None:
            self._take(bar, verdict)
            self.frame = pl.concat([self.frame, _rows([bar])]).tail(self._need).rechunk()
        return verdict

    def correct(self, bar: Bar) -> bool:
        """Put other values in the place of a bar that is there; whether it could be done."""
        at = self.frame["timestamp"].dt.epoch("ms").index_of(bar.open_ms)
        if at is None or unusable(bar, self._step):
            return False
        parts = [self.frame[:at], _rows([bar]), self.frame[at + 1 :]]
        self.frame = pl.concat(parts).rechunk()
        if self.last is not None and self.last.open_ms == bar.open_ms:
            self.last = bar
        return True

    def count_after(self, open_ms: int) -> int:
        """How many of its bars opened later."""
        return int((self.frame["timestamp"].dt.epoch("ms") > open_ms).sum())

    def _take(self, bar: Bar, verdict: Verdict) -> None:
        self.doubtful = max(0, self.doubtful - 1)
        if verdict.missing:
            self.doubtful = min(LONGEST_REFUSAL, self.doubtful + verdict.missing)
        self.last = bar

    def _judged(self, bar: Bar) -> Verdict:
        wrong = unusable(bar, self._step)
        if wrong:
            return Verdict(("bad_bar", wrong))
        if self.last is None:
            return Verdict()
        after = bar.open_ms - self.last.open_ms
        if after == 0:
            same = bar == self.last
            reason = "the same bar again" if same else "other values for a bar that was closed"
            return Verdict(("duplicate", reason))
        if after < 0:
            return Verdict(("out_of_order", f"{-after // self._step} bars before the last one"))
        return Verdict(missing=after // self._step - 1)


def unusable(bar: Bar, step: int) -> str:
    """Why no feature may be computed from this bar; empty when it is usable."""
    values = (bar.open, bar.high, bar.low, bar.close, bar.volume)
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return "a value that is not a finite number"
    if min(values[:4]) <= 0 or bar.volume < 0:
        return "a price that is not positive, or a negative volume"
    if bar.high < max(bar.open, bar.close, bar.low) or bar.low > min(bar.open, bar.close):
        return "its high or low lies inside the other prices"
    if not 0 <= bar.open_ms < _LAST_MS:
        return "its time is out of range"
    if step < 604_800_000 and bar.open_ms % step:  # weeks open on Mondays, the epoch on a Thursday
        return "its time is not on the grid of its timeframe"
    return ""


def closes_later(bar: Bar, step: int, now_ms: float) -> bool:
    """Whether the bar can't be closed yet, by whichever of two clocks that differ a little."""
    return bar.open_ms + step > now_ms + _CLOCKS_DIFFER_MS


def _rows(bars: list[Bar]) -> pl.DataFrame:
    stamps = pl.Series("timestamp", [b.open_ms for b in bars], dtype=pl.Int64)
    columns = [
        pl.Series(name, [float(getattr(b, name)) for b in bars], dtype=pl.Float64)
        for name in COLUMNS[1:]
    ]
    return pl.DataFrame([stamps.cast(SCHEMA["timestamp"]), *columns])
