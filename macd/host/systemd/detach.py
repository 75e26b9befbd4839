"""Start a process that outlives this SSH session: a transient unit where that is safe, else setsid.

A user's systemd manager, with all its units, ends with the user's last session unless lingering is
on. So its units are used only when lingering is really on, never because it was asked for.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Mapping

from macd.host.failure import HostError

CARRIED = ("PATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "TMPDIR", "TZ")
_TIMEOUT_S = 60
_MANAGER_S = 10.0
_LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1")
_LOGIND_MANAGER = "org.freedesktop.login1.Manager"


def start(name: str, argv: list[str], env: Mapping[str, str], log: str) -> str:
    """Start `argv` under the unit name `name`, output appended to `log`; it is not restarted.

    Returns how it was done: "system unit", "user unit" or "setsid".

    Raises:
        HostError: systemd refused to run it, or would kill it with the last session.
    """
    words = _systemd_run()
    if not words:
        _refuse_to_be_killed()
        in_new_session(argv, log, env)
        return "setsid"
    carried = {key: os.environ[key] for key in CARRIED if key in os.environ}
    words += [f"--setenv={key}={value}" for key, value in {**carried, **env}.items()]
    # OOMPolicy: when the kernel kills one worker, the runner lives on to say so.
    words.append("--property=OOMPolicy=continue")
    as_unit(words, name, argv, log)
    return "user unit" if "--user" in words else "system unit"


def as_unit(words: list[str], name: str, argv: list[str], log: str) -> None:
    """Start `argv` as the transient unit `name`; `words` are the systemd-run command so far.

    Raises:
        HostError: systemd refused to run it.
    """
    words = [*words, f"--unit={name}", "--collect", "--quiet"]
    words += [f"--property=StandardOutput=append:{log}", "--property=StandardError=inherit"]
    done = subprocess.run(
        [*words, "--", *argv],
        env=_manager_environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise HostError(f"systemd-run refused {name}", why=done.stderr.strip())


def in_new_session(argv: list[str], log: str, env: Mapping[str, str] | None = None) -> None:
    """Start `argv` without systemd, in a session of its own."""
    with open(log, "ab") as out:
        subprocess.Popen(
            argv,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _systemd_run() -> list[str]:
    """The beginning of the command for a transient unit; empty where systemd can't run it."""
    if not os.path.isdir("/run/systemd/system") or not shutil.which("systemd-run"):
        return []
    if os.geteuid() == 0:
        return ["systemd-run"]
    return ["systemd-run", "--user"] if lingers() and _has_manager() else []


def lingers() -> bool:
    """Whether this user's manager outlives the last session; asks for it where it does not."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    mark = os.path.join("/var/lib/systemd/linger", user)
    if not os.path.exists(mark):
        subprocess.run(
            ["loginctl", "--no-ask-password", "enable-linger"],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    return os.path.exists(mark)


def _refuse_to_be_killed() -> None:
    """Raises HostError: this host ends all of a user's processes at logout, even detached ones."""
    if not os.path.isdir("/run/systemd/system") or os.geteuid() == 0 or not shutil.which("busctl"):
        return
    question = ["busctl", "get-property", *_LOGIND, _LOGIND_MANAGER, "KillUserProcesses"]
    done = subprocess.run(question, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.stdout.split() == ["b", "true"]:
        user = pwd.getpwuid(os.geteuid()).pw_name
        raise HostError(
            "this host would kill the run when we log out",
            why=f"logind has KillUserProcesses=yes, and {user} may not linger",
            live="nothing was started",
            hint=f"once, as root on the host: loginctl enable-linger {user}",
        )


def _has_manager() -> bool:
    """Whether the user's manager runs; after lingering was enabled it needs a moment."""
    runtime = _manager_environment()["XDG_RUNTIME_DIR"]
    deadline = time.monotonic() + _MANAGER_S
    while not os.path.exists(os.path.join(runtime, "systemd", "private")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _manager_environment() -> dict[str, str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return {**os.environ, "XDG_RUNTIME_DIR": runtime}
