"""The health check against models that are really broken, in each way such files break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macd.app.predict import golden, health
from macd.app.predict.golden import TrainedOn
from macd.app.predict.scoring import MODELS, Scorer
from macd.app.train.onnx_check import compare
from macd.checklist import Item
from macd.run_directory import FILES
from tests.support.training_run import bars_directory, trained_run
from tests.unit.release.damage import (
    Spoil,
    constant,
    constant_stacking,
    crash_lightgbm,
    edit_json,
    foreign_feature,
    gone,
    infinite_stacking,
    nan_weights,
    no_probability,
    one_family_apart,
    other_trees,
    other_weights,
    point_outside,
    swap_features,
    truncate,
    unfed_stacking,
    without_count,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Golden predictions of the shared training."""
    bars, cross = TrainedOn.of_run(trained_run()).read(bars_directory(trained_run()))
    return golden.make(bars, cross, Scorer.load(trained_run() / MODELS, "1h"))


@pytest.fixture
def top(tmp_path: Path, document: dict[str, Any]) -> Path:
    """A release's models and golden predictions, to spoil."""
    for place in FILES.shipped:
        shutil.copytree(trained_run() / place, tmp_path / place)
    (tmp_path / "golden").mkdir()
    (tmp_path / golden.FILE).write_text(json.dumps(document))
    return tmp_path


def failed(items: list[Item]) -> dict[str, Item]:
    return {item.name: item for item in items if not item.ok}


def test_feature_quantiles_may_be_missing_but_not_damaged(top: Path) -> None:
    path = top / FILES.features("1h")
    document = json.loads(path.read_bytes())
    document["assets"]["BTCUSD"]["features"].pop("rsi_14")
    path.write_text(json.dumps(document))
    assert {*failed(health.check(top))} == {"feature quantiles"}
    path.unlink()
    assert failed(health.check(top)) == {}
    assert any(item.name == "feature quantiles" and not item.done for item in health.check(top))


def test_a_good_release_is_well_item_by_item(top: Path) -> None:
    items = health.check(top, lock={"numpy": np.__version__})
    assert failed(items) == {}
    assert [item.name for item in items] == [
        "dependencies", "features", "feature quantiles", "LightGBM", "LSTM", "TFT", "stacking meta",
        "batch 1 and N agree", "golden predictions", "predictions of the training",
    ]  # fmt: skip
    details = {item.name: item.detail for item in items}
    assert "best head" in details["LSTM"]
    assert "n_oof_samples" in details["stacking meta"]
    assert "imported here" in details["dependencies"]
    assert "120 on 8 held-out bars agree (LightGBM, LSTM, TFT, Mean" in details[items[-1].name]
    assert all(item.line().startswith("✓") and "\n" not in item.line() for item in items)


@pytest.mark.parametrize(
    ("spoil", "item", "words"),
    [
        (without_count, "stacking meta", "n_oof_samples is None"),
        (constant_stacking, "stacking meta", "whatever it sees (12h, 24h, 5h"),
        (unfed_stacking, "stacking meta", "gives no number for 12h, 24h, 5h"),
        (nan_weights, "stacking meta", "gives no number"),
        (other_trees, "predictions of the training", "lgbm_5h by"),
        (other_weights, "golden predictions", "lstm"),
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
    ],
)
def test_what_is_broken_is_named_with_cause_and_remedy(
    top: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, item: str, words: str
) -> None:
    monkeypatch.chdir(top / MODELS)  # where relative external data would be found
    spoil(top / MODELS)
    items = failed(health.check(top))
    assert item in items
    failure = items[item]
    assert words in failure.detail
    assert failure.cause
    assert failure.remedy
    assert failure.line().startswith("✗")
    assert len(failure.line().splitlines()) == 3


def test_one_broken_model_leaves_the_others_well(top: Path) -> None:
    nan_weights(top / MODELS)
    names = {item.name for item in health.check(top) if item.ok}
    assert {"LightGBM", "TFT", "features"} <= names


def test_nothing_at_all_is_one_failed_item(tmp_path: Path) -> None:
    (item,) = health.check(tmp_path)
    assert (item.name, item.ok) == ("models", False)


def test_golden_predictions_of_other_models_are_belied_by_the_training(top: Path) -> None:
    other_trees(top / MODELS)
    bars, cross = TrainedOn.of_run(trained_run()).read(bars_directory(trained_run()))
    made = golden.make(bars, cross, Scorer.load(top / MODELS, "1h"))
    (top / golden.FILE).write_text(json.dumps(made))
    assert set(failed(health.check(top))) == {"predictions of the training"}


def test_without_stored_predictions_it_says_that_nothing_was_compared(top: Path) -> None:
    (top / FILES.out_of_fold("1h")).unlink()
    item = health.check(top)[-1]
    assert (item.ok, item.done) == (True, False)
    assert item.line() == "– predictions of the training: not compared: no oof_1h.parquet here"
    (top / FILES.out_of_fold("1h")).write_bytes(b"no table")
    assert "predictions of the training" in failed(health.check(top))


def test_stacking_that_could_not_be_run_is_not_well(top: Path) -> None:
    (top / golden.FILE).unlink()
    assert failed(health.check(top))["stacking meta"].detail == "not run"


def test_an_unknown_best_head_is_not_made_up(top: Path) -> None:
    edit_json(top / MODELS / "lstm_1h_meta.json", lambda document: document.pop("best_head"))
    details = {item.name: item.detail for item in health.check(top)}
    assert "best head unknown" in details["LSTM"]


def test_a_package_that_does_not_import_is_named(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "hollow_thing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hollow-thing\nVersion: 1.0\n")
    (info / "RECORD").write_text("hollow_thing.py,,\n")
    (tmp_path / "hollow_thing.py").write_text("raise OSError('libgomp.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    failure = failed(health.check(top, lock={"hollow-thing": "1.0"}))["dependencies"]
    assert failure.detail.endswith("import hollow_thing fails: libgomp.so.1: cannot open")


def test_a_wrong_version_in_the_lock_is_named(top: Path) -> None:
    items = failed(health.check(top, lock={"numpy": "1.0.0", "no-such-package": "2"}))
    assert "numpy 1.0.0 is locked" in items["dependencies"].detail
    assert "nothing is installed" in items["dependencies"].detail


@pytest.mark.parametrize("damage", ["gone", "not json", "a list", "no bars", "moved"])
def test_damaged_golden_predictions_are_told(top: Path, damage: str) -> None:
    path = top / golden.FILE
    if damage == "gone":
        path.unlink()
    elif damage == "no bars":
        edit_json(path, lambda document: document.pop("bars"))
    elif damage == "moved":
        edit_json(path, lambda document: document["expected"]["lgbm_5h"].__setitem__(0, 0.9))
    else:
        path.write_text("{" if damage == "not json" else "[1]")
    assert "golden predictions" in failed(health.check(top))


def test_torch_tells_an_export_of_other_weights(top: Path) -> None:
    good = compare(top, "1h")
    assert good.ok, good.detail
    other_weights(top / MODELS)
    bad = compare(top, "1h")
    assert not bad.ok
    assert "other numbers than torch" in bad.detail


def test_where_torch_is_not_nothing_is_said_to_agree(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("macd.app.train.onnx_check.find_spec", lambda _: None)
        item = compare(top, "1h")
    assert (item.done, item.detail) == (False, "not compared: torch is not here")
    (top / MODELS / "tft_1h.pt").unlink()
    item = compare(top, "1h")
    assert item.detail == "not compared: tft_1h.pt not here"


def test_a_run_is_checked_on_bars_given_to_it() -> None:
    bars, cross = TrainedOn.of_run(trained_run()).read(bars_directory(trained_run()))
    items = health.check(trained_run(), inputs=golden.inputs(bars, cross))
    assert failed(items) == {}
    assert "golden predictions" not in {item.name for item in items}


def test_models_from_before_windows_were_named_are_read(top: Path) -> None:
    def older(document: dict[str, Any]) -> None:
        del document["window_features"]

    for family in ("lgbm", "tft"):  # they use fewer columns, which no model did then
        gone(f"{family}_1h_meta.json")(top / MODELS)
    edit_json(top / MODELS / "lstm_1h_meta.json", older)
    before = Scorer.load(trained_run() / MODELS, "1h")
    now = Scorer.load(top / MODELS, "1h")
    assert now.features == before.features
    assert set(now.models) == {"lstm"}


def test_each_family_is_handed_the_columns_of_its_meta(top: Path) -> None:
    scorer = Scorer.load(top / MODELS, "1h")
    own = scorer.metas["lgbm"]["features"]
    assert len(own) == 44 < len(scorer.features)
    windows = np.random.default_rng(1).normal(size=(5, 48, len(scorer.features)))
    windows = windows.astype(np.float32)
    expected, _ = scorer.score_batch(windows)
    unseen = [n for n, name in enumerate(scorer.features) if name not in own]
    windows[:, :, unseen] = np.nan  # LightGBM must not notice, the nets must
    changed, _ = scorer.score_batch(windows)
    assert np.array_equal(changed["lgbm"], expected["lgbm"])
    assert not np.array_equal(changed["lstm"], expected["lstm"])
    scorer.models["lgbm"] = lambda given: given[:, -1, :3]
    del scorer.metas["lgbm"]["calibration"]
    with_own, errors = scorer.score_batch(np.abs(windows) / 100)
    first = [scorer.features.index(name) for name in own[:3]]
    assert errors == {}
    assert np.array_equal(with_own["lgbm"], (np.abs(windows) / 100)[:, -1, first])
