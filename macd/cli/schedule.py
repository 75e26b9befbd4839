"""`invoke train.schedule`: a training host that trains by itself, and notifies a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.train import (
    HOST,
    Hosts,
    contact_with,
    journal_of,
    refuse_failed,
    request_of,
    run_checks,
)
from macd.cli.train_shown import step
from macd.cli.verb import emit, safe, verb
from macd.errors import MacdError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.jobs.request import Request
    from macd.jobs.schedule import Champion
    from macd.ssh.contact import Contact

_SHOWN = 3  # runs and messages


@verb(
    interrupted="a step that the host is at, it finishes\n"
    "  do: invoke train.schedule --show shows what is set there",
    help=HOST
    | {
        "settings": "JSON file with more settings, as of invoke train",
        "env": "the environment whose live release runs are compared with (default: prod)",
        "show": "show what is scheduled there and when it is due; change nothing",
        "now": "begin now what the timer would begin",
        "remove": "take the timer away; runs and their files stay",
        "dry-run": "check everything and show what would be put there; change nothing",
    },
)
def schedule(
    _: object,
    host: str = "",
    settings: str = "",
    env: str = "prod",
    show: bool = False,
    now: bool = False,
    remove: bool = False,
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> None:
    """Put train.schedule on the training host: it trains then, and reports.

    Again after a change of code, settings, or of what is live. Nothing is
    signed or deployed by it.
    """
    from macd.inventory import load
    from macd.jobs import record

    chosen = [f"--{n}" for n, v in {"show": show, "now": now, "remove": remove}.items() if v]
    if len(chosen) > 1:
        raise UsageError(f"one of {', '.join(chosen)}", hint=f"invoke train.schedule {chosen[0]}")
    inv = load(inventory)
    machine = record.train_host(inv, host)
    with contact_with(inv, machine.name, 0.0, json=True) as (contact, _shown):
        if remove:
            _remove(contact, inv, dry_run=dry_run, json=json)
            return
        if show or now:
            answer = _call(contact, "job_schedule_start" if now and not dry_run else "job_schedule")
        else:
            answer = _put(contact, inv, settings, env, dry_run=dry_run, json=json)
        if json:
            emit({"host": machine.name, "schedule": answer, "dry_run": dry_run})
            return
        if now:
            print(f"begins on {machine.name}, once its bars are there; then: invoke train.status")
        for line in lines(machine.name, answer, live_run(inv, env)):
            print(safe(line))


def _put(
    contact: Contact, inventory: Inventory, settings: str, env: str, *, dry_run: bool, json: bool
) -> dict[str, Any]:
    """Check, send what the host lacks, and set the schedule. With dry_run only the first."""
    from macd.deploy.desired import addresses
    from macd.jobs import record, transfer
    from macd.jobs import schedule as schedules

    if not inventory.train.schedule:
        raise UsageError(
            f"inventory {inventory.name} has no train.schedule",
            why="it says when the host trains by itself",
            hint='train: {schedule: "Sun 03:00 UTC"} in the inventory; --remove takes a timer away',
        )
    host = contact.host
    flags = {"settings": settings} if settings else {}
    request, check_here = request_of(inventory, host.python, "", "", flags)
    champion = champion_of(inventory, env)
    plan = schedules.plan_of(inventory, host, request, champion, datetime.now(UTC))
    more = {"ccxt": "ccxt"} if plan["source"]["kind"] == "exchange" else {}
    checks = run_checks(Hosts(contact, inventory), request, check_here, json=json, more=more)
    checks = [check for check in checks if check.name != "free"]  # it need not begin now
    if len(inventory.train.hosts) > 1 and not json:
        text = f"{host.name} trains alone: only invoke train brings the other hosts together"
        step("schedule", text, "warn")
    refuse_failed(checks, contact)
    if dry_run:
        return _as_it_would_be(request, plan)
    transfer.send(contact, request)
    if champion.tree is not None:
        transfer.send_tree(contact, champion.tree)
    where = _addresses(addresses(inventory))
    answer = _call(contact, "job_schedule_set", plan=plan, addresses=where)
    fields = {"host": host.name, "on": plan["on"], "tree": plan["tree"], "beside": champion.run}
    journal_of(inventory).append(record.SCHEDULED, fields, now=datetime.now(UTC))
    return answer


def _addresses(document: bytes) -> dict[str, Any]:
    import json

    known: dict[str, Any] = json.loads(document)
    known.pop("heartbeat_url", None)  # of services
    return known


def _as_it_would_be(request: Request, plan: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("on", "title", "tree", "champion", "keep", "source", "inventory")
    step("would send", f"{len(request.tree.files)} files, what the host lacks of them")
    return {
        "plan": {name: plan[name] for name in shown},
        "timer": {"runs": False, "next": "", "last": ""},
        "cron": [],
        "runs": [],
        "messages": [],
        "unsent": 0,
        "notifies": True,
    }


def _remove(contact: Contact, inventory: Inventory, *, dry_run: bool, json: bool) -> None:
    from macd.jobs import record

    if dry_run:
        there = bool(_call(contact, "job_schedule"))
    else:
        there = _call(contact, "job_schedule_remove")["removed"]
    if there and not dry_run:
        fields = {"host": contact.host.name}
        journal_of(inventory).append(record.UNSCHEDULED, fields, now=datetime.now(UTC))
    if json:
        emit({"host": contact.host.name, "removed": there, "dry_run": dry_run})
    elif there:
        word = "would take" if dry_run else "took"
        print(f"{word} the schedule from {contact.host.name}; runs and their files stay there")
    else:
        print(f"nothing is scheduled on {contact.host.name}")


def _call(contact: Contact, operation: str, **fields: Any) -> dict[str, Any]:
    work = contact.host.work_dir
    answer: dict[str, Any] = contact.use(
        lambda session: session.call(operation, work=work, **fields)
    )
    return answer


def live_run(inventory: Inventory, env: str) -> str:
    """The run behind what is live in env; "" where the records here don't name one."""
    from macd.cli.compare import behind_live

    try:
        return behind_live(inventory, env)
    except MacdError:
        return ""


def champion_of(inventory: Inventory, env: str) -> Champion:
    """The live run as far as it lies here. A host that has none of it compares with nothing."""
    from macd.cli.compare import behind_live
    from macd.cli.release import live_on, read_run, store_of
    from macd.jobs.schedule import Champion, compared

    try:
        run = behind_live(inventory, env)
        store = store_of(inventory)
        manifests = {name: store.load(name).manifest for name in live_on(inventory)}
        release = next(n for n, made in manifests.items() if made.details.get("run") == run)
        read = read_run(inventory, run)
    except MacdError as error:
        return Champion(why=error.what)
    if inventory.app is not None:
        return Champion(run, release, env, metrics=read.metrics.get("own", {}))
    return Champion(run, release, env, tree=compared(read.directory))


def lines(host: str, answer: Mapping[str, Any], live: str) -> Iterator[str]:
    """What is scheduled on a host, for people. live: the run that is live now, "" if not known."""
    if not answer:
        yield f"nothing is scheduled on {host}"
        return
    plan, timer = answer["plan"], answer["timer"]
    yield f"{host}: {plan['title']}, {plan['on']}"
    if timer is None:
        yield "  timer    ✗ this host has no systemd; as the user that trains: crontab -e, and add"
        yield from (f"           {line}" for line in answer["cron"])
    elif timer["runs"]:
        yield f"  timer    next {timer['next'] or 'not known'}; last {timer['last'] or 'never'}"
    elif timer.get("unit"):
        yield f"  timer    ✗ {timer['unit']} does not run; do: invoke train.schedule"
    yield f"  bars     {_bars(plan['source'])}"
    champion = plan["champion"]
    if not champion.get("run"):
        yield f"  beside   nothing: {champion['why']}"
    else:
        release = f"release {champion['release']}, {champion['env']}"
        yield f"  beside   run {champion['run']} ({release})"
    if live and live != champion.get("run"):
        yield f"           ! run {live} is live now; do: invoke train.schedule"
    if answer["notifies"]:
        late = f"; {answer['unsent']} wait to be sent" if answer["unsent"] else ""
        yield f"  reports  to alerts.notify_url{late}"
    else:
        yield "  reports  to nobody: set alerts.notify_url, then invoke train.schedule"
    yield f"  keeps    {plan['keep']} runs"
    for run in answer["runs"][-_SHOWN:]:
        yield f"  run      {run['run']} {run['ended'] or 'in progress, or not checked yet'}"
    for message in answer["messages"][-_SHOWN:]:
        first, *more = message["text"].splitlines()
        yield f"  {message['at'][:16]} {first}"
        yield from (f"           {line}" for line in more)


def _bars(source: Mapping[str, Any]) -> str:
    if source["kind"] == "exchange":
        return f"fetched there from {source['question']['exchange']}"
    if source["kind"] == "directory":
        return f"read from {source['directory']} there; somebody keeps them new"
    return "brought by its own stages"
