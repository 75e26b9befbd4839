"""`invoke doctor`: the failures the team has met, each looked for, with evidence and remedy."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.shadow.case import Finding

_SIGNS = {True: "✓", False: "✗", None: "?"}


@verb(
    name="doctor",
    help={
        "env": "the environment (default: prod)",
        "host": "only this host of it",
        "inventory": "which inventory (default: MACD_INVENTORY or lab)",
        "json": "print one JSON document for machines",
    },
)
def doctor(
    _: object, env: str = "prod", host: str = "", inventory: str = "", json: bool = False
) -> ExitCode | None:
    """Look for the known failures, with evidence and remedy; exit 1 if there is one."""
    from macd.deploy.campaign import hosts_of
    from macd.inventory import load
    from macd.shadow.doctor import diagnose
    from macd.shadow.examine import examine

    known = load(inventory)
    trainings = _trainings(known)
    rows = [
        (one.name, diagnose(examine(one, known, trainings))) for one in hosts_of(known, env, host)
    ]
    problems = sum(finding.ok is False for _, found in rows for finding in found)
    if json:
        hosts = [{"host": name, "findings": [asdict(f) for f in found]} for name, found in rows]
        emit({"problems": problems, "hosts": hosts})
    else:
        for name, found in rows:
            print(name)
            for finding in found:
                _print(finding)
        print(f"\n  {problems or 'no'} problem{'' if problems == 1 else 's'} found")
    return ExitCode.FAILED if problems else None


def _print(finding: Finding) -> None:
    print(f"  {_SIGNS[finding.ok]} {finding.name:<18} {finding.evidence}")
    if finding.remedy:
        print(f"    {'':<18} do: {finding.remedy}")


def _trainings(known: Inventory) -> dict[str, dict[str, str]]:
    training = [host for host in known.hosts.values() if host.role == "train"]
    return {host.name: _training(host, known) for host in training}


def _training(host: Host, known: Inventory) -> dict[str, str]:
    """How the newest run on a host stands, and what helps if it failed."""
    import time

    from macd.jobs import ask, remedies
    from macd.jobs.contact import Contact

    try:
        with Contact(host, known, time.monotonic, time.sleep, patience=0.0) as contact:
            told = ask.status_of(contact, "")
            if told["state"] != "FAILED":
                return {"state": told["state"], "why": "", "remedy": ""}
            failure = remedies.explain(told, ask.events_of(contact, told["run"]), told["log_end"])
    except MacdError as error:
        return {"state": "", "why": error.what, "remedy": ""}
    last = failure.log.splitlines()[-1:] or [""]
    words = [f"run {told['run']} failed in {failure.stage or 'its beginning'}"]
    words += [text for text in (failure.reason, failure.detail, *last) if text]
    return {"state": "FAILED", "why": "; ".join(words), "remedy": failure.remedy}
