"""A folder of files judged here: which release it is about, and what of it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.gate import evidence, report
from macd.gate.logs import Pulled
from macd.gate.report import Judged
from macd.host.flag.evidence import blockers
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import INCONCLUSIVE, PASS
from macd.inventory import load
from tests.support import signal_lines
from tests.support.gate_rule import RULE
from tests.support.signal_lines import RELEASE

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
OTHER = "20260101T000000Z-ffffffff"
DAY = timedelta(days=1)


def judged(directory: Path, days: float | None = None) -> Judged:
    return report.of_files(load("lab"), directory, RULE, days, NOW)


def put(directory: Path, n: int, **more: Any) -> None:
    signal_lines.write(directory, signal_lines.lines(n, **{"end": NOW, **more}))


def test_lines_without_a_release_count_beside_those_with_one_and_are_told(tmp_path: Path) -> None:
    earlier = signal_lines.lines(30, end=NOW - DAY, release=None)
    (tmp_path / "trade_2026-03-01.jsonl").write_bytes(
        b"".join(
            signal_lines.encode({k: v for k, v in line.items() if k not in ("seq", "release")})
            for line in earlier
        )
    )
    put(tmp_path, 25, first_seq=31)
    judgement = judged(tmp_path)
    assert judgement.document["release"] == RELEASE
    assert (judgement.document["bars"], judgement.decision.verdict) == (55, PASS)
    assert judgement.document["notes"] == ["30 lines without seq or release count as well"]
    assert judgement.document["opens_nothing"] != []


def test_lines_without_a_release_may_be_the_newest(tmp_path: Path) -> None:
    put(tmp_path, 25, end=NOW - DAY)
    put(tmp_path, 25, release=None, first_seq=26)
    judgement = judged(tmp_path)
    assert (judgement.document["release"], judgement.document["bars"]) == (RELEASE, 50)
    assert judgement.decision.verdict == PASS, judgement.decision.reasons


@pytest.mark.parametrize("when", ["2062-01-01T00:00:00Z", "2026-03-02T11:59:30Z"])
def test_one_line_with_a_damaged_time_does_not_pick_the_release(tmp_path: Path, when: str) -> None:
    (old,) = signal_lines.lines(1, end=NOW - 9 * DAY, release=OTHER)
    put(tmp_path, 9, end=NOW - 9 * DAY, release=OTHER)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + signal_lines.encode({**old, "seq": 10, "timestamp": when}))
    put(tmp_path, 40, first_seq=11, end=NOW - timedelta(minutes=1))
    judgement = judged(tmp_path)
    assert judgement.document["release"] == RELEASE
    assert judgement.document["bars"] == 40


def test_files_whose_bars_ended_long_before_their_last_line_do_not_pass(tmp_path: Path) -> None:
    put(tmp_path, 25, end=NOW - timedelta(hours=20))
    tail = (
        signal_lines.warning("feed", None, at=NOW - timedelta(minutes=5 * (239 - i)), seq=26 + i)
        for i in range(240)
    )
    signal_lines.write(tmp_path, tail)
    judgement = judged(tmp_path)
    assert judgement.decision.verdict == INCONCLUSIVE
    assert judgement.decision.reasons == ("stale: the newest bar was logged 20 h ago",)


def test_a_log_that_is_gone_is_a_note_and_a_problem_in_the_window(tmp_path: Path) -> None:
    gone = ("trades_20260101.jsonl", "trades_20260301.jsonl")
    analysis = Analysis(Window(round((NOW - DAY).timestamp() * 1000), 1 << 50, RELEASE))
    problems = evidence.problems(analysis, now=NOW, gone=gone)
    assert problems == ["trades_20260301.jsonl is not on the host any more", *problems[1:]]
    assert "20260101" not in " ".join(problems)
    notes = report._notes(Pulled(tmp_path, 0, (), gone=gone))
    assert notes == [f"{name} was fetched before and is not on the host any more" for name in gone]
    many = tuple(f"trades_{day}.jsonl" for day in range(20260101, 20260130))
    assert (
        report._notes(Pulled(tmp_path, 0, (), gone=many))[-1] == "and 19 older logs that are gone"
    )


def test_a_verdict_and_what_is_missing_are_told_once_and_in_words() -> None:
    document = {"verdict": INCONCLUSIVE, "source": "host", "opens_nothing": [
        f"the verdict is {INCONCLUSIVE}", "days laxer than in inventory lab"]}  # fmt: skip
    now = datetime(2026, 3, 1, tzinfo=UTC)
    reasons = blockers(document, release=None, manifest_sha256="", env="prod", note=None, now=now)
    assert reasons[:3] == [
        "its verdict is INCONCLUSIVE",
        "it says itself that it can't enable stacking: days laxer than in inventory lab",
        "it is about no release, none is live",
    ]
