"""Run independent fits side by side, on this machine or on a Ray cluster, with the same numbers.

Each fit runs on one thread with its own seed, so neither the number of workers nor the order in
which they finish changes a result. With several CUDA devices fits are dealt out in turn. Results
come back as they finish; the caller stores each at once, so a killed run loses only what ran.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from macd import childprocess
from macd.app.train import cards, cluster
from macd.errors import MacdError

J = TypeVar("J")
S = TypeVar("S")
R = TypeVar("R")

# glibc gives blocks this large back to the kernel at every step of a net and asks for them again:
# a third of an LSTM's time. It reads these when a process starts, so only workers have them.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(512 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


@dataclass(frozen=True)
class Resources:
    """What the fits may use: worker processes, and devices dealt out in turn.

    per_device: small fits that share a card; a single one leaves most of it idle.
    """

    workers: int
    devices: tuple[str, ...] = ("cpu",)
    per_device: int = 1


def resources(device: str, workers: int, engine: str = "local") -> Resources:
    """What this machine offers, or the Ray cluster, whose own cards count and not the driver's.

    `device` is auto, cpu or cuda; `workers` 0 means all cores, or as many fits as the cards hold,
    each of which keeps a core busy too. Raises MacdError when cuda is asked for and there is none.
    """
    if engine == "ray":
        return Resources(*cluster.offers(device, workers))
    cores = childprocess.cores()
    devices = _cuda_devices() if device != "cpu" else ()
    if device == "cuda" and not devices:
        raise MacdError(
            "no CUDA device can be used",
            why="torch.cuda.is_available() is false: no GPU, no driver, or a CPU build of torch",
            hint="nvidia-smi shows the GPU; --device cpu trains without one",
        )
    if devices:
        each = cards.fits_on(cards.smallest_card())
        return Resources(workers or min(cores, each * len(devices)), devices, each)
    return Resources(workers or cores)


def run(
    function: Callable[[J, Any, str], R],
    jobs: Sequence[J],
    shared: Any,
    *,
    engine: str,
    use: Resources,
    whose: Sequence[int] | None = None,
) -> Iterator[tuple[int, R]]:
    """Yield (position, function(job, shared, device)) for every job, as they finish.

    `function` must be importable, `shared` picklable; it is sent once and not copied per job where
    the engine can share memory. An error in a job is raised here and ends the iteration.

    Args:
        whose: `shared` is a sequence, and each job gets the part with this number alone.
    """
    numbered = [
        (position, job, use.devices[position % len(use.devices)])
        for position, job in enumerate(jobs)
    ]
    if not numbered:
        return iter(())
    if whose is None:
        parts, whose = [shared], [0] * len(jobs)
    else:
        parts = list(shared)
    if engine == "ray":
        own = [(at, (whose[at], job), device) for at, job, device in numbered]
        part = functools.partial(_with_its_own, function)
        return cluster.run(_one_thread, part, own, parts, use.devices[0], use.per_device)
    owned = [(at, job, parts[whose[at]], device) for at, job, device in numbered]
    if use.workers == 1 or len(owned) == 1:
        return (_one_thread(function, *each) for each in owned)
    return _with_joblib(function, owned, use)


def _with_its_own(
    function: Callable[[J, S, str], R], job: tuple[int, J], shared: Sequence[S], device: str
) -> R:
    """A node of a cluster has all of `shared` in its memory, once for all of its workers."""
    return function(job[1], shared[job[0]], device)


def _one_thread(
    function: Callable[[J, S, str], R], position: int, job: J, shared: S, device: str
) -> tuple[int, R]:
    # A net's job brings torch with it. It takes seconds to import, and LightGBM needs none.
    torch = sys.modules.get("torch")
    if torch is None:
        return position, function(job, shared, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on how they are split, and fits run side by side
    try:
        return position, function(job, shared, device)
    finally:
        torch.set_num_threads(threads)


def _with_joblib(
    function: Callable[[J, S, str], R],
    owned: Sequence[tuple[int, J, S, str]],
    use: Resources,
) -> Iterator[tuple[int, R]]:
    from joblib import Parallel, delayed  # noqa: PLC0415 - slow to import

    for name, size in KEPT_MEMORY.items():
        os.environ.setdefault(name, size)
    parallel = Parallel(
        n_jobs=min(use.workers, len(owned)),
        backend="loky",
        return_as="generator_unordered",
        max_nbytes="1M",
        mmap_mode="r",
        inner_max_num_threads=1,
    )
    results: Iterator[tuple[int, R]] = parallel(
        delayed(_one_thread)(function, *each) for each in owned
    )
    return results


def _cuda_devices() -> tuple[str, ...]:
    import torch  # noqa: PLC0415 - takes seconds to import, and LightGBM needs none

    if not torch.cuda.is_available():
        return ()
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
