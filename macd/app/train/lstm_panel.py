"""The LSTM on all assets of a panel; a window says which asset it is of in columns of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from macd.app.train import lstm, nets
from macd.app.train.lstm import LstmNet


@dataclass(frozen=True)
class Params(lstm.Params):
    """As for one asset, but for what `nets.of_panel` changes.

    Of many assets the net learns more from all own columns than from the path alone.
    """

    features: str = "own"

    @classmethod
    def demo(cls) -> Self:
        return replace(super().demo(), dropout=0.2)

    @classmethod
    def full(cls) -> Self:
        return replace(nets.of_panel(super().full()), dropout=0.2)


_FAMILY = nets.Family("lstm_panel", LstmNet, Params)
fit, predict, save, load = _FAMILY.fit, _FAMILY.predict, _FAMILY.save, _FAMILY.load
average = _FAMILY.average
