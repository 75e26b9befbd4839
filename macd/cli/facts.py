"""`invoke facts`: what a host is and has, as it says itself over a fresh connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import MacdError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.ssh.facts import Disk, Facts, Gpu


@verb(help={"host": "name of a host in the inventory; jump hosts can be asked too"})
def facts(_: object, host: str = "", inventory: str = "", json: bool = False) -> None:
    """Show a host's system, Python, disks, service manager, GPUs and clock.

    Changes nothing.
    """
    from macd.inventory import load
    from macd.ssh.failures import UnfitPythonError
    from macd.ssh.session import open_session

    inv = load(inventory)
    chosen = _choose(inv, host)
    try:
        with open_session(chosen, inv) as session:
            answer = session.facts(list(dict.fromkeys(["/", *filter(None, _places(chosen))])))
            session.ping()  # the first answer's way was long: the agent had to start
    except UnfitPythonError as error:
        if chosen.role != "jump":
            raise
        _show_jump(chosen, error, json=json)
        return
    if json:
        emit({"host": chosen.name, **asdict(answer), "clock": asdict(session.clock)})
        return
    for name, value in _lines(answer):
        print(f"{name:<10}{value}")
    clock = session.clock
    print(f"{'clock':<10}{clock.offset * 1e3:+.1f} ms against here, ± {clock.error * 1e3:.1f} ms")


def _show_jump(host: Host, error: MacdError, *, json: bool) -> None:
    """Show a jump host that has no Python: it needs none, and can't answer more."""
    if json:
        # `told`: the name of `why` up to 0.1
        emit({"host": host.name, "python": None, "why": error.what, "told": error.what})
        return
    print(f"{'host':<10}{host.name} answers; as a jump host it needs no Python")
    print(f"{'python':<10}none that macd can use: {error.what}")


def _choose(inventory: Inventory, name: str) -> Host:
    if not name:
        names = ", ".join(inventory.hosts)
        raise UsageError(
            f"which host? {inventory.name} has: {names}",
            hint=f"invoke facts --host {next(iter(inventory.hosts))}",
        )
    return inventory.host(name)


def _places(host: Host) -> tuple[str, ...]:
    return (host.work_dir, host.app_dir, "~", "/tmp")  # noqa: S108 - looked at, not used


def _lines(facts: Facts) -> Iterator[tuple[str, str]]:
    libc = " ".join(filter(None, facts.os.libc.values()))
    yield "host", f"{facts.hostname}, user {facts.user.name} ({facts.user.uid}), {facts.user.home}"
    yield (
        "system",
        f"{facts.os.pretty}, {facts.os.system} {facts.os.kernel}, {facts.os.arch}, {libc}",
    )
    yield (
        "up",
        f"{facts.os.uptime / 86400:.1f} days, load {', '.join(f'{x:.2f}' for x in facts.load)}",
    )
    venv = "" if facts.python.venv else ", without venv"
    yield "python", f"{facts.python.version}, {facts.python.executable}{venv}"
    free = f"{_size(facts.memory['available'])} free of " if facts.memory["available"] else ""
    yield "cpu", f"{facts.cpus}, memory {free}{_size(facts.memory['total'])}"
    for disk in facts.disks:
        yield "disk", _disk(disk)
    yield "services", _services(facts)
    for gpu in facts.gpus:
        yield "gpu", _gpu(gpu)
    if not facts.gpus:
        yield "gpu", "none seen by nvidia-smi" if facts.tools["nvidia-smi"] else "none"
    missing = [name for name, path in facts.tools.items() if not path and name != "nvidia-smi"]
    if missing:
        yield "missing", ", ".join(missing)


def _disk(disk: Disk) -> str:
    notes = [] if disk.exists else ["not there yet"]
    notes += [] if disk.writable else ["not writable"]
    shown = f"{disk.path}: {_size(disk.free)} free of {_size(disk.total)}"
    return f"{shown} ({', '.join(notes)})" if notes else shown


def _services(facts: Facts) -> str:
    systemd = facts.systemd
    if not systemd.scope:
        return "no systemd that this user can reach"
    booted = "" if systemd.booted else ", not booted by systemd"
    return f"systemd {systemd.version}, scope {systemd.scope}, {systemd.state}{booted}"


def _gpu(gpu: Gpu) -> str:
    parts = [gpu.name, f"driver {gpu.driver}"]
    if gpu.memory_total:
        free = "" if gpu.memory_free is None else f"{_size(gpu.memory_free)} free of "
        parts.insert(1, free + _size(gpu.memory_total))
    return ", ".join(parts)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
