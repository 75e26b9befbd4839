"""What lab commands and the daemon share: .lab/state.json, status values, the control socket.

On the control socket one JSON line asks and one JSON line answers; then it closes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.host.durable import replace_file
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
    text = json.dumps(asdict(record), indent=2) + "\n"
    replace_file(record_path(root), text.encode(), mode=0o600)


def host_from(fields: dict[str, Any]) -> HostState:
    """A HostState from the daemon's answer."""
    made = {"fault": Fault(**fields["fault"]), "counters": Counters(**fields["counters"])}
    return HostState(**{**fields, **made, "home": Path(fields["home"])})


Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def ask(control: Path, request: dict[str, Any], *, timeout: float = 30.0) -> dict[str, Any]:
    """Ask the daemon; raises MacdError when it refuses or can't be reached."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(timeout)
            link.connect(str(control))
            link.sendall(json.dumps(request).encode() + b"\n")
            with link.makefile("rb") as stream:
                answer: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise MacdError(
            "the lab's daemon doesn't answer",
            why=f"{control}: {error or type(error).__name__}",
            hint="invoke lab.down, then invoke lab.up",
        ) from error
    if "error" in answer:
        raise MacdError(f"the lab refuses: {answer['error']}", hint="invoke lab.status")
    return answer


async def listen(control: Path, answer: Answer) -> asyncio.Server:
    """Serve the control socket; an error that `answer` raises is sent back as `error`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await answer(json.loads(await reader.readline()))
        except (MacdError, ValueError, KeyError, TypeError, OSError) as error:
            reply = {"error": str(error)}
        try:
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except OSError:
            pass  # the asker gave up
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, path=control)
