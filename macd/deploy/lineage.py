"""Where what is live came from: the chain from the service back to the data it was trained on.

Pure: from what the host recorded, and from the gate reports in the operator's journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.heads import headline_of
from macd.host.flag.flag_file import LIVE, SHADOW

if TYPE_CHECKING:
    from macd.deploy.state import HostState
    from macd.host.record import Record

OWN_LACKS = (
    "its predictions (golden), whether it computes features as in training, drift: an application "
    "of the team's own does not say them"
)


def time_shown(epoch: float) -> str:
    """A moment in UTC, to the second."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%SZ}"


def since(state: HostState) -> str | None:
    """When the live release was committed last; None where the host never committed it."""
    times = [entry["at"] for entry in state.history if entry["release"] == state.live]
    return time_shown(times[-1]) if times else None


def signer(state: HostState) -> str | None:
    """The identity whose signature this host asks of every release; None where it asks of none."""
    try:
        identity = json.loads(state.accepts or "{}").get("identity")
    except (ValueError, AttributeError):
        return None
    return identity if isinstance(identity, str) and identity else None


def judged(records: Sequence[Record], host: str, release: str | None) -> Record | None:
    """The record of the newest gate report made here about this release on this host."""
    about = (host, release)
    for record in reversed(records):
        fields = record.fields
        if record.kind == "gate.judged" and (fields.get("host"), fields.get("release")) == about:
            return record
    return None


def lineage(state: HostState, gate: Record | None) -> dict[str, Any]:
    """The chain from what serves back to the data it was learnt from, as recorded on the host.

    gate: the newest report about it, which only the operator's journal knows (`judged`).
    """
    entries = [entry for entry in state.history if entry["release"] == state.live]
    last = entries[-1] if entries else {}
    details = state.details
    chain = {
        "live": state.live,
        "brought by": last.get("who"),
        "at": time_shown(last["at"]) if last else None,
        "how": last.get("kind"),
        "serial": last.get("serial"),
        "signed as": signer(state),
        "gate": _gate(gate) if gate else None,
    }
    chain |= {"run": details.get("run"), "trained on": details.get("host")}
    if "own" in details:
        of_own = ("symbol", "tf", "code", "metrics", "criteria", "accepted")
        chain |= {name: details.get(name) for name in of_own}
        return chain | {"flags": own_flag(state), "not known": OWN_LACKS}
    several = details.get("symbols")
    if isinstance(several, dict):
        of_all = ("tf", "profile", "data_digest", "code", "accepted")
        chain |= {name: details.get(name) for name in of_all}
        chain |= {"symbols": {name: of_symbol(own) for name, own in several.items()}}
        return chain | _decides(state)
    names = ("symbol", "tf", "cross", "panel", "profile", "data_digest", "code", "best_head")
    chain |= {name: details.get(name) for name in names}
    chain |= {name: details.get(name) for name in ("metrics", "criteria", "accepted", "audit")}
    return chain | _decides(state)


def _decides(state: HostState) -> dict[str, Any]:
    flags = state.health.get("flags") or f"not known: {state.unhealthy or 'the service says none'}"
    return {"flags": flags, "stacking": state.exposure or state.taken_back or "in shadow"}


def of_symbol(own: Mapping[str, Any]) -> dict[str, Any]:
    """One symbol of a release of several: what decides and how good it was, and what was missed."""
    metrics = own.get("metrics") or {}
    model = headline_of(metrics)
    head = (own.get("best_head") or {}).get(model)
    missed = [criterion for criterion in own.get("criteria") or () if not criterion["ok"]]
    return {
        "decides": model,
        "head": head,
        "figures": metrics[model].get(head) if model else None,
        "missed": missed,
        "data_digest": own.get("data_digest"),
        "audit": own.get("audit"),
    }


def own_flag(state: HostState) -> str:
    """Whether the models of an application of the team's own decide, by its flag."""
    said = state.stacking
    if not said:
        return "none: app.flag is not set, so nothing here can switch its models on or off"
    words = {LIVE: "its models decide", SHADOW: "in shadow", None: "not known: no process says"}
    text = f"{said.get('name')}: {words.get(said['running'], 'neither of its values')}"
    if said["next"] != said["running"]:
        text += f"; from the next start on: {words.get(said['next'], 'neither of its values')}"
    return text


def _gate(record: Record) -> str:
    fields = record.fields
    return f"{fields.get('verdict')} on {record.time:%Y-%m-%d %H:%M}Z, {fields.get('report')}"
