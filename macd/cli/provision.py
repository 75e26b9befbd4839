"""`invoke provision`: make the hosts of an environment what the inventory says, or undo that."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.hosts import failed_fields, on_each, print_failed, select
from macd.cli.rollout import Shown
from macd.cli.verb import confirm, emit, safe, same, verb
from macd.errors import ContactLostError, ExitCode, UsageError

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.deploy.provision import Adoption, Provisioned, Undone
    from macd.deploy.rollout import Limits
    from macd.inventory import Host, Inventory


@verb(
    interrupted="a host finishes the step that it is at; provision can be repeated\n"
    "  do: invoke provision again",
    help={
        "dry-run": "show what would change, with diffs, and change nothing",
        "adopt": "agree that macd takes over a service that was installed by hand",
        "undo": "give back what was there before the first provision",
    },
)
def provision(
    _: object,
    env: str = "prod",
    host: str = "",
    parallel: int = 10,
    dry_run: bool = False,
    yes: bool = False,
    adopt: bool = False,
    undo: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Prepare hosts: account, directories, units, keys; can be repeated, and undone."""
    from macd.deploy import provision as provisioning
    from macd.deploy.fleet import Results
    from macd.deploy.rollout import Limits, operator

    inv, chosen = select(inventory, env, host)
    limits = Limits(parallel)
    if undo:
        if adopt:
            raise UsageError("--adopt and --undo", why="one takes over, the other gives back")
        options = same(env=env, host=host, inventory=inventory)
        return _undo(inv, env, chosen, options, dry_run=dry_run, yes=yes, json=json)
    provisioning.files_here(inv)  # what every host would be refused for is said once
    who = operator()
    looked = on_each(
        chosen, lambda target: provisioning.provision(target, inv, who=who, dry_run=True)
    )
    wanted = [
        target
        for target in chosen
        if target.name in looked.done and looked.done[target.name].changes
    ]
    options = same(env=env, host=host, inventory=inventory)
    agreed = True
    ended: Results[Provisioned] = Results({}, {})
    if wanted and not dry_run:
        if not (json or yes):
            _show(looked, options, would=True)
        agreed = confirm(f"change {', '.join(target.name for target in wanted)}?", yes=yes)
        if agreed:
            # Who typed yes has read what --adopt is about.
            ended = _provision_each(inv, env, wanted, limits, adopt=adopt or not yes, quiet=json)
            if len(chosen) == 1 and ended.failed:
                raise ended.failed[chosen[0].name]
    results = _together(looked, ended)
    if json:
        _emit(results, dry_run=dry_run or not agreed)
    elif agreed:
        _show(results, options, would=dry_run)
    else:
        print(
            f"nothing was changed\n  do: invoke provision {_agreeing(looked, adopt=adopt)}{options}"
        )
    return _exit_code(results, agreed=agreed)


def _provision_each(
    inventory: Inventory,
    env: str,
    wanted: list[Host],
    limits: Limits,
    *,
    adopt: bool,
    quiet: bool,
) -> Results[Provisioned]:
    """Side by side; what one host fails with keeps no other from it."""
    from macd.deploy import provision as provisioning
    from macd.deploy.fleet import in_waves, side_by_side
    from macd.deploy.rollout import Rollout, operator

    rollout = Rollout(inventory, "provision", env)

    def act(host: Host) -> Provisioned:
        with shown.host(host.name, "provisioning" if len(wanted) > 1 else ""):
            done = provisioning.provision(host, inventory, who=operator(), adopt=adopt)
            rollout.record("done", host=host.name, changes=len(done.changes))
            shown.ended(host.name, f"✓ {_count(done)}")
            return done

    with Shown([wanted], quiet=quiet) as shown:
        if len(wanted) == 1:
            return side_by_side(wanted, act)
        return in_waves([wanted], act, parallel=limits.parallel, on_interrupt=shown.interrupted)


def _together(looked: Results[Provisioned], ended: Results[Provisioned]) -> Results[Provisioned]:
    """How each host ended; the look of those that needed no change."""
    from macd.deploy.fleet import Results

    unknown = {*ended.failed, *ended.not_started, *ended.left}
    done = {
        n: ended.done.get(n, unchanged) for n, unchanged in looked.done.items() if n not in unknown
    }
    failed = {**looked.failed, **ended.failed}
    return Results(done, failed, ended.not_started, ended.left, ended.interrupted)


def _agreeing(looked: Results[Provisioned], *, adopt: bool) -> str:
    """The options that agree without a question to all that was shown."""
    asks = any(one.adopts and one.adopts.asks for one in looked.done.values())
    return "--adopt --yes" if adopt or asks else "--yes"


def _emit(results: Results[Provisioned], *, dry_run: bool) -> None:
    hosts = [
        {**asdict(host), "restart_wanted": host.restart_wanted} for host in results.done.values()
    ]
    more = {"untouched": results.not_started, "left": results.left}
    emit({"dry_run": dry_run, "hosts": hosts, **failed_fields(results.failed), **more})


def _exit_code(results: Results[Provisioned], *, agreed: bool) -> ExitCode:
    from macd.deploy.fleet import code_of, worst

    lacking = any(host.lacks_needed for host in results.done.values())
    codes = [code_of(error) for error in results.failed.values()]
    codes += [ExitCode.CONTACT_LOST] * bool(results.left)
    codes += [ExitCode.FAILED] * bool(not agreed or lacking)
    codes += [ExitCode.INTERRUPTED] * bool(results.not_started)
    return worst(codes)


def _show(results: Results[Provisioned], options: str, *, would: bool) -> None:
    _print(list(results.done.values()), options, would=would)
    for name in results.not_started:
        print(f"{name}: untouched")
    sys.stdout.flush()
    print_failed(results.failed)
    if results.left:
        error = ContactLostError(
            f"not waited for: {', '.join(results.left)}",
            why="Ctrl-C was pressed twice",
            live="some of it may have been changed there",
            hint=f"invoke provision{options} again changes the rest",
        )
        print(f"✗ {error}", file=sys.stderr)


def _print_adoption(adopts: Adoption, *, would: bool) -> None:
    for text in adopts.words:
        print(f"  by hand: {safe(text)}")
    for one in adopts.processes:
        who = f"pid {one['pid']} of {one['user']}: {one['command']} in {one['cwd']}"
        print(f"  by hand: {safe(who)}, kept by {safe(str(one['by']))}")
        print(f"      no deploy begins beside it; do: {safe(str(one['do']))}")
    for diff in adopts.diffs if would else ():
        print("  with the first deploy:")
        print("".join(f"      {line}\n" for line in safe(diff).splitlines()), end="")
    if adopts.asks and would:
        print("  what runs goes on running; invoke provision --undo gives everything back")


def _undo(
    inventory: Inventory,
    env: str,
    chosen: list[Host],
    options: str,
    *,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> ExitCode:
    """Look first, ask, then give back on each host."""
    from macd.deploy import provision as provisioning
    from macd.deploy.fleet import Results
    from macd.deploy.rollout import Rollout, operator

    who = operator()
    rollout = Rollout(inventory, "provision", env)

    def act(host: Host) -> Undone:
        undone = provisioning.undo(host, inventory, who=who)
        rollout.record("undone", host=host.name, serving=undone.serving)
        return undone

    results = on_each(
        chosen, lambda host: provisioning.undo(host, inventory, who=who, dry_run=True)
    )
    agreed = True
    if not dry_run and results.done:
        if not (json or yes):
            _print_undone(list(results.done.values()), would=True)
        wanted = [host for host in chosen if host.name in results.done]
        agreed = confirm(f"give back on {', '.join(host.name for host in wanted)}?", yes=yes)
        if agreed:
            ended = on_each(wanted, act)
            results = Results(ended.done, {**results.failed, **ended.failed}, ended.not_started)
    if json:
        hosts = [asdict(host) for host in results.done.values()]
        emit({"dry_run": dry_run or not agreed, "hosts": hosts, **failed_fields(results.failed)})
    elif agreed:
        _print_undone(list(results.done.values()), would=dry_run)
        print_failed(results.failed)
    else:
        print(f"nothing was changed\n  do: invoke provision --undo --yes{options}")
    return _undo_code(results, agreed=agreed)


def _undo_code(results: Results[Undone], *, agreed: bool) -> ExitCode:
    from macd.deploy.fleet import code_of, worst

    codes = [code_of(error) for error in results.failed.values()]
    dead = any(host.healthy is False for host in results.done.values())
    return worst([*codes, *([ExitCode.FAILED] * bool(not agreed or dead))])


def _print_undone(done: list[Undone], *, would: bool) -> None:
    for undone in done:
        print(f"{undone.host}  {undone.app}")
        for change in undone.changes:
            print(f"  {'would be' if would else '✓'} {change.how}: {change.what} {change.name}")
        mark = "✗ " if undone.healthy is False else ""
        print(f"  {mark}{'then' if would else 'now'}: {safe(undone.serving)}")
        if undone.left:
            print(f"  stays, and nothing refers to it: {', '.join(undone.left)}")


def _count(provisioned: Provisioned) -> str:
    count = len(provisioned.changes)
    return f"{count} change{'s' if count != 1 else ''}"


def _print(done: list[Provisioned], options: str, *, would: bool) -> None:
    for provisioned in done:
        print(f"{provisioned.host}  {provisioned.app}")
        if provisioned.adopts:
            _print_adoption(provisioned.adopts, would=would)
        for change in provisioned.changes:
            print(f"  {'would be' if would else '✓'} {change.how}: {change.what} {change.name}")
            if would:
                print("".join(f"      {line}\n" for line in change.diff.splitlines()), end="")
        print(f"  {_count(provisioned)}{' to make' if would else ''}")
        if provisioned.restart_wanted:
            stale = ", ".join(provisioned.stale)
            reason = f"{stale}: the running service still has the old one"
            if would:
                reason = f"then, for the running service to have {stale}"
            print(f"  {reason}: invoke deploy --restart{options} --release {provisioned.live}")
        if provisioned.unconfined:
            print(f"  note: {provisioned.unconfined}")
        problems = (provisioned.unprotected, provisioned.not_started, provisioned.note)
        for problem in filter(None, problems):
            print("  ✗ " + problem.replace("\n", "\n    "))
        for lacking in provisioned.missing:
            mark = "✗" if lacking["needed"] else "note:"
            print(
                f"  {mark} the host has no {lacking['name']}: apt-get install {lacking['package']}"
            )
