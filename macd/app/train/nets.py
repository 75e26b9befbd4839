"""What both nets share: windows of raw bars, scaling inside the graph, prediction, determinism.

A net here is an nn.Module with `scale` (RobustScale) and `body` (scaled windows -> logits (B, 3));
its forward maps raw windows (B, SEQ, F), NaN included, to probabilities, which is what ONNX gets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from macd.app.market.labels import HORIZONS
from macd.app.train.fitdata import Floats, Report, Rows
from macd.heads import GUIDE, head_names

SEQ = 48  # bars in a window, the bar predicted from included
PREDICT_BATCH = 2_048  # more costs memory and wins nothing


class RobustScale(nn.Module):
    """(x - median) / IQR as buffers; NaN becomes 0, outliers are clipped, so raw bars go in."""

    center: Tensor
    spread: Tensor

    def __init__(self, features: int, clip: float = 5.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    def fit(self, X: Floats) -> None:
        """Learn from these rows, which must be training rows only."""
        known = np.where(np.isfinite(X), X, np.nan).astype(np.float64)
        empty = np.isnan(known).all(axis=0)
        known[:, empty] = 0.0
        low, center, high = np.nanpercentile(known, (25, 50, 75), axis=0)
        spread, deviation = (high - low) / 1.349, np.nanstd(known, axis=0)
        # A flag or a rarely set feature has no IQR; a constant one has no spread at all.
        spread = np.where(spread > 1e-3 * deviation, spread, deviation)
        spread = np.where(spread > 1e-12, spread, 1.0)
        self.center.copy_(torch.from_numpy(center))
        self.spread.copy_(torch.from_numpy(spread))

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.where(torch.isnan(x), self.center, x)
        return torch.clamp((filled - self.center) / self.spread, -self.clip, self.clip)


def windows(X: Tensor, rows: Tensor) -> Tensor:
    """(len(rows), SEQ, F): the SEQ bars that end with each row."""
    steps = torch.arange(1 - SEQ, 1, device=X.device)
    return X[rows[:, None] + steps]


def with_history(rows: Rows) -> Rows:
    """The rows that have a whole window behind them."""
    return rows[rows >= SEQ - 1]


def predict(net: nn.Module, X: Floats, rows: Rows) -> Floats:
    """Probabilities float32 (len(rows), 3) on the net's device; NaN where history lacks."""
    out = np.full((len(rows), len(HORIZONS)), np.nan, dtype=np.float32)
    whole = np.flatnonzero(rows >= SEQ - 1)
    device = next(net.parameters()).device
    bars = torch.from_numpy(np.ascontiguousarray(X)).to(device)
    net.eval()
    start, size = 0, PREDICT_BATCH
    with torch.inference_mode(), reproducible(device):
        while start < len(whole):
            part = whole[start : start + size]
            try:
                made = net(windows(bars, torch.from_numpy(rows[part]).to(device)))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2  # somebody else took the GPU's memory; smaller parts may still fit
                continue
            out[part] = made.float().cpu().numpy()
            start += size
    return out


def auc_by_head(p: Floats, y: Floats, tf: str = GUIDE) -> dict[str, float | None]:
    """AUC of each head on the known labels; None where only one class is there."""
    aucs: dict[str, float | None] = {}
    for k, head in enumerate(head_names(tf)):
        known = ~np.isnan(y[:, k]) & ~np.isnan(p[:, k])
        both = len(np.unique(y[known, k])) == 2
        aucs[head] = round(float(roc_auc_score(y[known, k], p[known, k])), 4) if both else None
    return aucs


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Same numbers on the same machine: one CPU thread, deterministic kernels, own random state.

    One thread because sums depend on how they are split, and because fits run in parallel anyway.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cuda = [device] if device.type == "cuda" else []
    if cuda:  # cuBLAS reads it when first used and sums in no fixed order without
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=cuda):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=True)


def compiled(
    body: Callable[[Tensor], Tensor], example: Tensor, report: Report, *, backend: str = "inductor"
) -> Callable[[Tensor], Tensor]:
    """`torch.compile(body)`, or body itself (reported) where compiling fails, e.g. no compiler."""
    faster: Callable[[Tensor], Tensor] = torch.compile(body, backend=backend)
    try:
        faster(example)
    except torch.OutOfMemoryError:
        return faster  # the loop halves the batch
    except Exception as error:  # any of many: no triton, no gcc, an unsupported op
        report({"event": "eager", "why": " ".join(str(error).split())[:300]})
        return body
    return faster
