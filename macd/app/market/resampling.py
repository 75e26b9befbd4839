"""Bars of a longer timeframe from shorter ones: minutes to hours, hours to days."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from macd.app.market.bars import grid_origin, step_ms
from macd.errors import UsageError


@dataclass(frozen=True)
class Resampled:
    """Canonical bars of the longer timeframe; how many lack some of their parts; how many were cut.

    cut: short bars at both ends that fill no whole long one.
    """

    bars: pl.DataFrame
    thin: int
    cut: int

    def notes(self, short: str, tf: str) -> tuple[str, ...]:
        """What was done, in words."""
        said = [f"resampled from {short} to {tf}: {self.bars.height:,} bars"]
        if self.thin:
            said.append(f"{self.thin:,} of them from fewer {short} bars than fit into one")
        if self.cut:
            said.append(f"{short} bars at the ends that fill no whole {tf}: {self.cut:,} left out")
        return tuple(said)


def resample(bars: pl.DataFrame, short: str, tf: str) -> Resampled:
    """Open of the first, highest, lowest, close of the last, volume of all.

    A long bar opens on the grid of its timeframe. One at an end of which a part is not there is no
    bar yet, and left out; one in between is a bar, whatever is missing inside.

    Args:
        bars: canonical bars of the timeframe `short`, oldest first.
        short, tf: timeframes, as "1m" and "1h".

    Raises:
        UsageError: `tf` is no whole multiple of `short`, or not one bar of it is whole.
    """
    step, long = step_ms(short), step_ms(tf)
    if long <= step or long % step:
        raise UsageError(
            f"{short} bars can't be made {tf} bars",
            why=f"{tf} is no whole multiple of {short}",
            hint="a longer --tf, or bars of a shorter timeframe",
        )
    origin = grid_origin(long)
    ms = pl.col("timestamp").to_physical()
    slotted = bars.with_columns(slot=(ms - origin) // long)
    first, last = bars["timestamp"].to_physical()[0], bars["timestamp"].to_physical()[-1]
    starts_inside = (first - origin) % long >= step  # the first bar is not the first of its slot
    ended = (last - origin) % long + step < long
    slots = slotted["slot"]
    whole = slotted.filter(
        (pl.col("slot") > slots[0] - (not starts_inside))
        & (pl.col("slot") < slots[-1] + (not ended))
    )
    if whole.is_empty():
        raise UsageError(
            f"the bars fill not one whole {tf}",
            why=f"they run from {bars['timestamp'][0]} to {bars['timestamp'][-1]}",
            hint="more bars, or a shorter --tf",
        )
    made = (
        whole.group_by("slot", maintain_order=True)
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
            parts=pl.len(),
        )
        .with_columns(
            timestamp=(pl.col("slot") * long + origin).cast(pl.Datetime("ms", "UTC")),
        )
    )
    return Resampled(
        made.select(bars.columns),
        thin=int((made["parts"] < long // step).sum()),
        cut=bars.height - whole.height,
    )
