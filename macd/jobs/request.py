"""A request to train on a host: its settings and the files it needs, decided before any contact.

Pure but for reading the files that travel. Knows nothing of connections or of how a run goes.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macd
from macd.application import BUILTIN, existing_bars, train_settings
from macd.errors import UsageError
from macd.host.jobs.cluster import NODE, TOKEN, Node
from macd.inventory import Inventory, TrainSettings
from macd.ssh.blobs import Blob
from macd.symbols import symbol_name

if TYPE_CHECKING:
    from macd.application import Settings

_DATA = "data"
_SENT = (".py", ".json")  # of macd, to a training host
REQUEST = "request.json"


@dataclass(frozen=True)
class Tree:
    """Files by their place, as blobs; `digest` names exactly this content."""

    files: Mapping[str, Blob]

    @property
    def digest(self) -> str:
        listed = sorted((path, blob.sha256) for path, blob in self.files.items())
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(blob.size for blob in self.files.values())


@dataclass(frozen=True, kw_only=True)
class NodeRole:
    """What a host is in the cluster of a training. head, workers: names of the inventory."""

    node: Node
    token: str = field(repr=False)
    head: str
    workers: tuple[str, ...]

    @property
    def files(self) -> dict[str, str]:
        """Its files there. The token is in no command and in no environment."""
        return {NODE: json.dumps(asdict(self.node)) + "\n", TOKEN: self.token}


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """One training, complete. `run` is its id everywhere; `raw` the settings as they are sent.

    node: what the host is in a cluster; None: it trains alone.
    """

    run: str
    raw: Mapping[str, Any]
    tree: Tree
    python: str
    env: Mapping[str, str]
    node: NodeRole | None = None

    @property
    def files(self) -> dict[str, str]:
        """Files of the run's directory there, for its owner alone: name to text."""
        raw = json.dumps(self.raw, indent=1, sort_keys=True) + "\n"
        return {REQUEST: raw} | (self.node.files if self.node else {})

    @property
    @abstractmethod
    def argv(self) -> list[str]:
        """The command on the host; the braces are filled in there."""

    @property
    def commands(self) -> list[str]:
        """What runs there, for people."""
        return [" ".join(self.argv)]

    @property
    def room(self) -> int:
        """Bytes that it takes there at least; 0: nothing worth a check."""
        return 0

    @property
    @abstractmethod
    def title(self) -> str:
        """What is trained, on one line."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the run says of itself on the host."""

    @property
    @abstractmethod
    def recorded(self) -> dict[str, Any]:
        """What the journal says of it."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """A training of the built-in application."""

    settings: Settings

    @property
    def argv(self) -> list[str]:
        here = ["--data", f"{{tree}}/{_DATA}", "--out", "{run}", "--cache", "{work}/cache"]
        alone = [self.python, "-m", BUILTIN.train, "--settings", f"{{run}}/{REQUEST}", *here]
        return [*node_argv(self.python), *alone] if self.node else alone

    @property
    def title(self) -> str:
        s = self.settings
        named = ", ".join(s.symbols) or s.symbol
        return f"{named} {s.tf}, profile {s.profile}, seed {s.seed}"

    @property
    def about(self) -> dict[str, Any]:
        s = self.settings
        return {
            "symbol": s.symbol,
            **self._several,
            "tf": s.tf,
            "profile": s.profile,
            "seed": s.seed,
            "mode": s.mode,
            **self._cluster,
        }

    @property
    def recorded(self) -> dict[str, Any]:
        s = self.settings
        return {
            "symbol": s.symbol,
            **self._several,
            "cross": list(s.cross),
            "tf": s.tf,
            "profile": s.profile,
            "seed": s.seed,
            **self._cluster,
        }

    @property
    def _several(self) -> dict[str, Any]:
        return {"symbols": list(self.settings.symbols)} if self.settings.symbols else {}

    @property
    def _cluster(self) -> dict[str, Any]:
        return {"workers": list(self.node.workers)} if self.node else {}


@dataclass(frozen=True, kw_only=True)
class WorkerRequest(Request):
    """A worker of a training's cluster. It gets the code; what a fit needs, Ray brings."""

    node: NodeRole

    @property
    def argv(self) -> list[str]:
        return node_argv(self.python)

    @property
    def title(self) -> str:
        return f"worker of {self.node.head}"

    @property
    def about(self) -> dict[str, Any]:
        return {"head": self.node.head}

    @property
    def recorded(self) -> dict[str, Any]:
        return self.about


def node_argv(python: str) -> list[str]:
    """The command that makes a host a node of a cluster; on the head, the training follows it."""
    return [python, "-m", "macd.host.jobs.cluster", "{run}"]


def settings_of(inventory: Inventory, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The raw settings: the inventory's, with `changes` on top; None changes nothing.

    Raises UsageError naming every wrong one.
    """
    train = inventory.train
    symbols = _symbols(train, changes)
    only = symbols[0] if len(symbols) == 1 else ""  # of several each leaves itself out
    raw: dict[str, Any] = {
        "tf": train.tf,
        "cross": [name for name in train.cross if symbol_name(name) != only],
        "panel": list(train.panel),
        "profile": train.profile,
        "seed": train.seed,
        "seeds": train.seeds,
        "params": {name: dict(values) for name, values in train.params.items()},
        "refit": train.refit and (changes.get("mode") or "all") == "all",  # the others can't
        "engine": train.engine,
        "min_move": train.min_move,
        "market": train.market,
        "limits": dict(train.limits),
        "accept": [finding.as_json() for finding in train.accept],
        "stages": list(train.stages),
        "criteria": {
            name: {"threshold": criterion.threshold, "level": criterion.level}
            for name, criterion in train.criteria.items()
        },
        "policy": inventory.service.policy.model_dump(mode="json"),
    }
    raw |= {name: value for name, value in changes.items() if value is not None}
    raw["symbol"] = symbols[0]
    raw.pop("symbols", None)
    if not only:
        raw["symbols"] = symbols
    fixed = sorted({"data", "out", "cache"} & raw.keys())
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} can't be set for a remote training",
            why="these directories are the job's own on the host",
            hint="--data DIR says where the bars are on this machine",
        )
    return raw


def _symbols(train: TrainSettings, changes: Mapping[str, Any]) -> list[str]:
    """What is trained: one symbol or several as `changes` say, else as the inventory does."""
    several = changes.get("symbols") or ()
    if isinstance(several, str):
        several = several.split(",")
    named = [str(name) for name in several] or [str(changes.get("symbol") or "")]
    if not any(named):
        named = list(train.symbols) or [train.symbol]
    names = [symbol_name(name) for name in named if name.strip()]
    first = changes.get("symbol")
    if several and first and symbol_name(str(first)) != names[0]:
        raise UsageError(
            f"symbol says {first}, and of symbols {names[0]} is the first",
            hint="give one of the two",
        )
    return names


def data_files(raw: Mapping[str, Any], data_dir: Path) -> dict[str, Path]:
    """The bars that travel, by symbol; the first is the one trained on."""
    settings = train_settings(raw)
    return existing_bars(data_dir, settings.assets, settings.tf)


def make(
    raw: Mapping[str, Any],
    data: Mapping[str, Path],
    *,
    python: str,
    env: Mapping[str, str],
    now: datetime,
) -> TrainRequest:
    """The request; its run id holds the time and a hash of everything that decides the outcome."""
    settings = train_settings(raw)
    files = sources(BUILTIN.sources)
    for symbol, path in data.items():
        files[f"{_DATA}/{symbol}_{settings.tf}.parquet"] = Blob.of_file(path)
    tree = Tree(files)
    run = run_id(now, tree.digest, raw, sorted(env.items()))
    return TrainRequest(run=run, settings=settings, raw=raw, tree=tree, python=python, env=env)


def run_id(now: datetime, *decided: Any) -> str:
    """The time, and a hash of everything that decides the outcome."""
    mark = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:8]
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{mark}"


def sources(names: Iterable[str]) -> dict[str, Blob]:
    """Files of macd by their place in a tree: those named, and code and tables of rooms named."""
    top = Path(macd.__file__).parent
    paths: list[Path] = []
    for name in names:  # nothing else of macd is sent to a training host
        path = top / name
        there = sorted(path.rglob("*")) if path.is_dir() else [path]
        paths += [file for file in there if file.suffix in _SENT]
    # Bytes, not paths: what is hashed is what is sent, also while somebody edits.
    return {f"macd/{path.relative_to(top)}": Blob.of_bytes(path.read_bytes()) for path in paths}
