"""The link delays, limits, cuts, stalls and counts exactly as it was told (on a virtual clock)."""

from __future__ import annotations

import asyncio

import pytest

from macd.lab.link import Link
from macd.lab.state import Fault
from tests.unit.lab.virtual_time import run

START = 1000.0  # what VirtualTimeLoop's clock begins with


class End:
    """One end of a wire: what is fed to `reader` is sent, what arrives is noted with its time."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=1 << 24)
        self.got = bytearray()
        self.arrivals: list[tuple[float, int]] = []
        self.eof_at: float | None = None
        self.closed = False
        self.broken = False

    def write(self, data: bytes, /) -> None:
        if self.broken:
            raise BrokenPipeError
        self.got += data
        self.arrivals.append((_now(), len(data)))

    async def drain(self) -> None: ...

    def write_eof(self) -> None:
        self.eof_at = _now()

    def close(self) -> None:
        self.closed = True

    @property
    def last(self) -> float:
        return self.arrivals[-1][0]


def _now() -> float:
    return asyncio.get_running_loop().time() - START


class Wire:
    """A link between clients' ends and the host's ends, one for each connection."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.host = End()  # of the connection made last; the first one's waits to be dialled
        self.hosts: list[End] = []
        self.dialled_at: float | None = None
        self.link = Link(self._dial)
        self.link.set_fault(fault or Fault())

    async def _dial(self) -> tuple[asyncio.StreamReader, End]:
        self.dialled_at = _now()
        if self.hosts:
            self.host = End()
        self.hosts.append(self.host)
        return self.host.reader, self.host

    def connect(self) -> tuple[End, asyncio.Task[None]]:
        client = End()
        return client, asyncio.get_running_loop().create_task(
            self.link.serve(client.reader, client)
        )


async def settle() -> None:
    """Let everything that can happen without time passing happen."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_bytes_pass_unchanged_both_ways_and_ends_are_passed_on() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        client.reader.feed_data(b"question")
        client.reader.feed_eof()
        wire.host.reader.feed_data(b"answer" * 100_000)
        wire.host.reader.feed_eof()
        await task
        assert bytes(wire.host.got) == b"question"
        assert wire.host.eof_at is not None
        assert bytes(client.got) == b"answer" * 100_000
        assert client.eof_at is not None
        assert client.closed
        assert wire.host.closed

    run(story())


def test_a_connection_costs_a_round_trip_before_its_first_byte_travels() -> None:
    async def story() -> None:
        wire = Wire(Fault(rtt_ms=200))
        client, task = wire.connect()
        client.reader.feed_data(b"hello")
        wire.host.reader.feed_data(b"banner")
        await asyncio.sleep(1)
        assert wire.dialled_at == pytest.approx(0.3)  # SYN, SYN-ACK, ACK
        assert wire.host.last == pytest.approx(0.3)  # sent with the ACK, at 0.2
        assert client.last == pytest.approx(0.4)
        client.reader.feed_data(b"later")
        sent = _now()
        await asyncio.sleep(1)
        assert wire.host.last == pytest.approx(sent + 0.1)
        task.cancel()

    run(story())


def test_a_megabyte_takes_its_line_time_plus_half_a_round_trip() -> None:
    async def story() -> None:
        wire = Wire(Fault(rtt_ms=200, mbit=8))
        client, task = wire.connect()
        client.reader.feed_data(bytes(1_000_000))
        await asyncio.sleep(10)
        # One second on the line, from the end of the handshake, and the way there.
        assert wire.host.last == pytest.approx(0.2 + 1.0 + 0.1, abs=0.001)
        assert len(wire.host.got) == 1_000_000
        task.cancel()

    run(story())


def test_a_limited_line_trickles_at_its_rate() -> None:
    async def story() -> None:
        wire = Wire(Fault(mbit=1))
        client, task = wire.connect()
        client.reader.feed_data(bytes(125_000))
        await asyncio.sleep(0.5)
        assert len(wire.host.got) == pytest.approx(62_500, abs=1_500)
        task.cancel()

    run(story())


def test_two_connections_share_the_line() -> None:
    async def story() -> None:
        wire = Wire(Fault(mbit=8))
        first, one = wire.connect()
        second, two = wire.connect()
        first.reader.feed_data(bytes(500_000))
        second.reader.feed_data(bytes(500_000))
        await asyncio.sleep(10)
        assert [len(host.got) for host in wire.hosts] == [500_000, 500_000]
        assert max(host.last for host in wire.hosts) == pytest.approx(1.0, abs=0.001)
        one.cancel()
        two.cancel()

    run(story())


def test_the_two_directions_do_not_share_the_line() -> None:
    async def story() -> None:
        wire = Wire(Fault(mbit=8))
        client, task = wire.connect()
        client.reader.feed_data(bytes(1_000_000))
        wire.host.reader.feed_data(bytes(1_000_000))
        await asyncio.sleep(10)
        assert wire.host.last == pytest.approx(1.0, abs=0.001)
        assert client.last == pytest.approx(1.0, abs=0.001)
        task.cancel()

    run(story())


@pytest.mark.parametrize("limit", [0, 1, 1000, 65_536, 100_001])
@pytest.mark.parametrize("fault", [Fault(), Fault(rtt_ms=100), Fault(mbit=10)])
def test_a_cut_delivers_exactly_so_many_bytes_and_closes(limit: int, fault: Fault) -> None:
    async def story() -> None:
        wire = Wire(
            Fault(rtt_ms=fault.rtt_ms, mbit=fault.mbit, cut_after=limit, cut_direction="up")
        )
        client, task = wire.connect()
        client.reader.feed_data(bytes(200_000))
        wire.host.reader.feed_data(b"not counted")
        await task
        assert len(wire.host.got) == limit
        assert client.closed
        assert all(host.closed for host in wire.hosts)  # none when the cut came before it accepted
        assert wire.link.counters.cuts == 1
        assert wire.link.fault.cut_after is None  # once: the next connection is whole

        again, task = wire.connect()
        again.reader.feed_data(bytes(200_000))
        await asyncio.sleep(10)
        assert len(wire.host.got) == 200_000
        assert not again.closed
        task.cancel()

    run(story())


def test_a_cut_of_both_ways_counts_them_together() -> None:
    async def story() -> None:
        wire = Wire(Fault(cut_after=1000))
        client, task = wire.connect()
        client.reader.feed_data(bytes(400))
        await settle()
        wire.host.reader.feed_data(bytes(400))
        await settle()
        assert not task.done()
        client.reader.feed_data(bytes(400))
        await task
        assert (len(wire.host.got), len(client.got)) == (600, 400)

    run(story())


def test_a_cut_of_the_present_spares_the_next_connection() -> None:
    async def story() -> None:
        wire = Wire()
        old, task = wire.connect()
        old.reader.feed_data(bytes(5000))
        await settle()
        wire.link.set_fault(Fault(cut_after=100, cut_direction="up", cut_on="present"))
        new, other = wire.connect()
        new.reader.feed_data(bytes(7000))
        await settle()
        assert not task.done()
        old.reader.feed_data(bytes(5000))
        await task
        assert old.closed
        assert not new.closed
        assert [len(host.got) for host in wire.hosts] == [5100, 7000]
        other.cancel()

    run(story())


def test_a_cut_of_the_present_after_nothing_cuts_now() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        await settle()
        wire.link.set_fault(Fault(cut_after=0, cut_on="present"))
        await task
        assert client.closed

    run(story())


def test_clearing_disarms_a_cut() -> None:
    async def story() -> None:
        wire = Wire(Fault(cut_after=10))
        client, task = wire.connect()
        wire.link.set_fault(Fault())
        client.reader.feed_data(bytes(5000))
        await settle()
        assert len(wire.host.got) == 5000
        task.cancel()

    run(story())


def test_a_stalled_link_keeps_everything_and_closes_nothing() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        client.reader.feed_data(b"before ")
        await settle()
        wire.link.set_fault(Fault(stall=True))
        client.reader.feed_data(b"during")
        client.reader.feed_eof()
        wire.host.reader.feed_data(b"down")
        await asyncio.sleep(3600)
        assert bytes(wire.host.got) == b"before "
        assert not client.got
        assert not task.done()
        assert wire.host.eof_at is None
        wire.link.set_fault(Fault())
        await settle()
        assert bytes(wire.host.got) == b"before during"
        assert bytes(client.got) == b"down"
        assert wire.host.eof_at is not None
        task.cancel()

    run(story())


def test_what_is_on_the_wire_is_bounded() -> None:
    async def story() -> None:
        wire = Wire(Fault(mbit=100, rtt_ms=200))
        client, task = wire.connect()
        wire.link.set_fault(Fault(mbit=100, rtt_ms=200, stall=True))
        client.reader.feed_data(bytes(16_000_000))
        await asyncio.sleep(60)
        taken = 16_000_000 - len(client.reader._buffer)  # type: ignore[attr-defined]
        # A bandwidth-delay product one way is 1.25 MB; the queue before it holds 256 KiB.
        assert 1_250_000 < taken < 1_250_000 + 256 * 1024 + 2 * 65_536
        task.cancel()

    run(story())


def test_a_receiver_that_is_gone_ends_the_connection() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        client.broken = True
        wire.host.reader.feed_data(bytes(100))
        await task
        assert wire.host.closed

    run(story())


def test_dropping_closes_what_is_open() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        await settle()
        wire.link.drop()
        await task
        assert client.closed
        assert wire.link.counters.open == 0

    run(story())


def test_counters_count_bytes_connections_and_turnarounds() -> None:
    async def story() -> None:
        wire = Wire()
        client, task = wire.connect()
        for _ in range(3):
            client.reader.feed_data(b"ask")
            await settle()
            wire.host.reader.feed_data(b"answer")
            await settle()
        seen = wire.link.counters
        assert (seen.bytes_up, seen.bytes_down) == (9, 18)
        assert (seen.connections, seen.open) == (1, 1)
        assert seen.turnarounds == 5  # up down up down up down
        wire.link.reset_counters()
        assert wire.link.counters.bytes_up == 0
        assert wire.link.counters.open == 1
        task.cancel()

    run(story())
