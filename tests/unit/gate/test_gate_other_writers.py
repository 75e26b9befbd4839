"""Lines of writers that don't name errors or releases as we do: healthy ones are healthy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.gate import evidence, report
from macd.host.judge import gate, judging
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import FAIL, INCONCLUSIVE, PASS, Decision, Findings
from macd.host.judge.parse import parse
from macd.host.judge.reading import analyse, ordered
from macd.inventory import load
from tests.support import signal_lines
from tests.support.gate_rule import RULE
from tests.support.signal_lines import RELEASE

CASES = Path(__file__).parents[2] / "cases/gate"
NOW = datetime(2026, 11, 27, tzinfo=UTC)
STYLE = "45 lines name a release in another style (v1.4.2)"

Made = dict[str, Any]


def of_files(directory: Path, days: float | None = None) -> report.Judged:
    return report.of_files(load("lab"), directory, RULE, days, NOW)


def on_host(analysis: Analysis) -> Decision:
    problems = tuple(evidence.problems(analysis, now=NOW))
    return gate.decide(Findings(analysis.tally(), (), problems, analysis.causes()), RULE)


def strict(release: str = RELEASE, hours: float = 48) -> Analysis:
    end = round(NOW.timestamp() * 1000)
    return Analysis(Window(end - round(hours * 3_600_000), end, release))


def analysed(lines: list[Made], **window: Any) -> Analysis:
    analysis = strict(**window)
    for number, line in enumerate(lines, start=1):
        analysis.add(
            parse(signal_lines.encode(line).rstrip(b"\n")), "trades_20261126.jsonl", number
        )
    analysis.finish()
    return analysis


def made(n: int = 40, **more: Any) -> list[Made]:
    return list(signal_lines.lines(n, **{"end": NOW, **more}))


def without(lines: list[Made], rows: Any) -> list[Made]:
    for row in rows:
        del lines[row]["data"]["components"]["ml_error"]
    return lines


def rates(judged: Analysis | Decision) -> dict[str, tuple[int, int]]:
    decision = judged if isinstance(judged, Decision) else on_host(judged)
    return {one.name: (one.successes, one.trials) for one in decision.criteria}


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_healthy_lines_of_another_writer_pass(case: str) -> None:
    judged = of_files(CASES / case)
    assert (judged.decision.verdict, judged.decision.reasons) == (PASS, ())
    assert set(rates(judged.decision).values()) == {(45, 45)}
    opens = judged.document["opens_nothing"]
    assert opens == ["local files were analysed; only a host's own logs are evidence"]
    assert bool(judged.document["notes"]) == (case == "no-ml-error")


def test_fewer_days_than_the_inventory_asks_are_still_laxer() -> None:
    opens = of_files(CASES / "no-ml-error", days=1).document["opens_nothing"]
    assert "days laxer than in inventory lab" in opens


def test_on_a_host_a_release_in_another_style_is_the_reason() -> None:
    analysis = strict()
    analyse(ordered(CASES / "release-in-another-style"), analysis, workers=1)
    decision = on_host(analysis)
    assert decision.verdict == FAIL
    assert decision.reasons[0] == STYLE
    assert rates(decision)["ml_coverage"] == (0, 45), "they prove nothing and count against it"
    assert not any("not one signal line" in why for why in decision.reasons)


def test_the_guard_names_a_release_in_another_style_too(tmp_path: Path) -> None:
    order = {
        "release": RELEASE,
        "since": (NOW - timedelta(days=2)).timestamp(),
        "until": NOW.timestamp() + 1,
        "every_s": 3600.0,
        "rule": {**RULE.__dict__, "rule": "sequential"},
    }
    decision, _ = judging.evaluate(CASES / "release-in-another-style", order, NOW)
    assert (decision.verdict, decision.reasons[0]) == (FAIL, STYLE)
    signal_lines.write(tmp_path, iter(without(made(), range(40))))
    point = {**order, "rule": RULE.__dict__}
    assert judging.evaluate(tmp_path, point, NOW)[0].verdict == PASS, "no ml_error is no error"


def test_few_lines_in_another_style_are_the_reason_of_inconclusive() -> None:
    decision = on_host(analysed(made(5, release="v1.4.2")))
    assert decision.verdict == INCONCLUSIVE
    assert decision.reasons[0] == "5 lines name a release in another style (v1.4.2)"
    (one,) = made(1, release="v2")
    first = on_host(analysed([one])).reasons[0]
    assert first == "1 line names a release in another style (v2)"


def test_a_thousand_names_are_neither_told_nor_kept() -> None:
    lines = made(1000)
    for at, line in enumerate(lines):
        line["release"] = f"v{at}" + "x" * 200
    analysis = analysed(lines)
    (cause,) = analysis.causes()
    assert cause.count == 1000
    assert cause.words.endswith("...)")
    assert len(cause.words) < 200
    assert len(analysis._styles) == 4


def test_lines_of_the_writer_before_ours_count_only_inside_the_window() -> None:
    before = made(30, release="v1.4.2", end=NOW - timedelta(hours=3))
    ours = made(40, first_seq=31)
    assert rates(analysed([*before, *ours], hours=1))["ml_coverage"] == (40, 40)
    inside = on_host(analysed([*before, *ours]))
    assert rates(inside)["ml_coverage"] == (40, 70)
    assert inside.reasons[0] == "30 lines name a release in another style (v1.4.2)"


@pytest.mark.parametrize("damage", ["20260301T000100Z-0011aab", "20260301T000100Z-0011aabX"])
def test_one_damaged_name_in_files_of_ours_hides_no_bar(tmp_path: Path, damage: str) -> None:
    lines = made(40)
    lines[-1]["release"] = damage
    signal_lines.write(tmp_path, iter(lines))
    judged = of_files(tmp_path)
    assert judged.document["release"] == RELEASE
    assert rates(judged.decision)["ml_coverage"] == (39, 40)


def test_the_reason_is_what_most_bars_lack_evidence_for() -> None:
    broken = made(40)
    for line in broken[:30]:
        line["data"]["components"]["ml_error"] = "tft: broken"
    broken[35] = {**broken[35], "release": "v2"}
    decision = on_host(analysed(broken))
    assert decision.reasons[0].startswith("ML coverage 22.5 %"), "not the one line of another style"
    torn = analysed(made(10))
    for number in range(20):
        torn.add(parse(b'{"torn'), "trades_20261126.jsonl", 11 + number)
    torn.finish()
    assert on_host(torn).reasons[0] == "20 lines can't be read: not JSON"


def test_nothing_at_all_is_no_pass() -> None:
    decision = on_host(analysed([]))
    assert decision.verdict == INCONCLUSIVE
    assert "there are no lines" in decision.reasons


def test_healthy_lines_without_the_field_pass_on_a_host_too() -> None:
    analysis = analysed(without(made(), range(40)))
    decision = on_host(analysis)
    assert (decision.verdict, set(rates(decision).values())) == (PASS, {(40, 40)})
    assert analysis.lacks_ml_error == 40
    assert "no field ml_error" in report._lacking_ml_error(analysis)[0]
    assert report._lacking_ml_error(analysed(made())) == []


@pytest.mark.parametrize("name", ["ml_bull_prob", "ml_lgb_prob", "ml_lstm_prob", "ml_tft_prob"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_number_is_an_error_that_was_kept_quiet(name: str, value: Any) -> None:
    lines = without(made(), range(40))
    for line in lines[:10]:
        line["data"]["components"][name] = value
    analysis = analysed(lines)
    assert rates(analysis)["ml_coverage"] == (30, 40)
    document = analysis.document()
    assert document["errors"][0]["example"] == f"no number in {name}, and no field ml_error"
    for line in lines:
        line["data"]["components"].pop(name, None)
    assert on_host(analysed(lines)).verdict == FAIL


@pytest.mark.parametrize("rows", [range(1), range(8), range(32, 40), range(0, 40, 5)])
@pytest.mark.parametrize("others", [None, False, "", "tft: broken"])
def test_a_healthy_line_is_healthy_whatever_other_lines_have(rows: range, others: Any) -> None:
    """Many writers have the field only where there is an error."""
    lines = without(made(), rows)
    for number, line in enumerate(lines):
        if number not in rows:
            line["data"]["components"]["ml_error"] = others
    analysis = analysed(lines)
    assert rates(analysis)["ml_coverage"] == (len(rows) if others else 40, 40)
    assert analysis.lacks_ml_error == len(rows)
    assert analysis.document()["errors"] == (
        [] if not others else [{**analysis.document()["errors"][0], "example": others}]
    )


def test_a_bar_told_again_without_the_field_counts_once() -> None:
    again = without(made(20), range(20))
    for at, line in enumerate(again):
        line["seq"] = 21 + at
    analysis = analysed([*without(made(20), range(20)), *again])
    assert rates(analysis)["ml_coverage"] == (20, 20), "the same bars twice are no more evidence"
    assert rates(analysed([*made(20), *again]))["ml_coverage"] == (20, 20)


@given(st.sets(st.integers(0, 39), max_size=39))
def test_taking_the_field_hides_no_model_that_failed(rows: set[int]) -> None:
    def bad() -> list[Made]:
        lines = made()
        for line in lines[:5]:
            line["data"]["components"] |= {"ml_error": "tft: broken", "ml_tft_prob": None}
        return lines

    clean = rates(analysed(bad()))
    for name, (k, n) in rates(analysed(without(bad(), rows))).items():
        assert k * clean[name][1] <= clean[name][0] * n


def test_a_report_says_the_name_of_the_foreign_release() -> None:
    document = of_files(CASES / "release-in-another-style").document
    assert document["release"] == "v1.4.2"
    assert document["kind"] == report.KIND
