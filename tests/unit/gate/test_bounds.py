"""Bounds against scipy and against what they promise."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache

import pytest
from scipy.special import betainc, betaln
from scipy.stats import beta, binom, binomtest

from macd.host.judge import bounds


def cases() -> list[tuple[int, int]]:
    rng = random.Random(5)
    small = [(k, n) for n in (1, 2, 3, 20, 21) for k in range(n + 1)]
    drawn = [(rng.randint(0, n), n) for n in (rng.randint(22, 2000) for _ in range(20))]
    return [*small, *drawn, *((n - k, n) for k, (_, n) in enumerate(drawn))]


def test_clopper_pearson_is_scipys() -> None:
    for k, n in cases():
        low, high = bounds.clopper_pearson(k, n)
        assert low == pytest.approx(beta.ppf(0.05, k, n - k + 1) if k else 0.0, abs=1e-12)
        assert high == pytest.approx(beta.ppf(0.95, k + 1, n - k) if k < n else 1.0, abs=1e-12)


def test_incomplete_beta_is_scipys() -> None:
    rng = random.Random(6)
    for _ in range(300):
        a, b, x = rng.uniform(0.5, 300), rng.uniform(0.5, 300), rng.random()
        assert bounds.beta_share(x, a, b) == pytest.approx(betainc(a, b, x), abs=1e-12)


def test_martingale_is_the_mixture_computed_by_scipy() -> None:
    for k, n in cases():
        for p in (0.05, 0.5, 0.8, 0.95):
            above = betainc(n - k + 1, k + 1, 1 - p)
            if above < 1e-200:
                continue
            mixed = betaln(k + 1, n - k + 1) + math.log(above) - math.log1p(-p)
            likelihood = k * math.log(p) + (n - k) * math.log1p(-p)
            martingale = bounds.log_martingale(k, n, p)
            assert martingale == pytest.approx(mixed - likelihood, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize(
    ("threshold", "exact", "anytime"), [(0.80, 14, 16), (0.90, 29, 33), (0.95, 59, 68)]
)
def test_how_many_good_bars_prove_a_share(threshold: float, exact: int, anytime: int) -> None:
    assert bounds.more_needed(0, 0, threshold) == anytime
    first = next(n for n in range(1, 200) if bounds.clopper_pearson(n, n)[0] > threshold)
    assert first == exact


def test_anytime_bounds_are_the_outermost_shares_not_ruled_out() -> None:
    for k, n in ((0, 10), (3, 10), (10, 10), (50, 60), (180, 200)):
        low, high = bounds.anytime(k, n)
        assert 0 <= low <= k / n <= high <= 1
        for step in range(1, 200):
            p = step / 200
            if p <= k / n:
                out = bounds.log_hopeful(k, n, p) >= math.log(20)
                assert out == (p <= low), (k, n, p)
            if 1 - p <= 1 - k / n:
                out = bounds.log_martingale(n - k, n, 1 - p) >= math.log(20)
                assert out == (p >= high), (k, n, p)


def test_no_trials_prove_nothing() -> None:
    assert bounds.wilson(0, 0) == (0.0, 1.0)
    assert bounds.clopper_pearson(0, 0) == (0.0, 1.0)
    assert bounds.anytime(0, 0) == (0.0, 1.0)


def test_wilson_is_the_textbooks() -> None:
    # Brown, Cai, DasGupta (2001): 0 of 10 is [0, .278]; 5 of 10 is symmetric.
    low, high = bounds.wilson(0, 10)
    assert (low, high) == (pytest.approx(0, abs=1e-12), pytest.approx(0.2775, abs=1e-4))
    low, high = bounds.wilson(5, 10)
    assert low + high == pytest.approx(1)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (5, 10), (87, 100), (20, 20)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert bounds.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert bounds.wilson(k / 4, n / 4)[0] <= theirs.low  # a quarter of the trials is worth less


def test_looking_every_hour_for_a_week_passes_what_is_too_bad_in_few_cases_only() -> None:
    """A service AT the threshold: plain rates pass it some time nearly always, the bound in 5 %."""
    rng = random.Random(11)
    plain = bound = 0
    runs, threshold, limit = 400, 0.9, math.log(20)
    martingale = cache(bounds.log_hopeful)  # few differ
    for _ in range(runs):
        k, by_rate, by_bound = 0, False, False
        for n in range(1, 169):
            k += rng.random() < threshold
            if n >= 20 and k > threshold * n:
                by_rate = True
                by_bound = by_bound or martingale(k, n, threshold) >= limit
        plain += by_rate
        bound += by_bound
    assert plain > 0.7 * runs
    assert bound <= 0.05 * runs


def test_a_share_of_one_is_never_proved() -> None:
    with pytest.raises(ValueError, match="can't be proved"):
        bounds.more_needed(5, 5, 1.0)


THRESHOLDS = (0.80, 0.90, 0.95)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("side", ["PASS", "FAIL"])
def test_looking_at_every_bar_of_two_weeks_is_wrong_with_5_percent_at_most_exactly_counted(
    threshold: float, side: str
) -> None:
    p = threshold if side == "PASS" else 1 - threshold
    evidence = bounds.log_hopeful if side == "PASS" else bounds.log_martingale
    needed = bounds.boundary(336, math.log(20), lambda k, n: evidence(k, n, p))
    assert 0.015 < bounds.crossing(needed, p) <= 0.05
    for n in (1, 7, 40, 336):  # the boundary is where the shipped bounds decide
        k = needed[n - 1]
        if k <= n:
            good = k if side == "PASS" else n - k
            low, high = bounds.anytime(good, n)
            assert (low >= threshold) if side == "PASS" else (high <= threshold)
        less = k - 1 if side == "PASS" else n - k + 1
        low, high = bounds.anytime(less, n)
        assert (low < threshold) if side == "PASS" else (high > threshold)


def test_what_crosses_is_counted_as_all_series_one_by_one() -> None:
    needed = bounds.boundary(9, 1.2, lambda k, n: bounds.log_martingale(k, n, 0.3))
    assert any(k <= n for n, k in enumerate(needed, start=1))
    whole = 0.0
    for series in itertools.product((0, 1), repeat=9):
        sums = list(itertools.accumulate(series))
        if any(k >= fewest for k, fewest in zip(sums, needed, strict=True)):
            whole += 0.3 ** sums[-1] * 0.7 ** (9 - sums[-1])
    assert bounds.crossing(needed, 0.3) == pytest.approx(whole)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
@pytest.mark.parametrize("trials", [5, 25, 97])
def test_a_limit_within_so_many_trials_is_lower_and_no_more_often_wrong(
    trials: int, alpha: float
) -> None:
    for threshold in THRESHOLDS:
        p = 1 - threshold
        limit = bounds.limit_within(trials, p, alpha)
        assert limit <= -math.log(alpha)
        needed = bounds.boundary(trials, limit, lambda k, n, p=p: bounds.log_martingale(k, n, p))
        assert bounds.crossing(needed, p) <= alpha
        lower = bounds.boundary(
            trials, limit - 0.01, lambda k, n, p=p: bounds.log_martingale(k, n, p)
        )
        assert lower == needed or bounds.crossing(lower, p) > alpha  # it is the least


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("plan", [14, 24, 59, 96])
def test_a_planned_last_look_costs_nothing_against_the_exact_test(
    threshold: float, plan: int
) -> None:
    """Found good at any look: exactly where the test of the last look finds it in the end."""

    def low(k: int, n: int) -> float:
        ends = {"is_last": n == plan, "alpha": 0.05, "alpha_above": 0.05}
        return bounds.planned(k, n, plan, threshold, **ends)[0]  # type: ignore[arg-type]

    exact = next((k for k in range(plan + 1) if _exact(k, plan) > threshold), plan + 1)
    assert binom.sf(exact - 1, plan, threshold) <= 0.05
    for n in {1, plan // 2, plan - 1, plan}:
        first = next((k for k in range(n + 1) if low(k, n) > threshold), None)
        assert first == (exact if exact <= n else None)


def _exact(k: int, n: int) -> float:
    return bounds.clopper_pearson(k, n)[0]


def test_a_last_look_that_comes_early_is_about_what_was_there() -> None:
    ends = {"alpha": 0.05, "alpha_above": 0.05}
    late = bounds.planned(20, 20, 25, 0.8, is_last=True, **ends)  # type: ignore[arg-type]
    assert late[0] == bounds.clopper_pearson(20, 20)[0]
    more = bounds.planned(20, 30, 25, 0.8, is_last=True, **ends)  # type: ignore[arg-type]
    assert more[1] == bounds.anytime(20, 30)[1]
    early = bounds.planned(30, 30, 25, 0.8, is_last=False, **ends)  # type: ignore[arg-type]
    assert early == bounds.anytime(30, 30)
