"""Compare the exported ONNX models with torch's own, on the bars of a release or a run.

Run as `python -m macd.app.train.onnx_check` through macd/application.py. Where torch, its weights
or the bars are not here, the one item says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from macd import childprocess
from macd.app.predict import golden
from macd.app.predict.scoring import MODELS, Scorer, families_in
from macd.checklist import Item
from macd.heads import kind_of

_NAME = "ONNX against torch"


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """In: top, and tf for a release and its golden bars; else run and data, the bars' directory.
    Out: items.
    """
    top = Path(question["top"])
    if "run" not in question:
        return {"items": [asdict(compare(top, question["tf"]))]}
    trained_on = golden.TrainedOn.of_run(Path(question["run"]))
    inputs = golden.inputs(*trained_on.read(Path(question["data"])))
    return {"items": [asdict(compare(top, trained_on.tf, inputs))]}


def compare(top: Path, tf: str, inputs: Any = None) -> Item:
    """The item of this check. Never raises for what lies in `top`."""
    place = top / MODELS
    document = inputs or golden.read(top)
    nets = [family for family in families_in(place, tf) if kind_of(family) != "lgbm"]
    lacking = [f"{name}_{tf}.pt" for name in nets]
    lacking = [name for name in lacking if not (place / name).is_file()]
    why = ""
    if find_spec("torch") is None:
        why = "torch is not here"
    elif lacking:
        why = f"{' and '.join(lacking)} not here"
    elif document is None:
        why = "there are no golden bars"
    if why:
        return Item(_NAME, True, f"not compared: {why}", done=False)
    cause = "the export is of other weights, or this torch or onnxruntime computes otherwise"
    remedy = "python -m macd.app.train --mode onnx, then invoke release"
    try:
        worst = _largest_difference(place, tf, document, nets)
    except Exception as error:  # whatever torch, onnx or the files do, the item says it
        return Item(_NAME, False, f"{error}".splitlines()[0], cause, remedy)
    compared = "LSTM and TFT" if len(nets) == 2 else "LSTM and TFT, own and panel's,"
    return Item(_NAME, True, f"{compared} at batch 1, 7 and 256, difference {worst:.1e}")


def _largest_difference(place: Path, tf: str, document: Any, names: Sequence[str]) -> float:
    import numpy as np  # noqa: PLC0415 - torch may not be here

    from macd.app.train import export  # noqa: PLC0415

    scorer = Scorer.load(place, tf, names)
    X = golden.table(document, scorer)
    rows = np.arange(min(document["rows"]), len(X), dtype=np.int64)
    nets = {name: import_module(f"macd.app.train.{name}").load(place, tf).net for name in names}
    return max(
        export.check(
            (place / f"{name}_{tf}.onnx").read_bytes(), net, X=scorer.seen_by(name, X), rows=rows
        )
        for name, net in nets.items()
    )


if __name__ == "__main__":
    childprocess.main(answer)
