"""Five leaks put in on purpose, five caught, by structure and not by score; and the surrogate."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market import splits
from macd.app.market.bars import read_bars
from macd.app.market.labels import direction, forward_returns
from macd.app.market.splits import Fold, LeakError
from macd.app.train import dataset, fits, leak_audit, lgbm
from macd.app.train.cache import Cache, Entry
from macd.app.train.dataset import Bars
from macd.app.train.engine import Resources
from macd.app.train.events import Events
from macd.app.train.fitdata import observe, verify_provenance
from macd.app.train.fits import Batch, Inputs, Task, fit_all, training_data
from macd.app.train.leak_audit import sign_flipped

SAMPLE = Path(__file__).parents[4] / "data/sample/BTCUSD_1h_2017-2019.parquet"
PLAN = {"folds": 2, "initial": 0.3, "holdout": 0.15, "embargo": 48}
TINY = lgbm.Params(rounds=2)


@pytest.fixture(scope="module")
def bars() -> Bars:
    frame = read_bars(SAMPLE)[:2400]
    return Bars("BTCUSD", "1h", frame, {})


@pytest.fixture(scope="module")
def data(bars: Bars) -> dataset.Dataset:
    return dataset.build(bars, 0.003)


def _inputs(data: dataset.Dataset) -> Inputs:
    return Inputs(data.X, data.y, data.features, "1h", Events(None, lambda: 0.0, False), None)


def _fit(data: dataset.Dataset, folds: tuple[Fold, ...], where: Path) -> list[Entry]:
    tasks = [Task("lgbm", fold, fold.train, TINY, 7) for fold in folds]
    (entries,) = fit_all(
        [Batch(tasks, _inputs(data))],
        Cache(where),
        engine_name="local",
        use=Resources(1),
        embargo=48,
        progress=lambda cost, *, cached: {},
    )
    return entries


def test_without_a_leak_nothing_is_raised(
    bars: Bars, data: dataset.Dataset, tmp_path: Path
) -> None:
    plan = dataset.plan_rows(len(data), data.first, **PLAN)
    entries = _fit(data, plan.folds, tmp_path)
    pairs = [(Task("lgbm", f, f.train, TINY, 7), e) for f, e in zip(plan.folds, entries)]  # noqa: B905
    assert leak_audit.check_provenance(pairs, plan).ok
    assert leak_audit.check_look_ahead(bars, data).ok


# Mutant 1: scaling or selection learns from all data.


def test_mutant_handing_all_bars_to_the_fit_is_caught(
    data: dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(task: Task, X: np.ndarray, y: np.ndarray, features: tuple[str, ...]):
        unchanged = training_data(task, X, y, features)
        later = np.full((len(X) - len(unchanged.X), 3), np.nan, np.float32)
        return dataclasses.replace(unchanged, X=np.array(X), y=np.vstack([unchanged.y, later]))

    plan = dataset.plan_rows(len(data), data.first, **PLAN)
    monkeypatch.setattr(fits, "training_data", leaky)
    with pytest.raises(LeakError, match="left its training part") as caught:
        _fit(data, plan.folds, tmp_path)
    assert "scaling or selection" in caught.value.why


def test_mutant_normalising_features_on_all_data_is_caught(
    bars: Bars, data: dataset.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = dataset.build

    def leaky(given: Bars, min_move: float) -> dataset.Dataset:
        made = unchanged(given, min_move)
        mean, spread = np.nanmean(made.X, axis=0), np.nanstd(made.X, axis=0) + 1e-9
        return dataclasses.replace(made, X=((made.X - mean) / spread).astype(np.float32))

    monkeypatch.setattr(dataset, "build", leaky)
    assert not leak_audit.check_look_ahead(bars, dataset.build(bars, 0.003)).ok


# Mutant 2: no embargo between training and test.


def test_mutant_without_embargo_is_caught(
    data: dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(n: int, *, folds: int, first: int = 0, **_: object) -> list[Fold]:
        edges = np.linspace(first + 300, n - 400, folds + 1).astype(int)
        return [
            Fold(i, np.arange(first, a), np.arange(a, b))
            for i, (a, b) in enumerate(pairwise(edges))
        ]

    monkeypatch.setattr(splits, "walk_forward", leaky)
    with pytest.raises(LeakError, match="only 0 rows before its test"):
        dataset.plan_rows(len(data), data.first, **PLAN)
    with pytest.raises(LeakError):  # and again where the fits are accepted
        _fit(data, tuple(leaky(len(data), folds=2, first=data.first)), tmp_path)


# Mutant 3: folds drawn at random.


def test_mutant_with_random_folds_is_caught(
    data: dataset.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(n: int, *, folds: int, first: int = 0, **_: object) -> list[Fold]:
        part = np.random.default_rng(0).integers(0, folds, n - first)
        rows = np.arange(first, n)
        return [Fold(i, rows[part != i], rows[part == i]) for i in range(folds)]

    monkeypatch.setattr(splits, "walk_forward", leaky)
    with pytest.raises(LeakError, match="at or after its first test row"):
        dataset.plan_rows(len(data), data.first, **PLAN)
    with pytest.raises(LeakError):
        _fit(data, tuple(leaky(len(data), folds=2, first=data.first)), tmp_path)


# Mutant 4: early stopping on the fold that is reported.


@pytest.mark.parametrize("family", ["lgbm", "lstm", "tft"])
def test_mutant_stopping_on_the_reported_fold_is_caught(data: dataset.Dataset, family: str) -> None:
    plan = dataset.plan_rows(len(data), data.first, **PLAN)
    fold = plan.folds[0]
    task = Task(family, fold, fold.train, None, 7, stop=fold.test)
    with pytest.raises(LeakError) as caught:
        verify_provenance(
            observe(training_data(task, data.X, data.y, data.features), fold.test), fold, 48
        )
    assert "early stopping used rows" in caught.value.why


def test_stopping_on_an_unpurged_inner_slice_is_caught(data: dataset.Dataset) -> None:
    fold = dataset.plan_rows(len(data), data.first, **PLAN).folds[0]
    task = Task("lstm", fold, fold.train[:-100], None, 7, stop=fold.train[-100:])
    with pytest.raises(LeakError, match="left its training part") as caught:
        verify_provenance(
            observe(training_data(task, data.X, data.y, data.features), fold.test), fold, 48
        )
    assert "48 rows must lie between" in caught.value.why


def test_a_purged_inner_slice_passes(data: dataset.Dataset) -> None:
    fold = dataset.plan_rows(len(data), data.first, **PLAN).folds[0]
    rows, stop = splits.inner_split(fold.train, fraction=0.2)
    task = Task("lstm", fold, rows, None, 7, stop=stop)
    verify_provenance(
        observe(training_data(task, data.X, data.y, data.features), fold.test), fold, 48
    )


# Mutant 5: a longer timeframe is used before it closed.


def test_mutant_with_a_longer_timeframe_that_looks_ahead_is_caught(
    bars: Bars, data: dataset.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchanged = dataset.build

    def leaky(given: Bars, min_move: float) -> dataset.Dataset:
        made = unchanged(given, min_move)
        day = given.main["timestamp"].dt.truncate("1d")
        last = given.main.select(pl.col("close").last().over(day))["close"].to_numpy()
        ahead = np.log(last / made.close).astype(np.float32)  # today's close, known this morning
        X = made.X.copy()
        X[:, 0] = ahead
        return dataclasses.replace(made, X=X)

    monkeypatch.setattr(dataset, "build", leaky)
    made = leak_audit.check_look_ahead(bars, dataset.build(bars, 0.003))
    assert not made.ok
    assert data.features[0] in made.detail


def test_numbers_changed_between_features_and_fits_are_caught(
    bars: Bars, data: dataset.Dataset
) -> None:
    scaled = dataclasses.replace(data, X=data.X * np.float32(0.5))
    made = leak_audit.check_look_ahead(bars, scaled)
    assert not made.ok
    assert "given numbers" in made.detail


def test_labels_of_other_rows_are_not_handed_over(data: dataset.Dataset) -> None:
    fold = dataset.plan_rows(len(data), data.first, **PLAN).folds[1]
    seen = training_data(Task("lgbm", fold, fold.train, TINY, 7), data.X, data.y, data.features)
    assert len(seen.X) == fold.train[-1] + 1
    assert np.isnan(seen.y[: fold.train[0]]).all()
    unchanged = observe(seen, fold.test)
    verify_provenance(unchanged, fold, 48)
    with pytest.raises(LeakError):
        verify_provenance(dataclasses.replace(unchanged, outside=1), fold, 48)


# The surrogate.


def test_flipped_bars_keep_everything_but_direction(bars: Bars) -> None:
    flipped = sign_flipped(bars, 3).main
    before = np.diff(np.log(bars.main["close"].to_numpy()))
    after = np.diff(np.log(flipped["close"].to_numpy()))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-12)
    assert 0.45 < np.mean(np.sign(after) == np.sign(before)) < 0.55
    assert flipped["volume"].equals(bars.main["volume"])
    assert flipped["timestamp"].equals(bars.main["timestamp"])
    span = (bars.main["high"] / bars.main["low"]).log()
    np.testing.assert_allclose((flipped["high"] / flipped["low"]).log(), span, atol=1e-12)
    tops = flipped.select(pl.max_horizontal("open", "close"))["open"]
    bottoms = flipped.select(pl.min_horizontal("open", "close"))["open"]
    assert (flipped["high"] >= tops).all()
    assert (flipped["low"] <= bottoms).all()


def test_flips_are_repeatable_and_differ_by_seed(bars: Bars) -> None:
    assert sign_flipped(bars, 3).main.equals(sign_flipped(bars, 3).main)
    assert not sign_flipped(bars, 3).main.equals(sign_flipped(bars, 4).main)


def test_assets_of_one_training_share_the_coins_of_a_timestamp(bars: Bars) -> None:
    both = Bars("A", "1h", bars.main, {"B": bars.main[100:2000]})
    made = sign_flipped(both, 5)
    ours = np.diff(np.log(made.main["close"].to_numpy()))[100:1999]
    theirs = np.diff(np.log(made.cross["B"]["close"].to_numpy()))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_direction_of_flipped_bars_is_a_fair_coin(bars: Bars) -> None:
    ups = []
    for seed in range(20):
        y = direction(forward_returns(sign_flipped(bars, seed).main["close"].to_numpy()), 0.003)
        ups.append(np.nanmean(y[:, 0]))
    assert abs(np.mean(ups) - 0.5) < 0.02


# The verdicts.


def _flips(values: list[float]) -> list[Entry]:
    return [
        Entry({}, facts={"auc": {"lgbm": {"5h": value, "12h": 0.5, "24h": 0.5}}})
        for value in values
    ]


def test_the_mean_over_surrogates_must_stand_in_its_band() -> None:
    (good,), aucs = leak_audit.judge_flips(_flips([0.53, 0.49, 0.50]))
    assert good.ok
    assert aucs["lgbm"]["5h"]["mean"] == pytest.approx(0.5067, abs=1e-4)
    (bad,), _ = leak_audit.judge_flips(_flips([0.53, 0.52, 0.52]))
    assert not bad.ok
    (inverted,), _ = leak_audit.judge_flips(_flips([0.47, 0.48, 0.47]))
    assert not inverted.ok


def test_a_single_surrogate_has_no_spread_and_still_a_limit() -> None:
    _, aucs = leak_audit.judge_flips(_flips([0.5]))
    assert leak_audit.allowed_aucs(aucs, 0.12) == {"5h": 0.62, "12h": 0.62, "24h": 0.62}


def test_the_limit_is_wider_by_twice_what_chance_does_on_these_bars_and_no_more() -> None:
    _, aucs = leak_audit.judge_flips(_flips([0.53, 0.49, 0.50]))
    spread = float(np.std([0.53, 0.49, 0.50], ddof=1))
    limit = pytest.approx(0.62 + 2 * spread, abs=1e-4)
    assert leak_audit.allowed_aucs(aucs, 0.12)["5h"] == limit
    _, wild = leak_audit.judge_flips(_flips([0.9, 0.1]))
    assert leak_audit.allowed_aucs(wild, 0.12)["5h"] == pytest.approx(0.72)


def test_too_good_is_judged_by_the_lower_end() -> None:
    allowed = {"5h": 0.62, "12h": 0.62, "24h": 0.62}
    unchanged = {"lstm": {"5h": {"val": {"low": 0.573, "value": 0.7}}, "24h": {}}}
    assert leak_audit.check_too_good(unchanged, allowed).ok
    leaky = leak_audit.check_too_good({"lgbm": {"5h": {"test_all": {"low": 0.78}}}}, allowed)
    assert not leaky.ok
    assert "lgbm 5h: interval from 0.780" in leaky.detail


def test_on_flipped_bars_the_pipeline_finds_nothing_and_says_which_models(bars: Bars) -> None:
    flip = leak_audit.Flip(1, ("lgbm",), {"lgbm": TINY}, 7, min_move=0.003, **PLAN)
    made = leak_audit.run_flip(flip, (bars, Events(None, lambda: 0.0, False)), "cpu")
    assert set(made.facts["auc"]) == {"lgbm"}
    assert all(0.3 < value < 0.7 for value in made.facts["auc"]["lgbm"].values())
