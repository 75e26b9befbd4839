"""`invoke history`: what was done from here, in order; a damaged journal up to the damage."""

from __future__ import annotations

import json as jsonlib
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, on_each, print_failed
from macd.cli.verb import confirm, emit, same, verb
from macd.errors import ExitCode, UsageError
from macd.host.record import Record
from macd.journal import Journal, JournalError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory

_WIDEST = 200
_PLAIN = ("host", "release", "result", "verdict", "state")  # they say what they are
_NAMED = ("run", "to", "changes", "reason", "wrong")
_WHO = ("who", "by")


@verb(
    help={
        "limit": "print the newest N records; 0 prints all",
        "kind": "only records whose kind begins with this, e.g. deploy",
        "env": "read the journals of this environment's hosts instead of this machine's",
        "host": "with --env: only this host",
        "full": "print every field of every record",
        "repair-torn": "move the unfinished last line of a torn journal aside, after showing it",
        "inventory": "which inventory's journal (default: MACD_INVENTORY or lab)",
        "dry-run": "with --repair-torn: only show what would be moved",
    }
)
def history(
    _: object,
    limit: int = 20,
    kind: str = "",
    env: str = "",
    host: str = "",
    full: bool = False,
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
    return asdict(record) | {"time": record.time.isoformat().replace("+00:00", "Z")}
