"""The one training loop of both nets: resumable to the same numbers, frugal, never silently wrong.

After each epoch a checkpoint; out of memory halves the batch; a loss that is no number is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from macd.app.train.checkpoint import read_checkpoint, write_checkpoint
from macd.app.train.fitdata import FitData, Floats, Report
from macd.app.train.nets import (
    PREDICT_BATCH,
    SEQ,
    RobustScale,
    auc_by_head,
    compiled,
    predict,
    reproducible,
    windows,
    with_history,
)
from macd.errors import MacdError

_CODE = 2  # raise when the loop's arithmetic changes: old checkpoints then don't fit


@dataclass(frozen=True)
class Loop:
    """How a net is trained.

    rows_per_epoch: a fresh random part of the rows each epoch; 0 = all of them.
    compile: torch.compile on CUDA; it costs a minute at the start, which only long runs win back.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    clip_norm: float = 1.0
    patience: int = 3
    rows_per_epoch: int = 0
    compile: bool = False


@dataclass
class Progress:
    """The loop's state, all of it in the checkpoint; randomness has none: each epoch is seeded."""

    epoch: int = 0
    micro: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


def train(
    net: nn.Module,
    data: FitData,
    loop: Loop,
    *,
    name: str,
    config: object,
    seed: int,
    device: str,
    checkpoint: Path | None,
    report: Report,
) -> dict[str, Any]:
    """Train `net` in place; return how it went (history, best epoch ...) for the files.

    Raises MacdError when the loss stops being a number, or memory lacks for a single window.
    """
    where = torch.device(device)
    with reproducible(where):
        run = _Run(net.to(where), data, loop, name=name, seed=seed, report=report)
        key = hashlib.sha256(
            json.dumps(
                [_CODE, name, config, dataclasses.asdict(loop), seed, data.digest()],
                sort_keys=True,
                default=dataclasses.asdict,
            ).encode()
        ).hexdigest()
        if checkpoint is not None:
            run.resume(checkpoint, key)
        while run.state.epoch < loop.epochs and not run.out_of_patience():
            run.epoch()
            if checkpoint is not None:
                write_checkpoint(checkpoint, run.snapshot(key))
        return run.finish()


class _Run:
    """One training: `epoch` until the loop's end, `snapshot` and `resume` in between."""

    def __init__(
        self, net: nn.Module, data: FitData, loop: Loop, *, name: str, seed: int, report: Report
    ) -> None:
        self.net, self.data, self.loop, self.name = net, data, loop, name
        self.seed, self.report = seed, report
        self.device = next(net.parameters()).device
        labelled = ~np.isnan(data.y[data.rows]).all(axis=1)
        self.rows = with_history(data.rows[labelled])
        if len(self.rows) == 0:
            raise MacdError(
                f"{name} has nothing to learn from",
                why=f"no training row has both a label and {SEQ} bars behind it",
                hint="give it more bars: invoke data.fetch, or data.import",
            )
        scale: RobustScale = net.scale  # type: ignore[assignment]
        scale.fit(data.X[data.rows])
        with torch.no_grad():
            self.X = scale(torch.from_numpy(data.X).to(self.device))
        self.y = torch.from_numpy(data.y).to(self.device)
        self.down, self.up = torch.from_numpy(data.class_weights(self.rows)).to(self.device)
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=loop.lr, weight_decay=loop.weight_decay
        )
        self.state = Progress(micro=loop.batch)
        self.body: Callable[[Tensor], Tensor] = net.body  # type: ignore[assignment]
        if loop.compile and self.device.type == "cuda":
            example = windows(self.X, torch.from_numpy(self.rows[: loop.batch]).to(self.device))
            self.body = compiled(self.body, example, report)

    def epoch(self) -> None:
        """One pass over the rows (or over this epoch's part of them)."""
        number = self.state.epoch
        torch.manual_seed(self.seed * 100_003 + number)  # dropout; a resumed run continues alike
        order = np.random.default_rng([self.seed, number]).permutation(self.rows)
        order = order[: self.loop.rows_per_epoch or None]
        self.net.train()
        total = torch.zeros((), device=self.device)
        for start in range(0, len(order), self.loop.batch):
            self._set_rate((number + start / len(order)) / self.loop.epochs)
            total += self._step(torch.from_numpy(order[start : start + self.loop.batch]))
        self.state.epoch = number + 1
        loss = float(total) / math.ceil(len(order) / self.loop.batch)
        self._judge(loss)

    def out_of_patience(self) -> bool:
        """True when early stopping is on and the inner slice hasn't improved for long enough."""
        waited = self.state.epoch - self.state.best_epoch
        return self.data.stop_rows is not None and waited >= self.loop.patience

    def snapshot(self, key: str) -> dict[str, Any]:
        return {
            "config": key,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": dict(vars(self.state)),
        }

    def resume(self, path: Path, key: str) -> None:
        saved, problem = read_checkpoint(path, key)
        if problem:
            self.report({"event": "checkpoint-ignored", "model": self.name, "why": problem})
        if saved is None:
            return
        self.net.load_state_dict(saved["net"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = Progress(**saved["progress"])
        self.report({"event": "resumed", "model": self.name, "epoch": self.state.epoch})

    def finish(self) -> dict[str, Any]:
        """Put the best weights in (with early stopping) and tell how it went."""
        if self.state.best:
            self.net.load_state_dict(self.state.best)
        self.net.eval()
        return {
            "seed": self.seed,
            "training_digest": self.data.digest(),
            "epoch": self.state.epoch,
            "best_epoch": self.state.best_epoch or self.state.epoch,
            "batch_that_fit": self.state.micro,
            "history": self.state.history,
        }

    def _set_rate(self, progress: float) -> None:
        """A tenth of the way up in a line, then down a cosine: a function of progress alone."""
        warm = 0.1
        if progress < warm:
            share = 0.1 + 0.9 * progress / warm
        else:
            share = 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.loop.lr * share

    def _step(self, ends: Tensor) -> Tensor:
        """One optimizer step on these rows, in parts as large as memory allows; its mean loss."""
        ends = ends.to(self.device)
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self._gradients(ends)
            except torch.OutOfMemoryError as error:
                message = str(error).splitlines()[0]
            else:
                break
            self._halve(message)
        nn.utils.clip_grad_norm_(self.net.parameters(), self.loop.clip_norm)
        self.optimizer.step()
        return loss

    def _gradients(self, ends: Tensor) -> Tensor:
        known = int((~torch.isnan(self.y[ends])).sum())
        total = torch.zeros((), device=self.device)
        for part in torch.split(ends, self.state.micro):
            loss = self._loss(part) / known
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, ends: Tensor) -> Tensor:
        """Sum of the binary cross-entropies of the known labels, both directions weighing alike."""
        y = self.y[ends]
        known = ~torch.isnan(y)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.body(windows(self.X, ends))
        target = torch.where(known, y, torch.zeros_like(y))
        each = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        weight = torch.where(target > 0, self.up, self.down)
        return torch.where(known, weight * each, torch.zeros_like(each)).sum()

    def _halve(self, why: str) -> None:
        """Go on with parts of half the size; the optimizer still sees the whole batch."""
        if self.state.micro <= 1:
            raise MacdError(
                f"{self.name}: the device has no memory for even one window",
                why=why,
                hint="free the GPU (nvidia-smi shows who holds it), or train with --profile demo",
            )
        self.state.micro = max(1, min(self.state.micro, self.loop.batch) // 2)
        self.report({"event": "oom", "model": self.name, "batch": self.state.micro, "why": why})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _judge(self, loss: float) -> None:
        """Look at the epoch's outcome: a number at all, the AUCs, and the inner slice's loss."""
        stop = self.data.stop_rows
        shown = self.rows[:: max(1, len(self.rows) // PREDICT_BATCH)] if stop is None else stop
        p = predict(self.net, self.data.X, shown)
        y = self.data.y[shown]
        if not math.isfinite(loss) or not np.isfinite(p[shown >= SEQ - 1]).all():
            raise MacdError(
                f"{self.name}: the loss became {loss} in epoch {self.state.epoch}",
                why="the weights diverged or the features hold values no clipping can mend",
                hint="check the bars (invoke data.verify), then train with a lower learning rate",
                live="nothing was saved from this epoch; the last checkpoint is still good",
            )
        event: dict[str, Any] = {
            "event": "epoch",
            "model": self.name,
            "epoch": self.state.epoch,
            "epochs": self.loop.epochs,
            "loss": round(loss, 6),
            "auc": auc_by_head(p, y, self.data.tf),
            "on": "train sample" if stop is None else "inner slice",
        }
        if stop is not None:
            event["stop_loss"] = round(_bce(p, y), 6)
            if event["stop_loss"] < self.state.best_loss:
                self.state.best_loss, self.state.best_epoch = event["stop_loss"], self.state.epoch
                self.state.best = {
                    k: v.detach().cpu().clone() for k, v in self.net.state_dict().items()
                }
        self.state.history.append(event)
        self.report(event)


def _bce(p: Floats, y: Floats) -> float:
    known = ~np.isnan(p) & ~np.isnan(y)
    q = np.clip(p[known].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-np.mean(y[known] * np.log(q) + (1 - y[known]) * np.log1p(-q)))
