"""Why a training failed, and what helps: the known failures, recognised by their messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LOG_LINES = 12
_GPU_FULL = r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|device has no memory"
_DISK_FULL = r"No space left on device|disk (is )?full|Disk quota exceeded|ENOSPC"
_DRIVER = r"CUDA driver|no CUDA-capable device|CUDA error|NVIDIA driver"
_MEMORY = r"killed by signal 9|ran out of memory|MemoryError|Cannot allocate memory"
_STOPPED = r"rebooted|its runner was killed|the host stopped it"
_DRIVER_HELP = (
    "nvidia-smi on the host says whether its driver works; a reboot, or a torch build for its "
    "CUDA version, helps"
)
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        _GPU_FULL,
        "the GPU's memory is full: nvidia-smi shows whether somebody else uses it; else a smaller "
        "batch, or --profile demo",
    ),
    (
        r"stacking.*(samples|few)|ML_STACKING_MIN_SAMPLES",
        "more bars (invoke data.fetch), or lower ML_STACKING_MIN_SAMPLES for this run: "
        "ML_STACKING_MIN_SAMPLES=2000 invoke train",
    ),
    (
        r"loss (is|became|was) (nan|not finite|not a number)|\bNaN loss\b|nan.*loss|loss.*nan",
        "the net diverged: look for absurd bars (invoke data.verify), or lower its learning rate "
        'with --settings FILE: {"params": {"lstm": {"lr": 0.0003}}}',
    ),
    (
        r"No module named '?(?!macd\b)([\w.]+)",  # macd's own files are sent, never installed
        "on the host: python -m pip install {0}",
    ),
    (
        _DISK_FULL,
        "make room on the host: old runs under work_dir/runs, finished fits under work_dir/cache",
    ),
    (
        _DRIVER,
        _DRIVER_HELP,
    ),
    (
        _MEMORY,
        "the host's memory ran out: fewer fits side by side (--settings FILE with "
        '{"workers": 1}), or --profile demo',
    ),
    (
        r"Permission denied|PermissionError",
        "the user that trains must own work_dir on the host: ls -ld, chown",
    ),
    (
        _STOPPED,
        "invoke train starts it again; finished fits and checkpoints are kept, so it goes on",
    ),
)
# Of an application of the team's own: it has none of the built-in one's options and caches.
_OWN: tuple[tuple[str, str], ...] = (
    (_GPU_FULL, "nvidia-smi on the host shows whether somebody else uses it; else less at once"),
    (
        r"No module named '?([\w.]+)",
        "the Python of the stages lacks {0}: name it in the file of train.setup, or on the host: "
        "python -m pip install {0}. Is it a file of the source? git add it",
    ),
    (
        _DISK_FULL,
        "make room on the host: old runs under work_dir/runs, environments under "
        "work_dir/environments",
    ),
    (_DRIVER, _DRIVER_HELP),
    (_MEMORY, "the host's memory ran out: do less at once"),
    (_STOPPED, "invoke train starts it again, from its first stage"),
)


@dataclass(frozen=True)
class Failure:
    """Why a run is over without a result."""

    stage: str
    reason: str
    detail: str
    log: str
    remedy: str


def explain(status: Mapping[str, Any], events: Sequence[Mapping[str, Any]], log: str) -> Failure:
    """The failure, from the host's status, the run's last events and its log.

    `status` as job_status returns it (result may be absent), `log` the end of the log.
    """
    result = status.get("result") or {}
    stage = str(result.get("stage") or "")
    for event in events:
        if event.get("event") in ("stage_started", "run_failed") and not result.get("stage"):
            stage = str(event.get("stage") or stage)
    reason, detail = str(status.get("reason") or ""), str(result.get("why") or "")
    lines = [line for line in log.splitlines() if line.strip()][-_LOG_LINES:]
    said, hint = "\n".join([reason, detail, *lines]), str(result.get("hint") or "")
    own = bool((status.get("spec") or {}).get("about", {}).get("own"))
    remedy = remedy_for(said, _OWN if own else _KNOWN) or hint
    return Failure(stage, reason, detail, "\n".join(lines), remedy)


def remedy_for(text: str, known: Sequence[tuple[str, str]] = _KNOWN) -> str:
    """What helps against a known failure; "" for an unknown one."""
    for pattern, remedy in known:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            named = next((group for group in match.groups() if group), "")
            return remedy.replace("{0}", named.partition(".")[0])
    return ""
