"""One model that nobody vouches for, loaded and run: the child process of modelfolder.py.

A file can make a library take all memory or time, or abort the process: childprocess.py limits it.
Of other files it reads the weights that an ONNX names, from below `top` alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from macd import childprocess
from macd.app.predict.scoring import SEQ, import_lightgbm, onnx_session
from macd.errors import first_line

STUCK = 1e-6  # a spread below it over different inputs means the model says always the same
_BATCH_TOLERANCE = 1e-4
_LARGEST_FILE = 2_000_000_000  # a protobuf holds no more
_MOST_VALUES = 20_000_000  # of one input
_MOST_OUTPUTS = 16  # a wider output is no row of probabilities
_LONGEST = 300
_ORDINARY = (0.01, 0.1, 0.5, 1.0, 1.0, 1.0, 2.0, 3.0)  # standard deviations of the rows
_WIDE = (10.0, 100.0, 1e3, 1e4, 1e5)  # for a model that expects prices: they only must differ
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Question:
    """path: of the model. top: the folder it may read from. features, seq: what its meta file says,
    0 for nothing. names: of the features, in order. probabilities: whether it must give some.
    """

    kind: str
    path: str
    top: str
    meta: str = ""
    features: int = 0
    seq: int = 0
    names: tuple[str, ...] = ()
    probabilities: bool = False


class WrongError(Exception):
    """What is wrong with a model, the likely cause and the remedy."""

    def __init__(self, detail: str, cause: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.cause, self.remedy = detail, cause, remedy


def answer(question: dict[str, Any]) -> dict[str, Any]:
    detail, wrong = look(Question(**{**question, "names": tuple(question["names"])}))
    return {"detail": detail, "wrong": [[w.detail, w.cause, w.remedy] for w in wrong]}


def look(asked: Question) -> tuple[str, list[WrongError]]:
    """What the model does, in words, and everything that is wrong with it."""
    try:
        return {"onnx": _onnx, "lgbm": _lgbm}[asked.kind](asked)
    except WrongError as wrong:
        return "", [wrong]
    except MemoryError:
        cause = f"it needs more than {childprocess.MEMORY_BYTES >> 30} GiB, or is made to"
        return "", [WrongError("it takes too much memory", cause, "look at how it was exported")]
    except ImportError as error:
        cause = "a package that reads such models is not installed here"
        return "", [WrongError(f"not run: {error}", cause, "pip install 'macd[train]'")]
    except Exception as error:  # whatever a hostile file makes a library raise
        return "", [_unreadable(asked.kind, error)]


def _onnx(asked: Question) -> tuple[str, list[WrongError]]:
    session = _loaded(Path(asked.path), Path(asked.top))
    inputs = session.get_inputs()
    wrong = [w for tensor in inputs for w in _contradictions(tensor.shape, asked)]
    batches = [tensor.shape[0] for tensor in inputs if tensor.shape]
    fixed = next((size for size in batches if isinstance(size, int)), 0)
    if fixed:
        again = "export it again with a dynamic batch axis"
        cause = "the graph is locked to the batch size of its export"
        wrong.append(WrongError(f"it takes batches of {fixed} only", cause, again))
    shown = ", ".join(f"{tensor.name} {_shape(tensor.shape)}" for tensor in inputs)

    def run(rows: Array) -> list[Array]:
        fed = {tensor.name: _values(tensor, rows, asked) for tensor in inputs}
        outputs = session.run(None, fed)
        return [
            np.asarray(out, np.float64) for out in outputs if getattr(out, "dtype", None) in _FLOAT
        ]

    return _tried(run, asked, wrong, fixed, shown)


def _lgbm(asked: Question) -> tuple[str, list[WrongError]]:
    lightgbm = import_lightgbm()
    text = _read(Path(asked.path)).decode("utf-8", "replace")
    try:
        booster = lightgbm.Booster(model_str=text)
    except Exception as error:
        raise _unreadable("LightGBM", error) from error
    count = booster.num_feature()
    wrong = _contradictions(["N", count], asked)
    names = tuple(booster.feature_name())
    if asked.names and len(names) == len(asked.names) and not names[0].startswith("Column_"):
        pairs = [(a, b) for a, b in zip(names, asked.names, strict=True) if a != b]
        if pairs:
            detail = f"its feature {pairs[0][0]} stands where {asked.meta} has {pairs[0][1]}"
            wrong.append(
                WrongError(detail, "the model and its meta file are of two trainings", _PAIR)
            )
    if count * 16 > _MOST_VALUES:
        raise WrongError(f"it wants {count} features", "no training has so many", "train it again")
    low, high = _ranges(text, count)
    draws = np.random.default_rng(7).random((len(_ORDINARY) + len(_WIDE), count))

    def run(rows: Array) -> list[Array]:
        drawn = low + (high - low) * draws[rows]
        return [np.asarray(booster.predict(drawn, num_threads=1), np.float64)]

    shown = f"{booster.num_trees()} trees, {count} features"
    return _tried(run, asked, wrong, 0, shown)


_PAIR = "copy both from the same training"
_FLOAT = (np.float16, np.float32, np.float64)


def _tried(
    run: Callable[[Array], list[Array]],
    asked: Question,
    wrong: list[WrongError],
    fixed: int,
    shown: str,
) -> tuple[str, list[WrongError]]:
    """Run it on rows that differ, together and alone."""
    count = len(_ORDINARY) + len(_WIDE)
    ordinary = len(_ORDINARY)
    try:
        if fixed:
            every = np.arange(math.ceil(count / fixed) * fixed) % count
            parts = [run(part) for part in np.split(every, len(every) // fixed)]
            outputs = [
                np.concatenate([_rows(out, fixed) for out in outs])[:count]
                for outs in zip(*parts, strict=True)
            ]
        else:
            outputs = [_rows(out, count) for out in run(np.arange(count))]
        alone = [] if fixed else [run(np.arange(n, n + 1)) for n in range(3)]
    except MemoryError:
        raise
    except WrongError as error:
        return shown, [*wrong, error]
    except Exception as error:
        if "alloc" in str(error).lower():  # as onnxruntime says it
            raise MemoryError from error
        cause = "its graph is broken, or its inputs are other than they are declared"
        return shown, [*wrong, WrongError(f"it can't be run: {_first_line(error)}", cause, _EXPORT)]
    if not outputs or not outputs[0].size:
        cause = "it gives labels or text, or nothing"
        return shown, [*wrong, WrongError("it gives no numbers", cause, _EXPORT)]
    wrong += _not_finite(outputs, ordinary)
    first = outputs[0]
    if np.isfinite(first[:ordinary]).all():
        wrong += _judged(first, ordinary, asked)
        if alone and (off := _apart(first, alone)) > _BATCH_TOLERANCE:
            cause = "the graph mixes the rows of a batch, or is locked to the batch of its export"
            wrong.append(WrongError(f"batch 1 and {count} differ by {off:.3g}", cause, _EXPORT))
        shown += f"; outputs {first[:ordinary].min():.3f} to {first[:ordinary].max():.3f}"
    return shown, wrong


_EXPORT = "export it again from its training"


def _rows(out: Array, count: int) -> Array:
    if out.ndim == 0 or out.shape[0] != count:
        cause = "the graph reduces the batch, or is locked to another"
        raise WrongError(f"it gives {_shape(list(out.shape))} for {count} windows", cause, _EXPORT)
    return out.reshape(count, -1)


def _not_finite(outputs: list[Array], ordinary: int) -> list[WrongError]:
    bad = sum(int((~np.isfinite(out[:ordinary])).sum()) for out in outputs)
    if not bad:
        return []
    cause = "its weights are broken, or it divides by zero"
    return [WrongError(f"{bad} outputs are NaN or infinite", cause, "train it again")]


def _judged(first: Array, ordinary: int, asked: Question) -> list[WrongError]:
    wrong = []
    low, high = float(first[:ordinary].min()), float(first[:ordinary].max())
    if asked.probabilities and (low < 0 or high > 1):
        cause = "it gives raw scores: the sigmoid is not part of it"
        wrong.append(
            WrongError(f"outputs from {low:.3g} to {high:.3g}, not inside [0, 1]", cause, _EXPORT)
        )
    finite = first[np.isfinite(first).all(axis=1)]
    stuck = np.ptp(finite, axis=0) < STUCK
    if stuck.all() or (stuck.any() and stuck.size <= _MOST_OUTPUTS):
        at = int(np.argmax(stuck))
        which = f" (output {at + 1} of {stuck.size})" if stuck.size > 1 else ""
        cause = "it learnt nothing, or its export lost the weights"
        detail = f"says {finite[0, at]:.3f} whatever it sees{which}"
        wrong.append(WrongError(detail, cause, "train it again"))
    return wrong


def _apart(first: Array, alone: list[list[Array]]) -> float:
    single = [_rows(outputs[0], 1)[0] for outputs in alone]
    scale = max(1.0, float(np.abs(first[: len(single)]).max()))
    return float(np.abs(np.stack(single) - first[: len(single)]).max()) / scale


def _contradictions(shape: list[Any], asked: Question) -> list[WrongError]:
    wrong = []
    cause = "the model and its meta file are of two trainings"
    count = shape[-1] if len(shape) > 1 and isinstance(shape[-1], int) else 0
    if asked.features and count not in (0, asked.features):
        detail = f"it takes {count} features, {asked.meta} names {asked.features}"
        wrong.append(WrongError(detail, cause, _PAIR))
    if asked.seq and len(shape) == 3 and isinstance(shape[1], int) and shape[1] != asked.seq:
        detail = f"it takes windows of {shape[1]} bars, {asked.meta} says {asked.seq}"
        wrong.append(WrongError(detail, cause, _PAIR))
    return wrong


def _values(tensor: Any, rows: Array, asked: Question) -> Array:
    """Rows of standard normal values, each as wide as `_ORDINARY` and `_WIDE` say."""
    kind = _TYPES.get(tensor.type)
    if kind is None:
        cause = "only floats, whole numbers of 32 or 64 bits and booleans are made up here"
        raise WrongError(f"input {tensor.name} takes {tensor.type}", cause, _EXPORT)
    shape = [_size(n, at, len(tensor.shape), asked) for at, n in enumerate(tensor.shape)][1:]
    if math.prod(shape) * len(rows) > _MOST_VALUES:
        cause = "it declares an input that no bar fills"
        raise WrongError(f"input {tensor.name} is {_shape(tensor.shape)}", cause, _EXPORT)
    if not tensor.shape:
        return np.asarray(1, kind)
    made = np.empty((len(rows), *shape), np.float64)
    for at, row in enumerate(rows):  # a row is the same in whatever batch it comes
        width = (*_ORDINARY, *_WIDE)[row]
        made[at] = np.random.default_rng(int(row)).normal(0.0, width, shape)
    return (
        np.abs(made).clip(0, 1).astype(kind) if np.dtype(kind).kind in "ib" else made.astype(kind)
    )


def _size(declared: Any, at: int, rank: int, asked: Question) -> int:
    if isinstance(declared, int):
        return max(declared, 1)
    if at == rank - 1:
        return asked.features or 8
    return asked.seq or SEQ


def _loaded(path: Path, top: Path) -> Any:
    import onnx  # noqa: PLC0415 - only this kind needs it

    data = _read(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise _unreadable("ONNX", error) from error
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        _bring_in(outside, path, top)
        data = model.SerializeToString()
    del model
    try:
        return onnx_session(data)
    except Exception as error:
        raise _unreadable("onnxruntime", error) from error


def _bring_in(tensors: list[Any], path: Path, top: Path) -> None:
    """Put the weights that lie in other files into the model; only files below `top` are read."""
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    names = sorted({place.get("location", "") for place in places})
    files = {name: _beside(name, path, top) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        listed = ", ".join(map(repr, missing[:3])) + (" and more" if len(missing) > 3 else "")
        cause = "a large ONNX keeps its weights in a second file, which was not copied along"
        remedy = f"copy it into {path.parent.name}, or export the model into one file"
        raise WrongError(f"its weights lie in {listed}, which is not here", cause, remedy)
    if sum(file.stat().st_size for file in files.values() if file) > _LARGEST_FILE:
        raise WrongError("its weights are larger than 2 GB", "too large to be looked at", _EXPORT)
    contents = {name: file.read_bytes() for name, file in files.items() if file}
    for tensor, place in zip(tensors, places, strict=True):
        name = place.get("location", "")
        start = _number(place.get("offset", "0"))
        end = start + _number(place["length"]) if "length" in place else len(contents[name])
        if end > len(contents[name]):
            cause = "the copy was cut short, or the file is of another export"
            detail = f"{name!r} has {len(contents[name])} bytes, its weights end at {end}"
            raise WrongError(detail, cause, "copy it again")
        tensor.raw_data = contents[name][start:end]
        tensor.data_location = 0
        del tensor.external_data[:]


def _beside(name: str, path: Path, top: Path) -> Path | None:
    """The file of weights; None where there is none. Raises WrongError for one outside of `top`."""
    pure = PurePosixPath(name)
    outside = not name or pure.is_absolute() or ".." in pure.parts or "\0" in name
    place = path.parent if outside else path.parent / name
    if outside or not place.resolve().is_relative_to(top.resolve()):
        cause = "such a file could be any file of this machine; it was not opened"
        raise WrongError(f"its weights lie in {name!r}, outside of the folder", cause, _EXPORT)
    return place if place.is_file() else None


def _tensors(model: Any) -> Iterator[Any]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def _ranges(text: str, count: int) -> tuple[Array, Array]:
    """Where each feature lay in the training, as the file says; 0 to 1 where it doesn't say."""
    low, high = np.zeros(count), np.ones(count)
    match = re.search(r"^feature_infos=(.*)$", text, re.MULTILINE)
    for at, info in enumerate(match[1].split(" ")[:count] if match else []):
        numbers = [_float(part) for part in info.strip("[]").split(":")]
        if numbers and all(map(math.isfinite, numbers)):
            low[at], high[at] = min(numbers), max(numbers)
    return low, high


def _read(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST_FILE:
        raise WrongError("it is larger than 2 GB", "too large to be looked at", _EXPORT)
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs"):
        cause = "the repository was cloned without its large files"
        raise WrongError("it is a pointer of Git LFS, no model", cause, "git lfs pull")
    if not data:
        raise WrongError("it is empty", "a copy or a training did not end", "copy it again")
    return data


def _unreadable(what: str, error: Exception) -> WrongError:
    cause = "the file is damaged, cut short, or something else"
    return WrongError(f"{what} can't read it: {_first_line(error)}", cause, "copy it again")


def _first_line(error: Exception) -> str:
    return "".join(c if c.isprintable() else " " for c in first_line(error))[:_LONGEST]


def _shape(shape: list[Any]) -> str:
    sizes = (n if isinstance(n, int) else "?" if at else "N" for at, n in enumerate(shape))
    return f"({', '.join(map(str, sizes))})"


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise WrongError(f"its weights begin at {text[:20]!r}", "the file is damaged", _EXPORT)
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


if __name__ == "__main__":
    childprocess.main(answer)
