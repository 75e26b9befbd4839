"""Report what a training does while it does it: one JSON line per event, one line for people.

Every process of a run appends to the same file. A line goes out in one write to a descriptor
opened with O_APPEND, so lines of several workers never mix, and a reader that keeps a byte offset
can go on where it stopped. Fields: `t` (UTC seconds), `event`, `stage`, and where they apply
`model`, `fold`, `epoch`, `epochs`, `loss`, `auc` (per head), `progress` (0..1), `eta_s`, `seconds`;
of a run of several symbols `symbol`, but for what is about all of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd.sizes import minutes

Clock = Callable[[], float]  # seconds since the epoch, UTC


@dataclass(frozen=True)
class Events:
    """Where events go. Picklable, so that worker processes report to the same file.

    `path` None keeps quiet on disk; `echo` also writes the human line to standard output.
    """

    path: Path | None
    clock: Clock
    echo: bool = True
    context: dict[str, Any] = field(default_factory=dict)

    def emit(self, event: str, **fields: Any) -> None:
        record = {"t": round(self.clock(), 3), "event": event, **self.context, **fields}
        record = {name: _plain(value) for name, value in record.items() if value is not None}
        # Not on another host; Path.is_dir raises where it may not look.
        if self.path is not None and os.path.isdir(self.path.parent):  # noqa: PTH112
            append_line(self.path, json.dumps(record, ensure_ascii=False, default=str))
        if self.echo:
            text = human_line(record)
            if text or event == "summary":
                sys.stdout.write(text + "\n")
                sys.stdout.flush()

    def within(self, **context: Any) -> Events:
        """The same stream with more fields on every event."""
        return Events(self.path, self.clock, self.echo, {**self.context, **context})


def append_line(path: Path, text: str) -> None:
    """Append one line in a single write; raises OSError when the disk takes only a part of it."""
    data = (text + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(f"short write to {path}: is the disk full?")
    finally:
        os.close(descriptor)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All whole lines of an event file; a last line without its end is left for later."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def human_line(record: dict[str, Any]) -> str:
    """The line a person reads for an event; "" for events that are only for machines."""
    line_of = _LINES.get(str(record.get("event")))
    text = line_of(record) if line_of else ""
    if "symbol" not in record or not text:
        return text
    plain = text.lstrip(" ")
    return f"{text[: len(text) - len(plain)]}{record['symbol']}  {plain}"


def _fit_name(record: dict[str, Any]) -> str:
    fold = record.get("fold", "")
    return (
        f"{str(record.get('model', '')).upper():<8} {fold if fold == 'final' else f'fold {fold}'}"
    )


def _heads(record: dict[str, Any]) -> str:
    values = record.get("auc") or {}
    return "  ".join(f"{head} {value:.3f}" for head, value in values.items() if value is not None)


def _progress(record: dict[str, Any]) -> str:
    parts = []
    if "progress" in record:
        parts.append(f"{100 * record['progress']:.0f} %")
    if "eta_s" in record:
        parts.append(f"ETA {minutes(record['eta_s'])}")
    return "  (" + ", ".join(parts) + ")" if parts else ""


def _epoch_line(record: dict[str, Any]) -> str:
    loss = f"  loss {record['loss']:.4f}" if "loss" in record else ""
    return f"  {_fit_name(record)}  epoch {record.get('epoch')}/{record.get('epochs')}{loss}"


def _fit_line(record: dict[str, Any]) -> str:
    how = "cached" if record.get("cached") else f"{record.get('seconds', 0):.1f} s"
    scores = _heads(record)
    return f"  {_fit_name(record)}  {how}{'  AUC ' + scores if scores else ''}{_progress(record)}"


_LINES: dict[str, Callable[[dict[str, Any]], str]] = {
    "stage_started": lambda r: f"[{r.get('stage')}] {r.get('note', '')}".rstrip(),
    "stage_done": lambda r: f"[{r.get('stage')}] done in {r.get('seconds', 0):.1f} s",
    "epoch": _epoch_line,
    "fit_done": _fit_line,
    "head_fixed": lambda r: f"  best head on validation: {r.get('head')}",
    "oom": lambda r: f"  ! {_fit_name(r)}: out of memory, batch now {r.get('batch')}",
    "resumed": lambda r: f"  {_fit_name(r)} goes on after epoch {r.get('epoch')}",
    "checkpoint-ignored": lambda r: f"  ! {_fit_name(r)}: checkpoint not used, {r.get('why')}",
    "summary": lambda r: f"{r.get('note', '')}",
    "note": lambda r: f"  {r.get('note', '')}",
    "warning": lambda r: f"  ! {r.get('note', '')}",
    "run_failed": lambda r: f"✗ {r.get('stage', 'run')} failed: {r.get('what', '')}",
}


def _plain(value: Any) -> Any:
    """JSON knows no NaN; a missing number is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "item"):
        return _plain(value.item())
    return value
