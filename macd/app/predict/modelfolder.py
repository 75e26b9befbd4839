"""Models that no run here made: what lies in a folder, what contradicts it, and whether it runs.

For a plain `data/ml_models` of a team, or an archive of one. There is no manifest, lock or golden
prediction to hold it to; so every model is run on made-up inputs and held to what its own meta file
says. Each is loaded in a child process (modelrun.py). Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd import childprocess
from macd.app.predict.stacking import FORMAT, StackingModel
from macd.checklist import Item
from macd.errors import MacdError

_LIMITS = childprocess.DEFAULT  # of each model
_MOST_FILES = 5_000
_LARGEST_JSON = 64 << 20
_LARGEST_COUNT = 1_000_000_000  # of features or bars; beyond it's no count
_MOST_NAMED = 8
_LIGHTGBM = {".txt", ".lgb", ".model"}
_PICKLES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt"}
_LIGHTGBM_NAME = re.compile(r"(lgb|lgbm|lightgbm)([_.-]|$)", re.IGNORECASE)
_FAMILY_NAME = re.compile(r"(lgb|lgbm|lightgbm|lstm|tft|stacking)([_.-]|$)", re.IGNORECASE)
_BASE_NAME = re.compile(r"(lgb|lgbm|lightgbm|lstm|tft)([_.-]\w{1,12}){0,4}", re.IGNORECASE)
_NAME_KEYS = ("features", "feature_names", "feature_cols", "feature_columns", "input_features")
_COUNT_KEYS = ("n_features", "num_features", "feature_count", "input_size", "input_dim", "features")
_SEQ_KEYS = ("seq_len", "sequence_length", "seq_length", "lookback", "window")
_BASE_KEYS = {"bases", "base_models", "base_learners", "base_estimators", "estimators", "models"}
_FILE_KEY = re.compile(r"(^|_)(file|files|path|paths|onnx)$")
_FILE_NAME = re.compile(r"[^/\\]+\.(onnx|txt|lgb|model|pkl|pickle|joblib|pt|pth|ckpt)$", re.I)
_SAME = {"lgb": "lgbm", "lightgbm": "lgbm"}
_SAYING_NOTHING = {"ml", "p", "prob", "proba", "pred", "oof", "score", "logit", "model", "base"}
_DEEPEST = 4
_COPY = "copy it from where the models were made"


@dataclass(frozen=True)
class _Meta:
    """A meta file. stem: the name of the model it is about, "" for all of its folder."""

    path: Path
    stem: str
    document: Mapping[str, Any]
    names: tuple[str, ...] = ()
    count: int = 0
    seq: int = 0


@dataclass
class _Folder:
    """What was found. Paths are below `top`; models: path -> "onnx" or "lgbm"."""

    top: Path
    models: dict[Path, str] = field(default_factory=dict)
    metas: list[_Meta] = field(default_factory=list)
    pickles: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def shown(self, path: Path) -> str:
        return _plain(str(path.relative_to(self.top)))

    def meta_of(self, model: Path) -> _Meta | None:
        """The meta file beside it whose name is the longest beginning of the model's."""
        about = [
            meta
            for meta in self.metas
            if meta.path.parent == model.parent and _is_about(meta, model)
        ]
        return max(about, key=lambda meta: len(meta.stem), default=None)


def check(top: Path) -> list[Item]:
    """Check every model, meta file and pickle below `top`, a directory. Never raises for a file."""
    folder = _Folder(top.resolve())
    _look_around(folder)
    items = folder.items
    items += [item for path in sorted(folder.models) for item in _model(folder, path)]
    items += [item for meta in folder.metas for item in _meta(folder, meta)]
    items += [
        Item(
            folder.shown(path),
            True,
            "a pickle: not loaded, because loading one runs whatever code it holds",
            done=False,
        )
        for path in folder.pickles
    ]
    if not folder.models:
        what = "only pickles, which are never loaded" if folder.pickles else "none"
        cause = "it is another folder, or the models were not copied or exported"
        remedy = "ONNX (.onnx) and LightGBM text (.txt) can be checked: export the models as these"
        items.insert(0, Item("models", False, what, cause, remedy))
    if folder.ignored:
        names = [folder.shown(path) for path in folder.ignored]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        items.append(Item("ignored", True, ", ".join(names[:_MOST_NAMED]) + more, done=False))
    return items


def _look_around(folder: _Folder) -> None:
    for number, path in enumerate(_files(folder)):
        if number >= _MOST_FILES:
            cause = "it is more than a folder of models"
            detail = f"more than {_MOST_FILES} files; the rest was not looked at"
            folder.items.append(Item("files", False, detail, cause, "name the models' own folder"))
            return
        try:
            _look_at(folder, path)
        except OSError as error:
            _unseen(folder, path, error)


def _look_at(folder: _Folder, path: Path) -> None:
    if not path.is_file():  # a pipe or a device, or a link to nothing
        folder.ignored.append(path)
    elif not path.resolve().is_relative_to(folder.top):
        cause = "a link can lead to any file of this machine"
        detail = "a link out of the folder; it was not followed"
        remedy = "put the file itself there, or name the folder that it leads to"
        folder.items.append(Item(folder.shown(path), False, detail, cause, remedy))
    else:
        _sort_in(folder, path)


def _unseen(folder: _Folder, path: Path, error: OSError) -> None:
    detail = f"can't be looked at: {error.strerror}"
    cause = "it belongs to somebody else, lies too deep, or its disk is broken"
    item = Item(folder.shown(path), False, detail, cause, "copy the models to a folder of yours")
    folder.items.append(item)


def _files(folder: _Folder) -> Iterator[Path]:
    def unseen(error: OSError) -> None:
        _unseen(folder, Path(error.filename), error)

    for directory, below, names in os.walk(folder.top, onerror=unseen):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def _sort_in(folder: _Folder, path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        folder.models[path] = "onnx"
    elif suffix in _LIGHTGBM and (_LIGHTGBM_NAME.match(path.name) or _begins_as_lightgbm(path)):
        folder.models[path] = "lgbm"
    elif suffix in _PICKLES:
        folder.pickles.append(path)
    elif suffix == ".json":
        _read_json(folder, path)
    elif not re.search(r"\.onnx[._]", path.name, re.IGNORECASE):  # the weights of an ONNX
        folder.ignored.append(path)


def _begins_as_lightgbm(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16).split()[:1] == [b"tree"]
    except OSError:
        return False


def _read_json(folder: _Folder, path: Path) -> None:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is larger than 64 MiB")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        detail = _plain(f"can't be read as JSON: {error or type(error).__name__}")
        cause = "the file is damaged, cut short, or something else"
        folder.items.append(Item(folder.shown(path), False, detail, cause, _COPY))
        return
    named = re.search(r"(^|[_.-])meta([_.-]|$)", path.stem, re.IGNORECASE)
    if isinstance(document, dict) and (named or {*_NAME_KEYS, *_BASE_KEYS} & set(document)):
        stem = re.sub(r"(^|[_.-])meta(?=[_.-]|$)", "", path.stem, flags=re.IGNORECASE)
        folder.metas.append(_understood(path, stem if named else path.stem, document))
    elif named:
        cause = "it was written by something else than a training"
        item = Item(folder.shown(path), False, "it is JSON, but no object", cause, _COPY)
        folder.items.append(item)
    else:
        folder.ignored.append(path)


def _understood(path: Path, stem: str, document: Mapping[str, Any]) -> _Meta:
    names = next((_texts(document[key]) for key in _NAME_KEYS if _texts(document.get(key))), ())
    count = next((n for key in _COUNT_KEYS if (n := _whole(document.get(key)))), len(names))
    seq = next((n for key in _SEQ_KEYS if (n := _whole(document.get(key)))), 0)
    return _Meta(path, stem.strip("_.-"), document, names, count, seq)


def _is_about(meta: _Meta, model: Path) -> bool:
    stem = model.stem
    return not meta.stem or stem == meta.stem or stem.startswith((f"{meta.stem}_", f"{meta.stem}."))


def _model(folder: _Folder, path: Path) -> list[Item]:
    """The model run in a child, and what it contradicts."""
    name, meta, kind = folder.shown(path), folder.meta_of(path), folder.models[path]
    question = {
        "kind": kind,
        "path": str(path),
        "top": str(folder.top),
        "meta": _plain(meta.path.name) if meta else "",
        "features": meta.count if meta else 0,
        "seq": meta.seq if meta and kind == "onnx" else 0,
        "names": meta.names if meta else (),
        "probabilities": _FAMILY_NAME.match(path.name) is not None,
    }
    try:
        answer = childprocess.ask("macd.app.predict.modelrun", question, _LIMITS)
    except childprocess.EndedError as error:
        cause = "the file is cut short or damaged, or made to do that"
        return [Item(name, False, str(error), cause, f"don't load it elsewhere; {_COPY}")]
    wrong = [
        Item(name, False, _plain(detail), _plain(cause), _plain(remedy))
        for detail, cause, remedy in answer["wrong"]
    ]
    return wrong or [Item(name, True, _plain(answer["detail"]))]


def _meta(folder: _Folder, meta: _Meta) -> list[Item]:
    name, items = folder.shown(meta.path), list[Item]()
    if meta.names and meta.count != len(meta.names):
        detail = f"it names {len(meta.names)} features and says there are {meta.count}"
        items.append(Item(name, False, detail, "it was edited by hand", _COPY))
    lacking = [*_missing_files(folder, meta), *_missing_bases(folder, meta)]
    lacking += _missing_models(folder, meta)
    for what in dict.fromkeys([*lacking, *_missing_families(folder, meta, lacking)]):
        pickled = any({*_tokens(what)} <= {*_tokens(path.name)} for path in folder.pickles)
        detail = f"it names {_plain(what)}, which is {'only a pickle' if pickled else 'not'} here"
        cause = "the model was not shipped with the others"
        remedy = "export it as ONNX or LightGBM text" if pickled else _COPY
        items.append(Item(name, False, detail, cause, remedy))
    if meta.document.get("format") == FORMAT:
        items += _stacking(name, meta)
    if items:
        return items
    parts = [f"{meta.count} features"] if meta.count else []
    parts += [f"windows of {meta.seq} bars"] if meta.seq > 1 else []
    return [Item(name, True, ", ".join(parts) or "read")]


def _missing_files(folder: _Folder, meta: _Meta) -> list[str]:
    here = {path.name for path in (*folder.models, *folder.pickles, *folder.ignored)}
    named = [
        match[0]
        for key, text in _keyed_texts(meta.document)
        if (key in _BASE_KEYS or _FILE_KEY.search(key)) and (match := _FILE_NAME.search(text))
    ]
    return [name for name in named if name not in here]


def _missing_bases(folder: _Folder, meta: _Meta) -> list[str]:
    """Base models by their names, such as lgbm_5h: of a family and of one of its horizons."""
    named = [
        text
        for key, text in _keyed_texts(meta.document)
        if key in _BASE_KEYS and not _FILE_NAME.search(text) and _tokens(text)
    ]
    return [name for name in named if not any(_gives(folder, m, name) for m in folder.models)]


def _gives(folder: _Folder, model: Path, base: str) -> bool:
    asked, words = _tokens(base), set(_tokens(model.stem))
    family = next((word for word in asked if _FAMILY_NAME.match(word)), asked[0])
    if family not in words:
        return False
    rest = [word for word in asked if word != family and word not in _SAYING_NOTHING]
    if folder.models[model] == "onnx":  # one file gives the answers for all horizons
        meta = folder.meta_of(model)
        heads = _texts(meta.document.get("heads")) if meta else ()
        words |= {*map(str.lower, heads)} if heads else {*rest}
    return all(word in words or f"{word}h" in words for word in rest)


def _missing_families(folder: _Folder, meta: _Meta, lacking: list[str]) -> list[str]:
    """Families that a stacking takes its inputs from, whatever it calls the list of them."""
    if not _is_stacking(meta):
        return []
    asked = {_tokens(word)[0] for word in _words(meta.document) if _BASE_NAME.fullmatch(word)}
    present = {word for path in folder.models for word in _tokens(path.stem)}
    present |= {word for name in lacking for word in _tokens(name)}
    return sorted(asked - present)


def _missing_models(folder: _Folder, meta: _Meta) -> list[str]:
    """The model that a meta file is about: one file, or LightGBM's one for each head."""
    is_model = _FAMILY_NAME.match(meta.stem) or isinstance(meta.document.get("model"), str)
    if not meta.stem or not is_model or _is_stacking(meta):
        return []
    about = [path for path in folder.models if folder.meta_of(path) is meta]
    if not about:
        return [meta.stem]
    if any(folder.models[path] == "onnx" for path in about):
        return []
    heads = _texts(meta.document.get("heads"))
    stems = {path.stem for path in about}
    return (
        []
        if meta.stem in stems
        else [f"{meta.stem}_{head}.txt" for head in heads if f"{meta.stem}_{head}" not in stems]
    )


def _is_stacking(meta: _Meta) -> bool:
    return bool(_BASE_KEYS & set(meta.document)) or "stacking" in _tokens(meta.path.stem)


def _stacking(name: str, meta: _Meta) -> list[Item]:
    """Our own form of stacking: plain numbers, computed here."""
    remedy = "python -m macd.app.train --mode stacking"
    try:
        model = StackingModel.from_json(json.dumps(meta.document).encode())
        rows = [
            model.probability(dict.fromkeys(model.bases, p), dict.fromkeys(model.context, x))
            for p, x in ((0.1, -1.0), (0.4, 0.0), (0.6, 0.5), (0.9, 1.0))
        ]
    except MacdError as error:
        return [Item(name, False, _plain(error.why), "it is damaged, or edited by hand", remedy)]
    except (ArithmeticError, ValueError) as error:
        return [Item(name, False, f"can't be computed: {error}", "its numbers are broken", remedy)]
    by_head = {head: [row[head] for row in rows] for head in model.heads}
    broken = [h for h, each in by_head.items() if not all(p is not None and _is_p(p) for p in each)]
    if broken:
        detail = f"gives no probability for {_plain(', '.join(broken))}"
        return [Item(name, False, detail, "its numbers are broken", remedy)]
    stuck = [head for head, each in by_head.items() if len(set(each)) == 1]
    if stuck:
        detail = f"says the same whatever it sees ({_plain(', '.join(stuck))})"
        return [Item(name, False, detail, "its weights are zero", remedy)]
    return []


def _keyed_texts(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Texts of a document, each with the key it stands below; names of base models may be keys."""
    if isinstance(value, str):
        yield key, value
    if depth == _DEEPEST:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if key in _BASE_KEYS and _FAMILY_NAME.match(name):  # {"lgbm": 0.4}
                yield key, name
            is_file = isinstance(inner, str) and _FILE_NAME.search(inner)
            below = key if key in _BASE_KEYS and is_file else name  # {"gru": "gru_1h.onnx"}
            yield from _keyed_texts(inner, below, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _keyed_texts(inner, "" if isinstance(inner, Mapping) else key, depth + 1)
            if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
                yield key, inner["name"]  # [{"name": "lgbm_5h", "weight": 0.4}]


def _words(value: Any, depth: int = 0) -> Iterator[str]:
    """Every key and text of a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list) and depth < _DEEPEST:
        for inner in value:
            yield from _words(inner, depth + 1)
        if isinstance(value, Mapping):
            for inner in value.values():
                yield from _words(inner, depth + 1)


def _tokens(text: str) -> list[str]:
    words = re.split(r"[^a-z0-9]+", text.lower())
    return [_SAME.get(word, word) for word in words if word]


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return ()
    return tuple(value)


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 < value < _LARGEST_COUNT else 0


def _is_p(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1


def _plain(text: str) -> str:
    """A stranger's words on one line of a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)[:300]
