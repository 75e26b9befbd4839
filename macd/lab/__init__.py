"""The embedded lab: three SSH hosts on loopback, for the demo, tests and trying out."""

from macd.lab.lifecycle import (
    down,
    kill_host,
    reset_counters,
    restart_host,
    revive_host,
    set_fault,
    status,
    up,
)
from macd.lab.state import Counters, Fault, HostState, LabState

__all__ = [
    "Counters",
    "Fault",
    "HostState",
    "LabState",
    "down",
    "kill_host",
    "reset_counters",
    "restart_host",
    "revive_host",
    "set_fault",
    "status",
    "up",
]
