"""What the other assets do: their returns, and how far ours has run ahead of them.

A bar of the other asset counts only under the very same timestamp. Where it is missing the values
are NaN, in the windows that would contain it too; no older bar is put in its place. Correlation
and beta were tried and cost more than they told (docs/LOG.md).
"""

from __future__ import annotations

import numpy as np

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import deviation, log_return, ratio, weighted

WINDOW = 72


def features(bars: Candles, other: Candles, symbol: str) -> dict[str, Array]:
    """Columns x_<symbol>_...: its log returns, ours minus its, their price ratio's distance."""
    close = _at(bars, other, other.close)
    lead = log_return(bars.close) - log_return(close)
    values = {f"ret_{n}": log_return(close, n) for n in (1, 4, 24)}
    values["strength_24"] = log_return(bars.close, 24) - values["ret_24"]
    values[f"spread_{WINDOW}"] = _spread(lead)
    return {f"x_{symbol.lower()}_{name}": column for name, column in values.items()}


def _at(bars: Candles, other: Candles, values: Array) -> Array:
    """The other asset's values at our timestamps, NaN where it has no such bar."""
    place = np.searchsorted(other.time, bars.time)
    held = np.append(other.time, -1)[place] == bars.time
    return np.where(held, np.append(values, np.nan)[place], np.nan)


def _spread(lead: Array) -> Array:
    """Log price ratio minus its mean of 72 bars, in deviations of its one-bar changes.

    From the changes, weighted by how many of the averaged closes came before each: no level enters.
    """
    weights = np.arange(1, WINDOW) / WINDOW
    return ratio(weighted(lead, weights), deviation(lead, WINDOW) * np.sqrt(WINDOW))
