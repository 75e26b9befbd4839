"""One lab host's SSH server: who may log in, what is forwarded, files by SFTP and scp, commands."""

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
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncssh

from macd.lab.link import CHUNK, Reader, Writer
from macd.lab.paths import HostPaths
from macd.lab.processes import Reaper

WINDOW = 8 * 1024 * 1024  # more than 100 Mbit/s at 200 ms needs, so that the link is the limit
# AES-GCM is done by OpenSSL in one call; chacha20 would cost a third of the speed.
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr"]

HANGUP_AFTER = 2.0  # seconds a command has to end by itself once its connection is gone

Session = asyncssh.SSHServerProcess[bytes]
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


# One command, run as sshd does: streams or terminal, signals, status, hang-up.


async def execute(session: Session, paths: HostPaths, reaper: Reaper) -> None:
    """Run the session's command (or a login shell) and send its client the exit status."""
    command = session.command
    arguments = ["/bin/sh", "-l"] if command is None else ["/bin/sh", "-c", command]
    run = _on_pipes if session.term_type is None else _on_terminal
    options = {"cwd": paths.home, "env": paths.environment(), "start_new_session": True}
    try:
        await run(session, arguments, options, reaper)
    except OSError as error:
        session.stderr.write(f"lab host {paths.name}: {error}\n".encode())
        session.exit(127)


async def _on_pipes(
    session: Session, arguments: list[str], options: dict[str, Any], reaper: Reaper
) -> None:
    async with _reading_end() as (out, out_end), _reading_end() as (err, err_end):
        try:
            child = await reaper.start(
                arguments, stdin=asyncio.subprocess.PIPE, stdout=out_end, stderr=err_end, **options
            )
        finally:
            os.close(out_end)
            os.close(err_end)
        assert child.stdin is not None  # noqa: S101 - asked for above
        feeding = asyncio.create_task(_feed(session, child, child.stdin))
        streams = [_copy(out, session.stdout), _copy(err, session.stderr)]
        try:
            await _until_closed(session, child, streams)
        finally:
            feeding.cancel()
            with contextlib.suppress(OSError, RuntimeError):
                child.stdin.close()
    # Only now, with all its streams closed, is the command given its time to end.
    await reaper.hang_up(child, after=HANGUP_AFTER)


async def _on_terminal(
    session: Session, arguments: list[str], options: dict[str, Any], reaper: Reaper
) -> None:
    leader, follower = pty.openpty()
    try:
        _set_size(leader, session.term_size)
        options["env"]["TERM"] = session.term_type or "dumb"
        child = await reaper.start(
            arguments,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            **options,
        )
    except BaseException:
        os.close(leader)
        raise
    finally:
        os.close(follower)
    screen, transport = await _reader(os.dup(leader))
    feeding = asyncio.create_task(_feed(session, child, _Keyboard(leader), leader))
    try:
        await _until_closed(session, child, [_copy(screen, session.stdout)])
    finally:
        feeding.cancel()
        transport.close()
        os.close(leader)
    await reaper.hang_up(child, after=HANGUP_AFTER)


async def _until_closed(
    session: Session, child: asyncio.subprocess.Process, streams: list[Any]
) -> None:
    """Wait for the end of the command and of its output, or for the client to be gone."""

    async def whole() -> None:
        await asyncio.gather(*streams)
        _send_exit(session, await child.wait())

    running = asyncio.create_task(whole())
    gone = asyncio.create_task(session.wait_closed())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()
        gone.cancel()


def _send_exit(session: Session, code: int) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        if code < 0:
            session.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            session.exit(code)


async def _copy(reader: Reader, writer: Writer) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()


async def _feed(
    session: Session, child: asyncio.subprocess.Process, writer: Writer, terminal: int | None = None
) -> None:
    """What the client sends: input, its end, signals, and the size of its window."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await session.stdin.read(CHUNK)
            except asyncssh.TerminalSizeChanged as size:
                if terminal is not None:
                    changed = (size.width, size.height, size.pixwidth, size.pixheight)
                    _set_size(terminal, changed)
                continue
            except asyncssh.SignalReceived as received:
                _signal(child, received.signal)
                continue
            except asyncssh.BreakReceived:
                continue
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


def _signal(child: asyncio.subprocess.Process, name: str) -> None:
    number = getattr(signal, f"SIG{name}", None)
    if isinstance(number, signal.Signals):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)


class _Keyboard:
    """The terminal's input side as a Writer; a full terminal must not stop the whole lab."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._typed = b""

    def write(self, data: bytes, /) -> None:
        self._typed += data

    async def drain(self) -> None:
        while self._typed:
            written = await asyncio.to_thread(os.write, self._leader, self._typed)
            self._typed = self._typed[written:]

    def write_eof(self) -> None:
        """A terminal has no end of input: a program on it reads a ^D for that."""

    def close(self) -> None:
        """Closed by its owner."""


@contextlib.asynccontextmanager
async def _reading_end() -> AsyncIterator[tuple[Reader, int]]:
    """A pipe: our end as a stream, closed on leaving; theirs to be handed to a child and closed."""
    ours, theirs = os.pipe()
    reader, transport = await _reader(ours)
    try:
        yield reader, theirs
    finally:
        transport.close()


async def _reader(descriptor: int) -> tuple[Reader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader(limit=4 * CHUNK)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return reader, transport


def _set_size(terminal: int, size: tuple[int, int, int, int]) -> None:
    packed = struct.pack("HHHH", size[1], size[0], size[2], size[3])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, packed)
