"""Small models as another team would hand them over, without a training of ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from macd.app.predict.scoring import import_lightgbm

FEATURES = [f"f{n}" for n in range(6)]
HEADS = ["5h", "12h", "24h"]
SEQ = 12


def net(
    *,
    features: int = len(FEATURES),
    seq: int = SEQ,
    batch: int | str = "N",
    weights: Any = None,
    end: str = "Sigmoid",
) -> onnx.ModelProto:
    """sigmoid(mean over the window, times weights): (N, seq, features) to (N, 3)."""
    drawn = np.random.default_rng(3).normal(0, 1, (features, len(HEADS))).astype(np.float32)
    tensor = numpy_helper.from_array(drawn if weights is None else weights, "W")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "W"], ["z"]),
        helper.make_node(end, ["z"], ["p"]),
    ]
    told = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [told("x", TensorProto.FLOAT, [batch, seq, features])],
        [told("p", TensorProto.FLOAT, [batch, len(HEADS)])],
        [tensor],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def endless_net() -> onnx.ModelProto:
    """A loop that does not end before the sun does."""
    told = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["on"]),
            helper.make_node("Sin", ["v"], ["next"]),
        ],
        "body",
        [
            told("turn", TensorProto.INT64, []),
            told("going", TensorProto.BOOL, []),
            told("v", TensorProto.FLOAT, ["N", 3]),
        ],
        [told("on", TensorProto.BOOL, []), told("next", TensorProto.FLOAT, ["N", 3])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["p"], body=body)],
        "endless",
        [told("x", TensorProto.FLOAT, ["N", 3])],
        [told("p", TensorProto.FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(np.array(1 << 60, np.int64), "turns"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def greedy_net() -> onnx.ModelProto:
    """A few bytes that ask for 400 GB."""
    told = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["much"]),
            helper.make_node("ReduceMean", ["much"], ["one"], keepdims=0),
            helper.make_node("Add", ["x", "one"], ["p"]),
        ],
        "greedy",
        [told("x", TensorProto.FLOAT, ["N", 3])],
        [told("p", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([100_000, 1_000_000], np.int64), "size")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def outside(model: onnx.ModelProto, location: str, **more: Any) -> bytes:
    """Put the weights into another file of that name; gives back what belongs there."""
    (tensor,) = model.graph.initializer
    content = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": len(content), **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return content


def save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


@cache
def trees(names: tuple[str, ...] = tuple(FEATURES), scale: float = 40_000) -> str:
    """LightGBM text whose features lie where prices do: far from 0."""
    lightgbm = import_lightgbm()
    rng = np.random.default_rng(5)
    X = scale + rng.normal(0, scale / 10, (400, len(names)))
    y = (X[:, 0] > scale).astype(int)
    data = lightgbm.Dataset(X, y, feature_name=list(names))
    params = {"objective": "binary", "num_leaves": 4, "verbose": -1, "num_threads": 1}
    return lightgbm.train(params, data, 5).model_to_string()


def meta(**over: Any) -> str:
    return json.dumps({"features": FEATURES, "heads": HEADS, "seq_len": SEQ, **over})


def hand_over(models: Path) -> Path:
    """A whole folder: LightGBM for each head, LSTM, TFT, their meta files, and a stacking."""
    models.mkdir(parents=True)
    for head in HEADS:
        (models / f"lgbm_1h_{head}.txt").write_text(trees())
    (models / "lgbm_1h_meta.json").write_text(meta(model="lgbm", seq_len=1))
    for name in ("lstm", "tft"):
        save(net(), models / f"{name}_1h.onnx")
        (models / f"{name}_1h_meta.json").write_text(meta(model=name))
    bases = [f"{name}_{head}" for head in HEADS for name in ("lgbm", "lstm", "tft")]
    (models / "stacking_meta_1h.json").write_text(json.dumps({"base_models": bases}))
    return models


def _numbers(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Values far from 0, as prices are, and whether the first is high."""
    X = 40_000 + np.random.default_rng(5).normal(0, 4_000, (300, width))
    return X, (X[:, 0] > 40_000).astype(int)


def xgboost(
    objective: str = "binary:logistic", *, names: list[str] | None = None, rounds: int = 4
) -> Any:
    """A booster, where XGBoost is installed."""
    xgb = pytest.importorskip("xgboost")
    X, y = _numbers(len(FEATURES))
    params = {"objective": objective, "max_depth": 2, "nthread": 1, "verbosity": 0}
    return xgb.train(params, xgb.DMatrix(X, y, feature_names=names), rounds)


def catboost(loss: str = "Logloss", *, names: list[str] | None = None, **more: Any) -> Any:
    """A model, where CatBoost is installed."""
    library = pytest.importorskip("catboost")
    X, y = _numbers(len(FEATURES))
    how = {"depth": 2, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    model = library.CatBoost({"loss_function": loss, "iterations": 4, **how, **more})
    return model.fit(library.Pool(X, y, feature_names=names))


def graph(
    inputs: dict[str, tuple[int, list[Any]]],
    nodes: list[onnx.NodeProto],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, Any] | None = None,
    *,
    opset: int = 13,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A graph of inputs and outputs, name -> (type, shape)."""
    ends = [
        [helper.make_tensor_value_info(name, *told) for name, told in side.items()]
        for side in (inputs, outputs)
    ]
    held = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
    made = helper.make_graph(nodes, "graph", ends[0], ends[1], held)
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version)
