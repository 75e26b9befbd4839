"""How a rollout looks while it goes on: a line per host on a terminal, named lines elsewhere.

A single host's progress is printed as it comes, without its name.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from macd.cli.deploy_shown import Progress
from macd.cli.hosts import Lines
from macd.cli.train_shown import safe
from macd.errors import MacdError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from macd.inventory import Host


class Shown:
    """Where each host's progress goes, from whichever thread; use it as a context manager."""

    def __init__(
        self, waves: Sequence[Sequence[Host]], *, quiet: bool, unreachable: Sequence[str] = ()
    ) -> None:
        hosts = [host for wave in waves for host in wave]
        self._quiet = quiet
        self._several = len(hosts) > 1
        self._lines = Lines(hosts)
        self._board: Board | None = None
        if self._several and not quiet and sys.stdout.isatty():
            from rich.console import Console

            console = Console()
            if not console.is_dumb_terminal:
                self._board = Board(waves, console)
                self._board.rows.update(dict.fromkeys(unreachable, "✗ can't be reached, passed by"))

    def __enter__(self) -> Shown:
        if self._board is not None:
            self._board.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()
        with self._lines:
            pass  # they are over: from now on threads that go on are silent

    @contextlib.contextmanager
    def host(self, name: str, begins: str = "") -> Iterator[Progress]:
        """The progress of one host, from its beginning to its end or error."""
        if begins:
            self._say(name, begins)
        say = None if not self._several else (lambda text: self._say(name, text))
        try:
            yield Progress(quiet=self._quiet, say=say, one_line=self._board is not None)
        except MacdError as error:
            if self._several:
                self._say(name, f"  ✗ {error.what}")
            raise

    def ended(self, name: str, text: str) -> None:
        """How it ended for one of several hosts, where its progress doesn't say it."""
        if self._several:
            self._say(name, f"  {text}")

    def interrupted(self, running: Sequence[str]) -> None:
        """The first Ctrl-C: who goes on, and what a second one does."""
        names = ", ".join(running)
        many = len(running) > 1
        print(
            f"\ninterrupted: {names} {'go' if many else 'goes'} on to the end; "
            "no other host is begun\n"
            f"  Ctrl-C again waits no longer: what {'they do' if many else 'it does'} then ends "
            "on the host, unconfirmed",
            file=sys.stderr,
            flush=True,
        )

    def _say(self, name: str, text: str) -> None:
        if self._quiet:
            return
        if self._board is not None:
            self._board.rows[name] = safe(text).strip()
            return
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the host goes on
            self._lines.say(name, text)


class Board:
    """One line per host, updated in place: its name and the last that is known of it."""

    def __init__(self, waves: Sequence[Sequence[Host]], console: Console) -> None:
        self.rows = {
            host.name: f"waiting for wave {number}" if number > 1 else "waiting"
            for number, wave in enumerate(waves, start=1)
            for host in wave
        }
        self._console = console
        self._live: Any = None

    def open(self) -> None:
        """Begin to show it."""
        from rich.live import Live

        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8)
        self._live.start(refresh=True)

    def close(self) -> None:
        """Leave it on the screen as it is now."""
        self._live.stop()

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, text in self.rows.items():
            table.add_row(Text(name), Text(text.replace("\n", " ")))
        return table
