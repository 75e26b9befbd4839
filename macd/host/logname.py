"""What signal logs of the built-in application are called: trades_YYYYMMDD.jsonl.

Of a service of several instances each writes its own, trades_YYYYMMDD_SYMBOL.jsonl, and numbers its
own lines. The day comes first, so names are in the order of their days. Standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PATTERN = re.compile(r"trades_([0-9]{8})(?:_([A-Z0-9.]{1,30}))?\.jsonl")


def name_of(day: str, writer: str = "") -> str:
    """The log that `writer` writes on `day` (YYYYMMDD); writer: a symbol, "" for one process."""
    return f"trades_{day}{'_' if writer else ''}{writer}.jsonl"


def writer_of(name: str) -> str:
    """Which instance wrote the log of that name; "" for a service of one process."""
    match = PATTERN.fullmatch(name)
    return (match[2] or "") if match else ""


def day_of(name: str) -> str:
    """The day of a log; the name itself where it is called otherwise."""
    match = PATTERN.fullmatch(name)
    return match[1] if match else name


def newest_of_each(names: Iterable[str]) -> list[str]:
    """The newest log of each writer, in the order of the names."""
    newest = {writer_of(name): name for name in sorted(names)}
    return sorted(newest.values())
