"""The guard's watch on this host: how it is started, stored and shown.

A systemd timer wakes the guard. Where there is no systemd (the embedded lab) a loop does. What the
guard decides, and how, is in macd/host/flag/guard.py.
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
TRIES = 3  # in a row without a judgement; then the guard disables stacking
NO_TRIES: dict[str, Any] = {"tries": 0, "open": False, "why": ""}
_KILLED = "it was killed while it judged"
_WATCH = "guard.json"
_PREFIX = "guard-"
_STARTS_S = 10.0
_STORED = 50  # reports
_RETRY_S, _BOOTED_S = 30, 120
_LASTS_S = 1800  # no judgement takes that long; one that hangs counts as killed
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


def read_watch(layout: Layout) -> dict[str, Any] | None:
    """The newest watch, active or over."""
    watch: dict[str, Any] | None = load(layout.state(_WATCH), None)
    return watch


def is_active(watch: dict[str, Any] | None) -> bool:
    """Whether the guard still has work: it watches, or must still disable stacking."""
    return watch is not None and watch["state"] in (WATCHING, FAILING)


def why_not_judged(watch: dict[str, Any]) -> str:
    """Of the last try without a judgement; an open one that nobody ended was killed."""
    return _KILLED if watch.get("open") else str(watch.get("why", ""))


def unjudged(watch: dict[str, Any] | None) -> str:
    """How often in a row the active watch could not judge; "" while it can.

    A try that is going on is not counted yet.
    """
    if watch is None or not is_active(watch):
        return ""
    tries = watch.get("tries", 0) - bool(watch.get("open"))
    return f"could not judge, {tries} of {TRIES}: {watch['why']}" if tries > 0 else ""


def write_watch(layout: Layout, watch: dict[str, Any]) -> None:
    save(layout.state(_WATCH), watch)


def start_watch(
    layout: Layout, release: str, service: dict[str, Any], health_s: float, terms: dict[str, Any]
) -> None:
    """Store a watch and start what carries it out; stacking is enabled only after this.

    terms: every_s, for_s, and the rule of macd/host/judge/gate.py as a mapping.
    """
    now = time.time()
    failed = failures(read_watch(layout))
    watch: dict[str, Any] = {
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
    write_watch(layout, watch)
    supervisor = Supervisor(service["scope"])
    if supervisor.has_timers():
        units = _units(layout, watch)
        supervisor.install(dict(units))
        timer = _timer(watch)
        supervisor.enable(timer)
        supervisor.stop(timer)  # it counts from now on, not from an earlier watch
        supervisor.start(timer)
    else:
        name = f"{os.path.basename(layout.app)}-guard"
        log = layout.state("guard.log")
        supervisor.run_detached(name, [*_argv(layout), "--loop"], log, keep_alive=False)


def units_of_watch(layout: Layout, scope: str) -> dict[str, str]:
    """The texts of the active watch's units; none where a loop carries it out.

    An earlier macd may have written other texts.
    """
    watch = read_watch(layout)
    if not is_active(watch) or watch is None or not Supervisor(scope).has_timers():
        return {}
    return _units(layout, watch) if watch["service"]["scope"] == scope else {}


def disable_timer(watch: dict[str, Any]) -> None:
    supervisor = Supervisor(watch["service"]["scope"])
    if supervisor.has_timers():
        supervisor.disable(_timer(watch))


def failures(watch: dict[str, Any] | None) -> dict[str, Any]:
    """When and why the guard last failed each release; each watch takes over its predecessor's."""
    if watch is None:
        return {}
    failed = dict(watch.get("failed", {}))
    if watch["state"] in (FAILING, FAILED):
        failed[watch["release"]] = {"ended": watch["ended"], "reason": watch["reason"]}
    return failed


def refuse_older(layout: Layout, report: dict[str, Any]) -> None:
    """Raises HostError ("refused"): the guard failed this release after the report was made."""
    release = str(report.get("release"))
    failure = failures(read_watch(layout)).get(release)
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
    """The watch ("order"), the flag, and the guard's reports whose names come after `after`."""
    layout = Layout(durable.expand(app))
    names = report_names(layout)
    watch = read_watch(layout)
    return {
        "order": watch,
        "dead": _dead(layout, watch),
        "live": live_release(layout),
        "flag": flag_file.in_file(layout),
        "loop": locks.holder_of(layout, GUARD_LOCK) is not None,
        "reports": list(_reports(layout, [name for name in names if name > after])),
        "now": time.time(),
    }


def _reports(layout: Layout, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A report that is damaged, or gone meanwhile, hides no other."""
    for name in names:
        with contextlib.suppress(HostError, OSError):
            report = load(layout.state("gate", name), None)
            if isinstance(report, dict):
                yield {"name": name, "report": report}


def _dead(layout: Layout, watch: dict[str, Any] | None) -> bool:
    """Whether nothing carries out an active watch: its loop was killed, or its timer stopped.

    A loop that was started a moment ago may not hold its lock yet.
    """
    if watch is None or not is_active(watch) or time.time() < watch["since"] + _STARTS_S:
        return False
    supervisor = Supervisor(watch["service"]["scope"])
    if not supervisor.has_timers():
        return locks.holder_of(layout, GUARD_LOCK) is None
    return supervisor.show(_timer(watch)).active not in ("active", "activating")


def report_path(layout: Layout, now: datetime) -> str:
    return layout.state("gate", f"{_PREFIX}{now:%Y%m%dT%H%M%S.%f}Z.json")


def report_names(layout: Layout) -> list[str]:
    directory = layout.state("gate")
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(n for n in names if n.startswith(_PREFIX) and n.endswith(".json"))


def prune(layout: Layout, watch: dict[str, Any]) -> None:
    """Remove all but the newest reports and those of this watch."""
    first = os.path.basename(report_path(layout, datetime.fromtimestamp(watch["since"], UTC)))
    for name in report_names(layout)[:-_STORED]:
        if name < first:
            with contextlib.suppress(OSError):
                os.unlink(layout.state("gate", name))


def _argv(layout: Layout) -> list[str]:
    """The host's own Python, nothing installed (-S): the guard is root, releases are not."""
    return [sys.executable, "-I", "-S", layout.agent_archive, "guard", "--app", layout.app]


def _base(watch: dict[str, Any]) -> str:
    return str(watch["service"]["unit"]).rpartition(".")[0]


def _timer(watch: dict[str, Any]) -> str:
    return f"{_base(watch)}-guard.timer"


def _units(layout: Layout, watch: dict[str, Any]) -> dict[str, str]:
    base, every_s = _base(watch), watch["every_s"]
    about = "# Written by enable-stacking: watches what stacking does, and disables it on FAIL.\n"
    # Restart: a try without a judgement is repeated soon. Not Type=oneshot: before systemd 244 it
    # may not be restarted.
    service = f"[Unit]\nDescription=guard of {base}\nStartLimitIntervalSec=0\n"
    service += f"[Service]\nType=simple\nRestart=on-failure\nRestartSec={_RETRY_S}\n"
    service += f"RuntimeMaxSec={_LASTS_S}\n{_ANYWHERE}"
    if watch["service"]["scope"] == "system":
        service += _SYSTEM.format(app=layout.app)
    # OnBootSec: OnActiveSec begins anew at each boot; a host that boots often would never judge.
    timer = f"[Unit]\nDescription=wakes the guard of {base}\n[Timer]\nOnActiveSec={every_s:g}\n"
    timer += f"OnBootSec={_BOOTED_S}\nOnUnitActiveSec={every_s:g}\nAccuracySec=1\n"
    timer += "[Install]\nWantedBy=timers.target\n"
    return {
        f"{base}-guard.service": f"{about}{service}ExecStart={' '.join(_argv(layout))}\n",
        _timer(watch): about + timer,
    }


def stacking(app: str, unit: str, scope: str, endpoint: str) -> dict[str, Any]:
    """`stacking_state`, asked by a client; `endpoint` may be "unix"."""
    layout, supervisor = Layout(durable.expand(app)), Supervisor(scope)
    process = supervisor.show(unit)
    return stacking_state(layout, supervisor, unit, process, layout.endpoint(endpoint, scope))


def stacking_state(
    layout: Layout, supervisor: Supervisor, unit: str, process: Process, endpoint: str
) -> dict[str, Any]:
    """The flag in .env, beside it, at the next start and in the process; and its guard.

    Answers in_file (each value that .env gives it), unread (why systemd takes nothing from .env),
    passed_over (lines of .env that set nothing), beside (what else sets it: {"where", "value"}),
    next (the value that the next start takes), running (None: nobody can tell), guard (as
    `guard_of` has it), changing (whether a flip or an activation is under way). A value that is
    neither "0" nor "1" is shown as "?".
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
        "changing": flag_file.interrupted(layout) is not None
        or ledger.read_pending(layout) is not None,
    }


def guard_of(layout: Layout, release: str | None) -> str:
    """The guard of a release: "watches" (or did, to the end), "failing" (it is about to disable
    stacking), "dead" (it was killed), or "none".
    """
    watch = read_watch(layout)
    if watch is None or watch["release"] != release:
        return "none"
    if is_active(watch):
        dead = guard_status(layout.app, after="~")["dead"]  # without its reports
        alive = "watches" if watch["state"] == WATCHING else "failing"
        return "dead" if dead else alive
    return "watches" if watch["state"] == "over" and not _disabled_since(layout, watch) else "none"


def _disabled_since(layout: Layout, watch: dict[str, Any]) -> bool:
    """Whether stacking was disabled after that watch began; the watch proves nothing then."""
    last = record.newest(layout, "flag.set", since=watch["since"])
    return last is not None and last.get("wanted") == SHADOW
