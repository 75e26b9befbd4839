"""How plans, progress and ends of deploys look on a terminal, and as plain lines without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from macd.sizes import size

if TYPE_CHECKING:
    from macd.deploy.follow import Outcome
    from macd.deploy.plan import Plan
    from macd.deploy.rollout import Result

_BAR = 24
_EVERY_S = 0.1
_WORDS = {
    "looking": "locked, looking at what is there",
    "recovered": "ended an interrupted activation first",
    "staged": "staged: signature and every hash verified on the host",
    "verified": "the host has taken over",
    "checking": "the new release proves itself beside the old one",
    "switching": "switching",
    "switched": "switched",
    "restarting": "restarting",
    "restarted": "a new process answers with the new release",
    "soaking": "soaking",
    "awaiting confirmation": "waiting for a confirmation over a fresh connection",
    "confirmed": "confirmed over a fresh connection",
    "committed": "committed",
    "reverting": "going back",
    "reverted": "reverted",
    "contact lost": "LOST CONTACT; the host goes on by itself, trying to reach it again",
    "contact again": "contact again",
}


class Progress:
    """Tells what a deploy of a host does, as it happens; nothing with `quiet`.

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
        """One event: a step of ours, or a state the host has told."""
        if self._quiet:
            return
        if kind == "looking":  # the next host: its rate is its own
            self._began = self._printed = 0.0
            self._confirmed = False
        self._confirmed |= kind == "confirmed"
        if kind == "awaiting confirmation" and self._confirmed:
            return  # the host told it before it was asked, and is heard afterwards
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
        for line in summary(plan):
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


def summary(plan: Plan) -> list[str]:
    """A plan in a few lines."""
    if plan.empty:
        return [_nothing_to_do(plan)]
    lines = [f"live   {plan.live or 'nothing'}", f"new    {plan.release}"]
    counts = {how: [d for d in plan.delta if d.how == how] for how in ("new", "changed", "gone")}
    told = ", ".join(f"{len(found)} {how}" for how, found in counts.items() if found)
    same = sum(1 for d in plan.delta if d.how == "same")
    if plan.delta:
        lines.append(f"files  {told or 'none differ'}; {same} the same")
    also = [diff.name for diff in plan.diffs if diff.by == "deploy"]
    if also:
        lines.append(f"also   {', '.join(also)}")
    lines.append(
        f"send   {plan.blobs} blobs, {size(plan.send_bytes)} (about {size(plan.wire_bytes)} "
        f"compressed), {plan.round_trips} round trips"
    )
    lines.append(f"back   {way_back(plan)}")
    return lines + [f"note   {note}" for note in plan.notes]


def _nothing_to_do(plan: Plan) -> str:
    if plan.unwell:
        return f"nothing differs, but {plan.release} does not serve well: {plan.unwell}"
    if plan.drift:
        return f"nothing to do: {plan.release} is live and serves, but something has drifted"
    return f"nothing to do: {plan.release} is live and everything is as it should be"


def way_back(plan: Plan) -> str:
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
    for line in summary(plan):
        print(f"  {line}")
    for row in plan.delta:
        if row.how != "same":
            print(f"    {row.how:<8}{row.path}  {size(row.size)}")
    for diff in plan.diffs:
        by = "" if diff.by == "deploy" else "; invoke provision puts it right"
        print(f"  {diff.name} differs{by}")
        for line in diff.text.splitlines():
            print(f"    {line}")
    if plan.steps:
        print(f"  steps  {' > '.join(plan.steps)}")
    for told in plan.drift:
        print(f"  drift  {told}")
    for problem in plan.problems:
        print(f"  ✗ would be refused: {problem.what}")
        if problem.hint:
            print(f"    do: {problem.hint}")


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
    if outcome.result == "nothing" and outcome.well is False:
        again = f"invoke deploy --restart --release {outcome.release}{options}"
        what = f"{outcome.release} is live already, but does not serve well: {outcome.serving}"
        return f"✗ {outcome.host}: {what}\n  do: {again}; invoke doctor{options}"
    if outcome.result == "nothing":
        return f"{outcome.host}: nothing to do, {outcome.live} is live"
    if outcome.result == "committed":
        told = f"✓ {outcome.host}: {outcome.live} is live ({outcome.seconds:.1f} s)"
        shadow = "it came back in shadow (ML_ENABLE_STACKING=0); to have stacking decide again:"
        again = f"invoke shadow-gate{options}, then invoke enable-stacking{options}"
        lines = [told, *_switched_with(outcome, kind)]
        return "\n".join([*lines, f"  {shadow}", f"  {again}"] if kind == "rollback" else lines)
    lines = [f"✗ {outcome.host}: the {kind} of {outcome.release} was reverted"]
    lines += [f"  why: {outcome.reason}"] if outcome.reason else []
    lines += _kept(outcome)
    if outcome.well is False:
        lines.append(f"  now: NOTHING SERVES WELL: {outcome.serving}")
        away = f"invoke rollback --to ID{options}"
        lines.append(f"  do: invoke doctor{options}; {away} goes to one that was live before")
        return "\n".join(lines)
    lines.append(f"  now: {outcome.live or 'nothing'} is live ({outcome.serving})")
    look = f"invoke status{options}; invoke doctor{options}"
    lines.append(f"  do: {look}; the failed release stays there for study")
    return "\n".join(lines)


def _switched_with(outcome: Outcome, kind: str) -> list[str]:
    """What went back with a release, and where the texts are that people had changed."""
    told = []
    if kind == "rollback":
        files = [f"  put back as they were: {', '.join(outcome.files)}"] if outcome.files else []
        keys = [f"  set in .env as they were: {', '.join(outcome.keys)}"] if outcome.keys else []
        told = [*files, *keys, "  everything else in .env is as it was a moment ago"]
    return told + _kept(outcome)


def _kept(outcome: Outcome) -> list[str]:
    told = "what was changed on the host since the last deploy is kept there"
    return [f"  {told}: {path}" for path in outcome.kept]


def as_fields(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """For --json."""
    from dataclasses import asdict

    return [asdict(outcome) for outcome in outcomes]
