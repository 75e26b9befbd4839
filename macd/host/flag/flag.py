"""Set the stacking flag for the running process, not only for a file; or leave things as they were.

The change is recorded before anything is touched. Whatever kills this process, the next call, the
next deploy or the boot unit ends the change. Shadow is the safe side. So an interrupted enabling is
reverted, and an interrupted disabling is finished. Disabling is never undone: a service that is
unhealthy without stacking is reported and does not get stacking back. A disk that takes no record
of a disabling does not keep stacking on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from datetime import UTC, datetime
from typing import Any

from macd.host import durable
from macd.host.deploy import locks
from macd.host.deploy.health import Prover, UnhealthyError
from macd.host.deploy.ledger import refuse_if_pending
from macd.host.failure import HostError
from macd.host.flag import evidence, flag_file, guard_config
from macd.host.flag.flag_file import (
    FLAG,
    LIVE,
    PENDING,
    SHADOW,
    Change,
    FlagLog,
    Record,
    in_file,
    interrupted,
    of_process,
    refuse_unreadable,
    write,
)
from macd.host.layout import Layout, live_release
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
) -> dict[str, Any]:
    """Set it to "1" (needs a signed PASS about what is live) or "0", and prove it.

    Stacking that runs without a guard (a hand edit and a restart, a killed guard) is not "already"
    on. It needs the evidence and gets the watch, but a healthy process is not restarted.

    Args:
        service: unit, sockets, scope, endpoint.
        guard: every_s, for_s and rule of the watch that begins before stacking is enabled; None
            for no watch.

    Returns:
        outcome ("set", "already" or "reverted"), release, value, pid, wrong (why it does not serve
        well, "" if it does), reason, and unrecorded (why the return to shadow is not on record
        here, "" if it is).

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
        end(layout, record)
        change = _begin(layout, wanted, who, service, health_s)
        process = Supervisor(change.scope).show(change.unit)
        is_set = _is_set(layout, change, process)
        if is_set and (
            wanted == SHADOW or guard_config.guard_of(layout, change.release) == "watches"
        ):
            return _answer("already", change, process, "")
        if wanted == LIVE:
            refuse_unreadable(layout)
            if is_set and not report:
                raise _unwatched(change)
            document = evidence.check(
                layout, report, signature, identity, change.release, now=datetime.now(UTC)
            )
            guard_config.refuse_older(layout, document)
            change = dataclasses.replace(change, report=hashlib.sha256(report).hexdigest())
        log = FlagLog(layout, record, strict=wanted == LIVE)
        log.store(change)
        if wanted == LIVE and guard is not None:
            _start_watch(layout, log, change, service, guard)
        log.record("flag.begun", _fields(change))
        sha256 = _manifest(layout, change, wanted)
        prover = Prover(Supervisor(change.scope), change.unit, change.endpoint)
        if is_set and not prover.asked(change.release, sha256, process)[0]:
            return _proved(log, change, process, "")
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
    if change.wanted == SHADOW:
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
    return Change(
        wanted=wanted,
        was=SHADOW if wanted == LIVE else in_file(layout),  # a reverted enabling ends in shadow
        release=live,
        unit=service["unit"],
        sockets=list(service["sockets"]),
        scope=service["scope"],
        endpoint=service["endpoint"],
        health_s=health_s,
        who=who,
        started=time.time(),
    )


def _is_set(layout: Layout, change: Change, process: Process) -> bool:
    running = of_process(process, change.endpoint)
    return (
        in_file(layout) == change.wanted
        and running is not None
        and running.get(FLAG, SHADOW) == change.wanted
    )


def _start_watch(
    layout: Layout, log: FlagLog, change: Change, service: dict[str, Any], guard: dict[str, Any]
) -> None:
    try:
        guard_config.start_watch(layout, change.release, service, change.health_s, guard)
    except (HostError, OSError):
        log.forget()  # the flag was not touched
        raise


def _carry_out(
    layout: Layout, log: FlagLog, change: Change, *, booting: bool = False
) -> dict[str, Any]:
    process, wrong = None, ""
    try:
        write(layout, change.wanted)
        if not booting:
            if change.wanted == SHADOW:
                _refuse_beside(layout, log, change)
            process, wrong = _restarted(layout, change, change.wanted)
    except (_NotProvedError, HostError, OSError) as error:
        if change.wanted == LIVE:
            return _revert(layout, log, change, _message(error))
        if not isinstance(error, _NotProvedError):
            raise  # still on record: the next call finishes it
        wrong = _message(error)
        _refuse_live(change, wrong)
    if wrong and change.wanted == LIVE:
        return _revert(layout, log, change, wrong)
    return _proved(log, change, process, wrong)


def _refuse_beside(layout: Layout, log: FlagLog, change: Change) -> None:
    """Raises HostError: after a restart the flag would be set again, whatever .env says.

    The change is forgotten, so that no deploy and no rollback has to wait for it.
    """
    beside = flag_file.beside(layout, Supervisor(change.scope), change.unit)
    if beside:
        log.forget()
        raise HostError(
            "stacking still decides: something beside .env sets it",
            why=f"{beside[0]} sets {FLAG}=1 and wins over .env, which says 0 now",
            live=f"{change.release} with stacking",
            hint="take it out there, then: invoke disable-stacking",
        )


def _refuse_live(change: Change, wrong: str) -> None:
    """Raises HostError: the running process still has it. The next call finishes the change."""
    running = of_process(Supervisor(change.scope).show(change.unit), change.endpoint)
    if running is not None and running.get(FLAG, SHADOW) == LIVE:
        raise HostError(
            "stacking still decides: the service was not started again",
            why=wrong,
            live=f"{change.release} with stacking; .env says {FLAG}=0",
            hint="invoke disable-stacking tries it again",
        )


def _proved(log: FlagLog, change: Change, process: Process | None, wrong: str) -> dict[str, Any]:
    change = dataclasses.replace(change, state="proved")
    log.store(change)
    return _finish(log, change, process, wrong)


def _finish(log: FlagLog, change: Change, process: Process | None, wrong: str) -> dict[str, Any]:
    pid = process.pid if process else None
    log.record("flag.set", {**_fields(change), "pid": pid, "wrong": wrong})
    log.forget()
    return _answer("set", change, process, wrong, log.unrecorded)


def _revert(
    layout: Layout, log: FlagLog, change: Change, reason: str, *, booting: bool = False
) -> dict[str, Any]:
    """Back to the value before, in the file and in the process: always shadow."""
    log = log.best_effort()
    change = dataclasses.replace(change, state="reverting", reason=reason[:2000])
    log.store(change)  # where that fails, the older record is reverted too
    before = dataclasses.replace(change, wanted=change.was)
    process: Process | None = Supervisor(change.scope).show(change.unit)
    wrong = ""
    touched = process is None or not _is_set(layout, before, process)
    write(layout, change.was)
    if booting:
        process, wrong = None, "systemd starts it next"
    elif touched:
        try:
            process, wrong = _restarted(layout, change, change.was)
        except _NotProvedError as error:
            process, wrong = None, _message(error)
    log.record("flag.reverted", {**_fields(change), "reason": change.reason, "wrong": wrong})
    log.forget()
    return _answer("reverted", change, process, wrong, log.unrecorded)


def _restarted(layout: Layout, change: Change, value: str) -> tuple[Process, str]:
    """A NEW process that runs with the flag at `value`, and why it is unhealthy ("" if it isn't).

    Raises:
        _NotProvedError: there was none in health_s, or it crashes.
    """
    supervisor = Supervisor(change.scope)
    prover = Prover(supervisor, change.unit, change.endpoint)

    def has_the_flag(process: Process) -> bool:
        running = of_process(process, change.endpoint)
        return running is not None and running.get(FLAG, SHADOW) == value

    try:
        process = prover.restart(
            change.release,
            _manifest(layout, change, value),
            change.sockets,
            change.health_s,
            runs_as_asked=has_the_flag,
        )
        return process, ""
    except UnhealthyError as error:
        proved = error.process
        if proved is not None and supervisor.show(change.unit).is_same_life(proved):
            return proved, error.wrong
        wrong = f"no running process has {FLAG}={value}: {error.wrong or error}"
        raise _NotProvedError(wrong) from error


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
    return {"flag": FLAG, **{name: getattr(change, name) for name in names}}


def _answer(
    outcome: str, change: Change, process: Process | None, wrong: str, unrecorded: str = ""
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "release": change.release,
        "value": change.was if outcome == "reverted" else change.wanted,
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
