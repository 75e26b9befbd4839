"""How far a run is, computed from its events, and the one line that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from macd.sizes import minutes


@dataclass(frozen=True)
class Progress:
    """The newest of everything. `share` is 0..1, None while unknown; `at` is the host's clock.

    said: the newest line that a stage of an own application wrote. symbol: of several symbols.
    """

    stage: str = ""
    said: str = ""
    symbol: str = ""
    model: str = ""
    fold: str = ""
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    auc: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    share: float | None = None
    eta_s: float | None = None
    at: float = 0.0
    count: int = 0

    def after(self, events: Iterable[Mapping[str, Any]]) -> Progress:
        """This progress, some events later."""
        now = self
        for event in events:
            now = replace(now, count=now.count + 1, at=_number(event.get("t")) or now.at)
            fold = _FOLDS.get(str(event.get("event")))
            if fold is not None:
                now = fold(now, event)
        return now

    def line(self) -> str:
        """One line for people."""
        parts = [f"[{self.stage or 'starting'}]"]
        if self.model:
            parts.append(f"{self.symbol} {self.model.upper()} {self.fold}".strip())
        elif self.symbol:
            parts.append(self.symbol)
        if self.epochs:
            loss = f" loss {self.loss:.4f}" if self.loss is not None else ""
            parts.append(f"epoch {self.epoch}/{self.epochs}{loss}")
        heads = self.auc.get(self.model)
        if heads:
            shown = " ".join(f"{head} {value:.3f}" for head, value in heads.items())
            parts.append(f"last AUC {shown}")
        if self.share is not None:
            parts.append(f"{100 * self.share:.0f} %")
        if self.eta_s is not None and self.share != 1:
            parts.append(f"ETA {minutes(self.eta_s)}")
        if self.said:
            parts.append(self.said)
        return "  ".join(parts)


def _started(now: Progress, event: Mapping[str, Any]) -> Progress:
    stage = str(event.get("stage") or now.stage)
    symbol = str(event.get("symbol") or "")
    return replace(
        now, stage=stage, said="", symbol=symbol, model="", fold="", epoch=0, epochs=0, loss=None
    )


def _said(now: Progress, event: Mapping[str, Any]) -> Progress:
    return replace(now, said=str(event.get("text") or ""))


def _epoch(now: Progress, event: Mapping[str, Any]) -> Progress:
    return replace(
        _fit(now, event),
        epoch=int(_number(event.get("epoch")) or 0),
        epochs=int(_number(event.get("epochs")) or 0),
        loss=_number(event.get("loss")),
    )


def _done(now: Progress, event: Mapping[str, Any]) -> Progress:
    now = _fit(now, event)
    heads = event.get("auc")
    if isinstance(heads, Mapping):
        scores = {str(k): v for k, value in heads.items() if (v := _number(value)) is not None}
        now = replace(now, auc={**now.auc, now.model: scores})
    share, eta = _number(event.get("progress")), _number(event.get("eta_s"))
    return replace(
        now, share=now.share if share is None else share, eta_s=now.eta_s if eta is None else eta
    )


def _fit(now: Progress, event: Mapping[str, Any]) -> Progress:
    fold = event.get("fold")
    named = "" if fold is None else str(fold) if fold == "final" else f"fold {fold}"
    stage, model = str(event.get("stage") or now.stage), str(event.get("model") or now.model)
    symbol = str(event.get("symbol") or "")
    same = (symbol, model, named) == (now.symbol, now.model, now.fold)
    now = now if same else replace(now, epoch=0, epochs=0, loss=None)
    return replace(now, stage=stage, symbol=symbol, model=model, fold=named)


def _over(now: Progress, event: Mapping[str, Any]) -> Progress:
    return replace(now, said="", share=1.0, eta_s=0.0)


_FOLDS = {
    "stage_started": _started,
    "line": _said,
    "epoch": _epoch,
    "fit_done": _done,
    "flip_done": _done,
    "run_done": _over,
}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
