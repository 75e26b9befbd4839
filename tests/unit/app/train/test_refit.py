"""`refit: true`: what ships was fitted on all bars, what is said of it was measured before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from macd.app.market import splits
from macd.app.market.bars import read_bars, write_bars
from macd.app.pages import training as report
from macd.app.predict import golden, health
from macd.app.train import dataset, lgbm, pipeline
from macd.app.train.cache import Cache
from macd.app.train.events import read_events
from macd.app.train.fitdata import Provenance, verify_provenance
from macd.app.train.onnx_check import compare
from macd.app.train.settings import settings_from
from macd.errors import UsageError
from macd.run_directory import FILES, read_run
from tests.unit.app.train.test_pipeline import ENVIRONMENT, NOW, QUICK, SAMPLE, SMALL

MODELS = ("lgbm", "lstm", "tft")


def test_everything_is_purged_as_for_the_newest_bar() -> None:
    holdout = splits.holdout_rows(5_000, 0.15, 48, first=500)
    every = splits.everything(holdout, 48)
    assert every.index == -2
    assert every.train[0] == 500
    assert int(every.train[-1]) == 5_000 - 1 - 48 - 1
    assert every.test.tolist() == [4_999]
    splits.assert_purged(every)


@pytest.mark.parametrize("mode", ["lgbm", "onnx", "stacking"])
def test_a_single_stage_refits_nothing(mode: str) -> None:
    with pytest.raises(UsageError, match="1 problem") as caught:
        settings_from({"refit": True, "mode": mode})
    assert "only with mode all" in caught.value.why


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training without and with a refit; the second has the first one's fits."""
    top = tmp_path_factory.mktemp("refit")
    write_bars(read_bars(SAMPLE)[:3200], top / "bars" / "BTCUSD_1h.parquet")
    for name, refit in (("plain", False), ("refitted", True)):
        out = {"data": str(top / "bars"), "out": str(top / name), "cache": str(top / "cache")}
        settings = settings_from({**SMALL, "folds": 2, "params": QUICK, "refit": refit, **out})
        pipeline.run(settings, clock=lambda: NOW, environment=ENVIRONMENT, echo=False)
    return top / "plain", top / "refitted"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_judged_as_before_and_other_models_shipped(runs: tuple[Path, Path]) -> None:
    plain, refitted = runs
    events = read_events(refitted / "events.jsonl")
    fits = [e for e in events if e["event"] == "fit_done" and not e["cached"]]
    assert {(e["model"], e["fold"]) for e in fits} == {(name, "refit") for name in MODELS}
    before, after = read(plain / FILES.metrics), read(refitted / FILES.metrics)
    assert after["models"] == before["models"]
    assert after["best_head"] == before["best_head"]
    table = FILES.out_of_fold("1h")
    assert pl.read_parquet(plain / table).equals(pl.read_parquet(refitted / table))
    stacked = FILES.stacking("1h")
    assert (plain / stacked).read_bytes() == (refitted / stacked).read_bytes()
    for file in ("lgbm_1h_5h.txt", "lstm_1h.pt", "lstm_1h.onnx", "tft_1h.onnx"):
        path = f"{FILES.models}/{file}"
        assert (plain / path).read_bytes() != (refitted / path).read_bytes(), file


@pytest.mark.slow
def test_it_is_trained_on_the_holdout_and_says_so(runs: tuple[Path, Path]) -> None:
    plain, refitted = runs
    run = read_run(refitted)
    settings = settings_from(dict(run.settings))
    data = dataset.build(dataset.read(settings), settings.min_move)
    plan = dataset.plan(data, settings)
    last = int(plan.everything.train[-1])
    assert last > plan.holdout.test[0]
    cache = Cache(refitted.parent / "cache")
    for family in MODELS:
        meta, judged = run.metas[family], read(plain / FILES.meta(family, "1h"))
        assert meta["refit"] is True
        assert meta["trained_until_ms"] == int(data.times_ms[last])
        assert meta["judged_until_ms"] == judged["trained_until_ms"] < meta["trained_until_ms"]
        same = ("best_head", "val_auc", "calibration", "features", "schema_hash")
        assert {name: meta[name] for name in same} == {name: judged[name] for name in same}
        entries = [cache.get(path.stem) for path in cache.root.rglob(f"{family}-*.fit")]
        (fit,) = [e for e in entries if e is not None and e.facts["fold"] == -2]
        seen = Provenance.from_json(fit.facts["provenance"])
        assert seen.train_last > plan.holdout.test[0]
        verify_provenance(seen, plan.everything, plan.embargo)
    trained = lgbm.fit(
        dataset_of(data, last),
        lgbm.Params(**{**lgbm.Params.demo().__dict__, **QUICK["lgbm"]}),
        seed=settings.seed,
    )
    shipped = lgbm.load(refitted / FILES.models, "1h")
    assert shipped.texts == trained.texts
    note = run.metrics["refit"]["note"]
    assert "refitted on all bars to" in note
    assert "no test figures of their own" in note
    assert run.result["refit"] == run.metrics["refit"]
    assert note in report.cautions(run)
    said = [e["note"] for e in read_events(refitted / "events.jsonl") if e["event"] == "summary"]
    assert f"! {note}" in said
    assert "refit" not in read(plain / FILES.result)
    checks = {check["name"]: check for check in run.audit["checks"]}
    assert checks["provenance"]["ok"]
    assert checks["provenance"]["detail"].startswith("12 fits")  # three families, 2 folds + 2


def dataset_of(data: dataset.Dataset, last: int) -> Any:
    """What a fit on everything may use, made here from the bars."""
    from macd.app.train.fitdata import FitData  # noqa: PLC0415

    seen = data.seen_by(lgbm.Params.demo())
    y = np.full((last + 1, 3), np.nan, np.float32)
    y[data.first : last + 1] = data.y[data.first : last + 1]
    rows = np.arange(data.first, last + 1)
    rows = rows[~np.isnan(y[rows]).all(axis=1)]
    return FitData(seen.X[: last + 1].copy(), rows, y, features=seen.features)


@pytest.mark.slow
def test_the_health_check_holds_it_to_what_it_said_itself(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    _, refitted = runs
    inputs = golden.inputs(*golden.TrainedOn.of_run(refitted).read(refitted.parent / "bars"))
    items = {item.name: item for item in health.check(refitted, tf="1h", inputs=inputs)}
    assert [item.detail for item in items.values() if not item.ok] == []
    assert items["predictions of the training"].done
    assert compare(refitted, "1h", inputs).ok
    # the judged models in its place are not what was refitted
    plain, top = runs[0], tmp_path / "mixed"
    for part in FILES.shipped:
        for path in (refitted / part).iterdir():
            (top / part).mkdir(parents=True, exist_ok=True)
            source = plain / part / path.name if path.suffix == ".txt" else path
            (top / part / path.name).write_bytes(source.read_bytes())
    items = {item.name: item for item in health.check(top, tf="1h", inputs=inputs)}
    assert "lgbm" in items["predictions of the training"].detail
    assert not items["predictions of the training"].ok
