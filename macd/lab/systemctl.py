"""`systemctl --user` on the lab's prod: docker-systemctl-replacement kept inside the lab host.

Run by file from hosts/prod/bin/systemctl. Units are read from the host's home and runtime directory
only, so nothing here reaches the machine's own systemd. Added to the replacement: InvocationID and
NRestarts, `--value`, reset-failed as systemd has it, and `keep`: start what is enabled, as a boot
does, then honour Restart= until killed. And a start is over at READY, a stop with the process, as
with systemd; the replacement itself looks once a second. The limits stand in docs/lab.md.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from systemctl2 import systemctl3

from macd.host.envfile import EnvFileError, readings
from macd.host.processes import stat_of

_UNIT_FOLDERS = [
    "{XDG_CONFIG_HOME}/systemd/user",
    "{XDG_RUNTIME_DIR}/systemd/user",
    "{XDG_DATA_HOME}/systemd/user",
]
_TICK = 0.5
_LOOK = 0.02
_LOOK_IF_ALIVE = 0.1  # while it is waited for a word, which is heard at once
_YIELD = 0.1  # until a process just started is looked at
_GIVEN_UP = "error"  # the replacement's word for a start limit that was hit
_SOCKET = "systemctl"  # in the runtime directory; systemctl_show.py connects to it
_LIFE = "-- invocation "  # in the journal of a unit: from here on another life of it speaks
_OURS = ("InvocationID", "NRestarts", "ExecMainStartTimestamp")


class _ShortNaps:
    """The part of `time` that the replacement uses where it waits for processes to end."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, _LOOK))


@contextlib.contextmanager
def _short_naps() -> Iterator[None]:
    vars(systemctl3)["time"] = _ShortNaps
    try:
        yield
    finally:
        vars(systemctl3)["time"] = time


def _read_env_file(filename: str, _root: str | None = None) -> Iterator[tuple[str, str]]:
    """As systemd reads it: the replacement takes `export` and others that systemd passes over."""
    with contextlib.suppress(OSError, EnvFileError):
        yield from readings(Path(filename).read_bytes())[1].items()


class LabUnitFiles(systemctl3.SystemctlUnitFiles):
    """A state for each instance: the replacement has one for all that one call is about."""

    def load_unit_template_conf(self, module: str | None) -> systemctl3.SystemctlConf | None:
        instances: dict[str | None, systemctl3.SystemctlConf] = vars(self).setdefault("_each", {})
        conf = super().load_unit_template_conf(module)
        if conf is not None and module not in instances:
            instances[module] = copy.copy(conf)
            instances[module].env = {}
        return instances.get(module)


class LabJournal(systemctl3.SystemctlJournal):
    """A log for each unit: the replacement has one for all instances of a template."""

    def get_log(self, conf: systemctl3.SystemctlConf) -> str:
        return str(Path(super().get_log(conf)).with_name(f"{conf.name()}.log"))


class LabSystemctl(systemctl3.Systemctl):
    """The replacement with what deploying reads beyond it."""

    only_values = False
    restarts = 0  # of the unit being started; a start by hand counts from zero, as systemd's does

    def do_start_service_from(self, conf: systemctl3.SystemctlConf) -> bool:
        if self.get_status_from(conf, "ActiveState") == _GIVEN_UP:
            systemctl3.logg.error(
                "%s: Start request repeated too quickly. Try: systemctl --user reset-failed %s",
                *[conf.name()] * 2,
            )
            return False
        if not self.is_active_pid(self.read_mainpid_from(conf)):
            self._end_leftovers(conf)
            invocation = uuid.uuid4().hex
            os.environ["INVOCATION_ID"] = invocation  # what is started inherits it
            self.set_status_from(conf, "InvocationID", invocation)
            with self._journal_of(conf).open("a") as file:
                # For journalctl: see paths.py.
                file.write(f"{_LIFE}{invocation} {time.time_ns() // 1000}\n")
            self.set_status_from(conf, "NRestarts", str(self.restarts))
            moment = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime())
            self.set_status_from(conf, "ExecMainStartTimestamp", moment)
        return super().do_start_service_from(conf)

    def do_stop_service_from(self, conf: systemctl3.SystemctlConf) -> bool:
        stopped = super().do_stop_service_from(conf)
        self._end_leftovers(conf)
        return bool(stopped)

    def pidlist_of(self, pid: int | None) -> list[int]:
        """It and all that descend from it. The replacement reads /proc a hundred times for that."""
        pids = [pid] if pid else []
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*") if pids else ():
            if stat := stat_of(path.name):
                children.setdefault(int(stat[1]), []).append(int(path.name))
        for known in pids:
            pids += children.get(known, ())
        return pids

    def _journal_of(self, conf: systemctl3.SystemctlConf) -> Path:
        path = Path(self.journal.get_log_from(conf))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def _end_leftovers(self, conf: systemctl3.SystemctlConf) -> None:
        """What the unit's last life forked away. systemd ends it by its control group."""
        lines = self._journal_of(conf).read_text(errors="replace").splitlines()
        lives = [line.removeprefix(_LIFE).split(" ")[0] for line in lines if line.startswith(_LIFE)]
        mark = f"\0INVOCATION_ID={lives[-1]}\0".encode() if lives else b""
        for path in Path("/proc").glob("[0-9]*/environ") if lives else ():
            with contextlib.suppress(OSError):
                if mark in b"\0" + path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def write_status_from(self, conf: systemctl3.SystemctlConf, **status: str | int | None) -> bool:
        """In one step: the replacement empties the file first, and a `show` then finds no unit."""
        path = Path(self.get_status_file_from(conf))
        path.parent.mkdir(parents=True, exist_ok=True)
        for key, value in status.items():
            name = {"AS": "ActiveState", "EXIT": "ExecMainCode"}.get(key.upper(), key)
            self.set_status_from(conf, name, None if value is None else str(value))
        lines = [
            f"{name}={value}\n"
            for name, value in sorted((conf.status or {}).items())
            if (name, str(value)) != ("MainPID", "0")
        ]
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text("".join(lines))
        temporary.replace(path)
        return True

    def wait_notify_socket(
        self,
        notify: systemctl3.Systemctl.NotifySocket,
        timeout: float,
        pid: int | None = None,
        pid_file: str | None = None,
    ) -> dict[str, str]:
        """What it said up to READY=1; less where it died, or said nothing in `timeout` seconds."""
        notified: dict[str, str] = {}
        deadline = time.monotonic() + timeout
        while "READY" not in notified and time.monotonic() < deadline:
            alive = pid is None or self.is_active_pid(pid)
            said = self.read_notify_socket(notify, _LOOK_IF_ALIVE if alive else 0.001)
            notified.update(line.partition("=")[::2] for line in said.splitlines())
            if not alive and not said:  # what it said before it died has been read
                break
        notify.socket.close()
        return notified

    def wait_vanished_pid(self, pid: int, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while pid and self.is_active_pid(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
        return True

    def do_kill_unit_from(self, conf: systemctl3.SystemctlConf) -> bool:
        """As the replacement does, which ends its waiting by the clock, with shorter naps."""
        with _short_naps():
            return super().do_kill_unit_from(conf)

    def each_unit_items(
        self, unit: str, conf: systemctl3.SystemctlConf
    ) -> Iterable[tuple[str, str]]:
        for name, value in super().each_unit_items(unit, conf):
            if name == "MainPID":
                yield name, value or "0"
            elif name == "ActiveState":
                yield name, "inactive" if value == "unknown" else value
            else:
                yield name, value
        failed = self.get_active_from(conf) == "failed"
        yield "Result", "exit-code" if failed else "success"  # of which kind, nobody here knows
        for name in _OURS:
            yield name, self.get_status_from(conf, name) or ("0" if name == "NRestarts" else "")

    def get_active_from(self, conf: systemctl3.SystemctlConf) -> str:
        state = super().get_active_from(conf)
        return "failed" if state == _GIVEN_UP else state

    def reset_failed_from(self, conf: systemctl3.SystemctlConf) -> bool:
        return super().reset_failed_from(conf) if self.is_failed_from(conf) else True

    def show_units(self, units: list[str]) -> list[str]:
        lines = super().show_units(units)
        return [line.partition("=")[2] for line in lines] if self.only_values else lines

    def get_boottime(self) -> float:
        return 0.0  # the runtime directory is new at each lab.up, so no status is of an older boot


class _Keeper(LabSystemctl):
    """Restarts what failed, unless somebody stopped or started it meanwhile."""

    def write_status_from(self, conf: systemctl3.SystemctlConf, **status: str | int | None) -> bool:
        """It gives a unit up by what it read a while ago: somebody may have started it since."""
        if status.get("AS") != _GIVEN_UP:
            return super().write_status_from(conf, **status)
        with systemctl3.waitlock(conf):
            conf.status = None
            return self.get_active_from(conf) == "failed" and super().write_status_from(
                conf, **status
            )

    def restarts_of(self, unit: str) -> int:
        return int(self.get_status_from(self.unitfiles.get_conf(unit), "NRestarts") or 0)

    def restart_unit(self, unit: str) -> bool:
        conf = self.unitfiles.load_conf(unit)
        if conf is None:
            return False
        with systemctl3.waitlock(conf):
            conf.status = None  # read anew, now that nobody else is at it
            if self.get_active_from(conf) != "failed":
                return False
            self.restarts = int(self.get_status_from(conf, "NRestarts") or 0) + 1
            return self.do_start_unit_from(conf)


def main(arguments: list[str]) -> int:
    if "--user" not in arguments and "--version" not in arguments:
        return _no_system_manager(arguments)
    if "XDG_RUNTIME_DIR" not in os.environ:
        print("Failed to connect to bus: $XDG_RUNTIME_DIR not defined", file=sys.stderr)  # noqa: T201
        return 1
    _confine()
    vars(systemctl3)["read_env_file"] = _read_env_file
    if "--value" in arguments:
        arguments = [word for word in arguments if word != "--value"]
        LabSystemctl.only_values = True
    if arguments[-1:] == ["keep"]:
        return _keep()
    sys.argv = ["systemctl", *arguments]
    return int(systemctl3.main() or 0)


def _no_system_manager(arguments: list[str]) -> int:
    if "is-system-running" in arguments:
        print("offline")  # noqa: T201 - a command's answer
    else:
        text = "this lab host has a user manager only: say systemctl --user"
        print(f"System has not been booted with systemd ({text})", file=sys.stderr)  # noqa: T201
    return 1


def _confine() -> None:
    """Every path the replacement reads or writes lies in the lab host's home or runtime dir."""
    runtime = os.environ["XDG_RUNTIME_DIR"]
    systemctl3.MinimumYield = _YIELD
    systemctl3.get_RUN = lambda root=False: runtime
    systemctl3._user_folders = _UNIT_FOLDERS
    systemctl3._system_folders = []
    systemctl3._init_folders = []
    systemctl3._preset_folders = []
    systemctl3.SystemctlJournal = LabJournal  # type: ignore[misc]
    systemctl3.SystemctlUnitFiles = LabUnitFiles  # type: ignore[misc]
    systemctl3.Systemctl = LabSystemctl  # type: ignore[misc]


def _keep() -> int:
    """The part of a user manager that is always there, until the lab's daemon is gone."""
    systemctl3._user_mode = True
    boot = LabSystemctl()
    boot.sysinit_status(ActiveState="active", SubState="running")
    _answer_shows()
    print("ready", flush=True)  # noqa: T201 - the lab's daemon waits for it
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    enabled = boot.default_services_modules("default.target", "multi-user.target")
    boot.start_units(enabled)
    scheduled: dict[str, float] = {}
    restarted: dict[str, list[float]] = {}
    daemon = os.getppid()
    while os.getppid() == daemon:  # a daemon that was killed leaves no manager behind
        if units := sorted({*scheduled, *restarted, *_without_process()}):
            keeper = _Keeper()  # a new one has read nothing yet: unit and status files change
            keeper.loop_sleep = 1
            for unit in [unit for unit in restarted if not keeper.restarts_of(unit)]:
                del restarted[unit]  # started or reset by hand since: its start limit counts anew
            keeper._restart_failed_units, keeper._restarted_unit = scheduled, restarted
            keeper.restart_failed_units(units)
        time.sleep(_TICK)
    return 0


def _answer_shows() -> None:
    """Start a process that answers `show` as long as this one is there: see systemctl_show.py."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{os.environ['XDG_RUNTIME_DIR']}/{_SOCKET}")
        listener.listen()
        listener.settimeout(_TICK)
        keeper = os.getpid()
        if os.fork():
            return
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
        gc.freeze()
        while os.getppid() == keeper:
            with contextlib.suppress(TimeoutError):
                client, _ = listener.accept()
                with client:
                    if not os.fork():
                        _answer(client)
    os._exit(0)


def _answer(client: socket.socket) -> NoReturn:
    code = 1
    try:
        words, streams, _, _ = socket.recv_fds(client, 1 << 16, 2)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        code = main(words.decode().split("\0"))
        sys.stdout.flush()
    except Exception:  # whoever asked sees it
        traceback.print_exc()
    finally:
        client.sendall(bytes([code]))
        os._exit(code)


def _without_process() -> Iterator[str]:
    """Units that were started and whose process ended by itself, and a few more.

    An idle lab then doesn't read all its unit files twice a second.
    """
    for path in Path(systemctl3.get_PID_DIR()).glob("*.service.status"):
        lines: list[str] = []
        with contextlib.suppress(OSError):  # removed since
            lines = path.read_text().splitlines()
        said = dict(line.partition("=")[::2] for line in lines)
        pid = int(said.get("MainPID") or 0)
        lives = pid > 0 and systemctl3.pid_exists(pid) and not systemctl3.pid_zombie(pid)
        state = said.get("ActiveState")
        if state == "failed" or not (lives or state == "inactive"):
            yield path.name.removesuffix(".status")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
