"""Seconds and bytes of deploys over slow lines, beside the floor and the scripts people write.

    python -m benchmarks.deploy_rtt [--rtt 0,50,200] [--mbit 100] [--repeat N] [--json]

A lab of its own; a release of 30 MB that does not compress. `first`: nothing of it is there.
`two changed`: two files of 300 kB. `no-op`: all is there. Live means: the new process answers with
the new release, seen by polling its socket every 10 ms; of a no-op, that the command returned. The
`floor` is `ssh host true` at that delay plus bytes/rate: nothing that sends gets below it. In
`+restart` a restart of this service is added, timed on the host itself (the lab's systemctl takes
its time, and no way of deploying gets around it): nothing is live before that.
The scripts do the same job with the same service: tar over ssh, rsync with --link-dest over one
master connection; both check hashes on the host, switch a link by rename and restart. The time
Python takes to start is told apart.

Ends with 1 when a goal is missed at the longest delay: the first deploy live within 1.25 times the
floor; two files changed live at least 1.5 times ahead of the better script. All of it counts, the
service's restart too. How the small deploy stands to the floor is told beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.deploy_ways import BIG, CHANGED, Bench, Figure, running_lab

WAYS = ("ours", "tar", "rsync")
KINDS = ("first", "two changed", "no-op")
GOAL_FLOOR, GOAL_AHEAD = 1.25, 1.5


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rtt", default="0,50,200", help="round-trip times in ms")
    arguments.add_argument("--mbit", type=float, default=100.0)
    arguments.add_argument("--repeat", type=int, default=3, help="of N tries the fastest counts")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    rtts = [float(text) for text in options.rtt.split(",")]
    with running_lab() as inventory:
        bench = Bench(inventory, options.mbit)
        rows = [row for rtt in rtts for row in measured(bench, rtt, options.repeat)]
    rows.append({"what": "start of the command itself", "seconds": command_start()})
    met, told = goals(rows, max(rtts)), beside(rows, max(rtts))
    if options.json:
        print(json.dumps({"rows": rows, "goals": met, "told": told}, indent=1))
    else:
        show(rows)
        print(f"at {max(rtts):g} ms:")
        for name, good in met.items():
            print(f"{'met   ' if good else 'MISSED'}  {name}")
        print("        " + "\n        ".join(told))
    return 0 if all(met.values()) else 1


Row = dict[str, object]


def measured(bench: Bench, rtt: float, repeat: int) -> Iterator[Row]:
    """All kinds by all ways at one delay, in turns, so that a busy machine hurts all alike."""
    ways = dict(zip(WAYS, (bench.ours, bench.tar, bench.rsync), strict=True))
    best: dict[tuple[str, str], Figure] = {}
    handshake = restart = float("inf")
    for _ in range(repeat):
        restart = min(restart, bench.restart())
        bench.link(rtt)
        handshake = min(handshake, bench.handshake())
        for name, way in ways.items():
            for kind in KINDS:
                bench.link(-1)
                if kind != "no-op":
                    identifier = bench.release(kind)
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
        for name in ways:
            told[name] = round(best[kind, name].seconds, 3)
            told[f"{name}_bytes"] = best[kind, name].up
        yield told


def command_start() -> float:
    """What `invoke` and our imports cost before the first byte can leave."""
    code = "import macd.cli.deploy, macd.deploy.apply, macd.remote.ssh, macd.inventory"
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        best = min(best, time.monotonic() - began)
    return round(best, 3)


def goals(rows: list[Row], longest: float) -> dict[str, bool]:
    at = {row["kind"]: row for row in rows if row.get("rtt_ms") == longest}
    first, two = at["first"], at["two changed"]
    floors = number(first, "ours") / number(first, "floor")
    ahead = min(number(two, way) for way in WAYS[1:]) / number(two, "ours")
    return {
        f"first: {floors:.2f} times the floor (at most {GOAL_FLOOR})": floors <= GOAL_FLOOR,
        f"two changed: {ahead:.2f} times ahead (at least {GOAL_AHEAD})": ahead >= GOAL_AHEAD,
    }


def beside(rows: list[Row], longest: float) -> list[str]:
    """How the small deploy stands to the floor, of which the restart is then the largest part."""
    two = next(r for r in rows if r.get("rtt_ms") == longest and r["kind"] == "two changed")
    bare, whole = (number(two, "ours") / number(two, name) for name in ("floor", "+restart"))
    return [f"two changed: {bare:.2f} times the floor, {whole:.2f} times floor and restart"]


def number(row: Row, name: str) -> float:
    return float(str(row[name]))


def show(rows: list[Row]) -> None:
    names = ("floor", "+restart", *WAYS)
    print(f"{'rtt':>6}  {'kind':<12}" + "".join(f"{name:>9}" for name in names) + "   kB sent")
    for row in rows:
        if "rtt_ms" not in row:
            print(f"{row['what']}: {row['seconds']} s")
            continue
        sent = ", ".join(f"{int(str(row[f'{n}_bytes'])) // 1000}" for n in WAYS)
        seconds = "".join(f"{number(row, name):>8.2f}s" for name in names)
        print(f"{row['rtt_ms']:>6}  {row['kind']:<12}{seconds}   {sent}")


if __name__ == "__main__":
    sys.exit(main())
