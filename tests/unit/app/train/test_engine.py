"""The engine: the same numbers whoever does the work, and errors that keep their words."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest
import torch

from macd.app.train import engine
from macd.app.train.engine import Resources, resources, run
from macd.errors import MacdError

pytestmark = pytest.mark.slow

SHARED = np.random.default_rng(0).normal(size=(600, 600))  # large enough to be memory-mapped


def work(job: int, shared: np.ndarray, device: str) -> tuple[float, str]:
    torch.manual_seed(job)
    start = torch.from_numpy(np.array(shared[job : job + 64])).float()
    return float((start @ torch.randn(600, 8)).sum()), device


def process_of(job: int, shared: None, device: str) -> int:
    return os.getpid()


def fails(job: int, shared: None, device: str) -> int:
    if job == 1:
        raise MacdError("the loss became nan", why="rate too high", hint="lower it")
    return job


def _all(jobs: list[int], use: Resources) -> list[tuple[float, str]]:
    numbers = dict(run(work, jobs, SHARED, engine="local", use=use))
    return [numbers[i] for i in range(len(jobs))]


def test_one_worker_and_two_give_the_same_numbers_to_the_bit() -> None:
    jobs = [3, 1, 4, 1, 5]
    assert _all(jobs, Resources(1)) == _all(jobs, Resources(2))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_job_gets_its_own_part_of_what_is_shared(workers: int) -> None:
    made = run(
        work, [3, 1, 4], [SHARED, SHARED + 1], whose=[0, 1, 0], engine="local",
        use=Resources(workers),
    )  # fmt: skip
    values = [p for _, (p, _) in sorted(made)]
    alone = [work(3, SHARED, "")[0], work(1, SHARED + 1, "")[0], work(4, SHARED, "")[0]]
    assert values == pytest.approx(alone, rel=1e-5)


def test_two_workers_are_other_processes() -> None:
    processes = dict(run(process_of, [0, 1, 2, 3], None, engine="local", use=Resources(2)))
    assert os.getpid() not in processes.values()


def test_devices_are_dealt_out_in_turn() -> None:
    made = _all([1, 2, 3, 4], Resources(1, ("cuda:0", "cuda:1")))
    assert [device for _, device in made] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_fit_arrives_whole(workers: int) -> None:
    with pytest.raises(MacdError) as caught:
        list(run(fails, [0, 1, 2], None, engine="local", use=Resources(workers)))
    assert (caught.value.why, caught.value.hint) == ("rate too high", "lower it")


def test_no_jobs_no_work() -> None:
    assert list(run(work, [], SHARED, engine="local", use=Resources(2))) == []


def test_cuda_is_refused_in_words_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resources("auto", 3) == Resources(3)
    with pytest.raises(MacdError, match="no CUDA device"):
        resources("cuda", 0)


@pytest.mark.parametrize(
    ("gib", "cores", "asked", "workers"),
    [(8, 16, 0, 4), (24, 16, 0, 8), (24, 3, 0, 3), (2, 16, 0, 2), (24, 16, 5, 5)],
)
def test_a_larger_card_takes_more_fits_but_no_more_than_cores(
    monkeypatch: pytest.MonkeyPatch, gib: int, cores: int, asked: int, workers: int
) -> None:
    monkeypatch.setattr(engine, "_cuda_devices", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(engine.cards, "smallest_card", lambda: gib << 30)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    use = resources("auto", asked)
    assert (use.workers, use.devices) == (workers, ("cuda:0", "cuda:1"))
    assert use.per_device == min(4, max(1, gib // 3))


def test_ray_missing_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MacdError, match="needs the package ray") as caught:
        list(run(work, [1], SHARED, engine="ray", use=Resources(1)))
    assert "macd[ray]" in caught.value.hint


def test_a_ray_cluster_that_refuses_is_named_and_not_called_a_disk_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(**_: object) -> None:
        raise ConnectionError("authentication token is missing")

    broken = types.ModuleType("ray")
    broken.is_initialized = lambda: False  # type: ignore[attr-defined]
    broken.init = refuses  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", broken)
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    with pytest.raises(MacdError, match=r"head\.example:6379 can't be joined") as caught:
        list(run(work, [1], SHARED, engine="ray", use=Resources(1)))
    assert "token is missing" in caught.value.why
    assert "RAY_AUTH_TOKEN" in caught.value.hint


def _keeps_memory(job: int, shared: str, device: str) -> str | None:
    del job, shared, device
    return os.environ.get("MALLOC_TRIM_THRESHOLD_")


def test_workers_keep_the_memory_that_the_next_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    made = engine.run(_keeps_memory, [0, 1], "", engine="local", use=engine.Resources(2))
    assert {size for _, size in made} == {str(1 << 30)}
