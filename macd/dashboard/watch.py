"""Asks all hosts side by side and makes the page; an unreachable host hides no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from macd.dashboard import look
from macd.dashboard.look import Look
from macd.dashboard.page import Facts, Seen
from macd.dashboard.served import Served, served, written_since
from macd.deploy.fleet import side_by_side, unexpected
from macd.errors import MacdError, UsageError
from macd.gate.logs import logs_of
from macd.host.judge.reading import Source
from macd.host.record import Record
from macd.inventory import Host, Inventory
from macd.journal import Journal, JournalError


def hosts_of(inventory: Inventory, env: str, name: str) -> list[Host]:
    """The serving hosts of all environments, or of the one or the host that is named.

    Raises UsageError naming the known ones.
    """
    serving = [host for host in inventory.hosts.values() if host.role == "serve"]
    chosen = inventory.env_hosts(env) if env or not serving else serving
    if not name:
        return chosen
    host = inventory.host(name)
    if host in chosen:
        return [host]
    raise UsageError(
        f"{name} does not serve {env or 'any environment'}",
        why=f"these do: {', '.join(other.name for other in chosen)}",
        hint="give --host one of them; invoke host.list shows every host and its env",
    )


@dataclass(frozen=True)
class Watch:
    """The hosts that a page is about, and how far back it looks.

    options: those of the command that others need too. counted: by host, what its logs said and
    which logs they were, so that logs without a new line are not read again.
    """

    inventory: Inventory
    hosts: Sequence[Host]
    days: float
    options: str = ""
    counted: dict[str, tuple[object, Served | None]] = field(default_factory=dict)

    def ask(self) -> Facts:
        """Ask every host at the same time, and store what it says."""
        results = side_by_side(self.hosts, self._look)
        return self.facts({**results.done, **results.failed}, datetime.now(UTC))

    def _look(self, host: Host) -> Look:
        try:
            seen = look.look(host, self.inventory)
        except MacdError:
            raise
        except Exception as error:
            raise unexpected(host.name, error, live="not known from here") from error
        with suppress(OSError):  # a full disk here is no reason to see nothing
            look.store(seen, self.inventory)
        return seen

    def facts(self, answers: Mapping[str, Look | MacdError], made: datetime) -> Facts:
        """What is known at `made`: answers, stored looks where there is none, journal and logs."""
        records, damage = _here(self.inventory)
        seen = [self._seen(host, answers.get(host.name), records, made) for host in self.hosts]
        return Facts(self.inventory, made, seen, records, damage, self.days)

    def _seen(
        self, host: Host, answer: Look | MacdError | None, records: Sequence[Record], made: datetime
    ) -> Seen:
        failure = answer if isinstance(answer, MacdError) else None
        known = answer if isinstance(answer, Look) else look.stored(self.inventory, host.name)
        done = None
        if known is not None and known.state.live is not None:
            # Another command may move a log meanwhile; that nothing was counted the page says.
            with suppress(LookupError, TypeError, ValueError, AttributeError, OSError):
                done = self._served(host, known, known.state.live, made)
        options = _options(host, self.hosts, self.options)
        return Seen(host, known, failure, done, options, isinstance(answer, Look))

    def _served(self, host: Host, known: Look, live: str, made: datetime) -> Served | None:
        now = made + (known.host_now - known.asked)  # by the clock that wrote the lines
        start = now - timedelta(days=self.days)
        start = start.replace(minute=0, second=0, microsecond=0)
        policy = self.inventory.service.policy
        cost = (policy.fee_bps + policy.slippage_bps) / 10_000
        logs = _judged(written_since(logs_of(self.inventory, host), start), known)
        these = (live, start, tuple((s.path, s.size, s.path.stat().st_mtime_ns) for s in logs))
        before, counted = self.counted.get(host.name, (None, None))
        if before != these:
            counted = served(logs, live, start, now, cost=cost)
            self.counted[host.name] = these, counted
        return counted


def _judged(logs: Sequence[Source], known: Look) -> list[Source]:
    """The bytes of the logs that the look's gate report is about too, so that both count alike."""
    ends = {str(entry["name"]): entry["to"] for entry in (known.report or {}).get("logs", ())}
    if not ends:
        return [*logs]
    newest = max(ends)
    return [
        replace(log, size=min(log.size, ends.get(log.name, log.size)))
        for log in logs
        if log.name <= newest
    ]


def _here(inventory: Inventory) -> tuple[list[Record], MacdError | None]:
    try:
        return Journal(inventory.state_dir / "journal.jsonl").records(), None
    except JournalError as error:
        return error.intact, error
    except MacdError as error:
        return [], error


def _options(host: Host, hosts: Sequence[Host], options: str) -> str:
    """What a command needs to mean this host, with the inventory that was named."""
    env = f" --env {host.env}" if host.env != "prod" else ""
    alone = sum(other.env == host.env for other in hosts) == 1
    return f"{env}{'' if alone else f' --host {host.name}'}{options}"
