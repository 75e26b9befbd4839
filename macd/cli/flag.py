"""`invoke enable-stacking` and `disable-stacking`: flip the flag and prove the process has it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from macd.cli.verb import confirm, emit, verb
from macd.errors import ExitCode

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.shadow.flag import Flipped

_COMMON = {
    "env": "the environment (default: prod)",
    "host": "which host of it (default: the only one)",
    "inventory": "which inventory (default: MACD_INVENTORY or lab)",
    "json": "print one JSON document for machines",
    "dry-run": "only say whether it would be done",
    "yes": "do not ask",
}


@verb(name="enable-stacking", help=_COMMON)
def enable_stacking(
    _: object,
    env: str = "prod",
    host: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Let stacking decide: the newest gate report must be a PASS about what is live."""
    return _flip("enable", env, host, inventory, dry_run=dry_run, yes=yes, json=json)


@verb(name="disable-stacking", help=_COMMON)
def disable_stacking(
    _: object,
    env: str = "prod",
    host: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Back to shadow: stacking is only logged, the weighted average decides again."""
    return _flip("disable", env, host, inventory, dry_run=dry_run, yes=yes, json=json)


def _flip(
    kind: str, env: str, host: str, inventory: str, *, dry_run: bool, yes: bool, json: bool
) -> ExitCode | None:
    from macd.deploy.campaign import only_host, operator
    from macd.inventory import load
    from macd.shadow import flag

    known = load(inventory)
    one = only_host(known, env, host, "the flag is set on")
    act = flag.enable if kind == "enable" else flag.disable
    if dry_run or not yes:
        looked = act(one, known, operator(), dry_run=True)
        if dry_run:
            return _tell(kind, looked, "", json=json)
        seen = "; it looks so already" if looked.result == "already" else ""
        if not confirm(f"{kind} stacking on {one.name} ({looked.release}{seen})?", yes=False):
            return _not_agreed(json=json)
    ended = act(one, known, operator())
    warning = _record(kind, known, one, ended)
    return _tell(kind, ended, warning, json=json)


def _record(kind: str, known: Inventory, host: Host, ended: Flipped) -> str:
    """Into the journal, and to those who want to know; a note if that did not work."""
    from macd.deploy.campaign import operator
    from macd.deploy.notify import notify
    from macd.journal import Journal

    if ended.result == "already":
        return ""
    fields = {
        "env": host.env,
        "host": host.name,
        "who": operator(),
        "release": ended.release,
        "value": ended.value,
        "result": ended.result,
        "reason": ended.reason,
        "wrong": ended.wrong,
        "report": ended.report,
    }
    journal = Journal(known.state_dir / "journal.jsonl")
    journal.append(f"flag.{kind}", fields, now=datetime.now(UTC))
    title = f"macd {host.env}: {kind} stacking on {host.name}: {ended.result}"
    good = ended.result == "set" and not ended.wrong
    body = ended.reason or ended.wrong or str(ended.release)
    return notify(known.notify, title, body, good=good)


def _tell(kind: str, ended: Flipped, warning: str, *, json: bool) -> ExitCode | None:
    from dataclasses import asdict

    if json:
        emit({**asdict(ended), "warning": warning})
    else:
        print("\n".join(_lines(kind, ended)))
        if warning:
            print(f"  note   {warning}")
    if ended.result == "reverted":
        return ExitCode.REVERTED
    return ExitCode.FAILED if ended.wrong else None


def _lines(kind: str, ended: Flipped) -> list[str]:
    mode = "stacking decides" if ended.value == "1" else "stacking is in shadow"
    process = f"process {ended.pid}" if ended.pid else "no process"
    told = {
        "set": f"{'✗' if ended.wrong else '✓'} {ended.host}: {mode}; {process} runs with it",
        "already": f"✓ {ended.host}: {mode} already; nothing was restarted",
        "would": f"{ended.host}: would {kind} stacking and restart the service",
        "reverted": f"✗ {ended.host}: put back, {mode}",
    }
    lines = [told[ended.result], f"  live   {ended.release}"]
    for label, text in (
        ("why", ended.reason),
        ("wrong", ended.wrong),
        ("proof", ended.report),
        ("note", ended.lost),
    ):
        if text:
            lines.append(f"  {label:<6} {text}")
    return lines


def _not_agreed(*, json: bool) -> ExitCode:
    if json:
        emit({"result": "not agreed", "hint": "--yes"})
    else:
        print("nothing was changed\n  do: add --yes to go on without a question")
    return ExitCode.FAILED
