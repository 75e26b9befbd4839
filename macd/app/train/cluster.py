"""Fits on a Ray cluster: join it, check its nodes, ask what it offers, run, and word what fails.

Where a fit runs is Ray's matter. What it needs is decided by the cluster: its GPUs count, never the
driver's own, so a laptop without a card trains on the cluster's. Ray does not compare what is
installed on its nodes. That is done here before any fit, because other versions give other numbers.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import macd
from macd.app.train import cards
from macd.app.train.cards import Cards
from macd.errors import MacdError
from macd.host.jobs.cluster import ADDRESS_VARIABLE, NODES_VARIABLE, ONE_THREAD
from macd.host.jobs.software import differing, digest_of, in_short, software

_JOIN_S = 180.0  # for the others to come
INFEASIBLE_S = 30.0  # Ray itself waits for ever for what no node offers
_LOOK_S = 2.0
_LOGS = "/tmp/ray/session_latest/logs (work_dir/ray where train.hosts made the cluster)"  # noqa: S108
_AGAIN = "start the same training again: finished fits are kept"


def offers(device: str, workers: int) -> tuple[int, tuple[str, ...], int]:
    """Fits at once, the device of each, and how many share a card, as the cluster has it now.

    device: auto, cpu or cuda. workers: 0 for as many as fit. Joins the cluster if that was not
    done, and checks its nodes.

    Raises:
        MacdError: cuda without a GPU in the cluster, a node with other software, no cluster.
    """
    ray = _joined(workers)
    have = ray.cluster_resources()
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    if device == "cuda" and not gpus:
        raise MacdError(
            "the Ray cluster has no GPU",
            why=f"it offers {_words(have)}",
            hint="start a node with a GPU, or train with --device cpu",
        )
    if not gpus or device == "cpu":
        return workers or max(cpus, 1), ("cpu",), 1
    cards.use(_cards_of(ray))
    each = cards.fits_on(cards.smallest_card())
    return workers or max(1, min(cpus, each * gpus)), ("cuda:0",), each


def run(
    alone: Callable[..., Any],
    function: Callable[..., Any],
    numbered: Sequence[tuple[int, Any, str]],
    shared: Any,
    device: str,
    per_device: int,
) -> Iterator[tuple[int, Any]]:
    """Yield (position, result) of each job as it finishes; `alone` calls `function` on one thread.

    Ray does a job again whose worker or node died. The numbers are the same: they depend on the job
    alone.

    Raises:
        MacdError: the job's own, or in words what the cluster did.
    """
    ray = _joined(0)
    gpu = device.startswith("cuda")
    needs = {"CPU": 1.0, **({"GPU": 1 / per_device} if gpu else {})}
    task: Any = ray.remote(num_cpus=1, num_gpus=needs.get("GPU", 0))(_on_node)
    # A node that comes later was not there to be checked.
    installed = software() if os.environ.get("RAY_ADDRESS") else None
    try:
        stored = ray.put(shared)
        # Ray shows each task only its own GPU, as number 0.
        waiting = [
            task.remote(installed, cards.known(), alone, function, at, job, stored, device)
            for at, job, _ in numbered
        ]
        while waiting:
            done, waiting = _next(ray, waiting, needs)
            yield ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause or error
        lost = isinstance(error.cause, ray.exceptions.RayError)  # what a fit was to be given
        raise (_worded(ray, cause) if lost else None) or cause from error  # else the fit's own
    except Exception as error:
        if (worded := _worded(ray, error)) is None:
            raise
        raise worded from error


def _next(ray: Any, waiting: list[Any], needs: dict[str, float]) -> tuple[Any, list[Any]]:
    """The next job that ended. Raises MacdError within INFEASIBLE_S where no node can run one."""
    lacking_since: float | None = None
    while True:
        done, rest = ray.wait(waiting, num_returns=1, timeout=_LOOK_S)
        if done:
            return done[0], rest
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        lacks = _lacking(nodes, needs)
        lacking_since = (lacking_since or time.monotonic()) if lacks else None
        if lacking_since and time.monotonic() - lacking_since >= INFEASIBLE_S - _LOOK_S:
            offered = " and ".join(map(_words, nodes)) or "nothing"
            raise MacdError(
                f"no node of the Ray cluster has the {' and '.join(lacks)} that a fit needs",
                why=f"node by node it offers {offered}; {len(waiting)} fits wait",
                hint=f"bring a node back, then {_AGAIN}",
            )


def _lacking(nodes: Sequence[dict[str, float]], needs: dict[str, float]) -> list[str]:
    """What no node has enough of, or no node together; [] where one has all that a fit needs."""
    enough = [{name for name, least in needs.items() if has.get(name, 0) >= least} for has in nodes]
    if any(len(there) == len(needs) for there in enough):
        return []
    return sorted(set(needs).difference(*enough)) or list(needs)


def _on_node(
    installed: dict[str, str] | None,
    known: Cards | None,
    alone: Callable[..., Any],
    function: Any,
    position: int,
    *rest: Any,
) -> Any:
    if installed is not None and (parts := differing(installed, _mine())):
        raise _other_software(f"{platform.node()}: {in_short(parts)}")
    if known is not None:
        cards.use(known)  # cards that differ are all treated as the smallest
    return alone(function, position, *rest)


@functools.cache
def _mine() -> dict[str, str]:
    return software()


def _joined(workers: int) -> Any:
    """Ray, connected: to the cluster that RAY_ADDRESS names, else to one made on this machine."""
    try:
        import ray  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise MacdError(
            "the engine ray needs the package ray",
            why=str(error),
            hint='pip install "macd[ray]", or --engine local',
        ) from error
    if not ray.is_initialized():
        _start(ray, workers)
        _await_nodes(ray, int(os.environ.get(NODES_VARIABLE, "1")))
        _check_nodes(ray)
    return ray


def _start(ray: Any, workers: int) -> None:
    """Join the cluster RAY_ADDRESS names, bringing our code; else start one on this machine.

    A node that `invoke train` started has our code and the limits already (ADDRESS_VARIABLE).
    """
    address = os.environ.get("RAY_ADDRESS")
    limits = dict.fromkeys(ONE_THREAD, "1")
    if address:
        ours = str(Path(macd.__file__).parent)
        own = os.environ.get(ADDRESS_VARIABLE)
        how: dict[str, Any] = {"runtime_env": {"env_vars": limits, "py_modules": [ours]}}
        try:
            ray.init(address=address, **({"_node_ip_address": own} if own else how))
        except ConnectionError as error:
            raise MacdError(
                f"the Ray cluster at {address} can't be joined",
                why=str(error),
                hint="check that RAY_ADDRESS names a running head, and that RAY_AUTH_TOKEN holds "
                "its token where it asks for one; or use --engine local",
            ) from error
    else:
        # Its processes inherit our environment. A runtime_env would start each worker twice.
        before = {name: os.environ.get(name) for name in limits}
        os.environ.update(limits)
        try:
            ray.init(address="local", num_cpus=workers or None, include_dashboard=False)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _await_nodes(ray: Any, wanted: int) -> None:
    """Wait until the cluster is whole: what it offers decides between GPU and CPU.

    Raises MacdError: a node doesn't come.
    """
    deadline = time.monotonic() + _JOIN_S
    while len(there := [node["NodeName"] for node in ray.nodes() if node["Alive"]]) < wanted:
        if time.monotonic() > deadline:
            raise MacdError(
                f"only {len(there)} of the {wanted} nodes of the cluster came",
                why=f"after {_JOIN_S:.0f} s there are: {', '.join(there)}",
                live="no fit was started",
                hint="invoke train.status shows each node; then start the training again, without "
                "the host that is broken (train.hosts)",
            )
        time.sleep(1.0)


def _check_nodes(ray: Any) -> None:
    """Raises MacdError: a node has another Python or other packages than the driver."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and not os.environ.get("RAY_ADDRESS"):
        return  # this very machine
    here = software()
    task = ray.remote(num_cpus=0)(software)
    asked = {node["NodeName"]: _pinned(ray, task, node).remote() for node in nodes}
    wrong = []
    for name, pending in asked.items():
        try:
            there = ray.get(pending, timeout=INFEASIBLE_S)
        except Exception as error:
            raise _worded(ray, error) or _unasked(name, error) from error
        if digest_of(there) != digest_of(here):
            wrong.append(f"{name}: {in_short(differing(here, there))}")
    if wrong:
        raise _other_software("\n".join(wrong))


def _other_software(why: str) -> MacdError:
    return MacdError(
        "nodes of the Ray cluster have other software than this machine",
        why=why,
        live="no fit was done there: other versions give other numbers",
        hint="install the same there, as by requirements.lock, then start the training again",
    )


def _unasked(name: str, error: Exception) -> MacdError:
    return MacdError(
        f"node {name} of the Ray cluster does not answer",
        why=f"{type(error).__name__}: {error}"[:500],
        hint=f"look at that node (ray status), then {_AGAIN}",
    )


def _pinned(ray: Any, task: Any, node: dict[str, Any]) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False))


def _cards_of(ray: Any) -> Cards:
    """The smallest card of the cluster, and whether each computes in bf16.

    Raises MacdError: Ray counts a GPU on a node where torch finds none.
    """
    task = ray.remote(num_cpus=0, num_gpus=1)(cards.here)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    asked = {node["NodeName"]: _pinned(ray, task, node).remote() for node in nodes}
    known = []
    for name, pending in asked.items():
        try:
            known.append(ray.get(pending, timeout=4 * INFEASIBLE_S))
        except Exception as error:
            raise _worded(ray, error) or _unasked(name, error) from error
        if known[-1] is None:
            raise MacdError(
                f"Ray counts a GPU on node {name}, but torch finds none there",
                why="torch.cuda.is_available() is false: no driver, or a CPU build of torch",
                hint="nvidia-smi there shows the GPU; --device cpu trains without one",
            )
    return Cards(min(one.memory for one in known), all(one.bf16 for one in known))


def _worded(ray: Any, error: Exception) -> MacdError | None:
    """What Ray means by an error of its own; None for one that is not Ray's."""
    said = " ".join(str(error).split())[:500]
    for name, what, hint in _ERRORS:
        kind = getattr(ray.exceptions, name, None)
        if kind is not None and isinstance(error, kind):
            return MacdError(what, why=f"{name}: {said}", live="no fit is lost", hint=hint)
    if isinstance(error, ConnectionError):
        return MacdError("contact with the Ray cluster was lost", why=said, hint=_AGAIN)
    return None


# The first that fits counts; a class stands before those that it is made of.
_ERRORS = (
    (
        "OutOfMemoryError",
        "a node of the Ray cluster ran out of memory",
        f"fewer fits at once (--workers N), or a node with more memory; then {_AGAIN}",
    ),
    (
        "ObjectStoreFullError",
        "the object store of the Ray cluster is full",
        f"start its nodes with a larger --object-store-memory; then {_AGAIN}",
    ),
    (
        "OutOfDiskError",
        "a node of the Ray cluster has no room on its disk",
        f"make room in its /tmp/ray, or work_dir where train.hosts made the cluster; then {_AGAIN}",
    ),
    (
        "NodeDiedError",
        "a node of the Ray cluster died, and its fits could not be done elsewhere",
        f"look at that node (ray status); then {_AGAIN}",
    ),
    (
        "WorkerCrashedError",
        "a worker of the Ray cluster crashed again and again",
        f"its log lies below {_LOGS} on its node; then {_AGAIN}",
    ),
    (
        "RuntimeEnvSetupError",
        "a node of the Ray cluster could not take our code",
        f"its log lies below {_LOGS} on its node; then {_AGAIN}",
    ),
    (
        "TaskUnschedulableError",
        "a node of the Ray cluster is gone",
        f"look at its nodes (ray status); then {_AGAIN}",
    ),
    ("ObjectLostError", "a node that held the training's data is gone", _AGAIN),
    ("TaskCancelledError", "a fit was cancelled on the Ray cluster", _AGAIN),
    ("GetTimeoutError", "a node of the Ray cluster does not answer", _AGAIN),
    ("RayError", "the Ray cluster failed", _AGAIN),
)


def _words(resources: dict[str, float]) -> str:
    named = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in named.items())
