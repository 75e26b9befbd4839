"""Labels: is the close higher or lower h bars from now?

Direction is the sign of close[t+h] / close[t] - 1 and nothing else. "Return above a cost" is not
offered: it mostly rewards predicting volatility. Bars with a small |return| may be left out of
training and of the headline figure, but nobody can select live bars by a return of the future, so
the figure on all bars (min_move 0) is always reported beside it.

Horizons count bars, not hours: across a gap in the data a label spans the gap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from macd.errors import UsageError
from macd.heads import HORIZONS

__all__ = ["HORIZONS", "direction", "forward_returns"]

Array = npt.NDArray[np.float64]


def forward_returns(close: npt.ArrayLike, horizons: Sequence[int] = HORIZONS) -> Array:
    """Simple returns close[t+h] / close[t] - 1, as fractions: 0.01 is 1 %.

    Args:
        close: shape (bars,), in units of price, oldest first.
        horizons: in bars.

    Returns:
        float64 of shape (bars, horizons). NaN where close[t+h] does not exist yet, or where either
        close is not a positive number.

    Raises:
        UsageError: a horizon is below one bar, or the closes are not one-dimensional.
    """
    prices = np.asarray(close, dtype=np.float64)
    if prices.ndim != 1:
        raise UsageError(f"closes must be one column, not an array of shape {prices.shape}")
    bad = [h for h in horizons if h < 1]
    if bad:
        raise UsageError(f"horizons must be at least one bar, not {bad}")
    usable = np.where(np.isfinite(prices) & (prices > 0), prices, np.nan)
    out = np.full((len(usable), len(horizons)), np.nan)
    for column, h in enumerate(horizons):
        out[: max(len(usable) - h, 0), column] = usable[h:] / usable[:-h] - 1.0
    return out


def direction(returns: npt.ArrayLike, min_move: float = 0.0) -> Array:
    """1.0 where the return is above min_move, 0.0 where it is below -min_move, else NaN.

    NaN therefore means "not known yet" or "too small to count" (a return of exactly zero has no
    direction even at min_move 0).

    Args:
        returns: fractions, of any shape, as from `forward_returns`.
        min_move: a fraction: 0.003 is 0.3 %.

    Returns:
        float64 of the same shape: 1.0, 0.0 or NaN.

    Raises:
        UsageError: `min_move` is negative or NaN.
    """
    if not min_move >= 0.0:
        raise UsageError(f"min_move must be zero or more, not {min_move}")
    values = np.asarray(returns, dtype=np.float64)
    called = np.abs(values) > min_move  # False for NaN
    return np.where(called, (values > 0).astype(np.float64), np.nan)
