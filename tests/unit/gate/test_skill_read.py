"""Skill from log lines to verdict: fields, the release's older logs, guard, inventory."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.cli.gate import report_lines
from macd.gate import evidence, logs, page, report
from macd.host.judge import gate, judging, reading, skill
from macd.host.judge.parse import Line, parse
from macd.inventory import load
from tests.support import signal_lines
from tests.support.gate_rule import RULE

NOW = datetime(2026, 3, 16, 12, tzinfo=UTC)
OLD = "20260201T000100Z-0011aabb"
WATCH: dict[str, Any] = {
    "release": signal_lines.RELEASE,
    "since": (NOW - timedelta(hours=20)).timestamp(),
    "until": (NOW + timedelta(hours=4)).timestamp(),
    "every_s": 7200.0,
    "skill": "worse",
    "rule": {k: v for k, v in RULE.__dict__.items() if k != "skill"} | {"rule": "sequential"},
}


def of(**components: Any) -> Line:
    line = next(signal_lines.lines(1, end=NOW, ml_avg_prob=0.4, ml_horizon="h12", **components))
    parsed = parse(signal_lines.encode(line))
    assert isinstance(parsed, Line)
    return parsed


def test_a_line_tells_of_mean_head_and_challenger() -> None:
    line = of(ml_challenger={"release": OLD, "avg": 0.3, "stacking": None})
    assert (line.average, line.head, line.challenger) == (0.4, "h12", (OLD, 0.3))
    assert of(ml_challenger={"release": OLD, "avg": 0.3, "stacking": 0.7}).challenger == (OLD, 0.7)
    bar = skill.scored(line)
    assert bar is not None
    assert (bar.mean, bar.challenger, bar.release) == (0.4, 0.3, OLD)


@pytest.mark.parametrize(
    "odd",
    [
        {"ml_challenger": {"release": OLD, "error": "it did not load"}},
        {"ml_challenger": {"release": "\x1b[2J", "avg": 0.3}},
        {"ml_challenger": [1]},
        {"ml_challenger": {"release": OLD, "avg": "0.3", "stacking": 7.5}},
    ],
)
def test_what_is_no_challenger_harms_nothing(odd: dict[str, Any]) -> None:
    assert of(**odd).challenger is None
    assert skill.scored(of(**odd)) is not None


@pytest.mark.parametrize(
    "odd",
    [{"ml_error": "tft: NaN"}, {"ml_horizon": 12}, {"ml_stacking_prob": None}, {"close": None}],
)
def test_a_bar_without_both_numbers_or_with_an_error_is_not_compared(odd: dict[str, Any]) -> None:
    line = next(signal_lines.lines(1, end=NOW, **{"ml_avg_prob": 0.4, "ml_horizon": "5h", **odd}))
    parsed = parse(signal_lines.encode(line))
    assert isinstance(parsed, Line)
    assert skill.scored(parsed) is None


def test_a_report_judges_all_bars_of_the_release_and_its_page_says_so(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.skilled(330, end=NOW))
    judged = report.of_files(load("lab"), tmp_path, RULE, 2.0, NOW)
    document = json.loads(json.dumps(judged.document))
    assert document["verdict"] == gate.FAIL
    assert document["bars"] < 60  # the rates are about two days
    row = document["skill"]["against"]["mean"]
    assert (row["outcome"], row["n"]) == ("worse", 325)
    said = "\n".join(report_lines(document))
    assert "stacking is proved worse than the mean of the models" in said
    assert document["meaning"] in " ".join(said.split())
    assert max(map(len, said[said.index("  means") :].partition("\n\n")[0].splitlines())) <= 100
    html = page.page(document)
    assert "Log score of stacking minus that of the other forecast" in html
    assert document["meaning"] in html
    older = {name: part for name, part in document.items() if name not in ("skill", "meaning")}
    assert page.page(older)  # of an earlier version
    assert report_lines(older)


def test_a_report_without_skill_can_not_enable_stacking_where_the_inventory_wants_it(
    tmp_path: Path,
) -> None:
    signal_lines.write(tmp_path, signal_lines.skilled(330, end=NOW))
    judged = report.of_files(load("lab"), tmp_path, replace(RULE, skill="off"), 2.0, NOW)
    assert judged.document["verdict"] == gate.PASS
    assert any("skill laxer than" in why for why in judged.document["blockers"])


def test_the_guard_goes_on_from_the_release_s_first_bar(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.skilled(330, end=NOW))
    decision, document = judging.evaluate(tmp_path, WATCH, NOW)
    assert document["skill"]["against"]["mean"]["n"] == 325
    assert document["skill"]["against"]["mean"]["alpha"] == gate.ALPHA / 6
    assert decision.verdict == gate.FAIL
    assert any("proved worse" in reason for reason in decision.reasons)


def test_the_watch_of_an_earlier_version_says_nothing_of_skill(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.skilled(330, end=NOW))
    old = {name: value for name, value in WATCH.items() if name != "skill"}
    decision, document = judging.evaluate(tmp_path, old, NOW)
    assert document["skill"]["setting"] == "off"
    assert decision.verdict != gate.FAIL


def test_bars_of_another_release_are_not_compared(tmp_path: Path) -> None:
    signal_lines.write(tmp_path, signal_lines.skilled(330, end=NOW, release=OLD))
    _, document = judging.evaluate(tmp_path, WATCH, NOW)
    assert document["skill"]["against"] == {}


def test_the_older_logs_are_those_since_the_release_was_made_as_far_as_there_is_room(
    tmp_path: Path,
) -> None:
    logs = [
        reading.Source(tmp_path / f"trades_202603{day:02}.jsonl", 10 << 20) for day in range(1, 21)
    ]
    earlier = reading.before(logs, logs[18:], signal_lines.RELEASE)
    assert [source.name for source in earlier] == [
        f"trades_202603{day}.jsonl" for day in range(13, 19)
    ]
    assert reading.before(logs, logs[18:], "20260317T000000Z-0011aabb") == logs[16:18]
    assert reading.before(logs, logs, signal_lines.RELEASE) == []


@pytest.mark.parametrize(("written", "read"), [("off", "off"), ("better", "better")])
def test_off_needs_no_quotes_in_an_inventory(tmp_path: Path, written: str, read: str) -> None:
    hosts = "hosts: {prod: {role: serve, env: prod, ssh: p, app_dir: /opt/macd-analysis}}"
    (tmp_path / "inventory").mkdir()
    text = f"{hosts}\ngate:\n  skill: {written}\n"
    (tmp_path / "inventory" / "mine.yml").write_text(text, "utf-8")
    assert load("mine", root=tmp_path).gate.skill == read


def test_older_logs_that_were_replaced_are_no_evidence(tmp_path: Path) -> None:
    names = tuple(f"trades_202603{day:02}.jsonl" for day in range(1, 11))
    for name in names:
        (tmp_path / name).write_bytes(b"{}\n")
    pulled = logs.Pulled(tmp_path, 0, names, replaced=(names[3],))
    chosen = [reading.Source(tmp_path / name, 3) for name in names[7:]]
    earlier = evidence.earlier(pulled, chosen, signal_lines.RELEASE)
    assert [source.name for source in earlier] == [*names[:3], *names[4:7]]
    assert evidence.earlier(pulled, chosen, None) == []
