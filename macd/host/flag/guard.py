"""The guard: it runs on the host, by itself, while stacking decides, and disables stacking on FAIL.

An unprivileged process judges the logs (judge/judging.py). Each try is recorded before it begins.
After TRIES tries in a row without a judgement the guard disables stacking too: it can't see
what stacking does. Where the watch has steps, the guard raises stacking's weight to the next one
after each watch without FAIL, and a new watch begins. It needs the standard library and macd/host
alone; macd-host.pyz carries it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.host import durable, own, record
from macd.host.alerts import webhook
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import flag, flag_file, guard_config
from macd.host.flag.guard_config import FAILED, FAILING, TRIES
from macd.host.judge import by_symbol, gate, judging
from macd.host.judge.judging import CannotJudgeError, Judgement
from macd.host.layout import Layout, live_release, save
from macd.host.own import Flag
from macd.host.rpc.logs import logs_of
from macd.host.store import releases

WHO = "guard"
BUSY, OFF, TROUBLE = "busy", "off", "trouble"
_AGAIN_S = 30.0
_UNSENT = "untold"  # the key of a watch whose end is still to be sent to the webhook
_ENDS = {
    FAILING: "stacking is not safe and still on",
    FAILED: "the guard disabled stacking",
    "over": "the guard's watch is over, stacking stays",
    "ended": "the guard's watch ended",
}


def step(layout: Layout, now: datetime) -> str:
    """Judge once. Returns the watch's state afterwards, "busy" to try again soon, or "off".

    Raises HostError or OSError when stacking could not be disabled; call it again.
    """
    if _is_locked(layout):
        return BUSY
    # A flag change that can't be ended now (an .env nobody understands) must not stop the judging.
    with contextlib.suppress(HostError, OSError):
        if flag.recover(layout, record.recorder(layout)) == "running":
            return BUSY
    watch = guard_config.read_watch(layout)
    if watch is None:
        return OFF
    if not guard_config.is_active(watch):
        _clear_up(layout, watch)
        return OFF
    if watch["state"] == FAILING:  # it was killed, or kept from it, while it disabled stacking
        return _disable(layout, watch, now)
    return _check(layout, watch, now)


def _check(layout: Layout, watch: dict[str, Any], now: datetime) -> str:
    is_live = live_release(layout) == watch["release"]
    if not is_live or not _decides(layout, watch):
        ours = _disabled_here(layout, watch, now) if is_live else ""
        if ours:
            return _over(layout, watch, FAILED, ours, now)
        gone = f"{watch['release']} with stacking is not live any more"
        return _over(layout, watch, "ended", gone, now)
    _report_raises(layout, watch)
    watch = guard_config.read_watch(layout) or watch
    if watch.get("tries", 0) >= TRIES:
        return _give_up(layout, watch, now)
    watch, is_counted = _count_try(layout, watch)
    try:
        judged, why = _judge(layout, watch, now), ""
    except CannotJudgeError as error:
        judged, why = None, str(error)
    if guard_config.read_watch(layout) != watch:
        return BUSY  # another watch was started meanwhile
    if judged is None:
        return _unjudged(layout, watch, why, now, is_counted=is_counted)
    return _judged(layout, {**watch, **guard_config.NO_TRIES}, judged, now)


def _judge(layout: Layout, watch: dict[str, Any], now: datetime) -> Judgement:
    """What the logs say, with what the release says of itself; drift is not judged without.

    Raises CannotJudgeError.
    """
    with contextlib.suppress(HostError):
        watch = {**watch, "details": releases.read_manifest(layout, watch["release"]).details}
    try:
        application = own.read(layout)
        if not application.name:
            served = by_symbol.served(durable.text(layout.service_settings))
            watch = {**watch, "symbols": served}
            return judging.judge(Path(layout.live), watch, now)
        files = logs_of(layout)
        ran = ledger.others_ran(layout, watch["release"])
    except (HostError, OSError, ValueError, LookupError, TypeError) as error:
        raise CannotJudgeError(f"which logs it writes is not known: {error}") from error
    signals = application.signals
    return judging.judge(
        files, {**watch, "own": signals and asdict(signals), "others_ran": ran}, now
    )


def _judged(layout: Layout, watch: dict[str, Any], judged: Judgement, now: datetime) -> str:
    fields = {"release": watch["release"], "verdict": judged.verdict, "rates": judged.rates}
    with contextlib.suppress(HostError, OSError):  # a full disk must not keep stacking on
        save(guard_config.report_path(layout, now), judged.document)
        guard_config.prune(layout, watch)
        record.recorder(layout)("guard.judged", fields)
    if judged.verdict == gate.FAIL:
        return _fail(layout, watch, "; ".join(judged.reasons), now)
    steps = guard_config.steps_after(watch, guard_config.weight_of_watch(watch))
    if now.timestamp() >= watch["until"] and steps:
        if lacks := _lacks(watch, judged):
            return _wait(layout, watch, lacks, now)
        return _raise(layout, watch, steps[0], judged, now)
    if now.timestamp() >= watch["until"]:
        reason = f"the last verdict is {judged.verdict}"
        if judged.verdict != gate.PASS:
            reason = "; ".join((reason, *judged.reasons))[:2000]
        return _over(layout, watch, "over", reason, now, notify=judged.verdict != gate.PASS)
    guard_config.write_watch(layout, {**watch, "next": now.timestamp() + watch["every_s"]})
    return str(watch["state"])


def _lacks(watch: dict[str, Any], judged: Judgement) -> str:
    """What evidence lacks for the next weight, though nothing failed; "" for nothing.

    No data raises nothing. That a bound is not reached yet (INCONCLUSIVE) is no lack.
    """
    bars, least = judged.rates["ml_coverage"][1], max(1, watch["rule"]["min_bars"])
    if bars < least:
        return f"{bars} of at least {least} bars were judged"
    for symbol, (count, is_stale) in judged.symbols.items():
        if count < least:
            return f"{count} of at least {least} bars of {symbol} were judged"
        if is_stale:
            return f"{symbol} is {judging.STALE}"
    if judging.STALE in judged.reasons:
        return judging.STALE
    empty = [name for name, (_, trials) in judged.rates.items() if not trials]
    return f"nothing to judge: {', '.join(gate.TITLES.get(n, n) for n in empty)}" if empty else ""


def _raise(
    layout: Layout, watch: dict[str, Any], weight: int, judged: Judgement, now: datetime
) -> str:
    """Raise stacking to `weight`; what can't be proved is reported, and no other raise follows."""
    if watch.get("raises", 0) >= TRIES:
        return _stays(layout, watch, weight, f"it was cut short {TRIES} times", now)
    guard_config.write_watch(layout, watch)  # this judgement has ended the count of tries
    try:
        answer = flag.raise_weight(layout, watch, weight, judged.verdict, judged.rates, WHO)
    except HostError as error:  # nothing was touched
        if _is_locked(layout) or guard_config.read_watch(layout) != watch:
            return BUSY
        return _wait(layout, watch, ": ".join(filter(None, (str(error), error.why))), now)
    watch = guard_config.read_watch(layout) or watch
    if answer["outcome"] == "set":
        _report_raises(layout, watch)
        return str(watch["state"])
    if answer["value"] == flag_file.LIVE:
        return _stays(layout, watch, weight, answer["reason"], now)
    reason = f"{weight} % did not work: {answer['reason']}"
    if answer["wrong"]:
        reason += f"; in shadow the service is unhealthy: {answer['wrong']}"
    return _over(layout, watch, FAILED, reason[:2000], now)


def _wait(layout: Layout, watch: dict[str, Any], why: str, now: datetime) -> str:
    """The watch goes on at its weight; the next judgement tries the step again."""
    waits = {"waits": why[:2000], "next": now.timestamp() + watch["every_s"]}
    guard_config.write_watch(layout, {**watch, **waits})
    return str(watch["state"])


def _stays(layout: Layout, watch: dict[str, Any], weight: int, why: str, now: datetime) -> str:
    share = guard_config.weight_of_watch(watch)
    reason = f"stacking stays at {share} %; the step to {weight} % was not made: {why}"
    return _over(layout, {**watch, "steps": []}, "over", reason[:2000], now)


def _report_raises(layout: Layout, watch: dict[str, Any]) -> None:
    """Record and notify each raise that was made; done later where a kill cut it short."""
    unreported = [step for step in watch.get("raised", ()) if not step["told"]]
    if not unreported or flag.is_pending(layout):
        return
    for step in unreported:
        text = f"stacking counts for {step['to']} % now, before {step['from']} %"
        reason = f"{step['verdict']} at {step['from']} %"
        fields = {"release": watch["release"], "weight": step["to"], "was_weight": step["from"]}
        with contextlib.suppress(HostError, OSError):
            more = {"verdict": step["verdict"], "rates": step["rates"], "until": watch["until"]}
            record.recorder(layout)("guard.raised", {**fields, **more})
        _send(layout, "raised", text, watch["release"], reason, step["at"])
    reported = [{**step, "told": True} for step in watch["raised"]]
    if guard_config.read_watch(layout) == watch:
        guard_config.write_watch(layout, {**watch, "raised": reported})


def _fail(layout: Layout, watch: dict[str, Any], reason: str, now: datetime) -> str:
    ended = {"reason": reason[:2000], "ended": now.timestamp(), "next": now.timestamp()}
    failing = {**watch, "state": FAILING, **ended}
    with contextlib.suppress(OSError):
        guard_config.write_watch(layout, failing)  # a kill from here on changes nothing: it failed
    return _disable(layout, failing, now)


def _count_try(layout: Layout, watch: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The watch with one more try, recorded before the try: a kill leaves it counted.

    False where the disk takes nothing; the logs are judged all the same.
    """
    why = guard_config.why_not_judged(watch)
    if watch.get("open"):
        _record_unjudged(layout, watch, why)
    counted = {**watch, "tries": watch.get("tries", 0) + 1, "open": True, "why": why}
    try:
        guard_config.write_watch(layout, counted)
    except OSError:
        return watch, False
    return counted, True


def _unjudged(
    layout: Layout, watch: dict[str, Any], why: str, now: datetime, *, is_counted: bool
) -> str:
    """One more try without a judgement: the last one, or to be repeated soon (HostError)."""
    watch = {**watch, "open": False, "why": why}
    with contextlib.suppress(OSError):
        guard_config.write_watch(layout, watch)
    _record_unjudged(layout, watch, why)
    if watch.get("tries", 0) >= TRIES or not is_counted:  # uncounted tries might never end
        return _give_up(layout, watch, now)
    raise HostError(f"the guard could not judge, {watch['tries']} of {TRIES}", why=why)


def _record_unjudged(layout: Layout, watch: dict[str, Any], why: str) -> None:
    fields = {"release": watch["release"], "tries": watch.get("tries", 0), "of": TRIES, "why": why}
    with contextlib.suppress(HostError, OSError):
        record.recorder(layout)("guard.unjudged", fields)


def _give_up(layout: Layout, watch: dict[str, Any], now: datetime) -> str:
    tries, why = watch.get("tries", 0), guard_config.why_not_judged(watch)
    reason = f"the guard could not judge {tries} times in a row; the last time: {why}"
    if tries < TRIES:
        reason = f"the guard could neither judge ({why}) nor put that on record"
    return _fail(layout, watch, reason, now)


def _disabled_here(layout: Layout, watch: dict[str, Any], now: datetime) -> str:
    """Why the guard disabled stacking without recording it in the watch; "" if it was not us.

    A full disk may have taken neither the watch's end nor the journal's record of the flag.
    """
    last = record.newest(layout, "flag.set", since=watch["since"])
    disabled = last is not None and last["wanted"] == flag_file.SHADOW
    if last is not None and disabled and last["who"] != WHO:
        return ""
    with contextlib.suppress(CannotJudgeError):
        judged = _judge(layout, watch, now)
        if judged.verdict == gate.FAIL:
            return "; ".join(judged.reasons)[:2000]
    return "why could not be put on record" if disabled else ""


def is_needed(layout: Layout) -> bool:
    """Whether the guard still has to see to what is live; a watch ends at its next look only."""
    watch = guard_config.read_watch(layout)
    if watch is None or not guard_config.is_active(watch):
        return False
    if watch["state"] == FAILING:
        return True
    return live_release(layout) == watch["release"] and _decides(layout, watch)


def _decides(layout: Layout, watch: dict[str, Any]) -> bool:
    """Whether stacking decides, or would from the next start on; True where nobody can tell.

    A 0 in .env is no proof. The running process has what it was started with. Where none runs,
    something beside .env may set the flag for the next one.
    """
    service = watch["service"]
    known = service.get("flag")
    flag = Flag(**known) if known else flag_file.BUILT_IN
    switch = flag_file.switch_of(layout, service, flag)
    try:
        if switch.upcoming in (flag_file.LIVE, ""):
            return True
        processes = switch.processes(service["endpoint"])
        if any(not process.pid for process, _ in processes) and switch.beside():
            return True
    except (HostError, OSError):
        return True
    each = [switch.of_process(*one) for one in processes if one[0].pid]
    return any(one is None or one.get(flag_file.FLAG) == flag_file.LIVE for one in each)


def _is_locked(layout: Layout) -> bool:
    """Whether a command or an activation changes this host; an activation outlives its client."""
    held = locks.holder_of(layout, locks.DEPLOY) is not None
    return held or ledger.read_pending(layout) is not None


def _disable(layout: Layout, watch: dict[str, Any], now: datetime) -> str:
    service, health_s = watch["service"], watch["health_s"]
    try:
        answer = flag.set_flag(layout.app, flag_file.SHADOW, WHO, service, health_s)
    except (HostError, OSError) as error:
        if _is_locked(layout):
            return BUSY
        trouble = f"stacking could not be disabled: {error}"
        if watch.get("trouble") != trouble:
            with contextlib.suppress(OSError):
                guard_config.write_watch(layout, {**watch, "trouble": trouble})
            reason = f"FAIL, but {trouble}; it is tried again. {watch['reason']}"
            _notify(layout, {**watch, "reason": reason})
        raise
    reason = watch["reason"]
    if answer["wrong"]:
        reason += f"; in shadow the service is unhealthy: {answer['wrong']}"
    if answer["unrecorded"]:
        reason += f"; {answer['unrecorded']}"
    return _over(layout, watch, FAILED, reason, now, at_once=answer["outcome"] == "set")


def _over(
    layout: Layout,
    watch: dict[str, Any],
    state: str,
    reason: str,
    now: datetime,
    *,
    notify: bool = True,
    at_once: bool = False,
) -> str:
    """at_once: call the webhook even where the disk takes no record, and again once it does."""
    fields: dict[str, object] = {"release": watch["release"], "reason": reason}
    with contextlib.suppress(HostError, OSError):
        record.recorder(layout)(f"guard.{state}", fields)
    over = {"state": state, "reason": reason, "ended": now.timestamp(), "next": None}
    watch = {**watch, **over, _UNSENT: notify}
    try:
        guard_config.write_watch(layout, watch)
    except OSError:
        if at_once:
            _notify(layout, watch)
        raise
    _clear_up(layout, watch)
    return state


def _clear_up(layout: Layout, watch: dict[str, Any]) -> None:
    """What is left to do after the end of a watch; done later where a kill cut it short."""
    if watch.get(_UNSENT):
        _notify(layout, watch)  # stacking is off and on record, whatever this does
        sent = {**watch, _UNSENT: False}
        if guard_config.read_watch(layout) == watch:
            guard_config.write_watch(layout, sent)
        watch = sent
    if not guard_config.is_active(guard_config.read_watch(layout)):
        guard_config.disable_timer(watch)


def _notify(layout: Layout, watch: dict[str, Any]) -> None:
    text, state = _ENDS[watch["state"]], watch["state"]
    _send(layout, state, text, watch["release"], watch["reason"], watch["ended"])


def _send(layout: Layout, event: str, text: str, release: str, reason: str, at: float) -> None:
    """Notify people by the webhook, and record how that went."""
    host = socket.gethostname()
    outcome = webhook.post(
        layout,
        {
            "text": f"macd: {text} on {host}: {reason}",
            "event": f"guard.{event}",
            "host": host,
            "app": layout.app,
            "release": release,
            "reason": reason,
            "at": datetime.fromtimestamp(at, UTC).isoformat(),
        },
    ).outcome
    if outcome:
        with contextlib.suppress(HostError, OSError):
            record.recorder(layout)("guard.notified", {"release": release, "outcome": outcome})


def main() -> int:
    """Judge once; with --loop until the watch is over (no timer wakes us). Exit 1: again soon."""
    parser = argparse.ArgumentParser(prog="macd-host guard", description=__doc__)
    parser.add_argument("--app", required=True, help="application directory")
    parser.add_argument("--loop", action="store_true", help="stay until the watch is over")
    arguments = parser.parse_args(sys.argv[2:])
    layout = Layout(durable.expand(arguments.app))
    os.umask(0o022)
    if not arguments.loop:
        return int(_run(layout) in (BUSY, TROUBLE))
    try:
        with locks.locked(layout, guard_config.GUARD_LOCK, {"who": "guard", "doing": "watching"}):
            while (watch := guard_config.read_watch(layout)) and guard_config.is_active(watch):
                time.sleep(max(0.2, min(_AGAIN_S, watch["next"] - time.time())))
                if time.time() >= watch["next"] and _run(layout) == TROUBLE:
                    time.sleep(_AGAIN_S)
    except HostError as error:
        _print(str(error))  # another loop runs, and sees the new watch
    return 0


def _run(layout: Layout) -> str:
    """The state after a step, "busy" if the host was locked all the time, or "trouble"."""
    try:
        state = step(layout, datetime.now(UTC))
        for _ in range(20):
            if state != BUSY:
                break
            time.sleep(_AGAIN_S / 20)
            state = step(layout, datetime.now(UTC))
    except (HostError, OSError) as error:
        _print(f"{error}: {getattr(error, 'why', '')}")
        return TROUBLE
    _print(state)
    return state


def _print(text: str) -> None:
    sys.stdout.write(f"macd guard: {text}\n")
    sys.stdout.flush()
