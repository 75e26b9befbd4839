"""`invoke doctor`: the failures the team has met, each looked for, with evidence and remedy."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import exit_code, failed_fields, print_failed, select
from macd.cli.verb import LOOKED, emit, verb
from macd.errors import ExitCode, MacdError

if TYPE_CHECKING:
    from macd.gate.finding import Finding
    from macd.inventory import Host, Inventory

_SIGNS = {True: "✓", False: "✗", None: "?"}


@verb(
    interrupted=LOOKED,
    help={"notify-test": "have each host send a test message to alerts.notify_url too"},
)
def doctor(
    _: object,
    env: str = "prod",
    host: str = "",
    notify_test: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Look for known failures; show evidence and remedy; exit 1 if one is found."""
    from macd.deploy.fleet import side_by_side
    from macd.gate.doctor import diagnose

    inv, hosts = select(inventory, env, host)
    boxes = [host for host in inv.hosts.values() if host.role == "train"]
    # The training boxes are asked beside the hosts, and once for all of them.
    results = side_by_side([*hosts, *boxes], lambda host: _ask(host, inv))
    if len(hosts) == 1 and results.failed:
        raise results.failed[hosts[0].name]
    answers = results.done
    trainings = {box.name: answers[box.name] for box in boxes}
    rows = {
        host.name: diagnose(replace(answers[host.name], trainings=trainings))
        for host in hosts
        if host.name in answers
    }
    if notify_test:
        for one in hosts:
            if one.name in rows:
                rows[one.name].append(_notified(one, inv))
    ill = {
        name: sum(finding.ok is False for finding in findings) for name, findings in rows.items()
    }
    problems = sum(ill.values())
    if json:
        shown = [
            {"host": n, "findings": [asdict(f) for f in findings]} for n, findings in rows.items()
        ]
        emit({"problems": problems, "hosts": shown, **failed_fields(results.failed)})
    else:
        for name, findings in rows.items():
            print(name)
            for finding in findings:
                _print(finding)
        if rows:
            where = " on the hosts that answered" if results.failed else ""
            print(f"\n  {problems or 'no'} problem{'' if problems == 1 else 's'} found{where}")
        if problems and len(hosts) > 1:
            print("  what is advised acts on every host; add --host NAME for one alone")
        print_failed(results.failed)
    codes = [ExitCode.FAILED if count else None for count in ill.values()]
    return exit_code(codes, results.failed)


def _notified(host: Host, inventory: Inventory) -> Finding:
    from macd.deploy.rollout import operator
    from macd.gate.doctor import notify_test

    return notify_test(host, inventory, operator())


def _print(finding: Finding) -> None:
    print(f"  {_SIGNS[finding.ok]} {finding.name:<18} {finding.evidence}")
    if finding.remedy:
        print(f"    {'':<18} do: {finding.remedy}")


def _ask(host: Host, inventory: Inventory) -> Any:
    """The case of a serving host, or the state of the newest run on a training box."""
    from macd.gate.doctor import examine

    return _training(host, inventory) if host.role == "train" else examine(host, inventory)


def _training(host: Host, inventory: Inventory) -> dict[str, str]:
    """The state of the newest run on a host, and what helps if it failed."""
    from macd.jobs import follow, remedies
    from macd.ssh.contact import Contact

    try:
        with Contact(host, inventory, patience=0.0) as contact:
            status = follow.status_of(contact, "")
            if status["state"] != "FAILED":
                return {"state": status["state"], "why": "", "remedy": ""}
            events = follow.events_of(contact, status["run"])
            failure = remedies.explain(status, events, status["log_end"])
    except MacdError as error:
        return {"state": "", "why": error.what, "remedy": ""}
    last = failure.log.splitlines()[-1:] or [""]
    words = [f"run {status['run']} failed in {failure.stage or 'its beginning'}"]
    words += [text for text in (failure.reason, failure.detail, *last) if text]
    return {"state": "FAILED", "why": "; ".join(words), "remedy": failure.remedy}
