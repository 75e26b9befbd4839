"""Read columns of numbers, decimal point or comma; ask where 1,234 could be both."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from macd.app.market.table import Table, shortened

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
    _refuse_words(table, text, columns)
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


def _refuse_words(table: Table, text: pl.DataFrame, columns: Mapping[str, str]) -> None:
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
                example=f'--columns "{role}=COLUMN"',
            )
