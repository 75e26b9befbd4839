"""A change on all hosts of an environment: in waves, recorded, stopped at the first failure."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from macd.deploy.follow import Begun, Outcome
from macd.deploy.notify import notify
from macd.errors import MacdError, UsageError
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
    """What became of each host. `error` is what stopped the rest."""

    outcomes: Sequence[Outcome]
    untouched: Sequence[str]
    error: MacdError | None = None
    warnings: Sequence[str] = ()


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
        self, planned: Sequence[Sequence[Host]], one: Callable[[Host], Outcome], **about: Any
    ) -> Result:
        """Do the waves in order; the first that ends with anything but 0 is the last."""
        outcomes: list[Outcome] = []
        waiting = [host.name for wave in planned for host in wave]
        for number, wave in enumerate(planned, start=1):
            for host in wave:
                self.record("began", host=host.name, wave=number, **about)
                waiting.remove(host.name)
                try:
                    outcome = one(host)
                except MacdError as error:
                    self.record("ended", host=host.name, result="failed", why=error.what)
                    told = self._notify(f"{host.name}: {error.what}", good=False)
                    return Result(outcomes, waiting, error, told)
                outcomes.append(outcome)
                self.record("ended", **_recorded(outcome))
                if outcome.exit_code:
                    told = self._notify(_sentence(self._kind, outcome), good=False)
                    return Result(outcomes, waiting, None, told)
        done = [outcome for outcome in outcomes if outcome.result != "nothing"]
        body = "\n".join(_sentence(self._kind, outcome) for outcome in done)
        return Result(outcomes, waiting, None, self._notify(body, good=True) if done else ())

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
