"""`invoke enable-stacking` and `disable-stacking`: flip the flag and prove the process has it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import about, exit_code, failed_fields, let_end, on_each, print_failed, select
from macd.cli.verb import confirm, emit, error_fields, not_agreed, same, verb
from macd.errors import ExitCode, MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.deploy.fleet import Results
    from macd.gate.flag import Flip, Flipped
    from macd.inventory import Host, Inventory

_HELP = {"dry-run": "only show whether it would be done, and why not"}
_WEIGHT = (
    "what stacking counts for, 1 to 100 %; then no steps follow (default: guard.steps, or 100)"
)


@verb(help={**_HELP, "weight": _WEIGHT})
def enable_stacking(
    _: object,
    env: str = "prod",
    host: str = "",
    weight: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Let stacking decide; needs a PASS of the newest gate report for what is live."""
    return _flip(
        "enable", env, host, inventory, _weight(weight), dry_run=dry_run, yes=yes, json=json
    )


@verb(help=_HELP)
def disable_stacking(
    _: object,
    env: str = "prod",
    host: str = "",
    dry_run: bool = False,
    yes: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Set stacking back to shadow: it is only logged, the weighted average decides."""
    return _flip("disable", env, host, inventory, None, dry_run=dry_run, yes=yes, json=json)


def _weight(text: str) -> int | None:
    from macd.host import envfile
    from macd.host.flag.flag_file import WEIGHT

    if not text:
        return None
    if not envfile.FLAGS[WEIGHT].match(text):
        raise UsageError(
            f"--weight {text}: a whole number from 1 to 100, in percent",
            hint="invoke disable-stacking leaves nothing to stacking" if text == "0" else "",
        )
    return int(text)


@dataclass(frozen=True)
class _Outcome:
    """How the flip ended on one host. warning: why the notification did not go out.

    unrecorded: why the journal here does not have it.
    """

    flipped: Flipped
    warning: str = ""
    unrecorded: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        more = {"warning": self.warning, "unrecorded": self.unrecorded}
        return {**asdict(self.flipped), **more}

    @property
    def exit_code(self) -> ExitCode | None:
        if self.flipped.result == "reverted":
            return ExitCode.REVERTED
        return ExitCode.FAILED if self.flipped.wrong or self.unrecorded else None


def _flip(
    kind: str,
    env: str,
    host: str,
    inventory: str,
    weight: int | None,
    *,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> ExitCode | None:
    from macd.deploy.fleet import Results
    from macd.gate import flag
    from macd.host.flag.flag_file import LIVE, SHADOW

    inv, hosts = select(inventory, env, host)
    several = len(hosts) > 1
    wanted = LIVE if kind == "enable" else SHADOW

    def at_once(host: Host) -> _Outcome:
        with flag.prepare(host, inv, wanted, weight) as flip:
            return _carry_out(kind, flip)

    if yes and not dry_run and (kind == "disable" or not several):  # no host waits for another
        return _show(
            kind, on_each(hosts, at_once, on_interrupt=let_end), several=several, json=json
        )

    with ExitStack() as sessions:
        flips = on_each(
            hosts, lambda h: sessions.enter_context(flag.prepare(h, inv, wanted, weight))
        )
        looks = Results(
            {n: _Outcome(flip.expected) for n, flip in flips.done.items()}, flips.failed
        )
        if looks.failed and kind == "enable":
            text = "" if weight is None else str(weight)
            options = same(env=env, inventory=inventory, weight=text)
            return _none_enabled(looks, options, json=json)
        if dry_run or not looks.done:
            return _show(kind, looks, several=several, json=json)
        if not yes:
            print_failed(looks.failed)
        if not confirm(_question(kind, looks), yes=yes):
            return not_agreed(json=json)

        def agreed(host: Host) -> _Outcome:
            if host.name in flips.failed:
                raise flips.failed[host.name]
            return _carry_out(kind, flips.done[host.name])

        return _show(kind, on_each(hosts, agreed, on_interrupt=let_end), several=several, json=json)


def _carry_out(kind: str, flip: Flip) -> _Outcome:
    from macd.deploy.rollout import operator

    flipped = flip.carry_out(operator())
    try:
        return _Outcome(flipped, _record(kind, flip.inventory, flip.host, flipped))
    except MacdError as error:  # the flip was made: show it all the same
        return _Outcome(flipped, unrecorded="; ".join(filter(None, (error.what, error.hint))))


def _question(kind: str, looks: Results[_Outcome]) -> str:
    hosts = []
    for name, look in looks.done.items():
        seen = "; it looks so already" if look.flipped.result == "already" else ""
        share = share_shown(look.flipped.weight if look.flipped.weighed else None)
        hosts.append(f"{name} ({look.flipped.release}{share}{seen})")
    return f"{kind} stacking on {', '.join(hosts)}?"


def _none_enabled(looks: Results[_Outcome], options: str, *, json: bool) -> ExitCode:
    """No host is enabled where one of several would not be: they would decide differently."""
    hint = list(dict.fromkeys(error.hint for error in looks.failed.values() if error.hint))
    ready = next(iter(looks.done), None)
    if ready:
        hint.append(f"for one host alone: invoke enable-stacking --host {ready}{options}")
    error = RefusedError(
        f"stacking was enabled on no host, because of {', '.join(looks.failed)}",
        why="\n".join(
            about(name, f"{error.what}\n{error.why}".strip())
            for name, error in looks.failed.items()
        ),
        live="flags as before on every host",
        hint="\n".join(hint),
    )
    if not json:
        raise error
    emit({**_fields(looks), **error_fields(error)})
    return error.exit_code


def _record(kind: str, inventory: Inventory, host: Host, ended: Flipped) -> str:
    """Record the flip in the journal and notify people; a note if notifying did not work."""
    from macd.deploy.notify import notify
    from macd.deploy.rollout import operator
    from macd.journal import Journal

    if ended.result == "already":
        return ""
    fields = {
        "env": host.env,
        "host": host.name,
        "who": operator(),
        "release": ended.release,
        "value": ended.value,
        "weight": ended.weight,
        **({} if ended.weighed else {"weighed": False}),
        "result": ended.result,
        "reason": ended.reason,
        "wrong": ended.wrong,
        "report": ended.report,
    }
    journal = Journal(inventory.state_dir / "journal.jsonl")
    journal.append(f"flag.{kind}", fields, now=datetime.now(UTC))
    title = f"macd {host.env}: {kind} stacking on {host.name}: {ended.result}"
    good = ended.result == "set" and not ended.wrong
    body = ended.reason or ended.wrong or str(ended.release)
    return notify(inventory.notify, title, body, good=good)


def _show(kind: str, results: Results[_Outcome], *, several: bool, json: bool) -> ExitCode:
    if json:
        fields = _fields(results)
        emit(fields if several else fields["hosts"][0])
    else:
        for ended in results.done.values():
            print("\n".join(_lines(kind, ended.flipped)))
            if ended.warning:
                print(f"  note   {ended.warning}")
            if ended.unrecorded:
                print(f"  ✗ not recorded here: {ended.unrecorded}")
        print_failed(results.failed)
    return exit_code([ended.exit_code for ended in results.done.values()], results.failed)


def _fields(results: Results[_Outcome]) -> dict[str, Any]:
    hosts = [ended.fields for ended in results.done.values()]
    return {"hosts": hosts, **failed_fields(results.failed)}


def _lines(kind: str, ended: Flipped) -> list[str]:
    decides = decides_shown(ended.weight, weighed=ended.weighed)
    mode = decides if ended.value == "1" else "stacking is in shadow"
    runs = f"process {ended.pid} runs" if ended.pid else "no process runs"
    if len(ended.pids) > 1:
        runs = f"{len(ended.pids)} processes run"
    untouched = f"{mode} already; nothing was restarted"
    if ended.ended:
        untouched = f"{mode}; the change that was interrupted was ended, the service restarted"
    heads = {
        "set": f"{'✗' if ended.wrong else '✓'} {ended.host}: {mode}; {runs} with it",
        "already": f"✓ {ended.host}: {untouched}",
        "would": f"{ended.host}: would {_move(kind, ended)} and restart the service",
        "reverted": f"✗ {ended.host}: put back, {mode}",
    }
    lines = [heads[ended.result], f"  live   {ended.release}"]
    for label, text in (
        ("steps", _steps(ended) or _cancelled(ended)),
        ("why", ended.reason),
        ("wrong", ended.wrong),
        ("proof", ended.report),
        ("note", ended.lost),
    ):
        if text:
            lines.append(f"  {label:<6} {text}")
    return lines


def _move(kind: str, ended: Flipped) -> str:
    """What a dry run would do, from what stacking counts for in the process."""
    was, to = ended.was_weight, ended.weight
    if not ended.weighed:
        return f"{kind} stacking"
    if kind == "enable" and was and was != to:
        return f"{'raise' if to > was else 'lower'} stacking from {was} % to {to} %"
    return f"{kind} stacking{share_shown(to)}"


def _cancelled(ended: Flipped) -> str:
    steps = ", ".join(f"{step} %" for step in ended.cancels)
    return f"the guard's steps to {steps} end: --weight sets one weight" if steps else ""


def share_shown(weight: int | None) -> str:
    """What follows "stacking decides": its weight; nothing where nobody knows it."""
    return f" with {weight} %" if weight else ""


def decides_shown(weight: int | None, *, weighed: bool) -> str:
    """Who decides, where stacking does."""
    return f"stacking decides{share_shown(weight)}" if weighed else "the models decide"


def _steps(ended: Flipped) -> str:
    if not ended.steps:
        return ""
    weights = ", then ".join(f"{step} %" for step in ended.steps)
    return f"the guard raises it to {weights}, each after a watch without FAIL"
