"""Whether stacking is worse, or better, than another forecast of the same bars, once it is known.

Each bar has the difference of two log scores, stacking's minus the other's. Two bettors test its
sign at every look: one stakes on "worse", the other on "better". A bet is made when its bar closes
and settled when its label is known, h bars later. Bets overlap, as labels do. So no more is staked
than can be lost, and what counts is the wealth that is left if every open bet is lost. Under the
hypothesis that a bettor bets against, its wealth reaches 1/alpha at any time with probability alpha
at most (docs/adr/skill.md). Standard library alone and pure: the guard runs this on the host.

Sources: Choe and Ramdas 2024, "Comparing sequential forecasters" (arXiv 2110.00115), for the
question and the score differences; Waudby-Smith and Ramdas 2024, "Estimating means of bounded
random variables by betting", for bettors; the correction of 2022 to Henzi and Ziegel, "Valid
sequential inference on probability forecast performance", for what overlapping labels forbid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from macd.heads import bars_ahead, is_head
from macd.host.judge.parse import SIGNAL, Line, step_ms

WORSE, BETTER, UNPROVED = "worse", "better", "unproved"
OFF = "off"
SETTINGS = (WORSE, BETTER, OFF)  # of gate.skill, from the default on
MEAN, CHALLENGER = "mean", "challenger"
MOST = 10_000  # newest bars that count
CLIP = 0.01  # probabilities are moved into [CLIP, 1 - CLIP],
WIDEST = 1.0  # and stacking's log-odds to within this of the other's
FRACTIONS = (0.1, 0.2, 0.4)  # of its wealth that each bettor has at risk; they share the start
WARM_UP = 24  # bars without bets, which show how large differences are
_STEPS = 12  # of bisection: a bound is exact to 1/4,000 of the largest difference
_LONGEST_WAIT = 1_000_000  # bars; what would take longer is not foreseen
SAME = 1e-6  # nats: forecasts whose scores differ by less on average, either way, are the same
_SLOWEST = 0.1  # log wealth below which nothing can be foreseen


class Scored(NamedTuple):
    """A bar with a prediction of stacking, and of others by name; None where one said nothing.

    bar, step: open and length in milliseconds. head: the head that all of them are about. release:
    of the challenger.
    """

    symbol: str
    tf: str
    bar: int
    step: int
    close: float
    head: str
    stacking: float
    mean: float | None
    challenger: float | None = None
    release: str = ""


def scored(line: Line) -> Scored | None:
    """The bar of a signal line; None where it reports an error, or there is nothing to compare."""
    step, p = step_ms(line.tf) if line.tf else 0, line.stacking
    if line.kind != SIGNAL or line.error or line.bar is None or not step or not line.head:
        return None
    if line.close is None or not math.isfinite(line.close) or p is None or not 0 < p < 1:
        return None
    release, other = line.challenger or ("", None)
    return Scored(
        line.symbol, line.tf, line.bar, step, line.close, line.head, p, line.average, other, release
    )


class Bet(NamedTuple):
    """One bar to bet on, in the order of their closes.

    settled: how many of the bets before it are settled when it is made. difference: stacking's
    score minus the other's; 0 without a label. risk: the largest it could have been, either way.
    """

    settled: int
    difference: float
    risk: float


@dataclass(frozen=True)
class History:
    """The bets of one comparison. settled: how many of them are by now. labels: how many of the
    settled have a label. ahead: how many bets are made until one is settled.
    """

    bets: tuple[Bet, ...]
    settled: int
    labels: int
    ahead: int


def judged(
    bars: Sequence[Scored], setting: str, alpha: float, *, intervals: bool = True
) -> dict[str, Any]:
    """The report: setting, head, and by what stacking is compared with what came out.

    Each of "against" has n (bars with a label), outcome, same (whether the forecasts are the same
    but for rounding), more_bars (until it would be proved if all bars go on like these; None where
    they are the same or nothing can be foreseen), and the mean differences of
    log_score and brier with bounds, each of which is wrong at any time with probability `alpha` at
    most. The challenger, where the lines have one, shares the alpha.

    Args:
        bars: in the order they were written. setting: of SETTINGS.
        intervals: False leaves the bounds out, which take the time.
    """
    head = bars[-1].head if bars else ""
    report: dict[str, Any] = {"setting": setting, "head": head or None, "against": {}}
    if setting == OFF or not is_head(head):
        return report
    newest = bars[-1]
    same = [bar for bar in [*bars][-MOST:] if (bar.head, bar.tf) == (head, newest.tf)]
    release, others = _challenger_of(same), comparisons(same)
    for name, other in others.items():
        made = _compared(same, other, alpha / len(others), intervals=intervals)
        report["against"][name] = {**made, **({"release": release} if name == CHALLENGER else {})}
    return report


def comparisons(bars: Sequence[Scored]) -> dict[str, Callable[[Scored], float | None]]:
    """What stacking is compared with, by name; they share the alpha.

    The mean of the models, and the newest challenger where the bars have one.
    """
    others: dict[str, Callable[[Scored], float | None]] = {MEAN: lambda bar: bar.mean}
    if release := _challenger_of(bars):
        others[CHALLENGER] = lambda bar: bar.challenger if bar.release == release else None
    return others


def _challenger_of(bars: Sequence[Scored]) -> str:
    return next((bar.release for bar in reversed(bars) if bar.challenger is not None), "")


def _compared(
    bars: Sequence[Scored],
    other: Callable[[Scored], float | None],
    alpha: float,
    *,
    intervals: bool,
) -> dict[str, Any]:
    logs, briers = history(bars, other, log_scores), history(bars, other, brier_scores)
    worse, better = (wealth(logs, sign) for sign in (-1, 1))
    outcome = WORSE if worse >= 1 / alpha else BETTER if better >= 1 / alpha else UNPROVED
    apart = math.fsum(abs(bet.difference) for bet in logs.bets)
    same = logs.labels > 0 and apart < SAME * logs.labels
    return {
        "n": logs.labels,
        "alpha": alpha,
        "outcome": outcome,
        "same": same,
        "more_bars": None if same else _more_bars(logs.labels, max(worse, better), alpha),
        "log_score": _figure(logs, alpha, intervals=intervals),
        "brier": _figure(briers, alpha, intervals=intervals),
    }


def _more_bars(n: int, best: float, alpha: float) -> int | None:
    """Bars until 1/alpha is reached if log wealth goes on growing as it did; 0 if it is reached."""
    grown = math.log(best) if best > 0 else 0.0
    if grown >= -math.log(alpha):
        return 0
    if grown < _SLOWEST:
        return None
    more = math.ceil(n * (-math.log(alpha) / grown - 1))
    return more if more <= _LONGEST_WAIT else None


def _figure(bets: History, alpha: float, *, intervals: bool) -> dict[str, float | None]:
    mean = sum(bet.difference for bet in bets.bets) / bets.labels if bets.labels else None
    low, high = interval(bets, alpha) if intervals and mean is not None else (None, None)
    return {"value": mean, "low": low, "high": high}


def history(
    bars: Sequence[Scored],
    other: Callable[[Scored], float | None],
    scores: Callable[[float, float], tuple[float, float]],
) -> History:
    """The bets on bars of one timeframe and head.

    The label of a bar is its close against the close h bars later of the same symbol, as in
    realised.py. A bet on a bar that gets no label is paid back.

    scores: differences of scores of (stacking, other), if the close rises and if it falls.
    """
    by_bar = {(bar.symbol, bar.bar): bar for bar in bars}
    ordered = sorted(by_bar.values(), key=lambda bar: (bar.bar, bar.symbol))
    bets: list[Bet] = []
    due: list[int] = []
    ahead = bars_ahead(ordered[0].head) if ordered else 0
    labels = settled = 0
    for bar in ordered:
        while settled < len(due) and due[settled] <= bar.bar:
            settled += 1
        theirs = other(bar)
        if theirs is None:
            continue
        when = bar.bar + ahead * bar.step
        later = by_bar.get((bar.symbol, when))
        up, down = scores(bar.stacking, theirs)
        difference = 0.0
        if later is not None and later.close != bar.close:
            difference = up if later.close > bar.close else down
            labels += 1
        bets.append(Bet(settled, difference, max(abs(up), abs(down))))
        due.append(when)
    while ordered and settled < len(due) and due[settled] <= ordered[-1].bar:
        settled += 1
    symbols = len({bar.symbol for bar in ordered}) or 1  # each has a bet open at a time
    return History(tuple(bets), settled, labels, ahead * symbols)


def log_scores(p: float, other: float) -> tuple[float, float]:
    """Differences of log scores, in nats, if the close rises and if it falls; within WIDEST.

    p is clipped towards the other: log-odds further away than WIDEST count as so far away. Where
    the clipped p is worse in expectation, p itself is worse still: the score is concave in them.
    """
    near, far = _log_odds(p, other)
    return _log_sigmoid(far) - _log_sigmoid(near), _log_sigmoid(-far) - _log_sigmoid(-near)


def brier_scores(p: float, other: float) -> tuple[float, float]:
    """The same of Brier scores, turned so that more is better; clipped in the same way."""
    near, far = (math.exp(_log_sigmoid(x)) for x in _log_odds(p, other))
    return (1 - near) ** 2 - (1 - far) ** 2, near**2 - far**2


def _log_odds(p: float, other: float) -> tuple[float, float]:
    """Of the other and of p, clipped."""
    ours, theirs = (_logit(min(max(q, CLIP), 1 - CLIP)) for q in (p, other))
    return theirs, theirs + min(max(ours - theirs, -WIDEST), WIDEST)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def wealth(played: History, sign: int, level: float = 0.0) -> float:
    """What a bettor who began with 1 has at the end, if it loses every bet that is still open.

    It bets that differences are on average above `level` (sign 1) or below (sign -1). Each of
    FRACTIONS is played with an equal share of the start.
    """
    return sum(_alone(played, sign, level, part) for part in FRACTIONS) / len(FRACTIONS)


def _alone(played: History, sign: int, level: float, fraction: float) -> float:
    """`wealth` with about this fraction of it at risk: in equal stakes on the last h bars, by how
    large differences were so far.
    """
    money, open_risk, shift, seen = 1.0, 0.0, abs(level), 0.0
    stakes: list[float] = []
    done = 0
    for settled, _, risk in (*played.bets, Bet(played.settled, 0.0, 0.0)):
        while done < settled:
            stake, bet = stakes[done], played.bets[done]
            money += stake * sign * (bet.difference - level)
            open_risk -= stake * (bet.risk + shift)
            done += 1
        bets, most, stake = len(stakes), risk + shift, 0.0
        if WARM_UP <= bets < len(played.bets) and most > 0 and seen > 0:
            usual = played.ahead * seen / bets
            stake = max(0.0, min(fraction * money / usual, (money - open_risk) / most))
        open_risk += stake * most
        stakes.append(stake)
        seen += most
    return money - open_risk


def interval(played: History, alpha: float) -> tuple[float, float]:
    """Means of the difference that are not ruled out, from below and from above.

    Each end is wrong at any time with probability `alpha` at most, where the expected difference is
    the same at every bar.
    """
    return -_highest(played, 1, alpha), _highest(played, -1, alpha)


def _highest(played: History, sign: int, alpha: float) -> float:
    """The highest mean, of differences times -sign, that a bettor of this sign leaves standing."""
    most = max((bet.risk for bet in played.bets), default=0.0)

    def ruled_out(level: float) -> bool:
        return wealth(played, sign, -sign * level) >= 1 / alpha

    if ruled_out(0.0):
        low, high = -most, 0.0
    else:
        low, high = 0.0, most
        if not ruled_out(most):
            return most
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if ruled_out(middle) else (middle, high)
    return high
