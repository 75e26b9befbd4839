"""What the journal learns of a training: that it was started, and how it ended; each once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.host.durable import sha256_of
from macd.journal import Journal

if TYPE_CHECKING:
    from macd.jobs.order import Order

STARTED, FINISHED = "train.started", "train.finished"
_SUMMARY = ("data_digest", "best_head", "auc", "criteria", "blocked_by", "seconds", "complete")


def started(journal: Journal, order: Order, host: str, *, now: datetime) -> None:
    """Record that a run was started from here."""
    s = order.settings
    request = json.dumps(order.request, sort_keys=True).encode()
    fields = {
        "run": order.run,
        "host": host,
        "symbol": s.symbol,
        "cross": list(s.cross),
        "tf": s.tf,
        "profile": s.profile,
        "seed": s.seed,
        "tree": order.tree.digest,
        "request_sha256": hashlib.sha256(request).hexdigest(),
    }
    _once(journal, STARTED, fields, now=now)


def finished(
    journal: Journal, status: Mapping[str, Any], host: str, folder: Path, *, now: datetime
) -> None:
    """Record how a run ended, whoever started it."""
    path = folder / "result.json"
    result = json.loads(path.read_bytes()) if path.is_file() else {}
    fields = {
        "run": status["run"],
        "host": host,
        "state": status["state"],
        "reason": status["reason"],
        "result_sha256": sha256_of(path) if result else "",
        **{name: result[name] for name in _SUMMARY if name in result},
    }
    _once(journal, FINISHED, fields, now=now)


def host_of(journal: Journal, run: str) -> str:
    """The host a run was started on from here; "" if it was not."""
    hosts = [str(r.fields.get("host", "")) for r in journal.records() if _is_of(r.fields, run)]
    return hosts[-1] if hosts else ""


def _once(journal: Journal, kind: str, fields: dict[str, Any], *, now: datetime) -> None:
    known = (r for r in journal.records() if r.kind == kind)
    if not any(_is_of(record.fields, fields["run"]) for record in known):
        journal.append(kind, fields, now=now)


def _is_of(fields: Mapping[str, Any], run: str) -> bool:
    return fields.get("run") == run and bool(run)
