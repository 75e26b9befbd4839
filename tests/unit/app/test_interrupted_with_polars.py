"""Ctrl-C ends a wait at once although polars is loaded."""

from __future__ import annotations

import subprocess
import sys

WAITING = """
import os, queue, signal, threading, time
import macd.app.market
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
threading.Timer(20, os._exit, (9,)).start()
try:
    queue.SimpleQueue().get()
except KeyboardInterrupt:
    os._exit(3)
"""


def test_a_wait_ends() -> None:
    assert subprocess.run([sys.executable, "-c", WAITING], timeout=60, check=False).returncode == 3
