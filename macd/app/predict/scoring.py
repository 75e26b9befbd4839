"""Run a release's models, each so that a broken one is reported and never stops the others.

ONNX is loaded from bytes and may name no other file, LightGBM text is parsed in a child process
first (a malformed one can abort the process), stacking is plain JSON. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from macd.app.market.features import asset_column, cross_prefix
from macd.app.predict.boosting import import_lightgbm
from macd.app.predict.combine import calibrated, mean_of_logits
from macd.app.predict.reference import Outside, Reference, parse
from macd.app.predict.stacking import StackingModel
from macd.errors import MacdError, first_line
from macd.heads import (
    BASES,
    FAMILIES,
    GUIDE,
    HORIZONS,
    PANEL,
    bars_ahead,
    head_names,
    is_head,
    kind_of,
)
from macd.run_directory import FILES

Floats = npt.NDArray[np.float32]
Predict = Callable[[Floats], Floats]

SEQ = 48
_STEEPEST = 100.0  # of calibration slopes; no training gives more than 5
MODELS = Path(FILES.models)
_PARSE_TIMEOUT_S = 60
# Given bytes, onnxruntime still reads weights that lie "outside", relative to the working directory
# and through `..` (1.32). Below something that is no directory it finds none.
_NO_OTHER_FILES = ("session.model_external_initializers_file_folder_path", os.devnull)
_PARSE = """
import json, sys
sys.modules["sklearn"] = None
import lightgbm
for text in json.load(sys.stdin):
    booster = lightgbm.Booster(model_str=text)
    booster.predict([[0.0] * booster.num_feature()], num_threads=1)
"""


class ModelError(Exception):
    """One model can't be loaded or run; the others may."""


class UnknownSymbolError(MacdError):
    """Bars of an asset that no model of the release was trained on."""

    def __init__(self, symbol: str, serves: Sequence[str]) -> None:
        super().__init__(
            f"the release's models know nothing of {symbol}",
            why=f"they were trained on {', '.join(serves)}",
            live="the base signal goes on without models",
            hint=f"service.symbol: one of these; or train with {symbol} in train.panel and release",
        )


class Shared:
    """Models of several trees: equal bytes are loaded once, and all LightGBM texts tried at once.

    Trees of symbols that one panel serves hold the panel's models each.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Predict] = {}
        self._survived: set[str] = set()

    def prove(self, directories: Iterable[Path], tf: str) -> None:
        """Try the LightGBM texts of all directories in one child: it takes a second to start.

        Where it does not survive, each half is tried; a single text is, when it is loaded.
        """
        paths = {path for d in directories for path in d.glob(f"*lgbm*_{tf}_*.txt")}
        self._try(sorted({_bytes(path).decode("utf-8", "replace") for path in paths}))

    def _try(self, texts: Sequence[str]) -> None:
        if len(texts) < 2:
            return
        try:
            _parsed(texts)
            self._survived |= {_key(text) for text in texts}
        except ModelError:
            half = len(texts) // 2
            self._try(texts[:half])
            self._try(texts[half:])

    def once(self, key: str, load: Callable[[], Predict]) -> Predict:
        """What `load` gives, or gave before under the same key. Raises what it raises."""
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def survived(self, texts: Sequence[str]) -> bool:
        """Whether a child has parsed them all before."""
        return all(_key(text) in self._survived for text in texts)


@dataclass(frozen=True)
class Scores:
    """Probabilities of "up" for one window.

    base: family -> head -> probability, only of families that worked. stacking: head ->
    probability, empty with `stacking_reason` where it could not be computed. errors: family ->
    what went wrong.
    """

    base: dict[str, dict[str, float]]
    stacking: dict[str, float]
    stacking_reason: str = ""
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorer:
    """The models of one release, ready to run.

    features: the columns of a window, in order; each model is handed those that its meta names.
    errors: what could not be loaded. heads: names of the columns of every output. families: the
    base models that should be there. symbol: whose bars are scored, "" where older models don't
    say. serves: all symbols that can be, the one that was trained on first. quantiles: the bytes of
    the training's feature quantiles; b"" where older models have none.
    """

    tf: str
    features: tuple[str, ...]
    schema: str
    metas: dict[str, dict[str, Any]]
    models: dict[str, Predict]
    stacking: StackingModel | None
    errors: dict[str, str]
    heads: tuple[str, ...] = head_names(GUIDE)
    families: tuple[str, ...] = FAMILIES
    symbol: str = ""
    serves: tuple[str, ...] = ()
    quantiles: bytes = b""

    @classmethod
    def load(
        cls,
        directory: Path,
        tf: str,
        families: Sequence[str] = (),
        shared: Shared | None = None,
    ) -> Scorer:
        """Load what is in `directory` (data/ml_models of a release or run).

        families: only these base models; all that should be there where none is named. shared:
        what other directories have loaded.

        Raises:
            ModelError: not even one family can be loaded.
        """
        models: dict[str, Predict] = {}
        metas: dict[str, dict[str, Any]] = {}
        errors: dict[str, str] = {}
        families = tuple(families) or families_in(directory, tf)
        shared = shared or Shared()
        for family in families:
            try:
                metas[family] = _meta(directory / f"{family}_{tf}_meta.json")
                _slopes(metas[family], _heads(metas[family], tf))  # raises for unusable ones
                models[family] = (
                    _load_lgbm(directory, f"{family}_{tf}", _heads(metas[family], tf), shared)
                    if kind_of(family) == "lgbm"
                    else _load_onnx(directory / f"{family}_{tf}.onnx", shared)
                )
            except ModelError as error:
                errors[family] = str(error)
        stacking = None
        try:
            stacking = StackingModel.from_json(_bytes(directory / f"stacking_meta_{tf}.json"))
        except MacdError as error:
            errors["stacking"] = f"{error.what}: {error.why}"
        except Exception as error:  # whatever it is, the base models go on without stacking
            errors["stacking"] = str(error)
        if not models:
            raise ModelError("; ".join(f"{name}: {why}" for name, why in errors.items()))
        features, schema = _shared_schema(metas, models, errors)
        meta = next(metas[family] for family in models)
        symbol, beside = str(meta.get("symbol") or ""), meta.get("panel") or ()
        serves = (symbol, *map(str, beside)) if symbol else ()
        heads = _heads(meta, tf)
        return cls(
            *(tf, features, schema, metas, models, stacking, errors, heads),
            families=families,
            symbol=symbol,
            serves=serves,
            quantiles=_quantiles(directory / Path(FILES.features(tf)).name),
        )

    def on(self, symbol: str) -> Scorer:
        """The models for this symbol's bars.

        On another asset than the trained one the panel's models speak, and the trained asset's own
        are silent. Nothing was stacked on that asset: in stacking's place stands the equal-weight
        mean of the panel's calibrated log-odds.

        Raises:
            UnknownSymbolError: no model was trained on it.
        """
        if symbol == self.symbol or not self.serves:
            return self
        families = tuple(family for family in self.families if family in PANEL)
        if symbol not in self.serves or not families:
            raise UnknownSymbolError(symbol, self.serves)
        models = {family: run for family, run in self.models.items() if family in families}
        wanted = {name for family in models for name in self.metas[family]["features"]}
        return dataclasses.replace(
            self,
            features=tuple(name for name in self.features if name in wanted),
            models=models,
            stacking=self.stacking and self.stacking.equal_weights(families),
            errors={name: why for name, why in self.errors.items() if name not in FAMILIES},
            families=families,
            symbol=symbol,
        )

    @property
    def computed(self) -> tuple[str, ...]:
        """The features that are computed from bars: all but those that name an asset."""
        flags = {asset_column(symbol) for symbol in self.serves}
        return tuple(name for name in self.features if name not in flags)

    @cached_property
    def reference(self) -> Reference | None:
        """How the features lay in training; None where the release doesn't say it."""
        if not self.quantiles:
            return None
        try:
            return parse(self.quantiles, self.symbol)
        except ValueError:
            return None

    def outside(self, table: pl.DataFrame) -> Outside | None:
        """How far the newest of these bars' features are from training's, where that is known."""
        if self.reference is None:
            return None
        columns = [pl.col(name).cast(pl.Float32) for name in self.reference.names]
        return self.reference.outside(table.select(columns).to_numpy())

    def rows(self, table: pl.DataFrame) -> Floats:
        """The features of bars as float32 (N, F) in the order of `features`; null is NaN."""
        flags = {asset_column(symbol): float(symbol == self.symbol) for symbol in self.serves}
        columns = [
            (pl.lit(flags[name]) if name in flags else pl.col(name).fill_null(np.nan))
            .cast(pl.Float32)
            .alias(name)
            for name in self.features
        ]
        return np.ascontiguousarray(table.select(columns).to_numpy(), dtype=np.float32)

    @property
    def best_head(self) -> str:
        """The head that decides: named by the training on validation alone."""
        named = self.metas.get("lstm", {}).get("best_head")
        return str(named) if named in self.heads else self.heads[0]

    def score_batch(
        self, windows: Floats, silent: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Floats], dict[str, str]]:
        """Base probabilities (N, 3) by family for raw windows (N, 48, F), and errors by family.

        Calibrated by the slopes that a family's meta names (macd/app/train/calibration.py).
        silent: families that are not to be asked, and why.
        """
        scores: dict[str, Floats] = {}
        errors = {name: why for name, why in self.errors.items() if name in BASES}
        for family, predict in self.models.items():
            if silent and family in silent:
                errors[family] = silent[family]
                continue
            try:
                p = _checked(predict(self.seen_by(family, windows)))
                slopes = _slopes(self.metas.get(family, {}), self.heads)
                scores[family] = p if slopes is None else calibrated(p, slopes).astype(np.float32)
            except Exception as error:  # the candidate's failure is an observation, not ours
                errors[family] = f"{type(error).__name__}: {first_line(error)}"
        return scores, errors

    def uses(self, family: str, symbol: str) -> bool:
        """Whether a family was trained on columns of this other asset."""
        own = self.metas.get(family, {}).get("features", self.features)
        return any(name.startswith(cross_prefix(symbol)) for name in own)

    def seen_by(self, family: str, values: Floats) -> Floats:
        """Of an array whose last axis is `features`, the columns that a family was trained on."""
        own = tuple(self.metas.get(family, {}).get("features", self.features))
        if own == self.features:
            return values
        return np.ascontiguousarray(values[..., [self.features.index(name) for name in own]])

    def score(self, window: Floats, silent: Mapping[str, str] | None = None) -> Scores:
        """Everything for one raw window (48, F), whose last row is the bar that just closed.

        silent: families that are not to be asked, and why.
        """
        scores, errors = self.score_batch(window[np.newaxis], silent)
        base = {
            family: dict(zip(self.heads, map(float, p[0]), strict=True))
            for family, p in scores.items()
        }
        context = dict(zip(self.features, map(float, window[-1]), strict=True))
        stacking, reason = self.stack(base, context)
        return Scores(base, stacking, reason, errors)

    def mean(self, probabilities: Iterable[npt.ArrayLike], head: str) -> npt.NDArray[np.float64]:
        """The models' plain mean at a head, in log-odds and calibrated; NaN where none speaks."""
        slopes = self.stacking.mean_slopes if self.stacking else {}
        return mean_of_logits(probabilities, slope=slopes.get(head, 1.0))

    def stack(
        self, base: Mapping[str, Mapping[str, float]], context: Mapping[str, float]
    ) -> tuple[dict[str, float], str]:
        """Stacking's probability by head, or nothing and the reason."""
        if self.stacking is None:
            return {}, self.errors.get("stacking", "no stacking model")
        flat = {f"{family}_{head}": p for family, by in base.items() for head, p in by.items()}
        by_head = self.stacking.probability(flat, context)
        reason = self.stacking.skipped_reason(flat, context)
        return {head: p for head, p in by_head.items() if p is not None}, reason


def families_in(directory: Path, tf: str) -> tuple[str, ...]:
    """The base models that should be there: those of a panel too, where one of them is."""
    panel = any((directory / f"{family}_{tf}_meta.json").is_file() for family in PANEL)
    return BASES if panel else FAMILIES


def window_at(matrix: Floats, row: int) -> Floats:
    """The raw window (48, F) that ends with `row` and includes it."""
    return matrix[row + 1 - SEQ : row + 1]


def _checked(p: Floats) -> Floats:
    if p.ndim != 2 or p.shape[1] != len(HORIZONS):
        raise ModelError(f"output has shape {p.shape}, not (N, {len(HORIZONS)})")
    if not np.isfinite(p).all():
        raise ModelError("output is not finite")
    if p.min() < 0.0 or p.max() > 1.0:
        raise ModelError(f"output from {p.min():.3g} to {p.max():.3g}, not inside [0, 1]")
    return p


def _slopes(meta: Mapping[str, Any], heads: tuple[str, ...]) -> list[float] | None:
    """The calibration slope of each head; None for older models, which are served as they are."""
    given = meta.get("calibration")
    if given is None:
        return None
    try:
        slopes = [float(given[head]) for head in heads]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"its calibration can't be read: {first_line(error)}") from error
    if not all(0.0 < slope <= _STEEPEST for slope in slopes):
        raise ModelError(f"its calibration {slopes} is not between 0 and {_STEEPEST:g}")
    return slopes


def _shared_schema(
    metas: dict[str, dict[str, Any]], models: dict[str, Predict], errors: dict[str, str]
) -> tuple[tuple[str, ...], str]:
    """The window that most families share; a family of another one is dropped.

    A family may use a part of its columns, in their order. Older models name no window: they use
    all of it.
    """
    windows = {
        family: tuple(metas[family].get("window_features") or metas[family]["features"])
        for family in models
    }
    chosen = max(windows.values(), key=list(windows.values()).count)
    for family, window in windows.items():
        own = metas[family]["features"]
        if window != chosen or own != [name for name in window if name in set(own)]:
            del models[family]
            errors[family] = "it was trained on other features than the other models"
    if not models:
        raise ModelError("; ".join(f"{name}: {why}" for name, why in errors.items()))
    schema = next(metas[f]["schema_hash"] for f in models)
    return chosen, str(schema)


def _quantiles(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _meta(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_bytes(path))
        features = document["features"]
        features = [*features, *document.get("window_features", [])]
        if not all(isinstance(name, str) for name in features) or not document["schema_hash"]:
            raise ModelError(f"{path.name} names no features")
        return dict(document)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path.name} can't be read: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path.name}: {error.strerror}") from error


def onnx_session(data: bytes) -> Any:
    """An onnxruntime session of a model that may read no other file; raises whatever is wrong."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: PLC0415 - after the environment, which it reads at import

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised, and reported once
    options.add_session_config_entry(*_NO_OTHER_FILES)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _key(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _load_onnx(path: Path, shared: Shared) -> Predict:
    data = _bytes(path)
    return shared.once(hashlib.sha256(data).hexdigest(), lambda: _onnx(path, data))


def _onnx(path: Path, data: bytes) -> Predict:
    try:
        session = onnx_session(data)
    except Exception as error:  # onnxruntime raises types of its own for each way to be broken
        raise ModelError(f"{path.name} can't be loaded: {first_line(error)}") from error
    name = session.get_inputs()[0].name

    def predict(windows: Floats) -> Floats:
        result: Floats = session.run(None, {name: windows})[0]
        return result

    return predict


def _heads(meta: Mapping[str, Any], tf: str) -> tuple[str, ...]:
    """As the model's own meta names them: models of other timeframes were named in hours once."""
    named = meta.get("heads")
    heads = named if isinstance(named, list) and all(map(is_head, named)) else []
    return tuple(heads) if tuple(map(bars_ahead, heads)) == HORIZONS else head_names(tf)


def _load_lgbm(directory: Path, name: str, heads: tuple[str, ...], shared: Shared) -> Predict:
    texts = [_bytes(directory / f"{name}_{head}.txt").decode("utf-8", "replace") for head in heads]
    return shared.once(_key(*texts), lambda: _lgbm(texts, shared))


def _lgbm(texts: Sequence[str], shared: Shared) -> Predict:
    if not shared.survived(texts):
        with ThreadPoolExecutor(1) as beside:
            survived = beside.submit(_survives_parsing, tuple(texts))
            with suppress(ImportError):  # the child says so, too
                import_lightgbm()  # takes as long as it takes the child
            survived.result()
    lightgbm = import_lightgbm()
    boosters = [lightgbm.Booster(model_str=text) for text in texts]

    def predict(windows: Floats) -> Floats:
        last = windows[:, -1, :].astype(np.float64)
        columns = [booster.predict(last, num_threads=1) for booster in boosters]
        return np.stack(columns, axis=1).astype(np.float32)

    return predict


@lru_cache(maxsize=4)  # a second of a child process; what survived once will again
def _survives_parsing(texts: tuple[str, ...]) -> None:
    _parsed(texts)


def _parsed(texts: Sequence[str]) -> None:
    """Raises ModelError unless a child process could parse and run them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", _PARSE],
            input=json.dumps(list(texts)).encode(),
            capture_output=True,
            timeout=_PARSE_TIMEOUT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"LightGBM was not done with it in {_PARSE_TIMEOUT_S} s") from error
    if child.returncode != 0:
        said = child.stderr.decode("utf-8", "replace").strip().splitlines()
        how = f"signal {-child.returncode}" if child.returncode < 0 else said[-1] if said else "?"
        raise ModelError(f"LightGBM can't read its model: {how}")
