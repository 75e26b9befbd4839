"""Which column is which, and the numbers in it: by name and form, by a question where unclear.

What a known source means by its columns is in dialects.py; here are the usual names. A wrong
guess between open and close would train a model on nonsense without anybody noticing. Numbers have
a decimal point or comma; whether 1,234 is a thousand or one and a bit is asked where both are
possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from macd.app.market.bars import COLUMNS
from macd.app.market.dialects import Recognised, Unit, date_and_clock
from macd.app.market.table import Table, looks_time, one_cell, plain, shortened
from macd.errors import UsageError

PRICES = COLUMNS[1:5]
_ROLES = ("time", *COLUMNS[1:], "symbol")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The first name that is there wins: what is surely a bar's open time, then what usually is.
_OPEN_TIME = _words(
    "unix unixtimestamp unixtime epoch timestampms opentime opendate timeopen timeperiodstart "
    "candlebegintime starttime startat periodstart begin start mts 开盘时间 timestamp ts "
    "datetimeutc dateutc timeutc timestamputc utctime utc gmttime datetime time date t dt "
    "tradetime tradedate ticks 交易时间 时间 日期"
)
_CLOSE_TIME = _words(
    "closetime timeclose timeperiodend candleendtime endtime periodend end 收盘时间"
)
_NAMES = {
    "open": _words("open o openprice priceopen 开盘 开盘价"),
    "high": _words("high h highprice pricehigh max 最高 最高价"),
    "low": _words("low l lowprice pricelow min 最低 最低价"),
    "close": _words("close c closeprice priceclose last 收盘 收盘价"),
    "volume": _words(
        "volume v vol volumetraded basevolume volumebase volumebasecurrency volumecrypto 成交量"
    ),
    "symbol": _words("symbol pair ticker market instrument instrumentname product tic 交易对"),
}
_QUOTE_VOLUMES = _words(
    "volumecurrency volumequote volumeusd volumeusdt volumeusdc volumebusd volumeeur quotevolume "
    "quoteassetvolume volquote turnover amount 成交额"
)
_MONEY = re.compile("usd$|usdt$|dollar|quote|turnover|notional|成交额")
_UNKNOWN = re.compile("contract|lots?$|amount|[张手]$")  # of them nobody knows how much one is
NO_VOLUME = "none"


@dataclass(frozen=True)
class Mapped:
    """The column of each role; "" where there is none.

    clock: time of day, apart from the date. volume: "" is a file without any. beside: columns that
    hold another volume (its price, contracts), which show what `volume` counts.
    """

    time: str
    clock: str
    prices: Mapping[str, str]
    volume: str
    symbol: str
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        time = f"{self.time}+{self.clock}" if self.clock else self.time
        pairs = {"time": time, **self.prices, "volume": self.volume or NO_VOLUME}
        return ", ".join(f"{role}={name}" for role, name in pairs.items())


def parse_mapping(text: str) -> dict[str, str]:
    """`--columns "time=Date,open=Open"` as a mapping; UsageError for an unknown role."""
    given: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        role, equals, name = (part.strip() for part in item.partition("="))
        if role not in _ROLES or not equals or not name:
            raise UsageError(
                f"--columns: {item!r} is not understood",
                why=f"each part is ROLE=COLUMN, and the roles are {', '.join(_ROLES)}",
                hint='--columns "time=Date,open=Open,high=High,low=Low,close=Close,volume=Volume"',
            )
        given[role] = name
    return given


def unit_by_name(column: str) -> Unit:
    """What a volume counts by its own name; base where the name says nothing else."""
    name = plain(column)
    if "tick" in name:  # MetaTrader's tick_volume
        return "ticks"
    if name != "amount" and (name in _QUOTE_VOLUMES or _MONEY.search(name)):
        return "quote"
    return "ask" if _UNKNOWN.search(name) else "base"


def map_columns(
    table: Table,
    known: Recognised,
    *,
    given: Mapping[str, str],
    symbol: str = "",
    closes: bool = False,
) -> Mapped:
    """Find every role's column, or raise the question.

    known: what dialects.py makes of the table; given: what the user said (role to column); symbol:
    separates base from quote volume; closes: the times are those of bar closes.
    """
    wanted = {role: name for role, name in given.items() if role != "time"}
    none = wanted.get("volume", "").casefold() == NO_VOLUME and wanted.pop("volume")
    mapped = {role: _given(table, role, name) for role, name in wanted.items()}
    clock = ""
    if "time" in given:
        mapped["time"], clock = _given_time(table, given["time"])
    names = known.names or {column: plain(column) for column in table.frame.columns}
    by_name = _by_name(names)
    own = {role: by_name[name] for role, name in known.dialect.roles.items() if name in by_name}
    if closes:
        own.pop("time", None)
    mapped = own | mapped
    for role in (*PRICES, "symbol"):
        if role not in mapped and (match := _first(by_name, _NAMES[role])):
            mapped[role] = match
    if "time" not in mapped:
        mapped["time"] = _time(table, by_name, closes=closes)
    if "volume" not in mapped and not none:
        mapped["volume"] = _volume(by_name, symbol or _only_symbol(table, mapped.get("symbol")))
    for role in (role for role in mapped if role not in given):
        _refuse_twins(table, names, role, mapped[role])
    needed = ("time", *PRICES) if none else ("time", *COLUMNS[1:])
    if missing := [role for role in needed if not mapped.get(role)]:
        raise table.unclear(
            f"which column is {' and which is '.join(missing)}?",
            why="" if table.header else "the file has no names for its columns, only places",
            example=_example(table, missing, mapped) if table.header else _by_place(table),
        )
    volume = "" if none else mapped["volume"]
    beside = (*known.dialect.beside.split(), *(() if "volume" in given else _QUOTE_VOLUMES))
    return Mapped(
        time=mapped["time"],
        clock=clock if "time" in given else _clock(table, by_name, mapped["time"]),
        prices={role: mapped[role] for role in PRICES},
        volume=volume,
        symbol=mapped.get("symbol", ""),
        beside=tuple(
            dict.fromkeys(
                by_name[name] for name in beside if name in by_name and by_name[name] != volume
            )
        ),
    )


def _first(by_name: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    return next((by_name[name] for name in wanted if name in by_name), "")


def _by_name(names: Mapping[str, str]) -> dict[str, str]:
    """Plain name -> column. Of `t` and `T` the small letter: exchanges mean the bar by it."""
    by_name: dict[str, str] = {}
    for column, name in names.items():
        if column == name or name not in by_name:
            by_name[name] = column
    return by_name


def _refuse_twins(table: Table, names: Mapping[str, str], role: str, column: str) -> None:
    """Two columns whose names differ in letters or signs only may be the bar's, or another's."""
    name = names.get(column, "")
    twins = [other for other in names if name and names[other] == name]
    if len(twins) > 1 and not (len(name) == 1 and column == name):
        raise table.unclear(
            f"which column is {role}: {' or '.join(twins)}?",
            example=f'--columns "{role}={twins[0]}"',
        )


def _given(table: Table, role: str, name: str) -> str:
    columns = table.frame.columns
    if name in columns:
        return name
    for column in columns:
        if name.casefold() == column.casefold():
            return column
    raise table.unclear(
        f"there is no column {name!r} for {role}", example=f'--columns "{role}={columns[0]}"'
    )


def _given_time(table: Table, name: str) -> tuple[str, str]:
    """The column of the time, and that of the clock where the user named two: time=Date+Time."""
    columns = {column.casefold() for column in table.frame.columns}
    if "+" not in name or name.casefold() in columns:
        return _given(table, "time", name), ""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) != 2 or not all(parts):
        raise table.unclear(
            f"time={name} is not understood",
            why="the time is one column, or two columns: the date and the clock",
            example=f'--columns "time={"+".join(table.frame.columns[:2])}"',
        )
    return _given(table, "time", parts[0]), _given(table, "time", parts[1])


def _time(table: Table, by_name: Mapping[str, str], *, closes: bool) -> str:
    if closes and (match := _first(by_name, _CLOSE_TIME)):
        return match
    if match := _first(by_name, _OPEN_TIME):
        return by_name["date"] if _clock(table, by_name, by_name.get("date", "")) else match
    if match := _first(by_name, _CLOSE_TIME):
        raise table.unclear(
            f"only the bars' closes have a time ({match}): shall it be moved to the open?",
            example="--time-is close",
        )
    # A nameless or pandas index column in front; whether it holds times shows when it is read.
    first = table.frame.columns[0]
    if table.header and first in ("1", "index", "Unnamed: 0", "__index_level_0__"):
        return first
    last = table.frame.columns[-1]
    return last if last == "__index_level_0__" else ""


def _clock(table: Table, by_name: Mapping[str, str], time: str) -> str:
    """A column `Time` beside a column `Date` that has no time of day in it (MetaTrader, Stooq)."""
    date, clock = by_name.get("date", ""), by_name.get("time", "")
    apart = date and clock and time == date and date_and_clock(table, date, clock)
    return clock if apart else ""


def _volume(by_name: Mapping[str, str], symbol: str) -> str:
    """The base asset's volume. Publishers write two; the asset in the name says which is which."""
    base_of = symbol.casefold()
    base = [
        name
        for plain, name in by_name.items()
        if plain.startswith("volume") and base_of.startswith(plain[6:]) and plain[6:]
    ]
    if symbol and len(base) == 1:
        return base[0]
    if "amount" in by_name and "vol" in by_name and "volume" not in by_name:
        return by_name["vol"]  # one exchange means base by it, another its price: volumes.py proves
    if exact := _first(by_name, _NAMES["volume"]):
        return exact
    dressed = {
        plain: name
        for plain, name in by_name.items()
        if plain.startswith("volume") and plain not in _QUOTE_VOLUMES
    }
    return next(iter(dressed.values())) if len(dressed) == 1 else ""


def _only_symbol(table: Table, column: str | None) -> str:
    if not column or table.frame[column].n_unique() != 1:
        return ""
    return plain(str(table.frame[column][0])).upper()


def _example(table: Table, missing: list[str], mapped: Mapping[str, str]) -> str:
    """With columns that are there and have no role yet, in the order of the file."""
    quote = ""
    left = [name for name in table.frame.columns if name not in mapped.values()]
    if "time" in missing:  # the first role: one that holds times, where one does
        left.sort(key=lambda name: not looks_time(table.cell(name, 0)))
    else:
        left = [name for name in left if not looks_time(table.cell(name, 0))] or left
    left = [shortened(name) for name in left]
    pairs: dict[str, str] = {}
    for role in (role for role in missing if role != "volume"):
        rest = [name for name in left if name not in pairs.values()]
        likely = (name for name in rest if role in plain(name))
        pairs[role] = next(likely, next(iter(rest), "?"))
    if "volume" in missing:
        rest = [name for name in left if name not in pairs.values()]
        named = [name for name in rest if "vol" in name.casefold() or unit_by_name(name) != "base"]
        rest = named or (rest if len(missing) > 1 else [])
        pairs["volume"] = rest[0] if rest else NO_VOLUME
        if unit_by_name(pairs["volume"]) == "quote":
            quote = " --volume-is quote"
    typed = '--columns "' + ",".join(f"{role}={pairs.get(role, '?')}" for role in missing) + '"'
    more = missing == ["volume"] and pairs["volume"] != NO_VOLUME
    return typed + quote + ("    (volume=none where there is none)" if more else "")


def _by_place(table: Table) -> str:
    """An example that begins at the first column that looks like a time."""
    columns = table.frame.columns
    at = next((i for i, name in enumerate(columns) if looks_time(table.cell(name, 0))), 0)
    apart = table.frame.width > at + 6 and date_and_clock(table, columns[at], columns[at + 1])
    places = [f"{at + 1}+{at + 2}" if apart else f"{at + 1}"]
    first = at + (3 if apart else 2)
    places += [str(i) if i <= len(columns) else NO_VOLUME for i in range(first, first + 5)]
    pairs = zip(("time", *COLUMNS[1:]), places, strict=True)
    return '--columns "' + ",".join(f"{role}={place}" for role, place in pairs) + '"'


_PLAIN = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_THOUSANDS = r"^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+$"
_NOTHING = ("", "nan", "null", "none", "na", "n/a", "-")


def read_numbers(table: Table, columns: Mapping[str, str], *, decimal: str = "") -> pl.DataFrame:
    """Float64 columns by role; an empty cell is NaN, for the checks to name.

    decimal: "." or "," where the user said which. Raises UsageError on a cell that isn't a number,
    and on 1,234 everywhere: a thousand, or one and a bit?
    """
    frame = table.frame.select(**{role: pl.col(name) for role, name in columns.items()})
    typed = [role for role in frame.columns if frame.schema[role] != pl.String]
    for role in typed:
        if not frame.schema[role].is_numeric():
            raise table.unclear(
                f"column {columns[role]} holds {shortened(str(frame.schema[role]))}, not numbers",
                example=f'--columns "{role}=COLUMN"',
            )
    text = frame.drop(typed).with_columns(pl.all().str.replace_all(r"[$€£¥\s\u00a0']", ""))
    blank = pl.all().str.to_lowercase().is_in(_NOTHING)
    text = text.select(pl.when(~blank).then(pl.all()))
    comma = decimal == "," or (not decimal and _comma_decimals(table, text))
    text = text.select(
        pl.all().str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        if comma
        else pl.all().str.replace_all(",", "", literal=True)
    )
    text = text.select(_multiplied(name) for name in text.columns)
    _refuse_non_numbers(table, text, columns)
    numbers = pl.DataFrame([(frame if role in typed else text)[role] for role in columns])
    return numbers.cast(pl.Float64).fill_null(float("nan"))


def _comma_decimals(table: Table, text: pl.DataFrame) -> bool:
    """True when the comma in these cells is the decimal sign."""
    cells = pl.concat([text[name].drop_nulls() for name in text.columns]) if text.width else None
    if cells is None or not cells.str.contains(",", literal=True).any():
        return False
    cells = cells.filter(cells.str.contains(",", literal=True))
    if cells.str.contains(r",.*\.").all() or cells.str.contains(r",.*,").any():
        return False  # 1,234.50 and 1,234,567: the comma parts thousands
    if cells.str.contains(r"\..*,").any() or not cells.str.contains(_THOUSANDS).all():
        return True  # 1.234,50; or a comma that can't part thousands, as in 8051,5 and 0,123
    raise table.unclear(
        f"is {shortened(cells[0])} a thousand and more, or a number with three decimals?",
        why="every comma in the file stands before exactly three digits",
        example="--decimal .    (or --decimal ,)",
    )


def _multiplied(name: str) -> pl.Expr:
    """12.5K is 12500: some sites round volumes so."""
    size = pl.col(name).str.extract("(?i)[0-9]([kmb])$").str.to_lowercase()
    power = size.replace_strict({"k": "e3", "m": "e6", "b": "e9"}, default="")
    plain = pl.when(size.is_null()).then(pl.col(name)).otherwise(pl.col(name).str.head(-1))
    return plain + power.fill_null("")


def _refuse_non_numbers(table: Table, text: pl.DataFrame, columns: Mapping[str, str]) -> None:
    for role in text.columns:
        plain = text[role].str.contains(_PLAIN)
        finite = text[role].cast(pl.Float64, strict=False).is_finite()
        wrong = ~(plain & finite).fill_null(text[role].is_null())
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise table.unclear(
                f"{table.where(row)}: {table.cell(columns[role], row)!r} in column "
                f"{columns[role]} is not a number",
                why=f"the row: {table.sample(row)}",
                example=one_cell(wrong) or f'--columns "{role}=COLUMN"',
            )
