"""What is put on a training host so that it trains by itself: a request, and where new bars are.

Pure but for reading the files of the live run. The host's half is macd/host/jobs/schedule.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from macd.application import BUILTIN
from macd.errors import UsageError
from macd.host.jobs.stages import SOURCE
from macd.inventory import Host, Inventory
from macd.jobs import transfer
from macd.jobs.own import OwnRequest
from macd.jobs.request import Request, Tree
from macd.run_directory import FILES
from macd.ssh.blobs import Blob

_DATA = "data/"


@dataclass(frozen=True)
class Champion:
    """The run behind what is live, for a host to compare with; `why` where there is none.

    tree: its figures and its out-of-fold table, none of its models.
    """

    run: str = ""
    release: str = ""
    env: str = ""
    why: str = ""
    metrics: Mapping[str, Any] | None = None
    tree: Tree | None = None

    def as_json(self) -> dict[str, Any]:
        names = ("run", "release", "env", "why", "metrics")
        fields = {name: getattr(self, name) for name in names if getattr(self, name)}
        return {**fields, "tree": self.tree.digest} if self.tree else fields


def compared(directory: Path) -> Tree:
    """What a comparison reads of a run, of one symbol or several."""
    tables = [path for path in directory.rglob("oof_*.parquet") if path.is_file()]
    documents = [path for path in directory.rglob("*.json") if path.is_file()]
    paths = {path.relative_to(directory).as_posix(): path for path in (*tables, *documents)}
    unwanted = (f"{FILES.artefacts}/", f"{FILES.own_bars}/", ".")
    kept = {name: path for name, path in paths.items() if not name.startswith(unwanted)}
    return Tree({name: Blob.of_file(path) for name, path in kept.items()})


def plan_of(
    inventory: Inventory, host: Host, request: Request, champion: Champion, now: datetime
) -> dict[str, Any]:
    """The document that the host keeps. Raises UsageError where nobody would bring new bars."""
    train = inventory.train
    own = isinstance(request, OwnRequest)
    bars = _bars(request, replaced=train.schedule_bars is not None)
    named = f"--run {{run}} --host {host.name} --inventory {inventory.name}"
    return {
        "on": train.schedule,
        "inventory": inventory.name,
        "installed": now.isoformat(timespec="seconds"),
        "title": request.title,
        "own": own,
        "python": request.python,
        "argv": request.argv,
        "env": transfer.variables(request),
        "about": request.about,
        "request": request.files,
        "tree": request.tree.digest,
        "files": {path: blob.sha256 for path, blob in request.tree.files.items()},
        "bars": bars,
        "source": _source(inventory, request, list(bars.values())),
        "min_free": train.min_free_gb * 1e9,
        "keep": train.schedule_keep,
        "champion": champion.as_json(),
        "check": "" if own else f"{BUILTIN.check} check-run",
        "compare": "" if own else BUILTIN.runs,
        "next": {
            "DONE": [
                "nothing was built, signed or deployed; a person decides, where the keys are:",
                f"  invoke release {named}",
                "  which fetches, checks, builds and signs it; to look at its report before:",
                f"  invoke train.fetch {named}",
            ],
            "": [f"  invoke train.fetch {named}"],
        },
    }


def _bars(request: Request, *, replaced: bool) -> dict[str, str]:
    """Files of the tree that hold bars: path there -> what the file is called where bars are kept.

    replaced: a directory on the host brings those of an own application; else its stages do.
    """
    if isinstance(request, OwnRequest):
        return {f"{SOURCE}/{name}": name for name in request.data} if replaced else {}
    files = [path for path in request.tree.files if path.startswith(_DATA)]
    return {path: posixpath.basename(path) for path in files}


def _source(inventory: Inventory, request: Request, names: list[str]) -> dict[str, Any]:
    if inventory.train.schedule_bars is not None:
        return {"kind": "directory", "directory": inventory.train.schedule_bars}
    if isinstance(request, OwnRequest):
        return {"kind": "none"}
    feed, tf = inventory.service.feed, inventory.train.tf
    if feed.kind != "ccxt":
        raise UsageError(
            "where do new bars come from on the training host?",
            why=f"service.feed.kind is {feed.kind}, so no exchange is known; without new bars a "
            "schedule would train the same again and again",
            hint="train.schedule_bars: the directory on that host where somebody keeps the bars new"
            "; or service.feed.kind: ccxt, and the host fetches them",
        )
    symbols = [name.removesuffix(f"_{tf}.parquet") for name in names]
    question = {"exchange": feed.exchange, "api_url": feed.api_url, "tf": tf, "symbols": symbols}
    return {"kind": "exchange", "program": BUILTIN.fetch, "question": question}
