"""`invoke train` and its verbs: train on a host that owns the run; look on, stop it, bring it home.

Exit codes: 0 DONE, 1 FAILED or CANCELLED, 3 still RUNNING (train.status), 5 LOST CONTACT, 6 refused
because another run is in progress. Ctrl-C while following ends with 1: the run goes on, but
whoever waited for its result has none.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.verb import confirm, emit, verb
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.cli.train_shown import Shown
    from macd.inventory import Inventory
    from macd.jobs.contact import Contact
    from macd.jobs.follow import Place
    from macd.jobs.order import Order
    from macd.jobs.preflight import Check
    from macd.journal import Journal

_COMMON = {
    "host": "host with role train (default: the inventory's only one, or where the run is known)",
    "inventory": "which inventory (default: MACD_INVENTORY or lab)",
    "json": "print one JSON document for machines",
}
_RUN = {"run": "id of the run (default: the newest on the host)"}
_PATIENCE = {"patience": "minutes to try again after contact is lost (default 10)"}
_PASSED_ON = ("ML_STACKING_MIN_SAMPLES",)


@verb(
    name="train",
    default=True,
    help=_COMMON
    | _PATIENCE
    | {
        "symbol": "what to train on (default: the inventory's)",
        "cross": "assets whose bars help, as BTCUSDT,SOLUSDT (default: the inventory's)",
        "profile": "demo or full (default: the inventory's)",
        "seed": "same seed, same numbers on the same machine (default: the inventory's)",
        "engine": "local or ray (default: the inventory's)",
        "mode": "all, or one of verify, lgbm, lstm, tft, onnx, stacking",
        "data": "directory of canonical bars here (default: the inventory's)",
        "settings": "JSON file with more settings of python -m macd.train, such as params",
        "detach": "start it and leave; train.attach follows it later",
        "dry-run": "check everything and say what would travel; start nothing",
    },
)
def train(
    _: object,
    host: str = "",
    symbol: str = "",
    cross: str = "",
    profile: str = "",
    seed: int = -1,
    engine: str = "",
    mode: str = "",
    data: str = "",
    settings: str = "",
    patience: float = 10.0,
    detach: bool = False,
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Train on a host: check, send what changed, start, follow, bring the models back."""
    from macd.inventory import load
    from macd.jobs import order as orders

    book = load(inventory)
    machine = orders.train_host(book, host)
    flags = {"symbol": symbol, "cross": cross, "profile": profile, "engine": engine, "mode": mode}
    changes: dict[str, Any] = {**_settings(settings), **{k: v for k, v in flags.items() if v}}
    if seed >= 0:
        changes["seed"] = seed
    request = orders.request_of(book, changes)
    bars = orders.data_files(request, Path(data) if data else book.train.data_dir)
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    order = orders.make(request, bars, python=machine.python, env=env, now=datetime.now(UTC))
    with _looking_on(book, machine.name, patience, json=json) as (contact, shown):
        checks = _preflight(contact, book, order, bars, json=json)
        if dry_run:
            return _told_only(contact, order, checks, json=json)
        _refuse_failed(checks, contact)
        _begin(contact, book, order, json=json)
        if detach:
            _left(order.run, json=json)
            return None
        return _to_the_end(contact, book, order.run, shown, json=json)


@verb(name="status", help=_COMMON | _RUN)
def status(
    _: object, run: str = "", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode | None:
    """Say how a run stands, as its host sees it; changes nothing. Exit 3 while it is RUNNING."""
    from macd.cli.train_shown import EXIT_CODES, show_status, step
    from macd.inventory import load
    from macd.jobs import follow

    book = load(inventory)
    try:
        with _looking_on(book, _machine(book, host, run), 0.0, json=True) as (contact, shown):
            told = _status_of(contact, run)
            events = contact.use(
                lambda session: session.call(
                    "job_follow", work=contact.host.work_dir, run=told["run"], offset=0
                )
            )
    except MacdError as error:
        known = follow.known_events(run, _place(book)) if run else []
        if not json and known:
            shown_progress = _progress(known)
            step("last seen", shown_progress.line(), "warn")
        raise _as_lost(error, run) from error
    shown.past(follow.decode(events["data"]))
    if json:
        told["progress"] = asdict(shown.progress)
        emit(told)
    else:
        show_status(told, shown.progress)
        _show_why(told, shown)
    return EXIT_CODES[told["state"]]


@verb(name="attach", help=_COMMON | _RUN | _PATIENCE)
def attach(
    _: object,
    run: str = "",
    host: str = "",
    patience: float = 10.0,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Follow a run from where this machine stopped, and bring its files back when it is done."""
    from macd.inventory import load

    book = load(inventory)
    with _looking_on(book, _machine(book, host, run), patience, json=json) as (contact, shown):
        known = _status_of(contact, run)
        if not json:
            print(f"run {known['run']} on {contact.host.name}: {known['state']}")
        return _to_the_end(contact, book, known["run"], shown, json=json)


@verb(name="fetch", help=_COMMON | _RUN | _PATIENCE)
def fetch(
    _: object,
    run: str = "",
    host: str = "",
    patience: float = 10.0,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Bring the files of a run that is over (again); what is here and whole does not travel."""
    from macd.inventory import load

    book = load(inventory)
    with _looking_on(book, _machine(book, host, run), patience, json=json) as (contact, shown):
        known = _status_of(contact, run)
        return _collect(contact, book, known["run"], shown, json=json)


@verb(
    name="cancel",
    help=_COMMON
    | {
        "run": "id of the run to stop",
        "yes": "don't ask",
        "dry-run": "say what would be stopped, stop nothing",
    },
)
def cancel(
    _: object,
    run: str = "",
    host: str = "",
    yes: bool = False,
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Stop a run on its host; finished fits stay, so the same training goes on from them later."""
    from macd.inventory import load

    if not run:
        raise UsageError("which run?", hint="invoke train.status shows the newest; --run ID")
    book = load(inventory)
    with _looking_on(book, _machine(book, host, run), 0.0, json=True) as (contact, _shown):
        told = _status_of(contact, run)
        running = told["state"] == "RUNNING"
        if running and not dry_run:
            if not confirm(f"stop run {run} on {contact.host.name}?", yes=yes):
                raise RefusedError(
                    "not stopped", why="the answer was no", live=f"run {run} goes on", hint="--yes"
                )
            told = _stopped(contact, run)
    if json:
        emit({"run": run, "state": told["state"], "reason": told["reason"], "dry_run": dry_run})
    elif not running:
        print(f"run {run} is over already: {told['state']}")
    else:
        print(f"{'would stop' if dry_run else told['state']} {run}")
    return None


# -- steps


def _preflight(
    contact: Contact, book: Inventory, order: Order, bars: dict[str, Path], *, json: bool
) -> list[Check]:
    from macd.cli.train_shown import show_checks
    from macd.jobs import preflight

    s = order.settings
    if not json:
        print(f"{s.symbol} {s.tf}, profile {s.profile}, seed {s.seed}, on {contact.host.name}")
    checks = preflight.check_data(bars, s.tf, datetime.now(UTC))
    if any(check.level == "error" for check in checks):
        if not json:
            show_checks(checks)
        _refuse_failed(checks, contact)
    _journal(book).records()  # a damaged journal is told before anything is started
    work = contact.host.work_dir
    found = contact.use(lambda session: preflight.look(session, work, order.python))
    checks += preflight.check_host(*found, book.train)
    if not json:
        show_checks(checks)
    return checks


def _refuse_failed(checks: list[Check], contact: Contact) -> None:
    failed = [check for check in checks if check.level == "error"]
    if not failed:
        return
    why = "\n".join(f"{check.name}: {check.told}" for check in failed)
    hint = "\n".join(dict.fromkeys(check.hint for check in failed if check.hint))
    kind = RefusedError if all(check.name == "free" for check in failed) else MacdError
    raise kind(
        f"the training can't start on {contact.host.name}",
        why=why,
        live="nothing was sent or started",
        hint=hint,
    )


def _told_only(
    contact: Contact, order: Order, checks: list[Check], *, json: bool
) -> ExitCode | None:
    from macd.cli.train_shown import size, step
    from macd.jobs import sync

    count, lacking = sync.missing(contact, order)
    failed = any(check.level == "error" for check in checks)
    if json:
        emit(
            {
                "dry_run": True,
                "host": contact.host.name,
                "checks": [asdict(check) for check in checks],
                "bytes_to_send": lacking,
                "bytes_total": order.tree.size,
                "request": order.request,
            }
        )
    else:
        step("would send", f"{count} files, {size(lacking)} of {size(order.tree.size)}")
        step("would run", " ".join(order.argv))
    return ExitCode.FAILED if failed else None


def _begin(contact: Contact, book: Inventory, order: Order, *, json: bool) -> None:
    from macd.cli.train_shown import size, step
    from macd.jobs import record, sync

    sent = sync.send(contact, order)
    if not json:
        files = f"{sent.landed} new of {sent.files} files"
        step("sync", f"{files}, {size(sent.sent)} of {size(sent.total)}")
    s = order.settings
    about = {"symbol": s.symbol, "tf": s.tf, "profile": s.profile, "seed": s.seed, "mode": s.mode}
    try:
        told = sync.start(contact, order, about)
    except ContactLostError as error:
        raise _as_lost(error, order.run) from error
    record.started(_journal(book), order, contact.host.name, now=datetime.now(UTC))
    if not json:
        step("started", f"run {order.run} ({told['detached']})")


def _left(run: str, *, json: bool) -> None:
    if json:
        emit({"run": run, "state": "RUNNING"})
    else:
        print(f"  it goes on by itself; follow it with: invoke train.attach --run {run}")


def _to_the_end(
    contact: Contact, book: Inventory, run: str, shown: Shown, *, json: bool
) -> ExitCode | None:
    from macd.jobs.follow import follow

    try:
        with shown:
            follow(contact, run, _place(book), shown)
    except KeyboardInterrupt:
        told = f"detached; run {run} goes on on {contact.host.name}"
        if json:
            emit({"run": run, "state": "RUNNING", "detached": True})
        else:
            print(f"\n{told}\n  do: invoke train.attach --run {run}", file=sys.stderr)
        return ExitCode.FAILED
    return _collect(contact, book, run, shown, json=json)


def _collect(
    contact: Contact, book: Inventory, run: str, shown: Shown, *, json: bool
) -> ExitCode | None:
    from macd.cli.train_shown import EXIT_CODES, show_failure, show_summary, size, step
    from macd.jobs import collect, follow, record

    got = collect.collect(contact, run, _place(book))
    record.finished(
        _journal(book), got.status, contact.host.name, got.folder, now=datetime.now(UTC)
    )
    state = got.status["state"]
    events = follow.decode((got.folder / follow.EVENTS).read_bytes()) if _has(got.folder) else []
    failure = _failure(got.status, got.folder, events) if state != "DONE" else None
    report = _report(got.folder) if state == "DONE" else None
    if json:
        emit(
            {
                "run": run,
                "state": state,
                "reason": got.status["reason"],
                "folder": str(got.folder),
                "files": got.files,
                "received": got.received,
                "report": str(report) if report else None,
                "result": got.status["result"],
                "failure": asdict(failure) if failure else None,
            }
        )
    elif failure is not None:
        show_failure(run, state, failure, str(got.folder))
    else:
        show_summary(events)
        step("collected", f"{got.files} files, {size(got.received)} received: {got.folder}")
        if report is not None:
            step("report", str(report))
        step("DONE", f"run {run}\nnext: invoke release --run {run}")
    return EXIT_CODES[state]


def _has(folder: Path) -> bool:
    from macd.jobs import follow

    return (folder / follow.EVENTS).is_file()


def _failure(status: dict[str, Any], folder: Path, events: list[dict[str, Any]]) -> Any:
    from macd.jobs import remedies

    log = folder / "log"
    end = log.read_bytes()[-8192:].decode("utf-8", "replace") if log.is_file() else ""
    return remedies.explain(status, events, end)


def _report(folder: Path) -> Path | None:
    try:
        from macd.report import training
    except ImportError:
        return None
    made: Path = training.write(folder)
    return made


# -- what they stand on


@contextmanager
def _looking_on(
    book: Inventory, host: str, patience: float, *, json: bool
) -> Iterator[tuple[Contact, Shown]]:
    from macd.cli.train_shown import Quiet, Shown
    from macd.jobs.contact import Contact

    shown = Quiet(host) if json else Shown(host)
    contact = Contact(
        book.host(host),
        book,
        clock=time.monotonic,
        sleep=time.sleep,
        watcher=shown,
        patience=patience * 60,
    )
    with contact:
        yield contact, shown


def _machine(book: Inventory, host: str, run: str) -> str:
    """The host to ask: named, or where this run was started from here, or the only one."""
    from macd.jobs import order, record

    known = "" if host or not run else record.host_of(_journal(book), run)
    return order.train_host(book, host or known).name


def _status_of(contact: Contact, run: str) -> dict[str, Any]:
    work = contact.host.work_dir
    told: dict[str, Any] = contact.use(
        lambda session: session.call("job_status", work=work, run=run, log_tail=4096)
    )
    return told


def _stopped(contact: Contact, run: str) -> dict[str, Any]:
    work = contact.host.work_dir
    contact.use(lambda session: session.call("job_cancel", work=work, run=run))
    while True:
        told = _status_of(contact, run)
        if told["state"] != "RUNNING":
            return told
        time.sleep(0.3)


def _show_why(told: dict[str, Any], shown: Shown) -> None:
    from macd.cli.train_shown import show_failure
    from macd.jobs import remedies

    if told["state"] in ("FAILED", "CANCELLED"):
        failure = remedies.explain(told, shown.events, told["log_end"])
        show_failure(told["run"], told["state"], failure, f"{told['directory']} on the host")


def _as_lost(error: MacdError, run: str) -> MacdError:
    """An unreachable host leaves the run's state unknown: that is LOST CONTACT, not FAILED."""
    from macd.remote.refusals import UnreachableError

    if not isinstance(error, ContactLostError | UnreachableError):
        return error
    named = f"run {run}" if run else "what runs there"
    return ContactLostError(
        f"LOST CONTACT: {error.what.removeprefix('LOST CONTACT ')}",
        why=error.why,
        live=f"{named} goes on without us, or is over; that is not known here",
        hint=error.hint or "try again; train.attach goes on where it was",
    )


def _progress(events: list[dict[str, Any]]) -> Any:
    from macd.jobs.progress import Progress

    return Progress().after(events)


def _settings(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        found = jsonlib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--settings {path} can't be read as JSON", why=str(error)) from error
    if not isinstance(found, dict):
        raise UsageError(f"--settings {path} must hold one JSON object")
    return found


def _journal(book: Inventory) -> Journal:
    from macd.journal import Journal

    return Journal(book.state_dir / "journal.jsonl")


def _place(book: Inventory) -> Place:
    from macd.jobs.follow import Place

    return Place(book.root / "runs")
