"""A change on all hosts of an environment: in waves, recorded, stopped when too many have failed.

The hosts of a wave are acted on side by side. A host that can't be reached may be passed by: a
rollback always does, because the others need it all the same.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from macd.deploy.fleet import (
    PARALLEL,
    Results,
    code_of,
    in_waves,
    named,
    side_by_side,
    unexpected,
    worst,
)
from macd.deploy.follow import EndUnknownError, Outcome, PendingActivation
from macd.deploy.notify import notify
from macd.deploy.records import ENDS, FAILED, LEFT, REFUSED, may_be_live
from macd.errors import ContactLostError, ExitCode, MacdError, UsageError
from macd.inventory import Host, Inventory
from macd.journal import Journal
from macd.ssh.refusals import UnreachableError


def operator() -> str:
    """Who acts, as the host's lock and journals name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True)
class Limits:
    """How a rollout goes over several hosts: so many at once, and when it stops."""

    parallel: int = PARALLEL
    max_failed: int = 0

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise UsageError(f"--parallel {self.parallel}: at least one host at a time")
        if self.max_failed < 0:
            raise UsageError(f"--max-failed {self.max_failed}: 0 or more hosts")


@dataclass(frozen=True)
class Result:
    """What became of each host: it has an outcome, failed, was passed by, or is untouched.

    Args:
        unreachable: those that were passed by, and why.
        failed: those that ended with an error.
        stopped: why no further host was started, "" if none was left out for it.
        left: those still under way when a second Ctrl-C said to wait no longer.
        unrecorded: why an end could not be put into the journal.
        interrupted: a Ctrl-C kept hosts from being started.
    """

    outcomes: Sequence[Outcome]
    untouched: Sequence[str]
    warnings: Sequence[str] = ()
    unreachable: Mapping[str, MacdError] = field(default_factory=dict)
    failed: Mapping[str, MacdError] = field(default_factory=dict)
    stopped: str = ""
    left: Sequence[str] = ()
    unrecorded: MacdError | None = None
    interrupted: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """The worst of what each host would have ended with alone; no promise that isn't kept."""
        codes = [outcome.exit_code for outcome in self.outcomes]
        codes += [code_of(error) for error in self.failed.values()]
        codes += [ExitCode.CONTACT_LOST] * bool(self.unreachable or self.left)
        codes += [ExitCode.FAILED] * bool(self.unrecorded)
        codes += [ExitCode.INTERRUPTED] * (self.interrupted and not self.left)
        return worst(codes)

    @property
    def error(self) -> MacdError | None:
        """The error to raise where only one can be: the worst."""
        errors = list(self.failed.values()) or list(filter(None, [self.unrecorded]))
        code = worst(code_of(error) for error in errors)
        return next((error for error in errors if code_of(error) == code), None)


class Rollout:
    """One deploy, rollback or provision over several hosts, with its records."""

    def __init__(self, inventory: Inventory, kind: str, env: str) -> None:
        self._inventory = inventory
        self._kind = kind
        self._env = env
        self._journal = Journal(inventory.state_dir / "journal.jsonl")

    def record(self, what: str, **fields: Any) -> None:
        """Into the journal here; may be called from several threads."""
        named = {"env": self._env, "who": operator(), **fields}
        self._journal.append(f"{self._kind}.{what}", named, now=datetime.now(UTC))

    def run(
        self,
        planned: Sequence[Sequence[Host]],
        change: Callable[[Host], Outcome],
        *,
        limits: Limits | None = None,
        passes: tuple[type[MacdError], ...] = (),
        unreachable: Mapping[str, MacdError] | None = None,
        on_interrupt: Callable[[Sequence[str]], None] | None = None,
        **about: Any,
    ) -> Result:
        """Do the waves in order, the hosts of each side by side, until too many have failed.

        A host fails by an error or an outcome whose exit code isn't 0. More than
        `limits.max_failed` of them, and no further host is started; those at work end.

        Args:
            passes: errors that leave a host as it is and don't count as failed.
            unreachable: hosts that are passed by without asking again, and why.
            on_interrupt: with several hosts: called by the first Ctrl-C with those at work. They
                end, no other is started; a second one waits no longer.
        """
        limits = limits or Limits()
        wave_of = {host.name: n for n, wave in enumerate(planned, start=1) for host in wave}
        hosts = [host for wave in planned for host in wave]
        unreachable = unreachable or {}
        unrecorded: list[MacdError] = []

        def ended_with(**fields: Any) -> None:
            try:
                self.record("ended", **fields)
            except MacdError as error:  # how the host ended is recorded all the same
                unrecorded.append(error)

        def act(host: Host) -> Outcome:
            self.record("began", host=host.name, wave=wave_of[host.name], **about)
            try:
                if host.name in unreachable:
                    raise unreachable[host.name]
                outcome = change(host)
            except BaseException as error:  # a Ctrl-C, or what nobody thought of, is an end too
                why = error.what if isinstance(error, MacdError) else named(error)
                # Who was never reached has not got anything: see may_be_live.
                never = host.name in unreachable or isinstance(error, UnreachableError)
                mark = {"unreachable": True} if never else {}
                ended_with(host=host.name, result=_how_it_failed(error), why=why, **mark)
                if len(hosts) > 1 and not isinstance(error, MacdError):
                    raise unexpected(host.name, error) from error  # it hides no other host
                raise
            ended_with(**_recorded(outcome))
            return outcome

        def passed(failed: Mapping[str, MacdError]) -> dict[str, MacdError]:
            return {n: e for n, e in failed.items() if n in unreachable or isinstance(e, passes)}

        def too_many(done: Mapping[str, Outcome], failed: Mapping[str, MacdError]) -> bool:
            count = _bad(done) + len(failed) - len(passed(failed))
            return bool(unrecorded) or count > limits.max_failed

        if len(hosts) == 1:
            ended = side_by_side(hosts, act)
        else:
            ended = in_waves(
                planned, act, parallel=limits.parallel, stop=too_many, on_interrupt=on_interrupt
            )
        result = _result(ended, passed(ended.failed), limits, unrecorded[0] if unrecorded else None)
        return replace(result, warnings=() if result.left else self._notify(result))

    def may_be_live(self, host: str) -> int:
        """The highest serial that what was recorded here may have left live on a host; 0: none."""
        return may_be_live(self._journal.records(), host)

    def recorded(self, activation: PendingActivation | Outcome) -> bool:
        """Whether the journal here has the end of that activation."""
        same = {"host": activation.host, "number": activation.number, "release": activation.release}
        return any(
            record.kind in ENDS and same.items() <= record.fields.items()
            for record in self._journal.records()
        )

    def late(self, outcomes: Iterable[Outcome]) -> Sequence[str]:
        """Record and notify once how activations ended that were started here and left.

        Returns warnings.
        """
        news = [outcome for outcome in outcomes if not self.recorded(outcome)]
        for outcome in news:
            self.record("ended", **_recorded(outcome), attached=True)
        return self._notify(Result(news, []))

    def _notify(self, result: Result) -> Sequence[str]:
        """One message to people elsewhere about all hosts; warnings where that did not work."""
        lines = [
            _sentence(self._kind, outcome) for outcome in result.outcomes if not _as_it_was(outcome)
        ]
        errors = {**result.failed, **result.unreachable}
        lines += [f"{name}: {error.what}" for name, error in errors.items()]
        lines += [result.stopped] if result.stopped else []
        if not lines:
            return ()
        good = not result.exit_code
        title = f"macd {self._kind} {self._env}: {'done' if good else 'FAILED'}"
        warning = notify(self._inventory.notify, title, "\n".join(lines), good=good)
        return (warning,) if warning else ()


def _result(
    ended: Results[Outcome],
    passed: Mapping[str, MacdError],
    limits: Limits,
    unrecorded: MacdError | None,
) -> Result:
    failed = {name: error for name, error in ended.failed.items() if name not in passed}
    count = _bad(ended.done) + len(failed)
    why = ""
    if ended.not_started and ended.interrupted:
        why = "interrupted"
    elif ended.not_started and count > limits.max_failed:
        hosts = "1 host" if count == 1 else f"{count} hosts"
        why = f"{hosts} failed or reverted, more than --max-failed {limits.max_failed} allows"
    elif ended.not_started:
        why = "the journal here could not be written"
    names = ", ".join(ended.not_started)
    return Result(
        outcomes=list(ended.done.values()),
        untouched=list(ended.not_started),
        unreachable=passed,
        failed=failed,
        stopped=f"stopped: {why}; not touched: {names}" if why else "",
        left=ended.left,
        unrecorded=unrecorded,
        interrupted=ended.interrupted and bool(ended.not_started),
    )


def _bad(done: Mapping[str, Outcome]) -> int:
    """How many reverted, or do not serve."""
    return sum(1 for outcome in done.values() if outcome.exit_code)


def passed_by(
    kind: str, unreachable: Mapping[str, MacdError], options: str, *, release: str = ""
) -> ContactLostError:
    """What is said of hosts that were passed by.

    `release`: which was named, or is deployed. `options`: those a next command needs.

    The end is unknown on a host that may have started to switch. A second rollback could take it
    further back than was meant, so the hint there is only to look.
    """
    not_done = [
        name for name, error in unreachable.items() if not isinstance(error, EndUnknownError)
    ]
    unknown = [name for name in unreachable if name not in not_done]
    what, hint = [], []
    if not_done:
        name = not_done[0] if len(not_done) == 1 else "NAME"
        option = "to" if kind == "rollback" else "release"
        which = f" --{option} {release}" if release else ""
        again = f"invoke {kind} --host {name}{which}{options}"
        if kind == "rollback" and not release:
            again = f"if what was undone is live there: {again}"
        what.append(
            f"not {'taken back' if kind == 'rollback' else 'deployed'}: {', '.join(not_done)}"
        )
        hint.append(f"when it answers again: invoke status --host {name}{options}; {again}")
    if unknown:
        name = unknown[0] if len(unknown) == 1 else "NAME"
        what.append(f"not known how it ended: {', '.join(unknown)}")
        hint.append(
            f"when it answers again: invoke deploy --attach --host {name}{options} follows it; "
            f"invoke status --host {name}{options} shows the end"
        )
    return ContactLostError(
        "; ".join(what),
        why="\n".join(f"{name}: {error.what}" for name, error in unreachable.items()),
        live="unknown on these hosts; on the others as shown above",
        hint="\n".join(hint),
    )


def _how_it_failed(error: BaseException) -> str:
    """As the journal has it: what goes on without us has not failed."""
    if isinstance(error, EndUnknownError):
        return LEFT
    refused = isinstance(error, MacdError) and code_of(error) == ExitCode.REFUSED
    return REFUSED if refused else FAILED


def _as_it_was(outcome: Outcome) -> bool:
    return outcome.result == "nothing" and outcome.healthy is not False


def _sentence(kind: str, outcome: Outcome) -> str:
    if outcome.result == "nothing" and outcome.healthy is False:
        return f"{outcome.host}: {outcome.live} is live, but does not serve: {outcome.serving}"
    if outcome.result == "reverted":
        sentence = f"{outcome.host}: {kind} of {outcome.release} reverted: {outcome.reason}"
        unhealthy = f"\n{outcome.host}: NOTHING SERVES WELL: {outcome.serving}"
        return sentence + unhealthy if outcome.healthy is False else sentence
    return f"{outcome.host}: {outcome.live} is live"


def _recorded(outcome: Outcome) -> dict[str, Any]:
    fields = {k: v for k, v in asdict(replace(outcome, plan=None)).items() if k != "plan"}
    fields["well"] = outcome.healthy  # its name up to 0.1
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}
