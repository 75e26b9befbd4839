"""A panel's models: purged by time in every asset, windows inside one asset, leaks caught."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macd.app.market import splits
from macd.app.market.splits import LONGEST, Fold, LeakError
from macd.app.train import dataset, fits, leak_audit, lgbm_panel, lstm_panel, nets
from macd.app.train import panel as panels
from macd.app.train.dataset import Bars
from macd.app.train.fitdata import SEQ, FitData, observe
from macd.app.train.fits import Task
from macd.app.train.leak_audit import sign_flipped
from macd.app.train.panel import Asset, Panel
from macd.errors import MacdError
from tests.support import small_panel

EMBARGO = 48
HOUR = 3_600_000


@pytest.fixture(scope="module")
def bars() -> Bars:
    frames = small_panel.frames()
    main = frames.pop(small_panel.MAIN)
    return Bars(small_panel.MAIN, "1h", main, {}, frames)


@pytest.fixture(scope="module")
def made(bars: Bars) -> tuple[dataset.Dataset, dict[str, dataset.Dataset]]:
    others = {name: dataset.build(own, 0.003) for name, own in bars.alone().items()}
    return dataset.build(bars, 0.003), others


@pytest.fixture(scope="module")
def panel(made: tuple[dataset.Dataset, dict[str, dataset.Dataset]]) -> Panel:
    return panels.of(small_panel.MAIN, *made, lstm_panel.Params.demo())


@pytest.fixture(scope="module")
def plan(made: tuple[dataset.Dataset, dict[str, dataset.Dataset]]) -> dataset.Plan:
    main = made[0]
    return dataset.plan_rows(
        len(main), main.first, folds=3, initial=0.3, holdout=0.15, embargo=EMBARGO
    )


def task(fold: Fold) -> Task:
    return Task("lgbm_panel", fold, fold.train, lgbm_panel.Params(rounds=2), 7)


def judge(data: FitData, fold: Fold, panel: Panel) -> None:
    fits.check_record(observe(data, fold.test), task(fold), EMBARGO, panel)


def test_every_asset_gives_only_what_was_known_before_the_embargo(
    panel: Panel, plan: dataset.Plan
) -> None:
    for fold in (*plan.folds, plan.holdout):
        data = panel.training_data(fold.train, None)
        judge(data, fold, panel)
        begin = panel.tested.times_ms[fold.test[0]]
        assert [block.symbol for block in data.blocks] == [a.symbol for a in panel.assets]
        for block in data.blocks:
            rows = data.rows[(data.rows >= block.start) & (data.rows < block.stop)]
            assert len(rows) > 50
            assert block.times_ms[-1] + LONGEST * HOUR < begin - EMBARGO * HOUR + HOUR
            assert block.ends_ms[rows - block.start].max() < begin - EMBARGO * HOUR
            # No window reaches into another asset's bars.
            assert (rows - block.start).min() >= SEQ - 1


def test_rows_are_the_assets_own_numbers(panel: Panel, plan: dataset.Plan) -> None:
    data = panel.training_data(plan.folds[-1].train, None)
    for block, asset in zip(data.blocks, panel.assets, strict=True):
        mine = data.rows[(data.rows >= block.start) & (data.rows < block.stop)]
        assert np.array_equal(data.X[mine], asset.X[mine - block.start])
        assert np.array_equal(data.y[mine], asset.y[mine - block.start], equal_nan=True)
        flags = data.X[mine][:, -len(panel.assets) :]
        names = [name.removeprefix("asset_") for name in data.features[-len(panel.assets) :]]
        assert (flags == [name == block.symbol for name in names]).all()


def test_a_gap_makes_a_label_end_later(panel: Panel) -> None:
    """Row numbers don't know of the gap: the label of the bar before it ends 60 hours later."""
    gapped = next(asset for asset in panel.assets if asset.symbol == "BBBUSD")
    spans = gapped.ends_ms[:-LONGEST] - gapped.times_ms[:-LONGEST]
    assert set(np.unique(spans) // HOUR) == {LONGEST, LONGEST + 60}
    at = int(np.argmax(spans))
    before = gapped.rows_before(int(gapped.ends_ms[at]))
    assert at not in before
    assert at in gapped.rows_before(int(gapped.ends_ms[at]) + 1)


@settings(max_examples=60, deadline=None)
@given(hours=st.integers(0, 2_600))
def test_nothing_at_or_after_a_border_is_ever_trained_on(panel: Panel, hours: int) -> None:
    border = int(small_panel.START.timestamp() * 1000) + hours * HOUR
    for asset in panel.assets:
        rows = asset.rows_before(border)
        assert (rows >= asset.first).all()
        if rows.size:
            assert asset.times_ms[rows + LONGEST].max() < border
            # and no row that could be trained on is left out
            assert rows[-1] == len(asset.times_ms) - 1 - LONGEST or (
                asset.times_ms[rows[-1] + 1 + LONGEST] >= border
            )


def test_early_stopping_is_purged_in_every_asset(panel: Panel, plan: dataset.Plan) -> None:
    """The tested asset's last training rows stop the fit; no asset trains up to them."""
    fold = plan.folds[-1]
    rows, stop = splits.inner_split(fold.train, fraction=0.2, embargo=EMBARGO)
    data = panel.training_data(rows, stop)
    stopped = dataclasses.replace(task(fold), rows=rows, stop=stop)
    fits.check_record(observe(data, fold.test), stopped, EMBARGO, panel)
    begin = panel.tested.times_ms[stop[0]] - EMBARGO * HOUR
    for block in data.blocks:
        mine = data.rows[(data.rows >= block.start) & (data.rows < block.stop)]
        assert block.ends_ms[mine - block.start].max() < begin
    # Held to an earlier stop, the rows of the other assets are too late as well.
    _, earlier = splits.inner_split(fold.train, fraction=0.4, embargo=EMBARGO)
    with pytest.raises(LeakError, match="BBBUSD: it trained on the bar of"):
        fits.check_record(
            observe(data, fold.test), dataclasses.replace(stopped, stop=earlier), EMBARGO, panel
        )


# Mutants.


def test_mutant_purging_by_row_number_is_caught(
    panel: Panel, plan: dataset.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BBBUSD begins 400 bars later: its row of the same number is 400 hours later."""

    def by_number(self: Asset, border_ms: int) -> np.ndarray:
        last = int(np.searchsorted(panel.tested.times_ms, border_ms)) - LONGEST
        return np.arange(self.first, min(last, len(self.times_ms) - LONGEST))

    monkeypatch.setattr(Asset, "rows_before", by_number)
    fold = plan.folds[0]
    data = panel.training_data(fold.train, None)
    with pytest.raises(LeakError, match="BBBUSD: it trained on the bar of"):
        judge(data, fold, panel)


def test_mutant_labels_that_reach_over_the_border_are_caught(
    panel: Panel, plan: dataset.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bars_only(self: Asset, border_ms: int) -> np.ndarray:
        rows = np.flatnonzero(self.times_ms < border_ms)
        return rows[rows >= self.first]

    monkeypatch.setattr(Asset, "rows_before", bars_only)
    fold = plan.folds[1]
    with pytest.raises(LeakError, match="CCCUSD: it was given a label that looks at"):
        judge(panel.training_data(fold.train, None), fold, panel)


@pytest.mark.parametrize("stopped", [False, True])
def test_mutant_a_border_one_bar_late_is_caught(
    panel: Panel, plan: dataset.Plan, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    honest = Panel.border_ms
    monkeypatch.setattr(Panel, "border_ms", lambda self, trained: honest(self, trained) + HOUR)
    fold = plan.folds[1]
    rows, stop = fold.train, None
    if stopped:
        rows, stop = splits.inner_split(fold.train, fraction=0.2, embargo=EMBARGO)
    late = dataclasses.replace(task(fold), rows=rows, stop=stop)
    with pytest.raises(LeakError, match="CCCUSD: it was given a label that looks at"):
        fits.check_record(observe(panel.training_data(rows, stop), fold.test), late, EMBARGO, panel)


def test_mutant_later_bars_of_one_asset_for_scaling_are_caught(
    panel: Panel, plan: dataset.Plan
) -> None:
    fold = plan.folds[0]
    data = panel.training_data(fold.train, None)
    *before, last = data.blocks
    asset = panel.assets[-1]
    more = len(asset.times_ms) - len(last.times_ms)
    longer = dataclasses.replace(last, times_ms=asset.times_ms, ends_ms=asset.ends_ms)
    leaky = dataclasses.replace(
        data,
        X=np.concatenate([data.X, asset.X[-more:]]),
        y=np.concatenate([data.y, np.full((more, 3), np.nan, np.float32)]),
        blocks=(*before, longer),
    )
    with pytest.raises(LeakError, match="CCCUSD: it saw"):
        judge(leaky, fold, panel)


def test_mutant_labels_said_to_end_early_are_refused(panel: Panel, plan: dataset.Plan) -> None:
    data = panel.training_data(plan.folds[0].train, None)
    early = tuple(dataclasses.replace(b, ends_ms=b.times_ms + HOUR) for b in data.blocks)
    with pytest.raises(MacdError, match="training data") as caught:
        dataclasses.replace(data, blocks=early)
    assert "end later than they are said to" in caught.value.why


def test_mutant_window_across_two_assets_is_refused(panel: Panel, plan: dataset.Plan) -> None:
    data = panel.training_data(plan.folds[0].train, None)
    crossing = np.sort(np.append(data.rows, data.blocks[1].start + SEQ - 2))
    with pytest.raises(MacdError) as caught:
        dataclasses.replace(data, rows=crossing)
    assert "among another asset's bars" in caught.value.why


def test_a_panels_record_without_a_border_is_no_proof(panel: Panel, plan: dataset.Plan) -> None:
    fold = plan.folds[0]
    seen = observe(panel.training_data(fold.train, None), fold.test)
    with pytest.raises(LeakError, match="nothing says when"):
        fits.check_record(seen, task(fold), EMBARGO, None)


def test_mutant_features_of_another_asset_are_caught(
    bars: Bars, made: tuple[dataset.Dataset, dict[str, dataset.Dataset]]
) -> None:
    main, others = made
    assert leak_audit.check_look_ahead(bars, main, others).ok
    shifted = dataclasses.replace(others["CCCUSD"], X=np.roll(others["CCCUSD"].X, -1, axis=0))
    check = leak_audit.check_look_ahead(bars, main, {**others, "CCCUSD": shifted})
    assert not check.ok
    assert "CCCUSD" in check.detail


# What the models make of it.


def test_both_directions_of_each_asset_weigh_the_same(panel: Panel, plan: dataset.Plan) -> None:
    data = panel.training_data(plan.folds[-1].train, None)
    weights = data.class_weights(data.rows)
    y = data.y[data.rows]
    for block in data.blocks:
        mine = (data.rows >= block.start) & (data.rows < block.stop)
        for k in range(3):
            up = weights[mine, k][y[mine, k] == 1].sum()
            down = weights[mine, k][y[mine, k] == 0].sum()
            assert up == pytest.approx(down, rel=0.02)
            assert up + down == pytest.approx((~np.isnan(y[mine, k])).sum(), rel=0.02)


def test_a_net_is_told_which_asset_it_sees(panel: Panel, plan: dataset.Plan) -> None:
    """Fitted on rows of all, in windows that keep to one asset; other flags, other answer."""
    data = panel.training_data(plan.folds[-1].train, None)
    params = lstm_panel.Params.demo()
    loop = dataclasses.replace(params.loop, epochs=1, rows_per_epoch=256)
    params = dataclasses.replace(params, hidden=8, projection=8, loop=loop)
    model = lstm_panel.fit(data, params, seed=7)
    assert model.features[-3:] == ("asset_AAAUSD", "asset_BBBUSD", "asset_CCCUSD")
    test = plan.folds[-1].test[:20]
    p = nets.predict(model.net, panel.tested.X, test)
    other = panel.tested.X.copy()
    other[:, -3:] = (0, 1, 0)
    assert np.abs(nets.predict(model.net, other, test) - p).max() > 1e-4


def test_assets_share_the_coins_of_a_timestamp(bars: Bars) -> None:
    flipped = sign_flipped(bars, 3)
    for name, frame in bars.panel.items():
        joined = flipped.main.join(flipped.panel[name], on="timestamp")
        original = bars.main.join(frame, on="timestamp")
        after, before = (
            np.corrcoef(np.diff(np.log(t["close"])), np.diff(np.log(t["close_right"])))[0, 1]
            for t in (joined, original)
        )
        assert after == pytest.approx(before, abs=0.02)


def test_the_panels_of_several_symbols_share_the_same_columns(
    made: tuple[dataset.Dataset, dict[str, dataset.Dataset]],
) -> None:
    main, others = made
    every, params, kept = {small_panel.MAIN: main, **others}, lstm_panel.Params.demo(), {}
    for tested, data in every.items():
        rest = {name: other for name, other in every.items() if name != tested}
        alone = panels.of(tested, data, rest, params)
        shared = panels.of(tested, data, rest, params, made=kept)
        assert shared.tested.symbol == tested
        for one, other in zip(alone.assets, shared.assets, strict=True):
            assert (one.symbol, one.features) == (other.symbol, other.features)
            assert np.array_equal(one.X, other.X, equal_nan=True)
    assert len(kept) == len(every)
