"""The guard's watch on this host: set before stacking is enabled, looked at afterwards.

A systemd timer wakes the guard; where there is no systemd (the embedded lab) a loop does. What the
guard decides, and how, is in macd/host/flag/guard.py, which macd-host.pyz carries.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, envfile, record
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import flag_file
from macd.host.flag.flag_file import FLAG, SHADOW
from macd.host.layout import Layout, live_release, load, save
from macd.host.systemd.supervisor import Process, Supervisor

GUARD_LOCK = "guard.lock"
WATCHING, FAILING, FAILED = "watching", "failing", "failed"
TRIES = 3  # looks in a row without a judgement, after which stacking is taken back
NO_TRIES: dict[str, Any] = {"tries": 0, "open": False, "why": ""}
_KILLED = "it was killed while it judged"
_ORDER = "guard.json"
_PREFIX = "guard-"
_STARTS_S = 10.0
_KEPT = 50
_RETRY_S, _BOOTED_S = 30, 120
_LASTS_S = 1800  # no look takes that long; one that hangs counts as one that was killed
# It reads what a stranger wrote, but in a process without root (macd/host/judge/judging.py).
# What is left to root: .env and state/, systemctl, the service's environment in /proc.
_ANYWHERE = """UMask=0022
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
MemoryMax=384M
MemorySwapMax=0
TasksMax=32
LimitCORE=0
"""
# A user's systemd may not be able to mount, where this host does not let users do that.
_SYSTEM = """CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_SYS_PTRACE CAP_SETUID CAP_SETGID CAP_KILL
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={app}
ReadOnlyPaths=-{app}/bin -{app}/releases -{app}/runtimes -{app}/blobs -{app}/data
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateIPC=yes
ProtectHostname=yes
ProtectClock=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
"""


def order_of(layout: Layout) -> dict[str, Any] | None:
    """The newest order, whether it is still in force or over."""
    found: dict[str, Any] | None = load(layout.state(_ORDER), None)
    return found


def in_force(order: dict[str, Any] | None) -> bool:
    """Whether the guard still has work: it watches, or has yet to take back what it failed."""
    return order is not None and order["state"] in (WATCHING, FAILING)


def why_not_judged(order: dict[str, Any]) -> str:
    """Of the last try that ended without a judgement; an open one nobody ended was killed."""
    return _KILLED if order.get("open") else str(order.get("why", ""))


def unjudged(order: dict[str, Any] | None) -> str:
    """How often in a row the watch at hand could not judge, in words; "" while it can.

    A look that is being had is not counted yet.
    """
    if order is None or not in_force(order):
        return ""
    tries = order.get("tries", 0) - bool(order.get("open"))
    return f"could not judge, {tries} of {TRIES}: {order['why']}" if tries > 0 else ""


def keep(layout: Layout, order: dict[str, Any]) -> None:
    save(layout.state(_ORDER), order)


def arm(
    layout: Layout, release: str, service: dict[str, Any], health_s: float, terms: dict[str, Any]
) -> None:
    """Order the watch and start what carries it out; stacking is enabled only behind this.

    terms: every_s, for_s, and the rule of macd/host/judge/gate.py as a mapping.
    """
    now = time.time()
    failed = failures(order_of(layout))
    order: dict[str, Any] = {
        "state": WATCHING,
        "failed": failed,
        "release": release,
        "since": now,
        "until": now + float(terms["for_s"]),
        "every_s": float(terms["every_s"]),
        "next": now + float(terms["every_s"]),
        "rule": {**terms["rule"], "rule": "sequential"},
        "service": service,
        "health_s": health_s,
        "reason": "",
    }
    keep(layout, order)
    supervisor = Supervisor(service["scope"])
    if supervisor.has_timers():
        units = _units(layout, order)
        supervisor.install(dict(units))
        timer = _timer(order)
        supervisor.enable(timer)
        supervisor.stop(timer)  # counts from now on, not from an earlier order
        supervisor.start(timer)
    else:
        name = f"{os.path.basename(layout.app)}-guard"
        log = layout.state("guard.log")
        supervisor.run_detached(name, [*_argv(layout), "--loop"], log, keep_alive=False)


def units_in_force(layout: Layout, scope: str) -> dict[str, str]:
    """What the units of the watch at hand should say; none where no unit carries one out.

    An earlier macd may have written them otherwise.
    """
    order = order_of(layout)
    if not in_force(order) or order is None or not Supervisor(scope).has_timers():
        return {}
    return _units(layout, order) if order["service"]["scope"] == scope else {}


def release_timer(order: dict[str, Any]) -> None:
    """The watch is over: nothing wakes the guard any more."""
    supervisor = Supervisor(order["service"]["scope"])
    if supervisor.has_timers():
        supervisor.disable(_timer(order))


def failures(order: dict[str, Any] | None) -> dict[str, Any]:
    """When and why the guard last failed each release; handed on from order to order."""
    if order is None:
        return {}
    found = dict(order.get("failed", {}))
    if order["state"] in (FAILING, FAILED):
        found[order["release"]] = {"ended": order["ended"], "reason": order["reason"]}
    return found


def refuse_older(layout: Layout, report: dict[str, Any]) -> None:
    """A report from before the guard failed this release opens nothing any more."""
    release = str(report.get("release"))
    failure = failures(order_of(layout)).get(release)
    if failure is None:
        return
    if datetime.fromisoformat(report["made"]).timestamp() <= failure["ended"]:
        raise HostError(
            "the gate report is older than the guard's",
            why=f"the guard disabled stacking afterwards: {failure['reason']}",
            live=f"{release}, flags as before",
            hint="invoke shadow-gate makes a new one",
            kind="refused",
        )


def guard_status(app: str, after: str = "") -> dict[str, Any]:
    """The order, the flag, and the guard's reports whose names come after `after`."""
    layout = Layout(durable.expand(app))
    names = report_names(layout)
    order = order_of(layout)
    return {
        "order": order,
        "dead": _dead(layout, order),
        "live": live_release(layout),
        "flag": flag_file.in_file(layout),
        "loop": locks.holder_of(layout, GUARD_LOCK) is not None,
        "reports": list(_reports(layout, [name for name in names if name > after])),
        "now": time.time(),
    }


def _reports(layout: Layout, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One that is damaged, or gone meanwhile, hides no other."""
    for name in names:
        with contextlib.suppress(HostError, OSError):
            report = load(layout.state("gate", name), None)
            if isinstance(report, dict):
                yield {"name": name, "report": report}


def _dead(layout: Layout, order: dict[str, Any] | None) -> bool:
    """Whether a watch is ordered that nothing carries out: its loop was killed, its timer stopped.

    A loop that has only just been started may not hold its lock yet.
    """
    if order is None or not in_force(order) or time.time() < order["since"] + _STARTS_S:
        return False
    supervisor = Supervisor(order["service"]["scope"])
    if not supervisor.has_timers():
        return locks.holder_of(layout, GUARD_LOCK) is None
    return supervisor.show(_timer(order)).active not in ("active", "activating")


def report_path(layout: Layout, now: datetime) -> str:
    return layout.state("gate", f"{_PREFIX}{now:%Y%m%dT%H%M%S.%f}Z.json")


def report_names(layout: Layout) -> list[str]:
    directory = layout.state("gate")
    found = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(n for n in found if n.startswith(_PREFIX) and n.endswith(".json"))


def prune(layout: Layout, order: dict[str, Any]) -> None:
    """Leave the newest reports and those of the watch at hand."""
    began = os.path.basename(report_path(layout, datetime.fromtimestamp(order["since"], UTC)))
    for name in report_names(layout)[:-_KEPT]:
        if name < began:
            with contextlib.suppress(OSError):
                os.unlink(layout.state("gate", name))


def _argv(layout: Layout) -> list[str]:
    """The host's own Python and nothing that is installed (-S): the guard is root, releases not."""
    return [sys.executable, "-I", "-S", layout.agent_archive, "guard", "--app", layout.app]


def _base(order: dict[str, Any]) -> str:
    return str(order["service"]["unit"]).rpartition(".")[0]


def _timer(order: dict[str, Any]) -> str:
    return f"{_base(order)}-guard.timer"


def _units(layout: Layout, order: dict[str, Any]) -> dict[str, str]:
    base, every_s = _base(order), order["every_s"]
    about = "# Written by enable-stacking: watches what stacking does, and disables it on FAIL.\n"
    # A look that could not be had is had again soon. Not Type=oneshot: before systemd 244 that one
    # may not be restarted.
    service = f"[Unit]\nDescription=guard of {base}\nStartLimitIntervalSec=0\n"
    service += f"[Service]\nType=simple\nRestart=on-failure\nRestartSec={_RETRY_S}\n"
    service += f"RuntimeMaxSec={_LASTS_S}\n{_ANYWHERE}"
    if order["service"]["scope"] == "system":
        service += _SYSTEM.format(app=layout.app)
    # OnBootSec: OnActiveSec begins anew at every boot, so a host that boots often had no look.
    timer = f"[Unit]\nDescription=wakes the guard of {base}\n[Timer]\nOnActiveSec={every_s:g}\n"
    timer += f"OnBootSec={_BOOTED_S}\nOnUnitActiveSec={every_s:g}\nAccuracySec=1\n"
    timer += "[Install]\nWantedBy=timers.target\n"
    return {
        f"{base}-guard.service": f"{about}{service}ExecStart={' '.join(_argv(layout))}\n",
        _timer(order): about + timer,
    }


def stacking(app: str, unit: str, scope: str, endpoint: str) -> dict[str, Any]:
    """`stacking_state`, asked from elsewhere; `endpoint` may be "unix"."""
    layout, supervisor = Layout(durable.expand(app)), Supervisor(scope)
    process = supervisor.show(unit)
    return stacking_state(layout, supervisor, unit, process, layout.endpoint(endpoint, scope))


def stacking_state(
    layout: Layout, supervisor: Supervisor, unit: str, process: Process, endpoint: str
) -> dict[str, Any]:
    """The flag in .env, beside it, at the next start and in the process; and its guard.

    Answers in_file (each value it is given in .env), unread (why systemd takes nothing from .env),
    passed_over (lines of .env that set nothing), beside (what else sets it: {"where", "value"}),
    next (the value that the next start takes), running (None: nobody can tell), guard (as
    `guard_of` has it), changing (whether a flip or an activation is under way). A value that is
    neither "0" nor "1" is told as "?".
    """
    unread, values, passed_over = "", [], []
    data = flag_file.content(layout)
    try:
        envfile.readings(data)
        values = envfile.values_of(data, FLAG)
        passed_over = envfile.passed_over(data)
    except envfile.EnvFileError as error:
        unread = str(error)
    running = flag_file.of_process(process, endpoint)
    set_by = list(flag_file.set_by(layout, supervisor, unit))
    return {
        "in_file": [flag_file.shown(value) for value in values],
        "unread": unread,
        "passed_over": passed_over,
        "beside": [{"where": w, "value": flag_file.shown(v)} for w, v in set_by if w != layout.env],
        "next": flag_file.shown(set_by[-1][1] if set_by else SHADOW),
        "running": None if running is None else flag_file.shown(running.get(FLAG, SHADOW)),
        "guard": guard_of(layout, live_release(layout)),
        "changing": _is_changing(layout),
    }


def guard_of(layout: Layout, release: str | None) -> str:
    """ "watches" the release (or did, to the end), "failing" (it is about to take stacking back),
    "dead" (it was killed), or "none".
    """
    order = order_of(layout)
    if order is None or order["release"] != release:
        return "none"
    if in_force(order):
        dead = guard_status(layout.app, after="~")["dead"]  # without its reports
        alive = "watches" if order["state"] == WATCHING else "failing"
        return "dead" if dead else alive
    return "watches" if order["state"] == "over" and not _taken_back(layout, order) else "none"


def _taken_back(layout: Layout, order: dict[str, Any]) -> bool:
    """Whether stacking was disabled since that watch began; the watch is no word for it now."""
    last = record.newest(layout, "flag.set", since=order["since"])
    return last is not None and last.get("wanted") == SHADOW


def _is_changing(layout: Layout) -> bool:
    return flag_file.interrupted(layout) is not None or ledger.read_pending(layout) is not None
