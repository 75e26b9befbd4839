"""What the volume of a file counts: coins, their price, contracts, ticks; proved, stated, or asked.

Where a file has two volumes they prove each other: what was paid for a unit lies between the low
and the high of the bar, so their ratio says which one counts units of the asset. A volume that is
something else is never taken for units in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from macd.app.market.columns import PRICES, Mapped, read_numbers, unit_by_name
from macd.app.market.dialects import Unit
from macd.app.market.table import Table
from macd.errors import UsageError

UNITS = "base, quote, ticks, none, or with the size of one: base=0.01, quote=100"
_SAID = re.compile(r"(?P<unit>base|quote)(?:=(?P<size>[0-9.eE+-]+))?|ticks|none")
_PROOF = 0.9  # of the volume must agree
_SLACK = 0.002  # of the price: both numbers are rounded
_DOLLARS = (10.0, 100.0)  # what one contract of a coin-margined future is worth
_LOTS = tuple(10.0**power for power in range(-6, 5) if power)  # units of the asset in one contract


@dataclass(frozen=True)
class Said:
    """What the user said a volume counts: the unit, and how much of it one is."""

    unit: Unit
    size: float = 1.0


@dataclass(frozen=True)
class Volume:
    """Units of the asset, Float64 of shape (N,); its column; what had to be done or assumed."""

    values: pl.Series
    column: str
    notes: tuple[str, ...] = ()


def parse_unit(text: str) -> Said | None:
    """`--volume-is quote=100`; None where nothing was said. UsageError for anything else."""
    if not text:
        return None
    match = _SAID.fullmatch(text.strip())
    try:
        size = float(match["size"] or 1) if match else 0.0
    except ValueError:
        size = 0.0
    if not match or not 1e-12 <= size <= 1e12:
        raise UsageError(
            f"--volume-is {text[:60]!r} is not understood",
            why=f"a volume counts {UNITS}",
            hint="--volume-is quote",
        )
    unit: Unit = "base"
    for name in ("quote", "ticks", "none"):
        unit = name if text.strip().startswith(name) else unit
    return Said(unit, size)


def read_volume(
    table: Table,
    mapped: Mapped,
    numbers: pl.DataFrame,
    *,
    unit: Unit,
    said: Said | None = None,
    decimal: str = "",
) -> Volume:
    """The volume in units of the asset.

    Args:
        table, mapped: the file, and its columns.
        numbers: open, high, low, close, and volume if there is one; Float64 of N rows.
        unit: what the file's source usually counts (dialects.py).
        said: what the user says it counts; decides before everything else.
        decimal: as in `read_numbers`.

    Raises:
        UsageError: nobody can know what it counts; the question names the answers.
    """
    prices = numbers.select(PRICES)
    if not mapped.volume or (said and said.unit == "none"):
        return Volume(_nothing(prices), "", ("no volume: stored as 0 in every bar",))
    values = numbers["volume"]
    if said:
        return _converted(values, mapped.volume, prices, said)
    others = _others(table, mapped, decimal)
    if unit == "base" and not others:
        unit = "quote" if _has_sign(table, mapped.volume) else unit_by_name(mapped.volume)
    if not _traded(values):
        return _empty(table, mapped.volume, prices, others, unit)
    if unit == "quote":
        return _converted(values, mapped.volume, prices, Said("quote"))
    if unit == "ticks":
        exchange = bool(others) and unit_by_name(mapped.volume) != "ticks"  # beside ticks
        return Volume(values, mapped.volume, () if exchange else (_ticks(mapped.volume),))
    volume = _proved({mapped.volume: values, **others}, prices)
    if volume or (not others and unit != "ask"):
        return volume or Volume(values, mapped.volume)
    raise table.unclear(
        f"what does the volume ({mapped.volume}) count?",
        why="coins, their price, or contracts: the file doesn't say"
        + (f", and {', '.join(others)} does not fit to it" if others else ""),
        example="--volume-is base    (units of the asset; or quote, its price; ticks; none; "
        "base=0.01: contracts of 0.01; quote=100: contracts worth 100)",
    )


def _has_sign(table: Table, column: str) -> bool:
    """Whether the volume is written as money: $1,234."""
    cells = table.frame[column]
    return cells.dtype == pl.String and bool(cells.str.contains("^[$€£¥]").any())


def _nothing(prices: pl.DataFrame) -> pl.Series:
    return pl.zeros(prices.height, dtype=pl.Float64, eager=True)


def _traded(values: pl.Series) -> bool:
    return bool((values.fill_nan(0) != 0).any())


def _ticks(name: str) -> str:
    return f"{name} counts changes of the price (ticks), not units of the asset"


def _empty(
    table: Table, column: str, prices: pl.DataFrame, others: dict[str, pl.Series], unit: Unit
) -> Volume:
    """A column of zeros: another one counts, or the source is known to have none; or asked."""
    full = {name: other for name, other in others.items() if _traded(other)}
    zeros = f"{column} is 0 in every row"
    if unit == "ticks" and full:
        name, values = next(iter(full.items()))
        return Volume(values, name, (f"{zeros}; {_ticks(name)}",))
    if unit in ("ticks", "none"):
        return Volume(_nothing(prices), "", (f"{zeros}: no volume",))
    raise table.unclear(
        f"the volume ({column}) is 0 or empty in every row: is there none?",
        why="taken as it stands it would say that nobody traded",
        example="--volume-is none    (or another column: --columns volume=NAME)",
    )


def _others(table: Table, mapped: Mapped, decimal: str) -> dict[str, pl.Series]:
    """The other volumes, as far as they are numbers."""
    others = {}
    first = table.frame[mapped.prices["open"]]
    commas = first.dtype == pl.String and first.str.contains(",", literal=True).any()
    prices = mapped.prices if commas else {}  # with them the decimal sign shows
    for name in mapped.beside:
        try:
            columns = {**prices, "beside": name}
            sign = decimal if commas else decimal or "."
            others[name] = read_numbers(table, columns, decimal=sign)["beside"]
        except UsageError:
            continue
    return others


def _converted(values: pl.Series, column: str, prices: pl.DataFrame, said: Said) -> Volume:
    sized = values * said.size
    each = f"{column}: each is {said.size:g} " if said.size != 1 else f"{column} is "
    if said.unit == "quote":
        typical = prices.select(pl.mean_horizontal("high", "low", "close")).to_series()
        note = f"{each}of the price's currency: divided by the mean of high, low and close"
        return Volume(sized / typical, column, (note,))
    if said.unit == "ticks":
        return Volume(sized, column, (_ticks(column),))
    return Volume(sized, column, (f"{each}units of the asset",) if said.size != 1 else ())


def _proved(volumes: dict[str, pl.Series], prices: pl.DataFrame) -> Volume | None:
    """The units of the asset among these columns, the first of which is the file's volume."""
    first, *_ = volumes
    for name, units in volumes.items():
        for other, paid in volumes.items():
            if name != other and _fits(units, paid, prices):
                note = f"{first} is no count of the asset: taken {name} ({other} was paid for it)"
                return Volume(units, name, () if name == first else (note,))
    contracts = volumes[first]
    for name, series in list(volumes.items())[1:]:
        for worth in _DOLLARS:
            if _fits(series, contracts * worth, prices):
                note = f"{first} counts contracts worth {worth:g}: taken {name}, the asset itself"
                return Volume(series, name, (note,))
        for lot in _LOTS:
            if _fits(contracts * lot, series, prices):
                note = f"{first} counts contracts (or lots) of {lot:g} units: multiplied"
                return Volume(contracts * lot, first, (note,))
    return None


def _fits(units: pl.Series, paid: pl.Series, prices: pl.DataFrame) -> bool:
    """Whether `paid` / `units` lies between low and high, for nearly all that was traded."""
    frame = prices.select("low", "high").with_columns(u=units.fill_nan(0), p=paid.fill_nan(0))
    frame = frame.filter((pl.col("u") > 0) & (pl.col("p") >= 0) & (pl.col("low") > 0))
    each = pl.col("p") / pl.col("u")
    good = each.is_between(pl.col("low") * (1 - _SLACK), pl.col("high") * (1 + _SLACK))
    share = (pl.col("u") * good).sum() / pl.col("u").sum()
    return bool(frame.height and frame.select(share >= _PROOF).item())
