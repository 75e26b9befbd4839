"""Files that hold no bars, named as what they are: an error page, trades, an order book, quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from macd.errors import UsageError

if TYPE_CHECKING:
    from macd.app.market.table import Table

_TRADES, _BOOK = "a list of single trades", "an order book"
_QUOTES, _FUNDING = "quotes (bid and ask), tick by tick", "funding rates"
_PRICES = {"open", "high", "low", "close", "priceopen", "openprice", "o", "开盘价"}
_HINTS = {
    _TRADES: "bars of the same market: the site's files of candles (klines, OHLC), or "
    "invoke data.fetch --symbol BTC/USDT --since 2023-01-01",
}
_AGAIN = "get the file again; what a browser or curl saved was not the data"


def page(lines: Sequence[str]) -> str:
    """What a text that is no table at all is; "" where it may be one."""
    start = " ".join(line.strip() for line in lines[:30] if line.strip())[:2000]
    low = start.lower()
    if low.startswith(("<!doctype html", "<html", "<head", "<body")):
        title = re.search(r"<title>(.*?)</title>", start, re.IGNORECASE)
        return "a web page" + (f" ({title[1].strip()[:80]})" if title else "")
    if low.startswith("<?xml") or low.startswith("<error"):
        said = re.search(r"<message>(.*?)</message>", start, re.IGNORECASE)
        code = re.search(r"<code>(.*?)</code>", start, re.IGNORECASE)
        words = ": ".join(match[1][:80] for match in (code, said) if match)
        return "a server's answer in XML" + (f" ({words})" if words else "")
    if low.startswith("version https://git-lfs"):
        return "a Git LFS pointer"
    few = [line for line in lines if line.strip()]
    if len(few) <= 3 and re.search(
        r"not found|forbidden|denied|rate limit|too many requests|unauthori[sz]ed|bad gateway|"
        r"unavailable|invalid api|error",
        low,
    ):
        return f"an error message ({start[:80]})"
    return ""


_WIDEST_TRADES = 8  # columns


def narrow(lines: Sequence[str]) -> str:
    """What a table is that has too few columns for bars."""
    rows = [re.split(r"[,;\t|]", line.strip()) for line in lines[:50] if line.strip()]
    if not rows:
        return ""
    if kind := _by_names(rows[0]):
        return kind
    cells = rows[-1]
    if len(cells) in (3, 4) and all(re.fullmatch(r"-?[0-9.]+", cell.strip()) for cell in cells[:3]):
        return f"{_TRADES} (time, price and amount)"
    return ""


def list_of(frame: pl.DataFrame, *, header: bool) -> str:
    """What a table is that has enough columns, and no bars in them."""
    if header:
        return _by_names(frame.columns)
    head = frame.head(50)
    if head.width > _WIDEST_TRADES or _eight_with_a_flag(head):
        return ""
    sides = {"true", "false", "buy", "sell", "b", "s"}
    for name in head.columns[3:]:
        cells = set(head[name].cast(pl.String).str.to_lowercase().drop_nulls().unique())
        if cells and cells <= sides:
            return _TRADES
    return ""


def refusal(path: Path, content: str, table: Table | None = None) -> UsageError:
    """The error to raise for a file that was named."""
    columns = f"columns: {', '.join(table.frame.columns[:20])}" if table and table.header else ""
    kind = next((kind for kind in _HINTS if content.startswith(kind)), "")
    lists = (_TRADES, _BOOK, _QUOTES, _FUNDING)
    hint = _HINTS.get(kind) or (_HINTS[_TRADES] if content.startswith(lists) else _AGAIN)
    return UsageError(f"{path} is {content}, not bars", why=columns, hint=hint)


def _eight_with_a_flag(frame: pl.DataFrame) -> bool:
    """Gate's candles end with the word whether the bar is closed."""
    return (
        frame.width == 8
        and frame.columns[-1] == "8"
        and bool(
            frame.select(
                pl.col(frame.columns[1:7]).cast(pl.Float64, strict=False).is_not_null().all()
            )
            .row(0)
            .count(True)
            == 6
        )
    )


def _by_names(names: Sequence[str]) -> str:
    own = {re.sub(r"[^a-z]", "", name.casefold()) for name in names}
    if own & _PRICES:
        return ""
    sizes = {"qty", "quantity", "size", "amount", "volume", "vol", "foreignnotional"}
    book = any(name.startswith(("asks", "bids")) for name in own)
    cases = {
        _BOOK: book or {"side", "level"} <= own,
        _QUOTES: all(any(side in name for name in own) for side in ("bid", "ask")),
        _FUNDING: any("fundingrate" in name for name in own),
        _TRADES: bool(own & {"price", "p"} and own & sizes),
    }
    return next((kind for kind, met in cases.items() if met), "")
