"""The words at the end of a training: AUCs in the guide's shape, the baseline, the criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from macd.app.train.criteria import Outcome
from macd.heads import explained, in_order, shown

NAMES = {
    "lgbm": "LightGBM",
    "lstm": "LSTM",
    "tft": "TFT",
    "stacking": "Stacking",
    "volatility": "Volatility only",
}


def lines(metrics: Mapping[str, Any], outcomes: Sequence[Outcome]) -> list[str]:
    """What is printed when a training is done."""
    share = 100 * float(metrics["min_move"])
    told = [
        f"{metrics['symbol']} {metrics['tf']}  {metrics['bars']['rows']:,} bars "
        f"{metrics['bars']['first'][:10]} to {metrics['bars']['last'][:10]}, "
        f"{len(metrics['folds'])} folds, profile {metrics['profile']}, seed {metrics['seed']}",
        f"Direction of moves above {share:g} %; in brackets 95 % of week-block resamples; "
        "beside it the sign on ALL bars",
    ]
    tf = str(metrics["tf"])
    told += filter(None, [explained(tf)])
    for model in ("lgbm", "lstm", "tft", "stacking"):
        if model in metrics["models"]:
            told += ["", *_model(NAMES[model], metrics["models"][model], tf)]
            told.append(f"Best head: {shown(metrics['best_head'][model], tf)}")
    told += ["", *_model(NAMES["volatility"], metrics["models"]["volatility"], tf)]
    openings = metrics["holdout"]["openings"]
    if openings > 1:
        told += [
            "",
            f"! the holdout has now been looked at with {openings} different recipes: its test "
            "AUCs are a choice among several, and flatter",
        ]
    if outcomes:
        told += ["", "Criteria", *(outcome.line() for outcome in outcomes)]
    return told


def _model(name: str, heads: Mapping[str, Any], tf: str) -> list[str]:
    return [f"{name} {shown(head, tf):<4} {_figures(heads[head])}" for head in in_order(heads)]


def _figures(head: Mapping[str, Any]) -> str:
    val, test = head["val"], head["test"]
    return (
        f"val AUC {_auc(val)}  test AUC {_auc(test)}  "
        f"all bars {_auc(head['val_all'])} | {_auc(head['test_all'])}  "
        f"n {val['n']:,} (effective {val['effective_n']:,.0f})"
    )


def _auc(made: Mapping[str, Any]) -> str:
    if made["value"] is None:
        return "not known"
    if made["low"] is None:
        return f"{made['value']:.3f}"
    return f"{made['value']:.3f} [{made['low']:.3f}, {made['high']:.3f}]"
