"""What starting an agent takes over a link of 200 ms, with and without a copy on the host.

    python -m benchmarks.agent_start [--repeat N] [--rtt MS]

Starts a lab of its own and opens sessions with prod in turn: the first command (the archive
travels) and a later one (the host runs its copy, compiled). Of N tries each the fastest counts.
The ratio of the two is what to compare between runs: the machine's load is in both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from benchmarks.round_trips import running_lab
from macd import lab
from macd.host.rpc import boot
from macd.inventory import Inventory
from macd.lab import Fault
from macd.ssh import archive
from macd.ssh.session import host_copy, open_session

HOST = "prod"


@dataclass(frozen=True)
class Start:
    """One command: seconds from connecting to the answer, and bytes up."""

    seconds: float
    up: int


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=5, help="tries per figure (5)")
    arguments.add_argument("--rtt", type=float, default=200, help="round trip in ms (200)")
    options = arguments.parse_args()
    with running_lab() as inventory:
        lab.set_fault(inventory.root, HOST, Fault(rtt_ms=options.rtt))
        firsts = [start(inventory, copy=False) for _ in range(options.repeat)]
        provision_agent(inventory)
        laters = [start(inventory, copy=True) for _ in range(options.repeat)]
    first, later = (min(each, key=lambda s: s.seconds) for each in (firsts, laters))
    for name, made in (("first, archive travels", first), ("later, copy runs", later)):
        print(f"{name:24} {made.seconds:6.3f} s {made.up:8d} B")
    seconds, up = later.seconds / first.seconds, later.up / first.up
    print(f"{'later / first':24} {seconds:8.2f} {up:10.3f}")
    return 0


def provision_agent(inventory: Inventory) -> None:
    """Leave on the host what provision leaves there for its agents."""
    host = inventory.host(HOST)
    copy = host_copy(host, inventory)
    assert copy is not None
    code = (
        "import os,sys;p=os.path.expanduser(sys.argv[1]);os.makedirs(os.path.dirname(p));"
        "open(p,'wb').write(sys.stdin.buffer.read());print(p)"
    )
    with open_session(host, inventory) as session:
        argv = ["python3", "-c", code, copy.path]
        made = session.run(argv, input=archive.build())
    boot.compile_beside(made.stdout.decode().strip())  # the lab's hosts are this machine


def start(inventory: Inventory, *, copy: bool) -> Start:
    """Connect, ask what a plan asks, and end."""
    host = inventory.host(HOST)
    memory = host_copy(host, inventory)
    assert memory is not None
    memory.remember(archive.digest() if copy else "")
    lab.reset_counters(inventory.root, HOST)
    started = time.perf_counter()
    with open_session(host, inventory) as session:
        session.call(
            "deploy_facts",
            app=host.app_dir,
            unit=host.unit,
            units=[],
            scope=host.scope,
            endpoint="unix",
        )
        seconds = time.perf_counter() - started
    return Start(seconds, lab.status(inventory.root).hosts[HOST].counters.bytes_up)


if __name__ == "__main__":
    raise SystemExit(main())
