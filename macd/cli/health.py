"""`invoke health`: every model of a release, run or folder really loaded and run, a line each."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from macd.cli.verb import emit, verb
from macd.errors import ExitCode, MacdError, UsageError

if TYPE_CHECKING:
    from macd.inventory import Inventory
    from macd.release.health import Item

_TORCH = "ONNX against torch"


@verb(
    name="health",
    help={
        "release": "id of the release to check (default: the newest for the environment)",
        "env": "check the newest release of this environment (default: prod)",
        "run": "check a training run instead: id below runs/, or a directory",
        "dir": "check a folder of models trained elsewhere, such as data/ml_models",
        "bundle": "check an archive of such a folder, such as macd_models_20260301.tar.gz",
        "inventory": "use inventory/NAME.yml (default: $MACD_INVENTORY, else lab)",
        "json": "print one JSON document for machines",
    },
)
def health(
    _: object,
    release: str = "",
    run: str = "",
    dir: str = "",
    bundle: str = "",
    env: str = "prod",
    inventory: str = "",
    json: bool = False,
) -> ExitCode | None:
    """Load and run every model, compare golden predictions; exit 1 if an item fails."""
    _one_of(release=release, run=run, dir=dir, bundle=bundle)
    if dir or bundle:
        name, items = _of_folder(dir) if dir else _of_bundle(bundle)
    else:
        from macd.inventory import load

        inv = load(inventory)
        name, items = _of_run(inv, run) if run else _of_release(inv, release, env)
    failed = sum(not item.ok for item in items)
    if json:
        emit({"checked": name, "ok": not failed, "items": [asdict(item) for item in items]})
    else:
        print(f"health of {name}")
        for item in items:
            print(item.line())
        print(_summary(items))
    return ExitCode.FAILED if failed else None


def _summary(items: list[Item]) -> str:
    failed = sum(not item.ok for item in items)
    if failed:
        return f"{failed} of {len(items)} items failed"
    undone = sum(not item.done for item in items)
    if undone:
        return f"{len(items) - undone} are well, {undone} not looked into"
    return f"all {len(items)} are well"


def _one_of(**options: str) -> None:
    given = [f"--{name}" for name, text in options.items() if text]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} name different models", hint="give one of them")


def _of_folder(named: str) -> tuple[str, list[Item]]:
    from macd.app.predict import modelfolder

    top = Path(named)
    if not top.is_dir():
        raise UsageError(f"--dir {named}: there is no such folder")
    return named, modelfolder.check(top)


def _of_bundle(named: str) -> tuple[str, list[Item]]:
    """Unpacked into a folder that goes away; what it can't be unpacked for is its one item."""
    from macd.app.predict import modelfolder
    from macd.release import unpacking
    from macd.release.health import Item

    archive = Path(named)
    if not archive.is_file():
        raise UsageError(f"--bundle {named}: there is no such file")
    with TemporaryDirectory(prefix="macd-models-") as place:
        try:
            unpacking.unpack(archive, Path(place))
        except unpacking.ArchiveError as error:
            cause = "it was damaged on its way, or made to do harm; nothing of it was read"
            remedy = "make it again: tar -czf macd_models.tar.gz -C data ml_models"
            return named, [Item("bundle", False, str(error), cause, remedy)]
        return named, modelfolder.check(Path(place))


def _of_release(inventory: Inventory, named: str, env: str) -> tuple[str, list[Item]]:
    from macd.release import health as checks
    from macd.release.store import Store
    from macd.release.wheelhouse import proved_with

    store = Store(inventory.root / "releases")
    if not named and not store.ids():
        raise UsageError(
            f"no releases yet in {store.root}",
            hint="invoke release makes one; invoke health --run ID looks at a training",
        )
    one = store.load(named) if named else store.newest(env)
    tf = str(one.manifest.details.get("tf", "1h"))
    versions = proved_with(one.lock, inventory.root / "constraints.txt")
    items = checks.check(one.directory, tf=tf, lock=versions)
    return one.id, [*items, *onnx_against_torch(one.directory, tf)]


def _of_run(inventory: Inventory, named: str) -> tuple[str, list[Item]]:
    """A run has no golden predictions yet; its models are run on the bars here."""
    from macd.app.market.bars import bars_path, read_bars
    from macd.app.predict import golden
    from macd.release import health as checks

    below = inventory.root / "runs" / named
    directory = below if below.is_dir() else Path(named)
    if not (directory / "settings.json").is_file():
        raise UsageError(f"there is no run at {directory}", hint="invoke train makes one")
    symbol, tf, others = _trained_on(directory)
    data = inventory.train.data_dir
    bars = read_bars(bars_path(data, symbol, tf))
    cross = {name: read_bars(bars_path(data, name, tf)) for name in others}
    inputs = golden.inputs(bars, cross)
    items = checks.check(directory, tf=tf, inputs=inputs)
    return f"run {directory.name}", [*items, *onnx_against_torch(directory, tf, inputs)]


def _trained_on(run: Path) -> tuple[str, str, list[str]]:
    """Symbol, timeframe and other assets of a run, as its settings.json has them."""
    from macd.app.market.bars import step_ms, symbol_name

    try:
        told = jsonlib.loads((run / "settings.json").read_bytes())
        tf = str(told["tf"])
        step_ms(tf)
        return symbol_name(told["symbol"]), tf, [symbol_name(name) for name in told["cross"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UsageError) as error:
        raise MacdError(
            f"run {run.name} has a settings.json that can't be read",
            why=f"{type(error).__name__}: {error}".splitlines()[0],
            live="nothing was checked",
            hint=f"fetch it again: invoke train.fetch --run {run.name}",
        ) from error


def onnx_against_torch(top: Path, tf: str, inputs: dict[str, Any] | None = None) -> list[Item]:
    """ONNX and torch on the golden bars; where that can't be had, the item says so."""
    from macd.app.predict.scoring import MODELS
    from macd.release.health import Item, read_golden

    place = top / MODELS
    told = inputs or read_golden(top)
    lacking = [f"{name}_{tf}.pt" for name in ("lstm", "tft")]
    lacking = [name for name in lacking if not (place / name).is_file()]
    why = ""
    if find_spec("torch") is None:
        why = "torch is not here"
    elif lacking:
        why = f"{' and '.join(lacking)} not here"
    elif told is None:
        why = "there are no golden bars"
    if why or told is None:
        return [Item(_TORCH, True, f"not compared: {why}", done=False)]
    cause = "the export is of other weights, or this torch or onnxruntime computes otherwise"
    remedy = "python -m macd.app.train --mode onnx, then invoke release"
    try:
        worst = _compare(place, tf, told)
    except Exception as error:  # whatever torch, onnx or the files do, the item says it
        return [Item(_TORCH, False, f"{error}".splitlines()[0], cause, remedy)]
    return [Item(_TORCH, True, f"LSTM and TFT at batch 1, 7 and 256, difference {worst:.1e}")]


def _compare(place: Path, tf: str, told: Any) -> float:
    import numpy as np

    from macd.app.predict import golden
    from macd.app.predict.scoring import Scorer
    from macd.app.train import export, lstm, tft

    scorer = Scorer.load(place, tf)
    X = golden.table(told, scorer)  # noqa: N806 - the field's name
    rows = np.arange(min(told["rows"]), len(X), dtype=np.int64)
    nets = {"lstm": lstm.load(place, tf).net, "tft": tft.load(place, tf).net}
    return max(
        export.check((place / f"{name}_{tf}.onnx").read_bytes(), net, X=X, rows=rows)
        for name, net in nets.items()
    )
