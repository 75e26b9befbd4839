"""How bars and findings look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from macd.market.findings import Finding

SHOWN = 10  # findings of one kind; --all shows every one


def tell(
    frames: Mapping[str, pl.DataFrame], found: list[Finding], *, heading: str, every: bool
) -> None:
    """What was found about each asset, then the sum of it and what to do."""
    from macd.market.bars import digest

    for symbol, rows in frames.items():
        print(f"{symbol} {heading}: {span(rows)}, digest {digest(rows)[:12]}")
        _show([finding for finding in found if finding.symbol == symbol], every=every)
    _judge(found)


def span(rows: pl.DataFrame) -> str:
    """How many bars, from when to when."""
    if rows.is_empty():
        return "0 bars"
    ordered = rows["timestamp"].sort()
    first, last = ordered[0], ordered[-1]
    return f"{rows.height:,} bars, {first:%Y-%m-%d %H:%M} .. {last:%Y-%m-%d %H:%M} UTC"


def next_step(directory: Path, symbol: str, tf: str) -> None:
    """The command that checks what was just written."""
    where = f"--data {short(directory)} --symbol {symbol} --tf {tf}"
    print(f"  next: invoke data.verify {where}")


def short(path: Path) -> str:
    """Relative to where the user stands, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _show(found: list[Finding], *, every: bool) -> None:
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        kinds.setdefault((finding.level, finding.check), []).append(finding)
    for (level, check), several in sorted(kinds.items()):
        for finding in several if every else several[:SHOWN]:
            print(f"  {'✗' if level == 'error' else '!'} {finding}")
        if not every and len(several) > SHOWN:
            print(f"    and {len(several) - SHOWN:,} more {check}; --all shows them")


def _judge(found: list[Finding]) -> None:
    from macd.market.findings import remedy

    errors = sum(finding.level == "error" for finding in found)
    warnings = len(found) - errors
    told = f"{warnings} warning{'s' * (warnings != 1)}"
    if not errors:
        print(f"✓ no errors, {told}" + (": odd, but markets do such things" if warnings else ""))
        return
    print(f"✗ {errors:,} error{'s' * (errors != 1)}, {told}; nothing was changed")
    for check in sorted({finding.check for finding in found if finding.level == "error"}):
        print(
            f"  {check}: {remedy(check) or 'look at the row; correct or cut the file, import it'}"
        )
