"""The pipeline on a small piece of the sample: what it leaves, what it redoes, what it refuses."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from macd.app.market import features
from macd.app.market.bars import read_bars, write_bars
from macd.app.market.features import schema_hash, subset
from macd.app.predict.combine import calibrated, mean_of_logits
from macd.app.predict.stacking import StackingModel
from macd.app.train import dataset, lgbm, lstm, oof, pipeline, stacking, tft
from macd.app.train.cache import Cache
from macd.app.train.events import read_events
from macd.app.train.settings import MODES, settings_from
from macd.app.train.training import params_of
from macd.errors import MacdError, RefusedError, UsageError
from macd.run_directory import FILES

pytestmark = pytest.mark.slow
SAMPLE = Path(__file__).parents[4] / "data/sample/BTCUSD_1h_2017-2019.parquet"
NOW = 1_900_000_000.0
ENVIRONMENT = {"ML_STACKING_MIN_SAMPLES": "100"}
SMALL: dict[str, Any] = {
    "folds": 3,
    "initial": 0.25,
    "surrogates": 1,
    "workers": 1,
    "device": "cpu",
    "params": {
        "lgbm": {"rounds": 5},
        "lstm": {  # more features than the others
            "features": "all",
            "hidden": 8,
            "projection": 8,
            "epochs": 2,
            "rows_per_epoch": 256,
        },
        "tft": {"width": 8, "attention_heads": 2, "epochs": 1, "rows_per_epoch": 256},
    },
}
# For tests that look at names or words, not at numbers: nets of one epoch.
QUICK = {**SMALL["params"], "lstm": {**SMALL["params"]["lstm"], "epochs": 1}}
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bars")
    write_bars(read_bars(SAMPLE)[:3200], where / "BTCUSD_1h.parquet")
    return where


def train(out: Path, data: Path, **changes: Any) -> dict[str, Any]:
    settings = settings_from({**SMALL, "data": str(data), "out": str(out), **changes})
    return pipeline.run(settings, clock=lambda: NOW, environment=ENVIRONMENT, echo=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    train(out, data_dir)
    return out


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change things in."""
    return Path(shutil.copytree(done, tmp_path / "again"))


def table(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "data/gpu_results/oof_1h.parquet")


def fitted(out: Path, after: int = 0) -> list[tuple[str, Any]]:
    """(model, fold) of the fits that were really done, from event number `after` on."""
    events = read_events(out / "events.jsonl")[after:]
    return [(e["model"], e["fold"]) for e in events if e["event"] == "fit_done" and not e["cached"]]


def count(out: Path) -> int:
    return len(read_events(out / "events.jsonl"))


# What a finished run leaves.


def test_result_lists_every_artefact_with_its_hash(done: Path) -> None:
    result = json.loads((done / "result.json").read_text())
    assert result["state"] == "done"
    assert result["complete"] is True
    names = {file["path"] for file in result["files"]}
    assert {
        "data/ml_models/lgbm_1h_5h.txt",
        "data/ml_models/lgbm_1h_12h.txt",
        "data/ml_models/lgbm_1h_24h.txt",
        "data/ml_models/lgbm_1h_meta.json",
        "data/ml_models/lstm_1h.pt",
        "data/ml_models/lstm_1h_meta.json",
        "data/ml_models/lstm_1h.onnx",
        "data/ml_models/tft_1h.pt",
        "data/ml_models/tft_1h_meta.json",
        "data/ml_models/tft_1h.onnx",
        "data/ml_models/stacking_meta_1h.json",
        "data/gpu_results/oof_1h.parquet",
        "metrics.json",
        "criteria.json",
        "leak_audit.json",
    } <= names
    for file in result["files"]:
        content = (done / file["path"]).read_bytes()
        assert len(content) == file["size"] > 0
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_out_of_fold_table_has_the_agreed_columns_and_nulls(done: Path) -> None:
    frame = table(done)
    heads = ("5h", "12h", "24h")
    models = ("lgbm", "lstm", "tft", "stacking")
    wanted = ["bar_time", "fold", *(f"y_{h}" for h in heads)]
    assert [c for c in frame.columns if not c.startswith(("ret_", "p_"))] == wanted
    assert set(frame.columns) >= {f"p_{m}_{h}" for m in models for h in heads}
    assert frame["bar_time"].is_sorted()
    assert frame["bar_time"].n_unique() == len(frame)
    assert frame["fold"].unique().to_list() == [-1, 0, 1, 2]
    for head, horizon in zip(heads, (5, 12, 24), strict=True):
        assert frame[f"y_{head}"][-horizon:].null_count() == horizon
        assert set(frame[f"y_{head}"].drop_nulls().unique()) == {0.0, 1.0}
        for model in ("lgbm", "lstm", "tft"):
            assert frame[f"p_{model}_{head}"].is_between(0, 1, closed="none").all()
            assert frame[f"p_{model}_{head}"].null_count() == 0
        first = frame.filter(pl.col("fold") == 0)[f"p_stacking_{head}"]
        assert first.null_count() == len(first), "the first fold only trains the meta-model"
        later = frame.filter(pl.col("fold") != 0)[f"p_stacking_{head}"]
        assert later.null_count() == 0


def test_metrics_carry_intervals_baseline_and_both_readings(done: Path) -> None:
    metrics = json.loads((done / "metrics.json").read_text())
    baselines = {"volatility", "ridge"}
    assert set(metrics["models"]) == {"lgbm", "lstm", "tft", "stacking", "mean", *baselines}
    for heads in metrics["models"].values():
        for head in heads.values():
            for part in ("val", "val_all", "test", "test_all"):
                made = head[part]
                assert made["low"] <= made["value"] <= made["high"]
                assert 0 < made["effective_n"] < made["n"]
            assert head["val_all"]["n"] > head["val"]["n"], "all bars are more than the moves"
            for part in ("val", "test"):
                sure = sum(each["n"] for each in head["confidence"][part])
                assert head[part]["n"] < sure <= head[f"{part}_all"]["n"]
            assert len(head["folds"]) == 3
    assert metrics["data_digest"] == (done / "data_digest").read_text().strip()
    assert {"verify", "features", "lgbm", "lstm", "tft", "onnx", "stacking", "audit"} <= set(
        metrics["stages"]
    )
    assert all(stage["peak_mb"] > 0 for stage in metrics["stages"].values())
    curves = metrics["history"]["lstm"]
    assert [len(curve["epochs"]) for curve in curves] == [2, 2, 2, 2]


def test_policies_are_evaluated_and_their_curves_written(done: Path) -> None:
    policies = json.loads((done / "metrics.json").read_text())["policies"]
    best = json.loads((done / "metrics.json").read_text())["best_head"]["stacking"]
    assert policies["settings"]["head"] == best
    assert policies["settings"]["policy"]["kind"] == "tilt"
    names = {
        "base", "base_mean", "base_stacking", "prob_mean", "prob_mean_tuned", "prob_stacking",
        "prob_stacking_tuned", "buy_and_hold",
    }  # fmt: skip
    assert set(policies["val"]) == set(policies["test"]) == names
    curves = pl.read_parquet(done / "data/gpu_results/policies_1h.parquet")
    assert set(curves.columns) == {"part", "bar_time", *names}
    assert set(curves["part"].unique()) == {"val", "test"}
    listed = {file["path"] for file in json.loads((done / "result.json").read_text())["files"]}
    assert "data/gpu_results/policies_1h.parquet" in listed
    outcomes = {o["name"]: o for o in json.loads((done / "criteria.json").read_text())}
    assert outcomes["flag_matters"]["value"] == policies["flag_changes"]["val"]["tilt"]
    assert outcomes["net_edge"]["value"] == policies["val"]["base_stacking"]["mean_net_bp"]["low"]
    assert {outcomes[name]["level"] for name in ("flag_matters", "net_edge")} == {"warn"}
    said = [e["note"] for e in read_events(done / "events.jsonl") if e["event"] == "summary"]
    assert any(line.startswith("base rule with stacking (configured): val ") for line in said)


def test_how_the_features_lay_is_written_of_the_rows_the_models_were_trained_on(
    done: Path,
) -> None:
    document = json.loads((done / FILES.features("1h")).read_bytes())
    meta = json.loads((done / FILES.meta("lgbm", "1h")).read_bytes())
    until = datetime.fromisoformat(document["until"]).timestamp() * 1000
    assert until == meta["trained_until_ms"]
    asset = document["assets"]["BTCUSD"]
    assert list(asset["features"]) == meta["window_features"]
    metrics = json.loads((done / FILES.metrics).read_bytes())
    said = document["predictions"]
    assert metrics["drift"] == {
        "block": 168,
        "assets": {"BTCUSD": asset["blocks"]},
        "predictions": said,
    }
    head = metrics["best_head"]["stacking"]
    p = table(done)[f"p_mean_{head}"].drop_nulls().drop_nans().to_numpy()
    assert (said["head"], said["count"]) == (head, len(p) // 168)
    assert said["mean"]["mean"] == pytest.approx(p[: len(p) // 168 * 168].mean(), abs=1e-6)
    assert 0 < said["spread"]["mean"] < p.std() + 1e-6
    assert asset["blocks"]["count"] == asset["rows"] // 168
    assert 0.002 < asset["blocks"]["outside"]["mean"] < 0.012
    row = features.compute(read_bars(SAMPLE)[:3200], tf="1h").row(3000, named=True)
    low, high, longest = asset["features"]["rsi_14"]
    assert -1 < low < row["rsi_14"] < high < 1
    assert 1 <= longest < 48


def test_shipped_models_are_the_ones_the_holdout_judged(done: Path) -> None:
    """Load what was written, predict the holdout, find the numbers of the table."""
    settings = settings_from(json.loads((done / "settings.json").read_text()))
    data = dataset.build(dataset.read(settings), settings.min_move)
    behind = table(done).filter(pl.col("fold") == -1)
    rows = np.searchsorted(data.times_ms, behind["bar_time"].dt.epoch("ms").to_numpy())
    for family in (lgbm, lstm, tft):
        name = family.__name__.rpartition(".")[2]
        model = family.load(done / "data/ml_models", "1h")
        seen = data.seen_by(model.params)
        p = family.predict(model, seen.X, rows)
        meta = json.loads((done / f"data/ml_models/{name}_1h_meta.json").read_text())
        served = calibrated(p[:, 0], meta["calibration"]["5h"]).astype(np.float32)
        np.testing.assert_array_equal(served, behind[f"p_{name}_5h"].to_numpy())
        assert meta["best_head"] in ("5h", "12h", "24h")
        assert meta["features"] == list(seen.features)
        assert meta["window_features"] == list(data.features)
        assert meta["schema_hash"]
    stacked = StackingModel.from_json((done / "data/ml_models/stacking_meta_1h.json").read_bytes())
    line = behind.row(0, named=True)
    base = {k[2:]: v for k, v in line.items() if k.startswith("p_") and "stacking" not in k}
    context = {n: float(data.X[rows[0], data.features.index(n)]) for n in stacking.CONTEXT}
    probability = stacked.probability(base, context)
    assert probability["5h"] == pytest.approx(line["p_stacking_5h"], abs=1e-6)


def test_models_are_compared_on_the_same_bars(done: Path) -> None:
    metrics = json.loads((done / "metrics.json").read_text())
    frame = table(done).filter(pl.col("fold") > 0)  # stacking says nothing in its first fold
    for head, parts in metrics["comparison"].items():
        assert parts["val_all"]["n"] == len(frame.filter(pl.col(f"y_{head}").is_not_null()))
        assert set(parts["val"]["models"]) == set(metrics["models"])
        own = metrics["models"]["stacking"][head]
        assert parts["val"]["models"]["stacking"]["value"] == own["val"]["value"]
        reliable = metrics["models"]["lstm"][head]
        assert sum(p["n"] for p in reliable["reliability"]) == reliable["val_all"]["n"]
    outcomes = {o["name"]: o for o in json.loads((done / "criteria.json").read_text())}
    made = metrics["comparison"][metrics["best_head"]["stacking"]]["val"]["differences"]
    assert outcomes["stacking_vs_mean"]["value"] == made["stacking_minus_mean"]["high"]
    said = [e["note"] for e in read_events(done / "events.jsonl") if e["event"] == "summary"]
    assert said[-1] == json.loads((done / "result.json").read_text())["stacking_worth"]
    assert said[-1].startswith("Stacking beside the plain mean of the models at ")


def test_events_tell_stages_epochs_scores_and_progress(done: Path) -> None:
    events = read_events(done / "events.jsonl")
    assert events[0]["event"] == "run_started"
    assert events[-1]["event"] == "run_done"
    epochs = [e for e in events if e["event"] == "epoch"]
    assert {(e["stage"], e["model"]) for e in epochs} == {("lstm", "lstm"), ("tft", "tft")}
    assert all({"fold", "epoch", "epochs", "loss", "auc"} <= set(e) for e in epochs)
    fits = [e for e in events if e["event"] == "fit_done"]
    progress = [e["progress"] for e in fits]
    assert progress == sorted(progress)
    assert all("eta_s" in e for e in fits)
    assert [e for e in fits if e["fold"] == "final" and "auc" in e] == [], "the holdout is closed"


def test_heads_are_fixed_before_the_holdout_is_opened(done: Path) -> None:
    frame = table(done).with_columns(
        pl.when(pl.col("fold") == -1).then(-pl.col("ret_5h")).otherwise(pl.col("ret_5h"))
    )
    assert oof.validation_aucs(frame, "lstm", 0.003) == oof.validation_aucs(
        table(done), "lstm", 0.003
    )


def test_the_best_heads_are_those_of_validation_in_figures_and_files(done: Path) -> None:
    metrics = json.loads((done / "metrics.json").read_text())
    best = {
        part: {
            m: max(h, key=lambda k, h=h: h[k][part]["value"]) for m, h in metrics["models"].items()
        }
        for part in ("val", "test")
    }
    assert metrics["best_head"] == best["val"] != best["test"]
    for model in ("lgbm", "lstm", "tft", "stacking"):
        (path,) = (done / "data/ml_models").glob(f"{model}_*meta*.json")
        assert json.loads(path.read_text())["best_head"] == best["val"][model]
        luck = oof.best_head_luck(table(done), model, metrics["min_move"], metrics["seed"])
        assert metrics["best_head_luck"][model] == luck
    assert max(metrics["best_head_luck"].values()) > 0


def test_every_check_is_in_the_leak_audit(done: Path) -> None:
    audit = json.loads((done / "leak_audit.json").read_text())
    checks = [check["name"] for check in audit["checks"]]
    assert checks == ["sign_flipped_lgbm", "provenance", "no_look_ahead", "not_too_good"]
    assert all(check["detail"] for check in audit["checks"])


# What is redone.


def test_a_repeated_run_fits_nothing_and_ends_the_same(again: Path, data_dir: Path) -> None:
    before, started = table(again), count(again)
    train(again, data_dir, cache=str(again / "cache"))
    assert fitted(again, started) == []
    assert table(again).equals(before)


def test_a_changed_parameter_redoes_that_family_alone(again: Path, data_dir: Path) -> None:
    started = count(again)
    params = {**SMALL["params"], "lstm": {**SMALL["params"]["lstm"], "lr": 0.01}}
    train(again, data_dir, params=params, stages=["verify", "lgbm", "lstm", "tft", "stacking"])
    assert {model for model, _ in fitted(again, started)} == {"lstm"}


def test_other_features_for_one_family(again: Path, data_dir: Path) -> None:
    started = count(again)
    params = {**SMALL["params"], "lgbm": {**SMALL["params"]["lgbm"], "features": "all"}}
    train(again, data_dir, params=params, stages=["verify", "lgbm", "lstm", "tft", "stacking"])
    assert {model for model, _ in fitted(again, started)} == {"lgbm"}
    meta = json.loads((again / "data/ml_models/lgbm_1h_meta.json").read_text())
    assert meta["features"] == meta["window_features"]


def test_each_family_names_its_own_features_and_the_shared_window(done: Path) -> None:
    metas = [
        json.loads((done / f"data/ml_models/{family}_1h_meta.json").read_text())
        for family in ("lgbm", "lstm")
    ]
    assert metas[0]["features"] == list(subset(metas[1]["features"], "path"))
    assert metas[0]["window_features"] == metas[1]["window_features"] == metas[1]["features"]
    assert metas[0]["schema_hash"] == metas[1]["schema_hash"] == schema_hash(metas[1]["features"])
    metrics = json.loads((done / "metrics.json").read_text())
    assert set(metrics["importance"]["lgbm"]) == set(metas[0]["features"])


def test_a_changed_late_bar_redoes_only_the_fits_that_saw_it(again: Path, tmp_path: Path) -> None:
    """And whatever was predicted of earlier bars, by stacking and the mean too, stays the same."""
    bars = read_bars(SAMPLE)[:3200]
    row = pl.int_range(pl.len()) == 2300  # in the last fold's test, before the holdout
    middle = (pl.col("high") + pl.col("low")) / 2  # LightGBM sees the path of the price alone
    later = bars.with_columns(pl.when(row).then(middle).otherwise("close").alias("close"))
    write_bars(later, tmp_path / "later" / "BTCUSD_1h.parquet")
    before, started = table(again), count(again)
    train(again, tmp_path / "later", stages=["verify", "lgbm", "lstm", "tft", "stacking"])
    done_now = fitted(again, started)
    assert ("lgbm", 0) not in done_now
    assert ("lgbm", "final") in done_now
    changed, since = pl.col("bar_time") >= bars["timestamp"][2300], pl.col("fold") == 2
    said = [name for name in before.columns if name.startswith("p_")]
    assert {"p_stacking_5h", "p_mean_5h"} <= set(said)
    now = table(again).select("bar_time", "fold", *said)
    before = before.select(now.columns)
    assert before.filter(~changed, since).height > 0
    assert before.filter(~changed).equals(now.filter(~changed))
    assert not before.filter(changed, since).equals(now.filter(changed, since))


def test_a_damaged_entry_is_fitted_again_to_the_same_numbers(again: Path, data_dir: Path) -> None:
    before, started = table(again), count(again)
    victim = sorted((again / "cache/fits").glob("*/lgbm-*.fit"))[0]
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    victim.write_bytes(raw)
    train(again, data_dir)
    assert [model for model, _ in fitted(again, started)] == ["lgbm"]
    assert table(again).equals(before)


@pytest.mark.parametrize("mode", ["lgbm", pytest.param("lstm", marks=pytest.mark.full)])
def test_two_workers_give_the_numbers_of_one(
    done: Path, tmp_path: Path, data_dir: Path, mode: str
) -> None:
    train(tmp_path / "two", data_dir, workers=2, mode=mode)
    assert len(fitted(tmp_path / "two")) == 4
    ours = Cache(tmp_path / "two/cache")
    for path in (tmp_path / "two/cache/fits").glob("*/*.fit"):
        entry = ours.get(path.stem)
        same = Cache(done / "cache").get(path.stem)
        assert entry is not None
        assert same is not None
        np.testing.assert_array_equal(entry.arrays["p"], same.arrays["p"])


@pytest.mark.parametrize("family", [lgbm, lstm])
def test_more_seeds_show_how_much_is_luck_and_ship_as_one(
    again: Path, data_dir: Path, family: Any
) -> None:
    name, before = family.__name__.rpartition(".")[2], table(again)
    metrics = json.loads((again / "metrics.json").read_text())
    alone = metrics["models"][name]["5h"]["val"]["value"]
    started = count(again)
    train(again, data_dir, mode=name, seeds=2)
    new = sorted(str(fold) for _, fold in fitted(again, started))
    assert new == ["0", "1", "2", "final"], "the new seed alone"
    metrics = json.loads((again / "metrics.json").read_text())
    first, second = metrics["seeds"][name]
    assert (first["seed"], second["seed"]) == (7, 8)
    assert first["5h"] == pytest.approx(alone, abs=1e-4)
    together = round(metrics["models"][name]["5h"]["val"]["value"], 4)
    assert len({first["5h"], second["5h"], together}) == 3, "it is of the mean of both"

    settings = settings_from(json.loads((again / "settings.json").read_text()))
    data = dataset.build(dataset.read(settings), settings.min_move)
    behind = before.filter(pl.col("fold") == -1)
    rows = np.searchsorted(data.times_ms, behind["bar_time"].dt.epoch("ms").to_numpy())
    shipped = family.load(again / "data/ml_models", "1h")
    cache = Cache(again / "cache")
    entries = [cache.get(path.stem) for path in cache.root.rglob(f"{name}-*.fit")]
    final = [e.arrays["p"] for e in entries if e is not None and e.facts["fold"] == -1]
    assert len(final) == 2
    expected = mean_of_logits(final, clip=1e-7)
    p = family.predict(shipped, data.seen_by(shipped.params).X, rows)
    np.testing.assert_allclose(p, expected, rtol=0, atol=1e-6)


# Modes.


@pytest.mark.parametrize(("mode", "first"), [("stacking", "lgbm"), ("onnx", "lstm")])
def test_a_mode_names_the_one_it_needs_first(
    tmp_path: Path, data_dir: Path, mode: str, first: str
) -> None:
    with pytest.raises(MacdError, match=f"--mode {mode} needs the {first} models") as caught:
        train(tmp_path / "out", data_dir, mode=mode)
    assert f"--mode {first}" in caught.value.hint
    assert not list((tmp_path / "out").glob("data/*"))


def test_the_modes_one_after_another_are_the_whole(
    done: Path, again: Path, tmp_path: Path, data_dir: Path
) -> None:
    """Each asks for the very fits that the whole asked for, so nothing is fitted twice."""
    out, cache = tmp_path / "steps", str(again / "cache")
    completes = [train(out, data_dir, mode=mode, cache=cache)["complete"] for mode in MODES[1:]]
    assert completes == [False] * 5 + [True]
    assert fitted(out) == []
    assert table(out).equals(table(done))
    whole = json.loads((done / "metrics.json").read_text())
    steps = json.loads((out / "metrics.json").read_text())
    assert steps["models"] == whole["models"]
    assert steps["holdout"]["looks"] == 1


# What is refused, and said.


def test_no_run_is_done_without_its_artefacts(
    again: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (again / "data/ml_models/stacking_meta_1h.json").unlink()
    monkeypatch.setattr(stacking, "save", lambda *_, **__: [])
    with pytest.raises(MacdError, match="ended without its artefacts") as caught:
        train(again, data_dir)
    assert "stacking_meta_1h.json" in caught.value.why
    assert json.loads((again / "result.json").read_text())["state"] == "failed"


def test_bars_with_errors_are_not_trained_on(tmp_path: Path) -> None:
    bars = read_bars(SAMPLE)[:3200]
    row = pl.int_range(pl.len()) == 100
    bad = bars.with_columns(pl.when(row).then(-1.0).otherwise("close").alias("close"))
    write_bars(bad, tmp_path / "bad" / "BTCUSD_1h.parquet")
    with pytest.raises(MacdError, match=r"the bars have \d+ error") as caught:
        train(tmp_path / "out", tmp_path / "bad")
    assert "row 100" in caught.value.why
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["state"], result["stage"]) == ("failed", "verify")
    assert fitted(tmp_path / "out") == []


def test_a_failed_stage_is_named(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(MacdError, match="the loss became"):
        params = {**SMALL["params"], "lstm": {**SMALL["params"]["lstm"], "lr": 1e30}}
        train(tmp_path / "out", data_dir, params=params, mode="lstm")
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["state"], result["stage"]) == ("failed", "lstm")
    assert read_events(tmp_path / "out/events.jsonl")[-1]["event"] == "run_failed"


def test_too_few_stacking_samples_is_said_with_the_number(again: Path, data_dir: Path) -> None:
    settings = settings_from({**SMALL, "data": str(data_dir), "out": str(again)})
    with pytest.raises(RefusedError, match="stacking needs 50000"):
        pipeline.run(
            settings,
            clock=lambda: NOW,
            environment={"ML_STACKING_MIN_SAMPLES": "50000"},
            echo=False,
        )


def test_a_second_training_in_the_same_directory_is_refused(tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "busy"
    out.mkdir()
    with (out / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="another training is at work"):
            train(out, data_dir)


def test_a_second_recipe_on_the_same_holdout_is_told(again: Path, data_dir: Path) -> None:
    params = {**SMALL["params"], "lgbm": {"rounds": 6}}
    train(again, data_dir, mode="lgbm", params=params)
    metrics = json.loads((again / "metrics.json").read_text())
    assert metrics["holdout"]["looks"] == 2
    said = [e.get("note", "") for e in read_events(again / "events.jsonl")]
    assert any("2 configurations of a model" in note for note in said)
    assert all(f"! {text}" in said for text in metrics["caveats"])
    assert "chosen by validation figures on BTC" in " ".join(metrics["caveats"])


def test_another_meta_model_on_the_same_holdout_counts_as_a_look(
    again: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = stacking.Params

    def other(**given: Any) -> stacking.Params:
        return honest(weights=1.0, **given)

    monkeypatch.setattr(stacking, "Params", other)
    train(again, data_dir)
    metrics = json.loads((again / "metrics.json").read_text())
    assert metrics["holdout"]["looks"] == 2


def test_too_few_bars_are_said(tmp_path: Path) -> None:
    write_bars(read_bars(SAMPLE)[:500], tmp_path / "few" / "BTCUSD_1h.parquet")
    with pytest.raises(MacdError, match="500 bars of BTCUSD are too few"):
        train(tmp_path / "out", tmp_path / "few")


def test_every_problem_in_the_settings_is_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        settings_from({"mode": "most", "embargo": 5, "holdout": 0.9})
    assert all(name in caught.value.why for name in ("mode", "embargo", "holdout"))
    with pytest.raises(UsageError) as caught:
        settings_from({"profil": "demo", "seed": "seven", "criteria": {"speed": 1}})
    assert all(name in caught.value.why for name in ("profil", "seed", "speed"))
    with pytest.raises(UsageError, match="'few' is no set of features"):
        params_of("lgbm", "demo", {"features": "few"})
    with pytest.raises(UsageError, match="lstm has no depth"):
        params_of("lstm", "demo", {"depth": 3})


def test_a_wrong_parameter_of_a_family_that_does_not_run_is_told(
    tmp_path: Path, data_dir: Path
) -> None:
    with pytest.raises(UsageError, match="lstm has no depth"):
        train(tmp_path / "out", data_dir, mode="lgbm", params={"lstm": {"depth": 3}})
    assert fitted(tmp_path / "out") == []


def test_settings_of_a_run_can_be_given_again(done: Path) -> None:
    raw = json.loads((done / "settings.json").read_text())
    assert settings_from(raw).as_json() == raw


def test_best_head_is_the_highest_known() -> None:
    assert oof.best_head({"5h": 0.55, "12h": 0.56, "24h": float("nan")}) == "12h"
