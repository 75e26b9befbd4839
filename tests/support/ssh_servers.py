"""Small SSH servers on loopback, with links that can be stalled, for the tests of macd/ssh/ssh.

AsyncSSH in a thread of this process: every byte goes over a real socket, and a test can choose host
keys, what is let in, and what a jump host can reach. Names end in .test and exist only for jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from macd.inventory import Inventory, load

T = TypeVar("T")


@dataclass
class Pipe:
    """A TCP relay before a server; `stalled` forwards nothing and closes nothing.

    `stalled_up` does so only on the way to the server.
    """

    port: int = 0
    stalled: bool = False
    stalled_up: bool = False
    opened: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)


@dataclass
class Server:
    """One SSH server: its port, its host key, and what happened at it."""

    name: str
    port: int
    key: asyncssh.SSHKey
    pipe: Pipe
    logins: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    agent_asked: bool = False

    @property
    def fingerprint(self) -> str:
        return str(self.key.get_fingerprint())

    @property
    def public(self) -> str:
        """type and base64, as in known_hosts."""
        return " ".join(self.key.export_public_key().decode().split()[:2])


class _Behaviour(asyncssh.SSHServer):
    def __init__(self, world: World, server: Server, options: dict[str, Any]) -> None:
        self._world, self._server, self._options = world, server, options
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        self._server.logins.append(username)
        return True

    def password_auth_supported(self) -> bool:
        return bool(self._options.get("password"))

    def public_key_auth_supported(self) -> bool:
        return not self._options.get("password")

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        allowed = self._options.get("allowed", self._world.client_key)
        return bool(key.public_data == allowed.public_data)

    def validate_password(self, username: str, password: str) -> bool:
        """The code that `password` names, once: what an authenticator shows is not taken again."""
        taken = password == self._options.get("password") and not self._server.passwords
        self._server.passwords.append(password)
        return taken

    def session_requested(self) -> Any:
        return asyncssh.SSHServerSession()  # only asked where there is no process factory: says no

    async def connection_requested(self, host: str, port: int, *_: Any) -> Any:  # type: ignore[override]
        if self._options.get("no_forwarding"):
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed"
            )
        target = self._world.servers.get(host.removesuffix(".test"))
        if target is None or port not in (22, target.pipe.port):
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, "Name or service not known"
            )
        if self._options.get("hangs"):
            await asyncio.sleep(3600)
        assert self._connection is not None
        return await self._connection.forward_connection("127.0.0.1", target.pipe.port)


async def _pump(
    reader: Any, writer: Any, pipe: Pipe | None, *, close: bool = True, up: bool = False
) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(65536):
            while pipe is not None and (pipe.stalled or (up and pipe.stalled_up)):
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, asyncssh.Error):
        if close:
            writer.close()


async def _run(process: asyncssh.SSHServerProcess[bytes], server: Server) -> None:
    server.commands.append(process.command or "")
    server.agent_asked |= bool(process.channel.get_agent_path())
    running = await asyncio.create_subprocess_shell(
        process.command or "exit 99",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    fed = asyncio.create_task(_pump(process.stdin, running.stdin, None))
    try:
        await asyncio.gather(
            _pump(running.stdout, process.stdout, None, close=False),
            _pump(running.stderr, process.stderr, None, close=False),
        )
        process.exit(await running.wait())
    finally:
        fed.cancel()
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        running._transport.close()  # type: ignore[attr-defined]  # else it outlives the loop


class World:
    """Servers by name, a client key, and the inventory that leads to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: dict[str, Server] = {}
        self.client_key = asyncssh.generate_private_key("ssh-ed25519", comment="me@here")
        self.identity = directory / "client key"  # a space: quoting is part of the work
        self.identity.write_bytes(self.client_key.export_private_key())
        self.identity.chmod(0o600)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open: dict[str, list[Any]] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def start(self, name: str, *, key_type: str = "ssh-ed25519", **options: Any) -> Server:
        """A server behind its relay; options: allowed, password, no_forwarding, hangs, no_exec."""
        return self.do(self._start(name, asyncssh.generate_private_key(key_type), options))

    async def _start(self, name: str, key: asyncssh.SSHKey, options: dict[str, Any]) -> Server:
        pipe = Pipe()
        server = Server(name, 0, key, pipe)

        async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
            await _run(process, server)

        listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _Behaviour(self, server, options),
            server_host_keys=[key, *options.get("more_keys", ())],
            process_factory=None if options.get("no_exec") else run,
            encoding=None,
            keepalive_interval=0,
        )
        server.port = listener.get_port()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            pipe.opened += 1
            near, far = await asyncio.open_connection("127.0.0.1", server.port)
            pipe.writers += [writer, far]
            with contextlib.suppress(asyncio.CancelledError):  # asyncio.streams would print it
                await asyncio.gather(_pump(reader, far, pipe, up=True), _pump(near, writer, pipe))

        front = await asyncio.start_server(relay, "127.0.0.1", 0)
        pipe.port = front.sockets[0].getsockname()[1]
        self.servers[name] = server
        self._open[name] = [front, listener]
        return server

    def stop(self, name: str) -> None:
        """End a server and its connections; its port is then closed."""
        self.do(self._stop(name))

    async def _stop(self, name: str) -> None:
        for listener in self._open.pop(name, []):
            listener.close()
        for writer in self.servers[name].pipe.writers:
            writer.close()
        await asyncio.sleep(0)

    def speak(self, greeting: bytes, *, hold: bool) -> int:
        """A TCP port that says `greeting` to whoever connects, then holds or closes."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600 if hold else 0)
            writer.close()

        async def listen() -> int:
            made = await asyncio.start_server(answer, "127.0.0.1", 0)
            self._open.setdefault("", []).append(made)
            port: int = made.sockets[0].getsockname()[1]
            return port

        return self.do(listen())

    def chain(self, *names: str, trust: bool = True, **limits: float) -> Inventory:
        """ssh_config, known_hosts and an inventory that lead through `names`."""
        blocks, lines = [], []
        for number, name in enumerate(names):
            server = self.servers[name]
            before = f"  ProxyJump {names[number - 1]}\n" if number else ""
            address = f"{name}.test" if number else "127.0.0.1"
            port = 22 if number else server.pipe.port
            blocks.append(
                f"Host {name}\n  HostName {address}\n  Port {port}\n  User u-{name}\n{before}"
                f'  IdentityFile "{self.identity}"\n  IdentityAgent none\n'
            )
            known_as = address if number else f"[{address}]:{port}"
            lines.append(f"{known_as} {server.public}\n")
        (self.directory / "ssh_config").write_text("\n".join(blocks))
        (self.directory / "known_hosts").write_text("".join(lines) if trust else "")
        return self.inventory(names[-1], **limits)

    def inventory(self, alias: str, extra: str = "", **limits: float) -> Inventory:
        """An inventory with one host `box`, known to ssh_config as `alias`."""
        told = {"connect_s": 5, "login_s": 10, "keepalive_s": 10, "dead_after_s": 40, **limits}
        folder = self.directory / "inventory"
        folder.mkdir(exist_ok=True)
        (folder / "lab.yml").write_text(
            "ssh_config: ../ssh_config\nknown_hosts: ../known_hosts\n"
            f"link: {{{', '.join(f'{k}: {v}' for k, v in told.items())}}}\n"
            f"hosts:\n  box: {{role: jump, ssh: {alias}{extra}}}\n"
        )
        return load("lab", root=self.directory)

    def close(self) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for listeners in self._open.values():
            for listener in listeners:
                listener.close()
        # Again and again: asyncio waits for ever for a command it was cancelled while starting.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        await asyncio.sleep(0.05)  # killed commands are waited for


@contextlib.contextmanager
def world_in(directory: Path) -> Iterator[World]:
    made = World(directory)
    try:
        yield made
    finally:
        made.close()
