"""The guide's first step: nothing is trained on bars with errors, and every finding is recorded."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from macd.app.market.bars import bars_path, read_rows, symbol_name
from macd.app.market.checks import Finding, Limits, check_all
from macd.app.market.findings import judged, way_out
from macd.app.train.settings import Settings
from macd.errors import MacdError
from macd.host.durable import replace_file

_SHOWN = 10
_ALL = (
    "invoke data.verify --symbol {symbols} --tf {s.tf} --data {s.data} shows all of them and what "
    "mends each; nothing is repaired silently"
)


def verify(settings: Settings, now: datetime, path: Path) -> list[Finding]:
    """All findings about the bars of a training, written to `path` as JSON.

    Raises MacdError when one of them is an error that the settings don't accept.
    """
    main = symbol_name(settings.symbol)
    symbols = [main, *(symbol_name(name) for name in settings.cross)]
    frames = {
        symbol: read_rows(bars_path(settings.data, symbol, settings.tf)) for symbol in symbols
    }
    limits = Limits().changed(settings.limits)
    found = judged(
        check_all(frames, main=main, tf=settings.tf, now=now, limits=limits), settings.accept
    )
    told = [_plain(finding) for finding in found]
    replace_file(path, (json.dumps(told, indent=1) + "\n").encode(), parents=True)
    wrong = [finding for finding in found if finding.level == "error"]
    if wrong:
        more = f"\nand {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise MacdError(
            f"the bars have {len(wrong)} error{'s' if len(wrong) > 1 else ''}",
            why="\n".join(f"{finding.symbol} {finding}" for finding in wrong[:_SHOWN]) + more,
            hint="\n".join(
                filter(None, (_ALL.format(symbols=",".join(symbols), s=settings), way_out(wrong)))
            ),
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
        **({"reason": finding.reason} if finding.reason else {}),
    }
