"""Why a training failed, and what helps: the known failures, recognised by their messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LOG_LINES = 12
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|device has no memory",
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
        r"No module named '?([\w.]+)|a package is missing: (?:No module named )?'?([\w.]+)",
        "on the host: python -m pip install {0}",
    ),
    (
        r"No space left on device|disk (is )?full|Disk quota exceeded|ENOSPC",
        "make room on the host: old runs under work_dir/runs, finished fits under work_dir/cache",
    ),
    (
        r"CUDA driver|no CUDA-capable device|CUDA error|NVIDIA driver",
        "nvidia-smi on the host says whether its driver works; a reboot, or a torch build for its "
        "CUDA version, helps",
    ),
    (
        r"killed by signal 9|ran out of memory|MemoryError|Cannot allocate memory",
        "the host's memory ran out: fewer fits side by side (--settings FILE with "
        '{"workers": 1}), or --profile demo',
    ),
    (
        r"Permission denied|PermissionError",
        "the user that trains must own work_dir on the host: ls -ld, chown",
    ),
    (
        r"rebooted|its runner was killed|the host stopped it",
        "invoke train starts it again; finished fits and checkpoints are kept, so it goes on",
    ),
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
    remedy = remedy_for("\n".join([reason, detail, *lines])) or str(result.get("hint") or "")
    return Failure(stage, reason, detail, "\n".join(lines), remedy)


def remedy_for(text: str) -> str:
    """What helps against a known failure; "" for an unknown one."""
    for pattern, remedy in _KNOWN:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            named = next((group for group in match.groups() if group), "")
            return remedy.replace("{0}", named.partition(".")[0])
    return ""
