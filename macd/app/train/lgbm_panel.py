"""LightGBM on all assets of a panel: the path and the clock of each, and no name of the asset.

Two boosters of different sizes, merged into one text. With many assets a leaf of 800 rows still is
small; which features, leaves and bagging won stands in docs/LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from macd.app.train import lgbm
from macd.app.train.fitdata import FitData
from macd.app.train.lgbm import Model, average, importance, merged, predict, save

__all__ = ["Params", "average", "fit", "importance", "load", "predict", "save"]


@dataclass(frozen=True)
class Params(lgbm.Params):
    """As for one asset, but for the rows of a leaf, and one bag for each of the two sizes.

    more_leaves: of the second booster, 0 for none. assets: tell the trees which asset it is.
    """

    family: ClassVar[str] = "lgbm_panel"
    min_child: int = 800
    bags: int = 1
    more_leaves: int = 31
    assets: bool = False

    @classmethod
    def demo(cls) -> Params:
        return cls()


def fit(data: FitData, params: Params, **how: Any) -> Model:
    """As for one asset (`lgbm.fit`), twice: trees of `leaves` and of `more_leaves`, averaged."""
    sizes = filter(None, (params.leaves, params.more_leaves))
    fitted = [lgbm.fit(data, replace(params, leaves=leaves), **how) for leaves in sizes]
    first = fitted[0]
    texts = {head: merged([model.texts[head] for model in fitted]) for head in first.texts}
    return Model(texts, params, first.features, first.facts)


def load(directory: Path, tf: str) -> Model:
    """Read what `save` wrote."""
    return lgbm.load(directory, tf, Params)
