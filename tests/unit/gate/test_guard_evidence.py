"""The guard's verdict rests on evidence without holes, as the gate's does."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.gate import report
from macd.host.flag import guard_config
from macd.host.judge import gate, judging
from macd.host.layout import Layout
from macd.inventory import load
from tests.support import signal_lines
from tests.support.gate_rule import RULE

NOW = datetime(2026, 3, 3, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def verdict(live: Path, made: list[dict[str, Any]], *, rule: str = "point") -> tuple[str, str]:
    """Of a watch that began with the first line; a point rule has one start, the flip."""
    signal_lines.write(live, made)
    since = datetime.fromisoformat(made[0]["timestamp"]).timestamp() - 1
    hours = 24 if rule == "sequential" else 2
    order = {
        "release": str(made[0]["release"]),
        "since": since,
        "until": since + hours * 3600,
        "every_s": 7200.0,
        "rule": {**RULE.__dict__, "rule": rule},
    }
    decision, document = judging.evaluate(live, order, NOW)
    assert json.dumps(document)
    assert len(document["later"]) == (5 if rule == "sequential" else 0)
    return decision.verdict, "; ".join(decision.reasons)


def lines(end: datetime = NOW, **more: Any) -> list[dict[str, Any]]:
    return list(signal_lines.lines(25, end=end, every=HOUR, **more))


def test_whole_and_fresh_is_judged(tmp_path: Path) -> None:
    assert verdict(tmp_path, lines()) == (gate.PASS, "")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda made: made[:-20], "stale"),
        (lambda made: made[:10] + made[12:], "missing at"),
    ],
)
def test_holes_are_no_pass(tmp_path: Path, spoil: Any, reason: str) -> None:
    word, why = verdict(tmp_path, spoil(lines()))
    assert word == gate.INCONCLUSIVE
    assert reason in why


def test_what_fails_beyond_doubt_fails_in_spite_of_holes(tmp_path: Path) -> None:
    made = lines(ml_error="tft: broken")
    assert verdict(tmp_path, made[:10] + made[12:])[0] == gate.FAIL


BREAKS = (
    {"ml_error": "tft: broken"},
    {"ml_stacking_prob": None, "ml_stacking_mode": "off"},
    {"ml_tft_prob": None},
    {"ml_lstm_prob": 0.5},
)


def broken_late(good: int, bad: int, components: dict[str, Any]) -> list[dict[str, Any]]:
    made = list(signal_lines.lines(good + bad, end=NOW, every=HOUR))
    for line in made[good:]:
        line["data"]["components"].update(components)
    return made


@pytest.mark.parametrize("components", BREAKS)
def test_four_bad_bars_after_twenty_good_ones_fail(
    tmp_path: Path, components: dict[str, Any]
) -> None:
    """All 24 together would pass for a service with a bad moment: 20 of 24 is 83 %."""
    word, why = verdict(tmp_path, broken_late(20, 4, components), rule="sequential")
    assert word == gate.FAIL
    assert why.startswith("since 2026-03-03 08:59Z")
    assert "of 4), must exceed" in why


def test_a_bad_moment_of_late_is_no_break(tmp_path: Path) -> None:
    made = (
        broken_late(20, 2, BREAKS[0])
        + list(signal_lines.lines(24, end=NOW, every=HOUR, first_seq=1))[22:]
    )
    assert verdict(tmp_path, made, rule="sequential")[0] == gate.INCONCLUSIVE


def test_a_service_at_the_threshold_is_seldom_taken_back() -> None:
    """All starts at all looks together are wrong with 5 % at most, as one bound alone is."""
    rng, rule = random.Random(5), replace(RULE, rule="sequential")
    share = rule.share("ml_coverage")
    alpha = gate.ALPHA / judging.MOST
    wrong = 0
    known: dict[tuple[int, int, int], str] = {}

    def plan(of: tuple[int, int, int]) -> gate.Plan:
        return gate.Plan(24 - of[2], of[1] == 24 - of[2], alpha)

    for _ in range(1000):
        bars = [rng.random() < 0.8001 for _ in range(24)]
        looks = [
            (start, bars[start:look])
            for start in range(0, 24, 4)
            for look in range(start + 2, 25, 2)
        ]
        for start, part in looks:
            of = (sum(part), len(part), start)
            if of not in known:
                known[of] = gate.judge(share, *of[:2], rule, alpha, plan(of)).outcome
        wrong += any(known[sum(part), len(part), start] == gate.FAIL for start, part in looks)
    assert 0 < wrong <= 50


def test_the_last_look_passes_by_the_exact_bound_and_not_before(tmp_path: Path) -> None:
    """24 good bars prove 80 %; for 90 % it takes 29, however often one looks."""
    rule = replace(RULE, rule="sequential", stacking_activation=0.8, lstm_normal=0.8)
    made = list(signal_lines.lines(25, end=NOW, every=HOUR))
    signal_lines.write(tmp_path, made)
    watch = {
        "release": str(made[0]["release"]),
        "since": (NOW - 24 * HOUR).timestamp() - 1,
        "until": NOW.timestamp(),
        "every_s": 7200.0,
        "rule": rule.__dict__,
    }
    assert judging.evaluate(tmp_path, watch, NOW)[0].verdict == gate.PASS
    stricter = {**watch, "rule": {**rule.__dict__, "lstm_normal": 0.9}}
    assert judging.evaluate(tmp_path, stricter, NOW)[0].verdict == gate.INCONCLUSIVE
    longer = {**watch, "until": (NOW + 12 * HOUR).timestamp()}
    assert judging.evaluate(tmp_path, longer, NOW)[0].verdict == gate.INCONCLUSIVE


def test_old_reports_of_the_guard_go_those_of_the_watch_at_hand_stay(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    (tmp_path / "state/gate").mkdir(parents=True)
    (tmp_path / "state/gate/newest").write_text("{}")
    for hour in range(80):
        Path(guard_config.report_path(layout, NOW - hour * HOUR)).write_text("{}")
    for since, left in ((NOW - 70 * HOUR, 71), (NOW - 24 * HOUR, 50)):
        guard_config.prune(layout, {"since": since.timestamp()})
        assert len(guard_config.report_names(layout)) == left
    assert guard_config.report_names(layout)[-1] in guard_config.report_path(layout, NOW)
    assert (tmp_path / "state/gate/newest").exists()


def test_old_gate_reports_go_the_one_a_flag_was_set_by_stays(tmp_path: Path) -> None:
    inventory = load("lab").model_copy(update={"root": tmp_path})
    made = [report.directory_of(inventory, "prod", NOW + n * HOUR) for n in range(60)]
    for one in made:
        one.mkdir(parents=True)
        (one / report.NAME).write_text("{}")
    report.prune(inventory, "prod", {str(made[3].relative_to(inventory.state_dir))})
    assert sorted(p.name for p in made[0].parent.iterdir()) == [
        one.name for one in (made[3], *made[10:])
    ]
