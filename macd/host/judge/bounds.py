"""How far an observed share may be from the true one: Wilson, Clopper-Pearson, anytime-valid.

All with `successes` of `trials` independent trials. Bounds of a share lie in [0, 1]; without trials
they are 0 and 1. Standard library alone and pure: the guard runs this on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

_STEPS = 200  # of bisection: more than a double has bits
_FRACTION_STEPS = 10_000
_TINY = 1e-300
_LONGEST_PLAN = 300  # trials; for more the exact probability takes seconds
_LIMIT_STEPS = 14


def wilson(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval, for showing (Wilson 1927).

    Trials may be a fraction, as the effective sample size of overlapping labels is.
    """
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def clopper_pearson(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact one-sided bounds, each wrong with probability `alpha` at most (Clopper, Pearson 1934).

    Good for ONE look at the data.
    """
    low = 0.0
    if successes > 0:
        low = _solve(lambda p: beta_share(p, successes, trials - successes + 1) - alpha)
    high = 1.0
    if successes < trials:
        high = _solve(lambda p: beta_share(p, successes + 1, trials - successes) - (1 - alpha))
    return low, high


def anytime(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """One-sided bounds that hold at every look, however often and whenever one stops.

    Each is wrong at ANY time with probability `alpha` at most: shares p are ruled out for good
    once the mixture martingale against them reaches 1/alpha (Ville 1939; Robbins 1970). From below
    half of the mixture is on trials that never fail, as those of a healthy service.
    """
    limit = -math.log(alpha)
    low = 0.0
    if successes > 0:
        top = successes / trials
        low = _solve(lambda p: limit - log_hopeful(successes, trials, p), high=top)
    return low, _above(successes, trials, limit)


def planned(
    successes: int,
    trials: int,
    plan: int,
    threshold: float,
    *,
    is_last: bool,
    alpha: float,
    alpha_above: float,
) -> tuple[float, float]:
    """One-sided bounds that hold at every look up to a last one, at about `plan` trials.

    From below: the exact bound of one look, the last. Before it, as if all trials to come fail, so
    it is only given away where it is certain already (Koning and van Meer 2025, "Anytime validity
    is free", arXiv 2501.03982). From above: the martingale's bound, with the limit that keeps its
    exact probability to be wrong about `threshold` within so many trials.

    Args:
        plan: trials at the last look, at most. With more, the bounds before it are `anytime`'s.
        alpha, alpha_above: how often the lower and the upper one may be wrong.
    """
    if is_last or trials <= plan:
        low = clopper_pearson(successes, trials if is_last else plan, alpha)[0]
    else:
        low = anytime(successes, trials, alpha)[0]
    limit = -math.log(alpha_above)
    if trials <= plan <= _LONGEST_PLAN and 0 < threshold < 1:
        limit = limit_within(plan, 1 - threshold, alpha_above)
    return low, _above(successes, trials, limit)


def _above(successes: int, trials: int, limit: float) -> float:
    if successes >= trials:
        return 1.0
    failures = trials - successes
    top = failures / trials
    return 1 - _solve(lambda p: limit - log_martingale(failures, trials, p), high=top)


@cache
def limit_within(trials: int, p: float, alpha: float) -> float:
    """Log evidence against a share of `p` that `trials` trials reach with probability `alpha`.

    At most so, and exactly counted; the least such limit, so below that of an endless series.
    """
    known = cache(lambda k, n: log_martingale(k, n, p))
    low, high = 0.0, -math.log(alpha)
    for _ in range(_LIMIT_STEPS):
        middle = (low + high) / 2
        if crossing(boundary(trials, middle, known), p) <= alpha:
            high = middle
        else:
            low = middle
    return high


def boundary(trials: int, limit: float, evidence: Callable[[int, int], float]) -> list[int]:
    """For 1, 2, ... trials: the fewest successes whose evidence is at the limit.

    More than there are trials where none are. evidence(successes, trials) grows with successes,
    and for the same successes falls with trials.
    """
    fewest = 1
    needed = []
    for n in range(1, trials + 1):
        while fewest <= n and evidence(fewest, n) < limit:
            fewest += 1
        needed.append(fewest)
    return needed


def crossing(needed: Sequence[int], p: float) -> float:
    """The exact probability that successes of share `p` ever are as many as `needed`."""
    ways = {0: 1.0}  # probability by successes, of those that never were
    crossed = 0.0
    for fewest in needed:
        after: dict[int, float] = {}
        for successes, chance in ways.items():
            after[successes] = after.get(successes, 0.0) + chance * (1 - p)
            after[successes + 1] = after.get(successes + 1, 0.0) + chance * p
        crossed += sum(chance for k, chance in after.items() if k >= fewest)
        ways = {k: chance for k, chance in after.items() if k < fewest}
    return crossed


def log_hopeful(successes: int, trials: int, p: float) -> float:
    """Log of the evidence that the share is above `p`: half of it from "it never fails"."""
    drawn = log_martingale(successes, trials, p)
    if successes < trials or not math.isfinite(drawn):
        return drawn - math.log(2) if successes < trials else drawn
    never = -trials * math.log(p)
    return max(drawn, never) + math.log1p(math.exp(-abs(drawn - never))) - math.log(2)


def log_martingale(successes: int, trials: int, p: float) -> float:
    """Log of the evidence that the share is above `p`; under any share up to `p` it stays small.

    The likelihood of beta-binomial shares drawn evenly from (p, 1], over the one of p itself.
    """
    if p <= 0:
        return math.inf if successes else 0.0
    if p >= 1:
        return -math.inf if successes < trials else 0.0
    a, b = successes + 1, trials - successes + 1
    above = beta_share(1 - p, b, a)  # P(Beta(a, b) > p)
    if above <= 0:
        return -math.inf
    likelihood = successes * math.log(p) + (trials - successes) * math.log1p(-p)
    return _log_beta(a, b) + math.log(above) - math.log1p(-p) - likelihood


def more_needed(successes: int, trials: int, threshold: float, alpha: float = 0.05) -> int:
    """How many further trials, all successes, until the anytime-valid bound is above `threshold`.

    Raises ValueError for a threshold of 1, which no number of trials proves.
    """
    if threshold >= 1:
        raise ValueError("a share above 1 can't be proved")

    def proved(more: int) -> bool:
        return anytime(successes + more, trials + more, alpha)[0] > threshold

    if proved(0):
        return 0
    few, many = 0, 1
    while not proved(many):
        few, many = many, many * 2
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if proved(middle) else (middle, many)
    return many


def beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (DLMF 8.17)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b))
    if x <= (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x by Lentz's method (DLMF 8.17.22; Press et al., 6.4)."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _FRACTION_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _solve(rising: Callable[[float], float], *, low: float = 0.0, high: float = 1.0) -> float:
    """Where a function that rises from below zero to above it is zero."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
