"""One lab host's SSH server: who may log in, what is forwarded, files by SFTP and scp."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from macd.lab.execute import execute
from macd.lab.link import CHUNK, Reader, Writer
from macd.lab.paths import HostPaths
from macd.lab.processes import Reaper

WINDOW = 8 * 1024 * 1024  # more than 100 Mbit/s at 200 ms needs, so that the link is the limit
# AES-GCM is done by OpenSSL in one call; chacha20 would cost a third of the speed.
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr"]

Carry = Callable[[Reader, Writer], Awaitable[None]]
Forward = Callable[[str, int], Carry | None]


class HostServer:
    """Runs SSH on connected sockets for one host until closed.

    `forward` says how a direct-tcpip request to a name and port is carried; None refuses it.
    """

    def __init__(self, paths: HostPaths, reaper: Reaper, forward: Forward) -> None:
        self._paths = paths
        self._reaper = reaper
        self._forward = forward
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._options: asyncssh.SSHServerConnectionOptions | None = None

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection to this host's SSH server, as a pair of streams.

        There is no other way in: the server listens nowhere.
        """
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * CHUNK)
        task = asyncio.get_running_loop().create_task(self._serve(theirs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.open_connection(sock=ours, limit=4 * CHUNK)

    def close(self) -> None:
        """Drop every connection, as a machine does that loses its network."""
        for connection in list(self._connections):
            connection.abort()

    async def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            if self._options is None:
                self._options = await self._make_options()
            connection = await asyncssh.run_server(sock, options=self._options)
            self._connections.add(connection)
            try:
                await connection.wait_closed()
            finally:
                self._connections.discard(connection)

    async def _make_options(self) -> asyncssh.SSHServerConnectionOptions:
        paths = self._paths
        options: asyncssh.SSHServerConnectionOptions
        options = await asyncssh.SSHServerConnectionOptions.construct(
            server_factory=lambda: _Login(paths, self._forward),
            server_host_keys=[str(paths.host_key)],
            process_factory=lambda session: execute(session, paths, self._reaper),
            sftp_factory=lambda channel: _HomeSFTP(channel, paths),
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


class _Login(asyncssh.SSHServer):
    """Lets in the host's one user with the operator's key; forwards only where the host may."""

    def __init__(self, paths: HostPaths, forward: Forward) -> None:
        self._paths = paths
        self._forward = forward

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        if username != self._paths.user:
            return False
        allowed = asyncssh.read_public_key_list(str(self._paths.authorized_keys))
        return any(key.public_data == entry.public_data for entry in allowed)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        carry = self._forward(dest_host, dest_port)
        if carry is None:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, f"no route from here to {dest_host} port {dest_port}"
            )
        return carry


class _HomeSFTP(asyncssh.SFTPServer):
    """SFTP and scp as on a real host: relative paths begin in the home directory."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], paths: HostPaths) -> None:
        super().__init__(channel)
        self._home = os.fsencode(paths.home)

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(self._home, path)  # noqa: PTH118 - bytes, as they came

    def exit(self) -> None:
        self.channel.exit(0)  # scp counts a session without an exit status as failed
