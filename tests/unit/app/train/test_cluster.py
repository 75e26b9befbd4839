"""A Ray cluster: what it offers decides, its nodes are compared, what fails is said in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from macd.app.train import cards, cluster
from macd.app.train.cards import Cards
from macd.app.train.engine import Resources, resources, run
from macd.errors import MacdError
from macd.host.jobs import software
from tests.unit.app.train.test_engine import SHARED, fails, work

pytestmark = pytest.mark.slow


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 a busy machine never serves it
    monkeypatch.setattr(cards, "_cluster_cards", [])
    yield monkeypatch
    ray.shutdown()


def squares(job: int, shared: int, device: str) -> tuple[int, str]:
    return job * job + shared, device


def dies_once(job: str, shared: None, device: str) -> str:
    marker = Path(job)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def dies_always(job: int, shared: None, device: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def threads(job: int, shared: None, device: str) -> tuple[str | None, int]:
    return os.environ.get("OPENBLAS_NUM_THREADS"), torch.get_num_threads()


def asks_cards(job: int, shared: None, device: str) -> Cards | None:
    return cards.known()


def test_a_local_cluster_serves_and_survives_a_killed_worker(
    quiet: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quiet.delenv("OPENBLAS_NUM_THREADS", raising=False)
    use = resources("auto", 1, "ray")
    assert use == Resources(1, ("cpu",), 1)
    _gives_the_same_numbers_and_words_as_joblib(use)
    assert list(run(threads, [0], None, engine="ray", use=use)) == [(0, ("1", 1))]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert sorted(run(squares, [2, 3], 1, engine="ray", use=use)) == [
        (0, (5, "cpu")),
        (1, (10, "cpu")),
    ]
    jobs = [str(tmp_path / "dies")]
    assert list(run(dies_once, jobs, None, engine="ray", use=use)) == [(0, "done")]
    with pytest.raises(MacdError, match="crashed again and again") as caught:
        list(run(dies_always, [1], None, engine="ray", use=use))
    assert "start the same training again" in caught.value.hint

    with pytest.raises(MacdError, match="the Ray cluster has no GPU") as caught:
        resources("cuda", 1, "ray")
    assert "1 CPU, 0 GPU" in caught.value.why
    quiet.setattr(cluster, "INFEASIBLE_S", 0.5)  # a GPU that went away after it was offered
    with pytest.raises(MacdError, match="no node of the Ray cluster has the GPU") as caught:
        list(run(squares, [1], 0, engine="ray", use=Resources(1, ("cuda:0",), 2)))
    assert "1 fits wait" in caught.value.why

    cards.use(Cards(8 << 30, bf16=False))  # a cluster's, as every fit is told
    assert list(run(asks_cards, [0], None, engine="ray", use=use)) == [(0, cards.known())]


def _gives_the_same_numbers_and_words_as_joblib(use: Resources) -> None:
    """Beside what else is asked of a cluster: to start one takes longer than all of it."""
    jobs = [3, 1, 4, 1]
    by_ray, by_joblib = (
        sorted(run(work, jobs, SHARED, engine=engine, use=use)) for engine in ("ray", "local")
    )
    assert by_ray == by_joblib
    with pytest.raises(MacdError) as caught:
        list(run(fails, [0, 1, 2], None, engine="ray", use=use))
    assert (caught.value.why, caught.value.hint) == ("rate too high", "lower it")


def test_a_gpu_that_only_ray_sees_is_not_trained_on_in_silence(quiet: pytest.MonkeyPatch) -> None:
    """The driver has none: the cluster's count decides, and its node is asked."""
    quiet.setenv("CUDA_VISIBLE_DEVICES", "0")
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False)
    with pytest.raises(MacdError, match="but torch finds none there") as caught:
        resources("auto", 1, "ray")
    assert "--device cpu" in caught.value.hint
    assert resources("cpu", 1, "ray").devices == ("cpu",)


def test_a_node_with_other_packages_is_refused_before_any_fit(
    quiet: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "lightgbm-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: lightgbm\nVersion: 0.0.1\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "RAY_worker_niceness": "0"}
    program = (
        "import ray, sys\n"
        "r = ray.init(num_cpus=1, include_dashboard=False)\n"
        "print(r.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    head = subprocess.Popen(
        [sys.executable, "-c", program],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert head.stdout is not None
        quiet.setenv("RAY_ADDRESS", head.stdout.readline().strip())
        with pytest.raises(MacdError, match="have other software than this machine") as caught:
            resources("cpu", 1, "ray")
        assert "lightgbm 0.0.1 (here " in caught.value.why
        with pytest.raises(MacdError, match="have other software") as caught:  # had it come later
            list(run(squares, [2], 1, engine="ray", use=Resources(1)))
        assert "lightgbm 0.0.1 (here " in caught.value.why
    finally:
        ray.shutdown()
        assert head.stdin is not None
        head.stdin.close()
        head.wait(60)


class Split:
    """A cluster that has enough in all, and no node that has all of it."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self._nodes = nodes

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": has} for has in self._nodes]

    def wait(self, waiting: list[int], **_: object) -> tuple[list[int], list[int]]:
        return [], waiting


@pytest.mark.parametrize(
    ("nodes", "needs", "lacks"),
    [
        (({"CPU": 4.0}, {"GPU": 1.0}), {"CPU": 1.0, "GPU": 0.5}, "CPU and GPU"),
        (({"CPU": 0.5}, {"CPU": 0.5}), {"CPU": 1.0}, "CPU"),
        (({"CPU": 4.0},), {"CPU": 1.0, "GPU": 1.0}, "GPU"),
        ((), {"CPU": 1.0}, "CPU"),
    ],
)
def test_what_no_single_node_can_run_is_said_and_not_waited_for(
    nodes: tuple[dict[str, float], ...],
    needs: dict[str, float],
    lacks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "INFEASIBLE_S", 0.0)
    with pytest.raises(MacdError, match=f"has the {lacks} that a fit needs") as caught:
        cluster._next(Split(*nodes), [1], needs)
    assert "1 fits wait" in caught.value.why


def test_one_node_that_has_all_is_enough() -> None:
    assert cluster._lacking([{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}], {"CPU": 1, "GPU": 1}) == []


def test_a_lost_input_of_a_fit_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray wraps it as if the fit itself had failed."""
    lost = ray.exceptions.ObjectLostError("ab" * 28, None, "")

    def gone(*_: object, **__: object) -> tuple[object, list[object]]:
        raise ray.exceptions.RayTaskError("fit", "its traceback", lost)

    monkeypatch.setattr(cluster, "_next", gone)
    monkeypatch.setattr(cluster, "_joined", lambda _: ray)
    monkeypatch.setattr(ray, "put", lambda shared: shared)
    jobs = [(0, 1, "")]
    monkeypatch.setattr(ray, "remote", lambda **_: lambda f: _Remote())
    with pytest.raises(MacdError, match="a node that held the training's data is gone"):
        list(cluster.run(work, work, jobs, None, "cpu", 1))


class _Remote:
    def remote(self, *_: object) -> None: ...


def test_differing_software_begins_with_python() -> None:
    here, there = {"python": "3.11.7", "a": "1"}, {"python": "3.11.9", "b": "2", "a": "1"}
    differences = software.differing(here, there)
    assert differences == ["python 3.11.9 (here 3.11.7)", "b 2 (here missing)"]
    assert software.digest_of({"a": "1", "b": "2"}) == software.digest_of({"b": "2", "a": "1"})
