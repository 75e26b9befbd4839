"""Skill: the bettors against the same in numpy, against their promise, and what counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import skill_delay
from macd.host.judge import gate, skill
from macd.host.judge.gate import Findings, decide
from macd.host.judge.skill import Scored
from tests.support.gate_rule import RULE

HOUR = 3_600_000
GOOD = {name: (100, 100) for name in gate.TITLES}
probabilities = st.floats(0, 1)


def bars_of(
    stacking: Any, mean: Any, closes: Any, *, head: str = "5h", symbol: str = "BTCUSD"
) -> list[Scored]:
    return [
        Scored(symbol, "1h", at * HOUR, HOUR, float(close), head, float(p), float(q))
        for at, (p, q, close) in enumerate(zip(stacking, mean, closes, strict=False))
    ]


def made(bars: int, *, worse: bool = True, seed: int = 3) -> list[Scored]:
    """A history in which the mean knows the closes somewhat and stacking the contrary."""
    rng = np.random.default_rng(seed)
    closes = 100 * np.exp(np.cumsum(rng.normal(0, 0.004, bars + 5)))
    knows = np.where(closes[5:] > closes[:-5], 0.6, 0.4) + rng.normal(0, 0.02, bars)
    return bars_of(1 - knows, knows, closes) if worse else bars_of(knows, 1 - knows, closes)


@pytest.mark.parametrize("h", [5, 12])
def test_the_simulation_plays_as_the_shipped_bettor_does(h: int) -> None:
    stacking, mean, closes = skill_delay.made(np.random.default_rng(h), 2, 400, h, error=2.0)
    difference, risk = skill_delay.differences(stacking, mean, closes, h)
    paths = {sign: skill_delay.wealths(difference, risk, h, sign) for sign in (-1, 1)}
    for history in range(2):
        bars = bars_of(stacking[history], mean[history], closes[history], head=f"{h}h")
        for until in (1, h, skill.WARM_UP, skill.WARM_UP + 1, 77, 251, 400):
            played = skill.history(bars[:until], lambda bar: bar.mean, skill.log_scores)
            for sign, path in paths.items():
                assert skill.wealth(played, sign) == pytest.approx(path[until - 1, history])


def level(histories: int, h: int) -> tuple[float, float]:
    """How often equal skill is called worse, and better, looked at at every bar of 90 days."""
    batches = skill_delay.batches(histories, 2160, h)
    worse, better = (np.concatenate([part[k] for part in batches]) for k in (0, 1))
    return float(np.isfinite(worse).mean()), float(np.isfinite(better).mean())


@pytest.mark.parametrize("h", [5, 12])
def test_equal_skill_fails_in_few_histories_however_often_one_looks(h: int) -> None:
    worse, better = level(200, h)
    assert worse <= 0.05
    assert better <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("h", [5, 12])
def test_equal_skill_fails_in_five_of_a_hundred_of_2000_histories_at_most(h: int) -> None:
    worse, better = level(2000, h)
    assert worse <= 0.05
    assert better <= 0.05
    assert max(worse, better) > 0  # it can fail: a bettor that never bets would pass, too


def test_what_is_much_worse_is_found_and_what_is_much_better_too() -> None:
    for worse, outcome in ((True, skill.WORSE), (False, skill.BETTER)):
        row = skill.judged(made(300, worse=worse), skill.WORSE, 0.05)["against"]["mean"]
        assert row["outcome"] == outcome
        assert row["more_bars"] == 0
        for score in ("log_score", "brier"):
            figure = row[score]
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert (figure["high"] < 0) if worse else (figure["low"] > 0)


def test_the_true_difference_is_ruled_out_in_few_histories() -> None:
    """At the last of 400 bars, with stacking worse all the time."""
    stacking, mean, closes = skill_delay.made(np.random.default_rng(4), 150, 400, 5, error=3.0)
    difference, _ = skill_delay.differences(stacking, mean, closes, 5)
    truth = float(difference.mean())
    assert truth < -0.01
    ruled_out = [0, 0]
    for ours, theirs, close in zip(stacking, mean, closes, strict=True):
        played = skill.history(bars_of(ours, theirs, close), lambda bar: bar.mean, skill.log_scores)
        for k, sign in enumerate((-1, 1)):
            ruled_out[k] += skill.wealth(played, sign, truth) >= 20
    assert max(ruled_out) <= 0.05 * 150


@given(probabilities, probabilities)
def test_scores_are_bounded_and_the_better_forecast_scores_more(p: float, q: float) -> None:
    for scores in (skill.log_scores, skill.brier_scores):
        up, down = scores(p, q)
        assert max(abs(up), abs(down)) <= skill.WIDEST
        assert up * down <= 0  # what gains where the close rises, loses where it falls
        if p > q + 1e-6 and q >= skill.CLIP and p <= 1 - skill.CLIP:
            assert up > 0 > down
        assert scores(q, q) == (0.0, 0.0)


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.floats(0, 1))
def test_a_clipped_forecast_that_is_worse_stands_for_one_that_is_worse_still(
    p: float, q: float, chance: float
) -> None:
    up, down = skill.log_scores(p, q)
    clipped = chance * up + (1 - chance) * down
    whole = chance * math.log(p / q) + (1 - chance) * math.log((1 - p) / (1 - q))
    if clipped < 0:
        assert whole <= clipped + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1)), max_size=120), st.integers(1, 24))
def test_a_bettor_never_owes_anything(drawn: list[tuple[float, float]], ahead: int) -> None:
    bets = tuple(
        skill.Bet(max(0, at - ahead + 1), share * risk, risk)
        for at, (share, risk) in enumerate(drawn)
    )
    played = skill.History(bets, max(0, len(bets) - ahead), len(bets), ahead)
    for sign in (-1, 1):
        for shift in (-0.3, 0.0, 0.2):
            assert skill.wealth(played, sign, shift) >= -1e-9


def test_equal_closes_and_missing_bars_give_no_label() -> None:
    bars = made(120)
    whole = skill.history(bars, lambda bar: bar.mean, skill.log_scores)
    assert (whole.labels, whole.settled, len(whole.bets)) == (115, 115, 120)
    same = [bar._replace(close=bars[15].close) if bar.bar == 20 * HOUR else bar for bar in bars]
    flat = skill.history(same, lambda bar: bar.mean, skill.log_scores)
    assert flat.labels == 114
    assert flat.bets[15].difference == 0
    holes = [bar for bar in bars if bar.bar != 20 * HOUR]
    missing = skill.history(holes, lambda bar: bar.mean, skill.log_scores)
    assert missing.labels == 115 - 2  # the bar itself, and the one whose label it was
    assert missing.settled == 119 - 5  # a bet that gets no label does not stay open


def test_a_repeated_bar_and_the_order_of_lines_change_nothing() -> None:
    bars = made(200)
    wanted = skill.judged(bars, skill.WORSE, 0.05)
    assert skill.judged([*bars[100:], *bars], skill.WORSE, 0.05) == wanted


def test_another_symbol_is_no_label_of_this_one() -> None:
    bars = made(60)
    other = [bar._replace(symbol="ETHUSD", close=1.0) for bar in made(60, seed=4)]
    judged = skill.judged([*bars, *other], skill.WORSE, 0.05)
    assert judged["against"]["mean"]["n"] == 55


def test_the_challenger_is_compared_and_shares_the_alpha() -> None:
    name = "20261101T000000Z-0123abcd"
    bars = [bar._replace(challenger=bar.mean, mean=bar.stacking, release=name) for bar in made(300)]
    against = skill.judged(bars, skill.WORSE, 0.05)["against"]
    assert against["mean"]["outcome"] == skill.UNPROVED
    assert against["mean"]["more_bars"] is None
    assert against["challenger"]["outcome"] == skill.WORSE
    assert against["challenger"]["release"] == name
    assert {row["alpha"] for row in against.values()} == {0.025}
    earlier = [*bars[:299], bars[299]._replace(release="20261102T000000Z-0123abcd")]
    assert skill.judged(earlier, skill.WORSE, 0.05)["against"]["challenger"]["n"] == 0


def test_no_bars_and_off_are_no_evidence() -> None:
    assert skill.judged([], skill.WORSE, 0.05)["against"] == {}
    assert skill.judged(made(300), skill.OFF, 0.05)["against"] == {}


def decided(setting: str, bars: list[Scored]) -> gate.Decision:
    judged = skill.judged(bars, setting, 0.05)
    return decide(Findings(GOOD, skill=judged), replace(RULE, skill=setting))


def test_the_gate_fails_what_is_proved_worse_and_says_by_how_much() -> None:
    decision = decided("worse", made(300))
    assert decision.verdict == gate.FAIL
    assert "stacking is proved worse than the mean of the models: -" in decision.reasons[0]
    assert decided("better", made(300)).verdict == gate.FAIL
    assert decided("off", made(300)).verdict == gate.PASS


def test_better_takes_proof_and_worse_does_not() -> None:
    few = made(40, worse=False)
    assert decided("worse", few).verdict == gate.PASS
    unsure = decided("better", few)
    assert unsure.verdict == gate.INCONCLUSIVE
    assert "not proved better than the mean of the models on 35 bars" in unsure.reasons[0]
    assert decided("better", []).verdict == gate.INCONCLUSIVE
    assert decided("better", made(300, worse=False)).verdict == gate.PASS


def test_how_many_more_bars_is_about_right() -> None:
    rng = np.random.default_rng(8)
    closes = 100 * np.exp(np.cumsum(rng.normal(0, 0.004, 3005)))
    knows = np.where(closes[5:] > closes[:-5], 0.52, 0.48) + rng.normal(0, 0.05, 3000)
    bars = bars_of(1 - knows, knows, closes)

    def rows(until: int) -> Any:
        return skill.judged(bars[:until], "worse", 0.05, intervals=False)["against"]["mean"]

    proved = next(n for n in range(50, 3000, 10) if rows(n)["outcome"] == skill.WORSE)
    halfway = rows(proved // 2)
    assert halfway["outcome"] == skill.UNPROVED
    assert 0.2 * proved < proved // 2 + halfway["more_bars"] < 5 * proved
    assert "more bars like these" in gate.more_words(halfway)


def test_forecasts_that_differ_by_rounding_alone_are_called_the_same() -> None:
    bars = made(60)
    same = [bar._replace(mean=round(bar.stacking, 6)) for bar in bars]
    row: Any = skill.judged(same, "better", 0.05)["against"]["mean"]
    assert (row["same"], row["more_bars"]) == (True, None)
    assert gate.more_words(row) == "; the two forecasts are the same"
    assert gate.outcome_words(row) == "not proved better or worse"
    assert not skill.judged(bars, "better", 0.05)["against"]["mean"]["same"]


def test_a_report_without_a_pass_says_what_one_would_permit() -> None:
    few: Any = decided("better", made(40, worse=False))
    sentence = gate.meaning(few.skill, few.verdict)
    assert sentence.startswith("A PASS would permit")
    assert "it takes that the models answer, and that stacking is proved better" in sentence
    none: Any = decided("better", [])
    assert "proved better than the mean of the models (0 bars" in gate.meaning(
        none.skill, none.verdict
    )


def test_a_report_says_in_a_sentence_what_a_pass_permits() -> None:
    said = [
        gate.meaning(decided(setting, bars).skill, gate.PASS)
        for setting, bars in (
            ("worse", made(300)),
            ("worse", made(60)),
            ("better", made(300, worse=False)),
            ("worse", []),
            ("off", []),
        )
    ]
    assert len(set(said)) == len(said)
    for sentence in said:
        assert sentence.startswith("A PASS permits to enable stacking")
        assert "not tested" in sentence
        assert sentence.endswith(".")
        assert sentence.count(". ") == 0


def test_a_laxer_skill_opens_nothing() -> None:
    order = [replace(RULE, skill=setting) for setting in ("off", "worse", "better")]
    for at, rule in enumerate(order):
        for other_at, other in enumerate(order):
            laxer = rule.laxer_than(other, days=2, other_days=2)
            assert laxer == (["skill"] if at < other_at else [])
