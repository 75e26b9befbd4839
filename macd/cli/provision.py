"""`invoke provision`: make the hosts of an environment what the inventory says."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.hosts import away_fields, on_each, print_away
from macd.cli.rollout import Shown
from macd.cli.verb import ENV_HOST, INVENTORY, JSON, PARALLEL, YES, confirm, emit, same, verb
from macd.errors import ContactLostError, ExitCode

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.deploy.provision import Provisioned
    from macd.deploy.rollout import Limits
    from macd.inventory import Host, Inventory


@verb(
    name="provision",
    help=ENV_HOST
    | PARALLEL
    | INVENTORY
    | JSON
    | YES
    | {
        "dry-run": "show what would change, with diffs, and change nothing",
    },
)
def provision(
    _: object,
    env: str = "prod",
    host: str = "",
    parallel: int = 10,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Prepare hosts: account, directories, units, keys; can be repeated."""
    from macd.deploy import provision as provisioning
    from macd.deploy.fleet import Results, hosts_of
    from macd.deploy.rollout import Limits, operator
    from macd.inventory import load

    inv = load(inventory)
    chosen = list(hosts_of(inv, env, host))
    limits = Limits(parallel)
    provisioning.files_here(inv)  # what every host would be refused for is said once
    who = operator()
    looked = on_each(chosen, lambda one: provisioning.provision(one, inv, who=who, dry_run=True))
    wanted = [one for one in chosen if one.name in looked.done and looked.done[one.name].changes]
    options = same(env=env, host=host, inventory=inventory)
    agreed = True
    ended: Results[Provisioned] = Results({}, {})
    if wanted and not dry_run:
        if not (json or yes):
            _show(looked, options, would=True)
        agreed = confirm(f"change {', '.join(one.name for one in wanted)}?", yes=yes)
        if agreed:
            ended = _provision_each(inv, env, wanted, limits, quiet=json)
            if len(chosen) == 1 and ended.failed:
                raise ended.failed[chosen[0].name]
    told = _together(looked, ended)
    if json:
        _emit(told, dry_run=dry_run or not agreed)
    elif agreed:
        _show(told, options, would=dry_run)
    else:
        print(f"nothing was changed\n  do: invoke provision --yes{options}")
    return _exit_code(told, agreed=agreed)


def _provision_each(
    inventory: Inventory, env: str, wanted: list[Host], limits: Limits, *, quiet: bool
) -> Results[Provisioned]:
    """Side by side; what one host fails with keeps no other from it."""
    from macd.deploy import provision as provisioning
    from macd.deploy.fleet import in_waves, side_by_side
    from macd.deploy.rollout import Rollout, operator

    rollout = Rollout(inventory, "provision", env)

    def act(one: Host) -> Provisioned:
        with shown.host(one.name, "provisioning" if len(wanted) > 1 else ""):
            done = provisioning.provision(one, inventory, who=operator())
            rollout.record("done", host=one.name, changes=len(done.changes))
            shown.ended(one.name, f"✓ {_count(done)}")
            return done

    with Shown([wanted], quiet=quiet) as shown:
        if len(wanted) == 1:
            return side_by_side(wanted, act)
        return in_waves([wanted], act, parallel=limits.parallel, on_interrupt=shown.interrupted)


def _together(looked: Results[Provisioned], ended: Results[Provisioned]) -> Results[Provisioned]:
    """Of each host what became of it; of those that wanted nothing, that."""
    from macd.deploy.fleet import Results

    unknown = {*ended.failed, *ended.not_started, *ended.left}
    done = {n: ended.done.get(n, one) for n, one in looked.done.items() if n not in unknown}
    failed = {**looked.failed, **ended.failed}
    return Results(done, failed, ended.not_started, ended.left, ended.interrupted)


def _emit(told: Results[Provisioned], *, dry_run: bool) -> None:
    hosts = [{**asdict(one), "restart_wanted": one.restart_wanted} for one in told.done.values()]
    more = {"untouched": told.not_started, "left": told.left}
    emit({"dry_run": dry_run, "hosts": hosts, "away": away_fields(told.failed), **more})


def _exit_code(told: Results[Provisioned], *, agreed: bool) -> ExitCode:
    from macd.deploy.fleet import code_of, worst

    lacking = any(one.lacks_needed for one in told.done.values())
    codes = [code_of(error) for error in told.failed.values()]
    codes += [ExitCode.CONTACT_LOST] * bool(told.left)
    codes += [ExitCode.FAILED] * bool(not agreed or lacking or told.not_started)
    return worst(codes)


def _show(told: Results[Provisioned], options: str, *, would: bool) -> None:
    _print(list(told.done.values()), options, would=would)
    for name in told.not_started:
        print(f"{name}: untouched")
    sys.stdout.flush()
    print_away(told.failed)
    if told.left:
        error = ContactLostError(
            f"not waited for: {', '.join(told.left)}",
            why="Ctrl-C was pressed twice",
            live="some of it may have been changed there",
            hint=f"invoke provision{options} again changes the rest",
        )
        print(f"✗ {error}", file=sys.stderr)


def _count(one: Provisioned) -> str:
    count = len(one.changes)
    return f"{count} change{'s' if count != 1 else ''}"


def _print(done: list[Provisioned], options: str, *, would: bool) -> None:
    for one in done:
        print(f"{one.host}  {one.app}")
        for change in one.changes:
            print(f"  {'would be' if would else '✓'} {change.how}: {change.what} {change.name}")
            if would:
                print("".join(f"      {line}\n" for line in change.diff.splitlines()), end="")
        print(f"  {_count(one)}{' to make' if would else ''}")
        if one.restart_wanted:
            told = f"{', '.join(one.stale)}: the running service has the old still"
            told = (
                f"then, for the running service to have {', '.join(one.stale)}" if would else told
            )
            print(f"  {told}: invoke deploy --restart{options} --release {one.live}")
        if one.note:
            print("  ✗ " + one.note.replace("\n", "\n    "))
        for lacking in one.missing:
            mark = "✗" if lacking["needed"] else "note:"
            print(
                f"  {mark} the host has no {lacking['name']}: apt-get install {lacking['package']}"
            )
