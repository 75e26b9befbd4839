"""The temporal fusion transformer (Lim et al. 2021, arXiv:1912.09363), cut to this task.

As in the paper: softmax variable selection per bar, gated residual networks, an LSTM encoder with a
gated skip, interpretable multi-head attention (heads share their values), so that the weight of
each feature and of each past bar can be read off (`explain`).

Unlike the paper: a variable's embedding is linear, not a gated residual network of its own (80 of
those cost 30 times the time); there is no decoder and no static context, because nothing is known
of the future and there is one series; attention is asked for the last bar only, which is the one
predicted from; binary cross-entropy at three horizons instead of quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from macd.app.market.labels import HORIZONS
from macd.app.train import nets
from macd.app.train.fitdata import FitData, Floats, Rows
from macd.app.train.nets import Loop


@dataclass(frozen=True)
class Params:
    width: int
    attention_heads: int
    dropout: float
    loop: Loop
    features: str = "path"  # the set that the net sees (macd/app/market/features `subset`)

    @classmethod
    def demo(cls) -> Self:
        """Seconds on one core."""
        loop = Loop(epochs=4, batch=128, lr=6e-3, weight_decay=0.05, rows_per_epoch=4_000)
        return cls(width=24, attention_heads=4, dropout=0.1, loop=loop)

    @classmethod
    def full(cls) -> Self:
        """About 138k parameters at 44 features."""
        loop = Loop(epochs=4, batch=128, lr=2e-3, weight_decay=0.05)
        return cls(width=64, attention_heads=4, dropout=0.1, loop=loop)


class Gate(nn.Module):
    """Dropout, gated linear unit, residual, LayerNorm: what a block adds can be shut to zero."""

    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.unit = nn.Linear(inner, 2 * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        added: Tensor = self.norm(skip + functional.glu(self.unit(self.dropout(x)), dim=-1))
        return added


class GatedResidual(nn.Module):
    """The paper's GRN (eq. 2-4) without context."""

    def __init__(self, inner: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.rise = nn.Linear(inner, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.gate = Gate(hidden, width, dropout)
        self.skip = nn.Identity() if inner == width else nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate(self.mix(functional.elu(self.rise(x))), self.skip(x))
        return out


class VariableSelection(nn.Module):
    """Weights over the features of each bar, and the weighted sum of their embeddings (eq. 6-8)."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        self.weigh = GatedResidual(features, width, features, dropout)
        self.slope = nn.Parameter(torch.randn(features, width) / math.sqrt(width))
        self.level = nn.Parameter(torch.zeros(features, width))
        self.refine = GatedResidual(width, width, width, dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.weigh(x), dim=-1)
        # sum_j weight_j (slope_j x_j + level_j) as two products. Times sqrt(F): at equal
        # weights the sum then has the size of one embedding instead of vanishing with F.
        chosen = ((weights * x) @ self.slope + weights @ self.level) * math.sqrt(x.shape[-1])
        return self.refine(chosen), weights


class LastBarAttention(nn.Module):
    """Interpretable multi-head attention (eq. 14-16), queried from the last bar."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, self.size, bias=False)
        self.out = nn.Linear(self.size, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = x.shape[1]
        query = self.query(x[:, -1]).reshape(-1, self.heads, 1, self.size)
        key = self.key(x).reshape(-1, steps, self.heads, self.size).permute(0, 2, 3, 1)
        weights = torch.softmax(query @ key / math.sqrt(self.size), dim=-1).mean(dim=1)
        return self.out((weights @ self.value(x))[:, 0]), weights[:, 0]


class TftNet(nn.Module):
    """Raw windows (B, 48, F) -> probabilities (B, 3)."""

    def __init__(self, features: int, params: Params) -> None:
        super().__init__()
        width, dropout = params.width, params.dropout
        self.scale = nets.RobustScale(features)
        self.select = VariableSelection(features, width, dropout)
        self.encode = nn.LSTM(width, width, batch_first=True)
        self.encoded = Gate(width, width, dropout)
        self.enrich = GatedResidual(width, width, width, dropout)
        self.attend = LastBarAttention(width, params.attention_heads)
        self.attended = Gate(width, width, dropout)
        self.feed = GatedResidual(width, width, width, dropout)
        self.fed = Gate(width, width, dropout)
        self.heads = nn.Linear(width, len(HORIZONS))

    def look(self, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, 3), feature weights (B, 48, F), weights of the past bars (B, 48)."""
        chosen, features = self.select(scaled)
        encoded = self.encoded(self.encode(chosen)[0], chosen)
        enriched = self.enrich(encoded)
        seen, bars = self.attend(enriched)
        fed = self.feed(self.attended(seen, enriched[:, -1]))
        return self.heads(self.fed(fed, encoded[:, -1])), features, bars

    def body(self, scaled: Tensor) -> Tensor:
        """Scaled windows -> logits."""
        return self.look(scaled)[0]

    def forward(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self.body(self.scale(raw)))


Model = nets.Model[TftNet, Params]
_FAMILY = nets.Family("tft", TftNet, Params)
predict, save, load = _FAMILY.predict, _FAMILY.save, _FAMILY.load


def fit(data: FitData, params: Params, **how: Any) -> Model:
    """As every net is fitted (`nets.Family.fit`), then explained."""
    model = _FAMILY.fit(data, params, **how)
    model.loop["importance"], model.loop["attention"] = explain(model, data.X, data.rows)
    return model


def average(models: Sequence[nets.Model[Any, Params]]) -> nets.Model[Any, Params]:
    """Models of several seeds as one, with the means of what explains them."""
    made, loops = _FAMILY.average(models), [model.loop for model in models]
    shares = {
        name: sum(loop["importance"][name] for loop in loops) / len(loops)
        for name in loops[0]["importance"]
    }
    made.loop["importance"] = dict(sorted(shares.items(), key=lambda item: -item[1]))
    made.loop["attention"] = np.mean([loop["attention"] for loop in loops], axis=0).tolist()
    return made


def explain(model: Model, X: Floats, rows: Rows) -> tuple[dict[str, float], list[float]]:
    """Mean weight of each feature, largest first, and of each of the 48 bars, oldest first."""
    ends = torch.from_numpy(nets.with_history(rows)[-2_048:])
    device = next(model.net.parameters()).device
    bars = torch.from_numpy(np.ascontiguousarray(X)).to(device)
    model.net.eval()
    with torch.inference_mode(), nets.reproducible(device):
        scaled = model.net.scale(nets.windows(bars, ends.to(device)))
        _, features, past = model.net.look(scaled)
    shares = features.mean(dim=(0, 1)).cpu().tolist()
    names = model.features or tuple(str(k) for k in range(len(shares)))
    ranked = sorted(zip(names, shares, strict=True), key=lambda item: -item[1])
    return dict(ranked), past.mean(dim=0).cpu().tolist()


def importance(model: nets.Model[Any, Params]) -> dict[str, float]:
    """Mean selection weight of each feature on the last training rows, largest first."""
    shares: dict[str, float] = model.loop["importance"]
    return shares
