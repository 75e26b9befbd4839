"""How much was traded, and on which side: volume against its own past, flow in windows.

On-balance volume and its kin run up for ever; here each is the flow of n bars over the volume of
the same n bars, which has no unit and forgets.
"""

from __future__ import annotations

import numpy as np

from macd.market.features.candles import Array, Candles
from macd.market.features.windows import (
    correlation,
    deviation,
    log_return,
    mean,
    ratio,
    total,
    zscore,
)


def features(bars: Candles) -> dict[str, Array]:
    """Volume z-scores and ratios, on-balance flow, money flow, distance from the traded average."""
    volume, close = bars.volume, bars.close
    one = log_return(close)
    usual = deviation(one, 168)
    span = bars.high - bars.low
    place = ratio((close - bars.low) - (bars.high - close), span)
    typical = (bars.high + bars.low + close) / 3
    out = {f"volume_z_{n}": zscore(volume, n) for n in (24, 168)}
    out |= {
        "volume_short_long": _log(ratio(mean(volume, 6), mean(volume, 72), otherwise=1.0)),
        "volume_day_week": _log(ratio(mean(volume, 24), mean(volume, 168), otherwise=1.0)),
    }
    out |= {
        f"obv_{n}": ratio(total(np.sign(one) * volume, n), total(volume, n)) for n in (6, 24, 72)
    }
    out |= {f"cmf_{n}": ratio(total(place * volume, n), total(volume, n)) for n in (12, 48)}
    for n in (24, 72):
        traded = ratio(total(typical * volume, n), total(volume, n))
        gap = np.where(traded == 0.0, 0.0, np.log(close / np.where(traded == 0.0, 1.0, traded)))
        out[f"vwap_{n}"] = ratio(gap, usual * np.sqrt(n))
    out["mfi_14"] = _money_flow(typical, volume)
    out["volume_ret_corr_48"] = correlation(volume, one, 48)
    out["volume_abs_corr_48"] = correlation(volume, np.abs(one), 48)
    return out


def _log(x: Array) -> Array:
    """Logarithm of a ratio; a hundredth stands for everything smaller, zero included."""
    return np.log(np.maximum(x, 0.01))


def _money_flow(typical: Array, volume: Array) -> Array:
    """Money flow index 14 in -0.5..0.5, 0 where nothing flowed; windowed, as TA-Lib's MFI."""
    change = log_return(typical)
    rise = np.where(np.abs(change) < 1e-12, 0.0 * change, np.sign(change))
    flow = typical * volume
    return ratio(total(rise * flow, 14), total(np.abs(rise) * flow, 14)) / 2
