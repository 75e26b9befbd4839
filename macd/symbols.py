"""The one name that a symbol has in files and documents, however people write it."""

from __future__ import annotations

import re

from macd.errors import UsageError


def symbol_name(symbol: str) -> str:
    """ETHUSDT for "eth/usdt", "ETH-USDT" and ccxt's "ETH/USDT:USDT". Raises UsageError."""
    name = re.sub(r"[/\-_ ]", "", symbol.partition(":")[0]).upper()
    if not re.fullmatch(r"[A-Z0-9.]{1,30}", name) or not name.strip("."):
        raise UsageError(
            f"symbol {symbol[:60]!r} is not understood",
            why="a symbol is made of letters and digits, with or without / between the two assets",
            hint="--symbol BTCUSD",
        )
    return name
