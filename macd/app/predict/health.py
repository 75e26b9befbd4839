"""Is this release fit to serve? Every model really loaded and run; one line per item, with remedy.

The successor of the guide's hand-run check script. A failed item is a result, not an error.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from macd.app.market.features import FEATURE_VERSION, asset_column, feature_names, schema_hash
from macd.app.predict import golden
from macd.app.predict.boosting import import_lightgbm
from macd.app.predict.scoring import (
    MODELS,
    Floats,
    ModelError,
    Scorer,
    UnknownSymbolError,
)
from macd.checklist import Item
from macd.heads import NAMES, kind_of
from macd.run_directory import FILES

T = TypeVar("T")
Predicted = Mapping[str, Sequence[float]]  # output, e.g. "lgbm_5h" -> a value for each row asked
_STUCK = 1e-6  # a spread below it over different windows means the model says always the same
_BATCH_TOLERANCE = 1e-5
_NEVER_IMPORTED = {"pip", "setuptools"}  # they install; nothing that serves imports them
_RETRAIN = "train that model again: python -m macd.app.train --mode {family}"


def check(
    top: Path,
    *,
    tf: str = "1h",
    lock: Mapping[str, str] | None = None,
    symbol: str = "",
    inputs: Mapping[str, Any] | None = None,
    document: Mapping[str, Any] | None = None,
) -> list[Item]:
    """Check the release (or run) in `top`.

    Args:
        lock: package -> version that must be installed; None leaves that out.
        symbol: what the service is to watch; "" for what the models were trained on.
        inputs: what golden.inputs gave, to run the models of a run on, which has no golden
            predictions yet; these are not asked for then.
        document: golden predictions that were not written yet (default: those in `top`).
    """
    items = [_dependencies(lock)] if lock is not None else []
    try:
        scorer = Scorer.load(top / MODELS, tf)
    except ModelError as error:
        cause = "the files are not there, cut short, or not models"
        remedy = "invoke release.verify names changed files; else train again"
        return [*items, Item("models", False, str(error), cause, remedy)]
    items += [_symbol(scorer, symbol)] if symbol else []
    items += [_features(scorer), _quantiles(scorer)]
    document = document or golden.read(top)
    asked = inputs or document
    windows = _from_golden(golden.windows, asked, scorer)
    predicted = _from_golden(golden.predictions, asked, scorer)
    items += [_family(family, scorer, windows) for family in scorer.families]
    items.append(_stacking(scorer, predicted))
    if windows is not None:
        items.append(_batches(scorer, windows))
    if inputs is None:
        items.append(_golden(document, scorer))
    refit = any(meta.get("refit") for meta in scorer.metas.values())
    table = FILES.refitted(tf) if refit else FILES.out_of_fold(tf)
    items.append(_holdout(top / table, asked, predicted))
    return items


def _dependencies(lock: Mapping[str, str]) -> Item:
    name = "dependencies"
    if wrong := _wrong_versions(lock):
        cause = "the environment was changed after the lock was made"
        return Item(name, False, "; ".join(wrong), cause, "make setup")
    if broken := _not_importable(lock):
        cause = "the package is damaged, or a library of the system is missing (LightGBM: libgomp1)"
        return Item(name, False, "; ".join(broken), cause, "apt-get install libgomp1; make setup")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    where = f"imported here, by Python {python}; a host imports its own before it switches"
    return Item(name, True, f"{len(lock)} packages in the versions of the lock, {where}")


def _wrong_versions(lock: Mapping[str, str]) -> list[str]:
    """What is installed otherwise than the lock says, package by package, in words."""
    wrong = []
    for name, version in sorted(lock.items()):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "nothing"
        if installed.partition("+")[0] != version.partition("+")[0]:
            wrong.append(f"{name} {version} is locked, {installed} is installed")
    return wrong


def _not_importable(lock: Mapping[str, str]) -> list[str]:
    """The modules of installed packages that raise when they are imported, in words."""
    broken = []
    for name in sorted(set(lock) - _NEVER_IMPORTED):
        for module in _modules(name):
            try:
                _import(module)
            except Exception as error:  # a missing shared library is an OSError, and so on
                why = next(iter(f"{error}".splitlines()), type(error).__name__)
                broken.append(f"{name} is installed, but import {module} fails: {why}")
    return broken


def _import(module: str) -> None:
    if module == "lightgbm":
        import_lightgbm()
    else:
        importlib.import_module(module)


def _modules(package: str) -> list[str]:
    """Top-level modules of an installed package; none where its files aren't listed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    names = {
        file.parts[0].removesuffix(".py")
        for file in files
        if (len(file.parts) == 2 and file.name == "__init__.py")
        or (len(file.parts) == 1 and file.suffix == ".py")
    }
    return sorted(name for name in names if name.isidentifier() and name not in ("tests", "test"))


def _symbol(scorer: Scorer, symbol: str) -> Item:
    name = f"models for {symbol}"
    try:
        serving = scorer.on(symbol)
    except UnknownSymbolError as error:
        return Item(name, False, error.what, error.why, error.hint)
    models = ", ".join(NAMES[family] for family in serving.families)
    mean = "" if serving is scorer else "; the mean of their log-odds in stacking's place"
    return Item(name, True, models + mean)


def _features(scorer: Scorer) -> Item:
    symbols = _cross_symbols(scorer.features)
    panel = sorted(scorer.serves) if len(scorer.serves) > 1 else []
    ours = (*feature_names(symbols), *map(asset_column, panel))
    if scorer.features == ours and scorer.schema == schema_hash(ours):
        detail = f"{len(ours)} features, order and formulas as the code computes them"
        return Item("features", True, detail)
    extra, missing = set(scorer.features) - set(ours), set(ours) - set(scorer.features)
    what = "; ".join(
        f"{word}: {', '.join(sorted(names)[:3])}"
        for word, names in (("unknown", extra), ("not used", missing))
        if names
    )
    detail = what or f"the order or the formulas differ (code has version {FEATURE_VERSION})"
    cause = "the models were trained by other code than this"
    remedy = "train again with this code, or release with the code of the run"
    return Item("features", False, detail, cause, remedy)


def _quantiles(scorer: Scorer) -> Item:
    name = "feature quantiles"
    if not scorer.quantiles:
        detail = "none: an earlier training; the service can't say when features drift"
        return Item(name, True, detail, done=False)
    named = scorer.reference.names if scorer.reference else ()
    if scorer.reference is None or not {*scorer.computed} <= {*named}:
        cause = "the file is damaged, or of other models than these"
        return Item(name, False, "they can't be read", cause, "train again")
    empty = [
        n
        for n, low in zip(scorer.reference.names, scorer.reference.low, strict=True)
        if not math.isfinite(low)
    ]
    if empty:
        cause = "the training had no value of it"
        return Item(name, False, f"none of {', '.join(empty[:3])}", cause, "train again")
    return Item(name, True, f"of {len(scorer.reference.names)} features")


def _cross_symbols(names: tuple[str, ...]) -> list[str]:
    own = set(feature_names())
    marked = {name.split("_")[1] for name in names if name not in own and name.count("_") >= 2}
    return sorted(symbol for symbol in marked if set(feature_names([symbol])) & set(names) - own)


def _family(family: str, scorer: Scorer, windows: Floats | None) -> Item:
    name = NAMES[family]
    remedy = _RETRAIN.format(family=kind_of(family))
    if family in scorer.errors:
        cause = "the file is missing, damaged, or from another version"
        return Item(name, False, scorer.errors[family], cause, remedy)
    if windows is None:
        cause = "there are no golden bars to run it on"
        return Item(name, False, "not run", cause, "invoke release")
    scores, errors = scorer.score_batch(windows)
    if family in errors:
        cause = "its weights or its graph are broken"
        return Item(name, False, errors[family], cause, remedy)
    p = scores[family]
    stuck = [head for k, head in enumerate(scorer.heads) if np.ptp(p[:, k]) < _STUCK]
    if stuck:
        value = p[0, scorer.heads.index(stuck[0])]
        cause = "it learnt nothing, or its export lost the weights"
        detail = f"says {value:.3f} whatever it sees ({', '.join(stuck)})"
        return Item(name, False, detail, cause, remedy)
    best = f", best head {_best_head(scorer)}" if family == "lstm" else ""
    detail = f"{len(p)} windows, outputs {p.min():.3f} to {p.max():.3f}{best}"
    return Item(name, True, detail)


def _best_head(scorer: Scorer) -> str:
    """As the training named it; the scorer falls back to a default."""
    named = scorer.metas.get("lstm", {}).get("best_head")
    return str(named) if named in scorer.heads else "unknown (its meta names none)"


def _stacking(scorer: Scorer, predicted: Predicted | None) -> Item:
    name, model = "stacking meta", scorer.stacking
    remedy = "python -m macd.app.train --mode stacking"
    if model is None:
        cause = "stacking was not trained, or had too few out-of-fold samples"
        return Item(name, False, scorer.errors.get("stacking", "there is none"), cause, remedy)
    n = model.facts.get("n_oof_samples")
    if not isinstance(n, int) or isinstance(n, bool) or n <= 0:
        cause = "its file was written by hand, or by a training that did not end"
        return Item(name, False, f"n_oof_samples is {n}", cause, remedy)
    if predicted is None:
        cause = "there are no golden bars to run it on, or no features from them"
        return Item(name, False, "not run", cause, "invoke release")
    values = {head: predicted.get(f"stacking_{head}", [math.nan]) for head in model.heads}
    silent = [head for head, each in values.items() if not all(map(math.isfinite, each))]
    if silent:
        cause = "a base model or a feature it needs gives nothing; see the items before this one"
        return Item(name, False, f"gives no number for {', '.join(silent)}", cause, remedy)
    stuck = [head for head, each in values.items() if max(each) - min(each) < _STUCK]
    if stuck:
        detail = f"says {values[stuck[0]][0]:.3f} whatever it sees ({', '.join(stuck)})"
        return Item(name, False, detail, "its weights are zero, or its inputs stand still", remedy)
    ends = [f(f(each) for each in values.values()) for f in (min, max)]
    detail = f"n_oof_samples {n}, headline {model.headline}, outputs {ends[0]:.3f} to {ends[1]:.3f}"
    return Item(name, True, detail)


def _batches(scorer: Scorer, windows: Floats) -> Item:
    name = "batch 1 and N agree"
    together, _ = scorer.score_batch(windows)
    worst = 0.0
    for n in range(len(windows)):
        alone, _ = scorer.score_batch(windows[n : n + 1])
        if set(alone) != set(together):
            worst = np.inf
            break
        worst = max([worst, *(float(np.abs(alone[f][0] - together[f][n]).max()) for f in alone)])
    if worst <= _BATCH_TOLERANCE:
        return Item(name, True, f"largest difference {worst:.1e}")
    cause = "the graph is locked to the batch size of its export"
    return Item(name, False, f"off by {worst:.3g}", cause, _RETRAIN.format(family="onnx"))


def _golden(document: Mapping[str, Any] | None, scorer: Scorer) -> Item:
    if document is None:
        cause = "this is a run, not a release, or the file is damaged"
        return Item("golden predictions", False, "there are none", cause, "invoke release")
    outcome = golden.check(document, scorer)
    if outcome.ok:
        return Item("golden predictions", True, f"{outcome.detail} ({outcome.max_diff:.1e})")
    cause = "models, features or a library differ from those of the training"
    remedy = "invoke release.verify, then invoke health: the item before this one may say more"
    return Item("golden predictions", False, outcome.detail, cause, remedy)


def _holdout(table: Path, asked: Mapping[str, Any] | None, predicted: Predicted | None) -> Item:
    """The one look at the models, LightGBM's too, that owes nothing to the code used here."""
    name = "predictions of the training"
    if asked is None or predicted is None or not table.is_file():
        what = (
            "there is nothing to run the models on"
            if predicted is None
            else f"no {table.name} here"
        )
        return Item(name, True, f"not compared: {what}", done=False)
    try:
        compared = golden.compare_with_training(table, asked, predicted)
    except Exception as error:  # whatever the table is, the item says it
        cause = "the table is damaged, or of another version"
        return Item(name, False, f"{error}".splitlines()[0], cause, "train again")
    if not compared.values:
        what = "the bars here end after those that the training held out"
        return Item(name, True, f"not compared: {what}", done=False)
    if compared.off:
        off = ", ".join(f"{output} by {by:.3g}" for output, by in compared.off.items())
        cause = "these are not the models that the training judged, or the features differ"
        remedy = "train again, or fetch the run again: invoke train.fetch"
        return Item(name, False, f"off on {compared.bars} held-out bars: {off}", cause, remedy)
    families = ", ".join(NAMES.get(family, family) for family in compared.families)
    agree = f"{compared.values} on {compared.bars} held-out bars agree"
    return Item(name, True, f"{agree} ({families}; {compared.worst:.1e})")


def _from_golden(
    read: Callable[[Mapping[str, Any], Scorer], T],
    document: Mapping[str, Any] | None,
    scorer: Scorer,
) -> T | None:
    if document is None:
        return None
    try:
        return read(document, scorer)
    except Exception:  # the golden item says what is wrong with it
        return None
