"""`invoke history`: what was done from here, in order; a damaged journal up to the damage."""

from __future__ import annotations

import json as jsonlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed
from macd.cli.verb import confirm, emit, same, verb
from macd.errors import ExitCode, MacdError, UsageError
from macd.host.record import Record
from macd.journal import Journal, JournalError

if TYPE_CHECKING:
    from macd.deploy.past import Entry, Then
    from macd.inventory import Host, Inventory

_WIDEST = 200
_PLAIN = ("host", "release", "result", "verdict", "state")  # they say what they are
_NAMED = ("run", "to", "weight", "changes", "reason", "wrong")
_WHO = ("who", "by")


@dataclass(frozen=True)
class Doubts:
    """What speaks against several journals as one: sentences for people."""

    contradictions: list[str]
    damaged: list[str]
    missing: list[str]


@verb(
    iterable=["merge"],
    help={
        "at": "what was live on each host then, as '2026-11-28 14:00' (UTC, or with a zone)",
        "merge": "read the journal of another operator's machine, too; may be repeated",
        "limit": "print the newest N records; 0 prints all",
        "kind": "only records whose kind begins with this, e.g. deploy",
        "env": "read the journals of this environment's hosts instead of this machine's",
        "host": "with --env: only this host",
        "full": "print every field of every record",
        "repair-torn": "move the unfinished last line of a torn journal aside, after showing it",
        "inventory": "which inventory's journal (default: MACD_INVENTORY or lab)",
        "dry-run": "with --repair-torn: only show what would be moved",
    },
)
def history(
    _: object,
    limit: int = 20,
    kind: str = "",
    env: str = "",
    host: str = "",
    full: bool = False,
    at: str = "",
    merge: list[str] | None = None,
    repair_torn: bool = False,
    inventory: str = "",
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> ExitCode | None:
    """Print the journal: runs, releases, deploys, gates, flags; newest last."""
    from macd.inventory import load

    if limit < 0:
        raise UsageError(f"--limit {limit}: 0 for all, or how many of the newest")
    inv = load(inventory)
    if at or merge:
        _refuse_of_one(full=full, repair_torn=repair_torn)
        moment = _moment(at) if at else None
        return _past(inv, moment, merge or [], env, host, limit=limit, kind=kind, json=json)
    if env or host:
        options = same(env=env or "prod", host=host, inventory=inventory)
        if env in ("", "prod") and not host:
            options = f" --env prod{options}"  # without it the journal here is shown
        return _on_hosts(
            inv, env or "prod", host, options, limit=limit, kind=kind, full=full, json=json
        )
    options = same(inventory=inventory)
    journal = Journal(inv.state_dir / "journal.jsonl")
    if repair_torn:
        return _repair(journal, dry_run=dry_run, yes=yes, json=json)
    try:
        records = journal.records()
    except JournalError as error:
        if not json:  # show what can still be trusted, then fail
            _print(error.intact, limit, kind, full=full, options=options)
        raise
    if json:
        chosen = _chosen(records, limit, kind)
        emit({"journal": journal.path, "records": [_fields(r) for r in chosen]})
    elif not records:
        print(f"nothing has been recorded yet\n  journal: {journal.path}")
    else:
        _print(records, limit, kind, full=full, options=options)
    return None


def _refuse_of_one(*, full: bool, repair_torn: bool) -> None:
    if full or repair_torn:
        raise UsageError("--full and --repair-torn go with one journal, not with --at or --merge")


def _past(
    inventory: Inventory,
    moment: datetime | None,
    merge: list[str],
    env: str,
    host: str,
    *,
    limit: int,
    kind: str,
    json: bool,
) -> ExitCode:
    """Several journals as one, or what was live at a moment by them. Changes no journal."""
    from macd.deploy import past
    from macd.deploy.fleet import hosts_of

    damaged: list[str] = []
    journals = {"here": _intact(inventory.state_dir / "journal.jsonl", "here", damaged)}
    for path in map(Path, merge):
        if not path.is_file():
            raise UsageError(
                f"there is no file {path}",
                hint="copy .macd/INVENTORY/journal.jsonl of the other machine, and name the copy",
            )
        journals[str(path)] = _intact(path, str(path), damaged)
    failed: Mapping[str, MacdError] = {}
    asked: list[str] = []
    if env or host:
        chosen = list(hosts_of(inventory, env or "prod", host))
        results = on_each(chosen, lambda host: _fetched(host, inventory))
        failed, asked = results.failed, list(results.done)
        journals |= results.done
    entries = past.joined(journals, asked)
    doubts = Doubts(past.contradictions(entries), damaged, past.missing(entries))
    if asked:  # a host's own record counts for it, but no host knows of gate reports
        entries = [
            entry
            for entry in entries
            if entry.host not in asked
            or entry.source == entry.host
            or entry.record.kind == "gate.judged"
        ]
    if moment is not None:
        _show_then(past.at(entries, moment), moment, doubts, failed, json=json)
    else:
        _show_joined(entries, doubts, failed, limit=limit, kind=kind, json=json)
    print_failed({} if json else failed)
    return exit_code([ExitCode.FAILED if doubts.contradictions or damaged else None], failed)


def _intact(path: Path, name: str, damaged: list[str]) -> list[Record]:
    """The records up to a damage, which is named: what came later is in no answer."""
    try:
        return Journal(path).records()
    except JournalError as error:
        word = "torn" if error.torn else "damaged"
        upto = f"{name} is {word} at record {error.record}: {error.reason}"
        damaged.append(f"{upto}. What it holds from there on counts for nothing here")
        return error.intact


def _show_then(
    states: list[Then],
    moment: datetime,
    doubts: Doubts,
    failed: Mapping[str, MacdError],
    *,
    json: bool,
) -> None:
    if json:
        rows = [
            {k: _z(v) if isinstance(v, datetime) else v for k, v in asdict(state).items()}
            for state in states
        ]
        emit({"at": _z(moment), "hosts": rows, **asdict(doubts), **failed_fields(failed)})
        return
    print(f"{moment:%Y-%m-%d %H:%M:%S} UTC, by the journals")
    if not states:
        print("  no host is on record before that")
    for state in states:
        print(f"{state.host}: {_live_words(state)}")
        for line in _then_lines(state):
            print(f"  {line}")
    _show_doubts(doubts)


def _live_words(state: Then) -> str:
    from macd.deploy.past import shown

    if state.release is None:
        return "nothing was live"
    if not state.release:
        return "what was live is not on record"
    by = f" by {state.by}" if state.by else ""
    how = f", {state.how}" if state.how else ""
    return f"{state.release}, since {shown(state.since)}{how}{by}" if state.since else state.release


def _then_lines(state: Then) -> Iterator[str]:
    from macd.deploy.past import shown

    since = f" since {shown(state.weight_since)}" if state.weight_since else ""
    if state.weight is None:
        yield "stacking: not on record"
    elif not state.weight:
        yield f"stacking: in shadow{since}"
    else:
        decides = f"decides with {state.weight} %" if state.weighed else "the models decide"
        yield f"stacking: {decides}{since}"
        verdict = f" ({state.verdict})" if state.verdict else ""
        yield f"evidence: {_report_words(state.evidence)}{verdict}"
    if state.under_way:
        yield f"under way: {state.under_way}"


def _report_words(evidence: str) -> str:
    """A host records the SHA-256 of a report; the journal of who made it, also its path."""
    if re.fullmatch("[0-9a-f]{64}", evidence):
        return f"a gate report that no journal here names; its SHA-256 is {evidence}"
    return evidence or "no report is on record"


def _show_joined(
    entries: list[Entry],
    doubts: Doubts,
    failed: Mapping[str, MacdError],
    *,
    limit: int,
    kind: str,
    json: bool,
) -> None:
    wanted = [entry for entry in entries if entry.record.kind.startswith(kind)]
    wanted = wanted[-limit:] if limit else wanted
    if json:
        rows = [{"source": e.source, **_fields(e.record)} for e in wanted]
        emit({"records": rows, **asdict(doubts), **failed_fields(failed)})
        return
    width = max((len(entry.source) for entry in wanted), default=0)
    for entry in wanted:
        head = f"{entry.at:%Y-%m-%d %H:%M:%SZ}  {entry.source:<{width}}  {entry.record.kind:<15}"
        print(f"{head} {_brief(entry.record)}".rstrip())
    if len(wanted) < len(entries):
        print(f"{len(wanted)} of {len(entries)} records; --limit 0 shows all")
    _show_doubts(doubts)


def _show_doubts(doubts: Doubts) -> None:
    for doubt in doubts.contradictions:
        print(f"✗ the journals contradict each other: {doubt}")
    for damage in doubts.damaged:
        print(f"✗ {damage}")
    for gap in doubts.missing:
        print(f"! {gap}")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--at {text}: not a time", hint="--at '2026-11-28 14:00', or 2026-11-28T14:00+08:00"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _on_hosts(
    inventory: Inventory,
    env: str,
    host: str,
    options: str,
    *,
    limit: int,
    kind: str,
    full: bool,
    json: bool,
) -> ExitCode:
    """What each host recorded itself, whoever deployed to it; its chain is checked here."""
    from macd.deploy.fleet import hosts_of

    results = on_each(list(hosts_of(inventory, env, host)), lambda host: _fetched(host, inventory))
    if json:
        rows = [
            {"host": name, "records": [_fields(r) for r in _chosen(records, limit, kind)]}
            for name, records in results.done.items()
        ]
        emit({"hosts": rows, **failed_fields(results.failed)})
        return exit_code([], results.failed)
    for name, records in results.done.items():
        print(f"{name}{'' if records else ': nothing has been recorded there yet'}")
        _print(records, limit, kind, full=full, options=options)
    print_failed(results.failed)
    return exit_code([], results.failed)


def _fetched(host: Host, inventory: Inventory) -> list[Record]:
    from macd.deploy.state import fetch_journal

    with tempfile.TemporaryDirectory(prefix="macd-journal-") as directory:
        copy = Path(directory, "journal.jsonl")
        copy.write_bytes(fetch_journal(host, inventory))
        return Journal(copy).records()


def _repair(journal: Journal, *, dry_run: bool, yes: bool, json: bool) -> ExitCode | None:
    torn = _torn(journal)
    if torn and not json:
        print(f"record {torn.record} was never finished; its {len(torn.torn)} bytes are:\n")
        print(f"  {torn.torn.decode('utf-8', 'backslashreplace')!r}\n")
    wanted = torn is not None and not dry_run
    agreed = wanted and confirm("move them to a file beside the journal?", yes=yes)
    moved = journal.repair_torn(now=datetime.now(UTC)) if agreed else None
    if json:
        emit({"torn_at": torn and torn.record, "moved_to": moved, "dry_run": dry_run})
    elif moved:
        print(f"moved to {moved}; the journal goes on with a record of that\n  next: invoke status")
    elif torn is None:
        print("the journal is whole; nothing to repair")
    else:
        print("nothing was changed\n  do: invoke history --repair-torn --yes")
    return ExitCode.FAILED if wanted and not agreed else None


def _torn(journal: Journal) -> JournalError | None:
    try:
        journal.records()
    except JournalError as error:
        if error.torn:
            return error
        raise
    return None


def _chosen(records: list[Record], limit: int, kind: str) -> list[Record]:
    wanted = [record for record in records if record.kind.startswith(kind)]
    return wanted[-limit:] if limit else wanted


def _print(records: list[Record], limit: int, kind: str, *, full: bool, options: str = "") -> None:
    chosen = _chosen(records, limit, kind)
    for record in chosen:
        head = f"{record.seq:>5}  {record.time:%Y-%m-%d %H:%M:%SZ}  {record.kind:<15}"
        print(head.rstrip() if full else f"{head} {_brief(record)}".rstrip())
        for name, value in record.fields.items() if full else ():
            print(f"{'':7}{name}: {_shown(value)}")
    if kind and not chosen:
        kinds = ", ".join(sorted({record.kind for record in records}))
        print(f"no record of kind {kind}; there are: {kinds or 'none'}")
    elif len(chosen) < len(records):
        print(f"{len(chosen)} of {len(records)} records\n  more: invoke history --limit 0{options}")
    elif chosen and not full:
        print(f"  every field: invoke history --full{options}")


def _brief(record: Record) -> str:
    """One line about a record: what it is about, how it ended, why, who; all of it if unknown."""
    fields = {name: value for name, value in record.fields.items() if value not in ("", None)}
    if fields.pop("weighed", True) is False:
        fields.pop("weight", None)  # an application of one's own has none
    parts = [_shown(fields[name]) for name in _PLAIN if name in fields]
    parts += [f"{name}: {_shown(fields[name])}" for name in _NAMED if name in fields]
    parts += [f"by {_shown(fields[name])}" for name in _WHO if name in fields]
    return "  ".join(parts or [f"{name}: {_shown(value)}" for name, value in fields.items()])


def _shown(value: object) -> str:
    # JSON's escapes also keep control characters in a value from reaching the terminal.
    plain = isinstance(value, str) and value.isprintable()
    text = str(value) if plain else jsonlib.dumps(value, ensure_ascii=not _printable(value))
    cut = len(text) > _WIDEST
    return f"{text[:_WIDEST]}… (--json shows all)" if cut else text


def _printable(value: object) -> bool:
    return jsonlib.dumps(value, ensure_ascii=False).isprintable()


def _fields(record: Record) -> dict[str, Any]:
    return asdict(record) | {"time": _z(record.time)}


def _z(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
