"""What `invoke train` and its verbs print: checks, a live line, figures, failures, states.

Nothing here asks a host or decides an exit code.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from macd.cli.verb import safe
from macd.errors import MacdError

if TYPE_CHECKING:
    from macd.jobs.preflight import Check
    from macd.jobs.progress import Progress
    from macd.jobs.remedies import Failure

_TICKS = {"ok": "✓", "warn": "!", "error": "✗"}
_EVERY_S, _FIT_EVERY_S = 10.0, 1.0
_SHOWN_AT_ONCE = ("oom", "warning", "checkpoint-ignored", "resumed")


def step(name: str, text: str, level: str = "ok") -> None:
    first, *more = safe(text).splitlines() or [""]
    print(f"{_TICKS[level]} {name:<10} {first}", flush=True)
    for line in more:
        print(f"  {'':<10} {line}", flush=True)


def show_checks(checks: list[Check]) -> None:
    for check in checks:
        step(check.name, check.detail, check.level)
        if check.hint and check.level != "ok":
            print(f"  {'':<10} do: {check.hint}")


class Shown:
    """Shows a run: a live line on a terminal, else now and then a plain line."""

    def __init__(
        self,
        host: str,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from macd.jobs.progress import Progress

        self.progress = Progress()
        self.events: list[dict[str, Any]] = []
        self._host = host
        self._clock = clock
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._stack = ExitStack()
        self._status: Any = None
        self._printed = ""
        self._fit = ("", "")
        self._last = -_EVERY_S
        self._contact = True

    def __enter__(self) -> Shown:
        if self._terminal:
            from rich.console import Console

            self._status = Console().status("waiting for the first event", spinner="dots")
            self._stack.enter_context(self._status)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- called by follow

    def past(self, events: list[dict[str, Any]]) -> None:
        self._learn(events)
        if events:
            self._say(f"resuming after {len(events)} events stored here")

    def news(self, events: list[dict[str, Any]], status: dict[str, Any]) -> None:
        from macd.application import event_line

        before = self.progress.stage
        self._learn(events)
        if len(events) <= 50:  # a viewer that comes late sees the newest only
            for event in events:
                if event.get("event") in _SHOWN_AT_ONCE:
                    self._say(safe(event_line(event)).strip())
        self._show(at_once=self.progress.stage != before)

    # -- called by the contact

    def lost(self, error: MacdError, *, gives_up_in: float) -> None:
        if self._contact:
            self._say(f"LOST CONTACT with {self._host}: {error.what}")
            self._say("  the run there goes on; reconnecting, Ctrl-C stops only the following")
        self._contact = False
        if self._status is not None:
            self._status.update(f"LOST CONTACT, trying for {gives_up_in:.0f} s more")

    def back(self) -> None:
        self._contact = True
        self._say(f"contact with {self._host} is back")

    def _learn(self, events: list[dict[str, Any]]) -> None:
        self.progress = self.progress.after(events)
        self.events += events

    def _show(self, *, at_once: bool) -> None:
        line = safe(self.progress.line())
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(line))
            return
        fit = (self.progress.model, self.progress.fold)
        due = self._last + (_EVERY_S if fit == self._fit else _FIT_EVERY_S)
        if line != self._printed and (at_once or self._clock() >= due):
            self._printed, self._fit, self._last = line, fit, self._clock()
            print(f"  {line}", flush=True)

    def _say(self, text: str) -> None:
        if self._status is not None:
            self._status.console.print(text, markup=False, highlight=False)
        else:
            print(f"  {text}", flush=True)


class Quiet(Shown):
    """Prints nothing, for --json."""

    def __init__(self, host: str) -> None:
        super().__init__(host, terminal=False)

    def _show(self, *, at_once: bool) -> None: ...

    def _say(self, text: str) -> None: ...


def show_summary(events: list[dict[str, Any]]) -> None:
    """The figures and criteria, in the training's own lines."""
    from macd.application import event_line

    for event in events:
        if event.get("event") == "summary":
            print(safe(event_line(event)))


def show_failure(run: str, state: str, failure: Failure, folder: str) -> None:
    """Which stage failed, why, the end of its log, the remedy."""
    kind = "at" if "." in failure.stage else "in stage"  # train.artefacts is no stage
    where = f" {kind} {failure.stage}" if failure.stage else ""
    print(f"✗ {state}{where}: {safe(failure.reason)}", file=sys.stderr)
    for label, text in (("why", failure.detail), ("end of the log", failure.log)):
        if text:
            body = safe(text).replace("\n", "\n    ")
            print(f"  {label}:\n    {body}", file=sys.stderr)
    if failure.remedy:
        print(f"  do: {safe(failure.remedy)}", file=sys.stderr)
    print(f"  run {run}; log and events: {folder}", file=sys.stderr)


def show_status(status: Mapping[str, Any], progress: Progress) -> None:
    from macd.sizes import minutes

    print(f"{status['state']:<10} {status['run']}  {safe(status['reason'])}".rstrip())
    if status["state"] == "RUNNING":
        print(f"  {safe(progress.line())}")
        if status.get("started"):
            print(f"  for {minutes(status['now'] - status['started'])}")
        beat = status.get("heartbeat")
        if beat and status["now"] - beat > 60:
            print(f"  ! its last heartbeat is {minutes(status['now'] - beat)} old")


def show_workers(workers: Sequence[Mapping[str, str]]) -> None:
    """The other hosts of a run's cluster."""
    for worker in workers:
        print(f"  {worker['host']}: {worker['state']}  {safe(worker['reason'])}".rstrip())


def show_schedule(schedule: Mapping[str, Any]) -> None:
    """One line: what trains by itself on this host, and when it does next."""
    timer, waits = schedule["timer"], schedule["unsent"]
    due = timer["next"] or "not known" if timer and timer["runs"] else "never: no timer runs"
    if timer is None:
        due = "as its crontab says"
    more = f"; {waits} messages wait to be sent" if waits else ""
    print(f"  by itself: {safe(schedule['plan']['on'])}, next {safe(due)}{more}")


def show_last_seen(events: list[dict[str, Any]]) -> None:
    """The last events of a run whose host can't be reached."""
    from macd.jobs.progress import Progress

    if events:
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(Progress().after(events).at))
        print(f"last seen {at}: {safe(Progress().after(events).line())}")


def next_command(result: Mapping[str, Any]) -> str:
    """The command that follows a training."""
    if result.get("own") and not result.get("complete"):
        return "invoke train, all stages: no release is made of one stage alone"
    blocked = result.get("blocked_by") or []
    symbols = result.get("symbols") or []
    out = [name for name in symbols if any(said.startswith(f"{name} ") for said in blocked)]
    if 0 < len(out) < len(symbols):
        return f"invoke release --without {','.join(out)}"
    if blocked:
        return f"invoke release refuses it for {', '.join(blocked)}; --accept REASON takes it"
    return "invoke release"
