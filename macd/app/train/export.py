"""ONNX for production: written only after it gave torch's numbers on real windows.

The graph takes raw features (B, 48, F), NaN included, and gives probabilities (B, 3). Exports have
changed predictions silently before, and recurrent nets got locked to the batch size they were
exported with (onnxruntime #19270), so batches other than the export's are compared.

torch's older exporter (dynamo=False) is used: 0.1 s a net against 4 s and more of the newer one,
to the same numbers (docs/LOG.md). The day torch drops it, dynamo=True with dynamic_shapes does it.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from macd.app.market.labels import HORIZONS
from macd.app.train.fitdata import SEQ, Floats, Rows
from macd.app.train.modelfiles import write_whole
from macd.app.train.nets import Model, RobustScale, reproducible, with_history
from macd.errors import MacdError

INPUT, OUTPUT = "input", "prob"
BATCHES = (1, 7, 256)  # none of them the batch the graph is traced with
TOLERANCE = 1e-5
_TRACED = 3
_OPSET = 17  # has LayerNormalization; onnxruntime 1.13 and later read it


class ExportError(MacdError):
    """The exported graph is not the net; `difference` is the largest one seen."""

    def __init__(self, what: str, *, why: str, difference: float = float("nan")) -> None:
        super().__init__(
            what,
            why=why,
            hint="train that model again; if it stays, another torch or onnxruntime version helps",
            live="no .onnx file was written",
        )
        self.difference = difference


def to_onnx(model: Model[Any, Any], path: Path, *, X: Floats, rows: Rows) -> float:
    """Export the model's net, compare it with torch on windows that end at `rows`, write `path`.

    Returns the largest difference over all compared windows. Raises ExportError, with nothing
    written, when it exceeds 1e-5, when a head is constant, or outside [0, 1].
    """
    data = graph(model.net)
    difference = check(data, model.net, X=X, rows=rows)
    write_whole(path, data)
    return difference


def graph(net: nn.Module) -> bytes:
    """The net as one ONNX file: dynamic batch, weights inside, no trace of this machine's paths."""
    still = copy.deepcopy(net).cpu().eval()
    scale = next(part for part in still.modules() if isinstance(part, RobustScale))
    example = torch.zeros(_TRACED, SEQ, scale.center.numel())
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation, and batch sizes of LSTMs: see `check`
        torch.onnx.export(
            still,
            (example,),
            made,  # the older exporter takes a file
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    model = onnx.load_from_string(made.getvalue())
    _forget_origin(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def check(data: bytes, net: nn.Module, *, X: Floats, rows: Rows) -> float:
    """The largest difference of onnxruntime on `data` to torch on `net`, at batch 1, 7 and 256."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: PLC0415 - after the environment, which it reads at import

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    still = copy.deepcopy(net).cpu().eval()
    ends = with_history(rows)
    if len(ends) == 0:
        raise ExportError("no window to compare with", why=f"no row has {SEQ} bars behind it")
    worst = 0.0
    for batch in BATCHES:
        chosen = np.resize(ends[:: max(1, len(ends) // batch)], batch)
        raw = np.stack([X[end + 1 - SEQ : end + 1] for end in chosen])
        with torch.inference_mode(), reproducible(torch.device("cpu")):
            expected = still(torch.from_numpy(raw)).numpy()
        try:
            got = session.run([OUTPUT], {INPUT: raw})[0]
        except Exception as error:  # onnxruntime's own, of many classes
            raise ExportError(
                f"the exported graph refuses a batch of {batch}", why=str(error)
            ) from error
        worst = max(worst, _difference(expected, got, batch))
    _alive(got)
    return worst


def _difference(expected: Floats, got: Floats, batch: int) -> float:
    if got.shape != (batch, len(HORIZONS)):
        raise ExportError(
            "the exported graph is locked to one batch size",
            why=f"a batch of {batch} windows came out with shape {got.shape}",
        )
    difference = float(np.abs(expected - got).max())
    if not difference <= TOLERANCE:  # NaN included
        raise ExportError(
            "the exported graph gives other numbers than torch",
            why=f"largest difference {difference:.3g} at batch {batch}, allowed {TOLERANCE:g}",
            difference=difference,
        )
    if got.min() < 0.0 or got.max() > 1.0:
        raise ExportError(
            "the exported graph gives something else than probabilities",
            why=f"values from {got.min():.3g} to {got.max():.3g} at batch {batch}",
        )
    return difference


def _alive(p: Floats) -> None:
    """A net that says the same whatever it sees has learnt nothing, or lost it in the export."""
    stuck = [str(bars) for k, bars in enumerate(HORIZONS) if np.ptp(p[:, k]) < 1e-6]
    if stuck and len(p) > 1:
        raise ExportError(
            f"the net is constant at {', '.join(stuck)} bars ahead",
            why=f"{len(p)} different windows gave the same probability to within 1e-6",
        )


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on where nodes came from: they hold paths of this machine."""
    model.doc_string = ""
    for part in (model.graph.node, model.graph.input, model.graph.output, model.graph.initializer):
        for item in part:
            item.doc_string = ""
            del item.metadata_props[:]
