"""`invoke train` and its verbs: train on a host that owns the run; look on, stop it, bring it home.

Exit codes: 0 DONE, 1 FAILED or CANCELLED, 3 still RUNNING (train.status), 5 LOST CONTACT, 6 refused
because another run is in progress. Ctrl-C while following ends with 1: the run goes on, but
whoever waited for its result has none.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macd.cli import train_steps as steps
from macd.cli.verb import confirm, emit, verb
from macd.errors import ContactLostError, ExitCode, MacdError, UsageError

_COMMON = {
    "host": "host with role train (default: the inventory's only one, or the one the run is on)",
    "inventory": "use inventory/NAME.yml (default: $MACD_INVENTORY, else lab)",
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
        "cross": "other assets for features, as BTCUSDT,SOLUSDT (default: the inventory's)",
        "profile": "demo or full (default: the inventory's)",
        "seed": "same seed, same numbers on the same machine (default: the inventory's)",
        "engine": "local or ray (default: the inventory's)",
        "mode": "all, or one of verify, lgbm, lstm, tft, onnx, stacking",
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
    """Train on a host: check, send what changed, start, follow, fetch the models."""
    from macd.inventory import load
    from macd.jobs import choice
    from macd.jobs import order as orders

    inv = load(inventory)
    machine = choice.train_host(inv, host)
    flags = {"symbol": symbol, "cross": cross, "profile": profile, "engine": engine, "mode": mode}
    changes: dict[str, Any] = {
        **steps.more_settings(settings),
        **{k: v for k, v in flags.items() if v},
    }
    if seed >= 0:
        changes["seed"] = seed
    request = orders.request_of(inv, changes)
    bars = orders.data_files(request, Path(data) if data else inv.train.data_dir)
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    order = orders.make(request, bars, python=machine.python, env=env, now=datetime.now(UTC))
    with steps.looking_on(inv, machine.name, patience, json=json) as (contact, shown):
        checks = steps.check(contact, inv, order, bars, json=json)
        if dry_run:
            return steps.tell_only(contact, order, checks, json=json)
        steps.refuse_failed(checks, contact)
        steps.begin(contact, inv, order, json=json)
        if detach:
            steps.say_left(order.run, json=json)
            return None
        return steps.to_the_end(contact, inv, order.run, shown, json=json)


@verb(name="status", help=_COMMON | _RUN)
def status(
    _: object, run: str = "", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode | None:
    """Show the state of a run, as its host sees it; exit 3 while it is RUNNING.

    Changes nothing.
    """
    from macd.cli.train_shown import EXIT_CODES, show_last_seen, show_status
    from macd.inventory import load
    from macd.jobs import ask, follow

    inv = load(inventory)
    name = steps.host_for(inv, host, run)
    try:
        with steps.looking_on(inv, name, 0.0, json=True) as (contact, shown):
            told = ask.status_of(contact, run)
            shown.past(ask.events_of(contact, told["run"]))
    except ContactLostError:
        if run and not json:
            show_last_seen(follow.known_events(run, steps.place(inv)))
        raise
    if json:
        emit({**told, "host": name, "progress": asdict(shown.progress)})
    else:
        show_status(told, shown.progress)
        steps.show_why(told, shown)
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
    """Follow a run from where this machine stopped; fetch its files when it is done."""
    from macd.inventory import load
    from macd.jobs import ask

    inv = load(inventory)
    name = steps.host_for(inv, host, run)
    with steps.looking_on(inv, name, patience, json=json) as (contact, shown):
        known = ask.status_of(contact, run)
        if not json:
            print(f"run {known['run']} on {contact.host.name}: {known['state']}")
        if known["state"] != "RUNNING":
            return steps.bring_home(contact, inv, known["run"], json=json)
        return steps.to_the_end(contact, inv, known["run"], shown, json=json)


@verb(name="fetch", help=_COMMON | _RUN | _PATIENCE)
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
    from macd.jobs import ask

    inv = load(inventory)
    name = steps.host_for(inv, host, run)
    with steps.looking_on(inv, name, patience, json=json) as (contact, _shown):
        known = ask.status_of(contact, run)
        return steps.bring_home(contact, inv, known["run"], json=json)


@verb(
    name="cancel",
    help=_COMMON
    | {
        "run": "id of the run to stop",
        "yes": "don't ask for confirmation",
        "dry-run": "show what would be stopped, stop nothing",
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
    """Stop a run on its host; the same training later reuses its finished fits."""
    from macd.inventory import load
    from macd.jobs import ask

    if not run:
        raise UsageError("which run?", hint="invoke train.status shows the newest; --run ID")
    inv = load(inventory)
    name = steps.host_for(inv, host, run)
    with steps.looking_on(inv, name, 0.0, json=True) as (contact, _shown):
        told = ask.status_of(contact, run)
        running = told["state"] == "RUNNING"
        if running and not dry_run:
            if not confirm(f"stop run {run} on {contact.host.name}?", yes=yes):
                raise MacdError(
                    "not stopped",
                    why="the answer was no (without a terminal it is no)",
                    live=f"run {run} goes on",
                    hint=f"invoke train.cancel --run {run} --yes",
                )
            told = ask.stop(contact, run)
    if json:
        emit({"run": run, "state": told["state"], "reason": told["reason"], "dry_run": dry_run})
    elif not running:
        print(f"run {run} is over already: {told['state']}")
    else:
        print(f"{'would stop' if dry_run else told['state']} {run}")
    return None
