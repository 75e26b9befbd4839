"""`invoke monitor`: the guard's watch after enabling, live, and what it did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import Lines, exit_code, failed_fields, on_each, select
from macd.cli.verb import emit, same, verb
from macd.errors import ExitCode, MacdError

if TYPE_CHECKING:
    from macd.gate.flag import Seen
    from macd.inventory import Host, Inventory
    from macd.ssh.session import Session

_POLL_S = 2.0
_ENDS = {
    "none": "stacking was never enabled here with a guard",
    "over": "the watch is over, stacking stays",
    "failed": "the guard disabled stacking",
    "ended": "the watch ended",
}
_UNJUDGED = """\
  ✗ the guard {}
    after the last try it disables stacking; invoke logs shows what it reads"""


@verb(
    interrupted="the guard goes on on the host",
    help={
        "once": "show the state once and exit; the guard keeps running on the host",
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
) -> ExitCode:
    """Show the guard's reports to the end; exit 4 if it disabled, 1 if no guard."""
    inv, hosts = select(inventory, env, host)
    several = len(hosts) > 1
    if json:
        looks = on_each(hosts, lambda host: _once(inv, host))
        rows = [{**_fields(seen), "warning": warning} for seen, warning in looks.done.values()]
        emit({"hosts": rows, **failed_fields(looks.failed)} if several else rows[0])
    else:

        def show(watched: Host) -> tuple[Seen, str]:
            named = watched.name if several else host
            options = same(env=env, host=named, inventory=inventory)
            return _shown(inv, watched, terminal, options, once=once)

        with Lines(hosts) as terminal:
            looks = on_each(hosts, show, parallel=len(hosts))
    return exit_code([_exit(seen) for seen, _ in looks.done.values()], looks.failed)


def _once(inventory: Inventory, host: Host) -> tuple[Seen, str]:
    from macd.gate import flag
    from macd.ssh.session import open_session

    with open_session(host, inventory) as session:
        seen = flag.look(session, host, inventory)
    return seen, _catch_up(seen, host, inventory)


def _shown(
    inventory: Inventory, host: Host, terminal: Lines, options: str, *, once: bool
) -> tuple[Seen, str]:
    """Show the watch on one host to its end, and then how it ended."""
    try:
        seen, warning = _watched(inventory, host, terminal, once=once)
    except MacdError as error:
        terminal.host_failed(host.name, error)
        raise
    for line in _ending(seen, warning, options):
        terminal.say(host.name, line)
    return seen, warning


def _ending(seen: Seen, warning: str, options: str) -> Iterator[str]:
    from macd.deploy.drift import to_what_was_proved

    if seen.over:
        yield f"  {_ENDS[seen.state]}" + (f": {seen.watch['reason']}" if seen.watch else "")
    if seen.idle:
        after = "nothing is left to watch"
        if not seen.dead:
            after = "the watch ends at the guard's next look"
        yield f"  stacking is not live any more: {after}"
    if seen.state == "failing" and seen.watch:
        yield f"  ✗ the guard is taking stacking back: {seen.watch['reason']}"
        if seen.watch.get("trouble"):
            yield f"    {seen.watch['trouble']}; it is tried again"
    if seen.unwatched:
        yield "  ✗ the guard is dead: its loop was killed, or its timer stopped; nobody watches"
        yield f"    do: invoke disable-stacking{options}"
        yield f"        or invoke shadow-gate{options}, then invoke enable-stacking{options}:"
        yield "        it begins a new watch, and needs a report that still holds"
    for text in seen.drift:
        yield f"  ✗ {text}"
    if seen.drift:
        yield f"    do: invoke disable-stacking{options}"
        yield f"        or {to_what_was_proved(seen.stacking, options)}"
    if warning:
        yield f"  note   {warning}"


def _watched(inventory: Inventory, host: Host, terminal: Lines, *, once: bool) -> tuple[Seen, str]:
    """Show it until nothing more comes; no report is shown twice when a link is lost."""
    from macd.gate import flag

    def look(session: Session) -> Seen:
        return flag.look(session, host, inventory, last)

    last, idle, unjudged = "", 0, ""
    with terminal.contact(host, inventory) as contact:
        seen = contact.use(look)
        for line in _head(seen):
            terminal.say(host.name, line)
        while True:
            for name, report in _reports(seen):
                terminal.say(host.name, report)
                last = name
            if seen.unjudged and seen.unjudged != unjudged:
                terminal.say(host.name, _UNJUDGED.format(seen.unjudged))
            unjudged = seen.unjudged
            idle = idle + 1 if seen.idle else 0  # twice: not while it is being enabled
            if seen.over or seen.dead or once or idle > 1:
                return seen, _catch_up(seen, host, inventory)
            terminal.pause(_POLL_S)
            seen = contact.use(look)


def _catch_up(seen: Seen, host: Host, inventory: Inventory) -> str:
    """Record and notify each raise and the end of a watch once; a note if that did not work."""
    try:
        return _caught_up(seen, host, inventory)
    except MacdError as error:  # what the guard did is shown all the same
        return f"not recorded here: {error.what}; {error.hint}"


def _caught_up(seen: Seen, host: Host, inventory: Inventory) -> str:
    from macd.deploy.notify import notify
    from macd.gate import flag

    notes = []
    for step in flag.new_raises(seen, host, inventory):
        title = f"macd {host.env}: the guard raised stacking to {step['weight']} % on {host.name}"
        body = f"{step['verdict']} at {step['was_weight']} %, {step['at']}"
        notes.append(notify(inventory.notify, title, body, good=True))
    if flag.catch_up(seen, host, inventory) and seen.watch is not None:
        title = f"macd {host.env}: {_ENDS[seen.state]} on {host.name}"
        good = seen.state != flag.FAILED
        notes.append(notify(inventory.notify, title, seen.watch["reason"], good=good))
    return next(filter(None, notes), "")


def _exit(seen: Seen) -> ExitCode | None:
    if seen.unwatched or seen.unjudged or seen.state == "failing" or seen.drift:
        return ExitCode.FAILED
    return ExitCode.REVERTED if seen.state == "failed" else None


def _fields(seen: Seen) -> dict[str, Any]:
    reports = [{"name": name, **report} for name, report in seen.reports]
    derived: dict[str, Any] = {"state": seen.state, "unjudged": seen.unjudged, "drift": seen.drift}
    derived["order"] = seen.watch  # its name up to 0.1
    return {**asdict(seen), **derived, "reports": reports}


def _head(seen: Seen) -> Iterator[str]:
    from macd.cli.flag import decides_shown

    weight = seen.stacking.get("weight") or {}
    decides = decides_shown(weight.get("running"), weighed=seen.weighed)
    mode = decides if seen.decides else "stacking is in shadow"
    yield f"{seen.host}: {mode}, {f'live is {seen.live}' if seen.live else 'nothing is live'}"
    if seen.watch is not None:
        watch = seen.watch
        due = f", next look {_time(watch['next'])}" if watch["next"] else ""
        yield f"  watch  {_time(watch['since'])} to {_time(watch['until'])}: {seen.state}{due}"
    for step in weight.get("raised", ()):
        yield f"  raised {_time(step['at'])}: from {step['from']} % to {step['to']} %"
    if weight.get("steps"):
        yield f"  steps  {_steps(weight)}"


def _steps(weight: Mapping[str, Any]) -> str:
    later = ", then ".join(f"{step} %" for step in weight["steps"])
    return f"next {later}" + (f"; it waits: {weight['waits']}" if weight["waits"] else "")


def _reports(seen: Seen) -> Iterator[tuple[str, str]]:
    """The name of each new report and what it says."""
    for name, report in seen.reports:
        rates = ", ".join(
            f"{row['title']} {row['successes']}/{row['trials']}" for row in report["criteria"]
        )
        moment = datetime.fromisoformat(report["made"])
        lines = [f"  {moment:%Y-%m-%d %H:%M:%SZ}  {report['verdict']:<12} {rates}"]
        lines += [f"  {'':<20}  {reason}" for reason in report["reasons"]]
        yield name, "\n".join(lines)


def _time(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M:%SZ}"
