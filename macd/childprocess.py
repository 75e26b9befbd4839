"""Run a part of this software in a child process: asked by JSON, limited, killed when late.

The child may take all memory, hang or abort without hurting the process that asks. It gets nothing
of the caller's environment but what libraries need. It has no network where the kernel lets a user
take it away, and it writes to no file unless the limits allow that. It is no jail: code that takes
the child over has the user's rights on files that can be read.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import IO, Any, TypeVar

MEMORY_BYTES = 6 << 30
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")
_LONGEST_ANSWER = 64 << 20
_NESTED = "MACD_CHILD_PROCESS"  # set in a child: what it starts ends together with it

Document = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a child may take. timeout_s counts by the clock: a busy machine is no defect."""

    memory_bytes: int = MEMORY_BYTES
    cpu_s: int = 120
    timeout_s: float = 300
    file_bytes: int = 0


DEFAULT = Limits()


class EndedError(Exception):
    """The child gave no answer; the message says how it ended."""


def ask(command: str, question: Mapping[str, Any], limits: Limits = DEFAULT) -> Document:
    """The answer of `python -m command`, whose main is `main` below. Raises EndedError."""
    with asked(command, question, limits) as answer:
        return answer()


@contextmanager
def asked(
    command: str, question: Mapping[str, Any], limits: Limits = DEFAULT
) -> Iterator[Callable[[], Document]]:
    """As `ask`, while something else is done: the child works from here on, and what is called
    waits for its answer. A child that nobody waited for is killed.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", _NESTED: "1"}
    outermost = _NESTED not in os.environ
    argv = [sys.executable, "-I", "-m", *command.split()]
    with subprocess.Popen(
        [*(_without_network() if outermost else ()), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=outermost,
    ) as child:
        message = json.dumps({"limits": asdict(limits), "question": question}).encode()
        pipe, child.stdin = child.stdin, None
        threading.Thread(target=_send, args=(pipe, message), daemon=True).start()
        try:
            yield lambda: _answer(child, limits)
        finally:
            if child.poll() is None:  # late, Ctrl-C, or nobody waited
                _kill(child, group=outermost)


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def answers(questions: Sequence[AbstractContextManager[Callable[[], T]]], each: int = 1) -> list[T]:
    """The answer of each, in their order. As many work at the same time as there are cores.

    questions: each as `asked`, with `each` children of its own. Nothing of it goes on afterwards.
    """
    many = max(1, cores() // each)
    answered: list[T] = []
    for start in range(0, len(questions), many):
        with ExitStack() as working:
            waiting = [working.enter_context(part) for part in questions[start : start + many]]
            answered += [answer() for answer in waiting]
    return answered


def _send(pipe: IO[bytes], message: bytes) -> None:
    """In a thread of its own: a pipe takes 64 KiB, and the child may hang before it reads more."""
    with suppress(OSError), pipe:  # it ended before it had read
        pipe.write(message)


def _answer(child: subprocess.Popen[bytes], limits: Limits) -> Document:
    try:
        output, _ = child.communicate(timeout=limits.timeout_s)
    except subprocess.TimeoutExpired as error:
        raise EndedError(f"it was not done in {limits.timeout_s:g} s") from error
    if child.returncode == -signal.SIGXCPU:
        raise EndedError(f"it was not done in {limits.cpu_s} s of computing")
    if child.returncode < 0:
        raise EndedError(f"it ended the process that read it ({_name(-child.returncode)})")
    try:
        answer = json.loads(output[:_LONGEST_ANSWER])
    except ValueError as error:
        raise EndedError(f"its process ended with {child.returncode} and no answer") from error
    if not isinstance(answer, dict):
        raise EndedError("its process answered something else")
    return answer


def main(answer: Callable[[Document], Document]) -> None:
    """The child's side: read the question, take the limits, answer."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)  # libraries print; only the answer may go out
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    message = json.load(sys.stdin)
    limits = Limits(**message["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    with out:
        json.dump(answer(message["question"]), out)


@lru_cache(maxsize=1)
def _without_network() -> tuple[str, ...]:
    """The command that starts a child in an empty network; empty where that is not allowed."""
    program = shutil.which("unshare")
    if program is None:
        return ()
    own_user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    argv = (program, *own_user, "--net", "--")
    try:
        done = subprocess.run([*argv, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return argv if done.returncode == 0 else ()


def _kill(child: subprocess.Popen[bytes], *, group: bool) -> None:
    if group:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
