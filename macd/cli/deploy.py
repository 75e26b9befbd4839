"""`invoke plan`, `deploy`, `rollback`: bring a release live, and back; never half."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import errors_by_host, failed_fields, on_each, print_failed, select
from macd.cli.rollout import (
    Shown,
    as_fields,
    dry_rollback,
    nothing_to_roll_back,
    print_end,
    print_plan,
    print_targets,
    rollback_targets,
)
from macd.cli.verb import confirm, emit, error_fields, not_agreed, same, verb
from macd.errors import ContactLostError, ExitCode, MacdError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macd.deploy.candidate import ReleaseCandidate
    from macd.deploy.fleet import Results
    from macd.deploy.follow import Outcome
    from macd.deploy.plan import Plan
    from macd.deploy.rollout import Result, Rollout
    from macd.inventory import Host, Inventory

_RELEASE = {
    "release": "id of a release here (default: the newest for this environment)",
    "accept": "market: the bars may be another market's than the trained ones; copy: another "
    "process may run the same command",
}
_MAX_FAILED = {
    "max-failed": "start no more hosts once more than this many failed or reverted (default: 0)"
}


@verb(help=_RELEASE)
def plan(
    _: object,
    env: str = "prod",
    host: str = "",
    release: str = "",
    accept: str = "",
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Show what deploy would change: files, units, bytes, drift, rollback target.

    Changes nothing.
    """
    inv, hosts = select(inventory, env, host)
    accepted = _accepted(accept)
    preview = _preview(inv, hosts, _candidate(inv, env, release), accepted)
    plans = preview.plans
    if json:
        emit(_fields(preview))
        return preview.exit_code
    preview.show()
    options = same(env=env, host=host, release=release, accept=accept, inventory=inventory)
    if any(plan.problems for plan in plans):
        return preview.exit_code  # each with what to do about it
    if any(not plan.empty for plan in plans):
        print(f"\n  next: invoke deploy{options}")
    elif any(plan.unhealthy for plan in plans):
        print(f"\n  next: invoke deploy --restart{options}")
    return preview.exit_code


@verb(
    help=_RELEASE
    | _MAX_FAILED
    | {
        "wave": 'deploy in waves: hosts done in total after each, e.g. "1,50%,100%"',
        "skip-unreachable": "leave out hosts that can't be reached; exit 5 at the end",
        "restart": "restart the service even if nothing differs",
        "attach": "follow what is under way (and confirm it, if started here), else show how the "
        "newest ended; start nothing",
        "dry-run": "the same as invoke plan",
    }
)
def deploy(
    _: object,
    env: str = "prod",
    host: str = "",
    release: str = "",
    wave: str = "",
    parallel: int = 10,
    max_failed: int = 0,
    skip_unreachable: bool = False,
    restart: bool = False,
    accept: str = "",
    attach: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Bring a release live: send, verify, switch, restart, soak, commit or revert."""
    from macd.deploy.fleet import waves
    from macd.ssh.ahead import LinksAhead

    inv, hosts = select(inventory, env, host)
    accepted = _accepted(accept)
    options = same(env=env, host=host, inventory=inventory)
    if attach:
        return _attach(inv, env, hosts, options, json=json)
    planned = waves(hosts, wave)
    asks = dry_run or not yes
    with LinksAhead([] if asks else planned[0][: max(parallel, 0)], inv) as ahead:
        # Loaded while the links are being made.
        from macd.deploy import apply, follow, rollout
        from macd.ssh.refusals import UnreachableError

        limits = rollout.Limits(parallel, max_failed)
        activations = follow.PendingActivations(inv)
        candidate = _candidate(inv, env, release)
        unreachable: dict[str, MacdError] = {}
        if asks:
            preview = _preview(inv, hosts, candidate, accepted)
            how = _How(options, dry=dry_run, skip=skip_unreachable, restart=restart, json=json)
            code = _before(preview, how)
            if code is not None:
                return code
            unreachable = preview.failed

        def one_host(host: Host) -> Outcome:
            with shown.host(host.name, f"deploying {candidate.id} to {host.name}") as progress:
                options = apply.DeployOptions(
                    rollout.operator(), progress, activations, restart, accepted
                )
                return apply.deploy(host, inv, candidate, options, ahead)

        count = sum(map(len, planned))
        run = rollout.Rollout(inv, "deploy", env)
        with Shown(planned, quiet=json, unreachable=list(unreachable)) as shown:
            result = run.run(
                planned,
                one_host,
                limits=limits,
                passes=(UnreachableError,) if skip_unreachable and count > 1 else (),
                unreachable=unreachable,
                on_interrupt=shown.interrupted,
                release=candidate.id,
                serial=candidate.serial,
                **({"accept": list(accepted)} if accepted else {}),
            )
        return _end(result, "deploy", options, hosts=count, json=json, release=candidate.id)


@verb(
    help=_MAX_FAILED
    | {
        "to": "id of a release that was live there (default: undo the last deploy, where live)",
        "dry-run": "only show which release each host would go back to",
    }
)
def rollback(
    _: object,
    env: str = "prod",
    host: str = "",
    to: str = "",
    parallel: int = 10,
    max_failed: int = 0,
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Go back to the last good release: models, code, unit, flags; sends nothing."""
    from macd.deploy import apply, follow, rollout
    from macd.ssh.refusals import UnreachableError

    inv, hosts = select(inventory, env, host)
    limits = rollout.Limits(parallel, max_failed)
    options = same(env=env, host=host, inventory=inventory)
    run = rollout.Rollout(inv, "rollback", env)
    activations = follow.PendingActivations(inv)
    stay: list[str] = []
    unreachable: dict[str, MacdError] = {}
    if dry_run or not yes or (len(hosts) > 1 and not to):
        targets, unreachable = rollback_targets(run, inv, hosts, to)
        stay = [target.host for target in targets if target.stays]
        if dry_run:
            return dry_rollback(targets, unreachable, options, env, to, json=json)
        if not json:
            print_targets(targets, unreachable)
        if not (yes or unreachable or any(target.to for target in targets)):
            raise nothing_to_roll_back(env, to, any(target.provisioned for target in targets))
        if not confirm("roll back?", yes=yes):
            return not_agreed(json=json)

    def one_host(host: Host) -> Outcome:
        with shown.host(host.name, f"rolling {host.name} back") as progress:
            options = apply.DeployOptions(rollout.operator(), progress, activations)
            return apply.rollback(host, inv, to, options)

    going = [host for host in hosts if host.name not in stay]
    passes = (UnreachableError, ContactLostError) if len(hosts) > 1 else ()
    with Shown([going], quiet=json, unreachable=list(unreachable)) as shown:
        result = run.run(
            [going],
            one_host,
            limits=limits,
            passes=passes,
            unreachable=unreachable,
            on_interrupt=shown.interrupted,
            to=to,
        )
    result = replace(result, untouched=[*result.untouched, *stay])
    return _end(result, "rollback", options, hosts=len(hosts), json=json, release=to)


@dataclass(frozen=True)
class _Preview:
    """What a deploy would do on each host that could be asked, and why the others could not."""

    plans: Sequence[Plan]
    failed: dict[str, MacdError]
    candidate: ReleaseCandidate

    @property
    def nothing_to_do(self) -> bool:
        return all(plan.empty for plan in self.plans)

    @property
    def exit_code(self) -> ExitCode:
        from macd.deploy.fleet import code_of, worst

        return worst(code_of(error) for error in self.failed.values())

    @property
    def all_unreachable(self) -> bool:
        """Whether those that could not be asked could not be reached, all of them."""
        from macd.deploy.fleet import code_of

        return all(code_of(error) == ExitCode.CONTACT_LOST for error in self.failed.values())

    def show(self) -> None:
        for plan in self.plans:
            print_plan(plan)
        sys.stdout.flush()
        print_failed(self.failed)


@dataclass(frozen=True)
class _How:
    """The options that decide whether a deploy starts."""

    options: str
    dry: bool
    skip: bool
    restart: bool
    json: bool


def _accepted(text: str) -> tuple[str, ...]:
    """What `--accept` names. Raises UsageError for what can't be accepted."""
    if not text:
        return ()
    from macd.deploy.plan import COPY, MARKET  # takes 0.1 s, and this is before the dial

    if text not in (MARKET, COPY):
        raise UsageError(
            f"--accept {text}: that is nothing to accept",
            why=f"a deploy is refused for many reasons; only {MARKET} and {COPY} may be accepted",
            hint=f"--accept {MARKET}, or --accept {COPY}",
        )
    return (text,)


def _preview(
    inventory: Inventory,
    hosts: Sequence[Host],
    candidate: ReleaseCandidate,
    accept: Sequence[str] = (),
) -> _Preview:
    from macd.deploy import apply

    results = on_each(hosts, lambda host: apply.look(host, inventory, candidate, accept))
    return _Preview(list(results.done.values()), results.failed, candidate)


def _before(preview: _Preview, how: _How) -> ExitCode | None:
    """Show what would be done and ask; the exit code if that is all, None to go on."""
    if how.dry:
        _show(preview, how)
        return preview.exit_code
    if preview.failed and not (how.skip and preview.all_unreachable):
        if not how.json:
            preview.show()
        raise _not_started(preview, how.options)
    _show(preview, how)
    if preview.nothing_to_do and not (how.restart and preview.plans):
        return _as_it_is(preview, how)
    names = ", ".join(plan.host for plan in preview.plans)
    past = f", and pass by {', '.join(preview.failed)}" if preview.failed else ""
    if not confirm(f"deploy {preview.candidate.id} to {names}{past}?", yes=False):
        problems = [problem for plan in preview.plans for problem in plan.problems]
        first = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        return not_agreed(json=how.json, first=list(first))
    return None


def _not_started(preview: _Preview, options: str) -> MacdError:
    skip = f"invoke deploy --skip-unreachable{options} passes by who can't be reached"
    return MacdError(
        f"no deploy was started: {', '.join(preview.failed)} could not be asked",
        why="\n".join(f"{name}: {error.what}" for name, error in preview.failed.items()),
        live="on every host what was live before",
        hint=skip if preview.all_unreachable else f"see to it; invoke plan{options} asks again",
        exit_code=preview.exit_code,
    )


def _candidate(inventory: Inventory, env: str, release: str) -> ReleaseCandidate:
    from macd.deploy import candidate as candidates
    from macd.release.store import Store

    store, app = Store(inventory.root / "releases"), inventory.release.app
    index = inventory.service.runtime == "index"
    feed = "" if inventory.app else inventory.service.feed.kind
    return candidates.read(store, release, env, app, index=index, feed=feed)


def _show(preview: _Preview, how: _How) -> None:
    if how.json and (how.dry or preview.nothing_to_do):
        emit({"dry_run": how.dry, **_fields(preview)})
    elif not how.json:
        preview.show()


def _fields(preview: _Preview) -> dict[str, Any]:
    return {
        "changes": not preview.nothing_to_do,
        "hosts": [
            {**asdict(plan), "unwell": plan.unhealthy, "changes": not plan.empty}
            for plan in preview.plans
        ],
        **failed_fields(preview.failed),
    }


def _as_it_is(preview: _Preview, how: _How) -> ExitCode:
    """Nothing differs on any host; that is good only where what is live serves."""
    if not any(plan.unhealthy for plan in preview.plans):
        return preview.exit_code
    if not how.json:
        again = f"invoke deploy --restart --release {preview.candidate.id}{how.options}"
        print(f"  do: {again}; invoke doctor{how.options}")
    return ExitCode.FAILED


def _attach(
    inventory: Inventory, env: str, hosts: list[Host], options: str, *, json: bool
) -> ExitCode:
    from macd.deploy import rollout

    run = rollout.Rollout(inventory, "deploy", env)
    results = _follow_each(inventory, run, hosts, quiet=json)
    if len(hosts) == 1 and results.failed:
        raise results.failed[hosts[0].name]
    outcomes = [outcome for outcome, _ in results.done.values() if outcome]
    warnings = run.late(outcome for outcome, ours in results.done.values() if outcome and ours)
    ended = rollout.Result(
        outcomes, [], warnings=warnings, failed=results.failed, left=results.left
    )
    if json:
        fields = {"outcomes": as_fields(outcomes), "warnings": warnings}
        emit({**fields, "errors": errors_by_host(ended.failed), "left": ended.left})
        return ended.exit_code
    for name, (outcome, _) in results.done.items():
        if outcome is None and len(hosts) == 1:
            print(f"{name}: nothing was ever deployed there")
        elif outcome is None:
            print(f"{name}: nothing is under way")
    print_end(ended, "activation", options)
    _print_errors(ended, _left(ended, options))
    return ended.exit_code


def _follow_each(
    inventory: Inventory, run: Rollout, hosts: list[Host], *, quiet: bool
) -> Results[tuple[Outcome | None, bool]]:
    """The end of each, and whether its activation was started here.

    Of several hosts only those are followed that have something under way, or that were
    started here and whose end is not recorded yet.
    """
    from macd.deploy import follow
    from macd.deploy.fleet import in_waves, side_by_side

    several = len(hosts) > 1
    activations = follow.PendingActivations(inventory)

    def one_host(host: Host) -> tuple[Outcome | None, bool]:
        activation = activations.of(host.name)
        if several and activation is not None and run.recorded(activation):
            activation = None
        with shown.host(host.name) as progress:
            outcome = follow.attach(host, inventory, activation, progress, ended=not several)
        if outcome is None or activation is None or not activation.is_of(outcome):
            return outcome, False
        activations.add(replace(activation, number=outcome.number))
        return outcome, True

    with Shown([hosts], quiet=quiet) as shown:
        if several:
            return in_waves([hosts], one_host, on_interrupt=shown.interrupted)
        return side_by_side(hosts, one_host)


def _end(
    result: Result, kind: str, options: str, *, hosts: int, json: bool, release: str = ""
) -> ExitCode:
    from macd.deploy.rollout import passed_by

    unreachable = result.unreachable
    past = passed_by(kind, unreachable, options, release=release) if unreachable else None
    error = result.error or past or _left(result, options)
    code = error.exit_code if error and hosts == 1 else result.exit_code
    if json:
        fields: dict[str, Any] = {
            "outcomes": as_fields(result.outcomes),
            "untouched": result.untouched,
            "unreachable": list(result.unreachable),
            "away": list(result.unreachable),  # its name up to 0.1
            "warnings": result.warnings,
            "stopped": result.stopped,
            "left": result.left,
            "errors": errors_by_host({**result.failed, **result.unreachable}),
        }
        emit({**fields, **(error_fields(error) if error else {}), "exit_code": int(code)})
        return code
    print_end(result, kind, options)
    if error is not None and hosts == 1:
        if result.unrecorded not in (None, error):
            print(f"✗ {result.unrecorded}", file=sys.stderr)
        raise error
    _print_errors(result, past, _left(result, options))
    return code


def _left(result: Result, options: str) -> MacdError | None:
    if not result.left:
        return None
    return ContactLostError(
        f"not waited for: {', '.join(result.left)}",
        why="Ctrl-C was pressed twice; each host ends by itself what it was asked to do",
        live="being decided on each; unless somebody confirms, it goes back",
        hint=f"invoke deploy --attach{options} follows and confirms; "
        f"invoke status{options} shows the end",
    )


def _print_errors(result: Result, *others: MacdError | None) -> None:
    sys.stdout.flush()
    print_failed(result.failed)
    for error in (result.unrecorded, *others):
        if error is not None:
            print(f"✗ {error}", file=sys.stderr)
