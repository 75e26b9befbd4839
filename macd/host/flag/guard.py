"""The guard: runs on the host, by itself, after stacking was enabled; takes it back on FAIL.

A process without rights judges the logs (judge/judging.py). Each look counts before it begins.
After TRIES looks in a row without a judgement stacking is taken back too: a guard that can't see
is no guard. The standard library and macd/host alone: macd-host.pyz carries this and its imports.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.host import durable, record
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import flag, flag_file, guard_config, webhook
from macd.host.judge import gate, judging
from macd.host.judge.judging import CannotJudgeError, Judgement
from macd.host.layout import Layout, live_release, save
from macd.host.systemd.supervisor import Supervisor

WHO = "guard"
TRIES = guard_config.TRIES
BUSY, OFF, TROUBLE = "busy", "off", "trouble"
_AGAIN_S = 30.0
_ENDS = {
    guard_config.FAILING: "stacking is not safe and still on",
    guard_config.FAILED: "the guard disabled stacking",
    "over": "the guard's watch is over, stacking stays",
    "ended": "the guard's watch ended",
}


def step(layout: Layout, now: datetime) -> str:
    """Look once. Returns the order's state after it, "busy" to try again soon, or "off".

    Raises HostError or OSError when stacking could not be disabled; to be called again.
    """
    if _is_taken(layout):
        return BUSY
    # What can't be ended now (flags nobody understands) keeps no look from being had.
    with contextlib.suppress(HostError, OSError):
        if flag.recover(layout, record.recorder(layout)) == "running":
            return BUSY
    order = guard_config.order_of(layout)
    if order is None:
        return OFF
    if not guard_config.in_force(order):
        _clear_up(layout, order)
        return OFF
    if order["state"] == guard_config.FAILING:  # killed, or kept from it, while it took back
        return _take_back(layout, order, now)
    return _watch(layout, order, now)


def _watch(layout: Layout, order: dict[str, Any], now: datetime) -> str:
    is_live = live_release(layout) == order["release"]
    if not is_live or not _decides(layout, order):
        ours = _disabled_here(layout, order, now) if is_live else ""
        if ours:
            return _over(layout, order, guard_config.FAILED, ours, now)
        gone = f"{order['release']} with stacking is not live any more"
        return _over(layout, order, "ended", gone, now)
    if order.get("tries", 0) >= TRIES:
        return _give_up(layout, order, now)
    order, is_counted = _counted(layout, order)
    try:
        judged, why = judging.judge(Path(layout.live), order, now), ""
    except CannotJudgeError as error:
        judged, why = None, str(error)
    if guard_config.order_of(layout) != order:
        return BUSY  # another watch was ordered meanwhile
    if judged is None:
        return _unjudged(layout, order, why, now, is_counted=is_counted)
    return _judged(layout, {**order, **guard_config.NO_TRIES}, judged, now)


def _judged(layout: Layout, order: dict[str, Any], judged: Judgement, now: datetime) -> str:
    fields = {"release": order["release"], "verdict": judged.verdict, "rates": judged.rates}
    with contextlib.suppress(HostError, OSError):  # on a full disk stacking is taken back as well
        save(guard_config.report_path(layout, now), judged.document)
        guard_config.prune(layout, order)
        record.recorder(layout)("guard.judged", fields)
    if judged.verdict == gate.FAIL:
        return _fail(layout, order, "; ".join(judged.reasons), now)
    if now.timestamp() >= order["until"]:
        said = f"the last verdict is {judged.verdict}"
        if judged.verdict != gate.PASS:
            said = "; ".join((said, *judged.reasons))[:2000]
        return _over(layout, order, "over", said, now, tell=judged.verdict != gate.PASS)
    guard_config.keep(layout, {**order, "next": now.timestamp() + order["every_s"]})
    return str(order["state"])


def _fail(layout: Layout, order: dict[str, Any], reason: str, now: datetime) -> str:
    ended = {"reason": reason[:2000], "ended": now.timestamp(), "next": now.timestamp()}
    failing = {**order, "state": guard_config.FAILING, **ended}
    with contextlib.suppress(OSError):
        guard_config.keep(layout, failing)  # whatever kills us from here on, it stays failed
    return _take_back(layout, failing, now)


def _counted(layout: Layout, order: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The order with one more try, on record before the try: a kill leaves it counted.

    False where the disk takes nothing: the logs are judged all the same.
    """
    why = guard_config.why_not_judged(order)
    if order.get("open"):
        _record_unjudged(layout, order, why)
    counted = {**order, "tries": order.get("tries", 0) + 1, "open": True, "why": why}
    try:
        guard_config.keep(layout, counted)
    except OSError:
        return order, False
    return counted, True


def _unjudged(
    layout: Layout, order: dict[str, Any], why: str, now: datetime, *, is_counted: bool
) -> str:
    """One look more without a judgement: the last one, or to be had again soon (HostError)."""
    order = {**order, "open": False, "why": why}
    with contextlib.suppress(OSError):
        guard_config.keep(layout, order)
    _record_unjudged(layout, order, why)
    if order.get("tries", 0) >= TRIES or not is_counted:  # never again without a count
        return _give_up(layout, order, now)
    raise HostError(f"the guard could not judge, {order['tries']} of {TRIES}", why=why)


def _record_unjudged(layout: Layout, order: dict[str, Any], why: str) -> None:
    said = {"release": order["release"], "tries": order.get("tries", 0), "of": TRIES, "why": why}
    with contextlib.suppress(HostError, OSError):
        record.recorder(layout)("guard.unjudged", said)


def _give_up(layout: Layout, order: dict[str, Any], now: datetime) -> str:
    tries, why = order.get("tries", 0), guard_config.why_not_judged(order)
    reason = f"the guard could not judge {tries} times in a row; the last time: {why}"
    if tries < TRIES:
        reason = f"the guard could neither judge ({why}) nor put that on record"
    return _fail(layout, order, reason, now)


def _disabled_here(layout: Layout, order: dict[str, Any], now: datetime) -> str:
    """Why the guard took stacking back, where the order could not be told so; "" if it was not us.

    A full disk may have taken neither the order's end nor the journal's record of the flag.
    """
    last = record.newest(layout, "flag.set", since=order["since"])
    disabled = last is not None and last["wanted"] == flag_file.SHADOW
    if last is not None and disabled and last["who"] != WHO:
        return ""
    with contextlib.suppress(CannotJudgeError):
        judged = judging.judge(Path(layout.live), order, now)
        if judged.verdict == gate.FAIL:
            return "; ".join(judged.reasons)[:2000]
    return "why could not be put on record" if disabled else ""


def _decides(layout: Layout, order: dict[str, Any]) -> bool:
    """Whether stacking decides, or would from the next start on; nobody knows: yes.

    A 0 in .env is no proof: the process that runs has what it was started with, and where none
    runs something beside .env may set the flag for the next one.
    """
    service = order["service"]
    supervisor = Supervisor(service["scope"])
    try:
        if flag_file.in_file(layout) in (flag_file.LIVE, ""):
            return True
        process = supervisor.show(service["unit"])
        if not process.pid:
            return bool(flag_file.beside(layout, supervisor, service["unit"]))
    except (HostError, OSError):
        return True
    running = flag_file.of_process(process, service["endpoint"])
    return running is None or running.get(flag_file.FLAG) == flag_file.LIVE


def _is_taken(layout: Layout) -> bool:
    """Whether somebody is at work here; an activation goes on when its client's lock is gone."""
    held = locks.holder_of(layout, locks.DEPLOY) is not None
    return held or ledger.read_pending(layout) is not None


def _take_back(layout: Layout, order: dict[str, Any], now: datetime) -> str:
    service, health_s = order["service"], order["health_s"]
    try:
        outcome = flag.set_flag(layout.app, flag_file.SHADOW, WHO, service, health_s)
    except (HostError, OSError) as error:
        if _is_taken(layout):
            return BUSY
        trouble = f"stacking could not be disabled: {error}"
        if order.get("trouble") != trouble:
            with contextlib.suppress(OSError):
                guard_config.keep(layout, {**order, "trouble": trouble})
            said = f"FAIL, but {trouble}; it is tried again. {order['reason']}"
            _tell(layout, {**order, "reason": said})
        raise
    reason = order["reason"]
    if outcome["wrong"]:
        reason += f"; in shadow the service is not well: {outcome['wrong']}"
    if outcome["lost"]:
        reason += f"; {outcome['lost']}"
    flipped = outcome["outcome"] == "set"
    return _over(layout, order, guard_config.FAILED, reason, now, at_once=flipped)


def _over(
    layout: Layout,
    order: dict[str, Any],
    state: str,
    reason: str,
    now: datetime,
    *,
    tell: bool = True,
    at_once: bool = False,
) -> str:
    """at_once: people are told even where the disk takes no word of it, and again once it does."""
    fields: dict[str, object] = {"release": order["release"], "reason": reason}
    with contextlib.suppress(HostError, OSError):
        record.recorder(layout)(f"guard.{state}", fields)
    over = {"state": state, "reason": reason, "ended": now.timestamp(), "next": None}
    order = {**order, **over, "untold": tell}
    try:
        guard_config.keep(layout, order)
    except OSError:
        if at_once:
            _tell(layout, order)
        raise
    _clear_up(layout, order)
    return state


def _clear_up(layout: Layout, order: dict[str, Any]) -> None:
    """What is left to do behind the end of a watch; done later where a kill cut it short."""
    if order.get("untold"):
        _tell(layout, order)  # stacking is off and on record, whatever this does
        told = {**order, "untold": False}
        if guard_config.order_of(layout) == order:
            guard_config.keep(layout, told)
        order = told
    if not guard_config.in_force(guard_config.order_of(layout)):
        guard_config.release_timer(order)


def _tell(layout: Layout, order: dict[str, Any]) -> None:
    host = socket.gethostname()
    outcome = webhook.tell(
        layout,
        {
            "text": f"macd: {_ENDS[order['state']]} on {host}: {order['reason']}",
            "event": f"guard.{order['state']}",
            "host": host,
            "app": layout.app,
            "release": order["release"],
            "reason": order["reason"],
            "at": datetime.fromtimestamp(order["ended"], UTC).isoformat(),
        },
    )
    if outcome:
        with contextlib.suppress(HostError, OSError):
            said = {"release": order["release"], "outcome": outcome}
            record.recorder(layout)("guard.notified", said)


def main() -> int:
    """One look; with --loop all of them, where no timer wakes us. Exit 1: look again soon."""
    parser = argparse.ArgumentParser(prog="macd-host guard", description=__doc__)
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--loop", action="store_true", help="stay until the watch is over")
    arguments = parser.parse_args(sys.argv[2:])
    layout = Layout(durable.expand(arguments.app))
    os.umask(0o022)
    if not arguments.loop:
        return int(_look(layout) in (BUSY, TROUBLE))
    try:
        with locks.locked(layout, guard_config.GUARD_LOCK, {"who": "guard", "doing": "watching"}):
            while (order := guard_config.order_of(layout)) and guard_config.in_force(order):
                time.sleep(max(0.2, min(_AGAIN_S, order["next"] - time.time())))
                if time.time() >= order["next"] and _look(layout) == TROUBLE:
                    time.sleep(_AGAIN_S)
    except HostError as error:
        _say(str(error))  # another loop is at work, and sees the new order
    return 0


def _look(layout: Layout) -> str:
    """The state after it, "busy" if somebody was at work all the time, or "trouble"."""
    try:
        state = step(layout, datetime.now(UTC))
        for _ in range(20):
            if state != BUSY:
                break
            time.sleep(_AGAIN_S / 20)
            state = step(layout, datetime.now(UTC))
    except (HostError, OSError) as error:
        _say(f"{error}: {getattr(error, 'why', '')}")
        return TROUBLE
    _say(state)
    return state


def _say(text: str) -> None:
    sys.stdout.write(f"macd guard: {text}\n")
    sys.stdout.flush()
