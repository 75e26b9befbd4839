"""How much was traded, and on which side: volume against its own past, flow in windows.

On-balance volume and its kin run up for ever; here each is the flow of n bars over the volume of
the same n bars, which has no unit and forgets.
"""

from __future__ import annotations

import numpy as np

from macd.app.market.features.candles import Array, Candles
from macd.app.market.features.windows import log_ratio, log_return, mean, ratio, total, zscore


def features(bars: Candles) -> dict[str, Array]:
    """Volume z-scores and ratio, on-balance flow, Chaikin money flow; 0 where nothing traded."""
    volume = bars.volume
    side = np.sign(log_return(bars.close))
    span = bars.high - bars.low
    place = ratio((bars.close - bars.low) - (bars.high - bars.close), span)
    out = {f"volume_z_{n}": zscore(volume, n) for n in (24, 168)}
    out["volume_6_72"] = log_ratio(mean(volume, 6), mean(volume, 72))
    out |= {f"obv_{n}": ratio(total(side * volume, n), total(volume, n)) for n in (6, 24)}
    out |= {f"cmf_{n}": ratio(total(place * volume, n), total(volume, n)) for n in (12, 48)}
    return out
