"""Which host trains, and what the journal records of a training: its start and its end, each once.

Apart from request.py, so that train.status loads none of the market code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.errors import UsageError
from macd.host.durable import sha256_of
from macd.inventory import Host, Inventory
from macd.journal import Journal
from macd.run_directory import FILES

if TYPE_CHECKING:
    from macd.jobs.request import Request

STARTED, FINISHED = "train.started", "train.finished"
SCHEDULED, UNSCHEDULED = "train.scheduled", "train.unscheduled"
_SUMMARY = (
    *("data_digest", "best_head", "auc", "criteria", "blocked_by", "seconds", "complete"),
    *("own", "metrics"),  # of an application of the team's own
)


def train_host(inventory: Inventory, name: str = "") -> Host:
    """The training host of that name; without a name the head of train.hosts, or the only one.

    Raises UsageError listing the hosts to choose from.
    """
    training = [host for host in inventory.hosts.values() if host.role == "train"]
    names = ", ".join(host.name for host in training) or "none"
    if name:
        host = inventory.host(name)
        if host.role == "train":
            return host
        raise UsageError(
            f"{name} is no training host, its role is {host.role}",
            why=f"hosts with role train in inventory {inventory.name}: {names}",
            hint=f"invoke train --host {training[0].name}"
            if training
            else "a host with role: train, in the inventory",
        )
    if inventory.train.hosts:
        return inventory.host(inventory.train.hosts[0])
    if len(training) == 1:
        return training[0]
    raise UsageError(
        "which host should train?",
        why=f"hosts with role train in inventory {inventory.name}: {names}",
        hint=f"invoke train --host {training[0].name if training else 'NAME'}",
    )


def started(journal: Journal, request: Request, host: str, *, now: datetime) -> None:
    """Record that a run was started from here."""
    raw = json.dumps(request.raw, sort_keys=True).encode()
    fields = {
        "run": request.run,
        "host": host,
        **request.recorded,
        "tree": request.tree.digest,
        "request_sha256": hashlib.sha256(raw).hexdigest(),
    }
    _once(journal, STARTED, fields, now=now)


def finished(
    journal: Journal, status: Mapping[str, Any], host: str, folder: Path, *, now: datetime
) -> None:
    """Record how a run ended, whoever started it."""
    path = folder / FILES.result
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
    """The host a run was started on from here, or collected from; "" if it was neither."""
    trained = (r for r in journal.records() if r.kind in (STARTED, FINISHED))
    hosts = [str(r.fields.get("host", "")) for r in trained if _is_of(r.fields, run)]
    return hosts[-1] if hosts else ""


def scheduled(journal: Journal) -> dict[str, str]:
    """host -> when it trains by itself, as far as that was set or taken away from here."""
    times: dict[str, str] = {}
    for record in journal.records():
        host = str(record.fields.get("host", ""))
        if record.kind == SCHEDULED:
            times[host] = str(record.fields.get("on", ""))
        elif record.kind == UNSCHEDULED:
            times.pop(host, None)
    return times


def newer(journal: Journal, run: str, app: str) -> list[dict[str, str]]:
    """Runs started from here after `run` that brought nothing to release, oldest first.

    Each has run, state (RUNNING where no end of it is recorded here) and reason. app: the name of
    the application that they train; "" is the built-in one.
    """
    runs: dict[str, dict[str, str]] = {}
    for record in journal.records():
        name, fields = str(record.fields.get("run", "")), record.fields
        if record.kind == STARTED and name > run and (fields.get("own") or "") == app:
            runs[name] = {"run": name, "state": "RUNNING", "reason": ""}
        elif record.kind == FINISHED and name in runs:
            state, reason = str(fields.get("state", "")), str(fields.get("reason", ""))
            if state == "DONE" and not fields.get("complete", True):
                reason = "of one stage alone"
            runs[name] |= {"state": state, "reason": reason}
    return [one for _, one in sorted(runs.items()) if one["state"] != "DONE" or one["reason"]]


def _once(journal: Journal, kind: str, fields: dict[str, Any], *, now: datetime) -> None:
    earlier = (r for r in journal.records() if r.kind == kind)
    if not any(_is_of(record.fields, fields["run"]) for record in earlier):
        journal.append(kind, fields, now=now)


def _is_of(fields: Mapping[str, Any], run: str) -> bool:
    return fields.get("run") == run and bool(run)
