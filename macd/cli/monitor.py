"""`invoke monitor`: the guard's watch after enabling, live, and what it did meanwhile."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.verb import emit, verb
from macd.errors import ContactLostError, ExitCode

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.shadow.watch import Seen

_POLL_S = 2.0
_RETRIES = 5
# Why a host that was reached before isn't now, where waiting may help: the line, not the login.
_PASSING = ("lost", "refused", "timeout", "route", "name", "not-ssh", "behind-jump")
_ENDS = {
    "none": "stacking was never enabled here with a guard",
    "over": "the watch is over, stacking stays",
    "failed": "the guard disabled stacking",
    "ended": "the watch ended",
}


@verb(
    name="monitor",
    help={
        "env": "the environment (default: prod)",
        "host": "which host of it (default: the only one)",
        "once": "look once and leave; the guard itself goes on on the host",
        "inventory": "which inventory (default: MACD_INVENTORY or lab)",
        "json": "look once and print one JSON document for machines",
    },
)
def monitor(
    _: object,
    env: str = "prod",
    host: str = "",
    once: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Show the guard's reports to the end; exit 4 if it took back, 1 if unguarded."""
    from macd.deploy.campaign import only_host
    from macd.inventory import load

    known = load(inventory)
    one = only_host(known, env, host, "monitor looks at")
    if json:
        seen = _once(known, one)
        emit({**_fields(seen), "warning": _catch_up(seen, one, known)})
        return _exit(seen)
    seen, warning = _watched(known, one, once=once)
    if seen.over:
        print(f"  {_ENDS[seen.state]}" + (f": {seen.order['reason']}" if seen.order else ""))
    if seen.idle:
        print("  stacking is not live any more: the watch ends at the guard's next look")
    if seen.state == "failing" and seen.order:
        print(f"  ✗ the guard is taking stacking back: {seen.order['reason']}")
        if seen.order.get("trouble"):
            print(f"    {seen.order['trouble']}; it is tried again")
    if seen.dead:
        print("  ✗ the guard is dead: its loop was killed, or its timer stopped; nobody watches")
        print("    do: invoke disable-stacking; invoke shadow-gate, then invoke enable-stacking,")
        print("        begins a new watch: it needs a report that still holds")
    for text in seen.drift:
        print(f"  ✗ {text}")
    if seen.drift:
        print("    do: invoke disable-stacking; invoke shadow-gate, then invoke enable-stacking")
    if warning:
        print(f"  note   {warning}")
    return _exit(seen)


def _once(known: Inventory, host: Host) -> Seen:
    from macd.shadow import watch

    with watch.connect(host, known) as session:
        return watch.look(session, host, known.service.health)


def _watched(known: Inventory, host: Host, *, once: bool) -> tuple[Seen, str]:
    """Show it until nothing more comes; a lost link is made anew and no report is shown twice."""
    from macd.remote.refusals import UnreachableError
    from macd.shadow import watch

    last, shown, idle, failures, unjudged = "", False, 0, 0, ""
    while True:
        try:
            with watch.connect(host, known) as session:
                while True:
                    seen = watch.look(session, host, known.service.health, last)
                    failures = 0
                    if not shown:
                        _head(seen)
                        shown = True
                    last = _reports(seen, last)
                    unjudged = _unjudged(seen, unjudged)
                    idle = idle + 1 if seen.idle else 0  # twice: not while it is being enabled
                    if seen.over or seen.dead or once or idle > 1:
                        return seen, _catch_up(seen, host, known)
                    time.sleep(_POLL_S)
        except (ContactLostError, UnreachableError) as error:
            failures += 1
            passing = getattr(error, "reason", "lost") in _PASSING
            if not shown or failures > _RETRIES or not passing:
                raise
            print(f"{error.what}; trying again", file=sys.stderr)
            time.sleep(min(30, 2**failures))


def _catch_up(seen: Seen, host: Host, known: Inventory) -> str:
    """Journal and tell the end of a watch once; a note if telling did not work."""
    from macd.deploy.notify import notify
    from macd.shadow import watch

    if not watch.catch_up(seen, host, known) or seen.order is None:
        return ""
    title = f"macd {host.env}: {_ENDS[seen.state]} on {host.name}"
    return notify(known.notify, title, seen.order["reason"], good=seen.state != watch.FAILED)


def _exit(seen: Seen) -> ExitCode | None:
    if seen.dead or seen.unjudged or seen.state == "failing" or seen.drift:
        return ExitCode.FAILED
    return ExitCode.REVERTED if seen.state == "failed" else None


def _fields(seen: Seen) -> dict[str, Any]:
    from dataclasses import asdict

    reports = [{"name": name, **report} for name, report in seen.reports]
    told = {"state": seen.state, "unjudged": seen.unjudged, "drift": seen.drift}
    return {**asdict(seen), **told, "reports": reports}


def _head(seen: Seen) -> None:
    mode = "stacking decides" if seen.decides else "stacking is in shadow"
    print(f"{seen.host}: {mode}, live is {seen.live or 'nothing'}")
    if seen.order is not None:
        order = seen.order
        due = f", next look {_time(order['next'])}" if order["next"] else ""
        print(f"  watch  {_time(order['since'])} to {_time(order['until'])}: {seen.state}{due}")


def _reports(seen: Seen, last: str) -> str:
    """Print the new ones; the name of the newest there is."""
    for name, report in seen.reports:
        rates = ", ".join(
            f"{one['title']} {one['successes']}/{one['trials']}" for one in report["criteria"]
        )
        moment = datetime.fromisoformat(report["made"])
        print(f"  {moment:%Y-%m-%d %H:%M:%SZ}  {report['verdict']:<12} {rates}", flush=True)
        for reason in report["reasons"]:
            print(f"  {'':<20}  {reason}")
        last = name
    return last


def _unjudged(seen: Seen, said: str) -> str:
    """Print it if it was not said before."""
    if seen.unjudged and seen.unjudged != said:
        print(f"  ✗ the guard {seen.unjudged}")
        print("    after the last try it disables stacking; invoke logs shows what it reads")
    return seen.unjudged


def _time(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%SZ}"
