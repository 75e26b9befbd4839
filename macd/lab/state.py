"""What a lab remembers between commands: .lab/state.json, and the values that status shows."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.lab.processes import is_running

HOSTS = ("jump", "h800", "prod")
USERS = {"jump": "jump", "h800": "quant", "prod": "deploy"}


@dataclass(frozen=True)
class Fault:
    """What a host's link does to its traffic; the default is a perfect link.

    Args:
        rtt_ms: added round-trip time, half of it each way; connecting costs one more.
        mbit: limit in Mbit/s for each direction, shared by the host's connections.
        stall: forward nothing, close nothing: a dead link as it looks from the operator.
        cut_after: close after exactly this many bytes, once; then the link works again.
        cut_direction: the bytes counted: "up" (to the host), "down", or "both".
        cut_on: "next": the next connection; "present": those open now, their bytes together.
    """

    rtt_ms: float = 0.0
    mbit: float | None = None
    stall: bool = False
    cut_after: int | None = None
    cut_direction: str = "both"
    cut_on: str = "next"


@dataclass(frozen=True)
class Counters:
    """What went over a host's link since `up` or the last reset.

    turnarounds: how often the traffic changed its direction; a strictly alternating
    question-and-answer exchange makes two of them a round trip.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    open: int = 0
    turnarounds: int = 0
    cuts: int = 0


@dataclass(frozen=True)
class HostState:
    """One lab host: `port` is its port on 127.0.0.1, None for a host only jump reaches."""

    name: str
    user: str
    alias: str
    home: Path
    port: int | None
    up: bool = True
    fault: Fault = field(default_factory=Fault)
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True)
class LabState:
    """A lab as seen from here; `pid` 0 when it isn't running."""

    root: Path
    running: bool
    id: str = ""
    pid: int = 0
    hosts: dict[str, HostState] = field(default_factory=dict)
    was_running: bool = False

    @property
    def directory(self) -> Path:
        return self.root / ".lab"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def key(self) -> Path:
        return self.directory / "keys" / "operator"

    @property
    def log(self) -> Path:
        return self.directory / "daemon.log"


@dataclass(frozen=True)
class Record:
    """state.json: what is needed to find, and to end, a lab that an earlier command started."""

    id: str
    pid: int
    started: str
    private: str
    ports: dict[str, int]

    @property
    def control(self) -> Path:
        return Path(self.private) / "control"

    def alive(self) -> bool:
        return is_running(self.pid, self.started)


def record_path(root: Path) -> Path:
    return root / ".lab" / "state.json"


def read_record(root: Path) -> Record | None:
    """The record of the lab started last, running or not; None when there is none."""
    path = record_path(root)
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise MacdError(
            f"{path} can't be read as the state of a lab",
            why=str(error),
            hint=f"end the lab's processes if there are any, then: rm {path}",
        ) from error


def write_record(root: Path, record: Record) -> None:
    write_atomically(record_path(root), json.dumps(asdict(record), indent=2) + "\n")


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write so that a reader sees the old text or the new one, never half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)


def host_from(fields: dict[str, Any]) -> HostState:
    """A HostState from the daemon's answer."""
    return HostState(
        name=fields["name"],
        user=fields["user"],
        alias=fields["alias"],
        home=Path(fields["home"]),
        port=fields["port"],
        up=fields["up"],
        fault=Fault(**fields["fault"]),
        counters=Counters(**fields["counters"]),
    )
