"""Candles that an exchange leaves out because nobody traded, put back by its documented rule.

Features count bars. With holes a window of training would reach further back than the service's.
So all ways by which bars of an exchange come in (data.fetch, data.import, the service) fill here.
A flat candle at the last close with volume 0 is what the exchange's chart
shows there. Only a later bar of the same answer proves that nobody traded: where an answer ends,
bars may merely not be there yet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from macd.errors import UsageError

# By name in ccxt, where the exchange says that it has no candle for an interval without a trade.
# Others leave candles out as well (Binance while it is down), and then nobody knows why.
LEAVES_OUT: Mapping[str, str] = {
    "bitfinex": "bitfinexcom/bfx-hf-util, lib/candles/preprocess_remote_candles.js",
    "bitvavo": "https://docs.bitvavo.com/docs/rest-api/get-candlestick-data",
    "coinbaseexchange": "https://docs.cdp.coinbase.com/api-reference/exchange-api/rest-api/"
    "products/get-product-candles",
    "kraken": "https://support.kraken.com/hc/en-us/articles/360047124832",
    "upbit": "https://docs-e.upbit.com/reference/seconds-candles",
}
MOST = 24  # in a row; a longer hole is a halt of the market, and stays a gap


def leaves_out(exchange: str) -> bool:
    """Whether this exchange (its name in ccxt) is known to leave candles without a trade out."""
    return exchange in LEAVES_OUT


def require_known(exchange: str) -> None:
    """UsageError unless the exchange documents that it leaves empty candles out."""
    if not leaves_out(exchange):
        raise UsageError(
            f"it is not documented that {exchange} leaves out candles without a trade",
            why=f"it is of {', '.join(LEAVES_OUT)}; elsewhere a missing bar may have any reason",
            hint="without --exchange the holes stay, and invoke data.verify names them",
        )


def fill(bars: pl.DataFrame, step: int) -> pl.DataFrame:
    """The bars of one answer with a flat bar of volume 0 for each that is missing between two.

    Args:
        bars: N canonical bars, strictly increasing in time.
        step: length of a bar, milliseconds.

    Returns:
        At least N canonical bars. A hole of more than MOST bars, or off the grid, stays.
    """
    opened = bars["timestamp"].to_physical().to_numpy()
    apart = np.diff(opened)
    missing = np.where(apart % step == 0, apart // step - 1, 0)
    missing[missing > MOST] = 0
    if not missing.any():
        return bars
    before = np.repeat(np.arange(len(missing)), missing)  # the row before each new bar
    place = np.arange(len(before)) - np.repeat(np.cumsum(missing) - missing, missing) + 1
    close = bars["close"].gather(before)
    flat = pl.DataFrame(
        {
            "timestamp": pl.Series(opened[before] + place * step).cast(bars.schema["timestamp"]),
            **{name: close for name in ("open", "high", "low", "close")},
            "volume": pl.zeros(len(before), eager=True),
        }
    )
    return pl.concat([bars, flat]).sort("timestamp")
