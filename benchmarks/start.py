"""Seconds until a command that needs no host has answered, beside what Python and Invoke take.

    python -m benchmarks.start [--repeat N] [--json]

Each command is run N times, in turns with the others; the fastest counts. `invoke alone` runs an
empty task in a tasks.py of two lines: no command can be faster. Run it where compiled modules are
kept (after `make setup`, or without PYTHONDONTWRITEBYTECODE).

Ends with 1 when a command takes more than 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from macd.inventory import project_root

GOAL_S = 0.3
COMMANDS = ("history", "release.list", "host.list")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=15)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="macd-start-") as directory:
        Path(directory, "tasks.py").write_text("import invoke\nempty = invoke.task(lambda c: 0)\n")
        for _ in range(options.repeat + 1):  # the first compiles what isn't compiled
            for name in ("invoke alone", *COMMANDS):
                where = directory if name == "invoke alone" else str(project_root())
                seconds = timed("empty" if name == "invoke alone" else name, where)
                best[name] = min(best.get(name, seconds), seconds)
    floor = best["invoke alone"]
    missed = [name for name in COMMANDS if best[name] > GOAL_S]
    if options.json:
        print(json.dumps({"seconds": best, "missed": missed}, indent=1))
    else:
        for name, seconds in best.items():
            mark = "  MISSED" if name in missed else ""
            print(f"{name:<14}{seconds:>7.3f} s{seconds / floor:>7.2f} times{mark}")
    return 1 if missed else 0


def timed(command: str, where: str) -> float:
    argv = [str(Path(sys.executable).with_name("invoke")), command]
    began = time.perf_counter()
    subprocess.run(argv, cwd=where, env=os.environ, capture_output=True, check=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
