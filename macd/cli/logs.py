"""`invoke logs`: the newest signal lines of a host, and with --follow those still to come."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import ContactLostError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.shadow.follow import Place
    from macd.shadow.pull import Pulled

_LAST = 20
_RETRIES = 5
# Why a host that was reached before isn't now, where waiting may help: the line, not the login.
_PASSING = ("lost", "refused", "timeout", "route", "name", "not-ssh", "behind-jump")


@verb(
    name="logs",
    help={
        "env": "the environment (default: prod)",
        "host": "which host of it (default: the only one)",
        "follow": "go on with what is written from now on, until Ctrl-C",
        "grep": "only lines that match this regular expression, e.g. ml_",
        "lines": "how many of the newest to begin with (default: 20)",
        "inventory": "which inventory (default: MACD_INVENTORY or lab)",
        "json": "one JSON document; with --follow nothing but the lines",
    },
)
def logs(
    _: object,
    env: str = "prod",
    host: str = "",
    follow: bool = False,
    grep: str = "",
    lines: int = _LAST,
    inventory: str = "",
    json: bool = False,
) -> None:
    """Show the newest signal lines of a host; --follow adds those still to come."""
    from macd.deploy.campaign import only_host
    from macd.inventory import load
    from macd.shadow import follow as following

    try:
        wanted = re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep}: not a regular expression", why=str(error)) from error
    known = load(inventory)
    one = only_host(known, env, host, "logs shows")
    copy = _pulled(known, one)
    notes = following.notes(copy)
    newest: deque[str] = deque(maxlen=max(0, lines))
    newest.extend(filter(wanted.search, map(following.shown, following.newest_lines(copy))))
    if json and not follow:
        emit(
            {
                "host": one.name,
                "copy": str(copy.directory),
                "lines": list(newest),
                "notes": notes,
            }
        )
        return
    for line in newest:
        print(line, flush=follow)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not copy.names and not follow:
        print(f"{one.name} has written no signal lines yet", file=sys.stderr)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):  # the way to leave
            _follow(known, one, following.end_of(copy), wanted)


def _pulled(known: Inventory, host: Host) -> Pulled:
    from macd.remote.session import open_session
    from macd.shadow import pull
    from macd.shadow.run import logs_of

    with open_session(host, known, modules=pull.MODULES) as session:
        return pull.pull(session, host.app_dir, logs_of(known, host))


def _follow(known: Inventory, host: Host, place: Place, wanted: re.Pattern[str]) -> None:
    """Print what comes; a lost link is made anew and no line is lost or told twice."""
    from macd.remote.refusals import UnreachableError
    from macd.remote.session import open_session
    from macd.shadow import follow as following
    from macd.shadow import pull

    failures = 0
    while True:
        try:
            with open_session(host, known, modules=pull.MODULES) as session:
                while True:
                    came, place = following.more(session, host.app_dir, place)
                    failures = 0
                    for line in filter(wanted.search, map(following.shown, came)):
                        print(line, flush=True)
        except (ContactLostError, UnreachableError) as error:
            failures += 1
            if failures > _RETRIES or getattr(error, "reason", "lost") not in _PASSING:
                raise
            print(f"{error.what}; trying again", file=sys.stderr)
            time.sleep(min(30, 2**failures))
