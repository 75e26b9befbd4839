"""Which kind of model a file is, by its first bytes and its name; and whether it is whole.

Standard library alone, and nothing is loaded: this says what may be loaded, and by what.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HEAD = 64
_MOST_HEADER = 64 << 20
_MOST_PEEKED = 1 << 20
# A class in a pickle: two short texts and STACK_GLOBAL, or GLOBAL with two lines.
_NAMED_CLASS = re.compile(
    rb"\x8c.([\w.]{2,100})\x94\x8c.([\w.]{2,100})\x94\x93|c([\w.]{2,100})\n([\w.]{2,100})\n",
    re.DOTALL,
)
_COUNTED = re.compile(rb"n_features_in_(?:\x94|q.|r....)?(?:K(.)|M(..)|J(....))", re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """reader: what loads and runs it (modelrun.py), "" where nothing here does: then `why` says
    so, and `instead` what to export in its place.
    """

    what: str
    reader: str = ""
    why: str = ""
    instead: str = ""


ONNX = Kind("ONNX", "onnx")
LIGHTGBM = Kind("LightGBM text", "lgbm")
XGBOOST = Kind("XGBoost", "xgboost")
CATBOOST = Kind("CatBoost", "catboost")

_RUNS_CODE = "loading one runs whatever code it holds"
_TORCH = Kind("a pickle of PyTorch", why=_RUNS_CODE, instead="torch.onnx.export to .onnx")
_PICKLE = Kind(
    "a pickle",
    why=_RUNS_CODE,
    instead="skl2onnx to .onnx, or the library's own save_model (.txt, .ubj, .cbm)",
)
_KERAS = Kind(
    "a Keras model",
    why="loading one can run code that it holds (Lambda layers, custom objects)",
    instead="tf2onnx, or model.export(format='onnx')",
)
_WEIGHTS = Kind(
    "weights alone (safetensors)",
    why="without the code of their network nothing can run them",
    instead="torch.onnx.export to .onnx",
)
_ARRAYS = Kind(
    "arrays of numpy",
    why="they are no model, and may hold pickles",
    instead="the model that uses them, with them inside, as .onnx",
)
_OLD_XGBOOST = Kind(
    "XGBoost's old binary form",
    why="XGBoost itself gave it up, and its reader trusts what it reads",
    instead="with the XGBoost that wrote it: booster.save_model('x.ubj')",
)
_DUMP = Kind(
    "a dump of LightGBM (dump_model)",
    why="LightGBM itself can't load it",
    instead="booster.save_model('x.txt')",
)


def _foreign(what: str, instead: str = "export .onnx beside it") -> Kind:
    return Kind(what, why="nothing here reads that form", instead=instead)


_BY_SUFFIX = {
    ".onnx": ONNX,
    ".cbm": CATBOOST,
    ".ubj": XGBOOST,
    **dict.fromkeys((".pt", ".pth", ".ckpt"), _TORCH),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"), _PICKLE),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _KERAS),
    ".safetensors": _WEIGHTS,
    **dict.fromkeys((".npy", ".npz"), _ARRAYS),
    ".ort": _foreign("onnxruntime's own form", "the .onnx that it was made from"),
    ".tflite": _foreign("a TensorFlow Lite model"),
    ".pb": _foreign("a graph of TensorFlow", "tf2onnx to .onnx"),
    ".pmml": _foreign("a PMML"),
    ".skops": _foreign("a skops file", "skl2onnx to .onnx"),
    ".mlmodel": _foreign("a Core ML model"),
    ".gguf": _foreign("a GGUF"),
}
# What lies beside models and is none; of a .txt and of all other names the first bytes decide.
_ORDINARY = re.compile(
    r"\.(py|pyi|ipynb|sh|sql|md|rst|log|csv|tsv|parquet|feather|json|jsonl|html|css|js|png|jpg|svg"
    r"|pdf|yml|yaml|toml|cfg|ini|conf|env|example|service|timer|lock|sig|sha256|md5|whl|tar|gz|tgz"
    r"|zip|xz)"
)
_LIGHTGBM_NAME = re.compile(r"(lgb|lgbm|lightgbm)([_.-]|$)", re.IGNORECASE)
_XGBOOST_NAME = re.compile(r"(xgb|xgboost)([_.-]|$)", re.IGNORECASE)
_ABOUT_IT = re.compile(
    r"(^|[_.-])(features?|columns?|cols|names|importances?|params|notes|readme|requirements|logs?"
    r"|report|metrics|list)([_.-]|$)",
    re.IGNORECASE,
)
_BEGINNINGS = [
    (re.compile(begins, re.DOTALL), kind)
    for begins, kind in (
        (rb"\s*tree\s", LIGHTGBM),
        (rb"CBM1", CATBOOST),
        (rb"\{L.{7}.learner|\s*\{\s*\"learner\"", XGBOOST),  # UBJSON or JSON
        (rb"binf", _OLD_XGBOOST),
        (rb"PK\x03\x04", _TORCH),
        (rb"\x80[\x02-\x05]", _PICKLE),
        (rb"\x89HDF", _KERAS),
    )
]
FILE_NAME = re.compile(
    r"[^/\\]+\.(onnx|txt|lgb|lgbm|model|ubj|cbm|xgb|bst|pkl|pickle|joblib|pt|pth|ckpt|h5|keras"
    r"|safetensors)$",
    re.IGNORECASE,
)


def kind_of(path: Path) -> Kind | None:
    """None for what is no model, or of no kind that is known. Raises OSError."""
    suffix = path.suffix.lower()
    if suffix in _BY_SUFFIX or _ORDINARY.fullmatch(suffix):
        return _BY_SUFFIX.get(suffix)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    by_content = _by_content(head)
    if by_content or _ABOUT_IT.search(path.stem):
        return by_content
    if suffix in (".txt", ".lgb", ".lgbm", ".model") and _LIGHTGBM_NAME.match(path.name):
        return LIGHTGBM
    if suffix in (".bin", ".model", ".bst", ".xgb", ".dat") and _XGBOOST_NAME.match(path.name):
        return _OLD_XGBOOST
    return None


def is_ordinary(path: Path) -> bool:
    """Whether a file that is no model lies beside models everywhere: sources, tables, texts."""
    suffix = path.suffix.lower()
    return suffix in ("", ".txt") or _ORDINARY.fullmatch(suffix) is not None


def _by_content(head: bytes) -> Kind | None:
    return next((kind for begins, kind in _BEGINNINGS if begins.match(head)), None)


def kind_of_json(document: Any) -> Kind | None:
    """Of a JSON that was read: None where it is no model."""
    if not isinstance(document, Mapping):
        return None
    if isinstance(document.get("learner"), Mapping):
        return XGBOOST
    if "features_info" in document and {"oblivious_trees", "trees"} & set(document):
        return CATBOOST
    return _DUMP if "tree_info" in document and "num_class" in document else None


def begins_as_xgboost(path: Path) -> bool:
    """Of a JSON too large to be read here. Raises OSError."""
    with path.open("rb") as file:
        return _by_content(file.read(_HEAD)) is XGBOOST


def wound(path: Path) -> tuple[str, str, str] | None:
    """What is wrong with a file whatever kind it is: detail, cause, remedy. Raises OSError."""
    size = path.stat().st_size
    if not size:
        return "it is empty", "a copy or a training did not end", "copy it again"
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 1))
        last = file.read(1)
    if head.startswith(b"version https://git-lfs"):
        cause = "the repository was cloned without its large files"
        return "it is a pointer of Git LFS, no model", cause, "git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        cause = "it was downloaded from a place that asked for a login, or has it no more"
        return "it is a web page, no model", cause, "copy it from where the models were made"
    if _is_cut(path, head, last, size):
        cause = "a copy or a training did not end"
        return "it is cut short", cause, "copy it again"
    return None


def _is_cut(path: Path, head: bytes, last: bytes, size: int) -> bool:
    """Of the forms that nothing here loads: their own marks of an end, as far as they have one."""
    suffix = path.suffix.lower()
    if head.startswith(b"PK\x03\x04"):
        return not zipfile.is_zipfile(path)
    if suffix in (".pkl", ".pickle", ".joblib") and re.match(rb"\x80[\x02-\x05]", head):
        return last != b"."  # the STOP of a pickle
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        at = {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8]) if len(head) == _HEAD else 0
        return at is not None and (not at or struct.unpack_from("<Q", head, at)[0] > size)
    return suffix == ".safetensors" and not _is_whole_safetensors(path, size)


def _is_whole_safetensors(path: Path, size: int) -> bool:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MOST_HEADER):
                return False
            header = json.loads(file.read(length))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        return 8 + int(length) + max(ends, default=0) == size
    except (
        struct.error,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ):
        return False


def peek(path: Path) -> tuple[str, int]:
    """What a pickle is of and for how many features, as far as its bytes show that unloaded.

    The first class that it names, as module.name, and scikit-learn's n_features_in_; "" and 0 where
    it doesn't show, and for other files. Raises OSError.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_PEEKED)
    if not re.match(rb"\x80[\x02-\x05]", data):
        return "", 0
    named = _NAMED_CLASS.search(data)
    parts = [part.decode() for part in named.groups() if part] if named else []
    counts = {
        int.from_bytes(next(filter(None, groups)), "little") for groups in _COUNTED.findall(data)
    }
    return ".".join(parts), counts.pop() if len(counts) == 1 else 0
