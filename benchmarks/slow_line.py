"""A slow line to one TCP address: what connects to its port on loopback crosses it.

The pump is the lab's own (macd/lab/link.py), run in a thread of the benchmark.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from macd.lab import Fault
from macd.lab.link import Link
from macd.lab.state import Counters


class SlowLine:
    """Listens on loopback, `port`; `set` changes the line, also while it carries connections."""

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self._loop = asyncio.new_event_loop()
        self._link = Link(lambda: asyncio.open_connection(*self._target))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="line")
        self._thread.start()
        self._serving: set[asyncio.Task[None]] = set()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def set(self, rtt_ms: float = 0, mbit: float = 0) -> None:
        """Delay by half of `rtt_ms` each way, at `mbit` Mbit/s each way (0: no limit)."""
        fault = Fault(rtt_ms=rtt_ms, mbit=mbit) if mbit else Fault(rtt_ms=rtt_ms)
        self._run(self._apply(fault))

    def reset_counters(self) -> None:
        self._loop.call_soon_threadsafe(self._link.reset_counters)

    @property
    def counters(self) -> Counters:
        """Bytes that crossed since the last reset."""
        return self._link.counters

    def close(self) -> None:
        """End it, and the connections that it still carries."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._link.serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _end(self) -> None:
        self._server.close()
        self._link.drop()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _apply(self, fault: Fault) -> None:
        self._link.set_fault(fault)

    def _run(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(10)
