"""Where `invoke rollback` would take each host, and how that is said; nothing is changed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macd.cli.hosts import away_fields
from macd.cli.verb import emit, error_fields
from macd.errors import ExitCode, MacdError, RefusedError

if TYPE_CHECKING:
    from macd.deploy.rollback import RollbackTarget
    from macd.deploy.rollout import Rollout
    from macd.inventory import Host, Inventory


def targets(
    run: Rollout, inventory: Inventory, hosts: list[Host], to: str
) -> tuple[list[RollbackTarget], dict[str, MacdError]]:
    """Where each host would go, and which can't be asked; those may have what is to be undone."""
    from macd.deploy import rollback
    from macd.deploy.state import observe_each

    looked, unreachable = observe_each(hosts, inventory)
    unseen = max((run.may_be_live(name) for name in unreachable), default=0)
    return rollback.targets(looked, to, unseen), unreachable


def show(found: list[RollbackTarget], unreachable: dict[str, MacdError]) -> None:
    """One line for each host."""
    for target in found:
        print(f"{target.host}: {target}")
    for name, error in unreachable.items():
        print(f"{name}: passed by: {error.what}")


def dry(
    found: list[RollbackTarget],
    unreachable: dict[str, MacdError],
    options: str,
    to: str,
    *,
    json: bool,
) -> ExitCode | None:
    """Only say so; with the error for hosts that could not be asked."""
    from macd.deploy.rollout import passed_by

    error = passed_by("rollback", unreachable, options, release=to) if unreachable else None
    if not json:
        show(found, unreachable)
        if error is not None:
            raise error
        return None
    goes_to = {target.host: None if target.stays else target.to for target in found}
    changes = {target.host: target.changes for target in found if target.goes}
    told = {"dry_run": True, "to": goes_to, "changes": changes, "away": away_fields(unreachable)}
    emit({**told, **(error_fields(error) if error else {})})
    return error.exit_code if error else None


def no_way_back(env: str, provisioned: bool) -> RefusedError:
    """No host has anywhere to go."""
    if not provisioned:
        live = "nothing, as before"
        return RefusedError(
            "nothing is provisioned", live=live, hint=f"invoke provision --env {env}"
        )
    return RefusedError(
        "there is nothing to roll back to",
        why="no other release that is still good was live there",
        live="what was live before",
        hint=f"invoke history --env {env} shows what was live there; --to ID names one of them",
    )
