"""Run independent fits side by side, on this machine or on a Ray cluster, with the same numbers.

Each fit runs on one thread with its own seed, so neither the number of workers nor the order in
which they finish changes a result. With several CUDA devices fits are dealt out in turn. Results
come back as they finish; the caller stores each at once, so a killed run loses only what ran.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import macd
from macd.app.train import cards
from macd.errors import MacdError

J = TypeVar("J")
S = TypeVar("S")
R = TypeVar("R")

_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


@dataclass(frozen=True)
class Resources:
    """What the fits may use: worker processes, and devices dealt out in turn.

    per_device: small fits that share a card; a single one leaves most of it idle.
    """

    workers: int
    devices: tuple[str, ...] = ("cpu",)
    per_device: int = 1


def resources(device: str, workers: int) -> Resources:
    """What this machine offers.

    `device` is auto, cpu or cuda; `workers` 0 means all cores, or as many fits as the cards hold,
    each of which keeps a core busy too. Raises MacdError when cuda is asked for and there is none.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = here or 1
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
    function: Callable[[J, S, str], R], jobs: Sequence[J], shared: S, *, engine: str, use: Resources
) -> Iterator[tuple[int, R]]:
    """Yield (position, function(job, shared, device)) for every job, as they finish.

    `function` must be importable, `shared` picklable; it is sent once and not copied per job where
    the engine can share memory. An error in a job is raised here and ends the iteration.
    """
    numbered = [
        (position, job, use.devices[position % len(use.devices)])
        for position, job in enumerate(jobs)
    ]
    if not numbered:
        return iter(())
    if engine == "ray":
        return _with_ray(function, numbered, shared, use)
    if use.workers == 1 or len(numbered) == 1:
        return (_one_thread(function, at, job, shared, device) for at, job, device in numbered)
    return _with_joblib(function, numbered, shared, use)


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
    numbered: Sequence[tuple[int, J, str]],
    shared: S,
    use: Resources,
) -> Iterator[tuple[int, R]]:
    from joblib import Parallel, delayed  # noqa: PLC0415 - slow to import

    parallel = Parallel(
        n_jobs=min(use.workers, len(numbered)),
        backend="loky",
        return_as="generator_unordered",
        max_nbytes="1M",
        mmap_mode="r",
        inner_max_num_threads=1,
    )
    results: Iterator[tuple[int, R]] = parallel(
        delayed(_one_thread)(function, at, job, shared, device) for at, job, device in numbered
    )
    return results


def _with_ray(
    function: Callable[[J, S, str], R],
    numbered: Sequence[tuple[int, J, str]],
    shared: S,
    use: Resources,
) -> Iterator[tuple[int, R]]:
    try:
        import ray  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise MacdError(
            "the engine ray needs the package ray",
            why=str(error),
            hint='pip install "macd[ray]", or --engine local',
        ) from error
    if not ray.is_initialized():
        _start_ray(ray, use)
    gpu = any(device.startswith("cuda") for device in use.devices)
    task: Any = ray.remote(num_cpus=1, num_gpus=1 / use.per_device if gpu else 0)(_one_thread)
    # Ray shows each task only its own GPU, as number 0.
    device = "cuda:0" if gpu else "cpu"
    stored = ray.put(shared)
    waiting = [task.remote(function, at, job, stored, device) for at, job, _ in numbered]
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the fit's own error, with its words
        yield result


def _start_ray(ray: Any, use: Resources) -> None:
    """Join the cluster RAY_ADDRESS names, bringing our code; else start one on this machine."""
    cluster = os.environ.get("RAY_ADDRESS")
    limits = dict.fromkeys(_THREAD_LIMITS, "1")
    if cluster:
        ours = str(Path(macd.__file__).parent)
        try:
            ray.init(address=cluster, runtime_env={"env_vars": limits, "py_modules": [ours]})
        except ConnectionError as error:
            raise MacdError(
                f"the Ray cluster at {cluster} can't be joined",
                why=str(error),
                hint="check that RAY_ADDRESS names a running head, and that RAY_AUTH_TOKEN holds "
                "its token where it asks for one; or use --engine local",
            ) from error
    else:
        # Its processes inherit our environment. A runtime_env would start each worker twice.
        before = {name: os.environ.get(name) for name in limits}
        os.environ.update(limits)
        try:
            ray.init(address="local", num_cpus=use.workers, include_dashboard=False)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _cuda_devices() -> tuple[str, ...]:
    import torch  # noqa: PLC0415 - takes seconds to import, and LightGBM needs none

    if not torch.cuda.is_available():
        return ()
    return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
