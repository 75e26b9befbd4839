"""A change on all hosts of an environment: in waves, recorded, stopped at the first failure.

But for a rollback, which passes by a host that can't be reached: the others need it all the same.
"""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from macd.deploy.follow import Begun, Outcome
from macd.deploy.notify import notify
from macd.errors import ContactLostError, MacdError, UsageError
from macd.inventory import Host, Inventory
from macd.journal import Journal

_WAVE = re.compile(r"([1-9][0-9]*)(%?)")


def waves(hosts: Sequence[Host], text: str) -> list[list[Host]]:
    """Split hosts by "1,50%,100%": each word says how many are done after that wave.

    Raises:
        UsageError: not such a list, or it goes backwards.
    """
    made: list[list[Host]] = []
    done = 0
    for word in (text or "100%").split(","):
        match = _WAVE.fullmatch(word.strip())
        count = int(match[1]) if match else 0
        if match is None or (match[2] and count > 100):
            raise UsageError(f"--wave {text}: not such a list", hint="--wave 1,50%,100%")
        until = min(len(hosts), ceil(len(hosts) * count / 100) if match[2] else count)
        if until > done:
            made.append(list(hosts[done:until]))
            done = until
    if done < len(hosts):
        made.append(list(hosts[done:]))
    return made


def operator() -> str:
    """Who acts, as the host's lock and journals name them."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True)
class Result:
    """What became of each host. `error` is what stopped the rest, `away` whom it passed by."""

    outcomes: Sequence[Outcome]
    untouched: Sequence[str]
    error: MacdError | None = None
    warnings: Sequence[str] = ()
    away: Mapping[str, MacdError] = field(default_factory=dict)


class Campaign:
    """One deploy, rollback or provision over several hosts, with its records."""

    def __init__(self, inventory: Inventory, kind: str, env: str) -> None:
        self._inventory = inventory
        self._kind = kind
        self._env = env
        self._journal = Journal(inventory.state_dir / "journal.jsonl")

    def record(self, what: str, **fields: Any) -> None:
        named = {"env": self._env, "who": operator(), **fields}
        self._journal.append(f"{self._kind}.{what}", named, now=datetime.now(UTC))

    def run(
        self,
        planned: Sequence[Sequence[Host]],
        one: Callable[[Host], Outcome],
        *,
        passes: tuple[type[MacdError], ...] = (),
        **about: Any,
    ) -> Result:
        """Do the waves in order; the first that ends with anything but 0 is the last.

        Args:
            passes: errors that leave a host as it is and don't stop the rest.
        """
        outcomes: list[Outcome] = []
        away: dict[str, MacdError] = {}
        waiting = [host.name for wave in planned for host in wave]
        for number, wave in enumerate(planned, start=1):
            for host in wave:
                self.record("began", host=host.name, wave=number, **about)
                waiting.remove(host.name)
                try:
                    outcome = one(host)
                except MacdError as error:
                    self.record("ended", host=host.name, result="failed", why=error.what)
                    if isinstance(error, passes):
                        away[host.name] = error
                        continue
                    told = self._notify(f"{host.name}: {error.what}", good=False)
                    return Result(outcomes, waiting, error, told, away)
                outcomes.append(outcome)
                self.record("ended", **_recorded(outcome))
                if outcome.exit_code:
                    told = self._notify(_sentence(self._kind, outcome), good=False)
                    return Result(outcomes, waiting, None, told, away)
        lines = [_sentence(self._kind, done) for done in outcomes if done.result != "nothing"]
        lines += [f"{name}: {error.what}" for name, error in away.items()]
        told = self._notify("\n".join(lines), good=not away) if lines else ()
        return Result(outcomes, waiting, None, told, away)

    def may_be_live(self, host: str) -> int:
        """The highest serial that what was recorded here may have left live on a host; 0: none.

        A deploy that failed without a word of the host's counts: it may have gone live since.
        """
        serials: dict[str, int] = {}
        live = begun = 0
        for record in self._journal.records():
            fields = record.fields
            if fields.get("host") != host:
                continue
            if record.kind == "deploy.began":
                begun = serials[fields.get("release", "")] = fields.get("serial", 0)
            elif record.kind == "deploy.ended" and fields.get("result") == "failed":
                live = max(live, begun)
            elif record.kind.endswith(".ended") and fields.get("result") != "failed":
                live = serials.get(fields.get("live") or "", 0)
        return live

    def late(self, outcome: Outcome) -> str:
        """Record and tell once how an activation ended that was begun here and let go of.

        Returns a warning, "" for none.
        """
        same = {"host": outcome.host, "number": outcome.number, "release": outcome.release}
        for record in self._journal.records():
            if record.kind.endswith(".ended") and same.items() <= record.fields.items():
                return ""
        self.record("ended", **_recorded(outcome), attached=True)
        good = not outcome.exit_code
        return "".join(self._notify(_sentence(self._kind, outcome), good=good))

    def _notify(self, body: str, *, good: bool) -> tuple[str, ...]:
        title = f"macd {self._kind} {self._env}: {'done' if good else 'FAILED'}"
        told = notify(self._inventory.notify, title, body, good=good)
        return (told,) if told else ()


def not_taken_back(away: Mapping[str, MacdError], options: str) -> ContactLostError:
    """What is said of hosts that a rollback passed by. `options`: those a next command needs."""
    one = next(iter(away)) if len(away) == 1 else "NAME"
    look, again = (f"invoke {verb} --host {one}{options}" for verb in ("status", "rollback"))
    return ContactLostError(
        f"not taken back: {', '.join(away)}",
        why="\n".join(f"{name}: {error.what}" for name, error in away.items()),
        live="not known of these; of the others as told above",
        hint=f"when it answers again: {look}; {again}",
    )


def _sentence(kind: str, outcome: Outcome) -> str:
    if outcome.result == "nothing" and outcome.well is False:
        return f"{outcome.host}: {outcome.live} is live, but does not serve: {outcome.serving}"
    if outcome.result == "reverted":
        told = f"{outcome.host}: {kind} of {outcome.release} reverted: {outcome.reason}"
        unwell = f"\n{outcome.host}: NOTHING SERVES WELL: {outcome.serving}"
        return told + unwell if outcome.well is False else told
    return f"{outcome.host}: {outcome.live} is live"


def _recorded(outcome: Outcome) -> dict[str, Any]:
    fields = {k: v for k, v in asdict(outcome.having(plan=None)).items() if k != "plan"}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}


class Memory:
    """Activations begun from here, so that `--attach` may confirm them. Private files."""

    def __init__(self, inventory: Inventory) -> None:
        self._directory = inventory.state_dir / "activations"

    def keep(self, begun: Begun) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(begun.host)
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(begun)))

    def of(self, host: str) -> Begun | None:
        try:
            document: Mapping[str, Any] = json.loads(self._path(host).read_text())
            return Begun(**document)
        except (OSError, ValueError, TypeError):
            return None

    def _path(self, host: str) -> Path:
        return self._directory / f"{host}.json"


def hosts_of(inventory: Inventory, env: str, name: str) -> Iterator[Host]:
    """The serving hosts of `env`, or the one of them that is named. Raises UsageError."""
    serving = inventory.env_hosts(env)
    if not name:
        yield from serving
        return
    for host in serving:
        if host.name == name:
            yield host
            return
    raise UsageError(
        f"{name} does not serve {env}",
        why=f"these do: {', '.join(host.name for host in serving)}",
        hint="give --host one of them; invoke host.list shows every host and its env",
    )


def only_host(inventory: Inventory, env: str, name: str, doing: str) -> Host:
    """The one host `doing` is about: named, or the only one of `env`. Raises UsageError."""
    hosts = list(hosts_of(inventory, env, name))
    if len(hosts) > 1:
        names = ", ".join(host.name for host in hosts)
        raise UsageError(f"{doing} one host at a time", hint=f"--host, one of {names}")
    return hosts[0]
