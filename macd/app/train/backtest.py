"""What policies would have earned on bars that no model was trained on, net of costs.

Run on the out-of-fold table of a training: the validation pools the walk-forward folds, the test is
the holdout. The decision of a bar is `decide` of macd/app/predict/policy.py, which the service
calls too. It knows that bar's close, trades at that close and pays fee and slippage, and earns from
the next bar on. Thresholds are those of the settings, or are chosen on folds that ended before the
fold they are judged on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd.app.market.bars import step_ms
from macd.app.predict.combine import mean_of_logits
from macd.app.predict.policy import ANY_HEAD, FLAT, Policy, Terms, Thresholds, bases, decide
from macd.app.train import oof, returns
from macd.app.train.metrics import finite_or_none
from macd.app.train.returns import Floats, Ints, Sides
from macd.criteria import Measured
from macd.heads import BASES, HORIZONS, shown

BUY_AND_HOLD = "buy_and_hold"
# What a threshold is chosen among: so far above and below one half.
GRID = tuple(
    Thresholds(round(0.5 + d, 3), round(0.5 - d, 3)) for d in (0.02, 0.04, 0.06, 0.08, 0.1, 0.12)
)
NOT_MODELLED = (
    "every trade is filled at the bar's close, whatever its size",
    "fee and slippage are the same at all times",
    "no funding, no cost of borrowing for short positions, no interest, no taxes",
    "bars on which the service would not have asked the models (after gaps, or late) are asked",
)
UNTESTED = -9
_SIDES = {"BUY": 1, "SELL": -1, "HOLD": 0}
_SOURCES = {"mean": "the mean of the models", "stacking": "stacking"}
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Candidate:
    """One policy of the table. source: who gives the probability, "" for nobody.

    tuned: its thresholds are chosen on earlier folds.
    """

    title: str
    policy: Policy
    source: str = ""
    tuned: bool = False


@dataclass(frozen=True)
class Market:
    """The bars of the table, oldest first and side by side, and what was known at their closes.

    fold: as in the out-of-fold table, UNTESTED for bars it does not have. said: probability of "up"
    by source, NaN where it says nothing.
    """

    times_ms: Ints
    close: Floats
    buy: Floats
    sell: Floats
    fold: NDArray[np.int32]
    said: Mapping[str, Floats]
    head: str
    step_ms: int

    def __len__(self) -> int:
        return len(self.close)

    def cut(self, start: int, end: int) -> Market:
        """The bars [start, end)."""
        at = slice(start, end)
        return replace(
            self,
            **{k: getattr(self, k)[at] for k in ("times_ms", "close", "buy", "sell", "fold")},
            said={name: p[at] for name, p in self.said.items()},
        )


@dataclass(frozen=True)
class Track:
    """What a policy did. actions: 1 BUY, -1 SELL, 0 HOLD; sides: what is held from that close on.

    The last position is closed at the last close.
    """

    actions: Sides
    sides: Sides
    net: Floats


@dataclass(frozen=True)
class Evaluation:
    """document: as it stands in metrics.json. curves: equity by part, day and policy."""

    document: dict[str, Any]
    curves: pl.DataFrame


def market_of(frame: pl.DataFrame, close: Floats, times_ms: Ints, head: str, tf: str) -> Market:
    """The bars of an out-of-fold table. close, times_ms: of all bars, whose rows the table names.

    The base rule is computed on all bars up to each, as the service knows them.
    """
    rows = frame["row"].to_numpy()
    first, last = int(rows[0]), int(rows[-1]) + 1
    scores = bases(pl.Series(close))
    fold = np.full(last - first, UNTESTED, np.int32)
    fold[rows - first] = frame["fold"].to_numpy()
    families = [name for name in BASES if f"p_{name}_{head}" in frame.columns]
    by_source: dict[str, Floats] = {}
    if f"p_mean_{head}" in frame.columns:
        by_source["mean"] = _column(frame, "mean", head)
    elif families:
        by_source["mean"] = mean_of_logits([_column(frame, name, head) for name in families])
    if f"p_stacking_{head}" in frame.columns:
        by_source["stacking"] = _column(frame, "stacking", head)
    said = {name: np.full(last - first, np.nan) for name in by_source}
    for name, p in by_source.items():
        said[name][rows - first] = p
    return Market(
        times_ms=times_ms[first:last],
        close=close[first:last],
        buy=scores["buy"].to_numpy()[first:last],
        sell=scores["sell"].to_numpy()[first:last],
        fold=fold,
        said=said,
        head=head,
        step_ms=step_ms(tf),
    )


@dataclass(frozen=True)
class Walk:
    """What every policy did. parts: by name, `val` and `test`; tracks: by part and policy.

    chosen: thresholds by source and fold. searched: net returns, over `val`, of every pair of
    thresholds that was tried.
    """

    parts: Mapping[str, Market]
    tracks: Mapping[str, Mapping[str, Track]]
    chosen: Mapping[str, Mapping[int, Thresholds | None]]
    searched: Sequence[Floats]


def walk(market: Market, policy: Policy) -> Walk:
    """Decide by every policy on both parts, on the bars on which all sources speak."""
    development = market.cut(0, int(np.flatnonzero(market.fold >= 0)[-1]) + 1)
    start = max((_speaks_from(p) for p in development.said.values()), default=0)
    parts = {
        "val": development.cut(start, len(development)),
        "test": market.cut(int(np.argmax(market.fold == oof.HOLDOUT)), len(market)),
    }
    grids = {source: grid_of(development, policy, source) for source in market.said}
    chosen = {source: chosen_before(development, grid) for source, grid in grids.items()}
    table = candidates(policy, market.said)
    tracks = {
        name: {key: track(part, each, chosen.get(each.source, {})) for key, each in table.items()}
        for name, part in parts.items()
    }
    searched = [net[start:] for grid in grids.values() for net in grid.values()]
    return Walk(parts, tracks, chosen, searched)


def evaluate(market: Market, policy: Policy, *, seed: int = 0) -> Evaluation:
    """Every policy of the table on both parts; see the module for what is assumed."""
    walked = walk(market, policy)
    table = candidates(policy, market.said)
    rule = "base" if policy.kind == "tilt" else "prob"
    source = "stacking" if "stacking" in market.said else "mean"
    searched = len(HORIZONS) * (len(table) + len(walked.searched))  # the head was chosen, too
    tried = {"val": searched, "test": len(table)}
    document: dict[str, Any] = {
        "settings": {
            "policy": policy.as_json(),
            "head": market.head,
            "configured": f"{rule}_{source}" if market.said else "base",
            "thresholds": {s: _shown_choices(folds) for s, folds in walked.chosen.items()},
            "tried": tried,
        },
        "not_modelled": list(NOT_MODELLED),
        "flag_changes": {name: flag_changes(tracks) for name, tracks in walked.tracks.items()},
    }
    curves = []
    for name, part in walked.parts.items():
        tracks = walked.tracks[name]
        nets = [made.net for key, made in tracks.items() if table[key].policy.kind == "threshold"]
        nets += walked.searched if name == "val" else []
        trials = [returns.sharpe(net) for net in nets]
        held = _held_throughout(part, policy)
        document[name] = {
            key: {
                "title": table[key].title,
                **_figures(part, made, policy.cost, trials, tried[name], seed),
            }
            for key, made in tracks.items()
        }
        document[name][BUY_AND_HOLD] = {
            "title": "buy and hold",
            **_figures(part, held, policy.cost, (), 1, seed),
        }
        curves.append(_daily(name, part, {**tracks, BUY_AND_HOLD: held}))
    return Evaluation(document, pl.concat(curves))


def candidates(policy: Policy, sources: Iterable[str]) -> dict[str, Candidate]:
    """The policies that are set side by side; costs, size and holding are the given policy's."""
    tilt, threshold = replace(policy, kind="tilt"), replace(policy, kind="threshold")
    table = {"base": Candidate("base rule alone", tilt)}
    for source in sources:
        name = _SOURCES[source]
        table[f"base_{source}"] = Candidate(f"base rule with {name}", tilt, source)
    for source in sources:
        name = f"probability of {_SOURCES[source]}"
        table[f"prob_{source}"] = Candidate(name, threshold, source)
        tuned = f"{name}, thresholds of earlier folds"
        table[f"prob_{source}_tuned"] = Candidate(tuned, threshold, source, tuned=True)
    return table


def grid_of(development: Market, policy: Policy, source: str) -> dict[Thresholds, Floats]:
    """Net returns by bar of every pair of GRID, from the first bar on which the source speaks."""
    nets = {}
    start = _speaks_from(development.said[source])
    speaking = development.cut(start, len(development))
    for pair in GRID:
        each = replace(policy, kind="threshold", thresholds={ANY_HEAD: pair})
        made = track(speaking, Candidate("", each, source))
        nets[pair] = np.concatenate((np.zeros(start), made.net))
    return nets


def chosen_before(
    development: Market, grid: Mapping[Thresholds, Floats]
) -> dict[int, Thresholds | None]:
    """The best pair by fold, of what was known before the fold began; the holdout's has all folds.

    None: the source had not spoken before. Best: the highest Sharpe ratio, on a tie the pair that
    trades least.
    """
    starts = {k: int(np.argmax(development.fold == k)) for k in _folds_of(development)}
    starts[oof.HOLDOUT] = len(development)
    return {
        fold: _best({pair: net[:start] for pair, net in grid.items()})
        for fold, start in starts.items()
    }


def track(
    market: Market,
    candidate: Candidate,
    chosen: Mapping[int, Thresholds | None] = MappingProxyType({}),
) -> Track:
    """Decide bar after bar, beginning flat.

    chosen: thresholds by fold, for a tuned candidate; the settings' where there are none.
    """
    usual = candidate.policy.at(market.head)
    terms = {
        fold: replace(candidate.policy, thresholds={ANY_HEAD: pair}).at(market.head)
        for fold, pair in chosen.items()
        if candidate.tuned and pair is not None
    }
    by_bar = [terms.get(fold, usual) for fold in market.fold.tolist()]
    p = market.said[candidate.source].tolist() if candidate.source else [None] * len(market)
    actions, sides = decisions(by_bar, market.buy.tolist(), market.sell.tolist(), p)
    return _tracked(market, actions, sides, candidate.policy)


def decisions(
    terms: Sequence[Terms], buy: Sequence[float], sell: Sequence[float], p: Sequence[float | None]
) -> tuple[Sides, Sides]:
    """Action and side of every bar, as 1, -1 and 0; each from its own bar and the one before."""
    actions, sides = np.zeros(len(buy), np.int8), np.zeros(len(buy), np.int8)
    position = FLAT
    for i, at in enumerate(zip(terms, buy, sell, p, strict=True)):
        action, _, _, position = decide(*at, position)
        actions[i], sides[i] = _SIDES[action], position.side
    return actions, sides


def flag_changes(tracks: Mapping[str, Track]) -> dict[str, float]:
    """The share of bars whose action differs between stacking and the mean, by kind of policy."""
    shares = {}
    for kind, name in (("tilt", "base"), ("threshold", "prob")):
        with_mean, with_stacking = tracks.get(f"{name}_mean"), tracks.get(f"{name}_stacking")
        if with_mean and with_stacking:
            shares[kind] = float(np.mean(with_mean.actions != with_stacking.actions))
    return shares


def criteria_of(document: Mapping[str, Any]) -> dict[str, Measured]:
    """What `flag_matters` and `net_edge` measure, on validation."""
    s, changes = document["settings"], document["flag_changes"]
    kind, figures = s["policy"]["kind"], document["val"][s["configured"]]
    held_out = document["test"][s["configured"]]
    edge = f"{figures['title']}: {_edge_text(figures)}; {_edge_text(held_out)} held out"
    share, matters = changes["val"].get(kind), ""
    if share is not None:
        on_test = changes["test"].get(kind, 0.0)
        matters = f"of the actions of policy {kind}; {100 * on_test:.2f} % held out"
    return {"net_edge": (figures["mean_net_bp"]["low"], edge), "flag_matters": (share, matters)}


def closing_lines(document: Mapping[str, Any], tf: str) -> list[str]:
    """What a training prints about its policies."""
    s = document["settings"]
    policy = s["policy"]
    lines = [
        f"Policies at {shown(s['head'], tf)}, net of {policy['fee_bps']:g} bp fee and "
        f"{policy['slippage_bps']:g} bp slippage for each buying and selling; mean of a trade, in "
        "brackets 95 % of week-block resamples",
    ]
    for name, val in document["val"].items():
        mark = " (configured)" if name == s["configured"] else ""
        test = document["test"][name]
        text = _total_text if name == BUY_AND_HOLD else _edge_text
        lines.append(f"{val['title']}{mark}: val {text(val)}  test {text(test)}")
    changed = document["flag_changes"]["val"].get(policy["kind"])
    if changed is not None:
        lines.append(f"The stacking flag changes {100 * changed:.2f} % of the configured actions")
    lines.append(f"What happened once, no promise. Not modelled: {'; '.join(NOT_MODELLED)}")
    return lines


def _edge_text(figures: Mapping[str, Any]) -> str:
    mean = figures["mean_net_bp"]
    if mean["value"] is None:
        return "no trade"
    interval = "" if mean["low"] is None else f" [{mean['low']:+.1f}, {mean['high']:+.1f}]"
    return f"{mean['value']:+.1f} bp{interval} in {figures['trades']:,} trades"


def _total_text(figures: Mapping[str, Any]) -> str:
    return f"{100 * figures['net_return']:+.1f} % in all"


def _figures(
    market: Market, made: Track, cost: float, trials: Sequence[float], tried: int, seed: int
) -> dict[str, Any]:
    trades = returns.trades_of(market.close, made.sides, cost)
    yearly = returns.periods_a_year(market.times_ms, market.step_ms)
    years = len(market) / yearly
    moved = float(np.abs(np.diff(made.sides, prepend=np.int8(0))).sum())
    return {
        "bars": len(market),
        "from_ms": int(market.times_ms[0]),
        "to_ms": int(market.times_ms[-1]),
        "trades": len(trades.net),
        "turnover": moved / years,
        "exposure": float(np.mean(made.sides != 0)),
        "mean_net_bp": returns.mean_bp(trades, market.times_ms, seed=seed),
        "hit_rate": float(np.mean(trades.net > 0)) if len(trades.net) else None,
        "net_return": float(returns.equity(made.net)[-1] - 1.0),
        "sharpe": finite_or_none(returns.sharpe(made.net) * math.sqrt(yearly)),
        "deflated_sharpe": finite_or_none(returns.deflated_sharpe(made.net, trials, tried)),
        "max_drawdown": returns.max_drawdown(made.net),
    }


def _tracked(market: Market, actions: Sides, sides: Sides, policy: Policy) -> Track:
    sides = sides.copy()
    sides[-1] = 0
    held = policy.size * sides.astype(np.float64)
    net = returns.net_returns(market.close, held, policy.cost)
    return Track(actions, sides, net)


def _held_throughout(market: Market, policy: Policy) -> Track:
    actions = np.zeros(len(market), np.int8)
    actions[0] = 1
    return _tracked(market, actions, np.ones(len(market), np.int8), policy)


def _best(nets: Mapping[Thresholds, Floats]) -> Thresholds | None:
    """The pair with the highest Sharpe ratio; the farther from one half on a tie."""
    scored = {pair: returns.sharpe(net) for pair, net in nets.items()}
    finite = {pair: value for pair, value in scored.items() if math.isfinite(value)}
    return max(finite, key=lambda pair: (finite[pair], pair.long)) if finite else None


def _folds_of(market: Market) -> list[int]:
    return [int(fold) for fold in np.unique(market.fold) if fold >= 0]


def _speaks_from(p: Floats) -> int:
    spoken = np.flatnonzero(np.isfinite(p))
    return int(spoken[0]) if len(spoken) else 0


def _column(frame: pl.DataFrame, model: str, head: str) -> Floats:
    column = frame[f"p_{model}_{head}"].cast(pl.Float64).fill_null(np.nan)
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _shown_choices(chosen: Mapping[int, Thresholds | None]) -> dict[str, Any]:
    return {
        str(fold): {"long": pair.long, "short": pair.short}
        for fold, pair in chosen.items()
        if pair is not None
    }


def _daily(name: str, market: Market, tracks: Mapping[str, Track]) -> pl.DataFrame:
    """The equity at the last bar of each UTC day."""
    last = np.flatnonzero(np.diff(market.times_ms // _DAY_MS, append=np.int64(-1)))
    return pl.DataFrame(
        {
            "part": pl.Series([name] * len(last)),
            "bar_time": pl.Series(market.times_ms[last]).cast(pl.Datetime("ms", "UTC")),
            **{key: pl.Series(returns.equity(made.net)[last]) for key, made in tracks.items()},
        }
    )
