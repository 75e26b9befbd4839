"""The layouts of bars that are known, as one table: how each source writes, and what it means.

An entry says by what a file of the source is recognised, and what nobody could guess from its
columns: the zone of its clock, the unit of its volume, rows that are no bar. Names of columns are
compared in their plain form (see `plain`). A file without names is recognised by its values: high
and low fit one order only, and a bar opens near the close before it. What no entry knows is read by
the usual names (columns.py), or asked.

One example of each in its true layout: tests/cases/bars/dialects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from macd.app.market.table import Table, plain

# base: units of the asset. quote: its price currency. ticks: changes of price. none: always zero.
# proved: the file's other volume shows which one is which (volumes.py). ask: nobody can know.
Unit = Literal["base", "quote", "ticks", "none", "proved", "ask"]
_PRICES = ("open", "high", "low", "close")
_DATE = r"(19|20)[0-9]{6}|[0-9]{6}|[0-9]{1,4}[./-][0-9]{1,2}[./-][0-9]{1,4}"
_TIME_OF_DAY = r"[0-9]{1,2}:[0-9]{2}.*|[0-9]{4}|[0-9]{6}"
_ENOUGH = 0.99  # of the rows must fit; one bad bar is for the checks to name
_LOOKED_AT = 20_000  # rows


@dataclass(frozen=True)
class Dialect:
    """How one source writes bars.

    names: names that a header must have, plain; or `row`: what all of them, in order, must match;
    or, for a file without names, `places`: what stands in each column, all of them, in order.
    file: what the name of a file without names must match (a group `minutes` is the timeframe).
    first: what the first cell must look like. above: what a line before the bars must have in it.
    roles: the column of a role, where its name alone would not tell.
    zone: of times that name none. volume: its unit; of_coins: where that of coins is another one.
    beside: columns with another volume.
    left_out: a column, and the values of it that mean "no bar": one that is still open.
    empty: rows without a price are intervals without a trade: put back flat ("fill"), or left out.
    closes: its times are those of the bars' closes.
    exchange: name in empty.py of one that has no row where nobody traded.
    symbol: where the symbol stands in lines before the bars.
    scale: what a whole number in a price column is a part of.
    renamed: assets that the source calls by names of its own.
    note: what its reader should know.
    """

    name: str
    names: str = ""
    row: str = ""
    places: str = ""
    file: str = ""
    first: str = ""
    above: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    zone: str = ""
    volume: Unit = "base"
    of_coins: Unit | None = None
    beside: str = ""
    left_out: tuple[str, tuple[str, ...]] | None = None
    empty: Literal["", "fill", "leave out"] = ""
    closes: bool = False
    exchange: str = ""
    symbol: str = ""
    scale: float = 1.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


_BINANCE = (
    "opentime open high low close volume closetime quotevolume count takerbuyvolume "
    "takerbuyquotevolume ignore"
)
BROKER = "times are those of the broker's server, often UTC+2 or +3; taken as UTC unless --timezone"
_MILLIONS = "Dukascopy's volume may be in millions: --volume-is base=1000000"
_COINS = {"XBT": "BTC", "XDG": "DOGE"}
_MARK = r"(?:19|20)\d\d\.\d{2}\.\d{2}"

DIALECTS: tuple[Dialect, ...] = (
    # Spot counts coins; COIN-M has contracts under "volume", coins under "quote_volume". Files of
    # USD-M have a header since 2022, so joined months have it in the middle.
    Dialect("Binance", places=_BINANCE, volume="proved", beside="quotevolume"),
    Dialect(
        "Binance",
        names="opentime open high low close volume closetime quotevolume takerbuyvolume",
        volume="proved",
        beside="quotevolume",
    ),
    Dialect(
        "python-binance",
        names="opentime volume closetime quoteassetvolume numberoftrades",
        volume="proved",
        beside="quoteassetvolume",
    ),
    Dialect(
        "OKX",
        places="time open high low close vol volccy volquote confirm",
        volume="proved",
        beside="volccy volquote",
        left_out=("confirm", ("0",)),
    ),
    Dialect(
        "OKX",
        names="instrumentname vol volccy volquote opentime confirm",
        roles={"time": "opentime", "volume": "vol"},
        volume="proved",
        beside="volccy volquote",
        left_out=("confirm", ("0",)),
    ),
    Dialect(
        "Gate",
        places="time quotevolume close high low open basevolume closed",
        roles={"volume": "basevolume"},
        volume="proved",
        beside="quotevolume",
        left_out=("closed", ("false", "False")),
    ),
    Dialect(
        "Gate",
        places="time volume close high low open",
        volume="ask",
        note="Gate counts coins, their price or contracts, by the market",
    ),
    Dialect("Coinbase", places="time low high open close volume"),
    Dialect(
        "Bitfinex",
        places="time open close high low volume",
        note="Bitfinex has no row where nobody traded: --exchange bitfinex puts flat bars there",
    ),
    Dialect(
        "KuCoin",
        places="time open close high low volume turnover",
        volume="proved",
        beside="turnover",
    ),
    Dialect(
        "KuCoin",
        names="time open close high low volume turnover",
        volume="proved",
        beside="turnover",
    ),
    Dialect(
        "CryptoDataDownload",
        names="symbol open high low close",
        above="CryptoDataDownload",
    ),
    Dialect(
        "HTX",
        names="id open close low high vol amount count",
        roles={"time": "id", "volume": "amount"},
        volume="proved",
        beside="vol",
    ),
    Dialect(
        "Kraken",
        places="time open high low close vwap volume trades",
        exchange="kraken",
        renamed=_COINS,
    ),
    Dialect(
        "Kraken",
        places="time open high low close volume trades",
        file=r"(?:^|[_-])(?P<minutes>1|5|15|30|60|240|720|1440|10080|21600)\.csv",
        exchange="kraken",
        renamed=_COINS,
    ),
    Dialect(
        "Bybit",
        places="time open high low close volume turnover",
        volume="proved",
        beside="turnover",
    ),
    Dialect(
        "time, prices, volume, number of trades", places="time open high low close volume trades"
    ),
    Dialect(
        "HistData",
        places="time open high low close volume",
        first=r"(?:19|20)\d{6} \d{6}",
        zone="-05:00",
        volume="none",
        note="HistData writes EST all the year round, and no volume",
    ),
    Dialect(
        "HistData",
        places="date time open high low close volume",
        file="^DAT_",
        zone="-05:00",
        volume="none",
        note="HistData writes EST all the year round, and no volume",
    ),
    Dialect("time, prices, volume", places="time open high low close volume"),
    Dialect(
        "Bybit for MetaTrader",
        places="date time open high low close volume",
        file=r"_(?P<minutes>1|5|15|30|60)_20\d\d-\d\d-\d\d_20\d\d-\d\d-\d\d\.csv",
    ),
    Dialect(
        "MetaTrader 4",
        places="date time open high low close volume",
        first=_MARK,
        volume="ticks",
        note=BROKER,
    ),
    Dialect("date, clock, prices, volume", places="date time open high low close volume"),
    Dialect(
        "date, clock, prices, volume, open interest",
        places="date time open high low close volume openint",
    ),
    Dialect(
        "MetaTrader 5",
        names="date time open high low close tickvol vol spread",
        roles={"volume": "vol"},
        volume="ticks",
        beside="tickvol",
        note=BROKER,
    ),
    Dialect(
        "MetaTrader 5",
        names="date open high low close tickvol vol spread",
        roles={"volume": "vol"},
        volume="ticks",
        beside="tickvol",
        note=BROKER,
    ),
    Dialect(  # its package for Python
        "MetaTrader 5",
        names="time open high low close tickvolume spread realvolume",
        roles={"volume": "realvolume"},
        volume="ticks",
        beside="tickvolume",
        note=BROKER,
    ),
    Dialect(
        "BitMEX",
        names="timestamp symbol open high low close trades vwap homenotional foreignnotional",
        roles={"volume": "homenotional"},
        volume="proved",
        beside="foreignnotional",
        closes=True,
    ),
    Dialect("Stooq", names="ticker per date time open high low close vol openint"),
    Dialect(
        "Bitstamp, minutes",
        names="timestamp open high low close volumebtc volumecurrency weightedprice",
        roles={"volume": "volumebtc"},
        volume="proved",
        beside="volumecurrency",
        empty="fill",
        renamed={"BITSTAMP": "BTC"},
    ),
    Dialect(
        "yfinance",
        names="price close high low open volume",
        roles={"time": "price"},
        of_coins="quote",
        symbol=r"^Ticker,([^,]+)",
        empty="leave out",
    ),
    Dialect(
        "yfinance",
        row="(date|datetime) close high low open volume",  # any table sorted by name looks so
        of_coins="ask",
        empty="leave out",
    ),
    Dialect(
        "yfinance",
        names="open high low close volume dividends stocksplits",
        of_coins="quote",
        empty="leave out",
    ),
    Dialect(
        "Yahoo",
        names="open high low close adjclose volume",
        of_coins="quote",
        empty="leave out",
    ),
    Dialect(
        "CoinMarketCap",
        names="timeopen timeclose timehigh timelow open high low close volume marketcap",
        roles={"time": "timeopen"},
        volume="quote",
    ),
    Dialect("CoinMarketCap", names="date open high low close volume marketcap", volume="quote"),
    Dialect(
        "CoinAPI",
        names="timeperiodstart timeperiodend priceopen pricehigh pricelow priceclose volumetraded",
        roles={"time": "timeperiodstart"},
    ),
    Dialect(
        "Polygon",
        names="ticker volume open close high low windowstart transactions",
        roles={"time": "windowstart"},
    ),
    Dialect("Polygon", names="v vw o c h l t n"),
    Dialect(
        "Databento",
        names="tsevent rtype publisherid open high low close volume",
        roles={"time": "tsevent"},
        scale=1e-9,
    ),
    Dialect("IBKR", names="date open high low close volume average barcount"),
    Dialect(
        "Dukascopy",
        names="gmttime open high low close volume",
        note=_MILLIONS,
    ),
    Dialect(
        "Dukascopy",
        names="localtime open high low close volume",
        roles={"time": "localtime"},
        note=_MILLIONS,
    ),
    Dialect(
        "Dukascopy",
        names="timeeet open high low close volume",
        roles={"time": "timeeet"},
        zone="EET",
        note=_MILLIONS,
    ),
)


@dataclass(frozen=True)
class Recognised:
    """What a table is: its dialect, if one is known, and each column's plain name."""

    dialect: Dialect
    names: Mapping[str, str]  # column -> plain name

    def column(self, name: str) -> str:
        """The column with this plain name; "" where there is none."""
        return next((column for column, plain_name in self.names.items() if plain_name == name), "")


UNKNOWN = Dialect("")


def recognise(table: Table) -> Recognised:
    """The first entry that fits; UNKNOWN where none does, or where two orders fit the values."""
    own = {column: plain(column) for column in table.frame.columns}
    if table.header:
        there = set(own.values())
        row = " ".join(own.values())
        named = (
            d
            for d in DIALECTS
            if (d.names and set(d.names.split()) <= there) or (d.row and re.fullmatch(d.row, row))
        )
        lines = "\n".join(table.above)
        dialect = next((d for d in named if re.search(d.above, lines)), UNKNOWN)
        return Recognised(dialect, own)
    if table.frame.is_empty():
        return Recognised(UNKNOWN, {})
    width = table.frame.width
    fitting = [
        dialect
        for dialect in DIALECTS
        if len(dialect.places.split()) == width
        and re.search(dialect.file, table.name)
        and _fits(table, dialect)
    ]
    if len({_order(dialect) for dialect in fitting}) != 1:  # two readings: asked
        return Recognised(UNKNOWN, {})
    return Recognised(fitting[0], dict(zip(own, fitting[0].places.split(), strict=True)))


def minutes(dialect: Dialect, name: str) -> int:
    """The timeframe that the file's name states, in minutes; 0 where it states none."""
    match = re.search(dialect.file, name)
    return int(match["minutes"]) if match and "minutes" in match.groupdict() else 0


def renamed(dialect: Dialect, symbol: str) -> str:
    """The usual name of a symbol: Kraken's XBTUSD is BTCUSD."""
    for theirs, usual in dialect.renamed.items():
        if symbol.startswith(theirs):
            return usual + symbol[len(theirs) :]
        if symbol.endswith(theirs):
            return symbol[: -len(theirs)] + usual
    return symbol


def date_and_clock(table: Table, date: str, clock: str) -> bool:
    """Whether these two columns are a date without a time of day, and a time of day."""
    cells = table.frame.select(pl.col(date, clock).cast(pl.String, strict=False)).head(1)
    return bool(
        cells.height
        and re.fullmatch(_DATE, str(cells[0, 0]))
        and re.fullmatch(_TIME_OF_DAY, str(cells[0, 1]))
    )


def _order(dialect: Dialect) -> tuple[int, ...]:
    places = dialect.places.split()
    return tuple(places.index(name) for name in _PRICES)


def _fits(table: Table, dialect: Dialect) -> bool:
    """Whether the values are what these places say."""
    frame = table.frame.head(_LOOKED_AT)
    columns = dict(zip(dialect.places.split(), frame.columns, strict=True))
    if not re.fullmatch(dialect.first or ".*", str(frame.item(0, 0)).strip()):
        return False
    if "date" in columns and not date_and_clock(table, columns["date"], columns["time"]):
        return False
    numbers = frame.select(
        pl.col(column).cast(pl.String, strict=False).cast(pl.Float64, strict=False).alias(name)
        for name, column in columns.items()
        if name not in ("date", "closed")
    )
    times = "time" if "time" in columns else "opentime"
    written = numbers[times].null_count() == numbers.height  # as text; read later
    if any(numbers.drop(times).null_count().row(0)):
        return False
    if not numbers.select(_plausible(columns).mean() >= _ENOUGH).item():
        return False
    usual = [name for name in columns if name in _PRICES] == list(_PRICES)
    return usual or (not written and _opens_at_closes(numbers.sort(times)))


def _plausible(columns: Mapping[str, str]) -> pl.Expr:
    fits = pl.col("high") >= pl.max_horizontal("open", "close")
    fits &= pl.col("low") <= pl.min_horizontal("open", "close")
    if "closetime" in columns:
        fits &= pl.col("closetime") > pl.col("opentime")
    if "trades" in columns:
        fits &= pl.col("trades") == pl.col("trades").floor()
    if "vwap" in columns:  # 0 where nobody traded
        vwap = pl.col("vwap")
        fits &= vwap.is_between(pl.col("low"), pl.col("high")) | (vwap == 0)
    if "turnover" in columns:
        fits &= ~(pl.col("turnover") == pl.col("turnover").floor()).all()
    return fits


def _opens_at_closes(ordered: pl.DataFrame) -> bool:
    """Each bar opens near the close of the one before it; with the two swapped it would not."""
    near = (pl.col("open") - pl.col("close").shift()).abs().sum()
    swapped = (pl.col("close") - pl.col("open").shift()).abs().sum()
    return bool(ordered.height > 2 and ordered.select(near * 2 < swapped).item())
