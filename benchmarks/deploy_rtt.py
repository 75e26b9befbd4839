"""Seconds and bytes of deploys over slow lines, beside the floor and the scripts people write.

    python -m benchmarks.deploy_rtt [--rtt 0,50,200] [--mbit 100] [--repeat N] [--json]

Boots a real systemd host (root on Debian) and reaches it over a line with that delay and rate. A
release of 30 MB that does not compress. `first`: nothing of it is there. `two changed`: two files
of 300 kB. `no-op`: all is there. Live means: the new process answers with the new release, seen by
polling on the host every 10 ms; of a no-op, that the command returned. All of it counts: the start
of the process that deploys (`invoke` for ours), the line, the service's restart.
The `floor` is `ssh host true` at that delay plus bytes/rate: nothing that sends gets below it. In
`+restart` a restart of this service is added, typed on the host itself.
The scripts do the same job with the same service: tar over ssh, rsync (where it is installed) with
--link-dest over one master connection; both check hashes on the host, switch a link by rename and
restart. Of N tries each, in turns, the fastest counts.

Ends with 1 when a goal is missed at the longest delay: the first deploy live within 1.25 times the
floor; two files changed live within 1.35 times the floor, and 1.5 times ahead of the best script.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from benchmarks.deploy_ways import BIG, CHANGED, Bench, Figure
from benchmarks.real_hosts import running

KINDS = ("first", "two changed", "no-op")
GOAL_FIRST, GOAL_TWO, GOAL_AHEAD = 1.25, 1.35, 1.5


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rtt", default="0,50,200", help="round-trip times in ms")
    arguments.add_argument("--mbit", type=float, default=100.0)
    arguments.add_argument("--repeat", type=int, default=3, help="of N tries the fastest counts")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    rtts = [float(text) for text in options.rtt.split(",")]
    with running(["prod"]) as hosts:
        bench = Bench(hosts, options.mbit)
        ways = tuple(bench.ways)
        rows = [row for rtt in rtts for row in measured(bench, rtt, options.repeat)]
    met = goals(rows, max(rtts), ways)
    if options.json:
        print(json.dumps({"rows": rows, "goals": met}, indent=1))
    else:
        show(rows, ways)
        print(f"at {max(rtts):g} ms:")
        for name, good in met.items():
            print(f"{'met   ' if good else 'MISSED'}  {name}")
        if "rsync" not in ways:
            print("        rsync is not installed here: not measured")
    return 0 if all(met.values()) else 1


Row = dict[str, object]


def measured(bench: Bench, rtt: float, repeat: int) -> Iterator[Row]:
    """All kinds by all ways at one delay, in turns, so that a busy machine hurts all alike."""
    best: dict[tuple[str, str], Figure] = {}
    handshake = restart = float("inf")
    for _ in range(repeat):
        restart = min(restart, bench.restart())
        bench.link(rtt)
        handshake = min(handshake, bench.handshake())
        for name, way in bench.ways.items():
            for kind in KINDS:
                bench.link(-1)
                if kind != "no-op":
                    identifier = bench.releases.make(kind)
                bench.link(rtt)
                figure = bench.timed(way, identifier, noop=kind == "no-op")
                before = best.get((kind, name), figure)
                best[kind, name] = min(before, figure, key=lambda one: one.seconds)
    bench.link(-1)
    for kind in KINDS:
        payload = {"first": BIG, "two changed": 2 * CHANGED, "no-op": 0}[kind]
        restarted = 0.0 if kind == "no-op" else restart
        floor = handshake + payload * 8 / (bench.mbit * 1e6)
        told: Row = {"rtt_ms": rtt, "kind": kind, "floor": round(floor, 3)}
        told["restart"] = round(restarted, 3)
        told["+restart"] = round(floor + restarted, 3)
        for name in bench.ways:
            told[name] = round(best[kind, name].seconds, 3)
            told[f"{name}_bytes"] = best[kind, name].up
        yield told


def goals(rows: list[Row], longest: float, ways: tuple[str, ...]) -> dict[str, bool]:
    at = {row["kind"]: row for row in rows if row.get("rtt_ms") == longest}
    first, two = at["first"], at["two changed"]
    whole, small = (number(row, "ours") / number(row, "floor") for row in (first, two))
    scripts = [way for way in ways if way != "ours"]
    ahead = min(number(two, way) for way in scripts) / number(two, "ours")
    return {
        f"first: {whole:.2f} times the floor (at most {GOAL_FIRST})": whole <= GOAL_FIRST,
        f"two changed: {small:.2f} times the floor (at most {GOAL_TWO})": small <= GOAL_TWO,
        f"two changed: {ahead:.2f} times ahead (at least {GOAL_AHEAD})": ahead >= GOAL_AHEAD,
    }


def number(row: Row, name: str) -> float:
    return float(str(row[name]))


def show(rows: list[Row], ways: tuple[str, ...]) -> None:
    names = ("floor", "+restart", *ways)
    print(f"{'rtt':>6}  {'kind':<12}" + "".join(f"{name:>9}" for name in names) + "   kB sent")
    for row in rows:
        sent = ", ".join(f"{int(str(row[f'{n}_bytes'])) // 1000}" for n in ways)
        seconds = "".join(f"{number(row, name):>8.2f}s" for name in names)
        print(f"{row['rtt_ms']:>6}  {row['kind']:<12}{seconds}   {sent}")


if __name__ == "__main__":
    sys.exit(main())
