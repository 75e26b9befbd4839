"""One model that nobody vouches for, loaded and run: the child process of modelfolder.py.

A file can make a library take all memory or time, or abort the process: childprocess.py limits it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from macd import childprocess
from macd.app.predict import modelonnx, modeltrees
from macd.app.predict.modelonnx import shape_text
from macd.app.predict.modelread import (
    EXPORT,
    ORDINARY,
    ROWS,
    AbsentError,
    Array,
    Model,
    Question,
    WrongError,
    said,
    unreadable,
)

STUCK = 1e-6  # a spread below it over different inputs means the model says always the same
_BATCH_TOLERANCE = 1e-4
_MOST_OUTPUTS = 16  # a wider output is no row of probabilities
_READERS: dict[str, Callable[[Question], Model]] = {
    "onnx": modelonnx.onnx,
    "lgbm": modeltrees.lightgbm,
    "xgboost": modeltrees.xgboost,
    "catboost": modeltrees.catboost,
}


@dataclass(frozen=True)
class Seen:
    """What a model does, in words, and everything that is wrong with it. done: it was run."""

    detail: str
    wrong: Sequence[WrongError] = ()
    done: bool = True
    model: Model | None = None


def answer(question: dict[str, Any]) -> dict[str, Any]:
    seen = look(Question(**{**question, "names": tuple(question["names"])}))
    wrong = [[w.detail, w.cause, w.remedy] for w in seen.wrong]
    features, files = (seen.model.features, [*seen.model.files]) if seen.model else (0, [])
    return {
        "detail": seen.detail,
        "wrong": wrong,
        "done": seen.done,
        "features": features,
        "files": files,
    }


def look(asked: Question) -> Seen:
    try:
        model = _READERS[asked.kind](asked)
        return replace(_tried(model, asked), model=model)
    except WrongError as wrong:
        return Seen("", [wrong])
    except AbsentError as error:
        return Seen(str(error), done=False)
    except MemoryError:
        cause = f"it needs more than {childprocess.MEMORY_BYTES >> 30} GiB, or is made to"
        return Seen("", [WrongError("it takes too much memory", cause, "look at its export")])
    except ImportError as error:
        cause = "a package that reads such models is not installed here"
        return Seen("", [WrongError(f"not run: {error}", cause, "pip install 'macd[train]'")])
    except Exception as error:  # whatever a hostile file makes a library raise
        return Seen("", [unreadable(asked.kind, error)])


def _tried(model: Model, asked: Question) -> Seen:
    """Run it on rows that differ, together and alone."""
    if model.run is None:
        return Seen(f"{model.shown}; not run: {model.guessed}", model.wrong, done=False)
    try:
        outputs = _together(model.run, model.fixed)
        alone = [] if model.fixed else [model.run(np.arange(n, n + 1)) for n in range(3)]
    except MemoryError:
        raise
    except WrongError as error:
        return Seen(model.shown, [*model.wrong, error])
    except Exception as error:
        return _not_run(model, error)
    if not outputs or not outputs[0].size:
        cause = "it gives labels or text, or nothing"
        return Seen(model.shown, [*model.wrong, WrongError("it gives no numbers", cause, EXPORT)])
    wrong = [*model.wrong, *_not_finite(outputs), *_differing(outputs[0], alone)]
    if not np.isfinite(outputs[0][: len(ORDINARY)]).all():
        return Seen(model.shown, wrong)
    judged = _judged(outputs[0], model, asked)
    return replace(judged, wrong=[*wrong, *judged.wrong])


def _not_run(model: Model, error: Exception) -> Seen:
    if "alloc" in str(error).lower():  # as onnxruntime says it
        raise MemoryError from error
    if model.guessed:
        detail = f"{model.shown}; not run: {model.guessed}: {said(error)}"
        return Seen(detail, model.wrong, done=False)
    cause = "its graph is broken, or its inputs are other than they are declared"
    broken = WrongError(f"it can't be run: {said(error)}", cause, EXPORT)
    return Seen(model.shown, [*model.wrong, broken])


def _judged(first: Array, model: Model, asked: Question) -> Seen:
    """What its answers are: inside [0, 1] where they are probabilities, and not always the same."""
    low, high = (float(end(first[: len(ORDINARY)])) for end in (np.min, np.max))
    probabilities, why = _meaning(model, asked)
    meaning = "" if probabilities is None else f", {'' if probabilities else 'no '}probabilities"
    detail = f"{model.shown}; outputs {low:.3f} to {high:.3f}{meaning}{f' ({why})' if why else ''}"
    wrong = []
    if probabilities and (low < 0 or high > 1):
        cause = f"it gives raw scores: the sigmoid is not part of it ({why})"
        outside = f"outputs from {low:.3g} to {high:.3g}, not inside [0, 1]"
        wrong.append(WrongError(outside, cause, EXPORT))
    stuck = _stuck(first)
    if stuck and model.codes:
        return Seen(f"{detail}; {stuck.detail}, but {model.guessed}", wrong, done=False)
    return Seen(detail, [*wrong, stuck] if stuck else wrong)


def _together(run: Callable[[Array], Sequence[Array]], fixed: int) -> list[Array]:
    if not fixed:
        return [_rows(out, ROWS) for out in run(np.arange(ROWS))]
    every = np.arange(math.ceil(ROWS / fixed) * fixed) % ROWS
    parts = [run(part) for part in np.split(every, len(every) // fixed)]
    return [
        np.concatenate([_rows(out, fixed) for out in outs])[:ROWS]
        for outs in zip(*parts, strict=True)
    ]


def _rows(out: Array, count: int) -> Array:
    if out.ndim == 0 or out.shape[0] != count:
        cause = "the graph reduces the batch, or is locked to another"
        raise WrongError(
            f"it gives {shape_text(list(out.shape))} for {count} windows", cause, EXPORT
        )
    return out.reshape(count, -1)


def _meaning(model: Model, asked: Question) -> tuple[bool | None, str]:
    """Whether its outputs have to be probabilities, and who says so.

    The model's own file is believed first, then its meta file, then its name.
    """
    if model.probabilities is not None:
        return model.probabilities, model.why
    if asked.says:
        return asked.says == "probabilities", asked.meta
    return (True, "by its file name") if asked.family else (None, "")


def _not_finite(outputs: list[Array]) -> list[WrongError]:
    bad = sum(int((~np.isfinite(out[: len(ORDINARY)])).sum()) for out in outputs)
    if not bad:
        return []
    cause = "its weights are broken, or it divides by zero"
    return [WrongError(f"{bad} outputs are NaN or infinite", cause, "train it again")]


def _stuck(first: Array) -> WrongError | None:
    finite = first[np.isfinite(first).all(axis=1)]
    stuck = np.ptp(finite, axis=0) < STUCK
    if not (stuck.all() or (stuck.any() and stuck.size <= _MOST_OUTPUTS)):
        return None
    at = int(np.argmax(stuck))
    which = f" (output {at + 1} of {stuck.size})" if stuck.size > 1 else ""
    cause = "it learnt nothing, or its export lost the weights"
    detail = f"says {finite[0, at]:.3f} whatever it sees{which}"
    return WrongError(detail, cause, "train it again")


def _differing(first: Array, alone: Sequence[Sequence[Array]]) -> list[WrongError]:
    """Of the first rows, together and each alone."""
    together = first[: len(alone)]
    if not alone or not np.isfinite(together).all():
        return []
    off = np.abs(np.stack([_rows(outputs[0], 1)[0] for outputs in alone]) - together).max()
    if off <= _BATCH_TOLERANCE * max(1.0, float(np.abs(together).max())):
        return []
    cause = "the graph mixes the rows of a batch, or is locked to the batch of its export"
    return [WrongError(f"batch 1 and {ROWS} differ by {off:.3g}", cause, EXPORT)]


if __name__ == "__main__":
    childprocess.main(answer)
