"""`invoke logs`: the newest signal lines of the hosts, and with --follow those still to come."""

from __future__ import annotations

import contextlib
import json as jsonlib
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import (
    Lines,
    exit_code,
    failed_fields,
    on_each,
    print_failed,
    select,
)
from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError

if TYPE_CHECKING:
    from macd.gate.logs import Place, Pulled
    from macd.inventory import Host, Inventory
    from macd.ssh.session import Session

_LAST = 20
_EMPTY_S = 2.0  # between two looks for a first log; else the host waits for more lines


@dataclass(frozen=True)
class _Seen:
    """What a host has written so far. newest: the lines that were asked for, as they are there."""

    copy: Pulled
    newest: Sequence[bytes]
    notes: Sequence[str]
    end: Place

    def fields(self, host: str) -> dict[str, Any]:
        from macd.gate.logs import shown

        lines = [shown(raw) for raw in self.newest]
        where = str(self.copy.directory)
        return {"host": host, "copy": where, "lines": lines, "notes": list(self.notes)}


@verb(
    help={
        "follow": "keep showing new lines until Ctrl-C",
        "grep": "only lines that match this regular expression, e.g. ml_",
        "lines": "how many of each host's newest lines to show first (default: 20)",
        "json": "one JSON document; with --follow nothing but the lines, of several hosts "
        "each as an object with host and line",
    }
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
) -> ExitCode:
    """Show the newest signal lines of each host; --follow keeps showing new ones."""
    try:
        wanted = re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep}: not a regular expression", why=str(error)) from error
    inv, hosts = select(inventory, env, host)
    results = on_each(hosts, lambda host: _look(inv, host, wanted, lines))
    if json and not follow:
        rows = [seen.fields(name) for name, seen in results.done.items()]
        emit(rows[0] if len(hosts) == 1 else {"hosts": rows, **failed_fields(results.failed)})
        return exit_code([], results.failed)
    with Lines(hosts) as terminal:
        view = _View(terminal, wanted, objects=json and len(hosts) > 1)
        _print(results.done, view, follow=follow)
        print_failed(results.failed)
        lost = dict(results.failed)
        if follow:
            chosen = [host for host in hosts if host.name in results.done]
            with contextlib.suppress(KeyboardInterrupt):  # the way to leave
                _follow_all(inv, chosen, results.done, view, lost)
    if lost and len(hosts) == 1:
        raise lost[hosts[0].name]
    return exit_code([], lost)


@dataclass(frozen=True)
class _View:
    """How lines are shown. objects: each as JSON with its host."""

    terminal: Lines
    wanted: re.Pattern[str]
    objects: bool

    def line(self, host: str, raw: bytes) -> None:
        from macd.gate.logs import shown

        text = shown(raw)
        if not self.wanted.search(text):
            return
        if self.objects:
            self.terminal.write(jsonlib.dumps({"host": host, "line": text}, ensure_ascii=False))
        else:
            self.terminal.say(host, text)


def _look(inventory: Inventory, host: Host, wanted: re.Pattern[str], lines: int) -> _Seen:
    from macd.gate import logs as host_logs
    from macd.gate.report import logs_of
    from macd.ssh.session import open_session

    with open_session(host, inventory) as session:
        copy = host_logs.pull(session, host.app_dir, logs_of(inventory, host))
    matching = (raw for raw in host_logs.newest_lines(copy) if wanted.search(host_logs.shown(raw)))
    newest = deque(matching, maxlen=max(0, lines))
    return _Seen(copy, newest, host_logs.notes(copy), host_logs.end_of(copy))


def _print(seen: Mapping[str, _Seen], view: _View, *, follow: bool) -> None:
    from macd.gate.logs import merged

    for host, raw in merged({name: look.newest for name, look in seen.items()}):
        view.line(host, raw)
    for host, look in seen.items():
        for note in look.notes:
            view.terminal.say(host, f"note: {note}", to=sys.stderr)
        if not look.copy.names and not follow:
            view.terminal.write(f"{host} has written no signal lines yet", to=sys.stderr)


def _follow_all(
    inventory: Inventory,
    hosts: Sequence[Host],
    seen: Mapping[str, _Seen],
    view: _View,
    lost: dict[str, MacdError],
) -> None:
    """Show what comes from all hosts until all are lost; why goes into `lost` as it happens."""
    from macd.deploy.fleet import side_by_side

    def follow(host: Host) -> None:
        try:
            _follow(inventory, host, seen[host.name].end, view)
        except MacdError as error:
            lost[host.name] = error
            view.terminal.host_failed(host.name, error)

    side_by_side(hosts, follow, parallel=len(hosts))


def _follow(inventory: Inventory, host: Host, place: Place, view: _View) -> None:
    """Print what comes; no line is lost or printed twice when a link is lost."""
    from macd.gate import logs as host_logs

    def more(session: Session) -> tuple[list[bytes], Place]:
        return host_logs.more(session, host.app_dir, place)

    with view.terminal.contact(host, inventory, reached=True) as contact:
        while True:
            came, place = contact.use(more)
            for raw in came:
                view.line(host.name, raw)
            view.terminal.pause(0 if place.name else _EMPTY_S)
