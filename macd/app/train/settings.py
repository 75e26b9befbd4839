"""What one training is asked to do, from a JSON file and flags, checked before anything runs.

The pipeline runs on a GPU host without the inventory: whoever starts it renders these settings.
Every problem is reported at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd.app.market.findings import Accepted, Limits, parse
from macd.app.predict.policy import Policy, read_policy
from macd.criteria import DEFAULTS, Criterion, parse_criteria
from macd.errors import UsageError
from macd.heads import BASES, FAMILIES
from macd.run_directory import FILES
from macd.symbols import symbol_name
from macd.train_options import (
    ENGINE,
    ENGINES,
    MARKETS,
    MIN_MOVE,
    PROFILES,
    SEED,
    STAGES,
    SYMBOL,
    TF,
    Market,
)

MODES = ("all", *STAGES)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """One training. Paths are absolute; 0 in a number means "as the profile says".

    symbols: all that this run trains, where they are several; `symbol` is the first.
    stages: what mode `all` runs; a single mode runs that one and needs the earlier ones.
    panel: assets that train global models together with `symbol`, which is always one of them.
    min_move: fraction; training and headline use bars with |return| above it.
    seeds: models of so many seeds, from `seed` on, are averaged into one.
    refit: after judging, fit the models that are shipped once more, on all bars.
    inner_stop: part of each training part kept for early stopping, 0 for fixed epochs.
    market: when its bars must be there: crypto, fx, stocks or XHKG (market/calendars.py).
    limits: thresholds of the checks of bars that differ from the usual ones (market/findings.py).
    accept: findings about the bars that a person knows to be the market itself, and why.
    policy: how the service decides, evaluated beside others (backtest.py).
    edge_cap: AUC above 0.5 that nobody should believe on hourly bars (see leak_audit.py).
    """

    symbol: str = SYMBOL
    symbols: tuple[str, ...] = ()
    tf: str = TF
    cross: tuple[str, ...] = ()
    panel: tuple[str, ...] = ()
    data: Path = Path("data/sample")
    out: Path = Path("runs/local")
    cache: Path | None = None
    mode: str = "all"
    stages: tuple[str, ...] = STAGES
    profile: str = "demo"
    seed: int = SEED
    seeds: int = 1
    refit: bool = False
    engine: str = ENGINE
    device: str = "auto"
    workers: int = 0
    min_move: float = MIN_MOVE
    folds: int = 0
    initial: float = 0.15
    holdout: float = 0.15
    embargo: int = 48
    surrogates: int = 0
    edge_cap: float = 0.12
    inner_stop: float = 0.0
    market: Market = "crypto"
    limits: dict[str, float] = field(default_factory=dict)
    accept: tuple[Accepted, ...] = ()
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    criteria: dict[str, Criterion] = field(default_factory=lambda: dict(DEFAULTS))
    policy: Policy = field(default_factory=Policy)

    @property
    def each(self) -> tuple[Settings, ...]:
        """The settings of each symbol's training, below this run's directory; of one, these."""
        if not self.symbols:
            return (self,)
        return tuple(
            dataclasses.replace(
                self,
                symbol=symbol,
                symbols=(),
                cross=tuple(name for name in self.cross if symbol_name(name) != symbol),
                out=FILES.of_symbol(self.out, symbol),
                cache=self.cache_dir,
            )
            for symbol in self.symbols
        )

    @property
    def assets(self) -> tuple[str, ...]:
        """All assets whose bars this training reads, by the names of their files, each once."""
        names = [name for one in self.each for name in (one.symbol, *one.cross, *one.panel_others)]
        return tuple(dict.fromkeys(map(symbol_name, names)))

    @property
    def panel_others(self) -> tuple[str, ...]:
        """The panel's assets beside `symbol`, by the names of their files; () without a panel."""
        names = dict.fromkeys(symbol_name(name) for name in self.panel)
        return tuple(name for name in names if name != symbol_name(self.symbol))

    @property
    def families(self) -> tuple[str, ...]:
        """The base models of this training."""
        return BASES if self.panel else FAMILIES

    @property
    def fold_count(self) -> int:
        """Walk-forward folds: 5 in the demo, 8 in full."""
        return self.folds or {"demo": 5, "full": 8}[self.profile]

    @property
    def surrogate_count(self) -> int:
        """Sign-flipped series in the leak audit; their mean must lie inside its band."""
        return self.surrogates or {"demo": 4, "full": 8}[self.profile]

    @property
    def cache_dir(self) -> Path:
        return self.cache or self.out / "cache"

    def as_json(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {name: str(plain[name]) for name in ("data", "out")}
        plain["cache"] = str(self.cache_dir)
        plain |= {name: list(plain[name]) for name in ("symbols", "cross", "panel", "stages")}
        if not self.symbols:
            del plain["symbols"]
        plain["accept"] = [finding.as_json() for finding in self.accept]
        plain["policy"] = self.policy.as_json()
        plain["criteria"] = {k: dataclasses.asdict(c) for k, c in self.criteria.items()}
        return plain


def read_settings(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from a JSON file, with the flags that were given on top.

    Raises UsageError naming every unknown key, wrong type and value out of range.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"settings file {path} can't be read", why=str(error)) from error
        except ValueError as error:
            raise UsageError(f"settings file {path} is not JSON", why=str(error)) from error
        if not isinstance(raw, dict):
            raise UsageError(f"settings file {path} must hold one JSON object")
    raw |= {name: value for name, value in flags.items() if value is not None}
    return settings_from(raw)


def settings_from(raw: Mapping[str, Any]) -> Settings:
    problems: list[str] = []
    values: dict[str, Any] = {}
    names = sorted(field.name for field in dataclasses.fields(Settings))
    for name, value in raw.items():
        if name not in names:
            problems.append(f"{name}: no such setting (known: {', '.join(names)})")
            continue
        try:
            values[name] = _READ[name](value) if name in _READ else _plain_value(name, value)
        except UsageError as error:
            problems.append(f"{name}: {error.what}; {error.why}")
        except (TypeError, ValueError) as error:
            problems.append(f"{name}: {error}")
    if not problems:
        problems = _symbols_problems(values)
    if not problems:
        settings = Settings(**values)
        problems = _range_problems(settings)
        if not problems:
            return settings
    raise UsageError(
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the training settings",
        why="\n".join(problems),
        hint="python -m macd.app.train --help",
    )


def _symbols_problems(values: dict[str, Any]) -> list[str]:
    """Settle what is trained: a list of one is that symbol, of several the first is `symbol`."""
    symbols = values.pop("symbols", ())
    if not symbols:
        return []
    names = tuple(map(symbol_name, symbols))
    problems = []
    if len(set(names)) != len(names):
        problems.append("symbols: each symbol once")
    if symbol_name(values.setdefault("symbol", names[0])) != names[0]:
        problems.append(
            f"symbols: {names[0]} is the first, symbol says {values['symbol']}; give one of the two"
        )
    if len(names) > 1:
        values |= {"symbol": names[0], "symbols": names}
    return problems


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return tuple(part.strip() for part in parts if part.strip())


def _directory(value: Any) -> Path | None:
    return Path(os.path.expandvars(value)).expanduser().absolute() if value else None


def _params(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ValueError('must look like {"lstm": {"epochs": 3}}')
    return value


def _limits(value: Any) -> dict[str, float]:
    if not isinstance(value, str | dict):
        raise ValueError('must look like {"gap_error": 36}')
    return Limits().changed(value).differing()


def _accept(value: Any) -> tuple[Accepted, ...]:
    findings = [value] if isinstance(value, str | dict) else value
    return tuple(parse(finding) for finding in findings)


_READ: dict[str, Callable[[Any], Any]] = {
    "criteria": parse_criteria,
    "limits": _limits,
    "accept": _accept,
    "params": _params,
    "policy": read_policy,
    **dict.fromkeys(("symbols", "cross", "panel", "stages"), _names),
    **dict.fromkeys(("data", "out", "cache"), _directory),
}


def _plain_value(name: str, value: Any) -> Any:
    expected = type(getattr(Settings(), name))
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{value!r} is not of type {expected.__name__}")
    return value


def _range_problems(s: Settings) -> list[str]:
    checks = [
        (s.mode in MODES, f"mode: {s.mode!r} is none of {', '.join(MODES)}"),
        (s.profile in PROFILES, f"profile: {s.profile!r} is none of {', '.join(PROFILES)}"),
        (s.engine in ENGINES, f"engine: {s.engine!r} is none of {', '.join(ENGINES)}"),
        (s.market in MARKETS, f"market: {s.market!r} is none of {', '.join(MARKETS)}"),
        (s.device in DEVICES, f"device: {s.device!r} is none of {', '.join(DEVICES)}"),
        (0 <= s.min_move < 1, "min_move: a fraction from 0 to below 1 (0.003 is 0.3 %)"),
        (0 <= s.folds <= 50, "folds: 1 to 50, or 0 for the profile's"),
        (0 < s.initial < 0.9, "initial: between 0 and 0.9"),
        (0 < s.holdout < 0.5, "holdout: between 0 and 0.5"),
        (s.embargo >= 48, "embargo: at least 48 bars, twice the longest horizon"),
        (0 <= s.inner_stop <= 0.5, "inner_stop: from 0 to 0.5"),
        (0 <= s.surrogates <= 100, "surrogates: 1 to 100, or 0 for the profile's"),
        (1 <= s.seeds <= 10, "seeds: 1 to 10"),
        (not s.refit or s.mode == "all", "refit: only with mode all, which judges before it"),
        (0 <= s.seed < 2**31, "seed: from 0 to 2147483647"),
        (s.workers >= 0, "workers: 1 or more, or 0 for all cores"),
        (0 < s.edge_cap < 0.5, "edge_cap: between 0 and 0.5"),
        (not set(s.params) - {*s.families}, f"params: only for {', '.join(s.families)}"),
        (not set(s.stages) - set(STAGES), f"stages: only {', '.join(STAGES)}"),
        (s.symbol not in s.cross or s.symbols, f"cross: {s.symbol} is the symbol itself"),
        *(
            (bool(one.panel_others) or not s.panel, f"panel: names no asset beside {one.symbol}")
            for one in s.each
        ),
    ]
    return [text for good, text in checks if not good]
