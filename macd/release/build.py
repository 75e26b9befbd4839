"""Make a release of a finished run: everything built out of sight, checked, signed, then renamed.

Interrupted at any moment it leaves the releases as they were; what it built is dropped, by the next
call at the latest. The same request gives the same manifest and bundle, to the byte.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from macd import application
from macd.application import BUILTIN, Proof
from macd.checklist import Item, of_several
from macd.errors import MacdError, RefusedError
from macd.host.durable import one_at_a_time, sha256_of, sync
from macd.host.store import manifest as manifests
from macd.host.store.manifest import File, Manifest, ManifestError
from macd.release import bundle, card, wheel
from macd.release import lock as locks
from macd.release.judge import Finding, blocking
from macd.release.lock import Lock
from macd.release.run import Run
from macd.release.store import BUILDING, Release, Store
from macd.release.wheel import Code
from macd.run_directory import FILES, on_same_bars

GOLDEN = "golden/golden.json"
_PARTS = ("val", "val_all", "test", "test_all")
_FIGURES = ("value", "low", "high", "n")


@dataclass(frozen=True)
class ReleaseRequest:
    """What every release is made by. Times are UTC; `accepted` overrides missed criteria.

    run: None for one that no training belongs to.
    """

    run: Run | None
    findings: list[Finding]
    app: str
    env: str
    serial: int
    created: datetime
    lifetime: timedelta
    accepted: str
    lock: Lock


@dataclass(frozen=True)
class BuildRequest(ReleaseRequest):
    """All that decides what a release of the built-in application is.

    source: the tree macd's wheel is made from. data_dir: where the run's bars lie here.
    versions: package -> version that must be installed here, where the models are proved.
    symbols: of a run of several those that are released, by name; {} for a run of one.
    """

    run: Run
    host: str
    code: Code
    source: Path
    data_dir: Path
    versions: Mapping[str, str]
    symbols: Mapping[str, Run] = field(default_factory=dict)

    def trees(self, building: Path) -> dict[str, tuple[Path, Run]]:
        """By symbol where its models go, and the run that they come from."""
        if not self.symbols:
            return {self.run.symbol: (building, self.run)}
        return {name: (FILES.of_symbol(building, name), run) for name, run in self.symbols.items()}


def refuse_blocked(request: ReleaseRequest) -> None:
    """Raise RefusedError naming what blocks the release and by how much, unless it is accepted."""
    blocked = blocking(request.findings)
    if request.run and blocked and not request.accepted:
        raise RefusedError(
            f"run {request.run.id} does not meet {len(blocked)} blocking "
            f"criteri{'on' if len(blocked) == 1 else 'a'}",
            why="\n".join(finding.line() for finding in blocked),
            live="no release was made",
            hint=_instead(request, blocked),
        )


def _instead(request: ReleaseRequest, blocked: list[Finding]) -> str:
    """What may be done about a run that is blocked."""
    out = list(dict.fromkeys(finding.symbol for finding in blocked))
    held = isinstance(request, BuildRequest) and len(out) < len(request.symbols)
    without = f"invoke release --without {','.join(out)}, which releases the others; or " * held
    return f'{without}train again, or: invoke release --accept "why it may go out all the same"'


def make(
    request: BuildRequest,
    store: Store,
    *,
    sign: Callable[[bytes], bytes],
    wheels: list[Path],
    proving: Callable[..., AbstractContextManager[Callable[[], Proof]]] = application.proving,
) -> tuple[Release, list[Item]]:
    """Build, check, sign and put in place; the release and its health items.

    Args:
        wheels: files of the lock's wheels. proving: has the application check the built tree.

    Raises:
        RefusedError: a blocking criterion, and nothing accepts it.
        MacdError: other bars than the run's, or the health check failed.
    """

    def fill(building: Path) -> tuple[dict[str, Any], list[Item]]:
        _copy_models_and_code(request, building)
        trees = request.trees(building)
        questions = [
            proving(
                tree,
                run=run.directory,
                data_dir=request.data_dir,
                digest=run.digest,
                lock=request.versions,
            )
            for tree, run in trees.values()
        ]
        proofs = dict(zip(trees, application.prove(questions), strict=True))
        for symbol, (tree, _) in trees.items():
            _write(tree / GOLDEN, manifests.canonical(proofs[symbol].golden))
        by_symbol = {symbol: proof.items for symbol, proof in proofs.items()}
        items = of_several(by_symbol) if request.symbols else by_symbol[request.run.symbol]
        refuse_unhealthy(items)
        schemas = {symbol: proof.features_schema for symbol, proof in proofs.items()}
        return _details(request, schemas), items

    return assemble(request, store, fill, sign=sign, wheels=wheels)


def assemble(
    request: ReleaseRequest,
    store: Store,
    fill: Callable[[Path], tuple[dict[str, Any], list[Item]]],
    *,
    sign: Callable[[bytes], bytes],
    wheels: list[Path],
) -> tuple[Release, list[Item]]:
    """Have a directory filled, then describe, sign and pack what it holds, and put it in place.

    Args:
        fill: writes the files of the release but lock and cards; gives the manifest's details and
            how the checks came out. It raises where there must be no release.

    Raises:
        RefusedError: a blocking criterion, and nothing accepts it; or another build goes on.
    """
    refuse_blocked(request)
    with _alone(store):
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=store.root))
        try:
            _write(building / locks.FILE, request.lock.raw)
            details, items = fill(building)
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
    return store.load(identifier), items


def _copy_models_and_code(request: BuildRequest, building: Path) -> None:
    for tree, run in request.trees(building).values():
        for path in run.shipped:
            content = (run.directory / path).read_bytes()
            if hashlib.sha256(content).hexdigest() != run.files[path]:
                raise MacdError(f"{path} of run {request.run.id} changed while it was read")
            _write(tree / path, content)
    name, content = wheel.build(request.source)
    _write(building / "app" / name, content)
    _write(building / "app" / wheel.LAUNCHER, wheel.launcher(BUILTIN.serve))


def _write_cards(request: ReleaseRequest, building: Path, details: dict[str, Any]) -> None:
    cards = card.render(
        details,
        app=request.app,
        env=request.env,
        serial=request.serial,
        created=request.created,
        expires=request.created + request.lifetime,
        packages=request.lock.versions,
    )
    for name, content in cards.items():
        _write(building / name, content)


def _details(request: BuildRequest, schemas: Mapping[str, str]) -> dict[str, Any]:
    run = request.run
    if not request.symbols:
        models = _of_models(run, request.findings, schemas[run.symbol])
        seed, profile, libraries = (run.metrics[k] for k in ("seed", "profile", "libraries"))
    else:
        of_each = {
            name: _of_models(
                part,
                [replace(f, symbol="") for f in request.findings if f.symbol == name],
                schemas[name],
                below=f"{FILES.of_symbol(Path(), name).as_posix()}/",
            )
            for name, part in request.symbols.items()
        }
        models = _of_several(request, of_each)
        some = next(iter(request.symbols.values())).metrics
        seed, profile, libraries = (some[k] for k in ("seed", "profile", "libraries"))
    return {
        "run": run.id,
        "host": request.host,
        "profile": profile,
        "seed": seed,
        "seeds": run.settings.get("seeds", 1),
        "libraries": libraries,
        **models,
        "accepted": request.accepted or None,
        "code": asdict(request.code),
        "replay": BUILTIN.replay,
    }


def _of_several(request: BuildRequest, of_each: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What a release of several symbols says of its models: of all, and below `symbols` of each.

    bars: all of them together, to the end of those that end first: the age of the release.
    """
    first, spans = next(iter(of_each)), [each["bars"] for each in of_each.values()]
    origin: dict[str, Any] = {}
    for each in of_each.values():
        origin |= each.pop("origin")
    return {
        "symbol": first,
        "tf": of_each[first]["tf"],
        "bars": {
            "rows": sum(span["rows"] for span in spans),
            "first": min(span["first"] for span in spans),
            "last": min(span["last"] for span in spans),
        },
        "data_digest": request.run.digest,
        "origin": origin,
        "criteria": [finding.as_json() for finding in request.findings],
        "symbols": dict(of_each),
    }


def _of_models(
    run: Run, findings: Sequence[Finding], features_schema: str, below: str = ""
) -> dict[str, Any]:
    """What a release says of the models of one symbol. below: where they lie in it."""
    metrics = {
        model: {
            head: {part: {k: figures[part].get(k) for k in _FIGURES} for part in _PARTS}
            for head, figures in heads.items()
        }
        for model, heads in (on_same_bars(run.metrics) or run.metrics["models"]).items()
    }
    checks = {check["name"]: check["ok"] for check in run.audit.get("checks", [])}
    return {
        "symbol": run.symbol,
        "tf": run.tf,
        "cross": list(run.cross),
        "panel": list(run.panel),
        "bars": run.metrics["bars"],
        "holdout": run.metrics["holdout"],
        "refit": run.metrics.get("refit"),
        "caveats": run.metrics.get("caveats", []),
        "data_digest": run.digest,
        "origin": run.result.get("origin") or {},
        "bars_checked": run.result.get("bars_checked") or {"limits": {}, "accepted": []},
        "features_schema": features_schema,
        "metrics": metrics,
        "same_bars": "comparison" in run.metrics,
        "best_head": run.metrics["best_head"],
        "criteria": [finding.as_json() for finding in findings],
        "audit": {
            "ok": run.audit.get("ok") is True,
            "checks": checks,
            "allowed": run.audit.get("allowed") or {},
        },
        "golden": f"{below}{GOLDEN}",
        "drift": run.metrics.get("drift"),
    }


def _manifest(request: ReleaseRequest, building: Path, details: dict[str, Any]) -> bytes:
    files = []
    for path in sorted(p for p in building.rglob("*") if p.is_file()):
        size, digest = path.stat().st_size, sha256_of(path)
        files.append(File(path.relative_to(building).as_posix(), size, digest))
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
    try:
        return manifests.render(manifest)
    except ManifestError as error:
        raise MacdError(
            "the release can't be described in a manifest",
            why=str(error),
            live="no release was made",
            hint="make several releases of fewer symbols: invoke release --without A,B"
            if manifests.several_of(details)
            else "",
        ) from error


def refuse_unhealthy(items: list[Item]) -> None:
    """Raise MacdError naming the items that failed."""
    failed = [item for item in items if not item.ok]
    if failed:
        raise MacdError(
            f"the release fails its health check ({len(failed)} of {len(items)} items)",
            why="\n".join(item.line(remedy=False) for item in failed),
            live="no release was made",
            hint="\n".join(dict.fromkeys(item.remedy for item in failed)),
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
