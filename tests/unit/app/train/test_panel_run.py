"""A whole training with a panel: its files, its stacking, and a release served on any asset."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.pages import training as training_page
from macd.app.predict import __main__ as checks
from macd.app.predict import golden, health, modelfolder
from macd.app.predict.combine import mean_of_logits
from macd.app.predict.scoring import MODELS, Scorer, UnknownSymbolError
from macd.app.service import release
from macd.app.service.predictor import Predictor
from macd.app.service.settings import Flags
from macd.app.train import onnx_check, pipeline
from macd.app.train.settings import settings_from
from macd.heads import BASES, FAMILIES, PANEL
from macd.host.store.manifest import Manifest
from macd.run_directory import read_run
from tests.support import small_panel

pytestmark = pytest.mark.slow
LSTM = {"hidden": 8, "projection": 8, "epochs": 1, "rows_per_epoch": 256}
TFT = {"width": 8, "attention_heads": 2, "epochs": 1, "rows_per_epoch": 256}
TREES = {"rounds": 5, "bags": 1}
SETTINGS: dict[str, Any] = {
    "symbol": small_panel.MAIN,
    "panel": [small_panel.MAIN, *small_panel.OTHERS],
    "folds": 2,
    "initial": 0.3,
    "surrogates": 1,
    "workers": 1,
    "device": "cpu",
    "accept": [
        {"check": check, "symbol": "BBBUSD", "reason": "60 hours are missing on purpose"}
        for check in ("gap", "missing")
    ],
    "params": {
        **{"lgbm": TREES, "lstm": LSTM, "tft": TFT},
        **{"lgbm_panel": TREES, "lstm_panel": LSTM, "tft_panel": TFT},
    },
}
OTHER = "CCCUSD"


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bars")
    small_panel.write(where)
    return where


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    settings = settings_from({**SETTINGS, "data": str(bars), "out": str(out)})
    environment = {"ML_STACKING_MIN_SAMPLES": "100"}
    pipeline.run(settings, clock=lambda: 1_900_000_000.0, environment=environment, echo=False)
    return out


@pytest.fixture(scope="module")
def scorer(run: Path) -> Scorer:
    return Scorer.load(run / MODELS, "1h")


@pytest.fixture(scope="module")
def document(bars: Path, scorer: Scorer) -> dict[str, Any]:
    return golden.make(read_bars(bars / f"{small_panel.MAIN}_1h.parquet"), {}, scorer)


def test_six_models_and_a_stacking_of_all_of_them(run: Path) -> None:
    made = read_run(run)
    assert [name for name in made.models if name in BASES] == list(BASES)
    assert set(made.metas) == set(BASES)
    assert set(made.stacking["bases"]) == {f"{f}_{h}" for f in BASES for h in ("5h", "12h", "24h")}
    listed = {entry["path"] for entry in made.result["files"]}
    assert {f"data/ml_models/{family}_1h_meta.json" for family in BASES} <= listed
    assert {f"data/ml_models/{name}_panel_1h.onnx" for name in ("lstm", "tft")} <= listed
    assert {f"data/ml_models/lgbm_panel_1h_{h}.txt" for h in ("5h", "12h", "24h")} <= listed
    assert made.metrics["panel"] == list(small_panel.OTHERS)
    assert {*made.metrics["drift"]["assets"]} == {small_panel.MAIN, *small_panel.OTHERS}
    checks = {check["name"]: check["ok"] for check in made.audit["checks"]}
    assert checks["provenance"]
    assert checks["no_look_ahead"]
    assert "sign_flipped_lgbm_panel" in checks
    table = pl.read_parquet(made.oof)
    assert {f"p_{family}_5h" for family in BASES} <= set(table.columns)


def test_a_panels_fits_saw_more_rows_and_none_of_them_late(run: Path) -> None:
    fits = read_run(run).metrics["fits"]
    rows = {fit["family"]: fit["samples"] for fit in fits if fit["fold"] == -1}
    assert rows["lgbm_panel"] > 2 * rows["lgbm"]


def test_the_release_is_checked_with_all_six(
    run: Path, scorer: Scorer, document: dict[str, Any]
) -> None:
    assert scorer.families == BASES
    assert golden.check(document, scorer).ok
    assert "BBBUSD lgbm_panel_5h" in document["expected"]
    items = health.check(run, document=document, symbol=OTHER)
    named = {item.name: item for item in items}
    assert named["features"].ok
    assert named["LSTM, panel"].ok
    assert named[f"models for {OTHER}"].ok
    assert named["golden predictions"].ok
    assert named["predictions of the training"].ok


def test_a_release_is_proved_on_the_bars_of_all_assets(run: Path, bars: Path) -> None:
    digest = json.loads((run / "result.json").read_text())["data_digest"]
    question = {"top": str(run), "run": str(run), "data": str(bars), "digest": digest}
    proof = checks.answer("prove", {**question, "lock": {}})
    assert [item for item in proof["items"] if not item["ok"]] == []
    (item,) = onnx_check.answer({name: question[name] for name in ("top", "run", "data")})["items"]
    assert item["ok"]
    assert "own and panel's" in item["detail"]


def test_other_bars_of_one_asset_are_other_data(run: Path, bars: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bars, tmp_path / "bars"))
    write_bars(read_bars(copy / "BBBUSD_1h.parquet")[:-1], copy / "BBBUSD_1h.parquet")
    digest = json.loads((run / "result.json").read_text())["data_digest"]
    question = {"top": str(run), "run": str(run), "data": str(copy), "digest": digest}
    assert "are not those" in checks.answer("prove", {**question, "lock": {}})["error"]["what"]


def test_a_damaged_model_of_the_panel_is_named(
    run: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / MODELS / "lstm_panel_1h.onnx").unlink()
    items = {item.name: item for item in health.check(copy, document=document)}
    assert not items["LSTM, panel"].ok
    assert items["LSTM"].ok


def test_another_asset_is_served_by_the_panels_models_alone(bars: Path, scorer: Scorer) -> None:
    frame = read_bars(bars / f"{OTHER}_1h.parquet")
    serving = scorer.on(OTHER)
    assert serving.families == PANEL
    said = Predictor(serving, Flags(0, 0, {}), "1h").predict(frame, {})
    fields = dict(said.fields)
    assert fields["ml_error"] is None
    assert set(fields["ml_heads"]) == {*PANEL, "stacking", "mean"}
    head = fields["ml_horizon"]
    for name, family in zip(("lgb", "lstm", "tft"), PANEL, strict=True):
        assert fields[f"ml_{name}_prob"] == pytest.approx(
            fields["ml_heads"][family][head], abs=1e-6
        )
    assert scorer.stacking is not None
    slope = scorer.stacking.mean_slopes[head]
    mean = float(mean_of_logits((fields["ml_heads"][f][head] for f in PANEL), slope=slope))
    assert fields["ml_stacking_prob"] == pytest.approx(mean, abs=1e-5)
    assert fields["ml_avg_prob"] == pytest.approx(mean, abs=1e-5)
    assert fields["ml_heads"]["mean"][head] == pytest.approx(mean, abs=1e-5)
    # Its nets are told whose bars these are.
    as_main = Predictor(scorer, Flags(0, 0, {}), "1h").predict(frame, {}).fields
    asset = {f: np.array(list(fields["ml_heads"][f].values())) for f in PANEL}
    main = {f: np.array(list(as_main["ml_heads"][f].values())) for f in PANEL}
    assert np.abs(asset["lstm_panel"] - main["lstm_panel"]).max() > 1e-5
    assert np.abs(asset["lgbm_panel"] - main["lgbm_panel"]).max() == 0
    # On the trained asset the guide's fields are those of its own models.
    assert as_main["ml_lstm_prob"] == pytest.approx(as_main["ml_heads"]["lstm"][head], abs=1e-6)
    assert set(as_main["ml_heads"]) == {*BASES, "stacking", "mean"}


def test_one_broken_model_of_the_panel_leaves_the_others(bars: Path, scorer: Scorer) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("CUDA on fire")

    serving = scorer.on(OTHER)
    serving = dataclasses.replace(serving, models={**serving.models, "tft_panel": broken})
    frame = read_bars(bars / f"{OTHER}_1h.parquet")
    fields = Predictor(serving, Flags(100, 0, {}), "1h").predict(frame, {}).fields
    assert fields["ml_tft_prob"] is None
    assert fields["ml_stacking_prob"] is None
    assert "CUDA on fire" in fields["ml_error"]
    assert math.isfinite(fields["ml_bull_prob"])


def test_an_asset_that_no_model_knows_is_refused(run: Path, scorer: Scorer) -> None:
    with pytest.raises(UnknownSymbolError) as caught:
        scorer.on("DOGEUSD")
    assert "know nothing of DOGEUSD" in caught.value.what
    assert "AAAUSD, BBBUSD, CCCUSD" in caught.value.why
    assert caught.value.live
    assert "train.panel" in caught.value.hint
    item = next(i for i in health.check(run, symbol="DOGEUSD") if "DOGEUSD" in i.name)
    assert not item.ok


@pytest.fixture
def released(run: Path, document: dict[str, Any], tmp_path: Path) -> release.Identity:
    """The run's models and golden predictions as a release holds them; no file list, no lock."""
    top = Path(shutil.copytree(run, tmp_path / "release"))
    (top / golden.FILE).parent.mkdir()
    (top / golden.FILE).write_text(json.dumps(document))
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    manifest = Manifest("app", "prod", 1, moment, moment, (), "0" * 64, {})
    return release.Identity("R", top, "0" * 64, manifest)


def test_the_service_loads_what_its_symbol_needs(released: release.Identity) -> None:
    own = release.load(released, "1h", small_panel.MAIN)
    assert own.outcome.ok
    assert set(own.models) == {*BASES, "stacking"}
    other = release.load(released, "1h", OTHER)
    assert other.outcome.ok
    assert set(other.models) == {*PANEL, "stacking"}
    assert other.scorer is not None
    assert other.scorer.symbol == OTHER


def test_the_service_says_which_assets_it_could_watch(released: release.Identity) -> None:
    loaded = release.load(released, "1h", "DOGEUSD")
    assert loaded.scorer is None
    assert not loaded.outcome.ok
    assert loaded.unknown == (
        "the release's models know nothing of DOGEUSD: they were trained on AAAUSD, BBBUSD, CCCUSD"
    )


def test_a_strangers_look_at_the_folder_finds_all_six(run: Path) -> None:
    items = modelfolder.check(run / MODELS)
    assert [item.line() for item in items if not item.ok] == []


def test_the_page_shows_the_panels_models(run: Path) -> None:
    text = training_page.write(run).read_text()
    assert "LightGBM, panel" in text
    assert "TFT, panel" in text


def test_files_of_a_run_without_a_panel_have_no_such_models(run: Path) -> None:
    assert json.loads((run / "settings.json").read_text())["panel"] == SETTINGS["panel"]
    assert settings_from({}).families == FAMILIES
