"""Each format that teams leave models in: named, run where it is plain data, never opened else.

The files are made by the libraries themselves. XGBoost and CatBoost are no packages of ours: where
one is not installed its tests are skipped, and what is said of it then is tested on a kept file.
"""

from __future__ import annotations

import collections
import io
import json
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from macd import application, childprocess
from macd.app.predict import modelfolder, modelkinds, modelrun
from macd.app.predict.boosting import import_lightgbm
from macd.checklist import Item
from tests.support import mutate_models
from tests.support import small_models as made

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[2] / "cases/models"
FLOAT, N = TensorProto.FLOAT, "N"
node = helper.make_node


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; its models are read in this process, for they hurt nobody."""

    def ask(_: str, question: dict[str, Any], __: childprocess.Limits) -> dict[str, Any]:
        return json.loads(json.dumps(modelrun.answer(json.loads(json.dumps(question)))))

    monkeypatch.setattr(childprocess, "ask", ask)
    place = tmp_path / "ml_models"
    place.mkdir()
    return place


def items(models: Path) -> dict[str, Item]:
    return {item.name: item for item in modelfolder.check(models)}


def failed(models: Path) -> dict[str, str]:
    return {name: item.detail for name, item in items(models).items() if not item.ok}


def meta(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(fields))


# XGBoost and CatBoost.


@pytest.mark.parametrize("name", ["xgb_1h.json", "xgb_1h.ubj", "xgb_1h.model", "xgb.deprecated"])
@pytest.mark.filterwarnings("ignore:.*UBJSON")
def test_xgboost_is_run_in_each_form_that_is_plain_data(models: Path, name: str) -> None:
    made.xgboost(names=made.FEATURES).save_model(models / name)
    meta(models / "xgb_1h_meta.json", features=made.FEATURES)
    item = items(models)[name]
    assert item.ok and item.done
    assert item.detail.startswith("4 trees, 6 features; outputs 0.")
    assert item.detail.endswith("probabilities (objective binary:logistic)")


@pytest.mark.parametrize("name", ["cat_1h.cbm", "cat_1h.json", "model.bin"])
def test_catboost_is_run_in_each_form(models: Path, name: str) -> None:
    form = "json" if name.endswith("json") else "cbm"
    made.catboost(names=made.FEATURES).save_model(str(models / name), format=form)
    item = items(models)[name]
    assert item.ok and item.done
    assert item.detail.endswith("probabilities (objective Logloss)")


def saved_xgboost(path: Path, *objective: str, **more: Any) -> None:
    made.xgboost(*objective, **more).save_model(path.with_suffix(".ubj"))


def saved_catboost(path: Path, *loss: str, **more: Any) -> None:
    made.catboost(*loss, **more).save_model(str(path.with_suffix(".cbm")))


@pytest.mark.parametrize("saved", [saved_xgboost, saved_catboost])
def test_trees_and_their_meta_file_agree(models: Path, saved: Callable[..., None]) -> None:
    saved(models / "gb_1h", names=made.FEATURES)
    about = models / "gb_1h_meta.json"
    meta(about, n_features=5)
    (message,) = failed(models).values()
    assert message == "it takes 6 features, gb_1h_meta.json names 5"
    meta(about, features=[*made.FEATURES[:4], "f5", "f4"])
    (message,) = failed(models).values()
    assert message == "its feature f4 stands where gb_1h_meta.json has f5"
    meta(about, features=made.FEATURES)
    assert failed(models) == {}
    meta(about, features=["open", "close"], seq_len=3)  # whole windows, flattened
    assert failed(models) == {}


@pytest.mark.parametrize(
    ("saved", "objective"),
    [
        (saved_xgboost, "reg:squarederror"),
        (saved_xgboost, "binary:logitraw"),
        (saved_catboost, "RMSE"),
    ],
)
def test_what_is_no_probability_may_be_any_number(
    models: Path, saved: Callable[..., None], objective: str
) -> None:
    saved(models / "stacking_1h", objective)  # a name that promises probabilities
    (item,) = [one for one in items(models).values() if one.name.startswith("stacking")]
    assert item.ok
    assert item.detail.endswith(f"no probabilities (objective {objective})")


@pytest.mark.parametrize("saved", [saved_xgboost, saved_catboost])
def test_trees_that_say_always_the_same(models: Path, saved: Callable[..., None]) -> None:
    """Of labels without a rule: no split was worth it."""
    if saved is saved_xgboost:
        saved(models / "gb", rounds=0)
    else:
        saved(models / "gb", iterations=1, l2_leaf_reg=1e30)
    (message,) = failed(models).values()
    assert "whatever it sees" in message


def test_catboost_with_categories_is_not_called_constant(models: Path) -> None:
    library = pytest.importorskip("catboost")
    kinds = [["up", n] if n % 2 else ["down", n] for n in range(40)]
    how = {"iterations": 4, "depth": 2, "verbose": False, "allow_writing_files": False}
    pool = library.Pool(kinds, [n % 2 for n in range(40)], cat_features=[0])
    library.CatBoost({"loss_function": "Logloss", **how}).fit(pool).save_model(
        str(models / "c.cbm")
    )
    item = items(models)["c.cbm"]
    assert item.ok
    assert item.done or "its categories are not known here" in item.detail


def test_xgboost_with_categories_is_run(models: Path) -> None:
    xgb = pytest.importorskip("xgboost")
    X = np.column_stack([np.arange(60) % 3, np.arange(60)]).astype(float)
    data = xgb.DMatrix(X, X[:, 0] == 1, feature_types=["c", "float"], enable_categorical=True)
    how = {"objective": "binary:logistic", "max_cat_to_onehot": 1, "nthread": 1}
    xgb.train(how, data, 3).save_model(models / "x.ubj")
    item = items(models)["x.ubj"]
    assert item.ok and item.done, item


@pytest.mark.parametrize(
    ("library", "name", "content"),
    [
        ("xgboost", "x.json", b'{"learner": {}, "version": [3, 2, 0]}'),
        ("xgboost", "x.ubj", b"{L\0\0\0\0\0\0\0\x07learner{}"),
        ("catboost", "c.cbm", (CASES / "catboost.cbm").read_bytes()),
    ],
)
def test_without_its_library_a_model_is_named_and_not_called_well(
    models: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str, content: bytes
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (models / name).write_bytes(content)
    by_name = items(models)
    assert (by_name[name].ok, by_name[name].done) == (True, False)
    assert f"pip install {library}, then invoke health again" in by_name[name].detail
    assert failed(models) == {"models": "none could be run here"}
    made.save(made.net(), models / "lstm.onnx")
    assert failed(models) == {}


# What is named, and never loaded.


def test_models_that_nothing_here_loads_are_named_with_what_to_export(models: Path) -> None:
    for name in ("old.pkl", "net.pt", "best.ckpt", "scaler.joblib", "noname"):
        (models / name).write_bytes(pickle.dumps(made.HEADS))
    for name in ("net.tflite", "saved_model.pb", "x.pmml", "net.ort", "w.npz", "gone.skops"):
        (models / name).write_bytes(b"anything at all")
    shutil.copy(CASES / "h5py_latest.h5", models / "net.h5")
    (models / "xgb_1h.bin").write_bytes(b"binf\0\0\0?")
    (models / "weights.safetensors").write_bytes(safetensors())
    dump = import_lightgbm().Booster(model_str=made.trees()).dump_model()
    (models / "lgbm_dump.json").write_text(json.dumps(dump))
    by_name = items(models)
    closed = {name: item for name, item in by_name.items() if "not loaded, because" in item.detail}
    assert set(closed) == {path.name for path in models.iterdir()}
    assert all(item.ok and not item.done for item in closed.values())
    assert all(
        "; to have it checked: " in i.detail or "compared: as JSON" in i.detail
        for i in closed.values()
    )
    assert "torch.onnx.export" in closed["net.pt"].detail
    assert "Lambda layers" in closed["net.h5"].detail
    assert "booster.save_model('x.ubj')" in closed["xgb_1h.bin"].detail
    assert "booster.save_model('x.txt')" in closed["lgbm_dump.json"].detail
    assert failed(models) == {"models": "only forms that are never loaded"}


def test_what_a_pickle_is_of_is_told_unloaded(models: Path) -> None:
    X = np.random.default_rng(1).random((20, 300))
    fitted = GaussianNB().fit(X, X[:, 0] > 0.5)
    (models / "logit.pkl").write_bytes(pickle.dumps(fitted))
    path = models / "logit.pkl"
    what, count = modelkinds.peek(path)
    assert (what, count) == ("sklearn.naive_bayes.GaussianNB", 300)
    assert f"a pickle of {what}: not loaded" in items(models)[path.name].detail


def test_files_that_nobody_knows_are_named_each(models: Path) -> None:
    for n in range(12):
        (models / f"net{n:02}.weird").write_bytes(b"?")
    (models / "train.py").write_text("")
    by_name = items(models)
    assert all(f"net{n:02}.weird" in by_name["unknown"].detail for n in range(12))
    assert by_name["ignored"].detail == "train.py"


def test_installed_packages_are_not_looked_through(models: Path) -> None:
    made.save(made.net(), models / "lstm.onnx")
    for name in ("venv/lib", "web/node_modules", "__MACOSX", ".git"):
        (models / name).mkdir(parents=True)
        (models / name / "theirs.pkl").write_bytes(b"")
    (models / "venv/pyvenv.cfg").write_text("home = /usr/bin\n")
    assert set(items(models)) == {"lstm.onnx", "ignored"}
    assert failed(models) == {}


def safetensors(cut: int = 0) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    return (struct.pack("<Q", len(header)) + header + bytes(12))[: -cut or None]


def zipped() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as out:
        out.writestr("archive/data.pkl", b"." * 400)
    return file.getvalue()


HDF5 = [(CASES / f"h5py_{kind}.h5").read_bytes() for kind in ("earliest", "latest")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", b"", "it is empty"),
        ("a.json", b"", "it is empty"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        ("a_meta.json", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.cbm", b"<!DOCTYPE html><html>", "it is a web page, no model"),
        ("a.joblib", pickle.dumps([1] * 90)[:-3], "it is cut short"),
        ("a.pt", zipped()[:-30], "it is cut short"),
        ("a.keras", zipped()[:-30], "it is cut short"),
        ("a.h5", HDF5[0][:-1], "it is cut short"),
        ("a.h5", HDF5[1][:-1], "it is cut short"),
        ("a.h5", HDF5[1][:30], "it is cut short"),
        ("a.safetensors", safetensors(cut=1), "it is cut short"),
        ("a.safetensors", b"\xff" * 9, "it is cut short"),
    ],
)
def test_what_is_no_whole_file_is_a_failure(
    models: Path, name: str, content: bytes, message: str
) -> None:
    (models / name).write_bytes(content)
    assert message in failed(models)[name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pt", zipped()), ("a.h5", HDF5[0]), ("a.h5", HDF5[1]), ("a.safetensors", safetensors()),
        ("a.pkl", pickle.dumps([1])),
    ],
)  # fmt: skip
def test_what_is_whole_is_none(models: Path, name: str, content: bytes) -> None:
    (models / name).write_bytes(content)
    assert modelkinds.wound(models / name) is None


# ONNX.


def test_inputs_of_every_type_and_several_of_them(models: Path) -> None:
    inputs = {
        "x": (FLOAT, [N, "bars", 6]),
        "d": (TensorProto.DOUBLE, [N, 2]),
        "i": (TensorProto.INT64, [N, 2]),
        "b": (TensorProto.BOOL, [N, 2]),
        "u": (TensorProto.UINT8, [N, 2]),
    }
    small = [node("Cast", [one], [f"{one}f"], to=FLOAT) for one in "dibu"]
    nodes = [
        *small,
        node("Sum", [f"{one}f" for one in "dibu"], ["s"]),
        node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
        node("Concat", ["m", "s"], ["all"], axis=1),
        node("Sigmoid", ["all"], ["p"]),
    ]
    made.save(made.graph(inputs, nodes, {"p": (FLOAT, [N, 8])}), models / "tft_1h.onnx")
    meta(models / "tft_1h_meta.json", features=made.FEATURES, seq_len=12)
    item = items(models)["tft_1h.onnx"]
    assert item.ok and item.done, item.line()
    assert item.detail.startswith("x (N, ?, 6), d (N, 2), i (N, 2), b (N, 2), u (N, 2); outputs")
    meta(models / "tft_1h_meta.json", n_features=9)
    assert "it takes 6 features, tft_1h_meta.json names 9" in failed(models)["tft_1h.onnx"]


def test_a_classifier_that_gives_a_dict_each_row(models: Path) -> None:
    nodes = [
        node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        node("Softmax", ["x"], ["p"], axis=1),
        node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    net = made.graph({"x": (FLOAT, [N, 3])}, nodes, {"label": (TensorProto.INT64, [N])})
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, shape=None)
    )
    sequence = helper.make_sequence_type_proto(kind)
    net.graph.output.append(helper.make_value_info("probabilities", sequence))
    made.save(net, models / "clf.onnx")
    item = items(models)["clf.onnx"]
    assert item.ok, item.line()
    assert item.detail.endswith(", probabilities (output probabilities)")


@pytest.mark.parametrize(
    ("output", "about", "well"),
    [
        ("p", {}, False),  # by its name, lstm
        ("prob", {"task": "regression"}, False),
        ("logits", {}, True),
        ("p", {"task": "regression"}, True),
        ("p", {"objective": "binary"}, False),
    ],
)
def test_who_says_whether_it_gives_probabilities(
    models: Path, output: str, about: dict[str, str], well: bool
) -> None:
    nodes = [node("Mul", ["x", "x"], [output])]
    net = made.graph({"x": (FLOAT, [N, 3])}, nodes, {output: (FLOAT, [N, 3])})
    made.save(net, models / "lstm_1h.onnx")
    meta(models / "lstm_1h_meta.json", **about)
    failures = failed(models)
    assert (failures == {}) == well
    assert well or "not inside [0, 1]" in failures["lstm_1h.onnx"]


def test_rows_of_a_batch_that_are_mixed(models: Path) -> None:
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["x", "mean"], ["p"]),
    ]
    made.save(made.graph({"x": (FLOAT, [N, 3])}, nodes, {"p": (FLOAT, [N, 3])}), models / "n.onnx")
    assert "batch 1 and 13 differ by" in failed(models)["n.onnx"]


@pytest.mark.parametrize(
    ("how", "operator", "message"),
    [
        ({"opset": 99}, "Sigmoid", "it is of opset 99, onnxruntime "),
        ({"ir_version": 99}, "Sigmoid", "it is of IR version 99, onnxruntime "),
        ({}, "NewerThanThis", "knows no operator NewerThanThis"),
    ],
)
def test_what_is_newer_than_the_runtime_here(
    models: Path, how: dict[str, int], operator: str, message: str
) -> None:
    nodes = [node(operator, ["x"], ["p"])]
    net = made.graph({"x": (FLOAT, [N, 3])}, nodes, {"p": (FLOAT, [N, 3])}, **how)
    made.save(net, models / "n.onnx")
    assert message in failed(models)["n.onnx"]


def test_a_feature_axis_that_nobody_tells_proves_nothing(models: Path) -> None:
    weights = np.random.default_rng(2).normal(size=(21, 1)).astype(np.float32)
    nodes = [node("MatMul", ["x", "W"], ["z"]), node("Sigmoid", ["z"], ["p"])]
    ends = {"x": (FLOAT, [N, "features"])}, {"p": (FLOAT, [N, 1])}
    made.save(made.graph(ends[0], nodes, ends[1], {"W": weights}), models / "n.onnx")
    by_name = items(models)
    assert (by_name["n.onnx"].ok, by_name["n.onnx"].done) == (True, False)
    assert "no meta file says how many; 8 were tried" in by_name["n.onnx"].detail
    assert "none could be run here" in by_name["models"].detail
    meta(models / "n_meta.json", n_features=21)
    assert failed(models) == {}


def test_a_window_axis_that_nobody_tells_proves_nothing(models: Path) -> None:
    """24 bars are in its weights, and not in the shape that it declares."""
    weights = np.random.default_rng(2).normal(size=(24, 6)).astype(np.float32)
    nodes = [
        node("Mul", ["x", "W"], ["z"]),
        node("ReduceMean", ["z"], ["p"], axes=[1], keepdims=0),
    ]
    ends = {"x": (FLOAT, [N, "bars", 6])}, {"p": (FLOAT, [N, 6])}
    made.save(made.graph(ends[0], nodes, ends[1], {"W": weights}), models / "n.onnx")
    assert "no meta file says how long; 48 bars were tried" in items(models)["n.onnx"].detail
    meta(models / "n_meta.json", seq_len=12)
    assert "it can't be run" in failed(models)["n.onnx"]
    meta(models / "n_meta.json", seq_len=24)
    assert failed(models) == {}


def test_texts_are_made_up_for_a_model_that_takes_them(models: Path) -> None:
    """A constant answer is none of its faults then; one that isn't is well."""
    words, codes = ["up", "down"], [0.25, 0.75]
    coded = {"keys_strings": words, "values_floats": codes, "default_float": 0.5}
    nodes = [node("LabelEncoder", ["x"], ["p"], domain="ai.onnx.ml", **coded)]
    ends = {"x": (TensorProto.STRING, [N, 2])}, {"p": (FLOAT, [N, 2])}
    made.save(made.graph(ends[0], nodes, ends[1]), models / "n.onnx")
    item = items(models)["n.onnx"]
    assert (item.ok, item.done) == (True, False)
    assert item.detail.endswith(
        "whatever it sees (output 1 of 2), but it takes texts, which were made up"
    )


def test_the_file_of_its_weights_is_no_unknown_one(models: Path) -> None:
    net = made.net()
    (models / "big.weird").write_bytes(made.outside(net, "big.weird"))
    made.save(net, models / "lstm_1h.onnx")
    assert "unknown" not in items(models)
    (models / "big.weird").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + bytes(99))
    assert "'big.weird' is a pointer of Git LFS" in failed(models)["lstm_1h.onnx"]


# Counts that contradict each other.


def fitted_scaler(count: int) -> bytes:
    return pickle.dumps(StandardScaler().fit(np.random.default_rng(1).random((9, count))))


def scaler_json(count: int) -> bytes:
    return json.dumps({"mean": [0.0] * count, "scale": [1.0] * count}).encode()


@pytest.mark.parametrize("name", ["lstm_1h_scaler.pkl", "scaler.pkl", "scaler_lstm_1h.json"])
def test_a_scaler_of_another_count_than_its_model(models: Path, name: str) -> None:
    scaler = scaler_json if name.endswith("json") else fitted_scaler
    made.save(made.net(), models / "lstm_1h.onnx")
    (models / name).write_bytes(scaler(6))
    assert failed(models) == {}
    (models / name).write_bytes(scaler(5))
    details = [item.detail for item in modelfolder.check(models) if not item.ok]
    assert details == ["it is of 5 features, the models beside it take 6"]


def test_a_scaler_of_another_model_contradicts_nobody(models: Path) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    (models / "tft_1h_scaler.pkl").write_bytes(fitted_scaler(5))
    assert failed(models) == {}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"features": made.FEATURES, "scaler": {"mean": [0.0] * 5, "std": [1.0] * 5}},
            "its scaler has 5 values, it says 6 features",
        ),
        (
            {"base_models": ["lstm", "lstm_5h"], "coef": [[0.1, 0.2, 0.3]]},
            "it has 3 weights for 2 inputs",
        ),
        (
            {
                "base_models": ["lstm", "lstm_5h"],
                "features": ["a", "b"],
                "weights": {"5h": [1, 2, 3]},
            },
            "it has 3 weights for 2 inputs",
        ),
        (
            {"bases": {"lstm": {"n_features": 130, "weight": 0.4}}},
            "it says that lstm takes 130 features, it takes 6",
        ),
        ({"base_models": ["xgb_5h"]}, "it names xgb_5h, which is not here"),
        (
            {"base_models": ["catboost"]},
            "it names catboost, which is in no form that can be run here",
        ),
        ({"models": {"cat": "data/cat_1h.cbm"}}, "it names cat_1h.cbm, which is not here"),
    ],
)
def test_what_a_stacking_says_that_can_not_be(
    models: Path, about: dict[str, Any], message: str
) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    (models / "catboost_1h.h5").write_bytes(HDF5[0])
    meta(models / "stacking_meta_1h.json", **about)
    assert message in failed(models).get("stacking_meta_1h.json", "")


def test_a_configuration_that_lists_models_of_any_kind_is_none_of_ours(models: Path) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    meta(models / "config.json", models=["sedan", "coupe"], xgb_params={"eta": 1})
    assert failed(models) == {}


# An application of the team's own.


def test_what_an_own_application_can_not_have_is_said_where_it_would_stand(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps([1]))
    checked = application.check_own(tmp_path, check="python3 check.py")
    assert [item.name for item in checked] == [
        *("dependencies", "models", "model.pkl", "golden predictions, feature skew", "check")
    ]
    assert all(item.ok and not item.done for item in checked)
    assert "python3 check.py" in checked[-1].detail
    checked = application.check_own(tmp_path, lock={"onnxruntime": "1.16.3", "flask": "3.0.0"})
    assert "onnxruntime" in checked[0].detail
    assert checked[0].detail.endswith(" here, where the lock has 1.16.3")


@pytest.mark.parametrize(
    "about",
    [
        {"base_models": ["lstm", "lstm_5h"], "coef": [0.1] * 6},  # each for three heads
        {"base_models": ["lstm", "lstm_5h"], "context": ["vol", "hour", "day"], "coef": [0.1] * 5},
        {"base_models": ["lstm"], "features": ["lstm", "vol"], "coef": [0.1] * 2},
    ],
)
def test_weights_of_a_stacking_that_can_be(models: Path, about: dict[str, Any]) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    meta(models / "stacking_meta_1h.json", **about)
    assert failed(models) == {}


def test_a_pickle_of_another_count_than_its_meta_file(models: Path) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    X = np.random.default_rng(1).random((20, 7))
    (models / "stacking_1h.pkl").write_bytes(pickle.dumps(GaussianNB().fit(X, X[:, 0] > 0.5)))
    meta(models / "stacking_meta_1h.json", base_models=["lstm", "lstm_5h"])
    expected = {"stacking_1h.pkl": "it is of 7 features, stacking_meta_1h.json says 2"}
    assert failed(models) == expected


def test_a_model_that_a_meta_file_names_may_be_a_pickle_there(models: Path) -> None:
    made.save(made.net(), models / "lstm_1h.onnx")
    (models / "tft_1h.pt").write_bytes(zipped())
    meta(models / "tft_1h_meta.json", n_features=6)
    by_name = {item.name: item for item in modelfolder.check(models, must_run=False)}
    about = by_name["tft_1h_meta.json"]
    assert (about.ok, about.done) == (True, False)
    assert about.detail == "it names tft_1h, which is only a pickle here"
    assert failed(models) == {"tft_1h_meta.json": about.detail}


def test_a_damaged_model_is_not_told_as_missing_too(models: Path) -> None:
    (models / "tft_1h.onnx").write_bytes(b"")
    meta(models / "tft_1h_meta.json", n_features=6)
    assert "tft_1h_meta.json" not in failed(models)


# Damage.


def damage(tmp_path: Path, kind: str, name: str, times: int) -> collections.Counter[str]:
    argv = [sys.executable, mutate_models.__file__, kind, str(tmp_path / name), str(times)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return collections.Counter(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("kind", "name", "save"),
    [
        ("onnx", "n.onnx", lambda path: made.save(made.net(), path)),
        ("lgbm", "lgbm.txt", lambda path: path.write_text(made.trees())),
        ("xgboost", "x.json", lambda path: made.xgboost().save_model(path)),
        ("xgboost", "x.ubj", lambda path: made.xgboost().save_model(path)),
        ("catboost", "c.cbm", lambda path: made.catboost().save_model(str(path))),
        ("catboost", "c.json", lambda path: made.catboost().save_model(str(path), format="json")),
    ],
)
def test_no_damage_ends_in_a_traceback(
    tmp_path: Path, kind: str, name: str, save: Callable[[Path], Any]
) -> None:
    """A library may end its process; childprocess.py tells that, as test_modelfolder.py shows."""
    save(tmp_path / name)
    outcomes = damage(tmp_path, kind, name, 25)
    ends = {f"ended by SIG{name}" for name in ("ABRT", "SEGV", "FPE", "BUS", "ILL", "XCPU")}
    assert set(outcomes) <= {"answered", *ends}
    assert outcomes["answered"] > 10


def test_no_damaged_pickle_or_header_raises(models: Path) -> None:
    chance = random.Random(3)
    whole = [fitted_scaler(6), zipped(), safetensors(), *HDF5, scaler_json(6)]
    names = ["scaler.pkl", "a.pt", "a.safetensors", "a.h5", "b.h5", "scaler.json"]
    for _ in range(200):
        for name, content in zip(names, whole, strict=True):
            (models / name).write_bytes(mutate_models.damaged(content, chance))
        by_name = items(models)
        assert "models" in by_name
        assert all("\n" not in item.detail for item in by_name.values())
