"""Settings of the service: service.json (written by deploys) and the flags of its environment.

Read with the standard library alone: the runtime of a release has no pydantic, and the inventory
has checked the values before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from macd.app.market.bars import step_ms
from macd.app.predict.policy import KEYS, Policy, read_policy
from macd.criteria import MIN_SAMPLES
from macd.errors import UsageError
from macd.host import envfile, own
from macd.symbols import symbol_name

FILE = "service.json"
_ENABLE, _WEIGHT = "ML_ENABLE_STACKING", "ML_STACKING_WEIGHT"


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
    """ML_* of the environment. `min_samples`: out-of-fold samples stacking must be fitted on.

    weight: what stacking counts for in the decision, in percent; 0 is shadow.
    """

    weight: int
    min_samples: int
    shown: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True)
class Settings:
    """symbol, tf, cross: what is watched. endpoint: unix:/PATH or HOST:PORT.

    symbols: all that get lines where they are several, `symbol` first; () where there is one.
    policy: who decides; settings without one were written before there were policies. challenger:
    whether the previous release's models are asked as well. max_age_days: see
    macd/host/store/age.py; 0: no limit. writer: whose log the lines go into: of an instance its
    symbol, "" for one process.
    """

    root: Path
    symbol: str
    tf: str
    cross: tuple[str, ...]
    endpoint: str
    feed: Feed
    policy: Policy = field(default_factory=Policy)
    challenger: bool = False
    max_age_days: float = 0.0
    symbols: tuple[str, ...] = ()
    writer: str = ""

    @property
    def served(self) -> tuple[str, ...]:
        """The symbols that get lines, the first one first."""
        return self.symbols or (self.symbol,)

    @property
    def names(self) -> tuple[str, ...]:
        """All symbols whose bars are needed: those that others' features need come first."""
        return tuple(dict.fromkeys((*self.cross, *self.served)))

    def of(self, symbol: str) -> Settings:
        """The settings as they are for one of the symbols: no asset is a cross asset of itself."""
        if not self.symbols:
            return self
        cross = tuple(name for name in self.cross if name != symbol)
        return replace(self, symbol=symbol, cross=cross, symbols=())

    def of_instance(self, symbol: str) -> Settings:
        """As they are for the instance that serves one of the symbols by itself.

        Raises UsageError: it is none of them.
        """
        if symbol not in self.served:
            raise UsageError(
                f"{symbol} is not served here",
                why=f"service.json names {', '.join(self.served)}",
                hint="invoke deploy starts and stops instances as service.symbols says",
            )
        endpoint = own.instance_endpoint(self.endpoint, symbol)
        return replace(self.of(symbol), endpoint=endpoint, writer=symbol)

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
                challenger=document.get("challenger") is True,
                max_age_days=_days(document.get("max_age_days", 0)),
                symbols=_several(document),
            )
            settings.step  # noqa: B018 - raises now for a timeframe that is none
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} can't be used",
                why=f"{type(error).__name__}: {error}",
                hint="invoke provision writes it from the inventory",
            ) from error
        return settings


def _several(document: Mapping[str, Any]) -> tuple[str, ...]:
    named = tuple(map(symbol_name, document.get("symbols", ())))
    if not named:
        return ()
    if len(set(named)) != len(named) or named[0] != symbol_name(document["symbol"]):
        raise ValueError("symbols names one twice, or another first than symbol does")
    return named if len(named) > 1 else ()


def _days(value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError("max_age_days is no number of days")
    return value


def _checked(feed: Feed) -> Feed:
    if feed.kind not in ("replay", "directory", "ccxt"):
        raise ValueError(f"feed {feed.kind!r} is not known")
    if not (feed.speed >= 0 and 0 <= feed.start <= 1 and feed.stale_bars > 0):
        raise ValueError("speed, start or stale_bars of the feed is out of range")
    return feed


def flags(environment: Mapping[str, str]) -> Flags:
    """What the environment says. Anything but a plain 1 leaves stacking in shadow.

    So does a weight that is none.
    """
    problems = []
    enabled, share = environment.get(_ENABLE, "0"), environment.get(_WEIGHT, "100")
    if enabled not in ("0", "1"):
        problems.append(f"{_ENABLE} is neither 0 nor 1, taken as 0")
    is_weight = envfile.FLAGS[_WEIGHT].match(share) is not None
    if not is_weight:
        problems.append(f"{_WEIGHT} is no whole number from 1 to 100: stacking stays in shadow")
    text = environment.get(MIN_SAMPLES, "") or "0"
    least = int(text) if text.isdecimal() else 0
    if not text.isdecimal():
        problems.append(f"{MIN_SAMPLES} is no whole number, taken as 0")
    # Of any other, and of what is not understood, nobody is shown the value: it may be a secret.
    understood = {
        _ENABLE: enabled in ("0", "1"),
        _WEIGHT: is_weight,
        MIN_SAMPLES: bool(text.isdecimal()),
    }
    shown: dict[str, Any] = {
        k: v if understood.get(k) else "(hidden)"
        for k, v in sorted(environment.items())
        if k.startswith("ML_")
    }
    weight = int(share) if enabled == "1" and is_weight else 0
    return Flags(weight, least, shown, "; ".join(problems))
