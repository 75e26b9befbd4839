"""`invoke train` and its verbs: train on a host that owns the run; follow it, stop it, fetch it.

The verbs come first, each a list of steps; the steps follow below them, in the order they are used.
What is printed is in train_shown.py.

Exit codes: 0 DONE, 1 FAILED or CANCELLED, 3 still RUNNING (train.status), 5 LOST CONTACT, 6 refused
because another run is in progress. Ctrl-C while following ends with 130: the run goes on, but
whoever waited for its result has none.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.train_shown import (
    Quiet,
    Shown,
    next_command,
    show_checks,
    show_failure,
    show_last_seen,
    show_schedule,
    show_status,
    show_summary,
    show_workers,
    step,
)
from macd.cli.verb import confirm, emit, safe, verb
from macd.criteria import MIN_SAMPLES
from macd.errors import ContactLostError, ExitCode, MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.jobs.cluster import Cluster, Seen
    from macd.jobs.follow import LocalRuns
    from macd.jobs.preflight import Check
    from macd.jobs.request import Request
    from macd.jobs.transfer import Collected
    from macd.journal import Journal
    from macd.ssh.contact import Contact

HOST = {
    "host": "host with role train (default: where the run was started, else the first of"
    " train.hosts, else the only one)"
}
_RUN = HOST | {"run": "id of the run (default: the one in progress, else the newest)"}
_PATIENCE = {"patience": "minutes to try again after contact is lost (default 10)"}
_PASSED_ON = (MIN_SAMPLES,)
EXIT_CODES = {
    "DONE": ExitCode.DONE,
    "FAILED": ExitCode.FAILED,
    "CANCELLED": ExitCode.FAILED,
    "RUNNING": ExitCode.INCONCLUSIVE,
}


@verb(
    default=True,
    help=HOST
    | _PATIENCE
    | {
        "symbol": "what to train on (default: the inventory's)",
        "symbols": "several in one run, as ETHUSDT,BTCUSDT (default: the inventory's)",
        "cross": "other assets for features, as BTCUSDT,SOLUSDT (default: the inventory's)",
        "panel": "assets that train global models too (default: the inventory's)",
        "profile": "demo or full (default: the inventory's)",
        "seed": "same seed, same numbers on the same machine (default: the inventory's)",
        "engine": "local or ray (default: the inventory's)",
        "mode": "all, or one of verify, lgbm, lstm, tft, onnx, stacking; of an "
        "application of your own: one of its stages",
        "data": "directory of canonical bars here (default: the inventory's)",
        "settings": "JSON file with more settings of python -m macd.app.train, such as params",
        "detach": "start it and exit; train.attach follows it later",
        "dry-run": "check everything and show what would be sent; start nothing",
    },
)
def train(
    _: object,
    host: str = "",
    symbol: str = "",
    symbols: str = "",
    cross: str = "",
    panel: str = "",
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
    """Train on a host: check, send what changed, start, follow, fetch the models."""
    from macd.inventory import load
    from macd.jobs import cluster, record

    inv = load(inventory)
    machine = record.train_host(inv, host)
    team = cluster.of(inv, machine, engine)
    engine = "ray" if team else engine
    flags = {
        "symbols": symbols,
        "cross": cross,
        "panel": panel,
        "profile": profile,
        "engine": engine,
    }
    flags |= {"data": data, "settings": settings, "seed": str(seed) if seed >= 0 else ""}
    flags = {name: value for name, value in flags.items() if value}
    request, check_here = request_of(inv, machine.python, symbol, mode, flags)
    with (
        contact_with(inv, machine.name, patience, json=json) as (contact, shown),
        cluster.contacts(team, contact, inv) as reach,
    ):
        there = Hosts(contact, inv, team, reach)
        checks = run_checks(there, request, check_here, dry_run=dry_run, json=json)
        if dry_run:
            return _show_plan(contact, request, checks, json=json)
        refuse_failed(checks, contact)
        _start(there, request, json=json)
        if detach and json:
            emit({"run": request.run, "state": "RUNNING"})
        elif detach:
            attach_it = f"invoke train.attach --run {request.run}"
            print(f"  it goes on by itself; follow it with: {attach_it}")
        if detach:
            return None
        return _follow_and_collect(contact, inv, request.run, shown, json=json)


@verb(help=_RUN)
def status(
    _: object, run: str = "", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode | None:
    """Show the state of a run, as its host sees it; exit 3 while it is RUNNING.

    Changes nothing.
    """
    from macd.inventory import load
    from macd.jobs import cluster, follow, remedies

    inv = load(inventory)
    name = _host_of(inv, host, run)
    try:
        with contact_with(inv, name, 0.0, json=True) as (contact, shown):
            current = follow.status_of(contact, run)
            cluster.check_leads(current)
            shown.past(follow.events_of(contact, current["run"]))
            scheduled = follow.schedule_of(contact)
    except ContactLostError:
        if run and not json:
            show_last_seen(follow.stored_events(run, _local_runs(inv)))
        raise
    workers = cluster.states(cluster.workers_of(current, inv), inv, current["run"])
    if json:
        more = {"progress": asdict(shown.progress), "schedule": scheduled, "workers": workers}
        emit({**current, "host": name, **more})
        return EXIT_CODES[current["state"]]
    show_status(current, shown.progress)
    show_workers(workers)
    if scheduled:
        show_schedule(scheduled)
    if current["state"] in ("FAILED", "CANCELLED"):
        failure = remedies.explain(current, shown.events, current["log_end"])
        folder = f"{current['directory']} on the host"
        show_failure(current["run"], current["state"], failure, folder)
    return EXIT_CODES[current["state"]]


@verb(help=_RUN | _PATIENCE)
def attach(
    _: object,
    run: str = "",
    host: str = "",
    patience: float = 10.0,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Follow a run from where this machine stopped; fetch its files when it is done."""
    from macd.inventory import load
    from macd.jobs import cluster, follow

    inv = load(inventory)
    name = _host_of(inv, host, run)
    with contact_with(inv, name, patience, json=json) as (contact, shown):
        current = follow.status_of(contact, run)
        cluster.check_leads(current)
        if not json:
            print(f"run {current['run']} on {contact.host.name}: {current['state']}")
        if current["state"] != "RUNNING":
            return _collect(contact, inv, current["run"], json=json)
        return _follow_and_collect(contact, inv, current["run"], shown, json=json)


@verb(help=_RUN | _PATIENCE)
def fetch(
    __: object,
    run: str = "",
    host: str = "",
    patience: float = 10.0,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Fetch the files of a finished run again; files that are here and whole stay."""
    from macd.inventory import load
    from macd.jobs import cluster, follow

    inv = load(inventory)
    name = _host_of(inv, host, run)
    with contact_with(inv, name, patience, json=json) as (contact, _shown):
        current = follow.status_of(contact, run)
        cluster.check_leads(current)
        return _collect(contact, inv, current["run"], json=json)


@verb(
    help=HOST
    | {
        "run": "id of the run to stop (default: the one in progress)",
        "dry-run": "show what would be stopped, stop nothing",
    }
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
    """Stop a run on its host or cluster; the same training reuses finished fits."""
    from macd.inventory import load
    from macd.jobs import cluster, follow

    inv = load(inventory)
    name = _host_of(inv, host, run)
    with contact_with(inv, name, 0.0, json=True) as (contact, _shown):
        current = follow.status_of(contact, run)
        cluster.check_leads(current)
        run = current["run"]
        running = current["state"] == "RUNNING"
        if running and not dry_run:
            if not confirm(f"stop run {run} on {contact.host.name}?", yes=yes):
                raise MacdError(
                    "not stopped",
                    why="the answer was no (without a terminal it is no)",
                    live=f"run {run} goes on",
                    hint=f"invoke train.cancel --run {run} --yes",
                )
            current = follow.stop(contact, run)
    members = cluster.workers_of(current, inv)
    workers = (cluster.states if dry_run else cluster.end)(members, inv, run)
    if json:
        outcome = {"state": current["state"], "reason": current["reason"], "dry_run": dry_run}
        emit({"run": run, **outcome, "workers": workers})
    elif not running:
        print(f"nothing to stop on {name}: run {run} is over already, {current['state']}")
    else:
        print(f"{'would stop' if dry_run else current['state']} {run}")
    if not json:
        show_workers(workers)
    return None


def request_of(
    inventory: Inventory, python: str, symbol: str, mode: str, flags: Mapping[str, str]
) -> tuple[Request, Callable[[], list[Check]]]:
    """A training, and the checks of what it is made of; raises UsageError for wrong options."""
    make = _own_request if inventory.app else _request
    return make(inventory, python, symbol, mode, flags)


def _request(
    inventory: Inventory, python: str, symbol: str, mode: str, flags: Mapping[str, str]
) -> tuple[Request, Callable[[], list[Check]]]:
    """A training of the built-in application, and the checks of its bars."""
    from macd.jobs import preflight
    from macd.jobs import request as requests

    given = {"symbol": symbol, "mode": mode, **flags}
    file, data = given.pop("settings", ""), given.pop("data", "")
    changes: dict[str, Any] = {**_settings_file(file), **{k: v for k, v in given.items() if v}}
    if "seed" in flags:
        changes["seed"] = int(flags["seed"])
    raw = requests.settings_of(inventory, changes)
    bars = requests.data_files(raw, Path(data) if data else inventory.train.data_dir)
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    request = requests.make(raw, bars, python=python, env=env, now=datetime.now(UTC))
    return request, lambda: preflight.check_data(bars, request.settings, datetime.now(UTC))


def _own_request(
    inventory: Inventory, python: str, symbol: str, mode: str, flags: Mapping[str, str]
) -> tuple[Request, Callable[[], list[Check]]]:
    """A training of the team's own application, and the checks of what would be sent."""
    from macd.jobs import own

    assert inventory.app is not None  # noqa: S101 - the caller asked
    if flags:
        raise UsageError(
            f"{', '.join(f'--{name}' for name in flags)} means nothing to {inventory.app.name}",
            why="these options are of the application that macd ships with; this inventory has one"
            " of your own (app:)",
            hint="its commands and what they read stand in app.train of the inventory; --symbol"
            " and --mode STAGE can be given",
        )
    stage = "" if mode == "all" else mode
    request = own.make(
        inventory, inventory.app, python=python, symbol=symbol, stage=stage, now=datetime.now(UTC)
    )
    return request, lambda: own.checks(request)


def _settings_file(path: str) -> dict[str, Any]:
    """The JSON object in a file; nothing without a path."""
    if not path:
        return {}
    try:
        settings = jsonlib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--settings {path} can't be read as JSON", why=str(error)) from error
    if not isinstance(settings, dict):
        raise UsageError(f"--settings {path} must hold one JSON object")
    return settings


def _host_of(inventory: Inventory, host: str, run: str) -> str:
    """The host to ask: named, or where this run was started from here, or the only one."""
    from macd.jobs import record

    started_on = "" if host or not run else record.host_of(journal_of(inventory), run)
    return record.train_host(inventory, host or started_on).name


@contextmanager
def contact_with(
    inventory: Inventory, host: str, patience: float, *, json: bool
) -> Iterator[tuple[Contact, Shown]]:
    """A contact with the host, and the viewer that shows its run; `patience` in minutes."""
    from macd.ssh.contact import Contact

    shown = Quiet(host) if json else Shown(host)
    machine = inventory.host(host)
    with Contact(machine, inventory, watcher=shown, patience=patience * 60) as contact:
        yield contact, shown


@dataclass
class Hosts:
    """Where a training runs: one host, or the hosts of a cluster, whose head `contact` reaches."""

    contact: Contact
    inventory: Inventory
    team: Cluster | None = None
    reach: Mapping[str, Contact] = field(default_factory=dict)
    _seen: dict[str, Seen] = field(default_factory=dict)

    @property
    def names(self) -> str:
        """For people, the head first."""
        return ", ".join(self.reach) or self.contact.host.name

    def check(
        self, request: Request, *, dry_run: bool, more: Mapping[str, str] | None = None
    ) -> list[Check]:
        """Every check of the hosts. more: as for `run_checks`."""
        from macd.jobs import cluster, preflight

        inventory, contact, room = self.inventory, self.contact, request.room
        if self.team is not None:
            checks, self._seen = cluster.check(
                self.team, self.reach, inventory, room, dry_run=dry_run
            )
            return checks
        needs = preflight.needs_of(inventory.app)
        names = {**needs.packages, **(more or {})}
        work = contact.host.work_dir
        observed = contact.use(lambda session: preflight.look(session, work, request.python, names))
        return preflight.check_host(*observed, inventory.train, needs, room)

    @contextmanager
    def workers(self, request: Request) -> Iterator[Request]:
        """The head's request, once its workers wait for it; they end if it can't be started."""
        from macd.jobs import cluster
        from macd.jobs.request import TrainRequest

        if self.team is None or not isinstance(request, TrainRequest):
            yield request
            return
        request, workers = cluster.requests(self.team, request, self._seen)
        cluster.start_workers(workers, self.reach)
        try:
            yield request
        except ContactLostError:
            raise  # it may have started
        except BaseException:
            cluster.end_workers(workers, self.reach)
            raise


def run_checks(
    there: Hosts,
    request: Request,
    check_here: Callable[[], list[Check]],
    *,
    json: bool,
    dry_run: bool = False,
    more: Mapping[str, str] | None = None,
) -> list[Check]:
    """Check what would be sent and the hosts, and show the checks.

    more: packages that the host's Python must import beside those of a training.
    """
    if not json:
        print(f"{safe(request.title)}, on {there.names}")
    checks = check_here()
    if any(check.level == "error" for check in checks):
        if not json:
            show_checks(checks)
        refuse_failed(checks, there.contact)
    journal_of(
        there.inventory
    ).records()  # a damaged journal is reported before anything is started
    checks += there.check(request, dry_run=dry_run, more=more)
    if not json:
        show_checks(checks)
    return checks


def refuse_failed(checks: list[Check], contact: Contact) -> None:
    """Raise with all that failed; RefusedError if only another run is in the way."""
    failed = [check for check in checks if check.level == "error"]
    if not failed:
        return
    why = "\n".join(f"{check.name}: {check.detail}" for check in failed)
    hint = "\n".join(dict.fromkeys(check.hint for check in failed if check.hint))
    kind = RefusedError if all(check.name == "free" for check in failed) else MacdError
    raise kind(
        f"the training can't start on {contact.host.name}",
        why=why,
        live="nothing was sent or started",
        hint=hint,
    )


def _show_plan(
    contact: Contact, request: Request, checks: list[Check], *, json: bool
) -> ExitCode | None:
    """What would be sent and run; changes nothing."""
    from macd.jobs import transfer
    from macd.sizes import size

    count, lacking = transfer.missing(contact, request)
    failed = any(check.level == "error" for check in checks)
    if json:
        emit(
            {
                "dry_run": True,
                "host": contact.host.name,
                "checks": [check.as_json() for check in checks],
                "bytes_to_send": lacking,
                "bytes_total": request.tree.size,
                "request": {**request.raw, **_covered(request.raw)},
            }
        )
    else:
        step("would send", f"{count} files, {size(lacking)} of {size(request.tree.size)}")
        for line in request.commands:
            step("would run", line)
    return ExitCode.FAILED if failed else None


def _covered(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of an own application without their values: one may be a secret."""
    from macd.host.masking import COVER

    return {"env": dict.fromkeys(raw["env"], COVER)} if "env" in raw else {}


def _start(there: Hosts, request: Request, *, json: bool) -> None:
    """Send the files that the hosts lack, start the run, record it."""
    from macd.jobs import follow, record, transfer
    from macd.sizes import size

    contact = there.contact
    sent = transfer.send(contact, request)
    if not json:
        files = f"{sent.landed} new of {sent.files} files"
        step("sync", f"{files}, {size(sent.sent)} of {size(sent.total)}")
    with there.workers(request) as led:
        try:
            current = transfer.start(contact, led)
        except ContactLostError as error:
            raise follow.contact_lost(error, request.run) from error
    record.started(journal_of(there.inventory), led, contact.host.name, now=datetime.now(UTC))
    if not json:
        where = f" on {there.names}" if there.team else ""
        step("started", f"run {request.run}{where} ({current['detached']})")


def _follow_and_collect(
    contact: Contact, inventory: Inventory, run: str, shown: Shown, *, json: bool
) -> ExitCode | None:
    """Follow a run until it is over and fetch its files; Ctrl-C only ends the following."""
    from macd.jobs.follow import follow

    try:
        with shown:
            follow(contact, run, _local_runs(inventory), shown)
    except KeyboardInterrupt:
        if json:
            emit({"run": run, "state": "RUNNING", "detached": True})
        else:
            message = f"detached; run {run} goes on on {contact.host.name}"
            print(f"\n{message}\n  do: invoke train.attach --run {run}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return _collect(contact, inventory, run, json=json)


def _collect(contact: Contact, inventory: Inventory, run: str, *, json: bool) -> ExitCode | None:
    """Fetch the files of a run that is over, record its end and show it."""
    from macd.jobs import follow, record, remedies, transfer
    from macd.run_directory import FILES
    from macd.sizes import size

    got = transfer.collect(contact, run, _local_runs(inventory))
    host, folder, state = contact.host.name, got.folder, got.status["state"]
    record.finished(journal_of(inventory), got.status, host, folder, now=datetime.now(UTC))
    events = follow.decode(_bytes_of(folder / FILES.events))
    failure = report = unmade = None
    own = str((got.status["result"] or {}).get("own") or "")
    if state == "DONE" and not own:
        report, unmade = _report(folder, host, inventory)
    elif state != "DONE":
        log_end = _bytes_of(folder / "log")[-8192:].decode("utf-8", "replace")
        failure = remedies.explain(got.status, events, log_end)
    if json:
        emit(
            {
                "run": run,
                "state": state,
                "reason": got.status["reason"],
                "folder": str(folder),
                "files": got.files,
                "received": got.received,
                "report": str(report) if report else None,
                "result": got.status["result"],
                "failure": asdict(failure) if failure else None,
            }
        )
    elif failure is not None:
        show_failure(run, state, failure, str(folder))
    else:
        show_summary(events)
        step("collected", f"{got.files} files, {size(got.received)} received: {folder}")
        if own:
            step("report", f"{own} has none: a page of figures needs the built-in application's")
        else:
            step("report", str(unmade or report), "warn" if unmade else "ok")
        step("DONE", f"run {run}\nnext: {next_command(got.status['result'])}")
    return EXIT_CODES[state]


def fetch_quietly(inventory: Inventory, host: str, run: str) -> Collected:
    """Fetch the files of a run of that host ("": its newest) and record its end; show nothing."""
    from macd.jobs import cluster, follow, record, transfer

    with contact_with(inventory, host, 0.0, json=True) as (contact, _shown):
        current = follow.status_of(contact, run)
        cluster.check_leads(current)
        got = transfer.collect(contact, current["run"], _local_runs(inventory))
    journal = journal_of(inventory)
    record.finished(journal, got.status, host, got.folder, now=datetime.now(UTC))
    return got


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _report(folder: Path, host: str, inventory: Inventory) -> tuple[Path | None, MacdError | None]:
    """The report page; a collected run stays done when its page can't be made."""
    from macd import application

    try:
        others = _compared_with(folder, inventory)
        return application.write_training_page(folder, host=host, others=others), None
    except MacdError as error:
        return None, error


def _compared_with(folder: Path, inventory: Inventory) -> dict[str, Path]:
    """The previous run of the same market and the run behind what is live, by what they are."""
    from macd.cli.compare import behind_live
    from macd.run_directory import FILES, read_json, state_of

    def market(run: Path) -> tuple[Any, ...]:
        """Of several symbols the first; what both runs have is compared."""
        try:
            settings = read_json(run / FILES.settings, {})
            done = state_of(read_json(run / FILES.result, {})) == "done"
        except MacdError:
            return ()  # damaged: nothing to compare with
        own = settings.get("own")  # its figures are its own: not to compare with
        return (settings.get("symbol"), settings.get("tf")) if done and not own else ()

    runs = [run.parent for run in folder.parent.glob(f"*/{FILES.result}")]
    here = market(folder)
    earlier = [run for run in runs if here and run.name < folder.name and market(run) == here]
    previous = max(earlier, key=lambda run: run.name, default=None)
    try:
        live = folder.parent / behind_live(inventory, "prod")
    except MacdError:
        live = None
    if live is not None and (live == folder or not live.is_dir() or market(live) != here):
        live = None
    if previous is not None and previous == live:
        return {"the previous run, which is live in prod": previous}
    others = {"the previous run": previous, "what is live in prod": live}
    return {what: run for what, run in others.items() if run is not None}


def journal_of(inventory: Inventory) -> Journal:
    from macd.journal import Journal

    return Journal(inventory.state_dir / "journal.jsonl")


def _local_runs(inventory: Inventory) -> LocalRuns:
    from macd.jobs.follow import LocalRuns

    return LocalRuns(inventory.root / "runs")
