"""The process that is the lab: three SSH servers, a link before each, and the control socket.

Run as `python -m macd.lab.daemon ROOT READY_FD`; one JSON line on READY_FD says that it serves, or
why it can't. SIGTERM ends it together with everything its hosts started.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from macd.errors import MacdError
from macd.lab import paths, state
from macd.lab.link import Link, Reader, Writer
from macd.lab.processes import Reaper, descendants, end, marked, started_at
from macd.lab.sshd import Carry, HostServer
from macd.lab.state import HOSTS, Fault, Record, write_record

PROD_PORTS = range(22222, 22322)
_ANY_PORT = range(1)


class LabHost:
    """One host: its SSH server, its wire, and its listener if it has an address of its own."""

    def __init__(self, place: paths.HostPaths, server: HostServer) -> None:
        self.paths = place
        self.server = server
        self.link = Link(server.dial)
        self.port: int | None = None
        self.up = True
        self._listener: asyncio.Server | None = None

    async def listen(self, ports: range) -> int:
        """Listen on the first free of these ports (0: any) and say which."""
        for port in ports:
            try:
                self._listener = await asyncio.start_server(
                    self.carry, "127.0.0.1", port, limit=256 * 1024
                )
            except OSError as error:
                reason = error
                continue
            self.up = True
            self.port = int(self._listener.sockets[0].getsockname()[1])
            return self.port
        raise MacdError(
            f"no free port for {self.paths.name} between {ports[0]} and {ports[-1]}",
            why=str(reason),
            hint="end what listens there (ss -ltnp), then: invoke lab.up",
        )

    async def carry(self, reader: Reader, writer: Writer) -> None:
        if self.up:
            await self.link.serve(reader, writer)
        else:
            writer.close()

    def kill(self) -> None:
        """Off, as by a power cut of its network card: connections drop, new ones are refused."""
        self.up = False
        if self._listener is not None:
            self._listener.close()
        self.link.drop()
        self.server.close()

    async def revive(self) -> None:
        """Back on the same port."""
        if self.up:
            return
        if self.port is not None:
            await self.listen(range(self.port, self.port + 1))
        self.up = True

    def report(self) -> dict[str, Any]:
        return {
            "name": self.paths.name,
            "user": self.paths.user,
            "alias": f"lab-{self.paths.name}",
            "home": str(self.paths.home),
            "port": self.port,
            "up": self.up,
            "fault": asdict(self.link.fault),
            "counters": asdict(self.link.counters),
        }


class Lab:
    """The three hosts of one clone, and what the control socket asks of them."""

    def __init__(self, places: dict[str, paths.HostPaths], reaper: Reaper) -> None:
        self.hosts: dict[str, LabHost] = {}
        for name in HOSTS:
            forward = self._from_jump if name == "jump" else _nowhere
            self.hosts[name] = LabHost(places[name], HostServer(places[name], reaper, forward))

    async def listen(self) -> dict[str, int]:
        """Give jump and prod an address; h800 has none: only jump's server knows the way."""
        return {
            "jump": await self.hosts["jump"].listen(_ANY_PORT),
            "prod": await self.hosts["prod"].listen(PROD_PORTS),
        }

    async def boot(self, reaper: Reaper) -> None:
        """Start prod's user manager, which starts the services enabled there, as a boot does.

        Returns once the manager answers, not once the services are up.
        """
        prod = self.hosts["prod"].paths
        manager = await reaper.start(
            [str(prod.bin / "systemctl"), "--user", "keep"],
            cwd=prod.home,
            env=prod.environment(),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert manager.stdout is not None  # noqa: S101 - asked for above
        if not await manager.stdout.readline():
            raise MacdError("prod's service manager didn't start", hint="see .lab/daemon.log")

    def _from_jump(self, host: str, port: int) -> Carry | None:
        h800 = self.hosts["h800"]
        if host not in ("h800", h800.paths.name, "lab-h800") or port != 22 or not h800.up:
            return None
        return h800.carry

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What macd.lab asks: status, fault, kill, revive, reset_counters."""
        operation = request["op"]
        if operation == "status":
            return {"hosts": [host.report() for host in self.hosts.values()]}
        host = self.hosts[request["host"]]
        if operation == "fault":
            host.link.set_fault(Fault(**request["fault"]))
        elif operation == "kill":
            host.kill()
        elif operation == "revive":
            await host.revive()
        elif operation == "reset_counters":
            host.link.reset_counters()
        else:
            raise ValueError(f"no such operation: {operation}")
        return {"hosts": [host.report()]}


def _nowhere(host: str, port: int) -> Carry | None:
    return None


async def serve(root: Path, ready: int) -> None:
    """Bring the lab up, say so on `ready`, serve until SIGTERM or SIGINT, take all of it down."""
    lab_id = secrets.token_hex(8)
    private = Path(tempfile.mkdtemp(prefix="macd-lab-", dir=_short_directory()))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        reaper = Reaper()
        reaper.adopt_orphans()
        places = paths.create(root, private, lab_id)
        lab = Lab(places, reaper)
        ports = await lab.listen()
        paths.write_client_files(root, places, ports)
        await state.listen(private / "control", lab.answer)
        await lab.boot(reaper)
        started = started_at(os.getpid()) or ""
        write_record(root, Record(lab_id, os.getpid(), started, str(private), ports))
        _say(ready, {"ready": True})
        await stop.wait()
        for host in lab.hosts.values():
            host.kill()
        await asyncio.to_thread(end, lambda: {*descendants(os.getpid()), *marked(lab_id)})
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _short_directory() -> str | None:
    """Socket paths end at 104 bytes, and TMPDIR is long on some machines."""
    return "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 - mkdtemp makes it private


def _say(ready: int, message: dict[str, Any]) -> None:
    with os.fdopen(ready, "w") as stream:
        stream.write(json.dumps(message) + "\n")


def main(arguments: list[str]) -> int:
    root, ready = Path(arguments[0]), int(arguments[1])
    try:
        asyncio.run(serve(root, ready))
    except MacdError as error:
        _say(ready, {"what": error.what, "why": error.why, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
