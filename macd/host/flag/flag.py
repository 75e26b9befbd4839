"""Set the stacking flag for the running process, not only for a file; or leave things as they were.

The change is on record before anything is touched. Whatever kills this, the next call, the next
deploy or the boot unit ends it: an interrupted enabling is taken back, an interrupted disabling is
finished, because shadow is the safe side. For the same reason disabling is never undone: a service
that is unwell without stacking is told of, and not given stacking back; and a disk that takes no
record of it does not keep stacking on.
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

    `service`: unit, sockets, scope, endpoint. `guard`: every_s, for_s and rule of the watch that
    begins before stacking is enabled; None: no watch. Answers outcome ("set", "already" or
    "reverted"), release, pid, wrong (why it does not serve well, "" if it does), reason, and lost
    (why the way to shadow is not on record here, "" if it is).

    Stacking that runs but that no guard watches (a hand edit and a restart, a killed guard) is not
    "already": it needs the evidence and gets the watch, but a well process is not restarted.

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
        so = _is_so(layout, change, process)
        if so and (wanted == SHADOW or guard_config.guard_of(layout, change.release) == "watches"):
            return answer("already", change, process, "")
        if wanted == LIVE:
            refuse_unreadable(layout)
            if so and not report:
                raise unwatched(change)
            claim = evidence.Claim(report, signature, identity)
            now = datetime.now(UTC)
            guard_config.refuse_older(
                layout, evidence.check(layout, claim, change.release, now=now)
            )
            change = dataclasses.replace(change, report=hashlib.sha256(report).hexdigest())
        log = FlagLog(layout, record, strict=wanted == LIVE)
        log.keep(change)
        if wanted == LIVE and guard is not None:
            _arm(layout, log, change, service, guard)
        log.record("flag.begun", named(change))
        sha256 = _manifest(layout, change, wanted)
        if so and not _wrong_with(change, sha256, process):
            return _proved(log, change, process, "")
        return _carry_out(layout, log, change)


def end(layout: Layout, record: Record, *, booting: bool = False) -> str:
    """End a change that was interrupted; the caller holds the deploy lock.

    `booting`: systemd starts the service after us, so only the file is put right. Returns "set",
    "reverted", or "nothing" when none is pending.
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
    return str(_put_back(layout, log, change, reason, booting=booting)["outcome"])


def is_pending(layout: Layout) -> bool:
    return os.path.exists(layout.state(PENDING))


def recover(layout: Layout, record: Record, *, booting: bool = False) -> str:
    """`end` for one who does not hold the lock; "running" when somebody is at work."""
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
        was=SHADOW if wanted == LIVE else in_file(layout),  # an enabling only goes back to shadow
        release=live,
        unit=service["unit"],
        sockets=list(service["sockets"]),
        scope=service["scope"],
        endpoint=service["endpoint"],
        health_s=health_s,
        who=who,
        started=time.time(),
    )


def _is_so(layout: Layout, change: Change, process: Process) -> bool:
    running = of_process(process, change.endpoint)
    return (
        in_file(layout) == change.wanted
        and running is not None
        and running.get(FLAG, SHADOW) == change.wanted
    )


def _arm(
    layout: Layout, log: FlagLog, change: Change, service: dict[str, Any], guard: dict[str, Any]
) -> None:
    try:
        guard_config.arm(layout, change.release, service, change.health_s, guard)
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
            return _put_back(layout, log, change, _words(error))
        if not isinstance(error, _NotProvedError):
            raise  # still on record: the next call goes on with it
        wrong = _words(error)
        _refuse_live(change, wrong)
    if wrong and change.wanted == LIVE:
        return _put_back(layout, log, change, wrong)
    return _proved(log, change, process, wrong)


def _refuse_beside(layout: Layout, log: FlagLog, change: Change) -> None:
    """Raises HostError: a restart would have the flag again, whatever .env says.

    Nothing stays on record, so that no deploy and no rollback has to wait for it.
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
    """Raises HostError: the process that runs still has it. On record, so the next call goes on."""
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
    log.keep(change)
    return _finish(log, change, process, wrong)


def _finish(log: FlagLog, change: Change, process: Process | None, wrong: str) -> dict[str, Any]:
    pid = process.pid if process else None
    log.record("flag.set", {**named(change), "pid": pid, "wrong": wrong})
    log.forget()
    return answer("set", change, process, wrong, log.lost)


def _put_back(
    layout: Layout, log: FlagLog, change: Change, reason: str, *, booting: bool = False
) -> dict[str, Any]:
    """The value there was before, in the file and in the process: always shadow."""
    log = log.best_effort()
    change = dataclasses.replace(change, state="reverting", reason=reason[:2000])
    log.keep(change)  # where that fails, the older record leads back too
    before = dataclasses.replace(change, wanted=change.was)
    process: Process | None = Supervisor(change.scope).show(change.unit)
    wrong = ""
    touched = process is None or not _is_so(layout, before, process)
    write(layout, change.was)
    if booting:
        process, wrong = None, "systemd starts it next"
    elif touched:
        try:
            process, wrong = _restarted(layout, change, change.was)
        except _NotProvedError as error:
            process, wrong = None, _words(error)
    log.record("flag.reverted", {**named(change), "reason": change.reason, "wrong": wrong})
    log.forget()
    return answer("reverted", change, process, wrong, log.lost)


def _restarted(layout: Layout, change: Change, value: str) -> tuple[Process, str]:
    """A NEW process seen to run with the flag at `value`, and why it is not well ("" if it is).

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
    """The live manifest's hash. For shadow "" where it can't be read: no answer is well then."""
    try:
        return releases.manifest_sha256(layout, change.release)
    except OSError:
        if value == LIVE:
            raise
        return ""


def _wrong_with(change: Change, sha256: str, process: Process) -> str:
    """Why it does not serve the live release well, "" if it does."""
    prover = Prover(Supervisor(change.scope), change.unit, change.endpoint)
    return prover.asked(change.release, sha256, process)[0]


def _words(error: Exception) -> str:
    why = getattr(error, "why", "")
    return f"{error}: {why}" if why else str(error)


def named(change: Change) -> dict[str, object]:
    names = ("wanted", "was", "release", "who", "report")
    return {"flag": FLAG, **{name: getattr(change, name) for name in names}}


def answer(
    outcome: str, change: Change, process: Process | None, wrong: str, lost: str = ""
) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "release": change.release,
        "value": change.was if outcome == "reverted" else change.wanted,
        "pid": process.pid if process else None,
        "wrong": wrong,
        "reason": change.reason,
        "lost": lost,
    }


def unwatched(change: Change) -> HostError:
    return HostError(
        "stacking decides here, but no guard watches it",
        why="it was set by hand, or the guard was ended; and no gate report came along",
        live=f"{change.release}, flags as before",
        hint="invoke shadow-gate, then invoke enable-stacking; or invoke disable-stacking",
        kind="refused",
    )
