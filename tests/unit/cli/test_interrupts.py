"""Ctrl-C while the commands are still being loaded ends without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal
from macd.cli import interrupts
signal.signal(signal.SIGINT, signal.{handler})
interrupts.leave_quietly()
{then}
os.kill(os.getpid(), signal.SIGINT)
print("went on")
"""


@pytest.mark.parametrize(
    ("handler", "then", "code", "said"),
    [
        ("default_int_handler", "", 130, ""),
        ("default_int_handler", "interrupts.as_usual()", -2, "KeyboardInterrupt"),
        ("SIG_IGN", "interrupts.as_usual()", 0, "went on"),
    ],
)
def test_before_and_after_a_verb_begins(handler: str, then: str, code: int, said: str) -> None:
    program = PROGRAM.format(handler=handler, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert (done.stdout + done.stderr).strip().endswith(said)
    assert said or not done.stderr
