"""Models that no run here made: what lies in a folder, what contradicts it, and whether it runs.

For a plain `data/ml_models` of a team, an archive of one, or the tree of an application of the
team's own. There is no golden prediction to hold it to; so every model is run on made-up inputs and
held to what its own file and its meta file say. Each is loaded in a child process (modelrun.py).
Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from macd import childprocess
from macd.app.predict import modelkinds, modelmeta
from macd.app.predict.modelkinds import Kind
from macd.app.predict.modelmeta import Meta
from macd.app.predict.stacking import FORMAT, StackingModel
from macd.checklist import Item
from macd.errors import MacdError
from macd.host.untrusted import line

_LIMITS = childprocess.DEFAULT  # of each model
_MOST_FILES = 5_000
_LARGEST_JSON = 64 << 20
_MOST_NAMED = 8
_MOST_UNKNOWN = 50
_LONGEST = 300
_GIVES_PROBABILITIES = re.compile(r"(lgb|lgbm|lightgbm|lstm|tft|stacking)([_.-]|$)", re.IGNORECASE)
_SKIPPED = {"__pycache__", "__MACOSX", "node_modules"}
_WEIGHTS_OF_ONNX = re.compile(r"\.onnx[._]", re.IGNORECASE)
_COPY = "copy it from where the models were made"


@dataclass
class _Folder:
    """What the folder of models holds. Paths are below `top`.

    models: that can be run. closed: that nothing here loads. damaged: that are not whole, which an
    item says. counts: features of a model as its file says, or of a scaler.
    """

    top: Path
    models: dict[Path, Kind] = field(default_factory=dict)
    closed: dict[Path, Kind] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    metas: list[Meta] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    counts: dict[Path, int] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)

    def shown(self, path: Path) -> str:
        return _plain(str(path.relative_to(self.top)))

    @property
    def others(self) -> list[Path]:
        """What is there and is no model."""
        return [*self.ignored, *self.unknown, *self.counts]

    def meta_of(self, model: Path) -> Meta | None:
        """The meta file beside it whose name is the longest beginning of the model's."""
        beside = [one for one in self.metas if one.path.parent == model.parent]
        about = [meta for meta in beside if meta.is_about(model)]
        return max(about, key=lambda meta: len(meta.stem), default=None)


def check(top: Path, *, must_run: bool = True) -> list[Item]:
    """Check every model, meta file and pickle below `top`, a directory. Never raises for a file.

    must_run: whether it is a failure that no model could be run at all.
    """
    folder = _Folder(top.resolve())
    _look_around(folder)
    items = folder.items
    ran = [item for path in sorted(folder.models) for item in _model(folder, path)]
    items += ran
    items += [item for meta in folder.metas for item in _meta(folder, meta, must_run)]
    items += [_closed(folder, path, kind) for path, kind in sorted(folder.closed.items())]
    items += _scalers(folder)
    if not any(item.done for item in ran):
        items.insert(0, _nothing_ran(folder, must_run))
    if folder.unknown:
        names = _listed(folder, folder.unknown, _MOST_UNKNOWN)
        items.append(Item("unknown", True, f"no kind of model known here: {names}", done=False))
    if folder.ignored:
        names = _listed(folder, folder.ignored, _MOST_NAMED)
        items.append(Item("ignored", True, names, done=False))
    return items


def _nothing_ran(folder: _Folder, must_run: bool) -> Item:
    if folder.models:
        what, cause = "none could be run here", "what reads them is not installed, see below"
        remedy = "install it, then invoke health again"
    elif folder.closed:
        pickles = all("pickle" in kind.what for kind in folder.closed.values())
        what = "only pickles, which" if pickles else "only forms that"
        what += " are never loaded"
        cause = "the models were not exported to a form that is plain data"
        remedy = _RUNNABLE
    else:
        what, cause = "none", "it is another folder, or the models were not copied or exported"
        remedy = _RUNNABLE
    if must_run:
        return Item("models", False, what, cause, remedy)
    return Item("models", True, f"{what}; {remedy}", done=False)


_RUNNABLE = (
    "ONNX (.onnx), LightGBM text (.txt), XGBoost (.ubj, .json) and CatBoost (.cbm) can be checked: "
    "export the models as these"
)


def _listed(folder: _Folder, paths: list[Path], most: int) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(folder.shown, paths[:most])) + more


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
        installed = "pyvenv.cfg" in names  # packages bring hundreds of pickles and arrays
        below[:] = sorted(n for n in below if not (n.startswith(".") or n in _SKIPPED or installed))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def _sort_in(folder: _Folder, path: Path) -> None:
    kind, is_json = modelkinds.kind_of(path), path.suffix.lower() == ".json"
    if kind is None and not is_json:
        if not _WEIGHTS_OF_ONNX.search(path.name):
            (folder.ignored if modelkinds.is_ordinary(path) else folder.unknown).append(path)
    elif wound := modelkinds.wound(path):
        folder.damaged.append(path)
        folder.items.append(Item(folder.shown(path), False, *wound))
    elif kind is None:
        _read_json(folder, path)
    elif kind.reader:
        folder.models[path] = kind
    else:
        folder.closed[path] = kind


def _read_json(folder: _Folder, path: Path) -> None:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            if modelkinds.begins_as_xgboost(path):
                folder.models[path] = modelkinds.XGBOOST
                return
            raise ValueError("it is larger than 64 MiB")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        detail = _plain(f"can't be read as JSON: {error or type(error).__name__}")
        cause = "the file is damaged, cut short, or something else"
        folder.items.append(Item(folder.shown(path), False, detail, cause, _COPY))
        return
    if kind := modelkinds.kind_of_json(document):
        (folder.models if kind.reader else folder.closed)[path] = kind
    elif meta := modelmeta.understood(path, document):
        folder.metas.append(meta)
    elif modelmeta.is_scaler(path) and (count := modelmeta.scaler_count(document)):
        folder.counts[path] = count
    elif modelmeta.named_meta(path):
        cause = "it was written by something else than a training"
        item = Item(folder.shown(path), False, "it is JSON, but no object", cause, _COPY)
        folder.items.append(item)
    else:
        folder.ignored.append(path)


def _model(folder: _Folder, path: Path) -> list[Item]:
    """The model run in a child, and what it contradicts."""
    name, meta, kind = folder.shown(path), folder.meta_of(path), folder.models[path]
    question = {
        "kind": kind.reader,
        "path": str(path),
        "top": str(folder.top),
        "meta": _plain(meta.path.name) if meta else "",
        "features": meta.count if meta else 0,
        "seq": meta.seq if meta else 0,
        "names": meta.names if meta else (),
        "says": meta.says if meta else "",
        "family": _GIVES_PROBABILITIES.match(path.name) is not None,
    }
    try:
        answer = childprocess.ask("macd.app.predict.modelrun", question, _LIMITS)
    except childprocess.EndedError as error:
        cause = "the file is cut short or damaged, or made to do that"
        return [Item(name, False, str(error), cause, f"don't load it elsewhere; {_COPY}")]
    folder.counts[path] = int(answer.get("features", 0))
    weights = {path.parent / file for file in answer.get("files", ())}
    folder.unknown = [one for one in folder.unknown if one not in weights]
    folder.ignored = [one for one in folder.ignored if one not in weights]
    wrong = [
        Item(name, False, _plain(detail), _plain(cause), _plain(remedy))
        for detail, cause, remedy in answer["wrong"]
    ]
    done = bool(answer.get("done", True))
    return wrong or [Item(name, True, f"{_plain(answer['detail'])}", done=done)]


def _meta(folder: _Folder, meta: Meta, must_run: bool) -> list[Item]:
    name = folder.shown(meta.path)
    items = [
        Item(name, False, detail, "it was edited by hand, or put together of two", _COPY)
        for detail in modelmeta.contradictions(meta)
    ]
    models = {path: folder.meta_of(path) for path in folder.models}
    items += [
        _lacking(folder, name, what, must_run)
        for what in modelmeta.missing(meta, models, [*folder.closed, *folder.others])
        if not any(_may_be(path, what) for path in folder.damaged)
    ]
    for base, count in modelmeta.counts_of_bases(meta):
        own = {
            folder.counts.get(p, 0)
            for p, about in models.items()
            if modelmeta.gives(p, about, base)
        }
        if own - {0} and count not in own:
            detail = f"it says that {_plain(base)} takes {count} features, it takes {max(own)}"
            cause = "the stacking and its base models are of two trainings"
            items.append(Item(name, False, detail, cause, "copy all from the same training"))
    if meta.document.get("format") == FORMAT:
        items += _stacking(name, meta)
    if items:
        return items
    parts = [f"{meta.count} features"] if meta.count else []
    parts += [f"windows of {meta.seq} bars"] if meta.seq > 1 else []
    return [Item(name, True, ", ".join(parts) or "read")]


def _lacking(folder: _Folder, name: str, what: str, must_run: bool) -> Item:
    """Of what a meta file names and none of the models that can be run is."""
    closed = [path for path in folder.closed if _may_be(path, what)]
    pickled = any("pickle" in folder.closed[path].what for path in closed)
    where = "only a pickle" if pickled else "in no form that can be run" if closed else "not"
    detail = f"it names {_plain(what)}, which is {where} here"
    if closed and not must_run:
        return Item(name, True, detail, done=False)
    cause = "the model was not shipped with the others"
    remedy = "export it as ONNX or LightGBM text" if closed else _COPY
    return Item(name, False, detail, cause, remedy)


def _may_be(path: Path, what: str) -> bool:
    return {*modelmeta.tokens(what)} <= {*modelmeta.tokens(path.name)}


def _closed(folder: _Folder, path: Path, kind: Kind) -> Item:
    name, is_scaler = folder.shown(path), modelmeta.is_scaler(path)
    what, count = modelkinds.peek(path)
    meta = None if is_scaler else folder.meta_of(path)
    if meta and count and not meta.may_take(count):
        detail = f"it is of {count} features, {_plain(meta.path.name)} says {meta.inputs}"
        cause = "the model and its meta file are of two trainings"
        return Item(name, False, detail, cause, "copy both from the same training")
    if is_scaler and count:
        folder.counts[path] = count
    detail = f"{kind.what}{f' of {what}' if what else ''}: not loaded, because {kind.why}"
    beside = [one for one in folder.models if one.parent == path.parent and one.stem == path.stem]
    if beside:
        detail += f"; {folder.shown(beside[0])} is what is checked"
    elif is_scaler:
        detail += f"; it is of {count} features" if count else "; to have it compared: as JSON"
    else:
        detail += f"; to have it checked: {kind.instead}"
    return Item(name, True, _plain(detail), done=False)


def _scalers(folder: _Folder) -> list[Item]:
    """Scalers whose count of features is none of the models that they are for, by their names."""
    items = []
    for path in sorted(one for one in folder.counts if modelmeta.is_scaler(one)):
        count = folder.counts[path]
        own: set[int] = set()
        for model in (one for one in folder.models if modelmeta.scales(path, one)):
            meta = folder.meta_of(model)
            own |= {folder.counts.get(model, 0), meta.count if meta else 0}
        if own - {0} and count not in own:
            takes = " or ".join(map(str, sorted(own - {0})))
            detail = f"it is of {count} features, the models beside it take {takes}"
            cause = "the scaler and the models are of two trainings"
            items.append(
                Item(folder.shown(path), False, detail, cause, "copy all from one training")
            )
        elif path.suffix.lower() == ".json":
            items.append(Item(folder.shown(path), True, f"a scaler of {count} features"))
    return items


def _stacking(name: str, meta: Meta) -> list[Item]:
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


def _is_p(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1


def _plain(text: str) -> str:
    """A stranger's words on one line of a terminal."""
    return line(text, _LONGEST)
