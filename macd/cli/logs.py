"""`invoke logs`: the newest signal lines of the hosts, and with --follow those still to come.

Of an application of the team's own they are shown by app.signals; where that is not set, and with
--unit, the journals of its units are shown.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import (
    Lines,
    exit_code,
    failed_fields,
    on_each,
    print_failed,
    select,
)
from macd.cli.verb import LOOKED, emit, verb
from macd.errors import ExitCode, MacdError, UsageError

if TYPE_CHECKING:
    from macd.gate.logs import JournalTail, OwnTail, Place, Pulled
    from macd.host.own import Signals
    from macd.inventory import Host, Inventory
    from macd.ssh.session import Session

_LAST = 20
_NAMED = 5  # damaged lines
_EMPTY_S = 2.0  # between two looks for a first log; else the host waits for more lines


# Lines that came since the last call, and the seconds until it is worth asking again.
_More = Callable[["Session"], tuple[Sequence[bytes], float]]


@dataclass(frozen=True)
class _Seen:
    """What a host has written so far. newest: the lines that were asked for, as they are there."""

    copy: Pulled
    newest: Sequence[bytes]
    notes: Sequence[str]
    more: _More

    def fields(self, host: str) -> dict[str, Any]:
        from macd.gate.logs import shown

        lines = [shown(raw) for raw in self.newest]
        where = str(self.copy.directory)
        return {"host": host, "copy": where, "lines": lines, "notes": list(self.notes)}


@verb(
    interrupted=LOOKED,
    help={
        "follow": "keep showing new lines until Ctrl-C",
        "grep": "only lines that match this regular expression, e.g. ml_",
        "lines": "how many of each host's newest lines to show first (default: 20)",
        "unit": "show the journal of this unit of the application instead; all: of each",
        "parquet": "write all lines to this directory as parquet, a file for each host and day",
        "json": "one JSON document; with --follow nothing but the lines, of several hosts "
        "each as an object with host and line",
    },
)
def logs(
    _: object,
    env: str = "prod",
    host: str = "",
    follow: bool = False,
    grep: str = "",
    lines: int = _LAST,
    unit: str = "",
    parquet: str = "",
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Show the newest signal lines of each host; --follow keeps showing new ones."""
    from macd import application

    if parquet and (follow or grep):
        raise UsageError("--parquet writes all lines: it takes neither --follow nor --grep")
    wanted = _wanted(grep, lines)
    inv, hosts = select(inventory, env, host)
    app = application.of(inv)
    if unit or not (app.lines_known or parquet):
        asked = _Journal(unit or "all", wanted, lines, follow=follow, json=json)
        return _show_journals(inv, hosts, asked)
    if parquet:
        if app.name:
            raise UsageError(
                "--parquet writes the lines of the built-in application, whose columns are known",
                hint="the lines of your own lie as JSON below .macd/INVENTORY/logs/HOST/own",
            )
        directory = Path(parquet).expanduser()
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"--parquet {parquet}: no directory", hint="--parquet signals/")
        return _write_tables(inv, hosts, directory, json=json)
    results = on_each(hosts, lambda host: _look(inv, host, wanted, lines))
    if json and not follow:
        rows = [seen.fields(name) for name, seen in results.done.items()]
        emit(rows[0] if len(hosts) == 1 else {"hosts": rows, **failed_fields(results.failed)})
        return exit_code([], results.failed)
    with Lines(hosts) as terminal:
        view = _View(
            terminal,
            wanted,
            _reader(None if json else app.signals),
            objects=json and len(hosts) > 1,
        )
        _print(app.signals, results.done, view, follow=follow)
        print_failed(results.failed)
        lost = dict(results.failed)
        if follow:
            chosen = [host for host in hosts if host.name in results.done]
            with contextlib.suppress(KeyboardInterrupt):  # the way to leave
                _follow_all(inv, chosen, results.done, view, lost)
    if lost and len(hosts) == 1:
        raise lost[hosts[0].name]
    return exit_code([], lost)


def _wanted(grep: str, lines: int) -> re.Pattern[str]:
    """What a line must match. Raises UsageError for that, and for a number that can't be."""
    if lines < 0:
        raise UsageError(f"--lines {lines}: 0 or more")
    try:
        return re.compile(grep)
    except re.error as error:
        raise UsageError(f"--grep {grep}: not a regular expression", why=str(error)) from error


@dataclass(frozen=True)
class _Table:
    """A file of lines. damaged: (line, why) of the lines of its log that are not in it."""

    path: Path
    rows: int
    damaged: Sequence[Any]


def _write_tables(
    inventory: Inventory, hosts: Sequence[Host], directory: Path, *, json: bool
) -> ExitCode:
    """All lines of each host as parquet; an unreachable host keeps the files it has."""
    from macd.application import write_signal_table
    from macd.host.judge.reading import ordered

    copies = on_each(hosts, lambda host: _pull(inventory, host))
    made: dict[str, list[_Table]] = {}
    for name, copy in copies.done.items():
        logs = ordered(copy.directory)
        try:
            made[name] = [_Table(*write_signal_table(name, log.path, directory)) for log in logs]
        except OSError as error:
            raise MacdError(
                f"the lines of {name} could not be written",
                why=error.strerror or str(error),
                live="files that are there are whole",
                hint=f"if {directory} can be written and has room, run it again; or name another",
            ) from error
    if json:
        rows = [
            {"host": name, "files": [asdict(table) for table in tables]}
            for name, tables in made.items()
        ]
        emit({"hosts": rows, **failed_fields(copies.failed)})
    else:
        for name, tables in made.items():
            print("\n".join(_said_of_tables(name, tables, directory)))
        print_failed(copies.failed)
    return exit_code([], copies.failed)


def _said_of_tables(name: str, tables: Sequence[_Table], directory: Path) -> Iterator[str]:
    if not tables:
        yield f"{name}: no lines yet, nothing was written"
        return
    rows = sum(table.rows for table in tables)
    files = f"{directory}/signals_{name}_*.parquet"
    yield f"{name}: {_count(rows, 'line')} in {_count(len(tables), 'file')}: {files}"
    damaged = [(table, *line) for table in tables for line in table.damaged]
    if damaged:
        yield f"  ✗ {_count(len(damaged), 'line')} in no file: can't be read"
        for table, number, why in damaged[:_NAMED]:
            yield f"    line {number} of {table.path.stem}: {why}"
        if len(damaged) > _NAMED:
            yield f"    and {len(damaged) - _NAMED} more; --json names all"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class _View:
    """How lines are shown. reader: makes a line readable. objects: each as JSON with its host."""

    terminal: Lines
    wanted: re.Pattern[str]
    reader: Callable[[bytes], str]
    objects: bool

    def line(self, host: str, raw: bytes) -> None:
        from macd.gate.logs import shown

        self.text(host, shown(raw), self.reader(raw))

    def text(self, host: str, text: str, readable: str = "") -> None:
        if not self.wanted.search(text) and not self.wanted.search(readable):
            return
        if self.objects:
            self.terminal.write(jsonlib.dumps({"host": host, "line": text}, ensure_ascii=False))
        else:
            self.terminal.say(host, readable or text)


def _reader(signals: Signals | None) -> Callable[[bytes], str]:
    from macd.gate.logs import own_shown, shown

    return shown if signals is None else lambda raw: own_shown(raw, signals)


def _look(inventory: Inventory, host: Host, wanted: re.Pattern[str], lines: int) -> _Seen:
    from macd import application
    from macd.gate import logs as host_logs

    copy, signals = _pull(inventory, host), application.of(inventory).signals
    more: _More
    if inventory.service.instances:
        there: Iterable[bytes] = host_logs.newest_lines(copy)
        more = _OwnFollower(host, host_logs.OwnTail(copy)).more
    elif signals is not None:
        tail = host_logs.OwnTail(copy)
        there = host_logs.newest_own(copy, signals)
        more = _OwnFollower(host, tail).more
    else:
        there, more = host_logs.newest_lines(copy), _Follower(host, host_logs.end_of(copy)).more
    reader = _reader(signals)
    matching = (
        raw for raw in there if wanted.search(host_logs.shown(raw)) or wanted.search(reader(raw))
    )
    newest = deque(matching, maxlen=max(0, lines))
    return _Seen(copy, newest, host_logs.notes(copy), more)


class _Follower:
    """Where one is in the logs of the built-in application."""

    def __init__(self, host: Host, place: Place) -> None:
        self._host, self._place = host, place

    def more(self, session: Session) -> tuple[Sequence[bytes], float]:
        from macd.gate import logs as host_logs

        came, self._place = host_logs.more(session, self._host.app_dir, self._place)
        return came, 0.0 if self._place.name else _EMPTY_S


class _OwnFollower:
    """Where one is in those of an application of the team's own; its host does not wait."""

    def __init__(self, host: Host, tail: OwnTail) -> None:
        self._host, self._tail = host, tail

    def more(self, session: Session) -> tuple[Sequence[bytes], float]:
        came = self._tail.more(session, self._host.app_dir)
        return came, 0.0 if came else _EMPTY_S


def _pull(inventory: Inventory, host: Host) -> Pulled:
    from macd import application
    from macd.gate import logs as host_logs
    from macd.ssh.session import open_session

    own = bool(application.of(inventory).name)
    with open_session(host, inventory) as session:
        where = host_logs.logs_of(inventory, host)
        return host_logs.pull(session, host.app_dir, where, own=own)


def _print(
    signals: Signals | None, seen: Mapping[str, _Seen], view: _View, *, follow: bool
) -> None:
    from macd.gate.logs import built_in_time, merged, own_time

    time = own_time(signals) if signals else built_in_time
    for host, raw in merged({name: look.newest for name, look in seen.items()}, time):
        view.line(host, raw)
    for host, look in seen.items():
        for note in look.notes:
            view.terminal.say(host, f"note: {note}", to=sys.stderr)
        if not look.copy.names and not follow:
            view.terminal.write(f"{host} has written no signal lines yet", to=sys.stderr)
        elif view.wanted.pattern and not (look.newest or follow):
            view.terminal.say(host, f"no line matches {view.wanted.pattern}", to=sys.stderr)


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
            _follow(inventory, host, seen[host.name].more, view)
        except MacdError as error:
            lost[host.name] = error
            view.terminal.host_failed(host.name, error)

    side_by_side(hosts, follow, parallel=len(hosts))


def _follow(inventory: Inventory, host: Host, more: _More, view: _View) -> None:
    """Print what comes; no line is lost or printed twice when a link is lost."""
    with view.terminal.contact(host, inventory, reached=True) as contact:
        while True:
            came, pause = contact.use(more)
            for raw in came:
                view.line(host.name, raw)
            view.terminal.pause(pause)


@dataclass(frozen=True)
class _Journal:
    """What is asked of the units' journals. unit: all, or the name or its end of one."""

    unit: str
    wanted: re.Pattern[str]
    lines: int
    follow: bool
    json: bool

    def units(self, inventory: Inventory, host: Host) -> list[str]:
        """Raises UsageError: the application has no such unit."""
        from macd import application

        units = application.of(inventory).units(host.unit)
        names = [n for n, one in units.items() if n.endswith(".service") and one.template]
        ends = (f"-{self.unit}", f"@{self.unit}")  # of several units, of instances
        said = (self.unit, f"{self.unit}.service", *(f"{host.unit}{end}.service" for end in ends))
        chosen = names if self.unit == "all" else [name for name in names if name in said]
        if not chosen:
            raise UsageError(f"--unit {self.unit}: no unit of {host.name}", hint=", ".join(names))
        return chosen


def _show_journals(inventory: Inventory, hosts: Sequence[Host], asked: _Journal) -> ExitCode:
    """The newest lines of the units' journals, and with --follow those still to come."""
    from macd.gate.logs import JournalTail, Message
    from macd.ssh.session import open_session

    tails = {host.name: JournalTail(asked.units(inventory, host), host.scope) for host in hosts}

    def newest(host: Host) -> list[Message]:
        looked = max(1, asked.lines) * (10 if asked.wanted.pattern else 1)
        with open_session(host, inventory) as session:
            messages = tails[host.name].newest(session, looked)
        return [m for m in messages if asked.wanted.search(m.shown)][-max(1, asked.lines) :]

    results = on_each(hosts, newest)
    if asked.json and not asked.follow:
        rows = [
            {"host": name, "lines": [asdict(message) for message in messages]}
            for name, messages in results.done.items()
        ]
        emit(rows[0] if len(hosts) == 1 else {"hosts": rows, **failed_fields(results.failed)})
        return exit_code([], results.failed)
    lost = dict(results.failed)
    with Lines(hosts) as terminal:
        objects = asked.json and len(hosts) > 1
        view = _View(terminal, asked.wanted, _reader(None), objects=objects)
        for name, messages in results.done.items():
            for message in messages:
                view.text(name, message.shown)
            if not messages and not asked.follow:
                units = ", ".join(asked.units(inventory, inventory.host(name)))
                why = "or this account may not read the journal (group systemd-journal)"
                view.terminal.write(f"{name}: no lines of {units} yet, {why}", to=sys.stderr)
        print_failed(results.failed)
        if asked.follow:
            chosen = [host for host in hosts if host.name in results.done]
            with contextlib.suppress(KeyboardInterrupt):  # the way to leave
                _follow_journals(inventory, chosen, tails, view, lost)
    if lost and len(hosts) == 1:
        raise lost[hosts[0].name]
    return exit_code([], lost)


def _follow_journals(
    inventory: Inventory,
    hosts: Sequence[Host],
    tails: Mapping[str, JournalTail],
    view: _View,
    lost: dict[str, MacdError],
) -> None:
    from macd.deploy.fleet import side_by_side

    def follow(host: Host) -> None:
        try:
            with view.terminal.contact(host, inventory, reached=True) as contact:
                while True:
                    for message in contact.use(tails[host.name].more):
                        view.text(host.name, message.shown)
                    view.terminal.pause(_EMPTY_S)
        except MacdError as error:
            lost[host.name] = error
            view.terminal.host_failed(host.name, error)

    side_by_side(hosts, follow, parallel=len(hosts))
