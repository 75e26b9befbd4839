"""The guard: it runs on the host, by itself, while stacking decides, and disables stacking on FAIL.

An unprivileged process judges the logs (judge/judging.py). Each try is recorded before it begins.
After TRIES tries in a row without a judgement the guard disables stacking too: it can't see
what stacking does. It needs the standard library and macd/host alone; macd-host.pyz carries it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.host import durable, record
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import flag, flag_file, guard_config
from macd.host.flag.guard_config import FAILED, FAILING, TRIES
from macd.host.judge import gate, judging
from macd.host.judge.judging import CannotJudgeError, Judgement
from macd.host.layout import Layout, live_release, load, save
from macd.host.systemd.supervisor import Supervisor

WHO = "guard"
BUSY, OFF, TROUBLE = "busy", "off", "trouble"
_AGAIN_S = 30.0
_WEBHOOK = "notify.json"  # its URL; provision writes it
_WEBHOOK_S = 10.0
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
    if watch.get("tries", 0) >= TRIES:
        return _give_up(layout, watch, now)
    watch, is_counted = _count_try(layout, watch)
    try:
        judged, why = judging.judge(Path(layout.live), watch, now), ""
    except CannotJudgeError as error:
        judged, why = None, str(error)
    if guard_config.read_watch(layout) != watch:
        return BUSY  # another watch was started meanwhile
    if judged is None:
        return _unjudged(layout, watch, why, now, is_counted=is_counted)
    return _judged(layout, {**watch, **guard_config.NO_TRIES}, judged, now)


def _judged(layout: Layout, watch: dict[str, Any], judged: Judgement, now: datetime) -> str:
    fields = {"release": watch["release"], "verdict": judged.verdict, "rates": judged.rates}
    with contextlib.suppress(HostError, OSError):  # a full disk must not keep stacking on
        save(guard_config.report_path(layout, now), judged.document)
        guard_config.prune(layout, watch)
        record.recorder(layout)("guard.judged", fields)
    if judged.verdict == gate.FAIL:
        return _fail(layout, watch, "; ".join(judged.reasons), now)
    if now.timestamp() >= watch["until"]:
        reason = f"the last verdict is {judged.verdict}"
        if judged.verdict != gate.PASS:
            reason = "; ".join((reason, *judged.reasons))[:2000]
        return _over(layout, watch, "over", reason, now, notify=judged.verdict != gate.PASS)
    guard_config.write_watch(layout, {**watch, "next": now.timestamp() + watch["every_s"]})
    return str(watch["state"])


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
        judged = judging.judge(Path(layout.live), watch, now)
        if judged.verdict == gate.FAIL:
            return "; ".join(judged.reasons)[:2000]
    return "why could not be put on record" if disabled else ""


def _decides(layout: Layout, watch: dict[str, Any]) -> bool:
    """Whether stacking decides, or would from the next start on; True where nobody can tell.

    A 0 in .env is no proof. The running process has what it was started with. Where none runs,
    something beside .env may set the flag for the next one.
    """
    service = watch["service"]
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
    host = socket.gethostname()
    outcome = post(
        layout,
        {
            "text": f"macd: {_ENDS[watch['state']]} on {host}: {watch['reason']}",
            "event": f"guard.{watch['state']}",
            "host": host,
            "app": layout.app,
            "release": watch["release"],
            "reason": watch["reason"],
            "at": datetime.fromtimestamp(watch["ended"], UTC).isoformat(),
        },
    )
    if outcome:
        with contextlib.suppress(HostError, OSError):
            fields = {"release": watch["release"], "outcome": outcome}
            record.recorder(layout)("guard.notified", fields)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message, and what the address knows, to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def post(layout: Layout, message: dict[str, Any]) -> str:
    """Send `message` as JSON to this host's webhook; it never raises.

    The address is in state/notify.json, which only root (or the login) may read. It usually holds a
    token, so no record, message or argument names it.

    Returns:
        "sent", what went wrong, or "" where no webhook is set.
    """
    try:
        url = (load(layout.state(_WEBHOOK), None) or {}).get("url")
        if not url:
            return ""
        if not url.startswith(("https://", "http://")):
            return "not sent: no web address"
        request = urllib.request.Request(  # noqa: S310 - web addresses only, see above
            url,
            data=json.dumps(message).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "macd-guard"},
            method="POST",
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_WEBHOOK_S):
            return "sent"
    except urllib.error.HTTPError as error:
        return "the address answered %d" % error.code
    except urllib.error.URLError as error:
        return "the address was not reached: %s" % type(error.reason).__name__
    except Exception as error:  # whatever it is, its text may hold the address
        return "not sent: %s" % type(error).__name__


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
