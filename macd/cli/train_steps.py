"""The steps `invoke train` and its verbs are made of: each does one thing and tells it."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.verb import emit
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.cli.train_shown import Shown
    from macd.inventory import Inventory
    from macd.jobs.contact import Contact
    from macd.jobs.follow import Place
    from macd.jobs.order import Order
    from macd.jobs.preflight import Check
    from macd.journal import Journal


def check(
    contact: Contact, inventory: Inventory, order: Order, bars: dict[str, Path], *, json: bool
) -> list[Check]:
    """Look at the bars here and at the host, and show what was found."""
    from macd.cli.train_shown import show_checks
    from macd.jobs import preflight

    s = order.settings
    if not json:
        print(f"{s.symbol} {s.tf}, profile {s.profile}, seed {s.seed}, on {contact.host.name}")
    checks = preflight.check_data(bars, s, datetime.now(UTC))
    if any(check.level == "error" for check in checks):
        if not json:
            show_checks(checks)
        refuse_failed(checks, contact)
    _journal(inventory).records()  # a damaged journal is told before anything is started
    work = contact.host.work_dir
    found = contact.use(lambda session: preflight.look(session, work, order.python))
    checks += preflight.check_host(*found, inventory.train)
    if not json:
        show_checks(checks)
    return checks


def refuse_failed(checks: list[Check], contact: Contact) -> None:
    """Raise with all that failed; RefusedError if only another run is in the way."""
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


def tell_only(
    contact: Contact, order: Order, checks: list[Check], *, json: bool
) -> ExitCode | None:
    """What would travel and run; changes nothing."""
    from macd.cli.train_shown import step
    from macd.jobs import sync
    from macd.sizes import size

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


def begin(contact: Contact, inventory: Inventory, order: Order, *, json: bool) -> None:
    """Send what the host lacks, start the run, record it."""
    from macd.cli.train_shown import step
    from macd.jobs import ask, record, sync
    from macd.sizes import size

    sent = sync.send(contact, order)
    if not json:
        files = f"{sent.landed} new of {sent.files} files"
        step("sync", f"{files}, {size(sent.sent)} of {size(sent.total)}")
    s = order.settings
    about = {"symbol": s.symbol, "tf": s.tf, "profile": s.profile, "seed": s.seed, "mode": s.mode}
    try:
        told = sync.start(contact, order, about)
    except ContactLostError as error:
        raise ask.as_lost(error, order.run) from error
    record.started(_journal(inventory), order, contact.host.name, now=datetime.now(UTC))
    if not json:
        step("started", f"run {order.run} ({told['detached']})")


def say_left(run: str, *, json: bool) -> None:
    """The run goes on, we don't."""
    if json:
        emit({"run": run, "state": "RUNNING"})
    else:
        print(f"  it goes on by itself; follow it with: invoke train.attach --run {run}")


def to_the_end(
    contact: Contact, inventory: Inventory, run: str, shown: Shown, *, json: bool
) -> ExitCode | None:
    """Follow a run until it is over and bring it home; Ctrl-C only ends the following."""
    from macd.jobs.follow import follow

    try:
        with shown:
            follow(contact, run, place(inventory), shown)
    except KeyboardInterrupt:
        told = f"detached; run {run} goes on on {contact.host.name}"
        if json:
            emit({"run": run, "state": "RUNNING", "detached": True})
        else:
            print(f"\n{told}\n  do: invoke train.attach --run {run}", file=sys.stderr)
        return ExitCode.FAILED
    return bring_home(contact, inventory, run, json=json)


def bring_home(contact: Contact, inventory: Inventory, run: str, *, json: bool) -> ExitCode | None:
    """Fetch the files of a run that is over, record its end and tell it."""
    from macd.cli.train_shown import EXIT_CODES, show_failure, show_summary, step
    from macd.jobs import collect, follow, record
    from macd.sizes import size

    got = collect.collect(contact, run, place(inventory))
    record.finished(
        _journal(inventory), got.status, contact.host.name, got.folder, now=datetime.now(UTC)
    )
    state = got.status["state"]
    events = follow.decode((got.folder / follow.EVENTS).read_bytes()) if _has(got.folder) else []
    failure = _failure(got.status, got.folder, events) if state != "DONE" else None
    done = state == "DONE"
    report, unmade = _report(got.folder, contact.host.name) if done else (None, None)
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
        step("report", str(unmade or report), "warn" if unmade else "ok")
        step("DONE", f"run {run}\nnext: invoke release")
    return EXIT_CODES[state]


def _has(folder: Path) -> bool:
    from macd.jobs import follow

    return (folder / follow.EVENTS).is_file()


def _failure(status: dict[str, Any], folder: Path, events: list[dict[str, Any]]) -> Any:
    from macd.jobs import remedies

    log = folder / "log"
    end = log.read_bytes()[-8192:].decode("utf-8", "replace") if log.is_file() else ""
    return remedies.explain(status, events, end)


def _report(folder: Path, host: str) -> tuple[Path | None, MacdError | None]:
    """The report page; a run that is home stays done when its page can't be made."""
    from macd import application

    try:
        return application.write_training_page(folder, host=host), None
    except MacdError as error:
        return None, error


@contextmanager
def looking_on(
    inventory: Inventory, host: str, patience: float, *, json: bool
) -> Iterator[tuple[Contact, Shown]]:
    """A contact with the host and who looks on; `patience` in minutes."""
    from macd.cli.train_shown import Quiet, Shown
    from macd.jobs.contact import Contact

    shown = Quiet(host) if json else Shown(host)
    contact = Contact(
        inventory.host(host),
        inventory,
        clock=time.monotonic,
        sleep=time.sleep,
        watcher=shown,
        patience=patience * 60,
    )
    with contact:
        yield contact, shown


def host_for(inventory: Inventory, host: str, run: str) -> str:
    """The host to ask: named, or where this run was started from here, or the only one."""
    from macd.jobs import choice, record

    known = "" if host or not run else record.host_of(_journal(inventory), run)
    return choice.train_host(inventory, host or known).name


def show_why(told: dict[str, Any], shown: Shown) -> None:
    """Why a run is over without a result."""
    from macd.cli.train_shown import show_failure
    from macd.jobs import remedies

    if told["state"] in ("FAILED", "CANCELLED"):
        failure = remedies.explain(told, shown.events, told["log_end"])
        show_failure(told["run"], told["state"], failure, f"{told['directory']} on the host")


def more_settings(path: str) -> dict[str, Any]:
    """The JSON object in a file; nothing without one."""
    if not path:
        return {}
    try:
        found = jsonlib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--settings {path} can't be read as JSON", why=str(error)) from error
    if not isinstance(found, dict):
        raise UsageError(f"--settings {path} must hold one JSON object")
    return found


def _journal(inventory: Inventory) -> Journal:
    from macd.journal import Journal

    return Journal(inventory.state_dir / "journal.jsonl")


def place(inventory: Inventory) -> Place:
    """Where runs lie on this machine."""
    from macd.jobs.follow import Place

    return Place(inventory.root / "runs")
