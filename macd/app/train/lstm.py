"""The LSTM: 48 bars in, the direction at three horizons out.

What mattered on real bars: an input projection with LayerNorm, the last state instead of
attention pooling, the window including the bar predicted from, few epochs (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from macd.app.market.labels import HORIZONS
from macd.app.train import nets
from macd.app.train.nets import Loop


@dataclass(frozen=True)
class Params:
    hidden: int
    layers: int
    projection: int
    dropout: float
    loop: Loop
    features: str = "path"  # the set that the net sees (macd/app/market/features `subset`)

    @classmethod
    def demo(cls) -> Self:
        """Seconds on one core."""
        loop = Loop(epochs=4, batch=256, lr=2e-3, weight_decay=0.05, rows_per_epoch=6_000)
        return cls(hidden=64, layers=1, projection=48, dropout=0.35, loop=loop)

    @classmethod
    def full(cls) -> Self:
        """For a GPU: 26 s an epoch on one core. More epochs learn the noise (docs/LOG.md)."""
        loop = Loop(epochs=3, batch=256, lr=1e-3, weight_decay=0.05)
        return cls(hidden=192, layers=2, projection=48, dropout=0.35, loop=loop)


class LstmNet(nn.Module):
    """Raw windows (B, 48, F) -> probabilities (B, 3)."""

    def __init__(self, features: int, params: Params) -> None:
        super().__init__()
        self.scale = nets.RobustScale(features)
        self.project = nn.Sequential(
            nn.Linear(features, params.projection),
            nn.LayerNorm(params.projection),
            nn.GELU(),
            nn.Dropout(params.dropout),
        )
        self.lstm = nn.LSTM(
            params.projection,
            params.hidden,
            params.layers,
            batch_first=True,
            dropout=params.dropout if params.layers > 1 else 0.0,
        )
        self.heads = nn.Sequential(
            nn.LayerNorm(params.hidden),
            nn.Dropout(params.dropout),
            nn.Linear(params.hidden, len(HORIZONS)),
        )

    def body(self, scaled: Tensor) -> Tensor:
        """Scaled windows -> logits."""
        states, _ = self.lstm(self.project(scaled))
        logits: Tensor = self.heads(states[:, -1])
        return logits

    def forward(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self.body(self.scale(raw)))


Model = nets.Model[LstmNet, Params]
_FAMILY = nets.Family("lstm", LstmNet, Params)
fit, predict, save, load = _FAMILY.fit, _FAMILY.predict, _FAMILY.save, _FAMILY.load
average = _FAMILY.average
