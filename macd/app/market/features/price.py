"""Where the price came from: returns to now, the path of two days, and how the candles look.

The path is what taught most on real bars (docs/LOG.md): single returns and blocks of four bars
side by side over 48 bars say when something happened, which returns to now can't.
"""

from __future__ import annotations

import numpy as np

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import deviation, lag, log_return, mean, ratio

TO_NOW = (1, 2, 3, 4, 6, 8, 12, 24, 48, 72, 168)
SINGLE = (1, 2, 3, 4, 5, 6)
BLOCK, BLOCKS = 4, 12
NEXT = (1, 2, 3, 5, 8, 12)
SPANS = 6
USUAL = 168  # bars whose deviation of one-bar returns is the unit of "scaled"


def features(bars: Candles) -> dict[str, Array]:
    """Log returns, plain and in usual deviations; candle proportions and spans."""
    one = log_return(bars.close)
    usual = deviation(one, USUAL)

    def scaled(n: int, ago: int = 0) -> Array:
        """The log return of the n bars that ended `ago` bars ago, in deviations."""
        return ratio(lag(log_return(bars.close, n), ago), usual * np.sqrt(n))

    out = {f"ret_{n}": log_return(bars.close, n) for n in TO_NOW}
    out |= {f"ret_scaled_{n}": scaled(n) for n in (1, 6, 24)}
    out |= {f"lag_{ago}": scaled(1, ago) for ago in SINGLE}
    out |= {f"path_{ago}": scaled(BLOCK, ago) for ago in range(0, BLOCK * BLOCKS, BLOCK)}
    # What the n bars after this hour did 24 bars earlier. Periodicity of this kind: Heston,
    # Korajczyk, Sadka, Intraday patterns in the cross-section of stock returns, 2010.
    out |= {f"yesterday_{n}": scaled(n, 24 - n) for n in NEXT}
    return out | _candle(bars)


def _candle(bars: Candles) -> dict[str, Array]:
    span = bars.high - bars.low
    top, bottom = np.maximum(bars.open, bars.close), np.minimum(bars.open, bars.close)
    place = ratio(bars.close - bars.low, span, otherwise=0.5) - 0.5
    log_span = np.log(bars.high / bars.low)
    usual_span = mean(log_span, USUAL)
    return {
        "body": ratio(bars.close - bars.open, span),
        "wick_up": ratio(bars.high - top, span),
        "wick_down": ratio(bottom - bars.low, span),
        "close_in_bar": place,
        "close_in_bar_6": mean(place, 6),
    } | {
        f"span_{ago}": ratio(lag(log_span, ago), usual_span, otherwise=1.0) for ago in range(SPANS)
    }
