"""The guide's first step: nothing is trained on bars with errors, and every finding is recorded."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.market.bars import bars_path, read_rows, symbol_name
from macd.market.checks import Finding, check_all
from macd.train.cache import write_atomic
from macd.train.settings import Settings

_SHOWN = 10


def verify(settings: Settings, now: datetime, path: Path) -> list[Finding]:
    """All findings about the bars of a training, written to `path` as JSON.

    Raises MacdError when one of them is an error.
    """
    main = symbol_name(settings.symbol)
    symbols = [main, *(symbol_name(name) for name in settings.cross)]
    frames = {
        symbol: read_rows(bars_path(settings.data, symbol, settings.tf)) for symbol in symbols
    }
    found = check_all(frames, main=main, tf=settings.tf, now=now)
    told = [_plain(finding) for finding in found]
    write_atomic(path, (json.dumps(told, indent=1) + "\n").encode())
    errors = [f"{finding.symbol} {finding}" for finding in found if finding.level == "error"]
    if errors:
        more = f"\nand {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise MacdError(
            f"the bars have {len(errors)} error{'s' if len(errors) > 1 else ''}",
            why="\n".join(errors[:_SHOWN]) + more,
            hint="invoke data.verify shows all of them; nothing is repaired silently",
        )
    return found


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "symbol": finding.symbol,
        "check": finding.check,
        "level": finding.level,
        "row": finding.row,
        "time": finding.time.isoformat() if finding.time else None,
        "detail": finding.detail,
    }
