"""A schedule of this host: what its timers start, and the timers themselves.

Below work/schedule/: plan.json (what is trained, when, from which bars, beside which live run) and
what scheduled.py keeps there. Two timers: one begins a training, the other looks every few minutes
whether one has ended. A host without systemd gets lines for cron instead, which a person enters.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from macd.host import durable
from macd.host.alerts import webhook
from macd.host.failure import HostError
from macd.host.jobs import scheduled
from macd.host.layout import load
from macd.host.systemd import detach
from macd.host.systemd.supervisor import Supervisor
from macd.host.systemd.unitfile import assignment, unit_word

REPORT_S = 300
_START_S = 6 * 3600  # a first fetch of years of minutes takes long
_TIMEOUT_S = 30
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_SIMPLE = re.compile(rf"(?:({'|'.join(_DAYS)}) )?(\d{{1,2}}):(\d{{2}})( UTC)?")


def job_schedule_set(
    work: str, plan: dict[str, Any], addresses: Mapping[str, Any]
) -> dict[str, Any]:
    """Make `plan` the schedule of this work directory, and start its timers.

    addresses: as state/notify.json of a serving host; {} tells nobody. Answers what
    `job_schedule` does. Raises HostError, and nothing changes, where the time is none or a timer
    would not outlive the login.
    """
    work = durable.expand(work)
    place = scheduled.Place(work)
    python = shutil.which(plan["python"])
    if python is None:
        raise HostError(
            f"there is no {plan['python']} on this host", hint="see `python` in the inventory"
        )
    supervisor = _supervisor()
    if supervisor is not None:
        _next_times(plan["on"])
    durable.make_directories(os.path.dirname(place.addresses))
    with durable.one_at_a_time(place.lock, taken=_busy()):
        before = load(place.plan, None)
        if before is None or before["files"] != plan["files"]:
            shutil.rmtree(place.bars, ignore_errors=True)  # those that came with it are the newer
        carried = {key: os.environ[key] for key in detach.CARRIED if key in os.environ}
        plan = {**plan, "python": python, "carried": carried}
        durable.replace_file(place.addresses, scheduled.as_json(addresses), mode=0o600)
        durable.replace_file(place.plan, scheduled.as_json(plan), mode=0o600)  # it has variables
    if supervisor is not None:
        units = units_of(work, plan)
        supervisor.install(units, reload=True)
        for timer in (name for name in units if name.endswith(".timer")):
            supervisor.enable(timer)
            supervisor.stop(timer)
            supervisor.start(timer)  # anew: a running timer keeps its old time
    return job_schedule(work)


def job_schedule_start(work: str) -> dict[str, Any]:
    """Begin now what the timer would begin, and don't wait; answers what `job_schedule` does."""
    work = durable.expand(work)
    place = scheduled.Place(work)
    plan = load(place.plan, None)
    if plan is None:
        raise HostError("nothing is scheduled on this host", hint="invoke train.schedule")
    supervisor = _supervisor()
    if supervisor is not None:
        supervisor.start_later(unit_names(work)[1])
    else:
        detach.in_new_session(_argv(work, plan, "start"), place.log, _variables(work, plan))
    return job_schedule(work)


def job_schedule_remove(work: str) -> dict[str, Any]:
    """Take timers and plan away; runs and their files stay. {"removed": whether there was one}."""
    work = durable.expand(work)
    place = scheduled.Place(work)
    if not os.path.isdir(work):
        return {"removed": False}
    with durable.one_at_a_time(place.lock, taken=_busy()):
        there = os.path.exists(place.plan)
        supervisor = _supervisor(lingering=False)
        if supervisor is not None:
            units = [name for name in unit_names(work) if supervisor.unit_text(name) is not None]
            for name in units:
                supervisor.disable(name)
            supervisor.install(dict.fromkeys(units))
            there = there or bool(units)
        if os.path.isdir(place.root):
            shutil.rmtree(place.root)
    return {"removed": there}


def job_schedule(work: str) -> dict[str, Any]:
    """What is scheduled here; {} where nothing is. Changes nothing.

    plan: what was sent, without variables. timer: runs (bool), next, last (systemd's words), or
    None where the host has no systemd, and cron: the lines to enter then. runs: of the schedule,
    oldest first. messages: what was reported, with how the sending went. notifies: whether an
    address is set.
    """
    work = durable.expand(work)
    place = scheduled.Place(work)
    plan = load(place.plan, None)
    if plan is None:
        return {}
    supervisor = _supervisor(lingering=False)
    state = scheduled.read(place)
    shown = ("on", "title", "tree", "champion", "keep", "source", "inventory", "installed")
    return {
        "plan": {name: plan.get(name) for name in shown},
        "timer": None if supervisor is None else _timer(supervisor, work),
        "cron": cron_lines(work, plan) if supervisor is None else [],
        "runs": state["runs"],
        "messages": state["messages"],
        "unsent": len(state["outbox"]),
        "notifies": webhook.is_set(place.layout),
    }


def _busy() -> HostError:
    return HostError(
        "a scheduled training is being begun or judged on this host just now",
        live="the schedule is as it was",
        hint="again when that is over: invoke train.schedule --show",
        kind="refused",
    )


def unit_names(work: str) -> tuple[str, str, str, str]:
    """The units of a work directory: the timer that begins, its service, and those that report."""
    base = f"macd-train-{hashlib.sha256(work.encode()).hexdigest()[:8]}"
    return f"{base}.timer", f"{base}.service", f"{base}-report.timer", f"{base}-report.service"


def units_of(work: str, plan: Mapping[str, Any]) -> dict[str, str | None]:
    """Their texts. Pure."""
    timer, service, report_timer, report = unit_names(work)
    calendar = f"OnCalendar={plan['on']}\nPersistent=true\nAccuracySec=1"
    often = f"OnActiveSec=60\nOnUnitActiveSec={REPORT_S}\nAccuracySec=1"
    return {
        timer: _timer_text("begins the scheduled training", calendar),
        service: _service_text(work, plan, "start", "begin the scheduled training", _START_S),
        report_timer: _timer_text("looks whether a scheduled training ended", often),
        report: _service_text(work, plan, "report", "report scheduled trainings that ended", 3600),
    }


def cron_lines(work: str, plan: Mapping[str, Any]) -> list[str]:
    """What crontab takes in place of the timers; the time only where it is a simple one. Pure."""
    match = _SIMPLE.fullmatch(plan["on"])
    when = "MINUTE HOUR * * DAY"
    if match and (not match[4] or time.localtime().tm_gmtoff == 0):  # cron has the host's own time
        day = str(_DAYS.index(match[1])) if match[1] else "*"
        when = f"{int(match[3])} {int(match[2])} * * {day}"
    words = {verb: shlex.join(_argv(work, plan, verb)) for verb in ("start", "report")}
    variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in _variables(work, plan).items())
    code = shlex.quote(_code(work, plan))
    lines = [(when, words["start"]), (f"*/{REPORT_S // 60} * * * *", words["report"])]
    return [f"{at} cd {code} && {variables} {command}".replace("%", "\\%") for at, command in lines]


def _timer_text(does: str, when: str) -> str:
    return (
        f"# Written by macd: invoke train.schedule\n[Unit]\nDescription=macd: {does}\n\n"
        f"[Timer]\n{when}\n\n[Install]\nWantedBy=timers.target\n"
    )


def _service_text(work: str, plan: Mapping[str, Any], verb: str, does: str, within_s: int) -> str:
    command = " ".join(map(unit_word, _argv(work, plan, verb)))
    variables = "".join(
        f"Environment={assignment(name, value)}\n" for name, value in _variables(work, plan).items()
    )
    code = _code(work, plan).replace("%", "%%")
    return (
        f"# Written by macd: invoke train.schedule\n[Unit]\nDescription=macd: {does}\n\n"
        f"[Service]\nType=oneshot\nWorkingDirectory={code}\n{variables}ExecStart={command}\n"
        f"TimeoutStartSec={within_s}\n"
    )


def _argv(work: str, plan: Mapping[str, Any], verb: str) -> list[str]:
    return [plan["python"], "-m", "macd.host.jobs.scheduled", verb, work]


def _variables(work: str, plan: Mapping[str, Any]) -> dict[str, str]:
    own = {"PYTHONPATH": _code(work, plan), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**plan["carried"], **own}


def _code(work: str, plan: Mapping[str, Any]) -> str:
    return os.path.join(work, "trees", plan["tree"])


def _supervisor(*, lingering: bool = True) -> Supervisor | None:
    """This user's systemd; None where none wakes timers.

    Raises HostError where it ends with the last login, if it has to linger.
    """
    scope = "system" if os.geteuid() == 0 else "user"
    if scope == "user":  # as detach.as_unit has it; a login without PAM's session lacks it
        os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    booted = os.path.isdir("/run/systemd/system")
    if booted and scope == "user" and lingering and not detach.lingers():
        raise HostError(
            "this host would end the timer when we log out",
            why="its user may not linger",
            live="nothing was scheduled",
            hint="once, as root on the host: loginctl enable-linger USER",
        )
    supervisor = Supervisor(scope)
    return supervisor if supervisor.has_timers() else None


def _next_times(on: str) -> None:
    """Raises HostError where systemd does not take `on` as a time."""
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(
            ["systemd-analyze", "calendar", "--", on],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise HostError(
                f"train.schedule: {on!r} is no time that this host's systemd takes",
                why=done.stderr.strip()[:300],
                live="the schedule is as it was",
                hint='such as "Sun 03:00 UTC" or "*-*-01 04:30"; man systemd.time has the rest',
            )


def _timer(supervisor: Supervisor, work: str) -> dict[str, Any]:
    begins, _, reports, _ = unit_names(work)
    names = {"next": "NextElapseUSecRealtime", "last": "LastTriggerUSec"}
    shown = supervisor.properties(begins, *names.values())
    active = [supervisor.show(unit).active == "active" for unit in (begins, reports)]
    said = {name: shown.get(key, "") for name, key in names.items()}
    return {"unit": begins, "runs": all(active), "scope": supervisor.scope} | {
        name: "" if value == "n/a" else value for name, value in said.items()
    }
