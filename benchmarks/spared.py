"""What imports, checks, nets and runtimes are spared, each as a ratio within one run.

    python -m benchmarks.spared [--rounds 5] [--wheels .macd/lab/wheelhouse/HASH]

Each way of doing a thing is done in turn with the other, so that a busy machine slows both alike.
Printed is the median of what one takes by what the other takes. CPU seconds, children included; by
the clock where two processes share the work.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from macd.app.train import engine

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
Way = Callable[[], None]


def main() -> None:
    """Print a line for each pair of ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wheels", type=Path, help="a directory of wheels; without: no runtime")
    given = parser.parse_args()
    show("LightGBM without scikit-learn", given.rounds, cpu, alone(PLAIN), alone(HIDDEN))
    show("torch's deterministic mode", given.rounds, cpu, alone(STRICT), alone(DEBUG_MODE))
    show("both checks of models, side by side", given.rounds, clock, in_turn, side_by_side)
    for name in ("lstm", "tft"):
        filled, unfilled = step(name, fill=True), step(name, fill=False)
        show(f"a step of the {name}, no memory filled", given.rounds, cpu, filled, unfilled)
    back, stored = alone(STEPS), alone(STEPS, engine.KEPT_MEMORY)
    show("48 steps of an LSTM that keeps memory", given.rounds, cpu, back, stored)
    if given.wheels:
        with tempfile.TemporaryDirectory() as place:
            for wheel in given.wheels.glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(place)
            ways = compiled(Path(place), 1), compiled(Path(place), 2)
            show("compiling a runtime, two processes", min(3, given.rounds), clock, *ways)
    print(f"load now {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def show(what: str, rounds: int, meter: Callable[[], float], before: Way, after: Way) -> None:
    """Both ways in turn; a first round of each is not counted."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for way, into in zip((before, after), spent, strict=True):
            started = meter()
            way()
            if number:
                into.append(meter() - started)
    first, second = map(statistics.median, spent)
    print(f"{what:<40} {first:6.2f} s -> {second:6.2f} s, ratio {second / first:.2f}", flush=True)


def cpu() -> float:
    """CPU seconds of this process and of the children it waited for."""
    return sum(os.times()[:4])


clock = time.monotonic
PLAIN = "import lightgbm"
HIDDEN = "from macd.app.predict.boosting import import_lightgbm; import_lightgbm()"
STRICT = "import torch; torch.use_deterministic_algorithms(True, warn_only=True)"
DEBUG_MODE = "import torch; torch.set_deterministic_debug_mode('warn')"
_STEP = "from benchmarks.spared import step; work = step('lstm', fill=False)"
STEPS = f"{_STEP}; [work() for _ in range(6)]"
# What the two children of `invoke health` import, in place of a release to check.
CHECK = f"{HIDDEN}; import onnxruntime, polars, macd.app.predict.health"
ONNX = "import macd.app.train.export, macd.app.train.lstm, macd.app.predict.golden, onnxruntime"


def alone(code: str, more: Mapping[str, str] = MappingProxyType({})) -> Way:
    """The code in a process of its own, with `more` in its environment."""
    return lambda: start(code, more).__exit__(None, None, None)


def start(code: str, more: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env={**ENVIRONMENT, **more})


def in_turn() -> None:
    alone(CHECK)()
    alone(ONNX)()


def side_by_side() -> None:
    with start(CHECK), start(ONNX):
        pass


def step(name: str, *, fill: bool) -> Way:
    """Eight optimiser steps of the demo's net, with torch's memory filled first or not."""
    import torch  # noqa: PLC0415 - not measured
    from torch import nn  # noqa: PLC0415

    from macd.app.train import lstm, tft  # noqa: PLC0415
    from macd.app.train.nets import reproducible  # noqa: PLC0415

    net: nn.Module
    params: lstm.Params | tft.Params
    if name == "lstm":
        params = lstm.Params.demo()
        net = lstm.LstmNet(44, params)
    else:
        params = tft.Params.demo()
        net = tft.TftNet(44, params)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x = torch.randn(params.loop.batch, 48, 44)
    y = torch.zeros(params.loop.batch, 3)
    loss_of = nn.functional.binary_cross_entropy

    def work() -> None:
        with reproducible(torch.device("cpu")):
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            for _ in range(8):
                optimizer.zero_grad(set_to_none=True)
                loss_of(net(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    return work


def compiled(place: Path, workers: int) -> Way:
    """Compile all packages below `place`, from nothing."""

    def work() -> None:
        for made in place.rglob("__pycache__"):
            shutil.rmtree(made)
        compileall.compile_dir(place, quiet=2, workers=workers)

    return work


if __name__ == "__main__":
    main()
