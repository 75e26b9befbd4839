"""The guard's watch on this host: how it is started, stored and shown.

A systemd timer wakes the guard. Where there is no systemd (the embedded lab) a loop does. What the
guard decides, and how, is in macd/host/flag/guard.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from macd.host import durable, envfile, own, record
from macd.host.deploy import ledger, locks
from macd.host.failure import HostError
from macd.host.flag import flag_file
from macd.host.flag.flag_file import FLAG, FULL, SHADOW, WEIGHT
from macd.host.judge import gate
from macd.host.judge.skill import OFF
from macd.host.layout import Layout, live_release, load, save
from macd.host.own import Flag
from macd.host.systemd import namespaces
from macd.host.systemd.supervisor import Supervisor

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


def confinement(scope: str, app: str, writes: Sequence[str] = ()) -> str:
    """The [Service] lines that confine what runs by itself on a host: the guard, and the alerts.

    writes: directories beside `app` that it has to change files in.
    """
    if scope != "system":
        return _ANYWHERE
    more = "".join(f"ReadWritePaths=-{path}\n" for path in writes)
    return _ANYWHERE + _SYSTEM.format(app=app) + more


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


def weight_of_watch(watch: Mapping[str, Any] | None) -> int:
    """The weight up to which a watch covers stacking, in percent; 0 where there is no watch."""
    return 0 if watch is None else int(watch.get("weight", FULL))


def steps_after(terms: Mapping[str, Any] | None, weight: int) -> list[int]:
    """The weights above `weight` to which the guard raises, of a watch or of its terms."""
    return [step for step in (terms or {}).get("steps", ()) if step > weight]


def next_watch(
    watch: dict[str, Any], weight: int, verdict: str, rates: dict[str, list[int]], now: float
) -> dict[str, Any]:
    """The watch that begins with a raise to `weight`: as long, over the bars from `now` on.

    verdict, rates: of the watch before. The raise stands under "raised" until people are told, and
    afterwards.
    """
    step: dict[str, Any] = {"at": now, "from": weight_of_watch(watch), "to": weight}
    step |= {"told": False, "verdict": verdict, "rates": rates}
    return {
        **watch,
        **NO_TRIES,
        "since": now,
        "until": now + watch["until"] - watch["since"],
        "next": now + watch["every_s"],
        "weight": weight,
        "waits": "",
        "raises": 0,
        "raised": [*watch.get("raised", ()), step],
    }


def stay_at(layout: Layout, weight: int) -> None:
    """The guard watches on, but covers no more than `weight` and raises to no other."""
    watch = read_watch(layout)
    if watch is not None and (watch.get("steps") or weight_of_watch(watch) != weight):
        write_watch(layout, {**watch, "steps": [], "weight": weight, "waits": ""})


def start_watch(
    layout: Layout,
    release: str,
    service: dict[str, Any],
    health_s: float,
    terms: dict[str, Any],
    weight: int = FULL,
) -> None:
    """Store a watch and start what carries it out; stacking is enabled only after this.

    The watches of all steps share the 5 % (Bonferroni): each has its own bars.

    terms: every_s, for_s, the rule of macd/host/judge/gate.py as a mapping, and steps.
    """
    now = time.time()
    flag = flag_file.flag_of(layout)
    if flag not in (None, flag_file.BUILT_IN):
        service = {**service, "flag": asdict(flag)}
    steps = steps_after(terms, weight)
    failed = failures(read_watch(layout))
    rule = {**terms["rule"], "rule": "sequential"}
    watch: dict[str, Any] = {
        "state": WATCHING,
        "failed": failed,
        "release": release,
        "since": now,
        "until": now + float(terms["for_s"]),
        "every_s": float(terms["every_s"]),
        "next": now + float(terms["every_s"]),
        "skill": rule.pop("skill", OFF),  # apart: the guard of an earlier macd reads the rule only
        "rule": rule,
        "service": service,
        "health_s": health_s,
        "reason": "",
        "weight": weight,
        "steps": steps,
        "alpha": gate.ALPHA / (1 + len(steps)),
        "raised": [],
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


def units_of_watch(layout: Layout, scope: str, hardening: str) -> dict[str, str]:
    """The texts of the active watch's units; none where a loop carries it out.

    An earlier macd may have written other texts, and under another `service.hardening`.
    """
    watch = read_watch(layout)
    if not is_active(watch) or watch is None or not Supervisor(scope).has_timers():
        return {}
    if watch["service"]["scope"] != scope:
        return {}
    return _units(layout, {**watch, "service": {**watch["service"], "hardening": hardening}})


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


def guard_status(app: str, after: str = "", scope: str = "system") -> dict[str, Any]:
    """The watch ("order"), the flag, and the guard's reports whose names come after `after`."""
    layout = Layout(durable.expand(app))
    names = report_names(layout)
    watch = read_watch(layout)
    return {
        "order": watch,
        "dead": _dead(layout, watch),
        "live": live_release(layout),
        "flag": _upcoming(layout, scope),
        "loop": locks.holder_of(layout, GUARD_LOCK) is not None,
        "reports": list(_reports(layout, [name for name in names if name > after])),
        "now": time.time(),
    }


def _upcoming(layout: Layout, scope: str) -> str:
    """The flag's value at the next start, as far as its own place says it."""
    application = own.read(layout)
    if application.flag is None:
        return SHADOW
    service = {"unit": application.unit, "scope": scope}
    return flag_file.switch_of(layout, service, application.flag).upcoming


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
    service += f"RuntimeMaxSec={_LASTS_S}\n"
    service += confinement(watch["service"]["scope"], layout.app, _beside(watch))
    if watch["service"].get("hardening") == namespaces.CONTAINER:
        service = namespaces.without(service)
    # OnBootSec: OnActiveSec begins anew at each boot; a host that boots often would never judge.
    timer = f"[Unit]\nDescription=wakes the guard of {base}\n[Timer]\nOnActiveSec={every_s:g}\n"
    timer += f"OnBootSec={_BOOTED_S}\nOnUnitActiveSec={every_s:g}\nAccuracySec=1\n"
    timer += "[Install]\nWantedBy=timers.target\n"
    return {
        f"{base}-guard.service": f"{about}{service}ExecStart={' '.join(_argv(layout))}\n",
        _timer(watch): about + timer,
    }


def _beside(watch: dict[str, Any]) -> list[str]:
    """Where a guard writes that disables stacking, beside the application's directory."""
    service = watch["service"]
    if service.get("flag", {}).get("where") != flag_file.DROPIN:
        return []
    supervisor = Supervisor(service["scope"])
    paths = [
        entry["path"] for entry in supervisor.dropins([service["unit"]]).get(service["unit"], [])
    ]
    directories = [os.path.dirname(path) for path in paths]
    ours = flag_file.dropin_directory(supervisor, service["unit"])
    return sorted({ours, *directories})


def stacking(
    app: str, unit: str, scope: str, endpoint: str, flag: dict[str, str] | None
) -> dict[str, Any]:
    """`stacking_state`, asked by a client; `endpoint` may be "unix".

    flag: of the application that is to serve here, as the inventory has it.
    """
    layout, supervisor = Layout(durable.expand(app)), Supervisor(scope)
    expected = flag_file.from_document(flag)
    place = layout.endpoint(endpoint, scope)
    return stacking_state(layout, supervisor, unit, place, expected)


def stacking_state(
    layout: Layout,
    supervisor: Supervisor,
    unit: str,
    endpoint: str,
    expected: Flag | None = flag_file.BUILT_IN,
) -> dict[str, Any]:
    """The flag in .env, beside it, at the next start and in the process; and its guard.

    {} for an application of the team's own that has no flag. Of any other, values are 1 and 0, for
    live and shadow; `flag` says its name, its own two words and where it is set. expected: the flag
    of what is to serve, where nothing was ever deployed here.

    Answers in_file (each value that .env gives it), unread (why systemd takes nothing from .env),
    passed_over (lines of .env that set nothing), beside (what else sets it: {"where", "value"}),
    next (the value that the next start takes), running (None: nobody can tell), guard (as
    `guard_of` has it), changing (whether a flip or an activation is under way). A value that is
    neither "0" nor "1" is shown as "?".

    weight has the same of the weight: in_file, beside, and next and running in percent (0: shadow;
    None: it is no weight, or nobody can tell). Of the guard's watch it has covered (the weight up
    to which it covers stacking), steps (the weights to which it is still to raise), waits (why it
    has not raised yet, though its time is over), raised (its raises: at, from, to) and failed
    (when it disabled stacking, and why).
    """
    flag = None
    with contextlib.suppress(HostError):  # a service.json that nobody understands is drift itself
        flag = flag_file.flag_of(layout, expected)
    if flag is None:
        return {}
    unread, passed_over = "", []
    values: dict[str, list[str]] = {FLAG: [], WEIGHT: []}
    data = flag_file.content(layout)
    try:
        envfile.readings(data)
        values = {name: _values(data, name, flag) for name in flag_file.KEYS}
        passed_over = envfile.passed_over(data)
    except envfile.EnvFileError as error:
        unread = str(error)
    switch = flag_file.Switch(layout, flag, supervisor, unit)
    # Of instances that differ, the one in which stacking counts for most from the next start on.
    of_units = [
        {
            name: list(flag_file.set_by(layout, supervisor, one, name, flag))
            for name in flag_file.KEYS
        }
        for one in switch.units
    ]
    places = max(of_units, key=lambda each: flag_file.weight_of(_last(each)) or 0)
    upcoming = _last(places)
    weight = flag_file.weight_of(upcoming)
    of_processes = [flag_file.of_process(*one, flag=flag) for one in switch.processes(endpoint)]
    known = [one for one in of_processes if one is not None]
    others = [one for one in known if flag_file.weight_of(one) != weight]
    running = next(iter(others or known), None)
    # A flag in a drop-in may stand there and in .env, which wins.
    ours = (layout.env, f"Environment= of {unit}" if flag.where == flag_file.DROPIN else "")

    def said(name: str) -> dict[str, Any]:
        return {
            "in_file": [flag_file.shown(value, name) for value in values[name]],
            "beside": [
                {"where": where, "value": flag_file.shown(value, name)}
                for where, value in places[name]
                if where not in ours
            ],
        }

    watch = read_watch(layout)
    return {
        **said(FLAG),
        "name": flag.name,
        "flag": asdict(flag),
        "unread": unread,
        "passed_over": passed_over,
        "next": flag_file.shown(upcoming.get(FLAG, SHADOW)),
        "running": None if running is None else flag_file.shown(running.get(FLAG, SHADOW)),
        "weight": {
            **said(WEIGHT),
            "next": flag_file.weight_of(upcoming),
            "running": None if running is None else flag_file.weight_of(running),
            "covered": weight_of_watch(watch),
            "steps": steps_after(watch, weight_of_watch(watch)) if is_active(watch) else [],
            "waits": (watch or {}).get("waits", ""),
            "failed": _failed(layout, watch),
            "raised": [
                {name: step[name] for name in ("at", "from", "to")}
                for step in (watch or {}).get("raised", ())
            ],
        },
        "guard": guard_of(layout, live_release(layout)),
        "changing": flag_file.interrupted(layout) is not None
        or ledger.read_pending(layout) is not None,
    }


def _failed(layout: Layout, watch: dict[str, Any] | None) -> dict[str, Any] | None:
    """When and why the guard disabled stacking of the live release; None where it did not."""
    if watch is None or watch["state"] != FAILED or watch["release"] != live_release(layout):
        return None
    return {"at": watch["ended"], "why": watch["reason"]}


def _last(places: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """What the last place says that sets each; the last one counts."""
    return {name: said[-1][1] for name, said in places.items() if said}


def _values(data: bytes, name: str, flag: Flag) -> list[str]:
    if flag == flag_file.BUILT_IN:
        return envfile.values_of(data, name)
    raw = envfile.values_of(data, flag.name) if name == FLAG else []
    return [flag_file.meant(flag, {flag.name: value})[FLAG] for value in raw]


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
