"""Deploys to many hosts at once: seconds for 1, 5 and 20 of them, and the operator's memory.

    python -m benchmarks.fleet [--hosts 1,5,20] [--rtt 200] [--mbit 100] [--parallel N] [--json]

Boots one real systemd machine (root on Debian) that stands for all hosts: each has a directory, a
unit, an agent and a slow line of its own. They share this machine's cores, which real hosts don't,
so the figures are upper bounds. `deploy`: two files of 300 kB changed, from the start of `invoke`
until the last host has proved that it serves the new release, by its own journal; the soak is not
in it. `no-op`: all is there, until the command returned. Memory is the peak of the operator's
process. CPU seconds are told apart: the operator's process, all that ran on the hosts, and the slow
lines, which are this benchmark's own. All of them together by the number of cores is what this
machine needs at least, whatever waits for what: `at least`.

Ends with 1 when 20 hosts take more than 2.5 times as long as one. It says so where this machine
could not do it, because the hosts and the lines alone take more CPU time than that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.deploy_ways import Releases
from benchmarks.real_hosts import RealHosts, running

GOAL = 2.5
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Row:
    hosts: int
    kind: str
    seconds: float
    peak_mb: float
    operator_s: float
    hosts_s: float
    lines_s: float

    @property
    def at_least(self) -> float:
        """Seconds that this machine's cores are busy with it."""
        return (self.operator_s + self.hosts_s + self.lines_s) / CORES


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--hosts", default="1,5,20", help="how many hosts, each in turn")
    arguments.add_argument("--rtt", type=float, default=200.0, help="round-trip time in ms")
    arguments.add_argument("--mbit", type=float, default=100.0)
    arguments.add_argument("--parallel", type=int, default=0, help="default: all at once")
    arguments.add_argument("--repeat", type=int, default=2, help="of N tries the fastest counts")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    counts = sorted({int(text) for text in options.hosts.split(",")})
    rows: list[Row] = []
    with running([f"host{n:02}" for n in range(1, counts[-1] + 1)]) as hosts:
        hosts.invoke("provision", "--yes")
        releases = Releases(hosts, size=1 << 20)
        hosts.invoke("deploy", "--yes", "--release", releases.make("first"))
        hosts.shape(options.rtt, options.mbit)
        for count in counts:
            names = list(hosts.lines)[:count]
            parallel = options.parallel or count
            tries = [measured(hosts, releases, names, parallel) for _ in range(options.repeat)]
            rows += [min(some, key=lambda row: row.seconds) for some in zip(*tries, strict=True)]
        hosts.shape()
    met = goals(rows)
    if options.json:
        print(json.dumps({"rows": [vars(row) for row in rows], "goals": met}, indent=1))
    else:
        print(f"{' ' * 35}CPU seconds of")
        heads = ("seconds", "peak MB", "operator", "hosts", "lines", "at least")
        print(f"{'hosts':>6}  {'kind':<8}" + "".join(f"{head:>9}" for head in heads))
        for row in rows:
            cpu = (row.operator_s, row.hosts_s, row.lines_s, row.at_least)
            print(f"{row.hosts:>6}  {row.kind:<8}{row.seconds:>9.2f}{row.peak_mb:>9.0f}", end="")
            print("".join(f"{seconds:>9.2f}" for seconds in cpu))
        print("\n".join(shares(rows)))
        for name, good in met.items():
            print(f"{'met   ' if good else 'MISSED'}  {name}")
    return 0 if all(met.values()) else 1


def measured(
    hosts: RealHosts, releases: Releases, names: list[str], parallel: int
) -> tuple[Row, Row]:
    """A deploy of a new release to these hosts, then the same again, which changes nothing."""
    inventory = _only(hosts, names)
    release = releases.make("two changed")
    words = ("deploy", "--yes", "--release", release, "--parallel", str(parallel))
    began, _, *used = _timed(hosts, inventory, *words)
    live = max(_live_since(hosts, name, release) for name in names)
    deploy = Row(len(names), "deploy", round(live - began, 3), *used)
    began, ended, *used = _timed(hosts, inventory, *words)
    return deploy, Row(len(names), "no-op", round(ended - began, 3), *used)


def goals(rows: list[Row]) -> dict[str, bool]:
    deploys = {row.hosts: row.seconds for row in rows if row.kind == "deploy"}
    few, many = min(deploys), max(deploys)
    times = deploys[many] / deploys[few]
    return {f"{many} hosts: {times:.2f} times as long as {few} (at most {GOAL})": times <= GOAL}


def shares(rows: list[Row]) -> Iterator[str]:
    """What one more host costs whom, and whether this machine could meet the goal at all."""
    deploys = {row.hosts: row for row in rows if row.kind == "deploy"}
    few, many = deploys[min(deploys)], deploys[max(deploys)]
    if few is many:
        return
    for name in ("operator_s", "hosts_s", "lines_s"):
        each = (getattr(many, name) - getattr(few, name)) / (many.hosts - few.hosts)
        yield f"one more host: {each:.2f} CPU seconds of the {name.removesuffix('_s')}"
    theirs, allowed = (many.hosts_s + many.lines_s) / CORES, GOAL * few.seconds
    if theirs > allowed:
        yield (
            f"the goal is {allowed:.1f} s; hosts and lines alone keep these {CORES} cores busy for"
            f" {theirs:.1f} s: this machine can't meet it"
        )


def _live_since(hosts: RealHosts, name: str, release: str) -> float:
    """When the host recorded that the release answers from a new process."""
    lines = hosts.machine.exec("cat", f"{hosts.app(name)}/state/journal.jsonl").splitlines()
    for record in map(json.loads, reversed(lines)):
        if record["kind"] == "restarted" and record["fields"]["release"] == release:
            return datetime.fromisoformat(record["time"]).timestamp()
    raise SystemExit(f"{name} never served {release}")


def _only(hosts: RealHosts, names: list[str]) -> str:
    """An inventory of these hosts alone."""
    whole = hosts.inventory.path.read_text().splitlines()
    left_out = tuple(f"  {name}:" for name in hosts.lines if name not in names)
    text = "\n".join(line for line in whole if not line.startswith(left_out)) + "\n"
    name = f"bench{len(names)}"
    hosts.inventory.path.with_name(f"{name}.yml").write_text(text)
    return name


def _timed(
    hosts: RealHosts, inventory: str, *words: str
) -> tuple[float, float, float, float, float, float]:
    """Type a command; when it began and ended, its peak memory in MB, and CPU seconds: its own,
    the hosts', the lines'.
    """
    there, here = hosts.cpu_seconds(), time.process_time()
    argv = [str(Path(sys.executable).with_name("invoke")), *words, "--inventory", inventory]
    log = hosts.root / "fleet.log"
    with log.open("w") as out:
        began = time.time()
        process = subprocess.Popen(
            [*argv, "--json"],
            cwd=hosts.root,
            env={**os.environ, "MACD_ROOT": str(hosts.root)},
            stdout=out,
            stderr=out,
        )
        _, status, used = os.wait4(process.pid, 0)
        ended = time.time()
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    there, here = hosts.cpu_seconds() - there, time.process_time() - here
    own = used.ru_utime + used.ru_stime
    return (
        began,
        ended,
        round(used.ru_maxrss / 1024, 1),
        round(own, 2),
        round(there, 2),
        round(here, 2),
    )


if __name__ == "__main__":
    sys.exit(main())
