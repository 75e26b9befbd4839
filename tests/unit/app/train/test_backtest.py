"""Policies on bars: nothing of the future counts, thresholds come from earlier folds, costs do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import hypothesis
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.predict.policy import Policy, Thresholds
from macd.app.train import backtest, oof
from macd.app.train.backtest import GRID, Market, Walk, evaluate, market_of, walk

HOUR = 3_600_000
FOLDS, EACH, HELD_OUT, WARM = 4, 120, 150, 60
FIRST_TEST = FOLDS * EACH + 48
POLICY = Policy(kind="threshold", fee_bps=1.0, slippage_bps=0.5)


def series(seed: int, edge: float = 0.0) -> tuple[np.ndarray, pl.DataFrame]:
    """Closes, and an out-of-fold table behind WARM bars; stacking is silent in fold 0.

    edge: how much of the next move the models know.
    """
    rng = np.random.default_rng(seed)
    n = WARM + FIRST_TEST + HELD_OUT
    moves = rng.normal(0, 0.01, n)
    close = 100 * np.exp(np.cumsum(moves))
    rows = np.concatenate([np.arange(FOLDS * EACH), np.arange(FIRST_TEST, FIRST_TEST + HELD_OUT)])
    fold = np.concatenate([np.repeat(np.arange(FOLDS), EACH), np.full(HELD_OUT, oof.HOLDOUT)])
    known = np.append(moves[1:], 0.0)[WARM + rows] / 0.01
    table = {
        "row": WARM + rows,
        "bar_time": pl.Series((WARM + rows) * HOUR).cast(pl.Datetime("ms", "UTC")),
        "fold": fold.astype(np.int32),
    }
    for name in ("lgbm", "lstm", "tft", "stacking"):
        p = 1 / (1 + np.exp(-(0.4 * rng.normal(size=len(rows)) + edge * known)))
        if name == "stacking":
            p[fold == 0] = np.nan
        table[f"p_{name}_5h"] = pl.Series(p).fill_nan(None)
    return close, pl.DataFrame(table)


def market(close: np.ndarray, table: pl.DataFrame) -> Market:
    times = np.arange(len(close), dtype=np.int64) * HOUR
    return market_of(table, close, times, "5h", "1h")


def other_future(
    close: np.ndarray, table: pl.DataFrame, last: int, seed: int
) -> tuple[np.ndarray, pl.DataFrame]:
    """The same up to row `last`; from then on prices go the other way and models say the opposite.

    Some of what they say is drawn anew, so that nothing cancels out.
    """
    rng = np.random.default_rng(seed)
    close = close.copy()
    close[last + 1 :] = close[last] ** 2 / close[last + 1 :]
    later = table["row"].to_numpy() > last
    columns = [name for name in table.columns if name.startswith("p_")]
    drawn = pl.Series(rng.random(len(table)))
    table = table.with_columns(
        pl.when(pl.Series(later) & pl.col(name).is_not_null())
        .then(drawn)
        .otherwise(pl.col(name))
        .alias(name)
        for name in columns
    )
    return close, table


def assert_blind_to_the_future(
    close: np.ndarray, table: pl.DataFrame, last_rows: Iterable[int], policy: Policy = POLICY
) -> None:
    """The guard: whatever comes after a bar, what policies did and earned up to it stays the same.

    Compared are what was known at each bar's close, each policy's actions, positions and net
    returns, and the figures made of them.
    """
    whole = walk(market(close, table), policy)
    for last in last_rows:
        changed = walk(market(*other_future(close, table, last, seed=last)), policy)
        for name, part in whole.parts.items():
            known = int(np.sum(part.times_ms <= last * HOUR))
            if not known or known == len(part):
                continue
            then = changed.parts[name]
            seen = {"buy": (part.buy, then.buy), "sell": (part.sell, then.sell)}
            seen |= {source: (p, then.said[source]) for source, p in part.said.items()}
            for what, (ours, others) in seen.items():
                assert np.array_equal(ours[:known], others[:known], equal_nan=True), (last, what)
            for key, track in whole.tracks[name].items():
                theirs = changed.tracks[name][key]
                for what in ("actions", "sides", "net"):
                    ours, others = getattr(track, what)[:known], getattr(theirs, what)[:known]
                    assert np.array_equal(ours, others), (last, name, key, what)
                if known < 3:
                    continue
                assert figures_to(whole, name, key, known) == figures_to(changed, name, key, known)


def figures_to(walked: Walk, name: str, key: str, known: int) -> dict[str, object]:
    """As if the part had ended there: the last position is closed at that close."""
    track, part = walked.tracks[name][key], walked.parts[name].cut(0, known)
    ended = backtest._tracked(part, track.actions[:known], track.sides[:known], POLICY)
    return backtest._figures(part, ended, POLICY.cost, (), 1, 0)


EVERY_FOLD = [WARM + fold * EACH + EACH // 2 for fold in range(FOLDS)] + [WARM + FIRST_TEST + 70]
SIDE_BY_SIDE = range(WARM + 2 * EACH, WARM + 2 * EACH + 12)  # a look at one score shows on few bars


@hypothesis.settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10_000),
    st.integers(WARM + EACH, WARM + FIRST_TEST + HELD_OUT - 2),
    st.sampled_from(["horizon", "signal"]),
    st.booleans(),
    st.sampled_from(["tilt", "threshold"]),
)
def test_a_bar_later_than_the_decision_changes_nothing(
    seed: int, last: int, hold: str, long_only: bool, kind: str
) -> None:
    policy = dataclasses.replace(POLICY, hold=hold, long_only=long_only, kind=kind)
    assert_blind_to_the_future(*series(seed, edge=0.3), [last], policy)


def test_the_guard_catches_a_policy_that_peeks_at_the_next_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = backtest.decisions

    def peeking(terms, buy, sell, p):  # type: ignore[no-untyped-def]
        return honest(terms, buy, sell, [*p[1:], p[-1]])

    assert_blind_to_the_future(*series(1), EVERY_FOLD)
    monkeypatch.setattr(backtest, "decisions", peeking)
    with pytest.raises(AssertionError, match="actions"):
        assert_blind_to_the_future(*series(1), EVERY_FOLD)


def test_the_guard_catches_a_base_rule_that_peeks_at_the_next_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = backtest.bases
    monkeypatch.setattr(
        backtest, "bases", lambda closes: honest(closes).select(pl.all().shift(-1).forward_fill())
    )
    with pytest.raises(AssertionError, match="buy"):
        assert_blind_to_the_future(*series(1), SIDE_BY_SIDE)


def test_the_guard_catches_returns_of_the_bar_before_the_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = backtest.returns.net_returns

    def early(close: np.ndarray, held: np.ndarray, cost: float) -> np.ndarray:
        return honest(close, np.append(held[1:], 0.0), cost)

    monkeypatch.setattr(backtest.returns, "net_returns", early)
    with pytest.raises(AssertionError, match="net"):
        assert_blind_to_the_future(*series(1), EVERY_FOLD)


def on_its_own_fold(honest: Callable[..., object]) -> Callable[..., object]:
    def chosen(development: Market, grid: object) -> object:
        moved = np.where(development.fold >= 0, development.fold - 1, development.fold)
        later = dataclasses.replace(development, fold=moved.astype(np.int32))
        return {fold: pair for fold, pair in honest(later, grid).items()}  # fold k gets k + 1's

    return chosen


def test_the_guard_catches_a_threshold_tuned_on_its_own_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backtest, "chosen_before", on_its_own_fold(backtest.chosen_before))
    with pytest.raises(AssertionError, match="_tuned"):
        assert_blind_to_the_future(*series(1, edge=0.3), EVERY_FOLD)


@pytest.mark.parametrize("fold", [1, 2, 3, oof.HOLDOUT])
def test_a_folds_thresholds_are_chosen_by_the_bars_before_it_alone(
    fold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared is all that they are chosen by: the choice may come out alike in spite of a leak."""
    monkeypatch.setattr(
        backtest,
        "_best",
        lambda nets: Thresholds(hash(b"".join(n.tobytes() for n in nets.values()))),
    )
    close, table = series(1, edge=0.3)
    rows = table["row"].to_numpy()
    begins = int(rows[table["fold"].to_numpy() == fold][0])

    def chosen(last: int) -> Thresholds | None:
        changed = other_future(close, table, last, seed=1)
        return walk(market(*changed), POLICY).chosen["mean"][fold]

    honest = walk(market(close, table), POLICY).chosen["mean"][fold]
    assert chosen(begins - 1) == honest
    assert chosen(int(rows[rows < begins][-30])) != honest


def test_thresholds_come_from_earlier_folds_and_else_from_the_settings() -> None:
    walked = walk(market(*series(2, edge=0.5)), POLICY)
    assert walked.chosen["mean"][0] is None
    assert walked.chosen["stacking"][0] is None
    assert walked.chosen["stacking"][1] is None  # it only speaks from there on
    assert all(walked.chosen["mean"][fold] in GRID for fold in (1, 2, 3, oof.HOLDOUT))
    assert all(walked.chosen["stacking"][fold] in GRID for fold in (2, 3, oof.HOLDOUT))
    assert walked.parts["val"].fold.min() == 1
    usual, tuned = (walked.tracks["val"][f"prob_stacking{end}"] for end in ("", "_tuned"))
    first = walked.parts["val"].fold == 1
    assert np.array_equal(usual.actions[first], tuned.actions[first])
    assert not np.array_equal(usual.actions[~first], tuned.actions[~first])


def test_who_knows_the_next_move_earns_and_who_does_not_pays_the_costs() -> None:
    knowing = evaluate(market(*series(3, edge=2.0)), POLICY).document
    blind = evaluate(market(*series(3)), dataclasses.replace(POLICY, fee_bps=50.0)).document
    for part in ("val", "test"):
        figures = knowing[part]["prob_stacking"]
        assert figures["mean_net_bp"]["low"] > 0
        assert figures["deflated_sharpe"] > 0.95
        assert figures["hit_rate"] > 0.5
        assert blind[part]["prob_stacking"]["mean_net_bp"]["high"] < 0
    values = backtest.criteria_of(knowing)
    assert values["net_edge"][0] == knowing["val"]["prob_stacking"]["mean_net_bp"]["low"]
    assert values["flag_matters"][0] == knowing["flag_changes"]["val"]["threshold"] > 0.01
    assert "held out" in values["net_edge"][1]


def test_the_figures_of_two_trades_by_hand() -> None:
    """Half of the capital long over two bars, then short over one; four hours in all."""
    close, cost = np.array([100.0, 110.0, 99.05, 108.955]), 0.0012
    policy = Policy(size=0.5, fee_bps=10.0, slippage_bps=2.0)
    bars = Market(
        np.arange(4) * HOUR, close, *np.zeros((2, 4)), np.zeros(4, np.int32), {}, "5h", HOUR
    )
    made = backtest._tracked(bars, np.zeros(4, np.int8), np.array([1, 1, -1, -1], np.int8), policy)
    fall = 99.05 / 110 - 1
    net = np.array([-cost / 2, 0.05, fall / 2 - cost, -0.05 - cost / 2])
    assert made.net == pytest.approx(net)
    figures = backtest._figures(bars, made, policy.cost, (), 1, 0)
    trades = np.array([0.1 + fall, -0.1]) - 2 * cost
    assert trades[0] < 0 < 0.1 + fall, "it would be a hit without its costs"
    yearly = 365.25 * 24
    assert {name: value for name, value in figures.items() if name != "mean_net_bp"} == {
        "bars": 4,
        "from_ms": 0,
        "to_ms": 3 * HOUR,
        "trades": 2,
        "turnover": pytest.approx(4 * yearly / 4),  # in, round (twice) and out, in four hours
        "exposure": 0.75,
        "hit_rate": 0.0,
        "net_return": pytest.approx(np.prod(1 + net) - 1),
        "sharpe": pytest.approx(net.mean() / net.std(ddof=1) * np.sqrt(yearly)),
        "deflated_sharpe": pytest.approx(backtest.returns.deflated_sharpe(net, (), 1)),
        "max_drawdown": pytest.approx(1 - (1 + net[2]) * (1 + net[3])),
    }
    assert figures["mean_net_bp"]["value"] == pytest.approx(1e4 * trades.mean())


def test_costs_are_paid_on_what_is_traded() -> None:
    bars = market(*series(4, edge=0.5))
    free, dear = (
        evaluate(bars, dataclasses.replace(POLICY, fee_bps=fee, slippage_bps=0.0)).document["val"]
        for fee in (0.0, 10.0)
    )
    for key in ("base", "prob_mean", "prob_stacking"):
        assert free[key]["trades"] == dear[key]["trades"] > 0
        gap = free[key]["mean_net_bp"]["value"] - dear[key]["mean_net_bp"]["value"]
        assert gap == pytest.approx(20.0)  # in and out


def test_the_flag_changes_nothing_where_stacking_is_the_mean() -> None:
    close, table = series(5)
    mean = backtest.mean_of_logits([table[f"p_{m}_5h"].to_numpy() for m in ("lgbm", "lstm", "tft")])
    same = table.with_columns(
        pl.when(pl.col("p_stacking_5h").is_null())
        .then(None)
        .otherwise(pl.Series(mean))
        .alias("p_stacking_5h")
    )
    document = evaluate(market(close, same), POLICY).document
    assert document["flag_changes"]["val"] == {"tilt": 0.0, "threshold": 0.0}
    assert evaluate(market(close, table), POLICY).document["flag_changes"]["val"]["threshold"] > 0


def test_the_flag_changes_a_share_of_the_actions_not_of_what_is_held() -> None:
    def did(actions: list[int], sides: list[int]) -> backtest.Track:
        return backtest.Track(*(np.array(v, np.int8) for v in (actions, sides)), np.zeros(4))

    mean, stacking = did([1, 0, 0, 0], [1, 1, 1, 0]), did([0, 0, 0, 0], [0, 0, 0, 0])
    tracks = {"prob_mean": mean, "prob_stacking": stacking}
    assert backtest.flag_changes(tracks) == {"threshold": 0.25}


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_sharpe_is_deflated_by_all_thresholds_that_were_tried_on_the_part(part: str) -> None:
    """On the holdout those of the table alone were; they were searched for before it."""
    bars = market(*series(9, edge=0.3))
    walked, document = walk(bars, POLICY), evaluate(bars, POLICY).document
    nets = [made.net for key, made in walked.tracks[part].items() if key.startswith("prob_")]
    searched = list(walked.searched) if part == "val" else []
    assert len(searched) == (2 * len(GRID) if part == "val" else 0)
    trials = [backtest.returns.sharpe(net) for net in (*nets, *searched)]
    tried, net = document["settings"]["tried"][part], walked.tracks[part]["prob_stacking"].net
    expected = backtest.returns.deflated_sharpe(net, trials, tried)
    assert document[part]["prob_stacking"]["deflated_sharpe"] == pytest.approx(expected, rel=1e-12)


def test_curves_are_daily_and_end_where_the_figures_do() -> None:
    made = evaluate(market(*series(6, edge=0.5)), Policy())
    settings = made.document["settings"]
    assert settings["configured"] == "base_stacking"
    assert settings["tried"] == {"val": 3 * (7 + 2 * len(GRID)), "test": 7}
    for part in ("val", "test"):
        rows = made.curves.filter(pl.col("part") == part)
        assert rows["bar_time"].dt.date().is_unique().all()
        assert set(made.curves.columns) - {"part", "bar_time"} == set(made.document[part])
        for key, figures in made.document[part].items():
            assert rows[key][-1] - 1 == pytest.approx(figures["net_return"])
    assert made.document["val"]["buy_and_hold"]["exposure"] == pytest.approx(1, abs=0.01)


def test_without_stacking_or_without_models_the_rest_is_still_evaluated() -> None:
    close, table = series(7)
    mean_only = table.drop("p_stacking_5h")
    document = evaluate(market(close, mean_only), Policy()).document
    assert set(document["val"]) == {
        "base", "base_mean", "prob_mean", "prob_mean_tuned", "buy_and_hold",
    }  # fmt: skip
    assert document["settings"]["configured"] == "base_mean"
    assert backtest.criteria_of(document)["flag_matters"] == (None, "")
    nothing = mean_only.select("row", "bar_time", "fold")
    assert set(evaluate(market(close, nothing), Policy()).document["val"]) == {
        "base", "buy_and_hold",
    }  # fmt: skip


def test_what_is_printed_names_costs_intervals_and_what_is_not_modelled() -> None:
    policy = dataclasses.replace(POLICY, thresholds={"5h": Thresholds(0.99, 0.01)})
    said = "\n".join(backtest.closing_lines(evaluate(market(*series(8)), policy).document, "1h"))
    assert "net of 1 bp fee and 0.5 bp slippage" in said
    assert "probability of stacking (configured): val no trade  test no trade" in said
    assert "The stacking flag changes 0.00 % of the configured actions" in said
    assert "no promise" in said
    assert "borrowing" in said
