"""What both nets share: windows of raw bars, scaling in the graph, the training loop, files.

A net here is an nn.Module with `scale` (RobustScale) and `body` (scaled windows -> logits (B, 3));
its forward maps raw windows (B, SEQ, F), NaN included, to probabilities, which is what ONNX gets.

The loop writes a checkpoint after each epoch and resumes from it to the same numbers. Out of memory
halves the batch. A loss that is not a number is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from macd.app.market.labels import HORIZONS
from macd.app.train import cards
from macd.app.train.fitdata import SEQ, Facts, FitData, Floats, Report, Rows, silent
from macd.app.train.metrics import auc_by_head, rounded
from macd.app.train.modelfiles import (
    meta_json,
    pack,
    read_checkpoint,
    unpack,
    write_checkpoint,
    write_whole,
)
from macd.errors import MacdError
from macd.heads import head_names

if TYPE_CHECKING:
    from typing import Protocol

    from _typeshed import DataclassInstance

    class NetParams(DataclassInstance, Protocol):
        """Parameters of a net: its size, and its loop."""

        @property
        def loop(self) -> Loop: ...


_COLUMNS = 16  # scaled at a time: a panel's rows as float64, all at once, would be gigabytes
_CODE = 3  # raise when the loop's arithmetic changes: old checkpoints then don't fit

N = TypeVar("N", bound=nn.Module)
P = TypeVar("P", bound="NetParams")


@dataclass(frozen=True)
class Loop:
    """How a net is trained.

    batch: rows of an optimiser step, the same on every device (docs/adr/batch.md).
    rows_per_epoch: a fresh random part of the rows each epoch; 0 = all of them.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    clip_norm: float = 1.0
    patience: int = 3
    rows_per_epoch: int = 0


def of_panel(params: P) -> P:
    """A net's full parameters on a panel: epochs of one asset's size, more win nothing
    (docs/LOG.md).
    """
    return replace(params, loop=replace(params.loop, rows_per_epoch=24_000))


@dataclass(frozen=True)
class Model(Generic[N, P]):
    """A fitted net; `loop` is the record of its training (seed, history ...)."""

    net: N
    params: P
    features: tuple[str, ...]
    loop: dict[str, Any]


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
        for start in range(0, X.shape[1], _COLUMNS):
            self._fit(X[:, start : start + _COLUMNS], slice(start, start + _COLUMNS))

    def _fit(self, X: Floats, columns: slice) -> None:
        known = np.where(np.isfinite(X), X, np.nan).astype(np.float64)
        empty = np.isnan(known).all(axis=0)
        known[:, empty] = 0.0
        low, center, high = np.nanpercentile(known, (25, 50, 75), axis=0)
        spread, deviation = (high - low) / 1.349, np.nanstd(known, axis=0)
        # A flag or a rarely set feature has no IQR; a constant one has no spread at all.
        spread = np.where(spread > 1e-3 * deviation, spread, deviation)
        spread = np.where(spread > 1e-12, spread, 1.0)
        self.center[columns] = torch.from_numpy(center)
        self.spread[columns] = torch.from_numpy(spread)

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.where(torch.isnan(x), self.center, x)
        return torch.clamp((filled - self.center) / self.spread, -self.clip, self.clip)


class Average(nn.Module):
    """Nets of one kind and several seeds as one: the sigmoid of the mean of their logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, raw: Tensor) -> Tensor:
        nets: list[Any] = list(self.members)
        logits = torch.stack([net.body(net.scale(raw)) for net in nets])
        return torch.sigmoid(logits.mean(dim=0))


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
    start, size = 0, cards.arithmetic(device.type, X.shape[1]).predict_batch
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


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Same numbers on the same machine: one CPU thread, deterministic kernels, own random state.

    One thread because sums depend on how they are split, and because fits run in parallel anyway.
    The debug mode is another name of `use_deterministic_algorithms`, which would import all of
    torch's compiler first: seconds in each process, for a setting that no net here has use for.
    New memory is not filled with NaN, which takes a tenth of a fit: no operation here reads it.
    """
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    cuda = [device] if device.type == "cuda" else []
    if cuda:  # cuBLAS reads it when first used and sums in no fixed order without
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=cuda):
        torch.set_num_threads(1)
        torch.set_deterministic_debug_mode("warn")
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(mode)
            memory.fill_uninitialized_memory = filled


@dataclass(frozen=True)
class Family(Generic[N, P]):
    """What every family of models can do, for nets: `fit`, `predict`, `save`, `load`."""

    name: str
    make_net: Callable[[int, P], N]
    make_params: Callable[..., P]

    def fit(
        self,
        data: FitData,
        params: P,
        *,
        seed: int,
        device: str = "cpu",
        checkpoint: Path | None = None,
        report: Report = silent,
    ) -> Model[N, P]:
        """Train on data.rows; a checkpoint of this very fit is resumed from, to the same numbers.

        Raises MacdError when the loss stops being a number, or memory lacks for a single window.
        """
        with reproducible(torch.device("cpu")):
            torch.manual_seed(seed)
            net = self.make_net(data.X.shape[1], params)
        where, loop = torch.device(device), params.loop
        with reproducible(where):
            run = _Run(net.to(where), data, loop, name=self.name, seed=seed, report=report)
            fit = [_CODE, self.name, params, dataclasses.asdict(loop), seed, data.digest()]
            text = json.dumps(fit, sort_keys=True, default=dataclasses.asdict)
            key = hashlib.sha256(text.encode()).hexdigest()
            if checkpoint is not None:
                run.resume(checkpoint, key)
            while run.state.epoch < loop.epochs and not run.out_of_patience():
                run.epoch()
                if checkpoint is not None:
                    write_checkpoint(checkpoint, run.snapshot(key))
            return Model(net, params, data.features, run.finish())

    def average(self, models: Sequence[Model[Any, P]]) -> Model[Any, P]:
        """Models of several seeds, fitted on the same data, as one."""
        first, loops = models[0], [model.loop for model in models]
        record = {name: first.loop[name] for name in ("seed", "training_digest")}
        record |= {"seeds": [loop["seed"] for loop in loops], "members": loops}
        net = Average([model.net for model in models]).eval()
        return Model(net, first.params, first.features, record)

    def predict(self, model: Model[Any, P], X: Floats, rows: Rows) -> Floats:
        """float32 (len(rows), 3) in (0, 1); NaN for rows without 48 bars of history."""
        return predict(model.net, X, rows)

    def save(
        self, model: Model[Any, P], directory: Path, tf: str, *, facts: Facts | None = None
    ) -> list[Path]:
        """Write FAMILY_TF.pt and FAMILY_TF_meta.json; the loop's record goes into both.

        The weights of an average are a list, one entry a net. facts: best_head and others, which
        join the meta.
        """
        name = self.name
        config = {"params": dataclasses.asdict(model.params), "features": list(model.features)}
        weights: Any = [_weights(net) for net in getattr(model.net, "members", [model.net])]
        weights = weights if isinstance(model.net, Average) else weights[0]
        kind = f"macd-{name}/1"
        state = {"format": kind, "weights": weights, "config": config, "loop": model.loop}
        meta = meta_json(name, tf, model.params, model.features, {**model.loop, **(facts or {})})
        return [
            write_whole(directory / f"{name}_{tf}.pt", pack(state)),
            write_whole(directory / f"{name}_{tf}_meta.json", meta),
        ]

    def load(self, directory: Path, tf: str) -> Model[Any, P]:
        """Read what `save` wrote (weights_only: nothing in the file is run)."""
        state = unpack((directory / f"{self.name}_{tf}.pt").read_bytes())
        config = state["config"]["params"]
        # Files written while nets could be compiled hold that choice.
        loop = {name: value for name, value in config["loop"].items() if name != "compile"}
        params = self.make_params(**{**config, "loop": Loop(**loop)})
        stored = state["weights"]
        nets = []
        for weights in stored if isinstance(stored, list) else [stored]:
            nets.append(self.make_net(weights["scale.center"].numel(), params))
            nets[-1].load_state_dict(weights)
        net = Average(nets).eval() if isinstance(stored, list) else nets[0].eval()
        return Model(net, params, tuple(state["config"]["features"]), state["loop"])


@dataclass
class Progress:
    """The loop's state, all of it in the checkpoint; random state is not: each epoch is seeded."""

    epoch: int = 0
    micro: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)


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
        weights = np.zeros_like(data.y)
        weights[self.rows] = data.class_weights(self.rows)
        self.weights = torch.from_numpy(weights).to(self.device)
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=loop.lr, weight_decay=loop.weight_decay
        )
        self.state = Progress(micro=loop.batch)
        self.body: Callable[[Tensor], Tensor] = net.body  # type: ignore[assignment]
        self.arithmetic = cards.arithmetic(self.device.type, data.X.shape[1])

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
        """Put the best weights in (with early stopping) and return the record of the training."""
        if self.state.best:
            self.net.load_state_dict(self.state.best)
        self.net.eval()
        return {
            "seed": self.seed,
            "training_digest": self.data.digest(),
            "epoch": self.state.epoch,
            "best_epoch": self.state.best_epoch or self.state.epoch,
            "batch_that_fit": self.state.micro,
            **dataclasses.asdict(self.arithmetic),
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
        """Sum of the binary cross-entropies of the known labels, both directions weighted alike."""
        y = self.y[ends]
        known = ~torch.isnan(y)
        lowered = self.arithmetic.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=lowered):
            logits = self.body(windows(self.X, ends))
        target = torch.where(known, y, torch.zeros_like(y))
        each = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return torch.where(known, self.weights[ends] * each, torch.zeros_like(each)).sum()

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
        """Check that the loss is a number; report the AUCs and, with early stopping, its loss."""
        stop = self.data.stop_rows
        shown = self.rows[:: max(1, len(self.rows) // 2_048)] if stop is None else stop
        p = predict(self.net, self.data.X, shown)
        y = self.data.y[shown]
        if not math.isfinite(loss) or not np.isfinite(p[shown >= SEQ - 1]).all():
            raise MacdError(
                f"{self.name}: the loss became {loss} in epoch {self.state.epoch}",
                why="the weights diverged, or features hold values that clipping can't mend",
                hint="check the bars (invoke data.verify), then train with a lower learning rate",
                live="nothing was saved from this epoch; the last checkpoint is still good",
            )
        event: dict[str, Any] = {
            "event": "epoch",
            "model": self.name,
            "epoch": self.state.epoch,
            "epochs": self.loop.epochs,
            "loss": round(loss, 6),
            "auc": rounded(auc_by_head(y, p, head_names(self.data.tf))),
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


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in net.state_dict().items()}


def _bce(p: Floats, y: Floats) -> float:
    known = ~np.isnan(p) & ~np.isnan(y)
    q = np.clip(p[known].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-np.mean(y[known] * np.log(q) + (1 - y[known]) * np.log1p(-q)))
