"""Champion against challenger: two trainings on the same bars, and what differs between them.

Run as `python -m macd.app.train.compare_runs` through macd/application.py. The out-of-fold tables
of both are joined on the bar's time. A bar counts where it is validation in both or holdout in
both, where all models of both speak, and where the challenger had not learnt from bars more than a
week later than the champion had: a better figure there would be of fresher bars, not of a better
recipe. What is left out is counted. Differences have paired weekly-block intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macd import childprocess
from macd.app.market.bars import step_ms
from macd.app.market.labels import HORIZONS
from macd.app.train import oof
from macd.app.train.comparison import log_losses
from macd.app.train.metrics import (
    WEEK_MS,
    auc,
    effective_n,
    finite_or_none,
    resampled_aucs,
    resampled_means,
    with_interval,
)
from macd.criteria import difference_text
from macd.errors import MacdError, UsageError, failure
from macd.heads import BASES, COMPARED, MEAN, NAMES, bars_ahead, head_name, head_names, shown
from macd.run_directory import TrainingRun, part_of, read_run
from macd.symbols import symbol_name

Doubles = NDArray[np.float64]
Lines = NDArray[np.bool_]

_HEADLINE = ("stacking", MEAN, *BASES)  # the verdict is about the first that both have
_FEW_WEEKS = 20
_PLACES = ("data", "out", "cache", "engine", "workers", "mode")  # they change no figure


@dataclass(frozen=True)
class Side:
    """One run, as far as it is compared; arrays along its bars `times` (ms, ascending).

    returns: (bars, 3). p: by model (bars, 3), NaN where it says nothing. learnt: the last bar (ms)
    that the models behind a row had learnt from.
    """

    run: TrainingRun
    times: NDArray[np.int64]
    holdout: Lines
    learnt: NDArray[np.int64]
    returns: Doubles
    p: Mapping[str, Doubles]

    def at(self, rows: NDArray[np.intp]) -> Side:
        """The same on some of its bars."""
        return replace(
            self,
            times=self.times[rows],
            holdout=self.holdout[rows],
            learnt=self.learnt[rows],
            returns=self.returns[rows],
            p={name: each[rows] for name, each in self.p.items()},
        )


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """In: champion, challenger (directories). Out: what `compare` says; an error is an answer.

    Of a run of several symbols: `symbols`, by symbol of both what `compare` says, or `unable` with
    why it says nothing; `only`, by side the symbols that the other run lacks.
    """
    try:
        runs = [read_run(Path(question[name])) for name in ("champion", "challenger")]
        return compare_each(*runs) if any(run.symbols for run in runs) else compare(*runs)
    except MacdError as error:
        return failure(error)


def compare_each(champion: TrainingRun, challenger: TrainingRun) -> dict[str, Any]:
    """Both runs, symbol by symbol. Raises UsageError when they have none in common."""
    names = [
        run.symbols or (symbol_name(str(run.settings.get("symbol"))),)
        for run in (champion, challenger)
    ]
    both = [name for name in names[1] if name in names[0]]
    if not both:
        raise UsageError(
            "the two runs have no symbol in common",
            why=f"{champion.id}: {', '.join(names[0])}; {challenger.id}: {', '.join(names[1])}",
            hint="compare runs of the same symbols",
        )
    made: dict[str, Any] = {}
    for name in both:
        try:
            parts = [part_of(run.directory, name) for run in (champion, challenger)]
            made[name] = compare(*(read_run(part) for part in parts if part is not None))
        except MacdError as error:
            made[name] = {"unable": f"{error.what}: {error.why}" if error.why else error.what}
    return {
        "champion": {"run": champion.id},
        "challenger": {"run": challenger.id},
        "symbols": made,
        "only": {
            "champion": [name for name in names[0] if name not in both],
            "challenger": [name for name in names[1] if name not in both],
        },
    }


def compare(champion: TrainingRun, challenger: TrainingRun) -> dict[str, Any]:
    """Both runs side by side, as a document: verdict, rows, parts, differs, limits.

    parts: by head and part (val, val_all, test, test_all) n, effective_n, and by model the figures
    of both and `difference` (challenger minus champion). Raises UsageError when they are of
    different symbols or timeframes, MacdError when a table is missing or no bar is in both.
    """
    _same_series(champion, challenger)
    sides = read_side(champion), read_side(challenger)
    times, mine, theirs = np.intersect1d(
        sides[0].times, sides[1].times, assume_unique=True, return_indices=True
    )
    if not len(times):
        raise MacdError(
            "the two runs have no tested bar in common",
            why=f"{_span(sides[0])} and {_span(sides[1])}",
            hint="train the challenger on bars that reach over the champion's",
        )
    old, new = sides[0].at(mine), sides[1].at(theirs)
    later = new.learnt - old.learnt > WEEK_MS
    mixed = old.holdout != new.holdout
    models = [name for name in COMPARED if name in old.p and name in new.p]
    if not models:
        raise MacdError(
            "the two runs have no model in common",
            why=f"{', '.join(old.p)} and {', '.join(new.p)}",
            hint="train both with the stages that are to be compared",
        )
    kept = ~later & ~mixed
    same = np.isclose(old.returns, new.returns, rtol=0, atol=1e-6, equal_nan=True)
    parts = {
        head: _parts(old, new, kept, same[:, k], models, k)
        for k, head in enumerate(head_names(champion.tf))
    }
    rows = {
        "champion": len(sides[0].times),
        "challenger": len(sides[1].times),
        "both": len(times),
        "validation": int((kept & ~old.holdout).sum()),
        "holdout": int((kept & old.holdout).sum()),
        "left_out": {
            "holdout_in_one": int(mixed.sum()),
            "learnt_later": int((later & ~mixed).sum()),
            "other_returns": int((kept & ~same.all(axis=1)).sum()),
        },
    }
    return {
        "symbol": champion.metrics["symbol"],
        "tf": champion.tf,
        "champion": _about(champion),
        "challenger": _about(challenger),
        "rows": rows,
        "parts": parts,
        "differs": differs(champion, challenger),
        "limits": _limits(old, new, kept, rows),
        "verdict": verdict(champion, models, parts),
    }


def read_side(run: TrainingRun) -> Side:
    """What a run left for a comparison. Raises MacdError when its table is missing or damaged."""
    try:
        frame = pl.read_parquet(run.oof).sort("bar_time")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise MacdError(
            f"run {run.id} has no out-of-fold table that can be read",
            why=str(error).splitlines()[0],
            hint="train it with stacking, or fetch it again (invoke train.fetch)",
        ) from error
    frame = frame.rename({name: _named(name, run.tf) for name in frame.columns})
    if f"p_{MEAN}_{oof.heads_in(frame)[0]}" not in frame.columns:
        frame = oof.with_mean(frame)  # runs that were made before it was kept
    fold = frame["fold"].to_numpy()
    ends = {int(each["fold"]): _ms(each["train"][1]) for each in run.metrics["folds"]}
    embargo = int(run.settings.get("embargo", 48))
    ends[oof.HOLDOUT] = _ms(run.metrics["holdout"]["from"]) - (embargo + 1) * step_ms(run.tf)
    return Side(
        run=run,
        times=frame["bar_time"].dt.epoch("ms").to_numpy(),
        holdout=fold == oof.HOLDOUT,
        learnt=np.array([ends[int(index)] for index in fold], dtype=np.int64),
        returns=oof.columns(frame, "ret"),
        p={name: oof.columns(frame, f"p_{name}") for name in oof.models_in(frame, COMPARED)},
    )


def _parts(
    old: Side, new: Side, kept: Lines, same: Lines, models: Sequence[str], k: int
) -> dict[str, Any]:
    """One head's figures: moves and all bars, validation and holdout."""
    speak = np.all([np.isfinite(s.p[name][:, k]) for s in (old, new) for name in models], axis=0)
    min_move = float(old.run.metrics["min_move"])
    parts = {}
    for part, (lines, y) in oof.parts(old.holdout, old.returns[:, k], min_move).items():
        on = np.flatnonzero(lines & kept & same & speak & np.isfinite(y))
        positions = old.times[on] // step_ms(old.run.tf)
        parts[part] = {
            "n": len(on),
            "effective_n": effective_n(positions, HORIZONS[k]),
            "models": _scored(
                y[on],
                {name: (old.p[name][on, k], new.p[name][on, k]) for name in models},
                old.times[on],
                seed=int(old.run.metrics.get("seed", 0)),
            ),
        }
    return parts


def _scored(
    y: Doubles,
    said: Mapping[str, tuple[Doubles, Doubles]],
    times: NDArray[np.int64],
    *,
    seed: int,
) -> dict[str, Any]:
    """By model: AUC, Brier score and log loss of both, their differences, where they disagree."""
    drawn = resampled_aucs(y, [p for pair in said.values() for p in pair], times, seed=seed)
    scored = {}
    for at, (name, (old, new)) in enumerate(said.items()):
        aucs = auc(y, old), auc(y, new)
        losses = {
            "brier": ((old - y) ** 2, (new - y) ** 2),
            "log_loss": (log_losses(y, old), log_losses(y, new)),
        }
        both = [{"auc": finite_or_none(value)} for value in aucs]
        resampled = drawn[:, 2 * at + 1] - drawn[:, 2 * at]
        differences = {"auc": with_interval(aucs[1] - aucs[0], resampled)}
        for loss, pair in losses.items():
            means = [float(each.mean()) if len(y) else math.nan for each in pair]
            for side, mean in zip(both, means, strict=True):
                side[loss] = finite_or_none(mean)
            resampled = resampled_means(pair[1] - pair[0], times, seed=seed)
            differences[loss] = with_interval(means[1] - means[0], resampled)
        apart = (old >= 0.5) != (new >= 0.5)
        right = float(np.mean((new[apart] >= 0.5) == (y[apart] == 1))) if apart.any() else math.nan
        scored[name] = {
            "champion": both[0],
            "challenger": both[1],
            "difference": differences,
            "disagree": {"n": int(apart.sum()), "challenger_right": finite_or_none(right)},
        }
    return scored


def verdict(
    champion: TrainingRun, models: Sequence[str], parts: Mapping[str, Any]
) -> dict[str, Any]:
    """One plain sentence about validation moves at the champion's best head, and the holdout's."""
    model = next(name for name in _HEADLINE if name in models)
    named = str(champion.metrics.get("best_head", {}).get(model, ""))
    head = _head(named, champion.tf) if named else head_names(champion.tf)[0]
    val, test = parts[head]["val"], parts[head]["test"]
    made = val["models"][model]["difference"]["auc"]
    about = f"{NAMES[model]} at {shown(head, champion.tf)}"
    if made["value"] is None:
        outcome = "not comparable"
        text = "No validation bar is left that both can be compared on"
    else:
        outcome, said = "not shown", "is not shown to be better"
        if made["low"] is not None and made["low"] > 0:
            outcome, said = "better", "is better"
        elif made["high"] is not None and made["high"] < 0:
            outcome, said = "worse", "is worse"
        pair = [val["models"][model][side]["auc"] for side in ("champion", "challenger")]
        text = (
            f"On these {val['n']:,} bars the challenger {said}: {about}, AUC {pair[1]:.3f} against "
            f"{pair[0]:.3f}, {difference_text(made)}"
        )
    held = test["models"][model]["difference"]["auc"]
    holdout = "no holdout bar is left that both can be compared on"
    if held["value"] is not None:
        holdout = f"on {test['n']:,} bars of both holdouts {difference_text(held)}"
    return {"outcome": outcome, "model": model, "head": head, "text": f"{text}; {holdout}."}


def differs(champion: TrainingRun, challenger: TrainingRun) -> dict[str, Any]:
    """What is not the same in both: settings, bars, features by model, code, libraries.

    {name: [champion's, challenger's]} in each; a section without a difference is not there.
    """
    runs = champion, challenger
    flat = [_flat(run.settings) for run in runs]
    features = {
        family: {"gained": [*after - before.keys()], "lost": [*before.keys() - after]}
        for family in BASES
        if all(family in run.metas for run in runs)
        for before, after in [
            [dict.fromkeys(run.metas[family].get("features", [])) for run in runs]
        ]
        if before.keys() != after.keys()
    }
    metrics = [run.metrics for run in runs]
    made = {
        "settings": {k: v for k, v in _unlike(*flat).items() if k.split(".")[0] not in _PLACES},
        "bars": _unlike(*({"digest": m.get("data_digest"), **m.get("bars", {})} for m in metrics)),
        "features": {
            family: {way: sorted(names) for way, names in change.items()}
            for family, change in features.items()
        },
        "code": _unlike(*({"digest": m.get("code_digest")} for m in metrics)),
        "libraries": _unlike(*(m.get("libraries", {}) for m in metrics)),
        "devices": _unlike(*({"devices": m.get("devices")} for m in metrics)),
    }
    return {section: changes for section, changes in made.items() if changes}


def _limits(old: Side, new: Side, kept: Lines, rows: Mapping[str, Any]) -> list[str]:
    """What the figures can't show, in whole sentences."""
    return [
        "Validation bars are those on which heads and settings are chosen: a challenger that was "
        "tuned on them looks better than it is.",
        "The verdict is about one model at the champion's best head. The other heads are beside "
        "it, and to pick the one with the best difference would flatter.",
        *_left_out(rows["left_out"]),
        *_uneven(old, new, kept),
        *_of_shipped(new, _ms(old.run.metrics["holdout"]["from"])),
        *(said for side in (old, new) for said in _of_holdout(side)),
    ]


def _left_out(left: Mapping[str, int]) -> Iterator[str]:
    if left["learnt_later"]:
        yield (
            f"{left['learnt_later']:,} bars are left out: the challenger's models there had learnt "
            "from bars over a week later than the champion's, so they are not comparable."
        )
    if left["holdout_in_one"]:
        yield (
            f"{left['holdout_in_one']:,} bars are left out: they are holdout in one run and "
            "validation in the other."
        )
    if left["other_returns"]:
        yield (
            f"{left['other_returns']:,} bars are left out at some head: the two runs were given "
            "other prices there."
        )


def _uneven(old: Side, new: Side, kept: Lines) -> Iterator[str]:
    weeks = len(np.unique(old.times[kept & ~old.holdout] // WEEK_MS))
    if weeks < _FEW_WEEKS:
        yield (
            f"The validation bars that count are of {weeks} weeks: resamples of so few blocks "
            "scatter too little, and the intervals are too narrow."
        )
    stale = int((kept & (old.learnt - new.learnt > WEEK_MS)).sum())
    if stale:
        yield (
            f"On {stale:,} bars the challenger's models had learnt from bars that end over a week "
            "before the champion's: there it is at a disadvantage."
        )
    moves = [100 * float(side.run.metrics["min_move"]) for side in (old, new)]
    if moves[0] != moves[1]:
        yield (
            f"Moves are those above the champion's {moves[0]:g} %; the challenger learnt from "
            f"those above {moves[1]:g} %."
        )


def _of_shipped(new: Side, opened: int) -> Iterator[str]:
    """opened: the first bar (ms) of the champion's holdout."""
    until = _shipped_until(new.run)
    if until is not None and until >= opened:
        yield (
            f"The challenger's shipped models learnt from bars up to {_date(until)}, which the "
            f"champion's holdout (from {_date(opened)}) covers: that holdout is no test of them."
        )


def _of_holdout(side: Side) -> Iterator[str]:
    run, holdout = side.run, side.run.metrics["holdout"]
    until = _shipped_until(run)
    if until is not None and until >= _ms(holdout["from"]):
        yield (
            f"The shipped models of {run.id} were fitted again on its own holdout: these figures "
            "are of the fits before that."
        )
    looks = int(holdout.get("looks", holdout.get("openings", 1)))
    if looks > 1:
        yield f"The holdout of {run.id} was looked at {looks} times: its best look flatters."


def _same_series(champion: TrainingRun, challenger: TrainingRun) -> None:
    of = [(str(run.metrics.get("symbol")), run.tf) for run in (champion, challenger)]
    if of[0] != of[1]:
        raise UsageError(
            "the two runs are of different symbols or timeframes",
            why=f"{champion.id}: {' '.join(of[0])}; {challenger.id}: {' '.join(of[1])}",
            hint="compare runs of one symbol and timeframe; invoke release.list names the runs",
        )


def _about(run: TrainingRun) -> dict[str, Any]:
    until = _shipped_until(run)
    return {
        "run": run.id,
        "directory": str(run.directory),
        "bars": run.metrics.get("bars"),
        "holdout": run.metrics.get("holdout"),
        "trained_until": None if until is None else _date(until),
    }


def _shipped_until(run: TrainingRun) -> int | None:
    """The last bar (ms) that any shipped model learnt from; None where no meta file says it."""
    ends = [int(m["trained_until_ms"]) for m in run.metas.values() if "trained_until_ms" in m]
    return max(ends, default=None)


def _span(side: Side) -> str:
    if not len(side.times):
        return f"{side.run.id} has none"
    first, last = int(side.times[0]), int(side.times[-1])
    return f"{side.run.id} has bars from {_date(first)} to {_date(last)}"


def _named(column: str, tf: str) -> str:
    """A column by the head's present name: runs of 15m were once named 5h, too."""
    prefix, _, head = column.rpartition("_")
    return f"{prefix}_{_head(head, tf)}" if prefix else column


def _head(name: str, tf: str) -> str:
    try:
        return head_name(bars_ahead(name), tf)
    except ValueError:
        return name


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as {"params.lstm.epochs": 3}."""
    if not isinstance(value, Mapping):
        return {name: value}
    below = partial("{}.{}".format, name) if name else str
    return {k: v for key, part in value.items() for k, v in _flat(part, below(key)).items()}


def _unlike(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*old, *new])
    return {k: [old.get(k), new.get(k)] for k in names if old.get(k) != new.get(k)}


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _date(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}Z"


if __name__ == "__main__":
    childprocess.main(answer)
