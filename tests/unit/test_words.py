"""Old private words stay out of code and pages: each thing has one name, the field's.

`docs/glossary.md` explains the words that are used. The lists here hold the old words that have no
other meaning, so that a match is always a mistake. CHANGELOG.md may name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = [
    *sorted((ROOT / "macd").rglob("*.py")),
    *sorted((ROOT / "templates").iterdir()),
    ROOT / "tasks.py",
]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# old word: what to say
EVERYWHERE = {
    r"\bWish\b": "DeployOptions",
    r"\bOffer\b": "ReleaseCandidate",
    r"\bCampaign\b": "Rollout",
    r"\bRehearsal\b": "readiness check",
    r"\bConfinement\b": "Sandbox",
    r"\bWay\b": "Route",
    r"\b[Tt]he way back\b|WAY BACK": "rollback target, or revert",
    r"\bstanding order\b": "the guard's watch, or its configuration",
    r"\bfreak\b": "outlier",
    r"missed by a hair": "narrowly missed",
    r"turns an input round": "inverts",
    r"flipped by coins?": "sign-randomised null test",
    r"looked at with .* recipes": "N configurations evaluated on the holdout",
    r"\bbook: Inventory\b": "inventory",
    r"\bcarry_on\b": "resume",
    r"[Oo]pens (nothing|anything)\b": "can't enable stacking, allows nothing",
    r"\btold (again|apart)\b": "repeated, distinguished",
    r"\b[Tt]aught\b": "trained on",
    r"\bown word\b": "host policy",
    r"(?<![\"`])\bunwell\b": "unhealthy",
    r"(?<![\"`])\brehears\w*": "readiness check",
    r"[Cc]omes? to pass": "realised outcomes",
    # as names
    r"[:(,] ?Order\b": "TrainRequest, ReleaseRequest",
    r"\b(self|seen)\.order\b": "watch: the guard's",
    r"\b_?begun [-+:]?= ": "started",
    r"\b_?found(: [\w\[\], .|]+)? [-+:|]?= ": "what was found: match, findings, rows",
    r"\b_?told(: [\w\[\], .|]+)? [-+:|]?= ": "the thing itself: message, outcome, requested",
    r"\bfor ((found|told)|\w+, (found|told)) in ": "what was found or reported",
    r"\b(order_of|tell_differences|worth_keeping|end_forgotten)\b": "the names of today",
}
IN_PAGES = {
    r"\b[Tt]old\b": "say the thing itself: named, shown, reported",
    r"\bways? back\b": "rollback target, or revert",
    r"\bwalls\b": "sandbox",
    r"\bspoil\w*": "inject a fault",
    r"\bunwell\b": "unhealthy",
    r"\b[Tt]aught\b": "trained on",
    r"\bteach(es)?\b": "train",
    r"\bown word\b": "host policy",
    r"\b(are|is) well\b": "healthy, or: all checks passed",
    r"standing order": "the watch's configuration",
    r"rehears\w*": "readiness check",
    r"drawn by coin|flipped by coins?": "sign-randomised null test",
    r"looked at with \d+ recipes": "N configurations evaluated on the holdout",
    r"how well direction": "discrimination (ROC AUC)",
    r"freak": "outlier",
    r"models? speaks?\b": "the models predict",
    r"\b[Bb]egun\b": "started",
}


def test_no_old_word() -> None:
    assert _matches([*CODE, *PAGES], EVERYWHERE) == []


def test_no_old_word_in_a_page() -> None:
    assert _matches(PAGES, IN_PAGES) == []


def test_an_old_word_is_a_match(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Here is none.\nThe way back is told.\n")
    assert [match.partition(";")[0] for match in _matches([page], IN_PAGES)] == [
        f"{page}:2: 'told'",
        f"{page}:2: 'way back'",
    ]


def _matches(paths: Iterable[Path], words: dict[str, str]) -> list[str]:
    """Each match with its file, its line and what to say in its place."""
    any_word = re.compile("|".join(words))
    return [
        f"{path}:{number}: {match[0]!r}; say: {instead}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any_word.search(line)
        for old, instead in words.items()
        for match in re.finditer(old, line)
    ]
