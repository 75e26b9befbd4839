"""`invoke dashboard`: one page to watch, served on this machine or written to a file."""

from __future__ import annotations

import contextlib
import time
import webbrowser
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, print_failed
from macd.cli.verb import emit, same, verb
from macd.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from macd.dashboard.page import Facts
    from macd.dashboard.watch import Watch

_EVERY_S, _LEAST_S = 60, 5
_DAYS = 30


@verb(
    help={
        "env": "only the hosts of this environment (default: all)",
        "host": "only this host",
        "once": "write the page to this file and end; it needs no server",
        "port": "serve on this port of 127.0.0.1 (default: any that is free)",
        "every": "ask the hosts every so many seconds (default: 60)",
        "days": "how far back the page looks (default: 30)",
        "open": "also open the page in a browser",
        "json": "ask once and print what the page says as one JSON document",
    }
)
def dashboard(
    _: object,
    env: str = "",
    host: str = "",
    once: str = "",
    port: int = 0,
    every: int = _EVERY_S,
    days: int = _DAYS,
    open: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Serve one page about every host until Ctrl-C; --once FILE writes it."""
    from macd.dashboard import watch
    from macd.inventory import load

    if every < _LEAST_S:
        raise UsageError(f"--every {every}: at least {_LEAST_S} seconds")
    if not 0 < days <= 3650:
        raise UsageError(f"--days {days}: not a number of days", hint="--days 30")
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: no port", hint="--port 8123, or leave it out")
    inv = load(inventory)
    watched = watch.Watch(inv, watch.hosts_of(inv, env, host), days, same(inventory=inventory))
    if once or json:
        return _once(watched.ask(), once, json=json)
    _serve(watched, port=port, every=every, browser=open)
    return None


def _once(facts: Facts, file: str, *, json: bool) -> ExitCode:
    from macd.dashboard.page import needed, page
    from macd.report.page import write_page

    path = Path(file).expanduser().absolute() if file else None
    if path is not None:
        try:
            write_page(path, page(facts))
        except OSError as error:
            raise UsageError(f"{file} can't be written", why=str(error)) from error
    failed = {seen.host.name: seen.failure for seen in facts.hosts if seen.failure is not None}
    if json:
        emit({"made": facts.made, "file": path, **_fields(facts), **failed_fields(failed)})
    else:
        from macd.report import numbers

        count = len(needed(facts))
        hosts = numbers.counted(len(facts.hosts), "host")
        print(f"{path}\n  {len(facts.hosts) - len(failed)} of {hosts} answered")
        print(f"  needs a person: {count or 'nothing'}")
        print_failed(failed)
    if len(facts.hosts) == 1 and failed:
        return failed[facts.hosts[0].host.name].exit_code
    return exit_code([], failed)


def _fields(facts: Facts) -> dict[str, Any]:
    from macd.dashboard.page import needed, section_of

    sections = [section_of(seen, facts) for seen in facts.hosts]
    rows = [
        {
            "host": part.name,
            "env": part.env,
            "live": part.live or None,
            "since": part.since or None,
            "service": part.serves,
            "stacking": part.stacking,
            "answered": part.age,
            "way": dict(part.way),
            "drift": list(part.drift),
            "gate": part.gate.get("verdict"),
        }
        for part in sections
    ]
    return {"needs": [asdict(need) for need in needed(facts)], "hosts": rows}


def _serve(watched: Watch, *, port: int, every: int, browser: bool) -> None:
    from macd.dashboard.page import page
    from macd.dashboard.server import Server

    server = Server(port)
    try:
        # What was known the last time, at once; the answers follow.
        server.show(page(replace(watched.facts({}, datetime.now(UTC)), every_s=every)))
        print(
            f"{server.address}\n  Ctrl-C ends it; the hosts are asked every {every} s", flush=True
        )
        if browser:
            webbrowser.open(server.address)
        while True:
            server.show(page(replace(watched.ask(), every_s=every)))
            time.sleep(every)
    except KeyboardInterrupt:  # the way to leave
        print()
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            server.close()
