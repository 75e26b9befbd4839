"""LightGBM on all assets of a panel: the own columns of each, larger leaves, no name of the asset.

With many assets a leaf of 800 rows still is small (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from macd.app.train import lgbm
from macd.app.train.lgbm import Model, average, fit, importance, predict, save

__all__ = ["Params", "average", "fit", "importance", "load", "predict", "save"]


@dataclass(frozen=True)
class Params(lgbm.Params):
    """As for one asset, but for the rows of a leaf, all own columns, and one booster on all rows.

    assets: tell the trees which asset it is.
    """

    family: ClassVar[str] = "lgbm_panel"
    min_child: int = 800
    features: str = "all"
    bagging_fraction: float = 1.0
    bags: int = 1
    assets: bool = False


def load(directory: Path, tf: str) -> Model:
    """Read what `save` wrote."""
    return lgbm.load(directory, tf, Params)
