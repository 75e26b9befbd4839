"""PASS, FAIL or INCONCLUSIVE: what the counted evidence allows. No clock, file or randomness.

Only PASS ever opens anything, and no data is never PASS. `rule: point` compares plain rates, which
is fair for ONE look; `rule: sequential` compares bounds that hold however often one looks.
Standard library alone: the guard runs this on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from macd.host.judge import bounds

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
ALPHA = 0.05
_STALE_BARS, _STALE_LEAST_MS = 3, 10 * 60_000
TITLES = {
    "ml_coverage": "ML coverage",
    "stacking_activation": "stacking activation",
    "tft_normal": "TFT normal",
    "lstm_normal": "LSTM normal",
}


@dataclass(frozen=True)
class Rule:
    """Shares that must each be exceeded, the fewest bars that decide, and how rates are compared.

    rule: "point" or "sequential". The inventory says them all, with defaults where a file doesn't.
    """

    ml_coverage: float
    stacking_activation: float
    tft_normal: float
    lstm_normal: float
    min_bars: int
    rule: str

    def threshold(self, name: str) -> float:
        return float(getattr(self, name))

    def laxer_than(self, other: Rule, *, days: float, other_days: float) -> list[str]:
        """What this rule, over the last `days`, lets pass that `other` over its own would not.

        A shorter look back leaves out the failures that lie behind it.
        """
        told = [name for name in TITLES if self.threshold(name) < other.threshold(name)]
        if self.min_bars < other.min_bars:
            told.append("min_bars")
        if self.rule == "point" and other.rule == "sequential":
            told.append("rule")
        if days < other_days:
            told.append("days")
        return told


@dataclass(frozen=True)
class Criterion:
    """One share: successes of trials, against its threshold. outcome: one of the three words."""

    name: str
    successes: int
    trials: int
    threshold: float
    outcome: str
    more: int
    wilson: tuple[float, float]
    clopper_pearson: tuple[float, float]
    anytime: tuple[float, float]

    @property
    def title(self) -> str:
        return TITLES[self.name]

    @property
    def rate(self) -> float | None:
        return self.successes / self.trials if self.trials else None


@dataclass(frozen=True)
class Decision:
    """reasons: why not PASS, in words. more_bars: to come, all good, before PASS is possible."""

    verdict: str
    criteria: tuple[Criterion, ...]
    reasons: tuple[str, ...] = ()
    more_bars: int = 0


@dataclass(frozen=True)
class Cause:
    """Something about the lines themselves that took the evidence from `count` bars, in words."""

    count: int
    words: str


@dataclass(frozen=True)
class Findings:
    """What was counted. tally: successes and trials by criterion; the trials of ml_coverage are
    the bars. severe: severe errors in words. problems: why the evidence can't be relied on.
    causes: what took evidence from bars; told where a share was missed by that more than by else.
    """

    tally: dict[str, tuple[int, int]]
    severe: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())
    causes: tuple[Cause, ...] = ()


def decide(found: Findings, rule: Rule, alpha: float = ALPHA) -> Decision:
    """The verdict. What is wrong beyond doubt fails even where the evidence has holes.

    alpha: how often each bound may be wrong; less where several verdicts share it.
    """
    criteria = tuple(judge(name, *found.tally[name], rule, alpha) for name in TITLES)
    bars = found.tally["ml_coverage"][1]
    failed = [f"severe error: {words}" for words in found.severe]
    enough = bars >= rule.min_bars
    if enough or rule.rule == "sequential":
        for one in criteria:
            if one.outcome == FAIL:
                failed += [*_mostly(found.causes, one), _missed(one)]
    if failed:
        return Decision(FAIL, criteria, tuple(dict.fromkeys((*failed, *found.problems))))
    more = max(rule.min_bars - bars, *(one.more for one in criteria), 0)
    causes = [words for one in criteria for words in _mostly(found.causes, one)]
    reasons = [*dict.fromkeys(causes), *found.problems]
    unsure = [one for one in criteria if one.outcome != PASS]
    if not enough:
        reasons.append(f"{bars} of at least {rule.min_bars} bars so far")
    elif unsure:
        reasons += [_missed(one) for one in unsure if not one.trials]
        if tried := [one.title for one in unsure if one.trials]:
            reasons.append(f"too few bars to be sure of {', '.join(tried)}")
    if reasons or unsure:
        return Decision(INCONCLUSIVE, criteria, tuple(reasons), more)
    return Decision(PASS, criteria)


def too_old(age_ms: int, step_ms: int) -> bool:
    """Whether the newest BAR was told too long ago for bars of that length.

    Lines that are no bar keep nothing fresh: a service whose feed is dead goes on writing those.
    """
    return age_ms > max(_STALE_BARS * step_ms, _STALE_LEAST_MS)


def judge(name: str, successes: int, trials: int, rule: Rule, alpha: float = ALPHA) -> Criterion:
    """One criterion by itself."""
    threshold = rule.threshold(name)
    anytime = bounds.anytime(successes, trials, alpha)
    more = 0 if trials else 1
    if not trials and threshold >= 1:
        outcome = ""
    elif rule.rule == "sequential":
        outcome = PASS if anytime[0] > threshold else FAIL if anytime[1] <= threshold else ""
        if not outcome and threshold < 1:
            more = bounds.more_needed(successes, trials, threshold, alpha)
    elif trials:
        outcome = PASS if successes > threshold * trials else FAIL
    else:
        outcome = ""
    return Criterion(
        name,
        successes,
        trials,
        threshold,
        outcome or INCONCLUSIVE,
        more,
        bounds.wilson(successes, trials),
        bounds.clopper_pearson(successes, trials, alpha),
        anytime,
    )


def document(decision: Decision) -> dict[str, Any]:
    """The decision as JSON holds it."""
    return {
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
        "more_bars": decision.more_bars if decision.verdict == INCONCLUSIVE else None,
        "criteria": [
            {
                "name": one.name,
                "title": one.title,
                "successes": one.successes,
                "trials": one.trials,
                "rate": one.rate,
                "threshold": one.threshold,
                "outcome": one.outcome,
                "wilson": list(one.wilson),
                "clopper_pearson": list(one.clopper_pearson),
                "anytime": list(one.anytime),
            }
            for one in decision.criteria
        ],
    }


def _mostly(causes: tuple[Cause, ...], one: Criterion) -> list[str]:
    """The causes of at least half of what an unproved share lacks."""
    lacking = one.trials - one.successes
    if one.outcome == PASS or not lacking:
        return []
    return [cause.words for cause in causes if 2 * cause.count >= lacking]


def _missed(one: Criterion) -> str:
    if one.rate is None:
        return f"{one.title}: nothing to judge"
    return (
        f"{one.title} {100 * one.rate:.1f} % ({one.successes} of {one.trials}), "
        f"must exceed {100 * one.threshold:g} %"
    )
