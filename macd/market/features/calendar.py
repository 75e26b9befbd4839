"""What the clock says: hour and weekday of the bar's open, as points on circles (UTC)."""

from __future__ import annotations

import numpy as np

from macd.market.features.candles import Array, Candles

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def features(bars: Candles) -> dict[str, Array]:
    """Sine and cosine of the time of day and of the week; 1.0 on Saturday and Sunday."""
    day = 2 * np.pi * (bars.time % DAY_MS) / DAY_MS
    since_monday = (bars.time - 4 * DAY_MS) % (7 * DAY_MS)  # 1970-01-05 was a Monday
    week = 2 * np.pi * since_monday / (7 * DAY_MS)
    return {
        "hour_sin": np.sin(day),
        "hour_cos": np.cos(day),
        "half_day_sin": np.sin(2 * day),
        "half_day_cos": np.cos(2 * day),
        "week_sin": np.sin(week),
        "week_cos": np.cos(week),
        "weekend": (since_monday >= 5 * DAY_MS).astype(np.float64),
    }
