"""The health check against models that are really broken, in each way such files break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from macd.cli.health import onnx_against_torch
from macd.release import golden, health
from macd.release.health import Item
from macd.release.run import bars_of
from macd.release.run import read as read_run
from macd.release.scoring import MODELS, Scorer
from tests.trained import bars_directory, trained_run

Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Golden predictions of the shared training."""
    run = read_run(trained_run())
    bars, cross = bars_of(run, bars_directory(trained_run()))
    return golden.make(bars, cross, Scorer.load(trained_run() / MODELS, run.tf))


@pytest.fixture
def top(tmp_path: Path, document: dict[str, Any]) -> Path:
    """A release's models and golden predictions, to spoil."""
    shutil.copytree(trained_run() / MODELS, tmp_path / MODELS)
    (tmp_path / "golden").mkdir()
    (tmp_path / health.GOLDEN).write_text(json.dumps(document))
    return tmp_path


def failed(items: list[Item]) -> dict[str, Item]:
    return {item.name: item for item in items if not item.ok}


def test_a_good_release_is_well_item_by_item(top: Path) -> None:
    items = health.check(top, lock={"numpy": np.__version__})
    assert failed(items) == {}
    assert [item.name for item in items] == [
        "dependencies", "features", "LightGBM", "LSTM", "TFT", "stacking meta",
        "batch 1 and N agree", "golden predictions",
    ]  # fmt: skip
    told = {item.name: item.detail for item in items}
    assert "best head" in told["LSTM"]
    assert "n_oof_samples" in told["stacking meta"]
    assert all(item.line().startswith("✓") and "\n" not in item.line() for item in items)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


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
    def swap(told: dict[str, Any]) -> None:
        names = told["features"]
        names[3], names[4] = names[4], names[3]

    for family in ("lgbm", "lstm", "tft"):
        edit_json(models / f"{family}_1h_meta.json", swap)


def foreign_feature(models: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["features"][0] = "moon_phase"

    for family in ("lgbm", "lstm", "tft"):
        edit_json(models / f"{family}_1h_meta.json", change)


def one_family_apart(models: Path) -> None:
    edit_json(models / "tft_1h_meta.json", lambda told: told["features"].reverse())


def gone(name: str) -> Spoil:
    return lambda models: (models / name).unlink()


def infinite_stacking(models: Path) -> None:
    path = models / "stacking_meta_1h.json"
    text = path.read_text()
    start = text.index('"intercept":') + len('"intercept":')
    end = text.index(",", start)
    path.write_text(f"{text[:start]} 1e999{text[end:]}")


@pytest.mark.parametrize(
    ("spoil", "item", "words"),
    [
        (truncate("lgbm_1h_12h.txt"), "LightGBM", "LightGBM can't read its model"),
        (crash_lightgbm, "LightGBM", "LightGBM can't read its model"),
        (gone("lgbm_1h_24h.txt"), "LightGBM", "lgbm_1h_24h.txt"),
        (truncate("lstm_1h.onnx"), "LSTM", "can't be loaded"),
        (point_outside("absolute"), "LSTM", "can't be loaded"),
        (point_outside("secret.bin"), "LSTM", "can't be loaded"),
        (point_outside("../ml_models/secret.bin"), "LSTM", "can't be loaded"),
        (nan_weights, "LSTM", "not finite"),
        (no_probability, "LSTM", "not inside [0, 1]"),
        (constant, "TFT", "says 0.500 whatever it sees"),
        (gone("tft_1h_meta.json"), "TFT", "tft_1h_meta.json"),
        (truncate("tft_1h_meta.json"), "TFT", "can't be read"),
        (one_family_apart, "TFT", "other features"),
        (swap_features, "features", "order or the formulas"),
        (foreign_feature, "features", "moon_phase"),
        (gone("stacking_meta_1h.json"), "stacking meta", "stacking_meta_1h.json"),
        (infinite_stacking, "stacking meta", "finite"),
        (other_weights, "golden predictions", "lstm"),
    ],
)
def test_what_is_broken_is_named_with_cause_and_remedy(
    top: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, item: str, words: str
) -> None:
    monkeypatch.chdir(top / MODELS)  # where relative external data would be found
    spoil(top / MODELS)
    items = failed(health.check(top))
    assert item in items
    found = items[item]
    assert words in found.detail
    assert found.cause
    assert found.remedy
    assert found.line().startswith("✗")
    assert len(found.line().splitlines()) == 3


def test_one_broken_model_leaves_the_others_well(top: Path) -> None:
    nan_weights(top / MODELS)
    names = {item.name for item in health.check(top) if item.ok}
    assert {"LightGBM", "TFT", "features"} <= names


def test_nothing_at_all_is_one_failed_item(tmp_path: Path) -> None:
    (item,) = health.check(tmp_path)
    assert (item.name, item.ok) == ("models", False)


def test_a_wrong_version_in_the_lock_is_named(top: Path) -> None:
    items = failed(health.check(top, lock={"numpy": "1.0.0", "no-such-package": "2"}))
    assert "numpy 1.0.0 is locked" in items["dependencies"].detail
    assert "nothing is installed" in items["dependencies"].detail


@pytest.mark.parametrize("damage", ["gone", "not json", "a list", "no bars", "moved"])
def test_damaged_golden_predictions_are_told(top: Path, damage: str) -> None:
    path = top / health.GOLDEN
    if damage == "gone":
        path.unlink()
    elif damage == "no bars":
        edit_json(path, lambda told: told.pop("bars"))
    elif damage == "moved":
        edit_json(path, lambda told: told["expected"]["lgbm_5h"].__setitem__(0, 0.9))
    else:
        path.write_text("{" if damage == "not json" else "[1]")
    assert "golden predictions" in failed(health.check(top))


def test_torch_tells_an_export_of_other_weights(top: Path) -> None:
    (good,) = onnx_against_torch(top, "1h")
    assert good.ok, good.detail
    other_weights(top / MODELS)
    (bad,) = onnx_against_torch(top, "1h")
    assert not bad.ok
    assert "other numbers than torch" in bad.detail


def test_a_run_is_checked_on_bars_given_to_it() -> None:
    run = read_run(trained_run())
    bars, cross = bars_of(run, bars_directory(trained_run()))
    items = health.check(trained_run(), inputs=golden.inputs(bars, cross))
    assert failed(items) == {}
    assert "golden predictions" not in {item.name for item in items}
