"""Ways in which the model files of a release break, each as such files really do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Spoil = Callable[[Path], None]


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_onnx(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())


def truncate(name: str) -> Spoil:
    def spoil(models: Path) -> None:
        path = models / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def crash_lightgbm(models: Path) -> None:
    """Split features and children that point far outside: LightGBM follows them blindly."""
    path = models / "lgbm_1h_5h.txt"
    lines = [
        "left_child=" + " ".join(["900000000"] * len(line.split()))
        if line.startswith("left_child=")
        else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")


def point_outside(target: str) -> Spoil:
    """Weights that are said to lie in another file, as a hostile model says of a secret."""

    def spoil(models: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
            size = len(tensor.raw_data)
            secret = models / "secret.bin"
            secret.write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            location = str(secret) if target == "absolute" else target
            for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
                tensor.external_data.add(key=key, value=value)

        edit_onnx(models / "lstm_1h.onnx", change)

    return spoil


def constant(models: Path) -> None:
    made = helper.make_node(
        "ConstantOfShape", ["shape"], ["prob"], value=helper.make_tensor("v", 1, [1], [0.5])
    )
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["input"], ["whole"]),
            helper.make_node("Gather", ["whole", "first"], ["batch"], axis=0),
            helper.make_node("Concat", ["batch", "three"], ["shape"], axis=0),
            made,
        ],
        "constant",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch_", 48, "features"])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["batch_", 3])],
        [
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([3], np.int64), "three"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (models / "tft_1h.onnx").write_bytes(model.SerializeToString())


def nan_weights(models: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 8:
                broken = np.full_like(values, np.nan)
                tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))

    edit_onnx(models / "lstm_1h.onnx", change)


def no_probability(models: Path) -> None:
    """Finite and never the same, but some of it above 1: a head that lost its sigmoid."""

    def change(model: onnx.ModelProto) -> None:
        [output] = model.graph.output
        [last] = [node for node in model.graph.node if output.name in node.output]
        last.output[list(last.output).index(output.name)] = "inner"
        model.graph.initializer.append(numpy_helper.from_array(np.float32([4]), "four"))
        model.graph.node.append(helper.make_node("Mul", ["inner", "four"], [output.name]))

    edit_onnx(models / "lstm_1h.onnx", change)


def other_weights(models: Path) -> None:
    """All plausible, a little off: only golden predictions and torch can tell."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim >= 2:
                tensor.CopyFrom(numpy_helper.from_array(values * 1.05, tensor.name))

    edit_onnx(models / "lstm_1h.onnx", change)


def swap_features(models: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        for names in (document["features"], document["window_features"]):
            names[3], names[4] = names[4], names[3]

    for family in ("lgbm", "lstm", "tft"):
        edit_json(models / f"{family}_1h_meta.json", swap)


def foreign_feature(models: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["features"][0] = document["window_features"][0] = "moon_phase"

    for family in ("lgbm", "lstm", "tft"):
        edit_json(models / f"{family}_1h_meta.json", change)


def one_family_apart(models: Path) -> None:
    edit_json(models / "tft_1h_meta.json", lambda document: document["features"].reverse())


def gone(name: str) -> Spoil:
    return lambda models: (models / name).unlink()


def infinite_stacking(models: Path) -> None:
    path = models / "stacking_meta_1h.json"
    text = path.read_text()
    start = text.index('"intercept":') + len('"intercept":')
    end = text.index(",", start)
    path.write_text(f"{text[:start]} 1e999{text[end:]}")


def without_count(models: Path) -> None:
    edit_json(models / "stacking_meta_1h.json", lambda document: document.pop("n_oof_samples"))


def constant_stacking(models: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for head in document["heads"].values():
            head["meta_coefficients"] = [0.0] * len(head["meta_coefficients"])

    edit_json(models / "stacking_meta_1h.json", change)


def unfed_stacking(models: Path) -> None:
    """A context value that no bar has: it never ran, in production neither."""

    def change(document: dict[str, Any]) -> None:
        document["context"].append("moon_phase")
        for head in document["heads"].values():
            head["inputs"].append("moon_phase")
            for name, number in (("mean", 0.0), ("scale", 1.0), ("meta_coefficients", 0.1)):
                head[name].append(number)

    edit_json(models / "stacking_meta_1h.json", change)


def other_trees(models: Path) -> None:
    """The model of another head: it loads, runs and varies as the right one does."""
    shutil.copy(models / "lgbm_1h_24h.txt", models / "lgbm_1h_5h.txt")
