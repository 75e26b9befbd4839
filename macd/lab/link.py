"""The wire before every lab host: a byte pump that delays, limits, stalls and cuts, and counts.

It models propagation delay, serialization at a line rate, and a dead or a broken line. It does not
model packet loss, congestion control or slow start: what a long-lived, well-tuned TCP gives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import asyncssh

from macd.lab.state import Counters, Fault

Direction = Literal["up", "down"]
CHUNK = 64 * 1024
_GONE = (OSError, asyncssh.Error)  # how a socket and how an SSH channel say that the peer is gone
_OPEN_WINDOW = 8 * 1024 * 1024  # bytes on the way when only a delay is set


class Reader(Protocol):
    async def read(self, n: int = -1, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


Dial = Callable[[], Awaitable[tuple[Reader, Writer]]]


@dataclass
class _Cut:
    """A cut waiting to happen, shared by the connections whose bytes it counts."""

    left: int
    direction: str
    reached: bool = False

    def take(self, direction: Direction, size: int) -> int:
        """How many of these bytes may still pass."""
        if self.direction not in (direction, "both"):
            return size
        passed = min(size, self.left)
        self.left -= passed
        return passed


@dataclass
class _Line:
    """One direction of one connection: bytes on the way, each with its time of arrival."""

    on_the_way: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    arrives: asyncio.Event = field(default_factory=asyncio.Event)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    empty: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.empty.set()


class Link:
    """One host's wire. `serve` carries one connection; `fault` may change while it runs."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._fault = Fault()
        self._counters = Counters()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._free_at: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._next_cut: _Cut | None = None
        self._open: dict[asyncio.Task[None], _Cut | None] = {}

    @property
    def fault(self) -> Fault:
        return self._fault

    @property
    def counters(self) -> Counters:
        return replace(self._counters, open=len(self._open))

    def reset_counters(self) -> None:
        self._counters = Counters()

    def set_fault(self, fault: Fault) -> None:
        """From now on the link does this; a cut set before and not yet reached is forgotten."""
        self._fault = fault
        self._next_cut = None
        self._open = dict.fromkeys(self._open)
        if fault.cut_after is not None:
            cut = _Cut(fault.cut_after, fault.cut_direction)
            if fault.cut_on == "next":
                self._next_cut = cut
            else:
                self._open = dict.fromkeys(self._open, cut)
                if cut.left == 0:
                    self._fire(cut)
        if fault.stall:
            self._flowing.clear()
        else:
            self._flowing.set()

    def drop(self) -> None:
        """Close every open connection now."""
        for task in self._open:
            task.cancel()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        """Carry one connection from a client to the host until the host closes it, or a cut."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._open[task] = self._next_cut
        self._next_cut = None
        self._add(connections=1)
        try:
            await self._carry(_Connection(task), reader, writer)
        except asyncio.CancelledError:
            pass  # cut, dropped, or the daemon ends: in each case this connection is over
        finally:
            del self._open[task]
            _close(writer)

    async def _carry(self, connection: _Connection, reader: Reader, writer: Writer) -> None:
        clock = asyncio.get_running_loop().time
        one_way = self._fault.rtt_ms / 2000
        # As the client sees it the handshake ends one round trip after its SYN; the host's side
        # accepts when the client's ACK is there, half a round trip later.
        connected = clock() + 2 * one_way
        up, down = _Line(), _Line()
        async with asyncio.TaskGroup() as group:
            reading_up = group.create_task(self._read("up", connection, up, reader, connected))
            await asyncio.sleep(max(0.0, connected + one_way - clock()))
            host_reader, host_writer = await self._dial()
            writing_up = group.create_task(self._write(up, connection, host_writer))
            group.create_task(self._read("down", connection, down, host_reader, 0.0))
            try:
                await self._write(down, connection, writer)
            finally:
                reading_up.cancel()
                writing_up.cancel()
                _close(host_writer)

    async def _read(
        self, way: Direction, connection: _Connection, line: _Line, reader: Reader, earliest: float
    ) -> None:
        """Take bytes as the sender's TCP would: no more than what fits on the wire."""
        clock = asyncio.get_running_loop().time
        while True:
            while line.size >= self._capacity():
                line.drained.clear()
                await line.drained.wait()
            data = await _read(reader, self._chunk())
            ends = not data
            cut = self._open.get(connection.task)
            if cut is not None:
                if cut.reached:
                    return  # what comes after the cut goes nowhere; the one who reached it closes
                data = data[: cut.take(way, len(data))]
            self._count(way, connection, len(data))
            if data:
                self._send(way, line, data, max(clock(), earliest))
            if cut is not None and cut.left == 0:
                cut.reached = True
                await line.empty.wait()  # what was sent before the cut still arrives
                self._fire(cut)
                return
            if ends:
                self._send(way, line, b"", max(clock(), earliest))
                return

    def _send(self, way: Direction, line: _Line, data: bytes, at: float) -> None:
        line.on_the_way.append((self._arrival(way, len(data), at), data))
        line.size += len(data)
        line.empty.clear()
        line.arrives.set()

    def _fire(self, cut: _Cut) -> None:
        self._fault = replace(self._fault, cut_after=None, cut_direction="both", cut_on="next")
        for task, armed in self._open.items():
            if armed is cut:
                self._add(cuts=1)
                task.cancel()

    async def _write(self, line: _Line, connection: _Connection, writer: Writer) -> None:
        """Hand bytes over when they are due; an empty piece is the end of the stream."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                while not line.on_the_way:
                    line.arrives.clear()
                    await line.arrives.wait()
                due, data = line.on_the_way.popleft()
                if (wait := due - clock()) > 0:
                    await asyncio.sleep(wait)
                await self._flowing.wait()
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
                line.size -= len(data)
                line.drained.set()
                if not line.size:
                    line.empty.set()
        except _GONE:
            connection.task.cancel()  # the receiver is gone: as a TCP reset does, end both ways

    def _arrival(self, way: Direction, size: int, sent: float) -> float:
        begins = max(sent, self._free_at[way])
        if self._fault.mbit:
            begins += size * 8 / (self._fault.mbit * 1e6)
            self._free_at[way] = begins
        return begins + self._fault.rtt_ms / 2000

    def _chunk(self) -> int:
        """Pieces of at most 5 ms of line time, so that a slow line trickles instead of jumping."""
        if not self._fault.mbit:
            return CHUNK
        return max(1460, min(CHUNK, int(self._fault.mbit * 1e6 / 8 * 0.005)))

    def _capacity(self) -> int:
        if not self._fault.mbit:
            return _OPEN_WINDOW
        rate = self._fault.mbit * 1e6 / 8
        queue = max(16 * 1024, min(256 * 1024, int(rate * 0.05)))
        return int(rate * self._fault.rtt_ms / 2000) + queue

    def _count(self, way: Direction, connection: _Connection, size: int) -> None:
        if not size:
            return
        self._add(bytes_up=size if way == "up" else 0, bytes_down=size if way == "down" else 0)
        if connection.last not in (None, way):
            self._add(turnarounds=1)
        connection.last = way

    def _add(self, **more: int) -> None:
        was = self._counters
        self._counters = replace(was, **{name: getattr(was, name) + n for name, n in more.items()})


@dataclass
class _Connection:
    task: asyncio.Task[None]
    last: Direction | None = None


async def _read(reader: Reader, limit: int) -> bytes:
    """A reset by the peer ends the stream like a close does."""
    try:
        return await reader.read(limit)
    except _GONE:
        return b""


def _close(writer: Writer) -> None:
    with contextlib.suppress(*_GONE, RuntimeError):
        writer.close()
