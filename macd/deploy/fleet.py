"""Which hosts a command is about, in which waves, and how to act on several of them side by side.

Each host's result, or its error, comes in the hosts' order.

One host runs in the calling thread, so a Ctrl-C reaches what is done to it. Several run in a thread
each, at most `parallel` at once. This module knows nothing of what is done to a host.
"""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import FrameType
from typing import Generic, TypeVar

from macd.errors import ExitCode, MacdError, UsageError
from macd.inventory import Host, Inventory

T = TypeVar("T")
PARALLEL = 10
# The most urgent first: wrong, unknown, put back, not done, not yet.
_SEVERITY = (
    ExitCode.FAILED,
    ExitCode.CONTACT_LOST,
    ExitCode.REVERTED,
    ExitCode.REFUSED,
    ExitCode.USAGE,
    ExitCode.INCONCLUSIVE,
    ExitCode.INTERRUPTED,
    ExitCode.DONE,
)


def worst(codes: Iterable[ExitCode | None]) -> ExitCode:
    """The exit code of several hosts: the worst of those that each would have had alone."""
    return min(
        (code or ExitCode.DONE for code in codes), key=_SEVERITY.index, default=ExitCode.DONE
    )


def code_of(error: MacdError) -> ExitCode:
    """The exit code of an error on one of several hosts; an unreachable host's state is unknown."""
    from macd.ssh.refusals import UnreachableError  # noqa: PLC0415 - paramiko is slow to import

    return ExitCode.CONTACT_LOST if isinstance(error, UnreachableError) else error.exit_code


def named(error: BaseException) -> str:
    """What went wrong, with its kind."""
    return f"{type(error).__name__}: {error}".strip(": ")


def unexpected(
    host: str,
    error: BaseException,
    live: str = "unknown from here: the host commits or goes back by itself",
) -> MacdError:
    """An error that no code here expected, as the error of the one host it happened on."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return MacdError(
        f"{host}: an unexpected error: {named(error)}",
        why=f"in {at.filename}, line {at.lineno}; this is a bug in macd",
        live=live,
        hint=f"invoke status shows what is live; the same with --host {host} shows all of it",
    )


@dataclass(frozen=True)
class Results(Generic[T]):
    """What became of each host, by name. A host is in exactly one of the four.

    Args:
        left: still at work when a second Ctrl-C said to wait no longer.
        interrupted: a Ctrl-C said to start no further host.
    """

    done: dict[str, T]
    failed: dict[str, MacdError]
    not_started: Sequence[str] = ()
    left: Sequence[str] = ()
    interrupted: bool = False


Stop = Callable[[Mapping[str, T], Mapping[str, MacdError]], bool]


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
            it is called with, end; a second Ctrl-C waits no longer. Without it the first one does.

    Raises:
        KeyboardInterrupt: without `on_interrupt`; threads still at work end with the process.
        Exception: anything but a MacdError that `act` raised, once every running host has ended.
    """
    if len(hosts) == 1:
        return _alone(hosts[0], act)
    return in_waves([hosts], act, parallel=parallel, on_interrupt=on_interrupt)


def in_waves(
    waves: Sequence[Sequence[Host]],
    act: Callable[[Host], T],
    *,
    parallel: int = PARALLEL,
    stop: Stop[T] | None = None,
    on_interrupt: Callable[[Sequence[str]], None] | None = None,
) -> Results[T]:
    """As `side_by_side`, wave by wave: the next one begins when all hosts of the last have ended.

    Even a single host has a thread of its own.

    Args:
        stop: asked after each host's end with what is done and what failed so far; once it says
            True no further host is started, in this wave or the next.
    """
    return _Threads(waves, act, max(1, parallel), stop).run(on_interrupt)


def _alone(host: Host, act: Callable[[Host], T]) -> Results[T]:
    try:
        return Results({host.name: act(host)}, {})
    except MacdError as error:
        return Results({}, {host.name: error})


class _Threads(Generic[T]):
    """Several hosts at once. Only the calling thread reads or changes these fields."""

    def __init__(
        self,
        waves: Sequence[Sequence[Host]],
        act: Callable[[Host], T],
        parallel: int,
        stop: Stop[T] | None,
    ) -> None:
        self._act = act
        self._parallel = parallel
        self._stop = stop
        self._order = [host.name for wave in waves for host in wave]
        self._waiting = [list(wave) for wave in waves]
        self._running: list[str] = []
        self._stopping = self._interrupted = False
        self._done: dict[str, T] = {}
        self._failed: dict[str, MacdError] = {}
        self._unexpected: BaseException | None = None
        # What workers and the signal handler leave for the calling thread; None is a Ctrl-C.
        self._events: queue.SimpleQueue[_Ended[T] | None] = queue.SimpleQueue()

    def run(self, on_interrupt: Callable[[Sequence[str]], None] | None) -> Results[T]:
        left: list[str] = []
        with self._first_interrupt(wanted=on_interrupt is not None):
            try:
                self._until_all_ended(on_interrupt)
            except KeyboardInterrupt:
                if not self._interrupted:
                    raise
                ended = {*self._done, *self._failed}
                left = [name for name in self._running if name not in ended]
        if self._unexpected is not None:
            raise self._unexpected
        return Results(
            {name: self._done[name] for name in self._order if name in self._done},
            {name: self._failed[name] for name in self._order if name in self._failed},
            [host.name for wave in self._waiting for host in wave],
            left,
            self._interrupted,
        )

    def _until_all_ended(self, on_interrupt: Callable[[Sequence[str]], None] | None) -> None:
        self._start_some()
        while self._running:
            event = self._events.get()
            if event is not None:
                self._note(event)
            elif on_interrupt is not None:
                on_interrupt(tuple(self._running))
            self._start_some()

    def _note(self, event: _Ended[T]) -> None:
        if event.error is None:
            self._done[event.host] = event.result  # type: ignore[assignment]
        elif isinstance(event.error, MacdError):
            self._failed[event.host] = event.error
        else:
            self._unexpected, self._stopping = self._unexpected or event.error, True
        self._running.remove(event.host)
        if self._stop is not None and self._stop(self._done, self._failed):
            self._stopping = True

    @contextlib.contextmanager
    def _first_interrupt(self, *, wanted: bool) -> Iterator[None]:
        """Make the first Ctrl-C an event, the next one what it was before; ignored, it stays so."""
        before = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread()
        if not (wanted and here) or before == signal.SIG_IGN:
            yield
            return

        def note(_number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            self._stopping = self._interrupted = True
            self._events.put(None)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _start_some(self) -> None:
        while self._waiting and not self._waiting[0] and not self._running:
            self._waiting.pop(0)
        wave = self._waiting[0] if self._waiting else []
        while wave and not self._stopping and len(self._running) < self._parallel:
            host = wave.pop(0)
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


_WAVE = re.compile(r"([1-9][0-9]*)(%?)")


def hosts_of(inventory: Inventory, env: str, name: str) -> Iterator[Host]:
    """The serving hosts of `env`, or the one of them that is named. Raises UsageError."""
    serving = inventory.env_hosts(env)
    if not name:
        yield from serving
        return
    for host in serving:
        if host.name == name:
            yield host
            return
    raise UsageError(
        f"{name} does not serve {env}",
        why=f"these do: {', '.join(host.name for host in serving)}",
        hint="give --host one of them; invoke host.list shows every host and its env",
    )


def waves(hosts: Sequence[Host], text: str) -> list[list[Host]]:
    """Split hosts by "1,50%,100%": each word says how many are done after that wave.

    Raises:
        UsageError: not such a list, or it goes backwards.
    """
    made: list[list[Host]] = []
    done = 0
    for word in (text or "100%").split(","):
        match = _WAVE.fullmatch(word.strip())
        count = int(match[1]) if match else 0
        if match is None or (match[2] and count > 100):
            raise UsageError(f"--wave {text}: not such a list", hint="--wave 1,50%,100%")
        until = min(len(hosts), ceil(len(hosts) * count / 100) if match[2] else count)
        if until > done:
            made.append(list(hosts[done:until]))
            done = until
    if done < len(hosts):
        made.append(list(hosts[done:]))
    return made
