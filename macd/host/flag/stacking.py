"""Whether stacking decides here, what says so, and whether anybody watches it; changes nothing.

Beside .env a drop-in of the unit may set the flag, by Environment= or by another EnvironmentFile=.
Of systemd's order only the last counts: files in their order, behind every Environment=.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from typing import Any

from macd.host import durable, envfile, record
from macd.host.deploy import ledger
from macd.host.flag import flag_change, flag_file, guard_config
from macd.host.flag.flag_file import FLAG, LIVE, SHADOW
from macd.host.layout import Layout, live_release
from macd.host.systemd.supervisor import Process, Supervisor


def stacking(app: str, unit: str, scope: str, endpoint: str) -> dict[str, Any]:
    """`standing`, asked from elsewhere; `endpoint` may be "unix"."""
    layout, supervisor = Layout(durable.expand(app)), Supervisor(scope)
    process = supervisor.show(unit)
    return standing(layout, supervisor, unit, process, layout.endpoint(endpoint, scope))


def standing(
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
    set_by = list(_set_by(layout, supervisor, unit))
    return {
        "in_file": [_shown(value) for value in values],
        "unread": unread,
        "passed_over": passed_over,
        "beside": [{"where": w, "value": _shown(v)} for w, v in set_by if w != layout.env],
        "next": _shown(set_by[-1][1] if set_by else SHADOW),
        "running": None if running is None else _shown(running.get(FLAG, SHADOW)),
        "guard": guard_of(layout, live_release(layout)),
        "changing": _is_changing(layout),
    }


def beside(layout: Layout, supervisor: Supervisor, unit: str) -> list[str]:
    """What has the service start with stacking whatever .env says."""
    set_by = list(_set_by(layout, supervisor, unit))
    wins = set_by and set_by[-1][0] != layout.env and set_by[-1][1] == LIVE
    return [set_by[-1][0]] if wins else []


def guard_of(layout: Layout, release: str | None) -> str:
    """ "watches" the release (or did, to the end), "failing" (it is about to take stacking back),
    "dead" (it was killed), or "none".
    """
    order = guard_config.order_of(layout)
    if order is None or order["release"] != release:
        return "none"
    if guard_config.in_force(order):
        dead = guard_config.guard_status(layout.app, after="~")["dead"]  # without its reports
        alive = "watches" if order["state"] == guard_config.WATCHING else "failing"
        return "dead" if dead else alive
    return "watches" if order["state"] == "over" and not _taken_back(layout, order) else "none"


def _taken_back(layout: Layout, order: dict[str, Any]) -> bool:
    """Whether stacking was disabled since that watch began; the watch is no word for it now."""
    last = record.newest(layout, "flag.set", since=order["since"])
    return last is not None and last.get("wanted") == SHADOW


def _is_changing(layout: Layout) -> bool:
    return flag_change.interrupted(layout) is not None or ledger.read_pending(layout) is not None


def _set_by(layout: Layout, supervisor: Supervisor, unit: str) -> Iterator[tuple[str, str]]:
    """Each place that sets the flag and its value; the last of them counts."""
    variables, files = supervisor.environment(unit)
    if FLAG in variables:
        yield f"Environment= of {unit}", variables[FLAG]
    ours = os.path.realpath(layout.env)
    for path in [p for name in files for p in sorted(glob.glob(name))] or [layout.env]:
        value = _value_in(path)
        if value:
            yield layout.env if os.path.realpath(path) == ours else path, value


def _value_in(path: str) -> str:
    """What a file says of the flag, a 1 to any version of systemd first; "" where it does not."""
    with contextlib.suppress(OSError, envfile.EnvFileError):
        before, since = envfile.readings(flag_file.read(path))
        return LIVE if before.get(FLAG) == LIVE else since.get(FLAG, "")
    return ""


def _shown(value: str) -> str:
    return value if value in (LIVE, SHADOW) else "?"
