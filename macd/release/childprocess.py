"""A child process for files that nobody vouches for: asked by JSON, limited, killed when late.

What it runs may take all memory, hang or abort without hurting the one who asked. It gets none of
the caller's environment but what libraries need, and can't write to any file unless told so. It is
no sandbox: code that takes the process over has the user's rights.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

MEMORY_BYTES = 6 << 30
CPU_S = 120
TIMEOUT_S = 300  # by the clock: a busy machine is no defect
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")
_LONGEST_ANSWER = 1 << 20

Document = dict[str, Any]


class EndedError(Exception):
    """The child gave no answer; the message says how it ended."""


def ask(module: str, question: Mapping[str, Any]) -> Document:
    """What `python -m module`, whose main is `main` below, answers. Raises EndedError."""
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(
        [sys.executable, "-I", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    ) as child:
        try:
            said, _ = child.communicate(json.dumps(question).encode(), timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise EndedError(f"it was not done in {TIMEOUT_S} s") from error
        finally:
            if child.poll() is None:  # late, or Ctrl-C
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode == -signal.SIGXCPU:
        raise EndedError(f"it was not done in {CPU_S} s of computing")
    if child.returncode < 0:
        raise EndedError(f"it ended the process that read it ({_name(-child.returncode)})")
    try:
        found = json.loads(said[:_LONGEST_ANSWER])
    except ValueError as error:
        raise EndedError(f"its process ended with {child.returncode} and no answer") from error
    if not isinstance(found, dict):
        raise EndedError("its process answered something else")
    return found


def main(answer: Callable[[Document], Document], *, file_bytes: int = 0) -> None:
    """The child's side: read the question, take the limits, answer. file_bytes: it may write."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)  # libraries print; the answer stands alone
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    question = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    with out:
        json.dump(answer(question), out)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
