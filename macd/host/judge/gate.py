"""PASS, FAIL or INCONCLUSIVE: what the counted evidence allows. No clock, file or randomness.

Only PASS allows anything, and no data is never PASS. `rule: point` compares plain rates, which
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
        """Names of what makes this rule, over the last `days`, laxer than `other` over its own.

        A shorter period leaves out the failures before it.
        """
        laxer = [name for name in TITLES if self.threshold(name) < other.threshold(name)]
        if self.min_bars < other.min_bars:
            laxer.append("min_bars")
        if self.rule == "point" and other.rule == "sequential":
            laxer.append("rule")
        if days < other_days:
            laxer.append("days")
        return laxer


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
    causes: what took evidence from bars; a reason where it explains most of a missed share.
    """

    tally: dict[str, tuple[int, int]]
    severe: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())
    causes: tuple[Cause, ...] = ()


def decide(findings: Findings, rule: Rule, alpha: float = ALPHA) -> Decision:
    """The verdict. What certainly fails is FAIL even where the evidence has holes.

    alpha: how often each bound may be wrong; less where several verdicts share it.
    """
    criteria = tuple(judge(name, *findings.tally[name], rule, alpha) for name in TITLES)
    bars = findings.tally["ml_coverage"][1]
    failed = [f"severe error: {words}" for words in findings.severe]
    enough = bars >= rule.min_bars
    if enough or rule.rule == "sequential":
        for criterion in criteria:
            if criterion.outcome == FAIL:
                failed += [*_mostly(findings.causes, criterion), _missed(criterion)]
    if failed:
        return Decision(FAIL, criteria, tuple(dict.fromkeys((*failed, *findings.problems))))
    more = max(rule.min_bars - bars, *(criterion.more for criterion in criteria), 0)
    causes = [words for criterion in criteria for words in _mostly(findings.causes, criterion)]
    reasons = [*dict.fromkeys(causes), *findings.problems]
    unsure = [criterion for criterion in criteria if criterion.outcome != PASS]
    if not enough:
        reasons.append(f"{bars} of at least {rule.min_bars} bars so far")
    elif unsure:
        reasons += [_missed(criterion) for criterion in unsure if not criterion.trials]
        if tried := [criterion.title for criterion in unsure if criterion.trials]:
            reasons.append(f"too few bars to be sure of {', '.join(tried)}")
    if reasons or unsure:
        return Decision(INCONCLUSIVE, criteria, tuple(reasons), more)
    return Decision(PASS, criteria)


def too_old(age_ms: int, step_ms: int) -> bool:
    """Whether the newest BAR is too old for bars of that length.

    Other lines don't count: a service whose feed is dead still writes those.
    """
    return age_ms > max(_STALE_BARS * step_ms, _STALE_LEAST_MS)


def judge(name: str, successes: int, trials: int, rule: Rule, alpha: float = ALPHA) -> Criterion:
    """One criterion against its threshold."""
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
    """The decision as JSON."""
    return {
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
        "more_bars": decision.more_bars if decision.verdict == INCONCLUSIVE else None,
        "criteria": [
            {
                "name": criterion.name,
                "title": criterion.title,
                "successes": criterion.successes,
                "trials": criterion.trials,
                "rate": criterion.rate,
                "threshold": criterion.threshold,
                "outcome": criterion.outcome,
                "wilson": list(criterion.wilson),
                "clopper_pearson": list(criterion.clopper_pearson),
                "anytime": list(criterion.anytime),
            }
            for criterion in decision.criteria
        ],
    }


def _mostly(causes: tuple[Cause, ...], criterion: Criterion) -> list[str]:
    """The causes of at least half of what an unproved share lacks."""
    lacking = criterion.trials - criterion.successes
    if criterion.outcome == PASS or not lacking:
        return []
    return [cause.words for cause in causes if 2 * cause.count >= lacking]


def _missed(criterion: Criterion) -> str:
    if criterion.rate is None:
        return f"{criterion.title}: nothing to judge"
    share = f"{100 * criterion.rate:.1f} % ({criterion.successes} of {criterion.trials})"
    return f"{criterion.title} {share}, must exceed {100 * criterion.threshold:g} %"
