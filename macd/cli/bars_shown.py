"""How bars and findings look on a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from macd.app.market.findings import Accepted, Finding

_MARKS = {"error": "✗", "warn": "!", "accepted": "·"}
SHOWN = 10  # findings of one kind; --all shows every one


def show_findings(
    frames: Mapping[str, pl.DataFrame],
    findings: list[Finding],
    absent: list[Accepted],
    *,
    directory: Path,
    tf: str,
    every: bool,
) -> None:
    """Print the findings of each asset, then their counts and what to do.

    absent: what was accepted beforehand and isn't there.
    """
    from macd.app.market.bars import digest

    where = short(directory)
    for symbol, rows in frames.items():
        print(f"{symbol} {tf} in {where}: {span(rows)}, digest {digest(rows)[:12]}")
        _show([finding for finding in findings if finding.symbol == symbol], every=every)
    for entry in absent:
        print(f"  ! accepted, and not found in these bars: {entry}")
    _judge(findings, f"--data {shlex.quote(where)} --tf {tf}")


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


def _show(findings: list[Finding], *, every: bool) -> None:
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.check), []).append(finding)
    for (level, check), several in sorted(kinds.items()):
        for finding in several if every else several[:SHOWN]:
            print(f"  {_MARKS[level]} {finding}")
        if not every and len(several) > SHOWN:
            print(f"    and {len(several) - SHOWN:,} more {check}; --all shows them")


def _judge(findings: list[Finding], bars: str) -> None:
    from macd.app.market.findings import remedy, way_out

    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warn"))
    accepted = len(findings) - errors - warnings
    counts = f"{warnings} warning{'s' * (warnings != 1)}"
    counts += f", {accepted:,} accepted" if accepted else ""
    if not errors:
        print(f"✓ no errors, {counts}" + (": odd, but markets do such things" if warnings else ""))
        return
    print(f"✗ {errors:,} error{'s' * (errors != 1)}, {counts}; nothing was changed")
    wrong = [finding for finding in findings if finding.level == "error"]
    for check in sorted({finding.check for finding in wrong}):
        several = [finding for finding in wrong if finding.check == check]
        own = [f.remedy.format(bars=f"{bars} --symbol {f.symbol}") for f in several if f.remedy]
        general = remedy(check) or "look at the row; correct or cut the file, import it"
        print(f"  {check}: " + "\n".join(own[:SHOWN] or [general]).replace("\n", "\n    "))
    for line in way_out(wrong).splitlines():
        print(f"  {line}")
