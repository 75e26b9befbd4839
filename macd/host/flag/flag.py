"""Set the stacking flag for the running process, not only for a file; or leave things as they were.

The change is recorded before anything is touched. Whatever kills this process, the next call, the
next deploy or the boot unit ends the change. Shadow is the safe side. So an interrupted enabling is
reverted, and an interrupted disabling is finished. Disabling is never undone: a service that is
unhealthy without stacking is reported and does not get stacking back. A disk that takes no record
of a disabling does not keep stacking on.

Stacking that decides may get another weight. A raise that fails goes back to the weight before,
where a guard watches that one, and to shadow where not even that can be proved. Lowering needs no
evidence while a guard watches, and is never undone: where it fails, stacking is disabled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, own
from macd.host.deploy import locks
from macd.host.deploy.health import Prover, UnhealthyError
from macd.host.deploy.ledger import refuse_if_pending
from macd.host.deploy.probe import prover_of
from macd.host.failure import HostError
from macd.host.flag import evidence, flag_file, guard_config
from macd.host.flag.flag_file import (
    FLAG,
    FULL,
    LIVE,
    PENDING,
    SHADOW,
    WEIGHT,
    Change,
    FlagLog,
    Record,
    Switch,
    first_weight,
    interrupted,
    refuse_unreadable,
    switch_of,
    weight_by_health,
    weight_of,
)
from macd.host.layout import Layout, live_release
from macd.host.own import Flag
from macd.host.record import recorder
from macd.host.store import releases
from macd.host.systemd.supervisor import Process, Supervisor


class _NotProvedError(Exception):
    """No new process was seen to run with the flag."""


def set_flag(
    app: str,
    wanted: str,
    who: str,
    service: dict[str, Any],
    health_s: float,
    report: bytes = b"",
    signature: bytes = b"",
    identity: str = "",
    guard: dict[str, Any] | None = None,
    weight: int | None = None,
) -> dict[str, Any]:
    """Set it to "1" (needs a signed PASS about what is live) or "0", and prove it.

    Stacking that runs without a guard (a hand edit and a restart, a killed guard) is not "already"
    on. It needs the evidence and gets the watch, but a healthy process is not restarted.

    Args:
        service: unit, sockets, scope, endpoint.
        guard: every_s, for_s, rule and steps of the watch that begins before stacking is enabled;
            None for no watch.
        weight: what stacking is to count for, in percent; None for the first of the guard's steps,
            which are all that follow, or 100.

    Returns:
        outcome ("set", "already" or "reverted"), release, value, weight (0 in shadow), pid, wrong
        (why it does not serve well, "" if it does), reason, and unrecorded (why the return to
        shadow is not on record here, "" if it is). With "set" also pids, of all instances. With
        "already" also ended: how the change ended that was interrupted before, as `end` has it.

    Raises:
        HostError ("refused"): nothing was touched.
    """
    layout = Layout(durable.expand(app))
    if wanted not in (LIVE, SHADOW):
        raise HostError(f"{FLAG} can't be {wanted!r}", kind="refused")
    if not os.path.isdir(layout.state()):
        raise HostError(
            "this host is not provisioned",
            live="nothing; nothing was changed",
            hint="invoke provision",
            kind="refused",
        )
    os.umask(0o022)
    record = recorder(layout)
    doing = "enable-stacking" if wanted == LIVE else "disable-stacking"
    with locks.locked(layout, locks.DEPLOY, {"who": who, "doing": doing}):
        refuse_if_pending(layout)
        ended = end(layout, record)
        change = _begin(layout, wanted, who, service, health_s)
        _refuse_weights(change, weight, guard)
        process = _process(layout, change)
        if wanted == LIVE:
            guard = guard and {**guard, "steps": guard.get("steps", []) if weight is None else []}
            change = _weighted(layout, change, weight, guard)
        else:
            change = dataclasses.replace(change, was_weight=max(_weights(layout, change)))
        is_set = _is_set(layout, change)
        anew = bool(report) and _has_other_steps(layout, change, guard)
        if is_set and (wanted == SHADOW or (_is_watched(layout, change) and not anew)):
            _tidy(layout, change, requested=weight)
            return {**_answer("already", change, process, ""), "ended": ended}
        evidenced = wanted == LIVE and not change.lowers
        if wanted == LIVE:
            refuse_unreadable(layout)
        if evidenced:
            if is_set and not report:
                raise _unwatched(change)
            document = evidence.check(
                layout, report, signature, identity, change.release, now=datetime.now(UTC)
            )
            guard_config.refuse_older(layout, document)
            change = dataclasses.replace(change, report=hashlib.sha256(report).hexdigest())
        log = FlagLog(layout, record, strict=wanted == LIVE)
        log.store(change)
        if evidenced and guard is not None:
            _start_watch(layout, log, change, service, guard)
        log.record("flag.begun", _fields(change))
        sha256 = _manifest(layout, change, wanted)
        prover = _prover(layout, change)
        if is_set and not prover.asked(change.release, sha256, process)[0]:
            return _proved(log, change, process, "")
        return _carry_out(layout, log, change)


def raise_weight(
    layout: Layout,
    watch: dict[str, Any],
    weight: int,
    verdict: str,
    rates: dict[str, list[int]],
    who: str,
) -> dict[str, Any]:
    """Give stacking the next weight of its guard's watch; that watch is the evidence.

    Its next one is stored before the flag is touched. Where the weight can't be proved, both are
    again what they were. Each try is counted in the watch first: a kill leaves it counted.

    Args:
        verdict: of the watch, never FAIL; rates: what was counted.

    Returns:
        As `set_flag`; the outcome is never "already".

    Raises:
        HostError ("refused"): nothing was touched; `watch` is not the watch any more, say.
        OSError: the disk takes no record; nothing was touched.
    """
    service, record = watch["service"], recorder(layout)
    with locks.locked(layout, locks.DEPLOY, {"who": who, "doing": "enable-stacking"}):
        refuse_if_pending(layout)
        end(layout, record)
        change = _begin(layout, LIVE, who, service, watch["health_s"])
        change = _weighted(layout, change, weight, None)
        if guard_config.read_watch(layout) != watch or change.was != LIVE:
            raise HostError(
                "stacking is not what the guard watched any more",
                live=f"{change.release}, flags as before",
                kind="refused",
            )
        refuse_unreadable(layout)
        tried = {**watch, "raises": watch.get("raises", 0) + 1}
        guard_config.write_watch(layout, tried)
        change = dataclasses.replace(change, watch=tried)
        log = FlagLog(layout, record, strict=True)
        log.store(change)
        try:
            upcoming = guard_config.next_watch(tried, weight, verdict, rates, time.time())
            guard_config.write_watch(layout, upcoming)
            log.record("flag.begun", _fields(change))
        except (HostError, OSError) as error:
            return _revert(layout, log, change, _message(error))
        return _carry_out(layout, log, change)


def end(layout: Layout, record: Record, *, booting: bool = False) -> str:
    """End a change that was interrupted; the caller holds the deploy lock.

    booting: systemd starts the service after us, so only the file is changed.

    Returns:
        "set", "reverted", or "nothing" when none is pending.
    """
    change = interrupted(layout)
    if change is None:
        return "nothing"
    log = FlagLog(layout, record, strict=change.wanted == LIVE and change.state == "proved")
    if change.state == "proved":
        return str(_finish(log, change, None, "")["outcome"])
    if change.lowers and change.state == "begun":
        return str(_carry_out(layout, log, change, booting=booting)["outcome"])
    reason = change.reason or f"it was interrupted while {change.state}"
    return str(_revert(layout, log, change, reason, booting=booting)["outcome"])


def is_pending(layout: Layout) -> bool:
    return os.path.exists(layout.state(PENDING))


def recover(layout: Layout, record: Record, *, booting: bool = False) -> str:
    """`end` for a caller without the lock; "running" when somebody else holds it."""
    if not is_pending(layout):
        return "nothing"
    try:
        with locks.locked(layout, locks.DEPLOY, {"who": "recovery", "doing": "stacking flag"}):
            return end(layout, record, booting=booting)
    except HostError as error:
        if error.kind != "refused":
            raise
        return "running"


def _begin(
    layout: Layout, wanted: str, who: str, service: dict[str, Any], health_s: float
) -> Change:
    live = live_release(layout)
    if live is None:
        raise HostError("no release is live on this host", hint="invoke deploy", kind="refused")
    known = service.get("flag")  # a guard's watch knows which it is about
    switch = switch_of(layout, service, Flag(**known) if known else None)
    return Change(
        wanted=wanted,
        was=SHADOW if wanted == LIVE else switch.upcoming,  # a reverted enabling ends in shadow
        release=live,
        unit=service["unit"],
        sockets=list(service["sockets"]),
        scope=service["scope"],
        endpoint=service["endpoint"],
        health_s=health_s,
        who=who,
        started=time.time(),
        flag=None if switch.has_weights else dataclasses.asdict(switch.flag),
    )


def _refuse_weights(change: Change, weight: int | None, guard: dict[str, Any] | None) -> None:
    """Raises HostError ("refused"): how much stacking counts for is the built-in one's alone."""
    asked = "a weight" if weight not in (None, FULL) else ""
    asked = asked or ("guard.steps" if (guard or {}).get("steps") and weight is None else "")
    if change.flag is None or not asked:
        return
    raise HostError(
        f"{asked} can't be given to an application of one's own",
        why="macd knows only its flag; what its models count for is decided in its own code",
        live=f"{change.release}, flags as before",
        hint="leave out --weight and guard.steps: the flag is on or off",
        kind="refused",
    )


def _weighted(
    layout: Layout,
    change: Change,
    weight: int | None,
    guard: dict[str, Any] | None,
) -> Change:
    """The enabling with its weight, and what a change that fails goes back to.

    Raises:
        HostError ("refused"): the weight is none, or the release that runs knows no weights.
    """
    running, upcoming = _weights(layout, change)
    watch = guard_config.read_watch(layout)
    is_guarded = guard_config.guard_of(layout, change.release) != "none"
    covered = guard_config.weight_of_watch(watch) if is_guarded else 0
    aim = first_weight(weight, (guard or {}).get("steps", ()), running, upcoming, covered)
    if type(aim) is not int or not 0 < aim <= FULL:
        raise HostError(f"{WEIGHT} can't be {aim!r:.40}: 1 to 100", kind="refused")
    processes = change.switch(layout).processes(change.endpoint)
    if aim < FULL and all(weight_by_health(*one) is None for one in processes):
        raise HostError(
            f"stacking can't decide with {aim} %: the service does not say that it knows weights",
            why="its health answer names none, or none came; an earlier version decides with 100 %",
            live=f"{change.release}, flags as before",
            hint="invoke release and invoke deploy bring a version that does; or --weight 100",
            kind="refused",
        )
    change = dataclasses.replace(change, weight=aim)
    most = max(running, upcoming)
    if running and most > aim and _is_watched(layout, change):  # also from a weight set by hand
        return dataclasses.replace(change, was_weight=most, steps_stay=weight is None)
    before = dataclasses.replace(change, weight=running)
    if running != upcoming or not 0 < running <= aim or not _is_watched(layout, before):
        return change
    return dataclasses.replace(change, was=LIVE, was_weight=running, watch=watch)


def _weights(layout: Layout, change: Change) -> tuple[int, int]:
    """What stacking counts for in the processes at most, and at their next start; 0 where nobody
    knows.
    """
    switch = change.switch(layout)
    return max(_running(switch, change)), switch.upcoming_weight or 0


def _running(switch: Switch, change: Change) -> list[int]:
    """What stacking counts for in each process of the service; 0 where nobody knows."""
    each = switch.running(change.endpoint)
    return [0 if running is None else weight_of(running) or 0 for running in each]


def _process(layout: Layout, change: Change) -> Process:
    """The main one."""
    return change.switch(layout).processes(change.endpoint)[0][0]


def _decides_with(layout: Layout, change: Change) -> int:
    """The weight of all processes and of their next start; 0 where they differ."""
    switch = change.switch(layout)
    weights = {*_running(switch, change), switch.upcoming_weight or 0}
    return weights.pop() if len(weights) == 1 else 0


def _is_watched(layout: Layout, change: Change) -> bool:
    """Whether the guard's watch is about this release with this weight, or more."""
    covered = guard_config.weight_of_watch(guard_config.read_watch(layout))
    is_watched = guard_config.guard_of(layout, change.release) == "watches"
    return is_watched and change.weight <= covered


def _is_set(layout: Layout, change: Change) -> bool:
    if change.wanted == LIVE:
        return _decides_with(layout, change) == change.weight
    switch = change.switch(layout)
    all_are = all(switch.is_shadow(running) for running in switch.running(change.endpoint))
    return switch.upcoming == SHADOW and all_are


def _has_other_steps(layout: Layout, change: Change, guard: dict[str, Any] | None) -> bool:
    """Whether the guard is to raise the weight otherwise than the watch that is there."""
    wanted = guard_config.steps_after(guard, change.weight)
    there = guard_config.read_watch(layout)
    return bool(wanted) and wanted != guard_config.steps_after(there, change.weight)


def _tidy(layout: Layout, change: Change, *, requested: int | None) -> None:
    """What is left to do where nothing changes: a weight in shadow, steps after a requested one."""
    if change.wanted == SHADOW:
        with contextlib.suppress(OSError):  # it means nothing there
            change.switch(layout).write(SHADOW)
    elif requested is not None:
        guard_config.stay_at(layout, requested)


def _start_watch(
    layout: Layout, log: FlagLog, change: Change, service: dict[str, Any], guard: dict[str, Any]
) -> None:
    try:
        guard_config.start_watch(
            layout, change.release, service, change.health_s, guard, change.weight
        )
    except (HostError, OSError):
        log.forget()  # the flag was not touched
        raise


def _carry_out(
    layout: Layout, log: FlagLog, change: Change, *, booting: bool = False
) -> dict[str, Any]:
    process, wrong = None, ""
    try:
        if change.wanted == LIVE and change.lowers and not change.steps_stay:
            guard_config.stay_at(layout, change.weight)
        change.switch(layout).write(change.wanted, change.weight)
        if not booting:
            if change.wanted == SHADOW:
                _refuse_beside(layout, log, change)
            process, wrong = _restarted(layout, change)
    except (_NotProvedError, HostError, OSError) as error:
        if change.wanted == LIVE:
            return _revert(layout, log, change, _message(error))
        if not isinstance(error, _NotProvedError):
            raise  # still on record: the next call finishes it
        wrong = _message(error)
        _refuse_live(layout, change, wrong)
    if wrong and change.wanted == LIVE:
        return _revert(layout, log, change, wrong)
    return _proved(log, change, process, wrong)


def _refuse_beside(layout: Layout, log: FlagLog, change: Change) -> None:
    """Raises HostError: after a restart the flag would be set again, whatever .env says.

    The change is forgotten, so that no deploy and no rollback has to wait for it.
    """
    switch = change.switch(layout)
    if beside := switch.beside():
        log.forget()
        flag = switch.flag
        raise HostError(
            f"stacking still decides: something beside {flag.place} sets it",
            why=f"{beside[0]} sets {flag.name}={flag.live} and wins over {flag.place}, "
            f"which says {flag.shadow} now",
            live=f"{change.release} with stacking",
            hint="take it out there, then: invoke disable-stacking",
        )


def _refuse_live(layout: Layout, change: Change, wrong: str) -> None:
    """Raises HostError: the running process still has it. The next call finishes the change."""
    switch = change.switch(layout)
    each = switch.running(change.endpoint)
    if any(running is not None and running.get(FLAG, SHADOW) == LIVE for running in each):
        raise HostError(
            "stacking still decides: the service was not started again",
            why=wrong,
            live=f"{change.release} with stacking; "
            f"{switch.flag.place} says {switch.flag.name}={switch.flag.shadow}",
            hint="invoke disable-stacking tries it again",
        )


def _proved(log: FlagLog, change: Change, process: Process | None, wrong: str) -> dict[str, Any]:
    change = dataclasses.replace(change, state="proved")
    log.store(change)
    return _finish(log, change, process, wrong)


def _finish(log: FlagLog, change: Change, process: Process | None, wrong: str) -> dict[str, Any]:
    pid = process.pid if process else None
    pids = [one.pid for one, _ in change.switch(log.layout).processes(change.endpoint) if one.pid]
    log.record("flag.set", {**_fields(change), "pid": pid, "wrong": wrong})
    log.forget()
    return {**_answer("set", change, process, wrong, log.unrecorded), "pids": pids}


def _revert(
    layout: Layout, log: FlagLog, change: Change, reason: str, *, booting: bool = False
) -> dict[str, Any]:
    """Back to what was before, in the file and in the process: shadow, or the weight of a raise."""
    log = log.best_effort()
    change = dataclasses.replace(change, state="reverting", reason=reason[:2000])
    log.store(change)  # where that fails, the older record is reverted too
    before = dataclasses.replace(change, wanted=change.was, weight=change.was_weight)
    process: Process | None = _process(layout, change)
    wrong = ""
    touched = process is None or not _is_set(layout, before)
    try:
        before.switch(layout).write(before.wanted, before.weight)
        if touched and not booting:
            process, wrong = _restarted(layout, before)
    except (_NotProvedError, HostError, OSError) as error:
        if change.was == SHADOW and not isinstance(error, _NotProvedError):
            raise
        process, wrong = None, _message(error)
    if wrong and change.was == LIVE:
        why = f"{change.reason}; nor did {change.was_weight} % work again: {wrong}"
        shadow = dataclasses.replace(change, was=SHADOW)
        return _revert(layout, log, shadow, why, booting=booting)
    if booting:
        process, wrong = None, "systemd starts it next"
    if change.was == LIVE and change.watch is not None:
        with log.recording():
            _put_back(layout, change.watch)
    log.record("flag.reverted", {**_fields(change), "reason": change.reason, "wrong": wrong})
    log.forget()
    return _answer("reverted", change, process, wrong, log.unrecorded)


def _put_back(layout: Layout, watch: dict[str, Any]) -> None:
    """The watch that a raise replaced, where it did; what came of it since stays."""
    there = guard_config.read_watch(layout)
    if there is not None and there["since"] != watch["since"]:
        guard_config.write_watch(layout, watch)


def _restarted(layout: Layout, change: Change) -> tuple[Process, str]:
    """A NEW process that runs as `change` wants, and why it is unhealthy ("" if it isn't).

    Raises:
        _NotProvedError: there was none in health_s, or it crashes.
    """
    switch = change.switch(layout)
    prover = _prover(layout, change)

    def has_the_flag(process: Process, endpoint: str) -> bool:
        running = switch.of_process(process, endpoint)
        if change.wanted == SHADOW:
            return switch.is_shadow(running)
        if running is None or running.get(FLAG, SHADOW) != LIVE:
            return False
        said = change.weight == FULL or weight_by_health(process, endpoint) == change.weight
        return said and weight_of(running) == change.weight

    try:
        process = prover.restart(
            change.release,
            _manifest(layout, change, change.wanted),
            change.sockets,
            change.health_s,
            runs_as_asked=has_the_flag,
        )
        return process, ""
    except UnhealthyError as error:
        proved = error.process
        main, *others = switch.processes(change.endpoint)
        lives_on = proved is not None and main[0].is_same_life(proved)
        if proved is not None and lives_on and all(has_the_flag(*one) for one in others):
            return proved, error.wrong
        is_weighed = change.wanted == LIVE and switch.has_weights
        share = f" and decides with {change.weight} %" if is_weighed else ""
        value = switch.flag.live if change.wanted == LIVE else switch.flag.shadow
        wrong = f"no running process has {switch.flag.name}={value}{share}: {error.wrong or error}"
        raise _NotProvedError(wrong) from error


def _prover(layout: Layout, change: Change) -> Prover:
    supervisor = Supervisor(change.scope)
    service = flag_file.service_of(layout, supervisor, change.unit)
    if change.flag is not None:
        try:
            service = own.read(layout)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            # Nobody can say what proves that it serves; that the process has the flag, one can.
            service = own.Service("", {change.unit: own.Probe()})
    return prover_of(layout, service, supervisor, change.unit, change.endpoint)


def _manifest(layout: Layout, change: Change, value: str) -> str:
    """The live manifest's hash. For shadow "" where it can't be read: then nothing is healthy."""
    try:
        return releases.manifest_sha256(layout, change.release)
    except OSError:
        if value == LIVE:
            raise
        return ""


def _message(error: Exception) -> str:
    why = getattr(error, "why", "")
    return f"{error}: {why}" if why else str(error)


def _fields(change: Change) -> dict[str, object]:
    names = ("wanted", "was", "release", "who", "report")
    weights = {"weight": change.weight if change.wanted == LIVE else 0}
    weights["was_weight"] = change.was_weight
    flag = flag_file.from_document(change.flag) or flag_file.BUILT_IN
    own: dict[str, object] = {"flag": flag.name}
    if change.flag:
        own["said"] = {value: flag.said(value) for value in (change.wanted, change.was)}
        own["weighed"] = False  # its weight of 100 says nothing
    return {**own, **{name: getattr(change, name) for name in names}, **weights}


def _answer(
    outcome: str, change: Change, process: Process | None, wrong: str, unrecorded: str = ""
) -> dict[str, Any]:
    value, weight = change.wanted, change.weight
    if outcome == "reverted":
        value, weight = change.was, change.was_weight
    return {
        "outcome": outcome,
        "release": change.release,
        "value": value,
        "weight": weight if value == LIVE else 0,
        "pid": process.pid if process else None,
        "wrong": wrong,
        "reason": change.reason,
        "unrecorded": unrecorded,
    }


def _unwatched(change: Change) -> HostError:
    return HostError(
        "stacking decides here, but no guard watches it",
        why="it was set by hand, or the guard was ended, and no gate report was given",
        live=f"{change.release}, flags as before",
        hint="invoke shadow-gate, then invoke enable-stacking; or invoke disable-stacking",
        kind="refused",
    )
