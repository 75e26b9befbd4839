"""ONNX: torch's numbers at other batches than the traced one, or an error and no file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from macd.app.predict.combine import mean_of_logits
from macd.app.train import export, lstm, tft
from macd.app.train.fitdata import FitData, Floats
from macd.app.train.modelfiles import unpack
from macd.app.train.nets import Loop

pytestmark = pytest.mark.slow

LOOP = Loop(epochs=1, batch=64, lr=1e-3, weight_decay=0.0)
F = 7


def nets() -> dict[str, lstm.Model | tft.Model]:
    torch.manual_seed(0)
    small = lstm.Params(hidden=8, layers=2, projection=6, dropout=0.1, loop=LOOP)
    narrow = tft.Params(width=8, attention_heads=2, dropout=0.1, loop=LOOP)
    one, two = lstm.LstmNet(F, small), tft.TftNet(F, narrow)
    for net in (one, two):
        net.scale.center.fill_(0.3)
        net.scale.spread.fill_(1.7)
    return {"lstm": lstm.Model(one, small, (), {}), "tft": tft.Model(two, narrow, (), {})}


@pytest.fixture(scope="module")
def bars() -> Floats:
    """Raw features as they come: gaps at the start and in between, and a freak value."""
    X = np.random.default_rng(0).normal(size=(900, F)).astype(np.float32)
    X[:70, 2] = np.nan
    X[300:310, 4] = np.nan
    X[500, 1] = np.inf
    return X


@pytest.fixture(scope="module")
def graphs() -> dict[str, bytes]:
    return {name: export.graph(model.net) for name, model in nets().items()}


@pytest.mark.parametrize("family", [lstm, tft])
def test_nets_of_several_seeds_are_one_file_each_way(
    family: Any, bars: Floats, tmp_path: Path
) -> None:
    """The mean of the logits, from .pt and from ONNX; importance is the mean as well."""
    X, rows = np.nan_to_num(bars, posinf=0.0), np.arange(60, 900)
    y = (X[:, [1, 1, 4]] > 0).astype(np.float32)
    data = FitData(X, rows, y, features=tuple("abcdefg"))
    name = family.__name__.rpartition(".")[2]
    params = nets()[name].params
    models = [family.fit(data, params, seed=seed) for seed in (1, 2, 3)]
    together = family.average(models)
    family.save(together, tmp_path, "1h", facts={"best_head": "5h"})
    back = family.load(tmp_path, "1h")
    each = [family.predict(model, X, rows) for model in models]
    expected = mean_of_logits(each, clip=1e-7)
    for model in (together, back):
        np.testing.assert_allclose(family.predict(model, X, rows), expected, rtol=0, atol=1e-6)
    assert (back.params, back.features, back.loop) == (params, data.features, together.loop)
    assert back.loop["seeds"] == [1, 2, 3]
    path = tmp_path / "net.onnx"
    assert export.to_onnx(back, path, X=X, rows=rows) <= 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    windows = np.stack([X[end + 1 - 48 : end + 1] for end in rows[:9]])
    (got,) = session.run(None, {"input": windows})
    np.testing.assert_allclose(got, expected[:9], rtol=0, atol=1e-5)
    meta = json.loads((tmp_path / f"{name}_1h_meta.json").read_text())
    assert [member["seed"] for member in meta["members"]] == [1, 2, 3]
    if family is tft:
        shares = [tft.importance(model)["b"] for model in models]
        assert tft.importance(back)["b"] == pytest.approx(np.mean(shares))
        assert sum(meta["attention"]) == pytest.approx(1.0, abs=1e-5)


def test_a_net_of_one_seed_is_stored_as_it_always_was(tmp_path: Path) -> None:
    model = nets()["lstm"]
    lstm.save(model, tmp_path, "1h", facts={})
    state = unpack((tmp_path / "lstm_1h.pt").read_bytes())
    assert state["weights"].keys() == model.net.state_dict().keys()


@pytest.mark.parametrize("family", ["lstm", "tft"])
def test_written_graph_is_one_file_with_the_promised_shape(
    family: str, bars: Floats, tmp_path: Path
) -> None:
    path = tmp_path / f"{family}_1h.onnx"
    difference = export.to_onnx(nets()[family], path, X=bars, rows=np.arange(900))
    assert 0.0 <= difference <= 1e-5
    assert list(tmp_path.iterdir()) == [path]  # no external data beside it
    model = onnx.load(path)
    (given,), (made,) = model.graph.input, model.graph.output
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, sizes) == ("input", ["batch", 48, F])
    assert made.name == "prob"
    assert all(not t.external_data for t in model.graph.initializer)


@pytest.mark.parametrize("family", ["lstm", "tft"])
def test_export_leaves_the_net_alone_and_no_trace_of_this_machine(
    family: str, graphs: dict[str, bytes]
) -> None:
    model = nets()[family]
    model.net.train()
    again = export.graph(model.net)
    assert model.net.training
    assert again == graphs[family]  # same net, same bytes
    assert str(Path(export.__file__).parents[3]).encode() not in again


def altered(data: bytes, part: str, by: float) -> bytes:
    """The graph with one weight of the named initializer changed."""
    model = onnx.load_from_string(data)
    tensor = next(t for t in model.graph.initializer if part in t.name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += by
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("family", "part"), [("lstm", "heads"), ("tft", "heads")])
def test_other_numbers_than_torchs_are_refused_with_the_difference(
    family: str, part: str, graphs: dict[str, bytes], bars: Floats
) -> None:
    wrong = altered(graphs[family], part, 1e-3)
    with pytest.raises(export.ExportError, match="other numbers") as caught:
        export.check(wrong, nets()[family].net, X=bars, rows=np.arange(900))
    assert 1e-5 < caught.value.difference < 1e-1


def test_a_graph_locked_to_its_batch_is_refused(graphs: dict[str, bytes], bars: Floats) -> None:
    model = onnx.load_from_string(graphs["lstm"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(export.ExportError, match="refuses a batch of 1"):
        export.check(model.SerializeToString(), nets()["lstm"].net, X=bars, rows=np.arange(900))


def test_a_constant_net_is_refused_and_no_file_is_written(bars: Floats, tmp_path: Path) -> None:
    model = nets()["lstm"]
    torch.nn.init.zeros_(model.net.get_submodule("heads.2").weight)
    with pytest.raises(export.ExportError, match="constant at 5, 12, 24 bars"):
        export.to_onnx(model, tmp_path / "x.onnx", X=bars, rows=np.arange(900))
    assert not list(tmp_path.iterdir())


def test_a_net_full_of_nan_is_refused(bars: Floats, tmp_path: Path) -> None:
    model = nets()["tft"]
    torch.nn.init.constant_(model.net.heads.bias, float("nan"))
    with pytest.raises(export.ExportError, match="other numbers"):
        export.to_onnx(model, tmp_path / "x.onnx", X=bars, rows=np.arange(900))


def test_without_a_whole_window_nothing_is_claimed(bars: Floats, tmp_path: Path) -> None:
    with pytest.raises(export.ExportError, match="no window"):
        export.to_onnx(nets()["lstm"], tmp_path / "x.onnx", X=bars, rows=np.arange(47))
