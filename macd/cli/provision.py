"""`invoke provision`: make the hosts of an environment what the inventory says."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.verb import confirm, emit, same, verb
from macd.errors import ExitCode

if TYPE_CHECKING:
    from macd.deploy.provision import Provisioned


@verb(
    name="provision",
    help={
        "env": "the environment whose hosts are provisioned (default: prod)",
        "host": "only this host of it",
        "dry-run": "show what would change, with diffs, and change nothing",
        "yes": "do not ask",
        "inventory": "which inventory (default: MACD_INVENTORY or lab)",
        "json": "print one JSON document for machines",
    },
)
def provision(
    _: object,
    env: str = "prod",
    host: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Converge hosts: account, directories, units, keys; repeated, changes nothing."""
    from macd.deploy import provision as provisioning
    from macd.deploy.campaign import Campaign, hosts_of, operator
    from macd.inventory import load

    known = load(inventory)
    chosen = list(hosts_of(known, env, host))
    who = operator()
    done = [provisioning.provision(one, known, who=who, dry_run=True) for one in chosen]
    wanted = [one for one, found in zip(chosen, done, strict=True) if found.changes]
    options = same(env=env, host=host, inventory=inventory)
    agreed = True
    if wanted and not dry_run:
        if not (json or yes):
            _print(done, options, would=True)
        agreed = confirm(f"change {', '.join(one.name for one in wanted)}?", yes=yes)
        if agreed:
            campaign = Campaign(known, "provision", env)
            for index, one in enumerate(chosen):
                if one in wanted:
                    done[index] = provisioning.provision(one, known, who=who)
                    campaign.record("done", host=one.name, changes=len(done[index].changes))
    changed = agreed and not dry_run
    if json:
        hosts = [{**asdict(one), "restart_wanted": one.restart_wanted} for one in done]
        emit({"dry_run": not changed, "hosts": hosts})
    elif changed:
        _print(done, options, would=False)
    elif dry_run:
        _print(done, options, would=True)
    else:
        print(f"nothing was changed\n  do: invoke provision --yes{options}")
    return ExitCode.FAILED if not agreed or any(one.lacks_needed for one in done) else None


def _print(done: list[Provisioned], options: str, *, would: bool) -> None:
    for one in done:
        print(f"{one.host}  {one.app}")
        for change in one.changes:
            print(f"  {'would be' if would else '✓'} {change.how}: {change.what} {change.name}")
            if would:
                print("".join(f"      {line}\n" for line in change.diff.splitlines()), end="")
        count = len(one.changes)
        print(f"  {count} change{'s' if count != 1 else ''}{' to make' if would else ''}")
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
