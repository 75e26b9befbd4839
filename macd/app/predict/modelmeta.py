"""What a meta file beside models says, and which of that nobody shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.app.predict.modelkinds import FILE_NAME

_LARGEST_COUNT = 1_000_000_000  # of features or bars; beyond it's no count
_BASES = "lgb|lgbm|lightgbm|xgb|xgboost|catboost|lstm|tft"
_FAMILY_NAME = re.compile(rf"({_BASES}|stacking)([_.-]|$)", re.IGNORECASE)
_BASE_NAME = re.compile(rf"({_BASES})([_.-]\w{{1,12}}){{0,4}}", re.IGNORECASE)
_ABOUT_A_FIT = {"params", "config", "args", "kwargs", "version"}
_NAME_KEYS = ("features", "feature_names", "feature_cols", "feature_columns", "input_features")
_COUNT_KEYS = ("n_features", "num_features", "feature_count", "input_size", "input_dim", "features")
_SEQ_KEYS = ("seq_len", "sequence_length", "seq_length", "lookback", "window")
_BASE_KEYS = {"bases", "base_models", "base_learners", "base_estimators", "estimators", "models"}
_TASK_KEYS = ("objective", "task", "problem_type", "output", "outputs", "output_type", "activation")
_CENTRE_KEYS = ("mean", "means", "mean_", "center", "center_", "min", "min_", "data_min_")
_WIDTH_KEYS = ("std", "stds", "scale", "scale_", "var", "var_", "max", "data_max_")
_WEIGHT_KEYS = ("coef", "coef_", "coefs", "coefficients", "weights")
_FILE_KEY = re.compile(r"(^|_)(file|files|path|paths|onnx)$")
_PROBABILITIES = re.compile(r"prob|binary|classif|logistic|logloss|cross.?entropy|sigmoid|softmax")
_VALUES = re.compile(r"logit|raw|regress|quantile|return|mae|mse|rank")
_SAME = {"lgb": "lgbm", "lightgbm": "lgbm", "xgboost": "xgb", "catboost": "cat"}
_SAYING_NOTHING = {"ml", "p", "prob", "proba", "pred", "oof", "score", "logit", "model", "base"}
_SCALING = {"scaler", "scalers", "scaling", "normalizer", "standardizer"}
_OF_A_SCALER = _SCALING | {"standard", "robust", "minmax", "feature", "features", "x", "params"}
_DEEPEST = 4


@dataclass(frozen=True)
class Meta:
    """A meta file. stem: the name of the model it is about, "" for all of its folder.

    names, count: of features. seq: bars of a window. says: what the outputs are, "probabilities",
    "values" or "". Where it says nothing: (), 0 and "".
    """

    path: Path
    stem: str
    document: Mapping[str, Any]
    names: tuple[str, ...] = ()
    count: int = 0
    seq: int = 0
    says: str = ""

    def is_about(self, model: Path) -> bool:
        stem = model.stem
        begins = stem.startswith((f"{self.stem}_", f"{self.stem}."))
        return not self.stem or stem == self.stem or begins

    @property
    def inputs(self) -> int:
        """How many it says that the model takes; 0 where it doesn't say."""
        return self.count or len(_bases(self.document))

    def may_take(self, inputs: int) -> bool:
        """Whether that agrees with it. A stacking may take each base model once for each head, and
        what other lists name.
        """
        if not self.inputs or inputs in (self.inputs, self.inputs * self.seq):  # or whole windows
            return True
        bases = len(_bases(self.document)) if self.is_stacking else 0
        others = {len(texts(value)) for value in self.document.values()} - {0}
        return bool(bases) and any((inputs - more) % bases == 0 for more in {0, *others} - {bases})

    @property
    def is_stacking(self) -> bool:
        return bool(_BASE_KEYS & set(self.document)) or "stacking" in tokens(self.path.stem)


def named_meta(path: Path) -> bool:
    return re.search(r"(^|[_.-])meta([_.-]|$)", path.stem, re.IGNORECASE) is not None


def understood(path: Path, document: Any) -> Meta | None:
    """None for a JSON about something else."""
    named = named_meta(path)
    if not isinstance(document, dict) or not (named or {*_NAME_KEYS, *_BASE_KEYS} & set(document)):
        return None
    stem = re.sub(r"(^|[_.-])meta(?=[_.-]|$)", "", path.stem, flags=re.IGNORECASE)
    seq = next((n for key in _SEQ_KEYS if (n := _whole(document.get(key)))), 0)
    about = stem if named else path.stem
    names, count = _names(document), _count(document)
    return Meta(path, about.strip("_.-"), document, names, count, seq, _says(document))


def _says(document: Mapping[str, Any]) -> str:
    for text in (document[key] for key in _TASK_KEYS if isinstance(document.get(key), str)):
        if _VALUES.search(text.lower()):
            return "values"
        if _PROBABILITIES.search(text.lower()):
            return "probabilities"
    return ""


def missing(meta: Meta, models: Mapping[Path, Meta | None], others: Sequence[Path]) -> list[str]:
    """What it names and nobody shipped: files, base models, the model that it is about.

    models: that are here, each with its meta file. others: whatever else is here.
    """
    lacking = [*_missing_files(meta, [*models, *others]), *_missing_bases(meta, models)]
    lacking += _missing_models(meta, models)
    return list(dict.fromkeys([*lacking, *_missing_families(meta, models, lacking)]))


def _missing_files(meta: Meta, files: Sequence[Path]) -> list[str]:
    here = {path.name for path in files}
    named = [
        match[0]
        for key, text in _keyed_texts(meta.document)
        if (key in _BASE_KEYS or _FILE_KEY.search(key)) and (match := FILE_NAME.search(text))
    ]
    return [name for name in named if name not in here]


def _missing_bases(meta: Meta, models: Mapping[Path, Meta | None]) -> list[str]:
    """Base models by their names, such as lgbm_5h: of a family and of one of its horizons."""
    sure = named_meta(meta.path) or "stacking" in tokens(meta.path.stem)
    named = [
        text
        for key, text in _keyed_texts(meta.document)
        if key in _BASE_KEYS and not FILE_NAME.search(text) and tokens(text)
        if sure or _BASE_NAME.fullmatch(text)  # `models` may be a list of anything
    ]
    return [name for name in named if not any(gives(path, models[path], name) for path in models)]


def gives(model: Path, meta: Meta | None, base: str) -> bool:
    """Whether a model is the base model of that name. meta: of the model."""
    asked, words = tokens(base), set(tokens(model.stem))
    family = next((word for word in asked if _FAMILY_NAME.match(word)), asked[0])
    if family not in words:
        return False
    rest = [word for word in asked if word != family and word not in _SAYING_NOTHING]
    if model.suffix.lower() == ".onnx":  # one file gives the answers for all horizons
        heads = texts(meta.document.get("heads")) if meta else ()
        words |= {*map(str.lower, heads)} if heads else {*rest}
    return all(word in words or f"{word}h" in words for word in rest)


def _missing_families(
    meta: Meta, models: Mapping[Path, Meta | None], lacking: Sequence[str]
) -> list[str]:
    """Families that a stacking takes its inputs from, whatever it calls the list of them."""
    if not meta.is_stacking:
        return []
    named = map(tokens, filter(_BASE_NAME.fullmatch, _words(meta.document)))
    asked = {words[0] for words in named if not _ABOUT_A_FIT & set(words)}
    present = {word for path in models for word in tokens(path.stem)}
    present |= {word for name in lacking for word in tokens(name)}
    return sorted(asked - present)


def _missing_models(meta: Meta, models: Mapping[Path, Meta | None]) -> list[str]:
    """The model that a meta file is about: one file, or trees' one for each head."""
    is_model = _FAMILY_NAME.match(meta.stem) or isinstance(meta.document.get("model"), str)
    if not meta.stem or not is_model or meta.is_stacking:
        return []
    about = [path for path in models if models[path] is meta]
    if not about:
        return [meta.stem]
    heads, stems = texts(meta.document.get("heads")), {path.stem for path in about}
    if meta.stem in stems or any(path.suffix.lower() == ".onnx" for path in about):
        return []
    suffix = about[0].suffix
    return [f"{meta.stem}_{h}{suffix}" for h in heads if f"{meta.stem}_{h}" not in stems]


def contradictions(meta: Meta) -> list[str]:
    """Counts of one document that can't all be true."""
    if meta.names and meta.count != len(meta.names):
        return [f"it names {len(meta.names)} features and says there are {meta.count}"]
    problems = []
    if meta.count:
        problems = [
            f"its scaler has {length} values, it says {meta.count} features"
            for length in _scaler_lengths(meta.document)
            if length not in (meta.count, meta.count * max(1, meta.seq))
        ]
    if meta.is_stacking and "format" not in meta.document:
        problems += [
            f"it has {n} weights for {meta.inputs} inputs"
            for n in dict.fromkeys(n for k in _WEIGHT_KEYS for n in _lengths(meta.document.get(k)))
            if not meta.may_take(n)
        ]
    return problems


def counts_of_bases(meta: Meta) -> Iterator[tuple[str, int]]:
    """Features of base models as a stacking has them: {"bases": {"lgbm": {"n_features": 130}}}."""
    for value in (meta.document[key] for key in _BASE_KEYS & set(meta.document)):
        if isinstance(value, Mapping):
            pairs = list(value.items())
        else:
            inner = value if isinstance(value, list) else []
            pairs = [(one.get("name"), one) for one in inner if isinstance(one, Mapping)]
        for name, about in pairs:
            count = _count(about) if isinstance(about, Mapping) else 0
            if count and isinstance(name, str) and tokens(name):
                yield name, count


def _bases(document: Mapping[str, Any]) -> tuple[str, ...]:
    return next((t for key in _BASE_KEYS if (t := texts(document.get(key)))), ())


def _count(document: Mapping[str, Any]) -> int:
    """How many features it says that there are; 0 for nothing."""
    stated = next((n for key in _COUNT_KEYS if (n := _whole(document.get(key)))), 0)
    return stated or len(_names(document))


def _names(document: Mapping[str, Any]) -> tuple[str, ...]:
    return next((t for key in _NAME_KEYS if (t := texts(document.get(key)))), ())


def is_scaler(path: Path) -> bool:
    return bool(_SCALING & set(tokens(path.stem)))


def scaler_count(document: Any) -> int:
    """How many features a scaler in JSON is of; 0 where it doesn't say."""
    return next(iter(_scaler_lengths(document)), 0)


def scales(scaler: Path, model: Path) -> bool:
    """Whether a scaler, by its name, is of that model beside it."""
    words = set(tokens(scaler.stem)) - _OF_A_SCALER
    return scaler.parent == model.parent and words <= set(tokens(model.stem))


def _scaler_lengths(value: Any, depth: int = 0) -> Iterator[int]:
    """Lengths of the lists that a scaler consists of: a centre and a width, side by side."""
    if not isinstance(value, Mapping) or depth == _DEEPEST:
        return
    centre, width = (
        next((n for key in keys for n in _lengths(value.get(key))), 0)
        for keys in (_CENTRE_KEYS, _WIDTH_KEYS)
    )
    if centre and width:
        yield from dict.fromkeys((centre, width))
    for inner in value.values():
        yield from _scaler_lengths(inner, depth + 1)


def _lengths(value: Any) -> Iterator[int]:
    """Of a list of numbers, or of each such list in a list or mapping of them."""
    if isinstance(value, list) and value and all(type(one) in (int, float) for one in value):
        yield len(value)
    elif isinstance(value, list | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            if isinstance(inner, list):
                yield from _lengths(inner) if all(type(x) in (int, float) for x in inner) else ()


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
            is_file = isinstance(inner, str) and FILE_NAME.search(inner)
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


def tokens(text: str) -> list[str]:
    words = re.split(r"[^a-z0-9]+", text.lower())
    return [_SAME.get(word, word) for word in words if word]


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return ()
    return tuple(value)


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 < value < _LARGEST_COUNT else 0
