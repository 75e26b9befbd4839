"""`invoke plan`, `deploy`, `rollback`: bring a release live, and back; never half."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from macd.cli.verb import confirm, emit, error_fields, same, verb
from macd.errors import ContactLostError, ExitCode, MacdError

if TYPE_CHECKING:
    from macd.cli.deploy_shown import Progress
    from macd.deploy.campaign import Result
    from macd.deploy.follow import Outcome
    from macd.deploy.offer import Offer
    from macd.deploy.plan import Plan
    from macd.inventory import Host, Inventory

_COMMON = {
    "env": "the environment (default: prod)",
    "host": "only this host of it",
    "inventory": "which inventory (default: MACD_INVENTORY or lab)",
    "json": "print one JSON document for machines",
}
_RELEASE = {"release": "id of a release here (default: the newest for this environment)"}


@verb(name="plan", help={**_COMMON, **_RELEASE})
def plan(
    _: object,
    env: str = "prod",
    host: str = "",
    release: str = "",
    inventory: str = "",
    json: bool = False,
) -> None:
    """Show what deploy would change: files, units, bytes, drift, the way back.

    Changes nothing.
    """
    from macd.inventory import load

    known = load(inventory)
    plans, _offer = _plans(known, env, host, release)
    if json:
        hosts = [{**asdict(one), "changes": not one.empty} for one in plans]
        emit({"changes": any(not one.empty for one in plans), "hosts": hosts})
        return
    from macd.cli.deploy_shown import print_plan

    for one in plans:
        print_plan(one)
    options = same(env=env, host=host, release=release, inventory=inventory)
    if any(one.problems for one in plans):
        return  # each with what to do about it
    if any(not one.empty for one in plans):
        print(f"\n  next: invoke deploy{options}")
    elif any(one.unwell for one in plans):
        print(f"\n  next: invoke deploy --restart{options}")


@verb(
    name="deploy",
    help={
        **_COMMON,
        **_RELEASE,
        "wave": 'how many hosts are done after each wave, e.g. "1,50%,100%"',
        "restart": "restart even if nothing differs",
        "attach": "follow (and, if begun here, confirm) what is under way; starts nothing",
        "dry-run": "the same as invoke plan",
        "yes": "do not ask",
    },
)
def deploy(
    _: object,
    env: str = "prod",
    host: str = "",
    release: str = "",
    wave: str = "",
    restart: bool = False,
    attach: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Bring a release live: send, verify, switch, restart, soak, commit or revert."""
    from macd.deploy import apply, campaign
    from macd.inventory import load

    known = load(inventory)
    options = same(env=env, host=host, inventory=inventory)
    if attach:
        return _attach(known, env, host, options, json=json)
    hosts = list(campaign.hosts_of(known, env, host))
    planned = campaign.waves(hosts, wave)
    if dry_run or not yes:
        plans, offer = _plans(known, env, host, release)
        _show(plans, json=json, dry_run=dry_run)
        if dry_run:
            return None
        if all(one.empty for one in plans) and not restart:
            return _as_it_is(plans, options, json=json)
        if not confirm(f"deploy {offer.id} to {', '.join(h.name for h in hosts)}?", yes=False):
            return _not_agreed(json=json)
    else:
        offer = _offer(known, env, release)
    progress = _progress(json)

    def one_host(one: Host) -> Outcome:
        if not json:
            print(f"deploying {offer.id} to {one.name}")
        memory = campaign.Memory(known)
        wish = apply.Wish(campaign.operator(), progress, memory.keep, restart=restart)
        return apply.deploy(one, known, offer, wish)

    run = campaign.Campaign(known, "deploy", env)
    result = run.run(planned, one_host, release=offer.id, serial=offer.serial)
    return _end(result, "deploy", options, json=json)


@verb(
    name="rollback",
    help={
        **_COMMON,
        "to": "release id, one that was live there (default: undo the last deploy, where live)",
        "dry-run": "only say where it would go",
        "yes": "do not ask",
    },
)
def rollback(
    _: object,
    env: str = "prod",
    host: str = "",
    to: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Back to the last good release: models, code, unit, flags; nothing is sent."""
    from macd.cli import rollback_steps as steps
    from macd.deploy import apply, campaign
    from macd.inventory import load
    from macd.remote.refusals import UnreachableError

    known = load(inventory)
    hosts = list(campaign.hosts_of(known, env, host))
    options = same(env=env, host=host, inventory=inventory)
    run = campaign.Campaign(known, "rollback", env)
    stay: list[str] = []
    away: dict[str, MacdError] = {}
    if dry_run or not yes or (len(hosts) > 1 and not to):
        ways, away = steps.ways(run, known, hosts, to)
        stay = [way.host for way in ways if way.stays]
        if dry_run:
            return steps.dry(ways, away, options, json=json)
        if not json:
            steps.show(ways, away)
        if not (yes or away or any(way.to for way in ways)):
            raise steps.no_way_back(env, any(way.provisioned for way in ways))
        if not confirm("roll back?", yes=yes):
            return _not_agreed(json=json)
    progress = _progress(json)

    def one_host(one: Host) -> Outcome:
        if one.name in away:
            raise away[one.name]  # asked already, and patiently
        if not json:
            print(f"rolling {one.name} back")
        memory = campaign.Memory(known)
        return apply.rollback(
            one, known, to, apply.Wish(campaign.operator(), progress, memory.keep)
        )

    going = [one for one in hosts if one.name not in stay]
    passes = (UnreachableError, ContactLostError) if len(hosts) > 1 else ()
    result = run.run([going], one_host, passes=passes, to=to)
    result = replace(result, untouched=[*result.untouched, *stay])
    return _end(result, "rollback", options, json=json)


def _offer(known: Inventory, env: str, release: str) -> Offer:
    from macd.deploy import offer as offers
    from macd.release.store import Store

    index, feed = known.service.runtime == "index", known.service.feed.kind
    return offers.read(Store(known.root / "releases"), release, env, index=index, feed=feed)


def _plans(known: Inventory, env: str, host: str, release: str) -> tuple[list[Plan], Offer]:
    from macd.deploy import apply
    from macd.deploy.campaign import hosts_of

    offer = _offer(known, env, release)
    return [apply.look(one, known, offer) for one in hosts_of(known, env, host)], offer


def _progress(json: bool) -> Progress:
    from macd.cli.deploy_shown import Progress

    return Progress(quiet=json)


def _show(plans: list[Plan], *, json: bool, dry_run: bool) -> None:
    if json and (dry_run or all(one.empty for one in plans)):
        emit({"dry_run": dry_run, "hosts": [asdict(one) for one in plans]})
    elif not json:
        from macd.cli.deploy_shown import print_plan

        for one in plans:
            print_plan(one)


def _as_it_is(plans: list[Plan], options: str, *, json: bool) -> ExitCode | None:
    """Nothing differs on any host; that is good only where what is live serves."""
    if not any(one.unwell for one in plans):
        return None
    if not json:
        again = f"invoke deploy --restart --release {plans[0].release}{options}"
        print(f"  do: {again}; invoke doctor{options}")
    return ExitCode.FAILED


def _not_agreed(*, json: bool) -> ExitCode:
    if json:
        emit({"result": "not agreed", "hint": "--yes"})
    else:
        print("nothing was changed\n  do: add --yes to go on without a question")
    return ExitCode.FAILED


def _attach(known: Inventory, env: str, host: str, options: str, *, json: bool) -> ExitCode | None:
    from macd.cli.deploy_shown import as_fields, print_end
    from macd.deploy import campaign, follow

    one = campaign.only_host(known, env, host, "--attach follows")
    begun = campaign.Memory(known).of(one.name)
    outcome = follow.attach(one, known, begun, _progress(json))
    outcomes = [outcome] if outcome else []
    ours = outcome is not None and begun is not None and begun.number == outcome.number
    warning = campaign.Campaign(known, "deploy", env).late(outcome) if outcome and ours else ""
    warnings = [warning] if warning else []
    if json:
        emit({"outcomes": as_fields(outcomes), "warnings": warnings})
    elif outcome is None:
        print(f"{one.name}: nothing was ever deployed there")
    else:
        print_end(campaign.Result(outcomes, [], warnings=warnings), "activation", options)
    return outcome.exit_code if outcome else None


def _end(result: Result, kind: str, options: str, *, json: bool) -> ExitCode | None:
    from macd.cli.deploy_shown import as_fields, print_end
    from macd.deploy.campaign import not_taken_back

    error = result.error or (not_taken_back(result.away, options) if result.away else None)
    if json:
        told = {"outcomes": as_fields(result.outcomes), "untouched": result.untouched}
        failed = error_fields(error) if error else {}
        emit({**told, "away": list(result.away), "warnings": result.warnings, **failed})
    else:
        print_end(result, kind, options)
    if error is not None:
        if not json:
            raise error
        return error.exit_code
    worst = [outcome.exit_code for outcome in result.outcomes if outcome.exit_code]
    return worst[0] if worst else None
