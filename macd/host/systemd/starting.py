"""At which step systemd could not start a program at all, by its own words, and what helps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from macd.host import untrusted
from macd.host.systemd import namespaces, selinux

# The second is PID 1's own, of any end. The first comes from a process that is gone, so the journal
# may not know of which unit it was.
_STEP = re.compile(
    r"Failed at step (\w+) spawning [^:]+: .+|Main process exited, code=exited, status=\d+/(\w+)"
)


def refused_step(lines: Sequence[str]) -> tuple[str, str]:
    """The step and what systemd said, from the lines of its journal; the last one counts.

    ("NAMESPACE", "Failed at step NAMESPACE spawning /bin/true: Operation not permitted"); ("", "")
    where no step failed.
    """
    matches = [match for line in lines if (match := _STEP.search(line))]
    if not matches:
        return "", ""
    step = matches[-1][1] or matches[-1][2]
    fullest = next((match for match in reversed(matches) if match[1] == step), matches[-1])
    return step, untrusted.line(fullest[0], 300)


def remedy(step: str, said: str) -> str:
    """What helps; "" where that is not known."""
    if step in namespaces.STEPS:
        return namespaces.REMEDY
    if step == "EXEC" and "Permission denied" in said and selinux.enforces():
        return selinux.REMEDY
    return ""
