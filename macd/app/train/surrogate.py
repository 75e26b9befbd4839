"""Bars in which direction is chance and everything else stays: the null every training is held to.

Each bar's log moves (open, high, low, close against the close before) are mirrored or kept by a
fair coin. Volatility, its clustering, volume and the shapes of candles survive; whatever predicts
the sign of a later return on such bars can only have seen it. Assets of one training share the
coins of a timestamp, so that what they have in common survives too.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from macd.app.train.dataset import Bars


def sign_flipped(bars: Bars, seed: int) -> Bars:
    """The same bars with directions drawn anew; the same seed gives the same bars."""
    frames = [bars.main, *bars.cross.values()]
    times = pl.concat([frame["timestamp"] for frame in frames]).unique().sort()
    coins = np.random.default_rng([seed, 8191]).choice((-1.0, 1.0), size=len(times))
    signs = pl.DataFrame({"timestamp": times, "sign": coins})
    return Bars(
        symbol=bars.symbol,
        tf=bars.tf,
        main=_flip(bars.main, signs),
        cross={name: _flip(frame, signs) for name, frame in bars.cross.items()},
    )


def _flip(frame: pl.DataFrame, signs: pl.DataFrame) -> pl.DataFrame:
    sign = frame.join(signs, on="timestamp", how="left", maintain_order="left")["sign"].to_numpy()
    close = frame["close"].to_numpy()
    before = np.concatenate(([frame["open"][0]], close[:-1]))
    moves = {name: np.log(frame[name].to_numpy() / before) for name in ("open", "high", "low")}
    step = sign * np.log(close / before)
    start = np.log(before[0])
    base = start + np.concatenate(([0.0], np.cumsum(step)[:-1]))
    high = np.where(sign > 0, moves["high"], -moves["low"])
    low = np.where(sign > 0, moves["low"], -moves["high"])
    prices = {
        "open": np.exp(base + sign * moves["open"]),
        "high": np.exp(base + high),
        "low": np.exp(base + low),
        "close": np.exp(base + step),
    }
    # Rounding in exp must not put a high a hair below its close.
    body = np.stack([prices["open"], prices["close"]])
    prices["high"] = np.maximum(prices["high"], body.max(axis=0))
    prices["low"] = np.minimum(prices["low"], body.min(axis=0))
    return frame.with_columns(**{name: pl.Series(values) for name, values in prices.items()})
