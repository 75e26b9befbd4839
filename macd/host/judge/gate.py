"""PASS, FAIL or INCONCLUSIVE: what the counted evidence allows. No clock, file or randomness.

Only PASS allows anything, and no data is never PASS. `rule: point` compares plain rates, which
is fair for ONE look; `rule: sequential` compares bounds that hold however often one looks.
Standard library alone: the guard runs this on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from macd.host.judge import bounds, skill

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
ALPHA = 0.05
_STALE_BARS, _STALE_LEAST_MS = 3, 10 * 60_000
TITLES = {
    "ml_coverage": "ML coverage",
    "stacking_activation": "stacking activation",
    "tft_normal": "TFT normal",
    "lstm_normal": "LSTM normal",
}
_STRICTNESS = (skill.OFF, skill.WORSE, skill.BETTER)
_NAMES = {skill.MEAN: "the mean of the models", skill.CHALLENGER: "the release before it"}


@dataclass(frozen=True)
class Rule:
    """Shares that must each be exceeded, the fewest bars that decide, and how rates are compared.

    rule: "point" or "sequential". skill: "worse" (FAIL where stacking is proved worse), "better"
    (PASS only where it is also proved better) or "off". The inventory says them all, with defaults
    where a file doesn't.
    """

    ml_coverage: float
    stacking_activation: float
    tft_normal: float
    lstm_normal: float
    min_bars: int
    rule: str
    skill: str = skill.WORSE

    def threshold(self, name: str) -> float:
        return float(getattr(self, name))

    def share(self, name: str) -> Share:
        return Share(name, TITLES[name], self.threshold(name))

    def laxer_than(self, other: Rule, *, days: float, other_days: float) -> list[str]:
        """Names of what makes this rule, over the last `days`, laxer than `other` over its own.

        A shorter period leaves out the failures before it.
        """
        laxer = [name for name in TITLES if self.threshold(name) < other.threshold(name)]
        if self.min_bars < other.min_bars:
            laxer.append("min_bars")
        if self.rule == "point" and other.rule == "sequential":
            laxer.append("rule")
        if _STRICTNESS.index(self.skill) < _STRICTNESS.index(other.skill):
            laxer.append("skill")
        if days < other_days:
            laxer.append("days")
        return laxer


@dataclass(frozen=True)
class Share:
    """A share that must be exceeded. level: "block", or "warn" where a miss is only reported."""

    name: str
    title: str
    threshold: float
    level: str = "block"


@dataclass(frozen=True)
class Criterion:
    """One share: successes of trials, against its threshold. outcome: one of the three words."""

    name: str
    title: str
    successes: int
    trials: int
    threshold: float
    outcome: str
    more: int
    wilson: tuple[float, float]
    clopper_pearson: tuple[float, float]
    anytime: tuple[float, float]
    level: str = "block"

    @property
    def rate(self) -> float | None:
        return self.successes / self.trials if self.trials else None


@dataclass(frozen=True)
class Decision:
    """reasons: why not PASS, in words. more_bars: to come, all good, before PASS is possible.

    skill: what macd/host/judge/skill.py reports.
    """

    verdict: str
    criteria: tuple[Criterion, ...]
    reasons: tuple[str, ...] = ()
    more_bars: int = 0
    skill: Mapping[str, Any] = field(default_factory=dict)


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
    skill: what macd/host/judge/skill.py reports. shares, bars: what is judged, and of how many
    bars, of an application of the team's own; None for the guide's four.
    """

    tally: dict[str, tuple[int, int]]
    severe: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())
    causes: tuple[Cause, ...] = ()
    skill: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[Share, ...] | None = None
    bars: int | None = None


@dataclass(frozen=True)
class Plan:
    """A last look that is known before the first: at `bars` bars at most. is_last: this is it.
    alpha: how often what is found good may be wrong, which is judged at the last look.
    """

    bars: int
    is_last: bool
    alpha: float = ALPHA


def decide(
    findings: Findings, rule: Rule, alpha: float = ALPHA, plan: Plan | None = None
) -> Decision:
    """The verdict. What certainly fails is FAIL even where the evidence has holes.

    alpha: how often each bound may be wrong; less where several verdicts share it.
    """
    shares = tuple(map(rule.share, TITLES)) if findings.shares is None else findings.shares
    all_criteria = tuple(
        judge(share, *findings.tally[share.name], rule, alpha, plan) for share in shares
    )
    criteria = [criterion for criterion in all_criteria if criterion.level != "warn"]
    bars = findings.tally["ml_coverage"][1] if findings.bars is None else findings.bars
    enough = bars >= rule.min_bars
    against = findings.skill.get("against", {})
    failed = _failed(findings, criteria, judged=enough or rule.rule == "sequential")
    if failed:
        why = tuple(dict.fromkeys((*failed, *findings.problems)))
        return Decision(FAIL, all_criteria, why, skill=findings.skill)
    more = max(rule.min_bars - bars, *(criterion.more for criterion in criteria), 0)
    causes = [words for criterion in criteria for words in _mostly(findings.causes, criterion)]
    reasons = [*dict.fromkeys(causes), *findings.problems]
    unsure = [criterion for criterion in criteria if criterion.outcome != PASS]
    if not criteria:
        reasons.append("no share blocks: signals.map and signals.rates name nothing to judge")
    if not enough:
        reasons.append(f"{bars} of at least {rule.min_bars} bars so far")
    elif unsure:
        reasons += [_missed(criterion) for criterion in unsure if not criterion.trials]
        if tried := [criterion.title for criterion in unsure if criterion.trials]:
            reasons.append(f"too few bars to be sure of {', '.join(tried)}")
    if rule.skill == skill.BETTER:
        reasons += _not_better(against.get(skill.MEAN))
    if reasons or unsure:
        return Decision(INCONCLUSIVE, all_criteria, tuple(reasons), more, findings.skill)
    return Decision(PASS, all_criteria, skill=findings.skill)


def _failed(findings: Findings, criteria: list[Criterion], *, judged: bool) -> list[str]:
    """What is wrong beyond doubt. judged: whether a missed share counts yet."""
    failed = [f"severe error: {words}" for words in findings.severe]
    for criterion in criteria if judged else ():
        if criterion.outcome == FAIL:
            failed += [*_mostly(findings.causes, criterion), _missed(criterion)]
    against = findings.skill.get("against", {})
    worse = [_worse(name, row) for name, row in against.items() if row["outcome"] == skill.WORSE]
    return [*failed, *worse]


def too_old(age_ms: int, step_ms: int) -> bool:
    """Whether the newest BAR is too old for bars of that length.

    Other lines don't count: a service whose feed is dead still writes those.
    """
    return age_ms > max(_STALE_BARS * step_ms, _STALE_LEAST_MS)


def judge(
    share: Share,
    successes: int,
    trials: int,
    rule: Rule,
    alpha: float = ALPHA,
    plan: Plan | None = None,
) -> Criterion:
    """One share against its threshold."""
    threshold = share.threshold
    if plan is None:
        anytime = bounds.anytime(successes, trials, alpha)
    else:
        anytime = bounds.planned(
            successes,
            trials,
            plan.bars,
            threshold,
            is_last=plan.is_last,
            alpha=plan.alpha,
            alpha_above=alpha,
        )
    more = 0 if trials else 1
    if not trials and threshold >= 1:
        outcome = ""
    elif rule.rule == "sequential":
        outcome = PASS if anytime[0] > threshold else FAIL if anytime[1] <= threshold else ""
        if not outcome and threshold < 1 and plan is None:
            more = bounds.more_needed(successes, trials, threshold, alpha)
    elif trials:
        outcome = PASS if successes > threshold * trials else FAIL
    else:
        outcome = ""
    return Criterion(
        share.name,
        share.title,
        successes,
        trials,
        threshold,
        outcome or INCONCLUSIVE,
        more,
        bounds.wilson(successes, trials),
        bounds.clopper_pearson(successes, trials, alpha),
        anytime,
        share.level,
    )


def document(decision: Decision) -> dict[str, Any]:
    """The decision as JSON."""
    return {
        "verdict": decision.verdict,
        "reasons": list(decision.reasons),
        "more_bars": decision.more_bars if decision.verdict == INCONCLUSIVE else None,
        "skill": dict(decision.skill) or None,
        "criteria": [
            {
                "name": criterion.name,
                "title": criterion.title,
                "successes": criterion.successes,
                "trials": criterion.trials,
                "rate": criterion.rate,
                "threshold": criterion.threshold,
                "level": criterion.level,
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


def _worse(name: str, row: Mapping[str, Any]) -> str:
    by = f"{row['log_score']['value']:+.4f} in log score on {row['n']} bars"
    release = f", {row['release']}" if name == skill.CHALLENGER else ""
    return f"stacking is proved worse than {_NAMES[name]}{release}: {by}"


def _not_better(row: Mapping[str, Any] | None) -> list[str]:
    """Why there is no PASS where one takes proof that stacking is better."""
    if row is not None and row["outcome"] == skill.BETTER:
        return []
    bars = row["n"] if row is not None else 0
    return [
        f"stacking is not proved better than {_NAMES[skill.MEAN]} on {bars} bars with a known "
        f"outcome{more_words(row)}"
    ]


def more_words(row: Mapping[str, Any] | None) -> str:
    """How many more bars would prove a difference, if they are like those so far; "" if unknown."""
    if row is None or row["outcome"] != skill.UNPROVED:
        return ""
    if row.get("same"):
        return "; the two forecasts are the same"
    if row["more_bars"] is None:
        return "; these bars don't show how many more it takes"
    return f"; about {row['more_bars']} more bars like these would prove a difference"


def outcome_words(row: Mapping[str, Any]) -> str:
    """The outcome of one comparison, for people."""
    return "not proved better or worse" if row["outcome"] == skill.UNPROVED else row["outcome"]


def meaning(comparisons: Mapping[str, Any], verdict: str) -> str:
    """In one sentence: what a PASS permits, or would permit, and what is not tested."""
    is_pass = verdict == PASS
    row = comparisons.get("against", {}).get(skill.MEAN)
    wants_proof = comparisons.get("setting") == skill.BETTER
    untested = "profit after costs, other markets, and whether the bars to come are like these"
    compared = ""
    if row is None and not wants_proof:
        why = (
            "gate.skill is off"
            if comparisons.get("setting") == skill.OFF
            else "no line tells of both"
        )
        untested = f"whether stacking predicts worse than {_NAMES[skill.MEAN]} ({why}), {untested}"
    else:
        proved = "proved better" if wants_proof else "not proved worse"
        bars = f"{row['n'] if row else 0} bars with a known outcome so far"
        compared = f"stacking is {proved} than {_NAMES[skill.MEAN]} ({bars})"
    if is_pass:
        compared = f", and {compared}" if compared else ""
        return (
            "A PASS permits to enable stacking for this release on this host until the report "
            f"expires: the models answered{compared}; not tested are {untested}."
        )
    compared = f", and that {compared}" if compared else ""
    return (
        "A PASS would permit to enable stacking for this release on this host until the report "
        f"expires; it takes that the models answer{compared}; not tested are {untested}."
    )
