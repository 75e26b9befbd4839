"""Signal lines as the service writes them, for tests that need logs and no models.

tests/local/test_gate_service.py holds them to what the real service writes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

RELEASE = "20260301T000100Z-0011aabb"
FIRST_BAR = datetime(2019, 1, 1, tzinfo=UTC)


def lines(
    n: int,
    *,
    end: datetime,
    release: str | None = RELEASE,
    first_seq: int = 1,
    every: timedelta = timedelta(minutes=1),
    seed: int = 7,
    **components: Any,
) -> Iterator[dict[str, Any]]:
    """`n` good lines, the last of them written at `end`; `components` are put over each."""
    rng = random.Random(seed)
    close = 4000.0
    for at in range(n):
        seq = first_seq + at
        close *= 1 + rng.gauss(0, 0.004)
        p = {name: 0.3 + 0.4 * rng.random() for name in ("lgbm", "lstm", "tft", "stacking")}
        heads = {
            name: {head: 0.3 + 0.4 * rng.random() for head in ("5h", "12h", "24h")} for name in p
        }
        found: dict[str, Any] = {
            "close": close,
            "policy": "tilt",
            "macd": 1.5,
            "macd_signal": 1.0,
            "macd_hist": 0.5,
            "ml_bull_prob": sum(p.values()) / 4,
            "ml_direction": "bull",
            "ml_lgb_prob": p["lgbm"],
            "ml_lstm_prob": p["lstm"],
            "ml_tft_prob": p["tft"],
            "ml_stacking_prob": p["stacking"],
            "ml_stacking_mode": "shadow",
            "ml_stacking_skipped_reason": None,
            "ml_heads": heads,
            "ml_latency_ms": round(2 + 3 * rng.random(), 3),
            "ml_error": None,
            **components,
        }
        yield {
            "timestamp": _stamp(end - (n - 1 - at) * every),
            "level": "SIGNAL",
            "seq": seq,
            "release": release,
            "symbol": "BTCUSD",
            "tf": "1h",
            "bar_time": bar_time(seq),
            "data": {
                "action_taken": "HOLD",
                "sell_score": 10.0,
                "buy_score": 20.0,
                "position": {"side": "flat", "size": 0.0, "bars_left": 0},
                "components": found,
            },
        }


def skilled(n: int, *, worse: bool = True, **over: Any) -> Iterator[dict[str, Any]]:
    """Lines of n hours on which the mean knows the closes somewhat, and stacking the contrary.

    With worse=False stacking knows them.
    """
    rng = random.Random(1)
    made = list(lines(n, every=timedelta(hours=1), ml_horizon="5h", **over))
    closes = [line["data"]["components"]["close"] for line in made]
    for at, line in enumerate(made):
        rises = closes[min(at + 5, n - 1)] > closes[at]
        p = (0.6 if rises else 0.4) + rng.gauss(0, 0.02)
        fields = line["data"]["components"]
        fields["ml_avg_prob"], fields["ml_stacking_prob"] = (p, 1 - p) if worse else (1 - p, p)
        yield line


def warning(event: str, bar: int | None, *, at: datetime, seq: int, **over: Any) -> dict[str, Any]:
    """A line that is no signal; `bar` is numbered as in `lines`, by the seq that told it there."""
    return {
        "timestamp": _stamp(at),
        "level": "WARN",
        "seq": seq,
        "release": RELEASE,
        "symbol": "BTCUSD",
        "tf": "1h",
        "bar_time": None if bar is None else bar_time(bar),
        "data": {"event": event, "detail": "as the service tells it"},
        **over,
    }


def bar_time(number: int) -> str:
    return f"{FIRST_BAR + timedelta(hours=number):%Y-%m-%dT%H:%M:%SZ}"


def encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def write(directory: Path, made: Iterator[dict[str, Any]]) -> None:
    """Append each line to the file of the day it was written on."""
    directory.mkdir(parents=True, exist_ok=True)
    for line in made:
        day = line["timestamp"][:10].replace("-", "")
        with (directory / f"trades_{day}.jsonl").open("ab") as file:
            file.write(encode(line))


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
