"""What one remote training is asked to do and which files it needs: decided here, before any host.

Pure but for reading the files that travel. Knows nothing of connections or of how a run goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import macd
from macd.application import BUILTIN, existing_bars, symbol_name, train_settings
from macd.errors import UsageError
from macd.inventory import Inventory
from macd.ssh.blobs import Blob

if TYPE_CHECKING:
    from macd.application import Settings

_DATA = "data"
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


@dataclass(frozen=True)
class Order:
    """One training, complete: `run` is its id everywhere, from now on and for ever."""

    run: str
    settings: Settings
    request: Mapping[str, Any]
    tree: Tree
    python: str
    env: Mapping[str, str]

    @property
    def argv(self) -> list[str]:
        """The command on the host; the braces are filled in there."""
        here = ["--data", f"{{tree}}/{_DATA}", "--out", "{run}", "--cache", "{work}/cache"]
        return [self.python, "-m", BUILTIN.train, "--settings", f"{{run}}/{REQUEST}", *here]


def request_of(inventory: Inventory, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training: the inventory's, with `changes` on top; None changes nothing.

    Raises UsageError naming every wrong one.
    """
    train = inventory.train
    symbol = symbol_name(str(changes.get("symbol") or train.symbol))
    request: dict[str, Any] = {
        "tf": train.tf,
        "cross": [name for name in train.cross if symbol_name(name) != symbol],
        "profile": train.profile,
        "seed": train.seed,
        "engine": train.engine,
        "min_move": train.min_move,
        "limits": dict(train.limits),
        "accept": [one.as_json() for one in train.accept],
        "stages": list(train.stages),
        "criteria": {
            name: {"threshold": one.threshold, "level": one.level}
            for name, one in train.criteria.items()
        },
    }
    request |= {name: value for name, value in changes.items() if value is not None}
    request["symbol"] = symbol
    fixed = sorted({"data", "out", "cache"} & request.keys())
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} can't be set for a remote training",
            why="these directories are the job's own on the host",
            hint="--data DIR says where the bars are on this machine",
        )
    return request


def data_files(request: Mapping[str, Any], data_dir: Path) -> dict[str, Path]:
    """The bars that travel, by symbol; the first is the one trained on."""
    settings = train_settings(request)
    return existing_bars(data_dir, [settings.symbol, *settings.cross], settings.tf)


def make(
    request: Mapping[str, Any],
    data: Mapping[str, Path],
    *,
    python: str,
    env: Mapping[str, str],
    now: datetime,
) -> Order:
    """The order, its run id made of the time and of everything that decides the outcome."""
    settings = train_settings(request)
    files = _sources()
    for symbol, path in data.items():
        files[f"{_DATA}/{symbol}_{settings.tf}.parquet"] = Blob.of_file(path)
    tree = Tree(files)
    decided = json.dumps([tree.digest, request, sorted(env.items())], sort_keys=True)
    mark = hashlib.sha256(decided.encode()).hexdigest()[:8]
    run = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{mark}"
    return Order(run=run, settings=settings, request=request, tree=tree, python=python, env=env)


def _sources() -> dict[str, Blob]:
    top = Path(macd.__file__).parent
    found: list[Path] = []
    for name in BUILTIN.sources:  # the rest of macd has no business on a training host
        path = top / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    # Bytes, not paths: what is hashed is what is sent, also while somebody edits.
    return {f"macd/{path.relative_to(top)}": Blob.of_bytes(path.read_bytes()) for path in found}
