"""Round trips and bytes of a session, measured over links of 0, 50 and 200 ms on this machine.

    python benchmarks/round_trips.py [--repeat N] [--json]

Starts a lab of its own in a temporary directory, opens new connections to prod (one SSH
connection) and to h800 (through jump), and measures at the client, everything included: TCP and
SSH handshakes, login, starting the agent. A round trip is what the time grows by when the link's
does: (time at 200 ms - time at 0 ms) / 200 ms, the host's own work on the call taken out. Of N
tries each the fastest counts. Ends with 1 when a goal is missed: facts on a new connection in at
most 9 round trips, each further call in 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd import lab
from macd.inventory import Inventory, load, project_root
from macd.lab import Fault
from macd.ssh.blobs import Blob
from macd.ssh.session import Pending, Session, open_session

RTTS_MS = (0, 50, 200)
GOAL_NEW = 9
PIPELINED = 20
BLOB = 256 << 10


@dataclass(frozen=True)
class Sample:
    """One action over one link: seconds, and bytes on the wire up and down."""

    seconds: float
    up: int
    down: int


Samples = dict[str, dict[int, Sample]]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=3, help="tries per figure (3)")
    arguments.add_argument("--json", action="store_true", help="print one JSON document")
    options = arguments.parse_args()
    with running_lab() as inventory:
        samples = {
            f"{name}{way}": value
            for host, entry, way in (("prod", "prod", ""), ("h800", "jump", ", through jump"))
            for name, value in measure(inventory, host, entry, options.repeat).items()
        }
    goals = {name: 1.0 for name in samples if name.startswith("one more")}
    goals["facts, new connection"] = GOAL_NEW
    trips = {name: round_trips(by_rtt) for name, by_rtt in samples.items()}
    missed = [name for name, goal in goals.items() if round(trips[name]) > goal]
    if options.json:
        print(json.dumps(as_fields(samples, trips, missed), indent=2))
    else:
        print_table(samples, trips, goals, missed)
    return 1 if missed else 0


@contextmanager
def running_lab() -> Iterator[Inventory]:
    """A lab in a directory of its own, so that one that runs already isn't disturbed."""
    shipped = project_root() / "inventory" / "lab.yml"
    with tempfile.TemporaryDirectory(prefix="macd-bench-") as directory:
        root = Path(directory)
        (root / "inventory").mkdir()
        shutil.copy(shipped, root / "inventory" / "lab.yml")
        lab.up(root)
        try:
            yield load("lab", root=root)
        finally:
            lab.down(root)


def measure(inventory: Inventory, host: str, entry: str, repeat: int) -> Samples:
    """Every action at every round-trip time; `entry` is the host whose link is slowed down."""
    samples: Samples = {}
    for rtt_ms in RTTS_MS:
        lab.set_fault(inventory.root, entry, Fault(rtt_ms=rtt_ms))
        tries = [one_session(inventory, host, entry) for _ in range(repeat)]
        for name in tries[0]:
            fastest = min((one[name] for one in tries), key=lambda sample: sample.seconds)
            samples.setdefault(name, {})[rtt_ms] = fastest
    lab.set_fault(inventory.root, entry, Fault())
    return samples


def one_session(inventory: Inventory, host: str, entry: str) -> dict[str, Sample]:
    """What a command does: connect, learn the facts, then work."""
    samples: dict[str, Sample] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        lab.reset_counters(inventory.root, entry)
        started = time.perf_counter()
        result = action()
        worked = result.worked if isinstance(result, Pending) else 0.0
        seconds = time.perf_counter() - started - worked
        counters = lab.status(inventory.root).hosts[entry].counters
        samples[name] = Sample(seconds, counters.bytes_up, counters.bytes_down)
        return result

    def connect() -> Session:
        session = open_session(inventory.host(host), inventory)
        session.call("facts")
        return session

    blob = Blob.of_bytes(time.perf_counter_ns().to_bytes(8, "big") * (BLOB // 8))
    with timed("facts, new connection", connect) as session:
        timed("one more facts", lambda: answered(session.submit("facts")))
        timed("one more read", lambda: answered(session.submit("read", path="/etc/hostname")))
        write = {"path": "~/benchmark", "data": b"x" * 1000}
        timed("one more write", lambda: answered(session.submit("write", **write)))
        timed(f"{PIPELINED} calls, pipelined", lambda: pipelined(session))
        timed("a blob of 256 KiB", lambda: session.put_blobs("~/benchmark-blobs", [blob]))
        timed("the same blob again", lambda: session.put_blobs("~/benchmark-blobs", [blob]))
    return samples


def answered(pending: Pending) -> Pending:
    pending.result()
    return pending


def pipelined(session: Session) -> None:
    for pending in [session.submit("ping") for _ in range(PIPELINED)]:
        pending.result()


def round_trips(by_rtt: dict[int, Sample]) -> float:
    slow, fast = max(by_rtt), min(by_rtt)
    return (by_rtt[slow].seconds - by_rtt[fast].seconds) / ((slow - fast) / 1000)


def print_table(
    samples: Samples, trips: dict[str, float], goals: dict[str, float], missed: list[str]
) -> None:
    times = "".join(f"{f'{rtt} ms':>10}" for rtt in RTTS_MS)
    print(f"{'':<40}{times}{'trips':>8}{'goal':>6}{'up':>9}{'down':>9}")
    for name, by_rtt in samples.items():
        seconds = "".join(f"{sample.seconds:>9.3f}s" for sample in by_rtt.values())
        goal = f"{goals[name]:.0f}" if name in goals else ""
        sizes = f"{by_rtt[0].up:>9,}{by_rtt[0].down:>9,}"
        mark = "  MISSED" if name in missed else ""
        print(f"{name:<40}{seconds}{trips[name]:>8.2f}{goal:>6}{sizes}{mark}")


def as_fields(samples: Samples, trips: dict[str, float], missed: list[str]) -> dict[str, Any]:
    rows = {
        name: {
            "round_trips": round(trips[name], 2),
            "seconds": {str(rtt): round(sample.seconds, 4) for rtt, sample in by_rtt.items()},
            "bytes_up": by_rtt[0].up,
            "bytes_down": by_rtt[0].down,
        }
        for name, by_rtt in samples.items()
    }
    return {"rows": rows, "missed": missed}


if __name__ == "__main__":
    sys.exit(main())
