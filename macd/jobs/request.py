"""A request to train on a host: its settings and the files it needs, decided before any contact.

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
class TrainRequest:
    """One training, complete. `run` is its id everywhere; `raw` the settings as they are sent."""

    run: str
    settings: Settings
    raw: Mapping[str, Any]
    tree: Tree
    python: str
    env: Mapping[str, str]

    @property
    def argv(self) -> list[str]:
        """The command on the host; the braces are filled in there."""
        here = ["--data", f"{{tree}}/{_DATA}", "--out", "{run}", "--cache", "{work}/cache"]
        return [self.python, "-m", BUILTIN.train, "--settings", f"{{run}}/{REQUEST}", *here]


def settings_of(inventory: Inventory, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The raw settings: the inventory's, with `changes` on top; None changes nothing.

    Raises UsageError naming every wrong one.
    """
    train = inventory.train
    symbol = symbol_name(str(changes.get("symbol") or train.symbol))
    raw: dict[str, Any] = {
        "tf": train.tf,
        "cross": [name for name in train.cross if symbol_name(name) != symbol],
        "panel": list(train.panel),
        "profile": train.profile,
        "seed": train.seed,
        "seeds": train.seeds,
        "params": {name: dict(values) for name, values in train.params.items()},
        "refit": train.refit and (changes.get("mode") or "all") == "all",  # the others can't
        "engine": train.engine,
        "min_move": train.min_move,
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
    raw["symbol"] = symbol
    fixed = sorted({"data", "out", "cache"} & raw.keys())
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} can't be set for a remote training",
            why="these directories are the job's own on the host",
            hint="--data DIR says where the bars are on this machine",
        )
    return raw


def data_files(raw: Mapping[str, Any], data_dir: Path) -> dict[str, Path]:
    """The bars that travel, by symbol; the first is the one trained on."""
    settings = train_settings(raw)
    symbols = [settings.symbol, *settings.cross, *settings.panel_others]
    return existing_bars(data_dir, symbols, settings.tf)


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
    files = _sources()
    for symbol, path in data.items():
        files[f"{_DATA}/{symbol}_{settings.tf}.parquet"] = Blob.of_file(path)
    tree = Tree(files)
    decided = json.dumps([tree.digest, raw, sorted(env.items())], sort_keys=True)
    mark = hashlib.sha256(decided.encode()).hexdigest()[:8]
    run = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{mark}"
    return TrainRequest(run=run, settings=settings, raw=raw, tree=tree, python=python, env=env)


def _sources() -> dict[str, Blob]:
    top = Path(macd.__file__).parent
    paths: list[Path] = []
    for name in BUILTIN.sources:  # nothing else of macd is sent to a training host
        path = top / name
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    # Bytes, not paths: what is hashed is what is sent, also while somebody edits.
    return {f"macd/{path.relative_to(top)}": Blob.of_bytes(path.read_bytes()) for path in paths}
