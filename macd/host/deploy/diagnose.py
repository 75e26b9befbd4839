"""What a diagnosis needs to know of a host beyond what a deploy asks; changes nothing.

The live release's own check is run beside the service: it imports everything, loads the models and
computes the golden predictions, so what is missing or broken here says so itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from typing import Any

from macd.host import durable, untrusted
from macd.host.failure import HostError
from macd.host.flag import guard_config
from macd.host.layout import Layout, live_release
from macd.host.processes import stat_of
from macd.host.systemd.sandbox import Sandbox
from macd.host.systemd.supervisor import Supervisor

_CHECK_TIMEOUT_S = 180
_LONGEST = 2000
_LOG_LINES = 30
_SERVICES = ("macd.app.service", "macd.service")  # the second in releases before the rooms moved
_QUOTES_ENV = re.compile(r"environment (assignment|variable)|invalid UTF-8", re.IGNORECASE)


def checkup(app: str, unit: str, scope: str) -> dict[str, Any]:
    """Unknown answers are None.

    Answers others (pids of further processes of this application), check ({"code", "said"}), log
    (the unit's newest lines), disk ({"free", "total", "inodes"}), unjudged (how often in a row the
    guard could not judge, "" while it can).
    """
    layout = Layout(durable.expand(app))
    supervisor = Supervisor(scope)
    process = supervisor.show(unit)
    return {
        "others": _others(layout, process.pid),
        "check": _check(layout, Sandbox(scope, supervisor.unit_text(unit), layout.app)),
        "log": _log(supervisor, unit),
        "disk": _disk(layout.app),
        "unjudged": _unjudged(layout),
    }


def _unjudged(layout: Layout) -> str:
    try:
        return guard_config.unjudged(guard_config.order_of(layout))
    except HostError as error:
        return f"does not know what to watch: {error}"


def _check(layout: Layout, sandbox: Sandbox) -> dict[str, Any] | None:
    if live_release(layout) is None:
        return None
    argv = [os.path.join(layout.current, "runtime", "bin", "python"), "-I"]
    argv += [os.path.join(layout.current, "app", "serve.py"), "--root", layout.app, "--check"]
    argv += ["--release", os.path.realpath(layout.current)]
    try:
        done = sandbox.run(argv, timeout=_CHECK_TIMEOUT_S)
    except HostError as error:
        said = untrusted.text(f"{error}: {error.why}", _LONGEST)
        return {"code": None, "said": said, "hint": error.hint}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": None, "said": untrusted.text(error, _LONGEST)}
    said = (done.stdout.strip() + "\n" + done.stderr.strip()).strip()
    return {"code": done.returncode, "said": untrusted.text(said[-_LONGEST:], _LONGEST)}


def _others(layout: Layout, main: int) -> list[int] | None:
    """Processes that run this application's service but are not the unit's own, or its child."""
    if not os.path.isdir("/proc/self"):
        return None
    pids = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (main, os.getpid()):
            continue
        with contextlib.suppress(OSError, IndexError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = [os.fsdecode(word) for word in file.read().split(b"\0")]
            if _serves(words, layout.app, f"/proc/{name}/cwd") and int(stat_of(name)[1]) != main:
                pids.append(int(name))
    return sorted(pids)


def _serves(words: list[str], app: str, cwd: str) -> bool:
    """Whether it is this application's service, by a release's serve.py or as people start it."""
    program = any(os.path.basename(word) == "serve.py" for word in words)
    module = any(word.removeprefix("-m") in _SERVICES for word in words)
    if not (program or module) or "--check" in words:
        return False
    roots = [words[at] for at in range(1, len(words)) if words[at - 1] == "--root"]
    roots += [word.partition("=")[2] for word in words if word.startswith("--root=")]
    return os.path.realpath(app) in [os.path.realpath(os.path.join(cwd, root)) for root in roots]


def _log(supervisor: Supervisor, unit: str) -> str:
    # systemd prints what it does not take from .env, values and all.
    lines = [line for line in supervisor.log(unit, _LOG_LINES) if not _QUOTES_ENV.search(line)]
    return untrusted.text("\n".join(lines)[-_LONGEST:], _LONGEST)


def _disk(path: str) -> dict[str, int]:
    disk = durable.disk_of(path)
    return {"free": disk.free, "total": disk.total, "inodes": disk.inodes}
