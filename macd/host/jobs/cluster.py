"""One node of a training's Ray cluster, as a job of its host: it starts Ray, and ends it.

The runner starts this (`python -m macd.host.jobs.cluster RUN_DIRECTORY [TRAINING...]`). With a
training it is the head: Ray and the training beside it, and Ray ends with the training. Without one
it joins the head, and ends by itself once the head is gone, whoever is there to say so. Ray's files
lie in a directory of their own, which goes with the node.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.jobs.children import (
    Stopped,
    asked_already,
    end_processes,
    ignore_signals,
    own_descendants,
    stop_on_signals,
)
from macd.host.layout import load, save

NODE, TOKEN, LOGS = "node.json", "token", "ray-logs"
# What a training that a node starts is given: the node's address, and how many nodes there are.
ADDRESS_VARIABLE, NODES_VARIABLE = "MACD_RAY_NODE", "MACD_RAY_NODES"
# A fit has one thread, whichever node runs it.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
RESULT = "result.json"
FIXED_PORTS = 8  # of a node, from the first of its range on; the others are its workers'
GONE_S = 20.0  # no head for so long: the run is over
_JOIN_S = 180.0
_END_S = 8.0
_POLL_S = 0.5
_CONNECT_S = 3.0
_SETTLED_S = 60.0
_TRIES = 5
# An AF_UNIX path has at most 107 bytes; Ray's longest is this below its directory.
_BELOW = "/session_2026-11-29_19-56-10_651261_1234567/sockets/plasma_store"
_LONGEST = 107 - len(_BELOW)


@dataclass(frozen=True)
class Node:
    """This node. address: its own; head: ADDRESS:PORT; nodes: of the whole cluster; ports: first
    and last of this host's that Ray may use.
    """

    address: str
    head: str
    nodes: int
    ports: tuple[int, int]


def main(directory: str, training: Sequence[str]) -> int:
    """Be a node until the run is over; the exit code, the training's own on the head."""
    runner = own_descendants(directory)
    document = load(os.path.join(directory, NODE), {})
    node = Node(**{**document, "ports": tuple(document["ports"])})
    token = os.path.join(directory, TOKEN)
    work = os.path.dirname(os.path.dirname(directory))
    stop_on_signals()
    files, code, stopped = "", 1, False
    try:
        files = own_directory(work)
        argv = command(node, files, is_head=bool(training))
        env = environment(node, token)
        if training:
            code = _head(node, argv, training, env, runner)
        else:
            code = _worker(node, argv, env)
            save(os.path.join(directory, RESULT), {"state": "done", "files": []})
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        failed = {"state": "failed", "stage": "cluster", "what": error.what, "why": error.why}
        save(os.path.join(directory, RESULT), {**failed, "hint": error.hint})
    except Stopped:
        stopped = True
    finally:
        ignore_signals()
        end_processes()  # Ray keeps nothing that is worth a wait
        if code and not stopped:
            _keep_logs(files, directory)
        shutil.rmtree(files, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(token)
    return code


def command(node: Node, files: str, *, is_head: bool) -> list[str]:
    """The command that starts Ray here. It holds no secret: `ps` shows it to everybody."""
    port = node.ports[0]
    head = [f"--port={node.head.rpartition(':')[2]}", "--include-dashboard=false"]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *(["--head", *head] if is_head else [f"--address={node.head}"]),
        f"--node-ip-address={node.address}",
        f"--temp-dir={files}",
        f"--node-manager-port={port + 1}",
        f"--object-manager-port={port + 2}",
        f"--runtime-env-agent-port={port + 3}",
        f"--dashboard-agent-listen-port={port + 4}",
        f"--dashboard-agent-grpc-port={port + 5}",
        f"--metrics-export-port={port + 6}",
        f"--min-worker-port={port + FIXED_PORTS}",
        f"--max-worker-port={node.ports[1]}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]


def environment(node: Node, token: str) -> dict[str, str]:
    """Variables of Ray and of all that it starts. The token is a file that only its owner reads."""
    return {
        **dict.fromkeys(ONE_THREAD, "1"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_worker_niceness": "0",
        "AUTOSCALER_METRIC_PORT": str(node.ports[0] + 7),
    }


def training_environment(node: Node, token: str) -> dict[str, str]:
    """Variables of the training, which joins the cluster as its driver."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_ADDRESS": node.head,
        ADDRESS_VARIABLE: node.address,
        NODES_VARIABLE: str(node.nodes),
    }


def own_directory(work: str) -> str:
    """An empty directory for Ray's files, below the work directory where its path is short enough.

    One node at a time uses it: what a killed one left is removed.
    """
    path = os.path.join(work, "ray")
    if len(path.encode()) > _LONGEST:
        mark = hashlib.sha256(work.encode()).hexdigest()[:12]
        path = os.path.join(tempfile.gettempdir(), f"macd-ray-{mark}")
    shutil.rmtree(path, ignore_errors=True)
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise HostError(
            "there is no place for Ray's files on this host",
            why=f"{path}: {error.strerror or error}",
            hint=f"remove it on the host: rm -r {path}",
        ) from error
    return path


def _head(
    node: Node, argv: list[str], training: Sequence[str], env: dict[str, str], runner: int
) -> int:
    """Start Ray, then the training; its exit code. Raises HostError when Ray does not start."""
    ray = _start(argv, env)
    deadline = time.monotonic() + _JOIN_S
    while not answers(node.head):
        if ray.poll() is not None or time.monotonic() > deadline:
            raise HostError(
                "Ray did not start on the head of the cluster",
                why=_how(ray),
                hint=f"the run's log says why; Ray's own files are in its {LOGS}",
            )
        time.sleep(_POLL_S)
    child = _start(training, training_environment(node, env["RAY_AUTH_TOKEN_PATH"]))
    try:
        return child.wait()  # Ray's end becomes the training's own error, in words
    except Stopped:
        if asked_already(runner) == -1:
            child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_S)  # it says how far it came
        raise


def _worker(node: Node, argv: list[str], env: dict[str, str]) -> int:
    """Be a worker while the head answers; 0 once it was there and is gone.

    Raises HostError: it never came, or Ray dies here again and again.
    """
    seen, since = False, time.monotonic()
    ray: subprocess.Popen[bytes] | None = None
    started, failures = 0.0, 0
    while True:
        now = time.monotonic()
        if answers(node.head):
            seen, since = True, now
            if ray is None:
                ray, started = _start(argv, env), now
        elif now - since > (GONE_S if seen else _JOIN_S):
            break
        if ray is not None and ray.poll() is not None:
            failures = 0 if now - started > _SETTLED_S else failures + 1
            if failures == _TRIES:
                raise HostError(
                    f"Ray ended {_TRIES} times on this worker of the cluster",
                    why=_how(ray),
                    hint=f"the run's log here says why; Ray's own files are in its {LOGS}",
                )
            end_processes()
            ray = None
        time.sleep(_POLL_S)
    if not seen:
        raise HostError(
            "the head of the cluster did not come",
            why=f"nothing answered at {node.head} for {_JOIN_S:.0f} s",
            hint="invoke train starts the whole cluster again",
        )
    sys.stderr.write(f"the head {node.head} is gone: this worker ends\n")
    return 0


def answers(address: str) -> bool:
    """Whether something listens at ADDRESS:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _start(argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    inherited: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen([*argv], env={**inherited, **env}, stdin=subprocess.DEVNULL)


def _how(ray: subprocess.Popen[bytes]) -> str:
    code = ray.poll()
    return f"ray start ended with {code}" if code is not None else "it does not answer"


def _keep_logs(files: str, directory: str) -> None:
    """Ray's logs of a node that failed, for a person; those of the newest session."""
    with contextlib.suppress(OSError):
        logs = os.path.join(os.path.realpath(os.path.join(files, "session_latest")), "logs")
        shutil.copytree(logs, os.path.join(directory, LOGS), dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main(durable.expand(sys.argv[1]), sys.argv[2:]))
