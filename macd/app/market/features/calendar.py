"""What the clock says at the bar's open (UTC): time of day and of the week, on circles."""

from __future__ import annotations

import numpy as np

from macd.app.market.features.candles import Array, Candles

DAY_MS = 86_400_000


def features(bars: Candles) -> dict[str, Array]:
    """Sine and cosine of the day, of half a day, and of the week since Monday 00:00."""
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
    }
