"""Act on several hosts and show how each ended: by its name, with the error where it failed."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from macd.cli.verb import error_fields, harmless
from macd.errors import ExitCode, MacdError
from macd.host import untrusted

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.inventory import Host, Inventory
    from macd.ssh.contact import Contact

T = TypeVar("T")
_LAST_LINE_S = 1.0
_PATIENCE_S = 120.0


def select(inventory: str, env: str, host: str) -> tuple[Inventory, list[Host]]:
    """The inventory of that name, and the hosts that a command is about."""
    from macd.deploy.fleet import hosts_of
    from macd.inventory import load

    inv = load(inventory)
    return inv, list(hosts_of(inv, env, host))


def on_each(
    hosts: Sequence[Host],
    act: Callable[[Host], T],
    *,
    parallel: int = 0,
    on_interrupt: Callable[[Sequence[str]], None] | None = None,
) -> Results[T]:
    """What `side_by_side` gives, with an error for each host that a Ctrl-C left out.

    The error of a host that was asked alone is raised. Of several hosts an unexpected error is one
    host's too: it hides no other host's result.
    """
    from macd.deploy.fleet import PARALLEL, Results, side_by_side, unexpected

    def guarded(host: Host) -> T:
        try:
            return act(host)
        except (MacdError, BrokenPipeError):  # nobody reads any more: all of it ends
            raise
        except Exception as error:
            if len(hosts) == 1:
                raise
            raise unexpected(host.name, error, live="not known from here") from error

    results = side_by_side(hosts, guarded, parallel=parallel or PARALLEL, on_interrupt=on_interrupt)
    if len(hosts) == 1 and results.failed:
        raise results.failed[hosts[0].name]
    left = {name: _left_out(name) for name in results.not_started}
    return Results(results.done, {**results.failed, **left}, results.not_started)


def _left_out(host: str) -> MacdError:
    return MacdError(
        f"{host} was not started: interrupted",
        live="as before",
        hint="run it again",
        exit_code=ExitCode.INTERRUPTED,
    )


def let_end(running: Sequence[str]) -> None:
    """Say what a first Ctrl-C does: the hosts at work finish what they started."""
    names = ", ".join(running)
    print(f"\ninterrupted: waiting for {names}; Ctrl-C again leaves at once", file=sys.stderr)


def errors_by_host(failed: Mapping[str, MacdError]) -> dict[str, Any]:
    """The error of each host on which it could not be done, for a JSON document."""
    return {name: error_fields(error) for name, error in failed.items()}


def failed_fields(failed: Mapping[str, MacdError]) -> dict[str, Any]:
    """The key `errors` of a JSON document; `away` is its name up to 0.1."""
    errors = errors_by_host(failed)
    return {"errors": errors, "away": errors}


def print_failed(failed: Mapping[str, MacdError]) -> None:
    """Print the error of each host on which it could not be done; what several share, once."""
    texts = {name: harmless(error) for name, error in failed.items()}
    groups: dict[str, list[str]] = {}  # by the first of the hosts that share it
    for name in texts:
        first = next((other for other in groups if _same(texts, name, other)), name)
        groups.setdefault(first, []).append(name)
    for first, names in groups.items():
        same = f"\n  the same: {', '.join(names[1:])}" if len(names) > 1 else ""
        print(f"✗ {about(first, texts[first])}{same}", file=sys.stderr)


def _same(texts: Mapping[str, str], one: str, other: str) -> bool:
    """Whether two hosts' texts differ in their names only. A name may be a word, such as "a"."""

    def renamed(before: str, after: str) -> str:
        return re.sub(rf"(?<![\w.-]){re.escape(before)}(?![\w.-])", lambda _: after, texts[before])

    return renamed(one, other) == texts[other] or renamed(other, one) == texts[one]


def about(host: str, text: str) -> str:
    """An error's text that begins with the host's name; it may be about a jump host."""
    return text if text.startswith((f"{host} ", f"{host}:")) else f"{host}: {text}"


def exit_code(codes: Sequence[ExitCode | None], failed: Mapping[str, MacdError]) -> ExitCode:
    """The worst of what each host ended with; one of several that can't be reached counts as 5."""
    from macd.deploy.fleet import code_of, worst

    return worst([*codes, *(code_of(error) for error in failed.values())])


class Lines:
    """Lines of several hosts on one terminal: each whole, with its host's name before it.

    A single host's lines are printed as they are. Whoever speaks or pauses once all is over, or
    once nobody reads any more, gets a BrokenPipeError: that ends threads that would go on.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._width = max(len(host.name) for host in hosts) if len(hosts) > 1 else 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # A thread that holds the terminal while the process ends would abort it.
        if self._lock.acquire(timeout=_LAST_LINE_S):
            self._lock.release()

    def say(self, host: str, text: str, *, to: TextIO | None = None) -> None:
        """Print what is about a host, one line or several, to stdout or `to`.

        Its words may be the host's own: none moves the cursor.
        """
        text = untrusted.text(text, len(text))
        head = f"{host:<{self._width}} | " if self._width else ""
        self.write("\n".join(head + line for line in text.split("\n")), to=to)

    def host_failed(self, host: str, error: MacdError) -> None:
        """Print at once that a host failed; the error of a single host is raised by the caller."""
        if self._width:
            self.say(host, f"✗ {harmless(error)}", to=sys.stderr)

    def contact(self, host: Host, inventory: Inventory, *, reached: bool = False) -> Contact:
        """A session that reconnects, and says so here; ends early when all is over."""
        from macd.ssh.contact import Contact

        return Contact(
            host,
            inventory,
            watcher=_TryingAgain(self, host.name),
            patience=_PATIENCE_S,
            reached=reached,
            sleep=self.pause,
        )

    def write(self, text: str, *, to: TextIO | None = None) -> None:
        with self._lock:
            self._go_on()
            try:
                file = sys.stdout if to is None else to
                file.write(text + "\n")
                file.flush()
            except BrokenPipeError:
                self._over.set()
                raise

    def pause(self, seconds: float) -> None:
        """Wait; ends early when all is over."""
        self._over.wait(seconds)
        self._go_on()

    def _go_on(self) -> None:
        if self._over.is_set():
            raise BrokenPipeError


@dataclass(frozen=True)
class _TryingAgain:
    terminal: Lines
    host: str

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        self.terminal.say(self.host, f"{error.what}; trying again", to=sys.stderr)

    def back(self) -> None:
        """What comes shows it."""
