"""The guard: runs on the host, by itself, after stacking was enabled; takes it back on FAIL.

It judges all bars since the flip, at every look, by bounds that hold however often one looks. The
standard library and macd/host alone: macd-host.pyz carries this file and what it imports.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.host import durable, flagfile, flags, ledger, telling, watching
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, save
from macd.host.observing import DEPLOY_LOCK
from macd.host.record import recorder
from macd.shadow import gate, reading
from macd.shadow.analyse import Analysis, Window
from macd.shadow.gate import Decision, Findings, Rule

BUSY, OFF = "busy", "off"
_AGAIN_S = 30.0
_SEVERE_NAMED = 5


def step(layout: Layout, now: datetime) -> str:
    """Look once. Returns the order's state after it, "busy" to try again soon, or "off".

    Raises HostError or OSError when stacking could not be disabled; to be called again.
    """
    record = recorder(layout)
    if _is_taken(layout) or flags.recover(layout, record) == "running":
        return BUSY
    order = watching.order_of(layout)
    if order is None or order["state"] != watching.WATCHING:
        return OFF
    live = live_release(layout)
    if live != order["release"] or flagfile.in_file(layout) != flagfile.LIVE:
        gone = f"{order['release']} with stacking is not live any more"
        return _over(layout, order, "ended", gone, now)
    decision, document = judge(layout, order, now)
    save(watching.report_path(layout, now), document)
    rates = {one.name: [one.successes, one.trials] for one in decision.criteria}
    record("guard.judged", {"release": live, "verdict": decision.verdict, "rates": rates})
    if decision.verdict == gate.FAIL:
        return _take_back(layout, order, decision, now)
    if now.timestamp() >= order["until"]:
        return _over(layout, order, "over", f"the last verdict is {decision.verdict}", now)
    watching.keep(layout, {**order, "next": now.timestamp() + order["every_s"]})
    return str(order["state"])


def _is_taken(layout: Layout) -> bool:
    """Whether somebody is at work here; an activation goes on when its client's lock is gone."""
    held = ledger.holder_of(layout, DEPLOY_LOCK) is not None
    return held or ledger.read_pending(layout) is not None


def judge(layout: Layout, order: dict[str, Any], now: datetime) -> tuple[Decision, dict[str, Any]]:
    """What the lines since the flip say, and the report of it."""
    start, end = round(order["since"] * 1000), round(now.timestamp() * 1000)
    found = Analysis(Window(start, end, order["release"]))
    first = f"trades_{datetime.fromtimestamp(order['since'], UTC):%Y%m%d}.jsonl"
    live = Path(layout.live)
    sources = [one for one in reading.ordered(live) if one.name >= first] if live.is_dir() else []
    reading.analyse(sources, found, workers=1)
    severe = tuple(one["example"] for one in found.severe.document()[:_SEVERE_NAMED])
    decision = gate.decide(Findings(found.tally(), severe), Rule(**order["rule"]))
    document = {
        "kind": "guard-report",
        "release": order["release"],
        "made": now.isoformat(),
        "window": {"from_ms": start, "to_ms": end},
        "rule": order["rule"],
        **gate.document(decision),
        "bars": len(found.bars) + found.junk,
        "findings": found.document(),
    }
    return decision, document


def _take_back(layout: Layout, order: dict[str, Any], decision: Decision, now: datetime) -> str:
    reason = "; ".join(decision.reasons)[:2000]
    told = flags.set_flag(layout.app, flagfile.SHADOW, "guard", order["service"], order["health_s"])
    if told["wrong"]:
        reason += f"; in shadow the service is not well: {told['wrong']}"
    state = _over(layout, order, watching.FAILED, reason, now)
    _tell(layout, order, reason, now)  # last: stacking is off and on record, whatever this does
    return state


def _tell(layout: Layout, order: dict[str, Any], reason: str, now: datetime) -> None:
    host = socket.gethostname()
    outcome = telling.tell(
        layout,
        {
            "text": f"macd: the guard disabled stacking on {host}: {reason}",
            "event": f"guard.{watching.FAILED}",
            "host": host,
            "app": layout.app,
            "release": order["release"],
            "reason": reason,
            "at": now.isoformat(),
        },
    )
    if outcome:
        recorder(layout)("guard.notified", {"release": order["release"], "outcome": outcome})


def _over(layout: Layout, order: dict[str, Any], state: str, reason: str, now: datetime) -> str:
    fields: dict[str, object] = {"release": order["release"], "reason": reason}
    recorder(layout)(f"guard.{state}", fields)
    watching.keep(
        layout, {**order, "state": state, "reason": reason, "ended": now.timestamp(), "next": None}
    )
    watching.release_timer(layout, order)
    return state


def main() -> int:
    """One look; with --loop all of them, where no timer wakes us. Exit 1: it did not work."""
    parser = argparse.ArgumentParser(prog="macd-host guard", description=__doc__)
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--loop", action="store_true", help="stay until the watch is over")
    arguments = parser.parse_args(sys.argv[2:])
    layout = Layout(durable.expand(arguments.app))
    os.umask(0o022)
    if not arguments.loop:
        return _look(layout)
    try:
        with ledger.locked(layout, watching.GUARD_LOCK, {"who": "guard", "doing": "watching"}):
            while (order := watching.order_of(layout)) and order["state"] == watching.WATCHING:
                time.sleep(max(0.2, min(_AGAIN_S, order["next"] - time.time())))
                if time.time() >= order["next"]:
                    _look(layout)
    except HostError as error:
        _say(str(error))  # another loop is at work, and sees the new order
    return 0


def _look(layout: Layout) -> int:
    try:
        state = step(layout, datetime.now(UTC))
        for _ in range(20):
            if state != BUSY:
                break
            time.sleep(_AGAIN_S / 20)
            state = step(layout, datetime.now(UTC))
    except (HostError, OSError) as error:
        _say(f"{error}: {getattr(error, 'why', '')}")
        return 1
    _say(state)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"macd guard: {text}\n")
    sys.stdout.flush()
