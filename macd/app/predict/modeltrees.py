"""Read boosted trees as LightGBM, XGBoost and CatBoost save them, and make up rows for them.

A row of noise around 0 says nothing to trees that split at prices. So each feature is drawn from
around the values at which the model itself splits. XGBoost and CatBoost are no packages of ours.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from macd.app.predict.boosting import import_lightgbm
from macd.app.predict.modelread import (
    MOST_VALUES,
    AbsentError,
    Array,
    Model,
    Question,
    WrongError,
    other_counts,
    other_names,
    read,
    said,
    spread_between,
    unreadable,
)

_FARTHEST = 1e30  # of a float32, with room for the sums that a library makes of it
_DEFAULT_NAME = re.compile(r"(Column_)?\d+")
# Objectives whose predictions are probabilities.
_LIGHTGBM = {"binary", "multiclass", "multiclassova", "cross_entropy", "xentropy"}
_XGBOOST = {"binary:logistic", "reg:logistic", "multi:softprob"}
_CATBOOST = {"Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll"}


def lightgbm(asked: Question) -> Model:
    library = import_lightgbm()
    text = read(Path(asked.path)).decode("utf-8", "replace")
    try:
        booster = library.Booster(model_str=text)
    except Exception as error:
        raise unreadable("LightGBM", error) from error
    count = booster.num_feature()
    made = spread_between(*_ranges(text, count))
    named = re.search(r"^objective=(\S+)", text, re.MULTILINE)
    return _trees(
        asked,
        count,
        booster.feature_name(),
        lambda rows: booster.predict(made(rows), num_threads=1),
        trees=booster.num_trees(),
        objective=named[1] if named else "",
        giving_probabilities=_LIGHTGBM,
    )


def xgboost(asked: Question) -> Model:
    library = _optional("xgboost")
    data = read(Path(asked.path))
    library.set_config(verbosity=0)
    booster = library.Booster({"nthread": 1})
    try:
        booster.load_model(bytearray(data))
        whole = json.loads(booster.save_raw("json"))["learner"]
    except Exception as error:
        raise unreadable("XGBoost", error) from error
    count = booster.num_features()
    boosted = whole["gradient_booster"]
    trees = boosted.get("gbtree", boosted).get("model", {}).get("trees", [])
    points = _split_points(trees)
    kinds = booster.feature_types
    if kinds and "c" in kinds:  # values of a category are its codes
        made = _with_codes(
            points, trees, [at for at, kind in enumerate(kinds) if kind == "c"], count
        )
    else:
        made = spread_between(*_around(points, count))

    def run(rows: Array) -> Any:
        table = library.DMatrix(
            made(rows).astype(np.float32), feature_types=kinds, enable_categorical=True, nthread=1
        )
        return booster.predict(table, validate_features=False)

    return _trees(
        asked,
        count,
        booster.feature_names or (),
        run,
        trees=booster.num_boosted_rounds(),
        objective=str(whole.get("objective", {}).get("name", "")),
        giving_probabilities=_XGBOOST,
    )


def catboost(asked: Question) -> Model:
    library = _optional("catboost")
    booster = library.CatBoost()
    try:
        _load_catboost(booster, Path(asked.path))
        names = list(booster.feature_names_)
        others = booster.get_text_feature_indices() or booster.get_embedding_feature_indices()
        categories = booster.get_cat_feature_indices()
    except Exception as error:
        raise unreadable("CatBoost", error) from error
    if others:
        shown = f"{len(names)} features, some of them texts or embeddings"
        return Model(shown, None, guessed="such inputs can't be made up here")
    # CatBoost counts the borders by its float features alone.
    numbers = [at for at in range(len(names)) if at not in categories]
    borders = booster.get_borders() if numbers else {}
    points = {numbers[at]: splits for at, splits in borders.items() if at < len(numbers)}
    made = spread_between(*_around(points, len(names)))
    objective = _loss(booster)
    kind = "Probability" if objective in _CATBOOST else "RawFormulaVal"

    def run(rows: Array) -> Any:
        table: Any = made(rows)
        if categories:
            table = table.astype(object)
            for at in categories:
                table[:, at] = [f"made up {row}" for row in rows]
        pool = library.Pool(table, cat_features=categories, feature_names=names)
        return booster.predict(pool, prediction_type=kind, thread_count=1)

    return _trees(
        asked,
        len(names),
        names,
        run,
        trees=int(booster.tree_count_ or 0),
        objective=objective,
        giving_probabilities=_CATBOOST,
        guessed="its categories are not known here" if categories else "",
    )


def _trees(
    asked: Question,
    count: int,
    names: Sequence[str],
    run: Callable[[Array], Any],
    *,
    trees: int,
    objective: str,
    giving_probabilities: set[str],
    guessed: str = "",
) -> Model:
    wrong = other_counts([count], asked)
    if not all(map(_DEFAULT_NAME.fullmatch, names)):
        wrong += other_names(names, asked)
    return Model(
        f"{trees} trees, {count} features",
        lambda rows: [np.asarray(run(rows), np.float64)],
        wrong,
        probabilities=objective in giving_probabilities if objective else None,
        why=f"objective {objective}",
        guessed=guessed,
        codes=bool(guessed),
        features=count,
    )


def _optional(name: str) -> Any:
    """A library that need not be here. Raises AbsentError, also where it is broken."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a shared library that is missing is an error of its own
        how = f"pip install {name}, then invoke health again"
        raise AbsentError(
            f"not run, {name} can't be imported here: {said(error)} ({how})"
        ) from error


def _load_catboost(booster: Any, path: Path) -> None:
    data = read(path)
    if data.startswith(b"CBM1"):
        booster.load_model(blob=data)
    else:  # it takes JSON from a file alone
        booster.load_model(str(path), format="json")


def _loss(booster: Any) -> str:
    try:
        return str(json.loads(booster.get_metadata()["params"])["loss_function"]["type"])
    except (KeyError, TypeError, ValueError):
        return ""


def _ranges(text: str, count: int) -> tuple[Array, Array]:
    """Where each feature lay in LightGBM's training, as the file says; 0 to 1 where it doesn't."""
    if count > MOST_VALUES:
        raise WrongError(f"it wants {count} features", "no training has so many", "train it again")
    low, high = np.zeros(count), np.ones(count)
    match = re.search(r"^feature_infos=(.*)$", text, re.MULTILINE)
    for at, info in enumerate(match[1].split(" ")[:count] if match else []):
        numbers = [_float(part) for part in info.strip("[]").split(":")]
        if numbers and all(map(math.isfinite, numbers)):
            low[at], high[at] = min(numbers), max(numbers)
    return low, high


def _around(points: Mapping[int, Sequence[float]], count: int) -> tuple[Array, Array]:
    """From below the lowest to above the highest of the points at which each feature is split."""
    if count > MOST_VALUES:
        raise WrongError(f"it wants {count} features", "no training has so many", "train it again")
    low, high = np.zeros(count), np.ones(count)
    for at, splits in points.items():
        finite = [p for p in splits if math.isfinite(p) and abs(p) < _FARTHEST]
        if finite and 0 <= at < count:
            room = max(max(finite) - min(finite), abs(finite[0]) / 100, 1e-6)
            low[at], high[at] = min(finite) - room, max(finite) + room
    return low, high


def _split_points(trees: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """Of XGBoost's trees: feature -> the values at which it is split."""
    points: dict[int, list[float]] = {}
    for tree in trees:
        for child, at, value in zip(
            tree["left_children"], tree["split_indices"], tree["split_conditions"], strict=True
        ):
            if child != -1:
                points.setdefault(at, []).append(float(value))
    return points


def _with_codes(
    points: Mapping[int, Sequence[float]],
    trees: Sequence[Mapping[str, Any]],
    coded: Sequence[int],
    count: int,
) -> Callable[[Array], Array]:
    most = max((code for tree in trees for code in tree.get("categories", ())), default=1)
    made = spread_between(*_around(points, count))

    def rows_of(rows: Array) -> Array:
        table = made(rows)
        table[:, coded] = (np.asarray(rows)[:, None] + np.arange(len(coded))) % (int(most) + 1)
        return table

    return rows_of


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
