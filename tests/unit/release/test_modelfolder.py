"""Models that no run here made: what is named, what is run, and what is never opened."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macd import childprocess
from macd.app.predict import modelfolder, modelonnx, modelrun
from macd.app.predict.modelread import Question
from macd.checklist import Item
from tests.support import small_models as made
from tests.support.training_run import trained_run
from tests.unit.release import damage

pytestmark = pytest.mark.slow

Change = Callable[[Path], Any]


def failed(models: Path) -> dict[str, str]:
    """The failed items, name -> detail."""
    return {item.name: item.detail for item in modelfolder.check(models) if not item.ok}


def only(models: Path, name: str) -> Item:
    """The one item of that name."""
    (item,) = [one for one in modelfolder.check(models) if one.name == name]
    return item


@pytest.fixture
def models(tmp_path: Path) -> Path:
    place = tmp_path / "ml_models"
    place.mkdir()
    return place


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that hurt nobody are read here: a child takes a second to import what reads them."""

    def ask(_: str, question: dict[str, Any], __: childprocess.Limits) -> dict[str, Any]:
        return json.loads(json.dumps(modelrun.answer(json.loads(json.dumps(question)))))

    monkeypatch.setattr(childprocess, "ask", ask)


def test_a_whole_folder_of_another_team_is_well(tmp_path: Path) -> None:
    folder = made.hand_over(tmp_path / "ml_models")
    (folder / "README.md").write_text("ours")
    os.mkfifo(folder / "pipe.txt")  # opening it would wait for ever
    items = modelfolder.check(folder)
    assert [item.name for item in items if not item.ok] == []
    assert "pipe.txt" in items[-1].detail
    assert items[-1].line() == "– ignored: README.md, pipe.txt"
    (net,) = [item for item in items if item.name == "lstm_1h.onnx"]
    assert net.detail.startswith("x (N, 12, 6); outputs 0.")


@pytest.mark.usefixtures("in_this_process")
def test_what_a_run_here_leaves_is_well() -> None:
    items = modelfolder.check(trained_run() / "data/ml_models")
    assert [item.line() for item in items if not item.ok] == []
    assert sum(item.done for item in items) == 9
    assert sum("pickle" in item.detail for item in items) == 2


def test_an_empty_folder_and_one_of_pickles_have_no_models(models: Path) -> None:
    (item,) = modelfolder.check(models)
    assert (item.name, item.ok, item.detail) == ("models", False, "none")
    (models / "lstm_1h.pt").write_bytes(b"PK")
    assert failed(models) == {"models": "only pickles, which are never loaded"}


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["lgbm.pkl", "lstm_1h.pt", "scaler.joblib", "a.pth", "b.ckpt"])
def test_a_pickle_is_named_and_not_loaded(models: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "loaded"
    (models / name).write_bytes(pickle.dumps(Bomb(mark)))
    item = only(models, name)
    assert (item.ok, item.done) == (True, False)
    assert "not loaded" in item.detail
    assert not mark.exists()
    pickle.loads((models / name).read_bytes())
    assert mark.exists(), "the test would have seen it"


@pytest.mark.usefixtures("in_this_process")
def test_weights_in_a_second_file_are_read(models: Path) -> None:
    net = made.net()
    (models / "w.data").write_bytes(b"....." + made.outside(net, "w.data", offset=5))
    made.save(net, models / "lstm_1h.onnx")
    assert only(models, "lstm_1h.onnx").ok


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_were_not_copied_along_are_named(models: Path) -> None:
    net = made.net()
    made.outside(net, "lstm_1h.onnx.data")
    made.save(net, models / "lstm_1h.onnx")
    item = only(models, "lstm_1h.onnx")
    assert item.detail == "its weights lie in 'lstm_1h.onnx.data', which is not here"
    assert item.remedy == "copy it into ml_models, or export the model into one file"


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_were_cut_short_are_told(models: Path) -> None:
    net = made.net()
    (models / "w").write_bytes(made.outside(net, "w")[:-4])
    made.save(net, models / "lstm_1h.onnx")
    assert "'w' has 68 bytes, its weights end at 72" in only(models, "lstm_1h.onnx").detail


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("way", ["../secret", "absolute", "link", "folder/../../secret", ""])
def test_weights_outside_of_the_folder_are_not_opened(
    models: Path, tmp_path: Path, way: str
) -> None:
    secret = tmp_path / "secret"
    location = str(secret) if way == "absolute" else way
    net = made.net()
    secret.write_bytes(made.outside(net, location))
    (models / "folder").mkdir()
    if way == "link":
        (models / "link").symlink_to(secret)
    made.save(net, models / "lstm_1h.onnx")
    failures = failed(models)
    assert "outside of the folder" in failures["lstm_1h.onnx"]
    assert ("link" in failures) == (way == "link")


@pytest.mark.usefixtures("in_this_process")
def test_a_model_that_is_a_link_out_of_the_folder_is_not_followed(
    models: Path, tmp_path: Path
) -> None:
    made.save(made.net(), tmp_path / "lstm.onnx")
    (models / "lstm.onnx").symlink_to(tmp_path / "lstm.onnx")
    made.save(made.net(), models / "tft.onnx")
    (models / "again.onnx").symlink_to("tft.onnx")
    assert failed(models) == {"lstm.onnx": "a link out of the folder; it was not followed"}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("model", "about", "message"),
    [
        ({"features": 5}, {}, "it takes 5 features, lstm_1h_meta.json names 6"),
        ({}, {"features": 7}, "it takes 6 features, lstm_1h_meta.json names 7"),
        ({}, {"features": None, "n_features": 7}, "it takes 6 features, lstm_1h_meta.json names 7"),
        ({"seq": 48}, {}, "it takes windows of 48 bars, lstm_1h_meta.json says 12"),
        ({"batch": 1}, {}, "it takes batches of 1 only"),
        ({"end": "Identity"}, {}, "not inside [0, 1]"),
        ({"weights": np.zeros((6, 3), np.float32)}, {}, "says 0.500 whatever it sees"),
        ({"weights": np.full((6, 3), np.nan, np.float32)}, {}, "24 outputs are NaN or infinite"),
    ],
)
def test_what_is_wrong_with_an_onnx(
    models: Path, model: dict[str, Any], about: dict[str, Any], message: str
) -> None:
    made.save(made.net(**model), models / "lstm_1h.onnx")
    (models / "lstm_1h_meta.json").write_text(made.meta(**about))
    assert message in failed(models)["lstm_1h.onnx"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda: made.trees(("a", "b")), "it takes 2 features, lgbm_1h_meta.json names 6"),
        (
            lambda: made.trees((*made.FEATURES[1::-1], *made.FEATURES[2:])),
            "its feature f1 stands where lgbm_1h_meta.json has f0",
        ),
        (lambda: "tree\nversion=v4\n", "LightGBM can't read it"),
        (lambda: "", "it is empty"),
        (lambda: "version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (lambda: made.trees()[:200], "LightGBM can't read it"),
    ],
)
def test_what_is_wrong_with_lightgbm(models: Path, text: Callable[[], str], message: str) -> None:
    (models / "lgbm_1h_5h.txt").write_text(text())
    (models / "lgbm_1h_meta.json").write_text(made.meta(heads=["5h"]))
    assert message in failed(models)["lgbm_1h_5h.txt"]


def test_a_file_cut_short_that_aborts_its_reader_is_told(models: Path) -> None:
    (models / "lgbm_1h_5h.txt").write_text(made.trees()[:700])
    assert "it ended the process that read it (SIGABRT)" in failed(models)["lgbm_1h_5h.txt"]


def test_a_model_that_aborts_its_reader_is_told_and_hurts_nobody(models: Path) -> None:
    (models / "lgbm_1h_5h.txt").write_text(made.trees())
    damage.crash_lightgbm(models)
    assert "it ended the process that read it (SIG" in failed(models)["lgbm_1h_5h.txt"]


def test_a_model_that_never_ends_is_ended(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfolder, "_LIMITS", childprocess.Limits(timeout_s=2))
    made.save(made.endless_net(), models / "lstm.onnx")
    assert failed(models)["lstm.onnx"] == "it was not done in 2 s"


def test_a_model_that_takes_all_memory_gets_none(models: Path) -> None:
    made.save(made.greedy_net(), models / "lstm.onnx")
    assert failed(models)["lstm.onnx"] == "it takes too much memory"


def test_the_child_has_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCHANGE_KEY", "never seen")
    seen: dict[str, Any] = {}
    real = childprocess.subprocess.Popen

    def spy(*args: Any, **more: Any) -> Any:
        seen.update(more)
        return real(*args, **more)

    monkeypatch.setattr(childprocess.subprocess, "Popen", spy)
    with pytest.raises(childprocess.EndedError, match="ended with 1 and no answer"):
        childprocess.ask("macd.app.predict.modelrun", {})
    assert "EXCHANGE_KEY" not in seen["env"]
    assert seen["env"]["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (
            lambda m: (m / "lgbm_1h_12h.txt").unlink(),
            "stacking_meta_1h.json",
            "it names lgbm_12h, which is not here",
        ),
        (
            lambda m: (m / "lgbm_1h_12h.txt").unlink(),
            "lgbm_1h_meta.json",
            "it names lgbm_1h_12h.txt, which is not here",
        ),
        (
            lambda m: (m / "tft_1h.onnx").unlink(),
            "tft_1h_meta.json",
            "it names tft_1h, which is not here",
        ),
        (
            lambda m: (m / "tft_1h.onnx").rename(m / "tft_1h.pt"),
            "tft_1h_meta.json",
            "it names tft_1h, which is only a pickle here",
        ),
        (
            lambda m: (m / "stacking_meta_1h.json").write_text(
                '{"base_models": {"lightgbm": 0.4, "gru": "gru_1h.onnx", "tft_prob_5": 0.2}}'
            ),
            "stacking_meta_1h.json",
            "it names gru_1h.onnx, which is not here",
        ),
        (
            lambda m: (m / "stacking_meta_1h.json").write_text(
                '{"estimators": [{"name": "lstm_5h"}, {"name": "ridge", "path": "x/ridge.pkl"}]}'
            ),
            "stacking_meta_1h.json",
            "it names ridge, which is not here",
        ),
        (
            lambda m: (
                (m / "stacking_meta_1h.json").write_text('{"weights": {"lgb_p": 1, "TFT_p": 2}}'),
                (m / "tft_1h.onnx").unlink(),
            ),
            "stacking_meta_1h.json",
            "it names tft, which is not here",
        ),
        (
            lambda m: (m / "tft_1h_meta.json").write_text("{"),
            "tft_1h_meta.json",
            "can't be read as JSON",
        ),
        (
            lambda m: (m / "tft_1h_meta.json").write_text("[" * 100_000),
            "tft_1h_meta.json",
            "can't be read as JSON",
        ),
        (
            lambda m: (m / "tft_1h_meta.json").write_text(made.meta(n_features=9)),
            "tft_1h_meta.json",
            "it names 6 features and says there are 9",
        ),
        (
            lambda m: (m / "stacking_meta_1h.json").write_text('{"format": "macd-stacking/1"}'),
            "stacking_meta_1h.json",
            "bases must be a list of names",
        ),
    ],
)
def test_a_meta_file_and_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, name: str, message: str
) -> None:
    monkeypatch.setattr(childprocess, "ask", lambda *_: {"detail": "", "wrong": []})  # run above
    models = made.hand_over(tmp_path / "ml_models")
    assert failed(models) == {}
    change(models)
    details = [one.detail for one in modelfolder.check(models) if one.name == name and not one.ok]
    assert any(message in detail for detail in details), details


@pytest.mark.parametrize(
    "document", [None, [], 5, {"features": "all"}, {"bases": {"x": [[[[1]]]]}}]
)
def test_no_meta_file_raises(models: Path, document: Any) -> None:
    (models / "lstm_1h_meta.json").write_text(json.dumps(document))
    assert failed(models)


keys = st.sampled_from(
    ["features", "n_features", "heads", "bases", "base_models", "models", "model_file", "format",
     "seq_len", "name", "lgbm", "lstm_5h", "headline", "clip", "context", "inputs", "weights"]
)  # fmt: skip
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | keys
    | st.sampled_from(["macd-stacking/1", "lgbm_1h_5h.txt", "x.pkl"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
)  # fmt: skip


@settings(suppress_health_check=list(HealthCheck))
@given(st.dictionaries(keys, documents), st.sampled_from(["stacking_meta", "lgbm_meta", "meta"]))
def test_no_document_raises(models: Path, document: Any, name: str) -> None:
    for old in models.iterdir():
        old.unlink()
    (models / "lgbm_1h_5h.pkl").touch()
    (models / f"{name}.json").write_text(json.dumps(document))
    assert failed(models)


def test_names_of_strangers_move_no_cursor(models: Path) -> None:
    (models / "lgbm_\x1b[2J.pkl").write_bytes(b"")
    assert all(
        item.line().isprintable() or "\n" in item.line() for item in modelfolder.check(models)
    )
    assert "\x1b" not in "".join(item.line() for item in modelfolder.check(models))


def test_what_can_not_be_looked_at_is_named_and_hides_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be kept from a file who is root; but a path can be too long for anybody."""
    (models / "meta.json").write_text("{}")
    monkeypatch.chdir(models)
    for _ in range(20):
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    Path("lstm.onnx").touch()
    (item,) = [one for one in modelfolder.check(models) if "File name too long" in one.detail]
    assert not item.ok
    assert only(models, "meta.json").ok


def test_a_file_whose_path_is_too_long_is_named(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    length = len(str(models))
    while length < 3900:
        name = "d" * min(200, 3950 - length)
        Path(name).mkdir()
        os.chdir(name)
        length += len(name) + 1
    Path("x" * 240 + ".onnx").touch()
    assert any("File name too long" in detail for detail in failed(models).values())


def test_a_number_that_is_no_count_is_not_told(models: Path) -> None:
    (models / "meta.json").write_text('{"n_features": 1' + "0" * 4000 + "}")
    assert all(len(item.line()) < 500 for item in modelfolder.check(models))


def test_rows_are_the_same_alone_and_together() -> None:
    asked = Question("onnx", "", "")
    one = type("Input", (), {"type": "tensor(float)", "shape": ["N", 4], "name": "x"})
    every = modelonnx._values(one, np.arange(5), asked)
    assert (modelonnx._values(one, np.arange(3, 4), asked) == every[3:4]).all()


def test_lightgbm_is_imported_without_scikit_learn() -> None:
    program = """
import sys
from macd.app.predict.scoring import import_lightgbm
import_lightgbm().Booster
assert not [name for name in sys.modules if name.partition(".")[0] == "sklearn"]
import sklearn
"""
    subprocess.run([sys.executable, "-c", program], check=True)
