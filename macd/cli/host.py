"""`invoke host.list`, `host.trust`, `facts`: the way to each host, its keys, what it is and has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from macd.cli.verb import LOOKED, confirm, emit, verb
from macd.errors import ExitCode, MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.inventory.document import Problem
    from macd.ssh.facts import Disk, Facts, Gpu
    from macd.ssh.ssh import Shown
    from macd.ssh.sshconfig import Hop


@verb(interrupted=LOOKED)
def list_(c: Any, inventory: str = "", json: bool = False) -> ExitCode:
    """Show the hosts, the jump hosts to each, and what `app:` names in vain.

    Connects to nothing.
    """
    from macd.inventory import load

    inv = load(inventory)
    rows = [_row(host, inv) for host in inv.hosts.values()]
    wrong: list[Problem] = []
    if inv.app is not None:
        from macd.release import described  # slow to import

        wrong = described.problems(inv)
    if json:
        app = [asdict(problem) for problem in wrong]
        emit(
            {"inventory": inv.name, "known_hosts": str(inv.known_hosts), "hosts": rows, "app": app}
        )
    else:
        for row in rows:
            route = _route(row, inv.name)
            print(f"{row['name']:<12} {row['role']:<6} {row['env'] or '-':<6} {route}")
        for problem in dict.fromkeys(row["problem"] for row in rows if row["problem"]):
            print(f"✗ {problem}")  # once: one missing file is every host's problem
        for mistake in wrong:
            print(f"⚠ {mistake.text()}")
    failed = wrong or any(row["problem"] for row in rows)
    return ExitCode.USAGE if failed else ExitCode.DONE


def _hops(host: Host, inventory: Inventory) -> tuple[Hop, ...]:
    from macd.ssh.sshconfig import Hop, resolve

    if host.transport == "paramiko":
        return resolve(host, inventory)
    from macd.ssh import openssh  # slow to import

    user, name, port, known_as = openssh.endpoint(host, inventory)
    return (Hop(host.name, host.ssh, name, port, user, known_as),)


def _row(host: Host, inventory: Inventory) -> dict[str, Any]:
    from macd.ssh.hostkeys import KnownHosts

    row: dict[str, Any] = {"name": host.name, "role": host.role, "env": host.env}
    row["transport"] = host.transport
    try:
        known_hosts = KnownHosts.read(inventory.known_hosts)
        hops = [
            {
                "name": hop.name,
                "user": hop.user,
                "address": hop.address,
                "known_as": hop.known_as,
                "pinned": [str(key) for key in known_hosts.pinned(hop.known_as)],
                "identities": [str(path) for path in hop.identities if path.exists()],
            }
            for hop in _hops(host, inventory)
        ]
    except MacdError as error:
        return {**row, "hops": [], "problem": str(error)}
    return {**row, "hops": hops, "problem": ""}


def _route(row: dict[str, Any], inventory: str) -> str:
    if row["problem"]:
        return "✗ no route to it, see below"
    route = " -> ".join(f"{hop['user']}@{hop['address']}" for hop in row["hops"])
    unknown = [hop["name"] for hop in row["hops"] if not hop["pinned"]]
    chosen = "" if inventory == "lab" else f" --inventory {inventory}"
    hint = f"  (key of {', '.join(unknown)} not pinned: invoke host.trust {row['name']}{chosen})"
    by = "  (by ssh, and its own way there)" if row["transport"] == "openssh" else ""
    return route + by + (hint if unknown else "")


@verb(
    positional=["file"],
    iterable=["role"],
    help={
        "file": "an Ansible inventory (INI or YAML), or an OpenSSH configuration",
        "name": "write inventory/NAME.yml (without it the text is printed); never over a file",
        "role": "NAME=jump|train|serve of a host or group there; may be repeated",
    },
)
def import_(
    c: Any, file: str, name: str = "", role: list[str] | None = None, json: bool = False
) -> None:
    """Turn the hosts of an Ansible inventory or an ssh_config into an inventory."""
    from pathlib import Path

    from macd.host.durable import replace_file
    from macd.inventory import foreign, load
    from macd.inventory.load import project_root

    hosts = foreign.read(Path(file))
    roles = dict(_role(text) for text in role or [])
    unknown = sorted(roles.keys() - {n for host in hosts for n in (host.name, *host.groups)})
    if unknown:
        raise UsageError(
            f"{file} has no host or group {unknown[0]}",
            why=f"its hosts: {', '.join(host.name for host in hosts)}"[:500],
            hint="--role NAME=serve, with a name of that file",
        )
    ssh_config = foreign.ssh_config_of(Path(file))
    text = foreign.document(hosts, roles, Path(file).name, ssh_config)
    path = project_root() / "inventory" / f"{name}.yml"
    if name and path.exists():
        raise UsageError(
            f"{path} exists", why="it is not overwritten", hint="choose another --name"
        )
    if name:
        replace_file(path, text.encode(), mode=0o644)
        taken = load(name).hosts  # says what is wrong with it, if anything is
    if json:
        emit({"hosts": [asdict(host) for host in hosts], "path": str(path) if name else None})
    elif name:
        print(f"✓ {len(taken)} of {len(hosts)} hosts, written to {path}")
        print("  check the roles that are a guess, and the directories there")
        print(f"  next: invoke host.list --inventory {name}")
    else:
        print(text, end="")


def _role(text: str) -> tuple[str, str]:
    name, _, role = text.partition("=")
    if not name or role not in ("jump", "train", "serve"):
        raise UsageError(f"--role {text}: not NAME=jump, NAME=train or NAME=serve")
    return name, role


@verb(
    interrupted="a key that was not answered with yes is not pinned\n  do: invoke host.trust again",
    positional=["name"],
    iterable=["fingerprint"],
    help={
        "name": "name of a host in the inventory",
        "fingerprint": "SHA256:... accept exactly this key; may be repeated, one for each hop",
        "yes": "pin keys seen for the first time without asking (never a changed one)",
        "dry-run": "show the keys and pin nothing",
    },
)
def trust(
    c: Any,
    name: str,
    fingerprint: list[str] | None = None,
    yes: bool = False,
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Show the keys of a host and its jump hosts, ask, and pin them in known_hosts."""
    from macd.inventory import load
    from macd.ssh.ssh import trust as walk

    inv = load(inventory)
    wanted = [
        text if text.startswith("SHA256:") else f"SHA256:{text}" for text in fingerprint or []
    ]

    accept = accepts(wanted, yes=yes, dry_run=dry_run, silent=json)
    keys = walk(inv.host(name), inv, accept)
    if json:
        emit({"known_hosts": str(inv.known_hosts), "keys": [_key(shown) for shown in keys]})
    for shown in () if json else keys:
        state = "pinned" if shown.accepted else "NOT pinned"
        state = "already pinned" if shown.verdict.value == "known" else state
        print(f"{shown.hop.name:<12} {shown.hop.address:<24} {state:<15} {shown.key}")
    if keys[-1].accepted or dry_run:
        return ExitCode.DONE
    raise MacdError(
        f"the host key of {keys[-1].hop.name} was not pinned",
        why="the answer was no (without a terminal it is no; --yes never takes a changed key)",
        exit_code=ExitCode.REFUSED if yes else ExitCode.FAILED,
        live=f"{inv.known_hosts} does not vouch for it",
        hint=f"compare it with one from a safe source: invoke host.trust {name}"
        f" --fingerprint {keys[-1].key.fingerprint}"
        + ("" if inv.name == "lab" else f" --inventory {inv.name}"),
    )


def accepts(
    wanted: list[str], *, yes: bool, dry_run: bool = False, silent: bool = False
) -> Callable[[Shown], bool]:
    """Shows a key and says whether a person takes it; `wanted` are fingerprints to insist on."""

    def accept(shown: Shown) -> bool:
        if not silent:
            print(_offer(shown))
        return not dry_run and _accepted(shown, wanted, yes=yes)

    return accept


def _offer(shown: Shown) -> str:
    hop, key = shown.hop, shown.key
    lines = [f"{hop.name} ({hop.address}, known as {hop.known_as}) shows {key}"]
    if shown.pinned:
        old = "\n".join(f"  pinned before: {each}" for each in shown.pinned)
        lines = [
            "!! THIS KEY HAS CHANGED. Somebody may be listening between you and the host.",
            f"!! Go on only if whoever runs {hop.name} told you this fingerprint.",
            *lines,
            old,
        ]
    return "\n".join(lines)


def _accepted(shown: Shown, wanted: list[str], *, yes: bool) -> bool:
    key = shown.key
    if wanted:
        if key.fingerprint in wanted:
            return True
        raise RefusedError(
            f"{shown.hop.name} shows another key than the one you named",
            why=f"it shows {key}\nyou named {', '.join(wanted)}",
            live="nothing was pinned for it",
            hint="find out which of the two is right before you connect",
        )
    sure = f"replace the pinned key of {shown.hop.name}" if shown.pinned else "pin this key"
    return confirm(f"{sure}?", yes=yes and not shown.pinned)


def _key(shown: Shown) -> dict[str, Any]:
    return {
        "hop": shown.hop.name,
        "address": shown.hop.address,
        "known_as": shown.hop.known_as,
        "verdict": shown.verdict.value,
        "accepted": shown.accepted,
        "type": shown.key.type,
        "fingerprint": shown.key.fingerprint,
        "pinned_before": [key.fingerprint for key in shown.pinned],
    }


@verb(
    interrupted=LOOKED,
    help={"host": "name of a host in the inventory; jump hosts can be asked too"},
)
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
