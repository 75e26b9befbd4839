"""`invoke lab.*`: start and stop the embedded hosts, show them, and inject faults into links."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb

if TYPE_CHECKING:
    from macd.lab import HostState, LabState


@verb()
def up(_: object, json: bool = False) -> None:
    """Start three SSH hosts here, without root: jump, h800 behind it, prod."""
    from macd import lab
    from macd.inventory import project_root

    state = lab.up(project_root())
    if json:
        emit(_fields(state))
        return
    print("the lab is running already" if state.was_running else "the lab is up")
    _table(state)
    print("\n  try: ssh -F .lab/ssh_config lab-h800   next: invoke facts --host h800")


@verb(
    help={
        "wipe": "also remove .lab: homes, keys, logs",
        "dry-run": "only show what would be stopped",
    }
)
def down(_: object, wipe: bool = False, dry_run: bool = False, json: bool = False) -> None:
    """Stop the lab and all that runs on its hosts; files stay for the next lab.up."""
    from macd import lab
    from macd.inventory import project_root

    root = project_root()
    before = lab.status(root)
    if not dry_run:
        lab.down(root, wipe=wipe)
    if json:
        emit({"was_running": before.running, "wiped": wipe, "dry_run": dry_run})
    elif dry_run:
        print(f"would end: {f'the lab (pid {before.pid})' if before.running else 'nothing'}")
    else:
        print("the lab is down" if before.running else "the lab wasn't running")
        print(f"  {'.lab is removed' if wipe else 'homes and keys stay in .lab'}; invoke lab.up")


@verb()
def status(_: object, json: bool = False) -> None:
    """Show the lab's hosts, ports, traffic and faults."""
    from macd import lab
    from macd.inventory import project_root

    state = lab.status(project_root())
    if json:
        emit(_fields(state))
    elif state.running:
        _table(state)
        print("\n  next: invoke lab.down, or inject a fault: invoke lab.fault --help")
    else:
        print("the lab isn't running\n  next: invoke lab.up")


@verb(
    help={
        "host": "jump, h800 or prod (default: prod)",
        "rtt-ms": "add this round-trip time, in milliseconds",
        "mbit": "limit each direction to this many Mbit/s",
        "stall": "forward nothing and close nothing, like a dead link",
        "cut-after": "close the connection after exactly this many bytes, once",
        "direction": "which bytes cut-after counts: up (to the host), down or both",
        "present": "apply cut-after to the connections open now, not to the next one",
        "clear": "remove the fault",
    }
)
def fault(
    _: object,
    host: str = "prod",
    rtt_ms: float = 0.0,
    mbit: float = 0.0,
    stall: bool = False,
    cut_after: int = -1,
    direction: str = "both",
    present: bool = False,
    clear: bool = False,
    json: bool = False,
) -> None:
    """Inject a fault into a host's link, in place of the last one: delay, cut ..."""
    from macd import lab
    from macd.errors import UsageError
    from macd.inventory import project_root

    wanted = lab.Fault(
        rtt_ms=rtt_ms,
        mbit=mbit or None,
        stall=stall,
        cut_after=None if cut_after < 0 else cut_after,
        cut_direction=direction,
        cut_on="present" if present else "next",
    )
    if clear == (wanted != lab.Fault(cut_direction=direction, cut_on=wanted.cut_on)):
        raise UsageError(
            "say which fault, or --clear",
            hint="invoke lab.fault --host prod --rtt-ms 200 --mbit 100",
        )
    state = lab.set_fault(project_root(), host, lab.Fault() if clear else wanted)
    if json:
        emit(_fields(state))
    else:
        _table(state)
        if not clear:
            print(f"\n  next: invoke lab.fault --host {host} --clear")


def _table(state: LabState) -> None:
    print(f"\n  {'host':6} {'login':12} {'address':26} {'up':>10} {'down':>10} {'conns':>6}  link")
    for host in state.hosts.values():
        address = f"127.0.0.1:{host.port}" if host.port else "only through jump"
        seen = host.counters
        print(
            f"  {host.name:6} {host.user:12} {address:26} {seen.bytes_up:>10,} "
            f"{seen.bytes_down:>10,} {seen.connections:>6}  {_link(host)}"
        )


def _link(host: HostState) -> str:
    set_now = host.fault
    words = [
        "off the network" if not host.up else "",
        f"+{set_now.rtt_ms:g} ms" if set_now.rtt_ms else "",
        f"{set_now.mbit:g} Mbit/s" if set_now.mbit else "",
        "stalled" if set_now.stall else "",
        f"cut after {set_now.cut_after:,} bytes" if set_now.cut_after is not None else "",
    ]
    return ", ".join(word for word in words if word) or "ok"


def _fields(state: LabState) -> dict[str, object]:
    fields = asdict(state)
    if state.running:
        fields |= {"ssh_config": state.ssh_config, "known_hosts": state.known_hosts}
    return fields
