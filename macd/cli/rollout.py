"""How a rollout is shown: its plan, each host's progress, how it ended; and where a rollback goes.

Several hosts have a line each on a terminal, and lines that begin with their names elsewhere. A
single host's progress is printed as it comes, without its name.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from macd.cli.hosts import Lines, failed_fields
from macd.cli.verb import emit, error_fields, safe
from macd.errors import ExitCode, MacdError, RefusedError
from macd.sizes import size

if TYPE_CHECKING:
    from rich.console import Console, Group

    from macd.deploy.follow import Outcome
    from macd.deploy.plan import Plan
    from macd.deploy.rollback import RollbackTarget
    from macd.deploy.rollout import Result, Rollout
    from macd.inventory import Host, Inventory

_BAR = 24
_MOST_FILES = 60  # of a plan; an application of one's own may have thousands
_EVERY_S = 0.1
_WORDS = {
    "looking": "locked, reading the state of the host",
    "recovered": "ended an interrupted activation first",
    "staged": "staged: signature and every hash verified on the host",
    "verified": "the host has taken over",
    "checking": "checking the new release beside the old one",
    "switching": "switching",
    "switched": "switched",
    "restarting": "restarting",
    "restarted": "a new process answers with the new release",
    "soaking": "soaking",
    "awaiting confirmation": "waiting for a confirmation over a fresh connection",
    "confirmed": "confirmed over a fresh connection",
    "committed": "committed",
    "reverting": "reverting",
    "reverted": "reverted",
    "contact lost": "LOST CONTACT; the host goes on by itself, trying to reach it again",
    "contact again": "contact again",
}


def summary(plan: Plan) -> list[str]:
    """A plan in a few lines."""
    if plan.empty:
        return [_nothing_to_do(plan)]
    lines = [f"live   {plan.live or 'nothing'}", f"new    {plan.release}"]
    counts = {how: [d for d in plan.delta if d.how == how] for how in ("new", "changed", "gone")}
    counted = ", ".join(f"{len(rows)} {how}" for how, rows in counts.items() if rows)
    same = sum(1 for d in plan.delta if d.how == "same")
    if plan.delta:
        lines.append(f"files  {counted or 'none differ'}; {same} the same")
    also = [diff.name for diff in plan.diffs if diff.by == "deploy"]
    if also:
        lines.append(f"also   {', '.join(also)}")
    sent = f"{size(plan.send_bytes)} (about {size(plan.wire_bytes)} compressed)"
    sending = f"{plan.blobs} files, {sent}" if plan.blobs else "nothing, all files are there"
    lines.append(f"send   {sending}; {plan.round_trips} round trips")
    lines.append(f"back   {rollback_line(plan)}")
    return lines + [f"note   {note}" for note in plan.notes]


def _refused(plan: Plan) -> list[str]:
    """First of all, for the reasons stand at the end."""
    if not plan.problems:
        return []
    count = len(plan.problems)
    why = plan.problems[0].what if count == 1 else f"for {count} reasons, named below"
    return [f"✗ a deploy would be refused: {why}"]


def _drifted(plan: Plan) -> list[str]:
    return [f"drift  {difference}" for difference in plan.drift]


def _nothing_to_do(plan: Plan) -> str:
    if plan.unhealthy:
        return f"nothing differs, but {plan.release} does not serve well: {plan.unhealthy}"
    if plan.drift:
        return f"nothing to do: {plan.release} is live and serves, but something has drifted"
    return f"nothing to do: {plan.release} is live and everything is as it should be"


def rollback_line(plan: Plan) -> str:
    """ "rollback ready" and by what was checked, or why not: loud where there should be one."""
    target, why = plan.rollback.get("release"), plan.rollback.get("why")
    if plan.rollback.get("ready"):
        checked = "files as signed, runtime whole (each file's size) and its Python runs"
        return f"rollback ready: {target}: {checked}"
    if target:
        return (
            f"✗ rollback target not usable: {why}; a failed release can't be reverted to {target}"
        )
    return f"no rollback: {why or 'nothing was live here before'}"


def print_plan(plan: Plan) -> None:
    """The whole plan: summary, files, diffs, drift, and why it would be refused."""
    print(f"{plan.host}")
    for line in [*_refused(plan), *summary(plan)]:
        print(f"  {line}")
    rows = [row for row in plan.delta if row.how != "same"]
    for row in rows[:_MOST_FILES]:
        print(f"    {row.how:<8}{row.path}  {size(row.size)}")
    if len(rows) > _MOST_FILES:
        print(f"    and {len(rows) - _MOST_FILES:,} more files (--json names them)")
    for diff in plan.diffs:
        by = "" if diff.by == "deploy" else "; invoke provision puts it right"
        print(f"  {diff.name} differs{by}")
        for line in diff.text.splitlines():
            print(f"    {line}")
    if plan.steps:
        print(f"  steps  {' > '.join(plan.steps)}")
    for line in _drifted(plan):
        print(f"  {line}")
    for problem in plan.problems:
        print(f"  ✗ would be refused: {problem.what}")
        if problem.hint:
            print(f"    do: {problem.hint}")


class Progress:
    """Prints what a deploy of a host does, as it happens; nothing with `quiet`.

    Args:
        say: takes each line; None prints it here, and what is sent in place on a terminal.
        one_line: all that is shown of the host is the last line that `say` was given.
    """

    def __init__(
        self, *, quiet: bool, say: Callable[[str], None] | None = None, one_line: bool = False
    ) -> None:
        self._quiet = quiet
        self._say = say
        self._one_line = one_line
        self._tty = say is None and sys.stdout.isatty()
        self._began = 0.0
        self._printed = 0.0
        self._open_line = False
        self._confirmed = False

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Print one event: a step of ours, or a state that the host reports."""
        if self._quiet:
            return
        if kind == "looking":  # the next host: its rate is its own
            self._began = self._printed = 0.0
            self._confirmed = False
        self._confirmed |= kind == "confirmed"
        if kind == "awaiting confirmation" and self._confirmed:
            return  # the host sent it before it was asked; it arrives afterwards
        if kind == "sending":
            self._sending(fields["sent"], fields["total"])
        elif kind == "planned":
            self._planned(fields["plan"])
        elif kind == "staging":
            self._line("  building the runtime and staging" if fields["runtime"] else "  staging")
        elif kind in _WORDS:
            self._line(f"  {_mark(kind)} {_WORDS[kind]}{_detail(kind, fields)}")

    def _planned(self, plan: Plan) -> None:
        if self._one_line and not plan.empty:
            self._line(f"  planned: {size(plan.send_bytes)} to send")
            return
        # Where something is to be done, the drift is the plan's to show.
        for line in [*summary(plan), *(_drifted(plan) if plan.empty else ())]:
            self._line(f"  {line}")

    def _line(self, text: str) -> None:
        if self._say is not None:
            self._say(text)
            return
        if self._open_line:
            print()
            self._open_line = False
        print(text, flush=True)

    def _sending(self, sent: int, total: int) -> None:
        now = time.monotonic()
        if not self._began:
            self._began = now - 1e-3
        last = sent == total
        in_place = self._tty or self._one_line
        if not last and (not in_place or now - self._printed < _EVERY_S):
            return
        self._printed = now
        rate = sent / (now - self._began)
        full = round(_BAR * sent / max(1, total))
        text = (
            f"  sending [{'█' * full}{'·' * (_BAR - full)}] "
            f"{size(sent)} of {size(total)}  {size(rate)}/s"
        )
        if self._tty:
            print(f"\r{text}\x1b[K", end="", flush=True)
            self._open_line = True
        else:
            self._line(text)


def _mark(kind: str) -> str:
    if kind in ("reverting", "reverted", "contact lost"):
        return "✗"
    return "✓" if kind in ("staged", "switched", "restarted", "confirmed", "committed") else "·"


def _detail(kind: str, fields: Mapping[str, Any]) -> str:
    if kind == "soaking":
        return f" for {fields['seconds']:g} s"
    if kind == "restarted":
        return f" (pid {fields['pid']})"
    if kind in ("reverting", "reverted") and fields.get("reason"):
        return f": {fields['reason']}"
    if kind == "recovered":
        return f": {fields['outcome']}"
    return ""


class Shown:
    """Where each host's progress goes, from whichever thread; use it as a context manager."""

    def __init__(
        self, waves: Sequence[Sequence[Host]], *, quiet: bool, unreachable: Sequence[str] = ()
    ) -> None:
        hosts = [host for wave in waves for host in wave]
        self._quiet = quiet
        self._several = len(hosts) > 1
        self._lines = Lines(hosts)
        self._board: Board | None = None
        if self._several and not quiet and sys.stdout.isatty():
            from rich.console import Console

            console = Console()
            if not console.is_dumb_terminal:
                self._board = Board(waves, console)
                self._board.rows.update(dict.fromkeys(unreachable, "✗ can't be reached, passed by"))

    def __enter__(self) -> Shown:
        if self._board is not None:
            self._board.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()
        with self._lines:
            pass  # they are over: from now on threads that go on are silent

    @contextlib.contextmanager
    def host(self, name: str, begins: str = "") -> Iterator[Progress]:
        """The progress of one host, from its beginning to its end or error."""
        if begins:
            self._say(name, begins)
        say = None if not self._several else (lambda text: self._say(name, text))
        try:
            yield Progress(quiet=self._quiet, say=say, one_line=self._board is not None)
        except MacdError as error:
            if self._several:
                self._say(name, f"  ✗ {error.what}")
            raise

    def ended(self, name: str, text: str) -> None:
        """How it ended for one of several hosts, where its progress doesn't say it."""
        if self._several:
            self._say(name, f"  {text}")

    def interrupted(self, running: Sequence[str]) -> None:
        """The first Ctrl-C: who goes on, and what a second one does."""
        names = ", ".join(running)
        many = len(running) > 1
        print(
            f"\ninterrupted: {names} {'go' if many else 'goes'} on to the end; "
            "no other host is started\n"
            f"  Ctrl-C again waits no longer: what {'they do' if many else 'it does'} then ends "
            "on the host, unconfirmed",
            file=sys.stderr,
            flush=True,
        )

    def _say(self, name: str, text: str) -> None:
        if self._quiet:
            return
        if self._board is not None:
            self._board.say(name, safe(text).strip())
            return
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the host goes on
            self._lines.say(name, text)


class Board:
    """One line per host, updated in place: its name and its newest progress.

    Of more hosts than the terminal has lines, those that spoke last are shown; all at the end.
    """

    def __init__(self, waves: Sequence[Sequence[Host]], console: Console) -> None:
        self.rows = {
            host.name: f"waiting for wave {number}" if number > 1 else "waiting"
            for number, wave in enumerate(waves, start=1)
            for host in wave
        }
        self._console = console
        self._live: Any = None
        self._spoke: dict[str, float] = {}
        self._is_over = False

    def open(self) -> None:
        from rich.live import Live

        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8)
        self._live.start(refresh=True)

    def say(self, name: str, text: str) -> None:
        self.rows[name] = text
        self._spoke[name] = time.monotonic()

    def close(self) -> None:
        self._is_over = True
        self._live.stop()

    def _table(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        names = list(self.rows)
        room = self._console.size.height - 2  # a line for the rest, and one for the cursor
        if len(names) > room + 1 and not self._is_over:
            spoke = dict(self._spoke)
            newest = sorted(names, key=lambda name: -spoke.get(name, 0.0))[: max(1, room)]
            names = [name for name in names if name in newest]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name in names:
            table.add_row(Text(name), Text(self.rows[name].replace("\n", " ")))
        more = len(self.rows) - len(names)
        rest = [Text(f"and {more} more hosts")] if more else []
        return Group(table, *rest)


def print_end(result: Result, kind: str, options: str = "") -> None:
    """What is live where, after all of it. `options`: those that a look from here needs too."""
    for outcome in result.outcomes:
        print(_end(outcome, kind, options))
    for name in result.untouched:
        print(f"{name}: untouched")
    if result.stopped:
        print(result.stopped)
    for warning in result.warnings:
        print(f"note: {warning}")


def _end(outcome: Outcome, kind: str, options: str) -> str:
    if outcome.result == "nothing" and outcome.healthy is False:
        again = f"invoke deploy --restart --release {outcome.release}{options}"
        what = f"{outcome.release} is live already, but does not serve well: {outcome.serving}"
        return f"✗ {outcome.host}: {what}\n  do: {again}; invoke doctor{options}"
    if outcome.result == "nothing":
        return f"{outcome.host}: nothing to do, {outcome.live} is live"
    if outcome.result == "committed":
        took = f" ({outcome.seconds:.1f} s)" if outcome.seconds else ""  # unknown where attached
        first = f"✓ {outcome.host}: {outcome.live} is live{took}"
        return "\n".join([first, *_switched_with(outcome, kind), *_in_shadow(outcome, options)])
    lines = [f"✗ {outcome.host}: the {kind} of {outcome.release} was reverted"]
    lines += [f"  why: {outcome.reason}"] if outcome.reason else []
    lines += _set_aside(outcome)
    if outcome.healthy is False:
        lines.append(f"  now: NOTHING SERVES WELL: {outcome.serving}")
        back = f"invoke rollback --to ID{options}"
        lines.append(f"  do: invoke doctor{options}; {back} goes to one that was live before")
        return "\n".join(lines)
    lines.append(f"  now: {outcome.live or 'nothing'} is live ({outcome.serving})")
    look = f"invoke status{options}; invoke doctor{options}"
    stays = "" if outcome.live == outcome.release else "; the failed release stays there for study"
    lines.append(f"  do: {look}{stays}")
    return "\n".join(lines)


def _in_shadow(outcome: Outcome, options: str) -> list[str]:
    """After a rollback, where stacking had decided: that it doesn't now, and the way there."""
    if not outcome.shadow:
        return []
    return [
        f"  it came back in shadow ({outcome.shadow}); to have stacking decide again:",
        f"  invoke shadow-gate{options}, then invoke enable-stacking{options}",
    ]


def _switched_with(outcome: Outcome, kind: str) -> list[str]:
    """What went back with a release, and where the texts are that people had changed."""
    lines = []
    if kind == "rollback":
        files = [f"  put back as they were: {', '.join(outcome.files)}"] if outcome.files else []
        keys = [f"  set in .env as they were: {', '.join(outcome.keys)}"] if outcome.keys else []
        lines = [*files, *keys, "  everything else in .env is as it was a moment ago"]
    return lines + _set_aside(outcome)


def _set_aside(outcome: Outcome) -> list[str]:
    text = "what was changed on the host since the last deploy is kept there"
    return [f"  {text}: {path}" for path in outcome.kept]


def as_fields(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For --json."""
    from dataclasses import asdict

    return [{**asdict(outcome), "well": outcome.healthy} for outcome in outcomes]


def rollback_targets(
    run: Rollout, inventory: Inventory, hosts: list[Host], to: str
) -> tuple[list[RollbackTarget], dict[str, MacdError]]:
    """Where each host would go, and which can't be reached: they may run what is undone."""
    from macd.deploy import rollback
    from macd.deploy.state import observe_each

    looked, unreachable = observe_each(hosts, inventory)
    unseen = max((run.may_be_live(name) for name in unreachable), default=0)
    return rollback.targets(looked, to, unseen), unreachable


def print_targets(targets: list[RollbackTarget], unreachable: dict[str, MacdError]) -> None:
    for target in targets:
        print(f"{target.host}: {target}")
    for name, error in unreachable.items():
        print(f"{name}: passed by: {error.what}")


def dry_rollback(
    targets: list[RollbackTarget],
    unreachable: dict[str, MacdError],
    options: str,
    env: str,
    to: str,
    *,
    json: bool,
) -> ExitCode | None:
    """Show where each host would go; with the error where none goes, or some can't be reached."""
    from macd.deploy.rollout import passed_by

    error: MacdError | None = None
    if unreachable:
        error = passed_by("rollback", unreachable, options, release=to)
    elif not any(target.to and target.possible is None for target in targets):
        error = nothing_to_roll_back(env, to, any(target.provisioned for target in targets))
    if not json:
        print_targets(targets, unreachable)
        if error is not None:
            raise error
        return None
    goes_to = {target.host: None if target.stays else target.to for target in targets}
    changes = {target.host: target.changes for target in targets if target.goes}
    fields = {
        "dry_run": True,
        "to": goes_to,
        "changes": changes,
        **failed_fields(unreachable),
    }
    emit({**fields, **(error_fields(error) if error else {})})
    return error.exit_code if error else None


def nothing_to_roll_back(env: str, to: str, provisioned: bool) -> RefusedError:
    """The error where no host has a release to go back to, or never had `to`."""
    if not provisioned:
        live = "nothing, as before"
        return RefusedError(
            "nothing is provisioned", live=live, hint=f"invoke provision --env {env}"
        )
    return RefusedError(
        "there is nothing to roll back to",
        why=f"{to} was never live there" if to else "no other release that is good was live there",
        live="what was live before; nothing was changed",
        hint=f"invoke history --env {env} shows what was live there; --to ID names one of them",
    )
