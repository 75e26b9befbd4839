"""What the other assets do: their returns, strength against ours, correlation and beta.

A bar of the other asset counts only under the very same timestamp. Where it is missing the values
are NaN, in the windows that would contain it too; no older bar is put in its place.
"""

from __future__ import annotations

import numpy as np

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import (
    correlation,
    deviation,
    log_return,
    ratio,
    weighted,
)

WINDOW = 72


def features(bars: Candles, other: Candles, symbol: str) -> dict[str, Array]:
    """Columns named x_<symbol>_...; returns are log returns over bars."""
    theirs_close = _at(bars, other, other.close)
    ours, theirs = log_return(bars.close), log_return(theirs_close)
    sigma = deviation(theirs, WINDOW)
    lead = theirs - ours
    return {
        f"x_{symbol.lower()}_{name}": values
        for name, values in {
            "ret_1": theirs,
            "ret_4": log_return(theirs_close, 4),
            "ret_24": log_return(theirs_close, 24),
            "strength_24": log_return(bars.close, 24) - log_return(theirs_close, 24),
            "spread_72": _spread(lead),
            "corr_72": correlation(ours, theirs, WINDOW),
            "beta_72": ratio(correlation(ours, theirs, WINDOW) * deviation(ours, WINDOW), sigma),
        }.items()
    }


def _at(bars: Candles, other: Candles, values: Array) -> Array:
    """The other asset's values at our timestamps, NaN where it has no such bar."""
    place = np.searchsorted(other.time, bars.time)
    held = np.append(other.time, -1)[place] == bars.time
    return np.where(held, np.append(values, np.nan)[place], np.nan)


def _spread(lead: Array) -> Array:
    """Log price ratio against its mean of 72 bars, in deviations of its one-bar changes."""
    weights = np.arange(1, WINDOW) / WINDOW
    return ratio(weighted(lead, weights), deviation(lead, WINDOW) * np.sqrt(WINDOW))
