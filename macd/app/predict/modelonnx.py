"""Read an ONNX that nobody vouches for, and make up inputs of the shapes that it declares.

Of other files it reads the weights that the ONNX names, from below the folder alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from macd.app.predict.modelread import (
    EXPORT,
    LARGEST_FILE,
    MOST_VALUES,
    ORDINARY,
    PAIR,
    WIDE,
    Array,
    Model,
    Question,
    WrongError,
    other_counts,
    read,
    said,
    unreadable,
)
from macd.app.predict.scoring import SEQ, onnx_session

_FEATURES = 8  # where neither the graph nor a meta file says how many
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
_PROBABILITY = re.compile(r"(^|[^a-z])(prob|proba|probs|probability|probabilities)([^a-z]|$)", re.I)
_RAW = re.compile(r"(^|[^a-z])(logit|logits|raw|margin|quantile|quantiles)([^a-z]|$)", re.I)


def onnx(asked: Question) -> Model:
    session, files = _loaded(Path(asked.path), Path(asked.top))
    inputs = session.get_inputs()
    wrong = _contradictions([tensor.shape for tensor in inputs], asked)
    batches = [tensor.shape[0] for tensor in inputs if tensor.shape]
    fixed = next((size for size in batches if isinstance(size, int)), 0)
    if fixed:
        again = "export it again with a dynamic batch axis"
        cause = "the graph is locked to the batch size of its export"
        wrong.append(WrongError(f"it takes batches of {fixed} only", cause, again))
    names = [output.name for output in session.get_outputs()]
    judged, probabilities = _judged(names)

    def run(rows: Array) -> list[Array]:
        fed = {tensor.name: _values(tensor, rows, asked) for tensor in inputs}
        outputs = [_numbers(out) for out in session.run(None, fed)]
        arrays = [out for out in outputs if out is not None]
        first = outputs[judged] if arrays else None
        return arrays if first is None else [first, *(out for out in arrays if out is not first)]

    return Model(
        ", ".join(f"{tensor.name} {shape_text(tensor.shape)}" for tensor in inputs),
        run,
        wrong,
        fixed=fixed,
        probabilities=probabilities,
        why=f"output {names[judged]}" if names else "",
        guessed=_guessed(inputs, asked),
        codes=_has_texts(inputs),
        features=_features(inputs),
        files=files,
    )


def _features(inputs: Sequence[Any]) -> int:
    """Of its one input, or of the one that takes windows."""
    wide = [tensor.shape for tensor in inputs if len(tensor.shape) > 1]
    windows = [shape for shape in wide if len(shape) == 3] or wide
    last = windows[0][-1] if len(windows) == 1 else 0
    return last if isinstance(last, int) else 0


def _judged(names: Sequence[str]) -> tuple[int, bool | None]:
    """Which output is the answer, by the names, and whether it is one of probabilities."""
    for at, name in enumerate(names):
        if _PROBABILITY.search(name):
            return at, True
    return 0, False if names and _RAW.search(names[0]) else None


def _numbers(out: Any) -> Array | None:
    """An output as numbers; None for labels and texts. Classifiers may give a dict each row."""
    if isinstance(out, list) and out and all(isinstance(row, dict) for row in out):
        return np.array([[row[key] for key in sorted(row)] for row in out], np.float64)
    is_float = getattr(out, "dtype", None) in (np.float16, np.float32, np.float64)
    return np.asarray(out, np.float64) if is_float else None


def _contradictions(shapes: Sequence[list[Any]], asked: Question) -> list[WrongError]:
    lasts = [shape[-1] for shape in shapes if len(shape) > 1]
    counts = [last for last in lasts if isinstance(last, int)]
    wrong = other_counts(counts, asked) if len(counts) == len(lasts) else []
    windows = [shape[1] for shape in shapes if len(shape) == 3]
    if asked.seq and windows and all(isinstance(n, int) and n != asked.seq for n in windows):
        detail = f"it takes windows of {windows[0]} bars, {asked.meta} says {asked.seq}"
        cause = "the model and its meta file are of two trainings"
        wrong.append(WrongError(detail, cause, PAIR))
    return wrong


def _guessed(inputs: Sequence[Any], asked: Question) -> str:
    if _has_texts(inputs):
        return "it takes texts, which were made up"
    shapes = [tensor.shape for tensor in inputs]
    lasts = [shape[-1] for shape in shapes if len(shape) > 1]
    windows = [shape[1] for shape in shapes if len(shape) > 2]
    if not asked.features and not all(isinstance(n, int) for n in lasts):
        return f"its feature axis is open and no meta file says how many; {_FEATURES} were tried"
    if not asked.seq and not all(isinstance(n, int) for n in windows):
        return f"its window axis is open and no meta file says how long; {SEQ} bars were tried"
    return ""


def _has_texts(inputs: Sequence[Any]) -> bool:
    return any(tensor.type == "tensor(string)" for tensor in inputs)


def _values(tensor: Any, rows: Array, asked: Question) -> Array:
    """Rows of standard normal values, each as wide as ORDINARY and WIDE say."""
    kind = _TYPES.get(tensor.type)
    if kind is None:
        cause = "only tensors of numbers, booleans and texts are made up here"
        raise WrongError(f"input {tensor.name} takes {tensor.type}", cause, EXPORT)
    shape = [_size(n, at, len(tensor.shape), asked) for at, n in enumerate(tensor.shape)][1:]
    if math.prod(shape) * len(rows) > MOST_VALUES:
        cause = "it declares an input that no bar fills"
        raise WrongError(f"input {tensor.name} is {shape_text(tensor.shape)}", cause, EXPORT)
    if not tensor.shape:
        return np.asarray("1" if kind is np.object_ else 1, kind)
    made = np.empty((len(rows), *shape), np.float64)
    for at, row in enumerate(rows):  # a row is the same in whatever batch it comes
        width = (*ORDINARY, *WIDE)[row]
        made[at] = np.random.default_rng(int(row)).normal(0.0, width, shape)
    if kind is np.object_:
        return np.char.mod("%.3f", made).astype(np.object_)
    if np.dtype(kind).kind in "iub":  # a code, a mask or a flag: these are there in any training
        return np.abs(made).clip(0, 1).astype(kind)
    with np.errstate(over="ignore"):  # 1e5 is too much for 16 bits
        return made.astype(kind)


def _size(declared: Any, at: int, rank: int, asked: Question) -> int:
    if isinstance(declared, int):
        return max(declared, 1)
    if at == rank - 1:
        return asked.features or _FEATURES
    return asked.seq or SEQ


def _loaded(path: Path, top: Path) -> tuple[Any, Sequence[str]]:
    """A session, and the names of the files that hold its weights."""
    import onnx  # noqa: PLC0415 - only this kind needs it

    data = read(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise unreadable("ONNX", error) from error
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    files = _bring_in(outside, path, top) if outside else ()
    if outside:
        data = model.SerializeToString()
    form = (model.ir_version, max((one.version for one in model.opset_import), default=0))
    del model
    try:
        return onnx_session(data), files
    except Exception as error:
        raise _too_new(error, *form) or unreadable("onnxruntime", error) from error


def _too_new(error: Exception, ir_version: int, opset: int) -> WrongError | None:
    import onnxruntime  # noqa: PLC0415

    text, here = str(error), f"onnxruntime {onnxruntime.__version__} here"
    till = re.search(r"till opset (\d+)|max supported IR version: (\d+)", text)
    cause = "it was exported by newer packages than those that are to run it"
    remedy = "export it with a lower opset_version, or install a newer onnxruntime here and there"
    if till:
        most = f"opset {till[1]}" if till[1] else f"IR version {till[2]}"
        its = f"opset {opset}" if till[1] else f"IR version {ir_version}"
        return WrongError(f"it is of {its}, {here} reads up to {most}", cause, remedy)
    unknown = re.search(r"No Op registered for (\S+)|(\S+)\(-?\d+\) is not a registered", text)
    if unknown:
        cause = "its operator is a newer one, or comes from a library of its own, never loaded here"
        detail = f"{here} knows no operator {said(ValueError(unknown[1] or unknown[2]))}"
        return WrongError(detail, cause, "export it with standard operators (opset 17 or so)")
    return None


def _bring_in(tensors: list[Any], path: Path, top: Path) -> Sequence[str]:
    """Put the weights that lie in other files into the model; only files below `top` are read.

    Gives back their names.
    """
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    names = sorted({place.get("location", "") for place in places})
    files = {name: _beside(name, path, top) for name in names}
    if missing := [name for name, file in files.items() if file is None]:
        listed = ", ".join(map(repr, missing[:3])) + (" and more" if len(missing) > 3 else "")
        cause = "a large ONNX keeps its weights in a second file, which was not copied along"
        remedy = f"copy it into {path.parent.name}, or export the model into one file"
        raise WrongError(f"its weights lie in {listed}, which is not here", cause, remedy)
    if sum(file.stat().st_size for file in files.values() if file) > LARGEST_FILE:
        raise WrongError("its weights are larger than 2 GB", "too large to be looked at", EXPORT)
    contents = {name: file.read_bytes() for name, file in files.items() if file}
    if pointers := [
        n for n, data in contents.items() if data.startswith(b"version https://git-lfs")
    ]:
        cause = "the repository was cloned without its large files"
        raise WrongError(
            f"{pointers[0]!r} is a pointer of Git LFS, no weights", cause, "git lfs pull"
        )
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
    return names


def _beside(name: str, path: Path, top: Path) -> Path | None:
    """The file of weights; None where there is none. Raises WrongError for one outside of `top`."""
    pure = PurePosixPath(name)
    outside = not name or pure.is_absolute() or ".." in pure.parts or "\0" in name
    place = path.parent if outside else path.parent / name
    if outside or not place.resolve().is_relative_to(top.resolve()):
        cause = "such a file could be any file of this machine; it was not opened"
        raise WrongError(f"its weights lie in {name!r}, outside of the folder", cause, EXPORT)
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


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise WrongError(f"its weights begin at {text[:20]!r}", "the file is damaged", EXPORT)
    return int(text)


def shape_text(shape: list[Any]) -> str:
    sizes = (n if isinstance(n, int) else "?" if at else "N" for at, n in enumerate(shape))
    return f"({', '.join(map(str, sizes))})"
