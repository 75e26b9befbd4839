"""One lab host's SSH server: who may log in, how a command runs and ends, what is forwarded."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from macd.lab.ground import Ground
from macd.lab.link import CHUNK, Reader, Writer
from macd.lab.reaper import Reaper

WINDOW = 8 * 1024 * 1024  # more than 100 Mbit/s at 200 ms needs, so that the link is the limit
# AES-GCM is done by OpenSSL in one call; chacha20 would cost a third of the speed.
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr"]
_HANGUP_AFTER = 2.0

Carry = Callable[[Reader, Writer], Awaitable[None]]
Forward = Callable[[str, int], Carry | None]


class HostServer:
    """Runs SSH on connected sockets for one host until closed."""

    def __init__(self, ground: Ground, reaper: Reaper, forward: Forward) -> None:
        self._ground = ground
        self._reaper = reaper
        self._forward = forward
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._options: asyncssh.SSHServerConnectionOptions | None = None

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection to this host's SSH server, as a pair of streams."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK)
        asyncio.get_running_loop().create_task(self._serve(theirs))
        return await asyncio.open_connection(sock=ours, limit=4 * CHUNK)

    def close(self) -> None:
        """Drop every connection, as a machine does that loses its power."""
        for connection in list(self._connections):
            connection.abort()

    async def _serve(self, sock: socket.socket) -> None:
        if self._options is None:
            self._options = await self._make_options()
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            connection = await asyncssh.run_server(sock, options=self._options)
            self._connections.add(connection)
            try:
                await connection.wait_closed()
            finally:
                self._connections.discard(connection)

    async def _make_options(self) -> asyncssh.SSHServerConnectionOptions:
        ground = self._ground
        options: asyncssh.SSHServerConnectionOptions
        options = await asyncssh.SSHServerConnectionOptions.construct(
            server_factory=lambda: _Login(ground.user, ground, self._forward),
            server_host_keys=[str(ground.host_key)],
            process_factory=self._run,
            sftp_factory=lambda channel: _HomeSFTP(channel, ground),
            allow_scp=True,
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            password_auth=False,
            kbdint_auth=False,
            encryption_algs=_CIPHERS,
            compression_algs=["none"],
            window=WINDOW,
            rdns_lookup=False,
        )
        return options

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One exec request (or a shell): the command's streams, its exit status or its signal."""
        command = process.command
        arguments = ["/bin/sh", "-c", command] if command is not None else ["/bin/sh", "-l"]
        terminal = process.term_type is not None
        try:
            if terminal:
                await self._run_on_terminal(process, arguments)
            else:
                await self._run_on_pipes(process, arguments)
        except OSError as error:
            process.stderr.write(f"lab host {self._ground.name}: {error}\n".encode())
            process.exit(127)

    async def _start(self, arguments: list[str], **streams: Any) -> asyncio.subprocess.Process:
        return await self._reaper.start(
            arguments,
            cwd=self._ground.home,
            env={**self._ground.environment(), **streams.pop("more_env", {})},
            start_new_session=True,
            limit=4 * CHUNK,
            **streams,
        )

    async def _run_on_pipes(
        self, process: asyncssh.SSHServerProcess[bytes], arguments: list[str]
    ) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await self._start(arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        assert child.stdin and child.stdout and child.stderr  # noqa: S101 - asked for above
        feeding = asyncio.create_task(_copy(process.stdin, child.stdin, then_eof=True))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(child.stdout, process.stdout))
                group.create_task(_copy(child.stderr, process.stderr))
            await _tell_exit(process, await child.wait())
        finally:
            feeding.cancel()
            _close(child.stdin)
            if child.returncode is None:
                await self._reaper.hang_up(child, after=_HANGUP_AFTER)

    async def _run_on_terminal(
        self, process: asyncssh.SSHServerProcess[bytes], arguments: list[str]
    ) -> None:
        leader, follower = pty.openpty()
        _set_size(leader, process.term_size)
        try:
            child = await self._start(
                arguments,
                stdin=follower,
                stdout=follower,
                stderr=follower,
                more_env={"TERM": process.term_type or "dumb"},
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        finally:
            os.close(follower)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(leader), "rb", 0)
        )
        feeding = asyncio.create_task(_type(process, leader))
        try:
            await _copy(reader, process.stdout)
            await _tell_exit(process, await child.wait())
        finally:
            feeding.cancel()
            transport.close()
            os.close(leader)
            if child.returncode is None:
                await self._reaper.hang_up(child, after=_HANGUP_AFTER)


class _Login(asyncssh.SSHServer):
    """Lets in the one user with the operator's key; forwards only where the host may."""

    def __init__(self, user: str, ground: Ground, forward: Forward) -> None:
        self._user = user
        self._ground = ground
        self._forward = forward

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if username != self._user:
            return False
        allowed = asyncssh.read_public_key_list(str(self._ground.authorized_keys))
        return any(key.public_data == one.public_data for one in allowed)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        carry = self._forward(dest_host, dest_port)
        if carry is None:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED,
                f"no route from here to {dest_host} port {dest_port}",
            )
        return carry


class _HomeSFTP(asyncssh.SFTPServer):
    """SFTP and scp as on a real host: relative paths begin in the home directory."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], ground: Ground) -> None:
        super().__init__(channel)
        self._home = os.fsencode(ground.home)

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(self._home, path)  # noqa: PTH118 - bytes, as they came


async def _copy(reader: Reader, writer: Writer, *, then_eof: bool = False) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if then_eof:
            writer.write_eof()


async def _type(process: asyncssh.SSHServerProcess[bytes], leader: int) -> None:
    """Keystrokes to the terminal, and the window's size when it changes."""
    while True:
        try:
            data = await process.stdin.read(CHUNK)
        except asyncssh.TerminalSizeChanged as change:
            _set_size(leader, (change.width, change.height, change.pixwidth, change.pixheight))
            continue
        except (asyncssh.BreakReceived, asyncssh.SignalReceived):
            continue
        if not data:
            return
        os.write(leader, data)


def _set_size(leader: int, size: tuple[int, int, int, int]) -> None:
    packed = struct.pack("HHHH", size[1], size[0], size[2], size[3])
    fcntl.ioctl(leader, termios.TIOCSWINSZ, packed)


async def _tell_exit(process: asyncssh.SSHServerProcess[bytes], code: int) -> None:
    if process.is_closing():
        return
    with contextlib.suppress(OSError, asyncssh.Error):
        if code < 0:
            name = signal.Signals(-code).name.removeprefix("SIG")
            process.exit_with_signal(name, False, "", "")
        else:
            process.exit(code)


def _close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()
