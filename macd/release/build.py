"""Make a release of a finished run: everything built out of sight, checked, signed, then renamed.

Interrupted at any moment it leaves the releases as they were; what it built is dropped, by the next
call at the latest. The same request gives the same manifest and bundle, to the byte.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from macd import application
from macd.application import BUILTIN, Proof
from macd.checklist import Item
from macd.errors import MacdError, RefusedError
from macd.host.durable import one_at_a_time, sync
from macd.host.store import manifest as manifests
from macd.host.store.manifest import File, Manifest
from macd.release import bundle, card, wheel
from macd.release import lock as locks
from macd.release.judge import Finding, blocking
from macd.release.lock import Lock
from macd.release.run import Run
from macd.release.store import BUILDING, Release, Store
from macd.release.wheel import Code
from macd.run_directory import on_same_bars

GOLDEN = "golden/golden.json"
_PARTS = ("val", "val_all", "test", "test_all")
_FIGURES = ("value", "low", "high", "n")


@dataclass(frozen=True)
class BuildRequest:
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


def refuse_blocked(request: BuildRequest) -> None:
    """Raise RefusedError naming what blocks the release and by how much, unless it is accepted."""
    blocked = blocking(request.findings)
    if blocked and not request.accepted:
        raise RefusedError(
            f"run {request.run.id} does not meet {len(blocked)} blocking "
            f"criteri{'on' if len(blocked) == 1 else 'a'}",
            why="\n".join(finding.line() for finding in blocked),
            live="no release was made",
            hint='train again, or: invoke release --accept "why it may go out all the same"',
        )


def make(
    request: BuildRequest,
    store: Store,
    *,
    sign: Callable[[bytes], bytes],
    wheels: list[Path],
    prove: Callable[..., Proof] = application.prove,
) -> tuple[Release, list[Item]]:
    """Build, check, sign and put in place; the release and its health items.

    Args:
        wheels: files of the lock's wheels. prove: has the application check the built tree.

    Raises:
        RefusedError: a blocking criterion, and nothing accepts it.
        MacdError: other bars than the run's, or the health check failed.
    """
    refuse_blocked(request)
    with _alone(store):
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=store.root))
        try:
            _copy_models_and_code(request, building)
            proof = prove(
                building,
                run=request.run.directory,
                tf=request.run.tf,
                data_dir=request.data_dir,
                digest=request.run.digest,
                lock=request.versions,
            )
            _refuse_unhealthy(proof.items)
            details = _details(request, proof.features_schema)
            _write(building / GOLDEN, manifests.canonical(proof.golden))
            _write_cards(request, building, details)
            raw = _manifest(request, building, details)
            (building / bundle.MANIFEST).write_bytes(raw)
            (building / bundle.SIGNATURE).write_bytes(sign(raw))
            parsed = manifests.parse(raw)
            with (building / bundle.bundle_name(parsed)).open("wb") as out:
                bundle.pack(building, parsed, out)
            store.keep_wheels(request.lock, wheels)
            identifier = manifests.release_id(raw)
            _place(building, store.root / identifier)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return store.load(identifier), proof.items


def _copy_models_and_code(request: BuildRequest, building: Path) -> None:
    run = request.run
    for path in run.shipped:
        content = (run.directory / path).read_bytes()
        if hashlib.sha256(content).hexdigest() != run.files[path]:
            raise MacdError(f"{path} of run {run.id} changed while it was read")
        _write(building / path, content)
    name, content = wheel.build(request.source)
    _write(building / "app" / name, content)
    _write(building / "app" / wheel.LAUNCHER, wheel.launcher(BUILTIN.serve))
    _write(building / locks.FILE, request.lock.raw)


def _write_cards(request: BuildRequest, building: Path, details: dict[str, Any]) -> None:
    cards = card.render(
        details,
        app=request.app,
        env=request.env,
        serial=request.serial,
        created=request.created,
        expires=request.created + request.lifetime,
    )
    for name, content in cards.items():
        _write(building / name, content)


def _details(request: BuildRequest, features_schema: str) -> dict[str, Any]:
    run = request.run
    metrics = {
        model: {
            head: {part: {k: figures[part].get(k) for k in _FIGURES} for part in _PARTS}
            for head, figures in heads.items()
        }
        for model, heads in (on_same_bars(run.metrics) or run.metrics["models"]).items()
    }
    checks = {check["name"]: check["ok"] for check in run.audit.get("checks", [])}
    return {
        "run": run.id,
        "host": request.host,
        "symbol": run.symbol,
        "tf": run.tf,
        "cross": list(run.cross),
        "panel": list(run.panel),
        "profile": run.metrics["profile"],
        "seed": run.metrics["seed"],
        "seeds": run.settings.get("seeds", 1),
        "bars": run.metrics["bars"],
        "holdout": run.metrics["holdout"],
        "refit": run.metrics.get("refit"),
        "caveats": run.metrics.get("caveats", []),
        "libraries": run.metrics["libraries"],
        "data_digest": run.digest,
        "bars_checked": run.result.get("bars_checked") or {"limits": {}, "accepted": []},
        "features_schema": features_schema,
        "metrics": metrics,
        "same_bars": "comparison" in run.metrics,
        "best_head": run.metrics["best_head"],
        "criteria": [asdict(finding) for finding in request.findings],
        "accepted": request.accepted or None,
        "audit": {
            "ok": run.audit.get("ok") is True,
            "checks": checks,
            "allowed": run.audit.get("allowed") or {},
        },
        "code": asdict(request.code),
        "golden": GOLDEN,
    }


def _manifest(request: BuildRequest, building: Path, details: dict[str, Any]) -> bytes:
    files = []
    for path in sorted(p for p in building.rglob("*") if p.is_file()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append(File(path.relative_to(building).as_posix(), len(content), digest))
    manifest = Manifest(
        app=request.app,
        env=request.env,
        serial=request.serial,
        created=request.created,
        expires=request.created + request.lifetime,
        files=tuple(sorted(files, key=lambda file: file.path)),
        lock=request.lock.sha256,
        details=details,
    )
    return manifests.render(manifest)


def _refuse_unhealthy(items: list[Item]) -> None:
    failed = [item for item in items if not item.ok]
    if failed:
        raise MacdError(
            f"the release fails its health check ({len(failed)} of {len(items)} items)",
            why="\n".join(item.line() for item in failed),
            live="no release was made",
            hint=failed[0].remedy,
        )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _place(building: Path, target: Path) -> None:
    for path in building.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            sync(path)
    building.chmod(0o755)
    sync(building)
    if target.exists():  # the very same bytes were released before: nothing to add
        shutil.rmtree(building)
        return
    building.rename(target)
    sync(target.parent)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """One build at a time; the lock goes with the process, so all it finds built is left over."""
    store.root.mkdir(parents=True, exist_ok=True)
    taken = RefusedError(
        "another release is being made here",
        why=f"its lock on {store.root} is held",
        live="no release was made",
        hint="wait for it, then again",
    )
    with one_at_a_time(store.root / ".lock", taken=taken):
        for path in store.root.glob(f"{BUILDING}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield
