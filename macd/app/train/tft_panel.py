"""The TFT on all assets of a panel; a window says which asset it is of in columns of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from macd.app.train import nets, tft
from macd.app.train.fitdata import FitData
from macd.app.train.tft import Model, TftNet, average, explain, importance

__all__ = ["Params", "average", "fit", "importance", "load", "predict", "save"]


@dataclass(frozen=True)
class Params(tft.Params):
    """As for one asset, but for what `nets.of_panel` changes.

    Of many assets the net learns more from all own columns than from the path alone.
    """

    features: str = "own"

    @classmethod
    def full(cls) -> Self:
        return nets.of_panel(super().full())


_FAMILY: nets.Family[TftNet, tft.Params] = nets.Family("tft_panel", TftNet, Params)
predict, save, load = _FAMILY.predict, _FAMILY.save, _FAMILY.load


def fit(data: FitData, params: Params, **how: Any) -> Model:
    """As every net is fitted (`nets.Family.fit`), then explained on the asset that is tested."""
    model = _FAMILY.fit(data, params, **how)
    tested = data.rows[data.rows < data.blocks[0].stop]
    model.loop["importance"], model.loop["attention"] = explain(model, data.X, tested)
    return model
