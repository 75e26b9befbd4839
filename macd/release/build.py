"""Make a release of a finished run: everything built out of sight, checked, signed, then renamed.

Interrupted at any moment it leaves the releases as they were; what it built is dropped, by the next
call at the latest. The same order gives the same manifest and bundle, to the byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, ModelError, Scorer
from macd.errors import MacdError, RefusedError
from macd.host.store import manifest as manifests
from macd.host.store.manifest import File, Manifest
from macd.release import bundle, card, health, launcher, wheel
from macd.release import lock as locks
from macd.release.health import GOLDEN, Item
from macd.release.judge import Finding, blocking
from macd.release.lock import Lock
from macd.release.run import Run, bars_of
from macd.release.store import BUILDING, Release, Store
from macd.release.wheel import Code

_PARTS = ("val", "val_all", "test", "test_all")
_FIGURES = ("value", "low", "high", "n")


@dataclass(frozen=True)
class Order:
    """All that decides what a release is. Times are UTC; `accepted` overrides missed criteria.

    source: the tree macd's wheel is made from. data_dir: where the run's bars lie here.
    versions: package -> version that must be installed here, where the models are proved.
    """

    run: Run
    host: str
    findings: list[Finding]
    app: str
    env: str
    serial: int
    created: datetime
    lifetime: timedelta
    accepted: str
    code: Code
    lock: Lock
    source: Path
    data_dir: Path
    versions: Mapping[str, str]


def refuse_blocked(order: Order) -> None:
    """Raise RefusedError naming what blocks the release and by how much, unless it is accepted."""
    blocked = blocking(order.findings)
    if blocked and not order.accepted:
        raise RefusedError(
            f"run {order.run.id} does not meet {len(blocked)} blocking "
            f"criteri{'on' if len(blocked) == 1 else 'a'}",
            why="\n".join(finding.line() for finding in blocked),
            live="no release was made",
            hint='train again, or: invoke release --accept "why it may go out all the same"',
        )


def make(
    order: Order,
    store: Store,
    *,
    sign: Callable[[bytes], bytes],
    wheels: list[Path],
    also: Callable[[Path, str], list[Item]] = lambda _, __: [],
) -> tuple[Release, list[Item]]:
    """Build, check, sign and put in place; the release and its health items.

    Args:
        wheels: files of the lock's wheels. also: further health checks of the built tree.

    Raises:
        RefusedError: a blocking criterion, and nothing accepts it.
        MacdError: other bars than the run's, or the health check failed.
    """
    refuse_blocked(order)
    with _alone(store):
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=store.root))
        try:
            details = _fill(order, building)
            items = [*health.check(building, tf=order.run.tf, lock=order.versions)]
            items += also(building, order.run.tf)
            _refuse_sick(items)
            raw = _manifest(order, building, details)
            (building / bundle.MANIFEST).write_bytes(raw)
            (building / bundle.SIGNATURE).write_bytes(sign(raw))
            parsed = manifests.parse(raw)
            with (building / bundle.bundle_name(parsed)).open("wb") as out:
                bundle.pack(building, parsed, out)
            store.keep_wheels(order.lock, wheels)
            identifier = manifests.release_id(raw)
            _place(building, store.root / identifier)
        except BaseException:
            try:
                shutil.rmtree(building, ignore_errors=True)
            except KeyboardInterrupt:  # polars raises one and lets Python raise the same one again
                shutil.rmtree(building, ignore_errors=True)
            raise
    return store.load(identifier), items


def _fill(order: Order, building: Path) -> dict[str, Any]:
    run = order.run
    for path in run.shipped:
        content = (run.directory / path).read_bytes()
        if hashlib.sha256(content).hexdigest() != run.files[path]:
            raise MacdError(f"{path} of run {run.id} changed while it was read")
        _write(building / path, content)
    name, content = wheel.build(order.source)
    _write(building / "app" / name, content)
    _write(building / "app" / launcher.NAME, launcher.SOURCE.encode())
    _write(building / locks.FILE, order.lock.raw)
    bars, cross = bars_of(run, order.data_dir)
    try:
        scorer = Scorer.load(building / MODELS, run.tf)
    except ModelError as error:
        raise MacdError(
            f"the models of run {run.id} can't be loaded",
            why=str(error),
            live="no release was made",
            hint="invoke health --run shows each; then train again",
        ) from error
    document = {"symbol": run.symbol, **golden.make(bars, cross, scorer)}
    _write(building / GOLDEN, manifests.canonical(document))
    details = _details(order, scorer)
    pages = card.render(
        details,
        app=order.app,
        env=order.env,
        serial=order.serial,
        created=order.created,
        expires=order.created + order.lifetime,
    )
    for page, content in pages.items():
        _write(building / page, content)
    return details


def _details(order: Order, scorer: Scorer) -> dict[str, Any]:
    run = order.run
    metrics = {
        model: {
            head: {part: {k: figures[part].get(k) for k in _FIGURES} for part in _PARTS}
            for head, figures in heads.items()
        }
        for model, heads in run.metrics["models"].items()
    }
    checks = {check["name"]: check["ok"] for check in run.audit.get("checks", [])}
    return {
        "run": run.id,
        "host": order.host,
        "symbol": run.symbol,
        "tf": run.tf,
        "cross": list(run.cross),
        "profile": run.metrics["profile"],
        "seed": run.metrics["seed"],
        "bars": run.metrics["bars"],
        "holdout": run.metrics["holdout"],
        "libraries": run.metrics["libraries"],
        "data_digest": run.digest,
        "bars_checked": run.result.get("bars_checked") or {"limits": {}, "accepted": []},
        "features_schema": scorer.schema,
        "metrics": metrics,
        "best_head": run.metrics["best_head"],
        "criteria": [asdict(finding) for finding in order.findings],
        "accepted": order.accepted or None,
        "audit": {
            "ok": run.audit.get("ok") is True,
            "checks": checks,
            "allowed": run.audit.get("allowed") or {},
        },
        "code": asdict(order.code),
        "golden": str(GOLDEN),
    }


def _manifest(order: Order, building: Path, details: dict[str, Any]) -> bytes:
    files = []
    for path in sorted(p for p in building.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append(File(path.relative_to(building).as_posix(), len(content), digest))
    manifest = Manifest(
        app=order.app,
        env=order.env,
        serial=order.serial,
        created=order.created,
        expires=order.created + order.lifetime,
        files=tuple(sorted(files, key=lambda file: file.path)),
        lock=order.lock.sha256,
        details=details,
    )
    return manifests.render(manifest)


def _refuse_sick(items: list[Item]) -> None:
    sick = [item for item in items if not item.ok]
    if sick:
        raise MacdError(
            f"the release fails its health check ({len(sick)} of {len(items)} items)",
            why="\n".join(item.line() for item in sick),
            live="no release was made",
            hint=sick[0].remedy,
        )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _place(building: Path, target: Path) -> None:
    for path in building.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            _sync(path)
    building.chmod(0o755)
    _sync(building)
    if target.exists():  # the very same bytes were released before: nothing to add
        shutil.rmtree(building)
        return
    building.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """One build at a time; the lock goes with the process, so all it finds built is left over."""
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(
                "another release is being made here",
                why=f"its lock on {store.root} is held",
                live="no release was made",
                hint="wait for it, then again",
            ) from error
        for path in store.root.glob(f"{BUILDING}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield
