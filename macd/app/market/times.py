"""Read a column of times, however it was written, as UTC; refuse what has two readings.

Epoch seconds to nanoseconds, 12- and 24-hour clocks, ISO with and without a zone, day or month
first where the data show which. Two possible readings are a question to the user, not a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

import polars as pl

from macd.app.market.table import Table, one_cell, plain, shortened

_EARLIEST, _LATEST = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100, in milliseconds
_FIRST = -2_208_988_800_000  # 1900: times that are written out may be older than exchanges
# Upper bounds of each unit: 1e11 seconds is the year 5138, 1e11 milliseconds is 1973.
_EPOCHS = ((1e11, 1_000, 1), (1e14, 1, 1), (1e17, 1, 1_000), (float("inf"), 1, 1_000_000))

_UTC = "+00:00"
_ZONE_COLUMNS = ("tz", "timezone", "zone", "utcoffset", "tzoffset", "gmtoffset")
_NUMBER = r"^[0-9]+(\.[0-9]*)?([eE]\+?[0-9]+)?$"
_CLOCK = (
    r"(?:[T ,;_-]+(?P<h>[0-9]{1,2})(?::?(?P<min>[0-9]{2}))?(?::?(?P<s>[0-9]{2}))?"
    r"(?:[.,](?P<f>[0-9]{1,9}))?(?:[ -]?(?P<ap>[AaPp])\.?[Mm]\.?)?)?"
    r"\s*(?P<z>Z|z|(?:UTC|GMT|utc)?[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2}|UTC|GMT|utc)?$"
)
_NAMED_ZONE = r"^(.*[0-9])\s+([A-Z][A-Za-z]+/[A-Za-z_]+(?:/[A-Za-z_]+)?)$"  # IBKR writes it
_ZONE_WORD = r"^(.*[0-9])\s+([A-Z]{2,5})$"
_PLAIN_WORDS = {"AM", "PM", "UTC", "GMT"}
_EXCEL = r"^[0-9](?:[.,][0-9]{1,5})?[eE]\+?[0-9]{1,2}$"  # a number as a narrow cell shows it
_SHAPES = {
    "ymd": r"^(?P<y>[0-9]{4})[-/.](?P<m>[0-9]{1,2})[-/.](?P<d>[0-9]{1,2})" + _CLOCK,
    "xxy": r"^(?P<a>[0-9]{1,2})[-/.](?P<b>[0-9]{1,2})[-/.](?P<y>[0-9]{4})" + _CLOCK,
    "two-digit year": r"^(?P<a>[0-9]{1,2})[-/.](?P<b>[0-9]{1,2})[-/.](?P<c>[0-9]{1,2})" + _CLOCK,
    "packed": r"^(?P<y>[0-9]{4})(?P<m>[0-9]{2})(?P<d>[0-9]{2})" + _CLOCK.replace("]+", "]*", 1),
    "day month": r"^(?:[A-Za-z]{3,9},? )?(?P<d>[0-9]{1,2})[- ](?P<mon>[A-Za-z]{3,9})[- ,]+"
    r"(?P<y>[0-9]{4}|[0-9]{2})" + _CLOCK,
    "month day": r"^(?P<mon>[A-Za-z]{3,9})\.? (?P<d>[0-9]{1,2}),? (?P<y>[0-9]{4})" + _CLOCK,
}
_MONTHS = dict(
    jan=1, feb=2, mar=3, apr=4, may=5, jun=6, jul=7, aug=8, sep=9, oct=10, nov=11, dec=12
)


@dataclass(frozen=True)
class Times:
    """UTC bar times in file order, Datetime("ms", "UTC"), and what had to be assumed."""

    stamps: pl.Series
    notes: tuple[str, ...] = ()


def read_times(
    table: Table,
    column: str,
    *,
    clock: str = "",
    zone: str = "",
    usual: str = "",
    dates: str = "",
) -> Times:
    """The column's times; UsageError where they can't be read for certain.

    clock: the column of the time of day, where `column` has dates alone; zone: the time zone of the
    file ("+02:00", "Europe/Berlin"), for times that don't say; usual: that of the file's source,
    for times that don't say where the user says none either; dates: "dmy" or "mdy", where
    03/04/2020 could be either.
    """
    times = _read(table, column, clock=clock, zone=zone, usual=usual, dates=dates)
    unreal = ~times.stamps.to_physical().is_between(_FIRST, _LATEST)
    if unreal.any():
        row = int(unreal.arg_true()[0])
        raise table.unclear(
            f"{table.where(row)}: {table.cell(column, row)} is no time of a bar",
            why="bars lie between the years 1900 and 2100",
            example=one_cell(unreal) or '--columns "time=COLUMN"',
        )
    return times


def _read(table: Table, column: str, *, clock: str, zone: str, usual: str, dates: str) -> Times:
    cells = table.frame[column]
    for name in filter(None, (column, clock)):
        _refuse_no_time(table, name)
    if clock:
        short = r"^([0-9]{2})([0-9]{2})([0-9]{2})$"  # Finam's 240304
        cells = cells.cast(pl.String).str.replace(short, "$1-$2-$3")
        cells = cells + " " + _clocks(table.frame[clock])
    if cells.null_count():
        row = int(cells.is_null().arg_true()[0])
        raise table.unclear(f"{table.where(row)} has no time", why=f"the row: {table.sample(row)}")
    if isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone:
        _refuse_zone(table, zone, f"column {column} is in {cells.dtype.time_zone}")
        return Times(cells.dt.convert_time_zone("UTC").dt.cast_time_unit("ms"))
    if re.search("utc|gmt", column, re.IGNORECASE):
        _refuse_zone(table, zone, f"column {column} says so by its name")
        usual = _UTC
    if cells.dtype.is_temporal():
        return _in_zone(table, cells.cast(pl.Datetime("ms")), zone, usual)
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars(" '").str.replace_all("[年月]", "-")  # Excel's mark of text
        cells = cells.str.replace("日", " ", literal=True).str.strip_chars()
        _refuse_rounded(table, cells)
    if cells.dtype.is_float() or _looks_epoch(cells):
        _refuse_zone(table, zone, f"column {column} counts from 1970-01-01 UTC")
        return Times(_epoch(table, cells))
    cells, zone = _named_zone(table, cells.cast(pl.String), zone)
    return _text(table, cells, zone, usual, dates=dates)


def _named_zone(table: Table, cells: pl.Series, zone: str) -> tuple[pl.Series, str]:
    """The cells without the name of a zone behind each, and that zone; IBKR writes them so."""
    worded = cells.str.extract_groups(_ZONE_WORD).struct.unnest()
    words = worded["2"].unique().sort().to_list()
    if cells.len() and not worded["2"].null_count() and not _PLAIN_WORDS & set(words):
        if not zone:
            raise table.unclear(
                f"what zone is {' and '.join(map(str, words[:5]))}?",
                why=f"each time ends with such a word, as {shortened(cells[0])}, and most of them "
                "mean several zones",
                example="--timezone -05:00    (or America/New_York, with summer time)",
            )
        return worded["1"], zone
    named = cells.str.extract_groups(_NAMED_ZONE).struct.unnest()
    if not cells.len() or named["2"].null_count():
        return cells, zone
    _refuse_zone(table, zone, f"each names its zone, as {shortened(cells[0])}")
    zones = named["2"].unique().sort().to_list()
    if len(zones) > 1:
        raise table.unclear("the times are of several zones", why=", ".join(zones[:10]))
    return named["1"], str(zones[0])


def _refuse_rounded(table: Table, cells: pl.Series) -> None:
    """Excel shows a long number as 1.71737E+12, saves it so, and the time is lost."""
    if cells.len() < 2 or not cells.str.contains(_EXCEL).all():
        return
    raise table.unclear(
        f"the times were rounded, probably by Excel: {shortened(cells[0])}",
        why="so few digits of a long number don't tell the hour, and no program can bring the "
        "others back",
        example="where FILE is the original; or in Excel format the column as a number without "
        "decimals (0), then save it again",
    )


def _refuse_no_time(table: Table, column: str) -> None:
    """Parquet may hold lists, bytes, yes and no."""
    kind = table.frame.schema[column]
    text = kind in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    if text or kind.is_numeric() or kind in (pl.Datetime, pl.Date, pl.Time):
        return
    raise table.unclear(
        f"column {column} holds {shortened(str(kind))}, not times",
        example='--columns "time=COLUMN"',
    )


def _clocks(cells: pl.Series) -> pl.Series:
    """A column of clocks as text; 93000 is 09:30:00 that lost its zero on the way."""
    text = cells.cast(pl.String)
    longest = text.str.len_chars().max()
    if not isinstance(longest, int) or longest < 3 or not text.str.contains(r"^[0-9]+$").all():
        return text
    return text.str.zfill(4 if longest <= 4 else 6)


def _looks_epoch(cells: pl.Series) -> bool:
    """Plain numbers, but not 20191017 or 201910170900, which only look like numbers."""
    text = cells.cast(pl.String)
    packed = text.str.contains(r"^(19|20)[0-9]{6}([0-9]{4}([0-9]{2})?)?$")
    return bool((text.str.contains(_NUMBER) & ~packed).all())


def epoch_ms(text: str) -> int | None:
    """Epoch milliseconds of a number of seconds to nanoseconds since 1970; None for other text.

    Raises ValueError for a number that is no time between 1990 and 2100 in any of these units.
    """
    if not re.match(_NUMBER, text):
        return None
    number = int(text) if text.isdecimal() else round(float(text))
    times, parts = next((times, parts) for bound, times, parts in _EPOCHS if number < bound)
    ms = number * times // parts
    if not _EARLIEST <= ms <= _LATEST:
        raise ValueError(f"{text} is no time between 1990 and 2100")
    return ms


def _epoch(table: Table, cells: pl.Series) -> pl.Series:
    whole = cells.cast(pl.Int64, strict=False)
    exact = pl.select(
        pl.coalesce(
            whole, cells.cast(pl.Float64, strict=False).round().cast(pl.Int64, strict=False)
        )
    )
    value = pl.col("value")
    scaled = pl.lit(None, dtype=pl.Int64)
    for bound, times, parts in reversed(_EPOCHS):
        scaled = pl.when(value < bound).then(value * times // parts).otherwise(scaled)
    ms = exact.to_series().alias("value").to_frame().select(scaled).to_series()
    wrong = (~ms.is_between(_EARLIEST, _LATEST)).fill_null(value=True)
    if wrong.any():
        row = int(wrong.arg_true()[0])
        raise table.unclear(
            f"{table.where(row)}: {shortened(str(cells[row]))} is not a time",
            why="a number must be seconds, milliseconds, microseconds or nanoseconds since 1970, "
            "and fall between 1990 and 2100" + _as_days(str(cells[row])),
            example=one_cell(wrong) or '--columns "time=COLUMN"',
        )
    return ms.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC")


def _as_days(text: str) -> str:
    """More about a number that Excel may mean as a day."""
    if not re.fullmatch(r"[2-7][0-9]{4}(\.[0-9]+)?", text):
        return ""
    return (
        "; this may be Excel's count of days: format the column there as yyyy-mm-dd hh:mm, and "
        "save it again"
    )


def _text(table: Table, cells: pl.Series, zone: str, usual: str, *, dates: str) -> Times:
    name, parts = _match(table, cells)
    if name == "xxy":
        parts = _day_or_month(table, cells, parts, dates)
    if name == "two-digit year":
        parts = _two_digit_year(table, cells, parts, dates)
    if "mon" in parts.columns:
        short = pl.col("mon").str.to_lowercase().str.slice(0, 3)
        year = pl.col("y").cast(pl.Int64)
        parts = parts.with_columns(
            m=short.replace_strict(_MONTHS, default=None, return_dtype=pl.Int64),
            y=(year + pl.when(year < 100).then(_century(year)).otherwise(0)).cast(pl.String),
        )
    local = _compose(parts)
    if local.null_count():
        row = int(local.is_null().arg_true()[0])
        raise table.unclear(
            f"{table.where(row)}: {shortened(cells[row])!r} is no time that any clock shows",
            example="after correcting it",
        )
    zoned = parts["z"].is_not_null()
    if zoned.all():
        _refuse_zone(table, zone, f"each names its zone, as {cells[0]}")
        return Times((local - _offsets(parts["z"])).dt.replace_time_zone("UTC"))
    if zoned.any():
        rows = [int(mask.arg_true()[0]) for mask in (zoned, ~zoned)]
        raise table.unclear(
            "some times name their zone and some don't",
            why=", ".join(f"{table.where(row)}: {cells[row]}" for row in rows),
            example="after giving all of them a zone, or none",
        )
    return _in_zone(table, local, zone, usual)


def _match(table: Table, cells: pl.Series) -> tuple[str, pl.DataFrame]:
    for name, shape in _SHAPES.items():
        if cells.str.contains(shape).all():
            return name, cells.str.extract_groups(shape).struct.unnest()
    # Name the first row that isn't written as most are; where no shape fits any, the first row.
    fits = max((cells.str.contains(shape) for shape in _SHAPES.values()), key=pl.Series.sum)
    row = int((~fits).arg_true()[0])
    raise table.unclear(
        f"{table.where(row)}: the time {shortened(cells[row])!r} is not understood",
        why="understood are 2019-10-17 09:00, 2019-10-17 09-AM, 2019-10-17T09:00:00+02:00, "
        "17.10.2019 09:00, 10/17/2019 9:00 PM, 17 Oct 2019 09:00, and seconds or milliseconds "
        "since 1970; all rows must be written alike",
        example=one_cell(~fits) or '--columns "time=COLUMN"',
    )


def _day_or_month(table: Table, cells: pl.Series, parts: pl.DataFrame, dates: str) -> pl.DataFrame:
    """Is 03/04/2020 in March or in April? Numbers over 12 decide, or the bars' even spacing."""
    a, b = (parts[name].cast(pl.Int64) for name in "ab")
    readings = {"dmy": parts.with_columns(d=a, m=b), "mdy": parts.with_columns(d=b, m=a)}
    if dates in readings:
        return readings[dates]
    possible = {key: frame for key, frame in readings.items() if _compose(frame).null_count() == 0}
    if len(possible) > 1:
        even = {key: frame for key, frame in possible.items() if _evenly_spaced(_compose(frame))}
        possible = even or possible
    if len(possible) == 1:
        return next(iter(possible.values()))
    raise table.unclear(
        f"is {cells[0]} the {a[0]}. of month {b[0]}, or the {b[0]}. of month {a[0]}?",
        why="nothing in the file distinguishes day from month",
        example="--dates dmy    (or --dates mdy)",
    )


def _two_digit_year(
    table: Table, cells: pl.Series, parts: pl.DataFrame, dates: str
) -> pl.DataFrame:
    """16/10/19 may be three days; a file of one day would show none of them."""
    if not dates:
        raise table.unclear(
            f"which of the three in {shortened(cells[0])} is the year, the month, the day?",
            why="the years have two digits",
            example="--dates dmy    (or mdy, or ymd)",
        )
    named = dict(zip(dates, "abc", strict=True))
    year = pl.col(named["y"]).cast(pl.Int64)
    return parts.with_columns(
        y=(year + _century(year)).cast(pl.String), m=pl.col(named["m"]), d=pl.col(named["d"])
    )


def _century(year: pl.Expr) -> pl.Expr:
    return pl.when(year < 70).then(2000).otherwise(1900)


def _evenly_spaced(local: pl.Series) -> bool:
    return local.len() > 2 and local.sort().diff().drop_nulls().n_unique() == 1


def _compose(parts: pl.DataFrame) -> pl.Series:
    """Naive datetimes from the parts; null where no calendar or clock has that time."""
    number = {name: pl.col(name).cast(pl.Int64, strict=False) for name in ("y", "m", "d")}
    h, minute, second = (pl.col(name).cast(pl.Int64).fill_null(0) for name in ("h", "min", "s"))
    afternoon = pl.col("ap").str.to_lowercase()
    hour = (
        pl.when(afternoon.is_null())
        .then(h)
        .when(~h.is_between(1, 12))
        .then(99)
        .otherwise(h % 12 + pl.when(afternoon == "p").then(12).otherwise(0))
    )
    milli = pl.col("f").str.pad_end(3, "0").str.slice(0, 3).cast(pl.Int64).fill_null(0)
    text = pl.format(
        "{}-{}-{} {}:{}:{}",
        number["y"],
        *(part.cast(pl.String).str.zfill(2) for part in (number["m"], number["d"])),
        *(part.cast(pl.String).str.zfill(2) for part in (hour, minute, second)),
    )
    stamp = text.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False)
    return parts.select(stamp + pl.duration(milliseconds=milli)).to_series()


def _offsets(zones: pl.Series) -> pl.Series:
    text = zones.str.replace(r"^([Zz]|UTC|GMT|utc)$", "+0000").str.replace(":", "")
    text = text.str.replace("^(UTC|GMT|utc)", "").alias("z")
    sign = pl.when(pl.col("z").str.starts_with("-")).then(-1).otherwise(1)
    hours = pl.col("z").str.slice(1, 2).cast(pl.Int64)
    minutes = pl.col("z").str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    frame = text.alias("z").to_frame()
    return frame.select(
        pl.duration(minutes=sign * (hours * 60 + minutes), time_unit="ms")
    ).to_series()


def _refuse_zone(table: Table, zone: str, why: str) -> None:
    if zone:
        raise table.unclear(
            "--timezone is for times that don't say their zone, and these do",
            why=why,
            example="without --timezone",
        )


def _in_zone(table: Table, local: pl.Series, zone: str, usual: str = "") -> Times:
    if not zone and usual:
        note = f"times are read as {usual}, which is usual there (if not: --timezone ZONE)"
        read = _in_zone(table, local, usual)
        return Times(read.stamps, (*read.notes, *(() if usual == _UTC else (note,))))
    if not zone:
        _refuse_zone_beside(table)
        note = "the times name no zone and are taken as UTC (if they are not: --timezone +02:00)"
        return Times(local.dt.replace_time_zone("UTC"), (note,))
    if re.fullmatch(r"[+-][0-9]{1,2}(:?[0-9]{2})?", zone):
        sign, rest = zone[0], zone[1:].replace(":", "")
        hours, minutes = (rest[:-2], rest[-2:]) if len(rest) > 2 else (rest, "0")
        moved = f"{sign}{hours.zfill(2)}{minutes.zfill(2)}"
        offset = _offsets(pl.Series("z", [moved] * local.len(), dtype=pl.String))
        return Times((local - offset).dt.replace_time_zone("UTC"))
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise table.unclear(
            f"there is no time zone {zone!r}",
            why="a zone is an offset such as +02:00, or a name such as America/New_York",
            example="--timezone +02:00",
        ) from error
    return _switching(table, local, zone)


def _refuse_zone_beside(table: Table) -> None:
    """A column beside the times may hold their zone; UTC in all of it says what is taken anyway."""
    for name in (name for name in table.frame.columns if plain(name) in _ZONE_COLUMNS):
        zones = {table.cell(name, row) for row in range(min(table.frame.height, 100))}
        if not zones <= {"UTC", "utc", "Z", "GMT", "+00:00", "+0000", "0", "0.0", "None", ""}:
            raise table.unclear(
                f"are the times those of the zone in column {name} ({table.cell(name, 0)})?",
                example="--timezone +02:00    (or UTC, where they are not)",
            )


def _switching(table: Table, local: pl.Series, zone: str) -> Times:
    """Local times with summer time: their order separates the two 02:30 of a night."""
    counted = local.to_physical()  # Python has no year 0
    falling = local.len() > 1 and counted[0] > counted[-1]
    again = pl.col("local").cum_count(reverse=falling).over("local") > 1
    which = pl.when(again).then(pl.lit("latest")).otherwise(pl.lit("earliest"))
    frame = local.alias("local").to_frame().with_columns(which=which)
    placed = frame.select(
        pl.col("local").dt.replace_time_zone(zone, ambiguous=pl.col("which"), non_existent="null"),
        once=(pl.len().over("local") == 1)
        & pl.col("local")
        .dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        .is_null(),
    )
    never, once = placed["local"].is_null(), placed["once"] & placed["local"].is_not_null()
    if never.any() or once.any():
        row = int((never | once).arg_true()[0])
        what = "never was" if never[row] else "was twice, and the file has it once"
        raise table.unclear(
            f"{table.where(row)}: {local[row]} {what} in {zone}",
            why="so the file is not in that zone, or bars are missing just there",
            example="--timezone +02:00 (a fixed offset), or none for UTC",
        )
    return Times(placed["local"].dt.convert_time_zone("UTC"))
