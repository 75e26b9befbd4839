"""The LSTM: 48 bars in, the direction at three horizons out.

What mattered on real bars: an input projection with LayerNorm, the last state instead of
attention pooling, the window including the bar predicted from, few epochs (docs/LOG.md).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from macd.train import nets
from macd.train.checkpoint import pack, unpack, write_whole
from macd.train.fitdata import HEADS, Facts, FitData, Floats, Report, Rows, silent
from macd.train.meta import meta_json


@dataclass(frozen=True)
class Params:
    """Size and training of the net."""

    hidden: int
    layers: int
    projection: int
    dropout: float
    loop: nets.Loop

    @classmethod
    def demo(cls) -> Params:
        """Seconds on one core."""
        loop = nets.Loop(epochs=4, batch=256, lr=2e-3, weight_decay=0.05, rows_per_epoch=6_000)
        return cls(hidden=64, layers=1, projection=48, dropout=0.2, loop=loop)

    @classmethod
    def full(cls) -> Params:
        """For a GPU: 26 s an epoch on one core."""
        loop = nets.Loop(epochs=12, batch=256, lr=1e-3, weight_decay=0.05)
        return cls(hidden=192, layers=2, projection=48, dropout=0.3, loop=loop)


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
            nn.Linear(params.hidden, len(HEADS)),
        )

    def body(self, scaled: Tensor) -> Tensor:
        """Scaled windows -> logits."""
        states, _ = self.lstm(self.project(scaled))
        logits: Tensor = self.heads(states[:, -1])
        return logits

    def forward(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(self.body(self.scale(raw)))


@dataclass(frozen=True)
class Model:
    """A fitted net and how it came about."""

    net: LstmNet
    params: Params
    features: tuple[str, ...]
    history: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def fit(
    data: FitData,
    params: Params,
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    report: Report = silent,
) -> Model:
    """Train on data.rows; a checkpoint file that fits is resumed from, to the same numbers."""
    with nets.reproducible(torch.device("cpu")):
        torch.manual_seed(seed)
        net = LstmNet(data.X.shape[1], params)
    state = nets.train(
        net,
        data,
        params.loop,
        name="lstm",
        config=params,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        report=report,
    )
    facts = {
        "seed": seed,
        "training_digest": data.digest(),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch or state.epoch,
        "batch_that_fit": state.micro,
    }
    return Model(net, params, data.features, state.history, facts)


def predict(model: Model, X: Floats, rows: Rows) -> Floats:
    """float32 (len(rows), 3) in (0, 1); NaN for rows without 48 bars of history."""
    return nets.predict(model.net, X, rows)


def save(model: Model, directory: Path, tf: str, *, facts: Facts | None = None) -> list[Path]:
    """Write lstm_{tf}.pt and lstm_{tf}_meta.json; `facts` (best_head ...) join the meta."""
    width = model.net.scale.center.numel()
    config = {
        "params": dataclasses.asdict(model.params),
        "features": list(model.features),
        "width": width,
        "facts": model.facts,
    }
    weights = {k: v.cpu() for k, v in model.net.state_dict().items()}
    state = {
        "format": "macd-lstm/1",
        "weights": weights,
        "config": config,
        "loop": {"history": model.history},
    }
    meta = meta_json(
        "lstm",
        tf,
        model.params,
        model.features,
        {"history": model.history, **model.facts, **(facts or {})},
    )
    return [
        write_whole(directory / f"lstm_{tf}.pt", pack(state)),
        write_whole(directory / f"lstm_{tf}_meta.json", meta),
    ]


def load(directory: Path, tf: str) -> Model:
    """Read what `save` wrote (weights_only: nothing in the file is run)."""
    state = unpack((directory / f"lstm_{tf}.pt").read_bytes())
    config = state["config"]
    given = dict(config["params"])
    params = Params(**{**given, "loop": nets.Loop(**given["loop"])})
    net = LstmNet(config["width"], params)
    net.load_state_dict(state["weights"])
    net.eval()
    history: list[dict[str, Any]] = state["loop"]["history"]
    return Model(net, params, tuple(config["features"]), history, dict(config["facts"]))
