"""Settings of the service: service.json (written by deploys) and the flags of its environment.

Read with the standard library alone: the runtime of a release has no pydantic, and the inventory
has checked the values before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd.app.market.bars import step_ms, symbol_name
from macd.app.predict.policy import KEYS, Policy, read_policy
from macd.criteria import MIN_SAMPLES
from macd.errors import UsageError

FILE = "service.json"


@dataclass(frozen=True)
class Feed:
    """Where bars come from. `directory`, relative to the application's, is where files of bars lie.

    speed: bars a second (replay; 0 is as fast as it goes). start: the share of the file that is
    taken as known before. loop: begin again at its end.
    """

    kind: str = "replay"
    directory: str = "data/replay"
    speed: float = 2.0
    start: float = 0.85
    loop: bool = True
    exchange: str = "binance"
    api_url: str = ""
    stale_bars: float = 1.0


@dataclass(frozen=True)
class Flags:
    """ML_* of the environment. `min_samples`: out-of-fold samples stacking must be fitted on."""

    enable_stacking: bool
    min_samples: int
    shown: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Settings:
    """symbol, tf, cross: what is watched. endpoint: unix:/PATH or HOST:PORT.

    policy: who decides; settings without one were written before there were policies.
    """

    root: Path
    symbol: str
    tf: str
    cross: tuple[str, ...]
    endpoint: str
    feed: Feed
    policy: Policy = field(default_factory=Policy)

    @property
    def step(self) -> int:
        """Length of a bar in milliseconds."""
        return step_ms(self.tf)

    @property
    def live(self) -> Path:
        return self.root / "data/live"

    @property
    def feed_directory(self) -> Path:
        return self.root / self.feed.directory

    @classmethod
    def read(cls, root: Path) -> Settings:
        """Raises UsageError when service.json is missing or says nothing usable."""
        path = root / FILE
        try:
            document = json.loads(path.read_bytes())
            feed = {k: v for k, v in document["feed"].items() if k in Feed.__annotations__}
            policy = {k: v for k, v in document.get("policy", {}).items() if k in KEYS}
            settings = cls(
                root=root,
                symbol=symbol_name(document["symbol"]),
                tf=document["tf"],
                cross=tuple(symbol_name(name) for name in document.get("cross", ())),
                endpoint=document["endpoint"],
                feed=_checked(Feed(**feed)),
                policy=read_policy(policy),
            )
            settings.step  # noqa: B018 - raises now for a timeframe that is none
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} can't be used",
                why=f"{type(error).__name__}: {error}",
                hint="invoke provision writes it from the inventory",
            ) from error
        return settings


def _checked(feed: Feed) -> Feed:
    if feed.kind not in ("replay", "directory", "ccxt"):
        raise ValueError(f"feed {feed.kind!r} is not known")
    if not (feed.speed >= 0 and 0 <= feed.start <= 1 and feed.stale_bars > 0):
        raise ValueError("speed, start or stale_bars of the feed is out of range")
    return feed


def flags(environment: Mapping[str, str]) -> Flags:
    """What the environment says. Anything but a plain 1 leaves stacking in shadow."""
    problems = []
    enabled = environment.get("ML_ENABLE_STACKING", "0")
    if enabled not in ("0", "1"):
        problems.append("ML_ENABLE_STACKING is neither 0 nor 1, taken as 0")
    text = environment.get(MIN_SAMPLES, "") or "0"
    least = int(text) if text.isdecimal() else 0
    if not text.isdecimal():
        problems.append(f"{MIN_SAMPLES} is no whole number, taken as 0")
    # Of any other, and of what is not understood, nobody is shown the value: it may be a secret.
    understood = {
        "ML_ENABLE_STACKING": enabled in ("0", "1"),
        MIN_SAMPLES: bool(text.isdecimal()),
    }
    shown: dict[str, Any] = {
        k: v if understood.get(k) else "(hidden)"
        for k, v in sorted(environment.items())
        if k.startswith("ML_")
    }
    return Flags(enabled == "1", least, shown, "; ".join(problems))
