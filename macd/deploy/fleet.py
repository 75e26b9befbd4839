"""Act on several hosts side by side: each host's result, or its error, in the hosts' order.

One host runs in the calling thread, so a Ctrl-C reaches what is done to it. Several run in a thread
each, at most `parallel` at once. This module knows nothing of what is done to a host.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

from macd.errors import ExitCode, MacdError
from macd.inventory import Host

T = TypeVar("T")
PARALLEL = 10
# What needs somebody most stands first: known to be wrong, unknown, put back, not done, not yet.
_SEVERITY = (
    ExitCode.FAILED,
    ExitCode.CONTACT_LOST,
    ExitCode.REVERTED,
    ExitCode.REFUSED,
    ExitCode.USAGE,
    ExitCode.INCONCLUSIVE,
    ExitCode.DONE,
)


def worst(codes: Iterable[ExitCode | None]) -> ExitCode:
    """The exit code of several hosts: the worst of those that each would have had alone."""
    return min(
        (code or ExitCode.DONE for code in codes), key=_SEVERITY.index, default=ExitCode.DONE
    )


@dataclass(frozen=True)
class Results(Generic[T]):
    """What became of each host, by name. A host is in exactly one of the three."""

    done: dict[str, T]
    failed: dict[str, MacdError]
    not_started: Sequence[str] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a Ctrl-C kept hosts from being started."""
        return bool(self.not_started)


def side_by_side(
    hosts: Sequence[Host],
    act: Callable[[Host], T],
    *,
    parallel: int = PARALLEL,
    on_interrupt: Callable[[Sequence[str]], None] | None = None,
) -> Results[T]:
    """Call `act` for each host and wait until all have ended.

    Args:
        act: returns the host's result or raises MacdError; called in a thread of its own where
            there are several hosts.
        parallel: how many hosts are acted on at the same time, at least 1.
        on_interrupt: given, a Ctrl-C starts no further host and lets the running ones, whose names
            it is called with, end; a second Ctrl-C leaves at once. Without it the first one does.

    Raises:
        KeyboardInterrupt: as said above; threads still at work end with the process.
        Exception: anything but a MacdError that `act` raised, once every running host has ended.
    """
    if len(hosts) == 1:
        return _alone(hosts[0], act)
    return _Threads(hosts, act, max(1, parallel)).run(on_interrupt)


def _alone(host: Host, act: Callable[[Host], T]) -> Results[T]:
    try:
        return Results({host.name: act(host)}, {})
    except MacdError as error:
        return Results({}, {host.name: error})


class _Threads(Generic[T]):
    """Several hosts at once. Only the calling thread reads or changes these fields."""

    def __init__(self, hosts: Sequence[Host], act: Callable[[Host], T], parallel: int) -> None:
        self._act = act
        self._parallel = parallel
        self._order = [host.name for host in hosts]
        self._waiting = list(hosts)
        self._running: list[str] = []
        self._stopping = False
        # What workers and the signal handler leave for the calling thread; None is a Ctrl-C.
        self._events: queue.SimpleQueue[_Ended[T] | None] = queue.SimpleQueue()

    def run(self, on_interrupt: Callable[[Sequence[str]], None] | None) -> Results[T]:
        done: dict[str, T] = {}
        failed: dict[str, MacdError] = {}
        unexpected: BaseException | None = None
        with self._first_interrupt(wanted=on_interrupt is not None):
            while self._running or (self._waiting and not self._stopping):
                self._start_some()
                event = self._events.get()
                if event is None:
                    self._stopping = True
                    if on_interrupt is not None:
                        on_interrupt(tuple(self._running))
                    continue
                self._running.remove(event.host)
                if event.error is None:
                    done[event.host] = event.result  # type: ignore[assignment]
                elif isinstance(event.error, MacdError):
                    failed[event.host] = event.error
                else:
                    unexpected, self._stopping = unexpected or event.error, True
        if unexpected is not None:
            raise unexpected
        return Results(
            {name: done[name] for name in self._order if name in done},
            {name: failed[name] for name in self._order if name in failed},
            [host.name for host in self._waiting],
        )

    @contextlib.contextmanager
    def _first_interrupt(self, *, wanted: bool) -> Iterator[None]:
        """Make the first Ctrl-C an event; the next one is what it was before."""
        if not wanted or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def note(_number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            self._events.put(None)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _start_some(self) -> None:
        while self._waiting and not self._stopping and len(self._running) < self._parallel:
            host = self._waiting.pop(0)
            self._running.append(host.name)
            threading.Thread(target=self._work, args=(host,), name=host.name, daemon=True).start()

    def _work(self, host: Host) -> None:
        try:
            self._events.put(_Ended(host.name, result=self._act(host)))
        except BaseException as error:
            self._events.put(_Ended(host.name, error=error))


@dataclass(frozen=True)
class _Ended(Generic[T]):
    host: str
    result: T | None = None
    error: BaseException | None = None
