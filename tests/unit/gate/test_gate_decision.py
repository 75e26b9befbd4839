"""From lines to a verdict: each way to fail, to be unsure, and no damage that makes it pass."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macd.gate import evidence
from macd.host.judge import gate
from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.gate import FAIL, INCONCLUSIVE, PASS, Decision, Findings, Rule
from macd.host.judge.parse import parse, step_ms
from tests.support import signal_lines
from tests.support.gate_rule import RULE
from tests.support.signal_lines import RELEASE

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
START = NOW - timedelta(days=2)
OTHER = "20260101T000000Z-ffffffff"

Made = dict[str, Any]


def made(n: int = 40, **more: Any) -> list[Made]:
    return list(signal_lines.lines(n, end=NOW, **more))


def changed(lines: list[Made], rows: Iterable[int], **components: Any) -> list[Made]:
    for row in rows:
        lines[row]["data"]["components"].update(components)
    return lines


def analysed(lines: Iterable[Made | bytes], **window: Any) -> Analysis:
    analysis = Analysis(
        Window(
            round(START.timestamp() * 1000),
            round(NOW.timestamp() * 1000),
            **{"release": RELEASE, **window},
        )
    )
    for number, line in enumerate(lines, start=1):
        raw = line if isinstance(line, bytes) else signal_lines.encode(line).rstrip(b"\n")
        analysis.add(parse(raw), "trades_20260302.jsonl", number)
    analysis.finish()
    return analysis


def judged(lines: Iterable[Made | bytes], rule: Rule | None = None, **window: Any) -> Decision:
    analysis = analysed(lines, **window)
    json.dumps(analysis.document(), allow_nan=False)
    severe = tuple(one["example"] for one in analysis.severe.document())
    problems = tuple(evidence.problems(analysis, now=NOW))
    return gate.decide(Findings(analysis.tally(), severe, problems), rule or RULE)


def rates(decision: Decision) -> dict[str, tuple[int, int]]:
    return {one.name: (one.successes, one.trials) for one in decision.criteria}


def test_good_lines_pass() -> None:
    decision = judged(made())
    assert (decision.verdict, decision.reasons) == (PASS, ())
    assert set(rates(decision).values()) == {(40, 40)}


@pytest.mark.parametrize("mode", ["shadow", "live"])
def test_both_modes_are_activation_and_off_is_not(mode: str) -> None:
    assert judged(made(ml_stacking_mode=mode)).verdict == PASS
    off = made(ml_stacking_mode="off", ml_stacking_prob=None, ml_stacking_skipped_reason="n_oof 3")
    decision = judged(off)
    assert decision.verdict == FAIL
    assert rates(decision)["stacking_activation"] == (0, 40)
    assert analysed(off).document()["not_activated"][0]["example"] == "n_oof 3"


def test_a_share_must_be_exceeded_not_reached() -> None:
    # 32 of 40 is 80 %
    assert judged(changed(made(), range(8), ml_error="tft: broken")).verdict == FAIL
    assert judged(changed(made(), range(7), ml_error="tft: broken")).verdict == PASS


@pytest.mark.parametrize(
    ("components", "name"),
    [
        ({"ml_bull_prob": None}, "ml_coverage"),
        ({"ml_bull_prob": math.nan}, "ml_coverage"),
        ({"ml_bull_prob": 1.5}, "ml_coverage"),
        ({"ml_error": "lstm: RuntimeError: 3"}, "ml_coverage"),
        ({"ml_stacking_prob": None}, "stacking_activation"),
        ({"ml_stacking_prob": math.inf}, "stacking_activation"),
        ({"ml_stacking_mode": "perhaps"}, "stacking_activation"),
        ({"ml_tft_prob": 0.0}, "tft_normal"),
        ({"ml_tft_prob": math.nan}, "tft_normal"),
        ({"ml_tft_prob": None}, "tft_normal"),
        ({"ml_tft_prob": 0.5}, "tft_normal"),
        ({"ml_lstm_prob": 1.0}, "lstm_normal"),
        ({"ml_lstm_prob": -0.1}, "lstm_normal"),
    ],
)
def test_each_criterion_fails_by_itself(components: dict[str, Any], name: str) -> None:
    decision = judged(changed(made(), range(12), **components))
    assert decision.verdict == FAIL
    missed = [one.name for one in decision.criteria if one.outcome == FAIL]
    assert missed == [name]
    assert rates(decision)[name] == (28, 40)


def test_a_model_that_answers_a_constant_is_stuck_even_with_a_little_noise() -> None:
    lines = made()
    for row, line in enumerate(lines):
        line["data"]["components"]["ml_tft_prob"] = 0.4711 + 1e-8 * (row % 3)
    decision = judged(lines)
    assert rates(decision)["tft_normal"] == (0, 40)
    # four equal answers in a row are luck, five are not
    assert judged(changed(made(), range(10, 14), ml_lstm_prob=0.6)).verdict == PASS
    five = judged(changed(made(), range(10, 15), ml_lstm_prob=0.6))
    assert rates(five)["lstm_normal"] == (35, 40)


def test_a_constant_is_stuck_however_few_the_bars() -> None:
    decision = judged(made(3, ml_tft_prob=0.5), replace(RULE, min_bars=3))
    assert (decision.verdict, rates(decision)["tft_normal"]) == (FAIL, (0, 3))


def test_severe_errors_fail_at_once() -> None:
    line = {"timestamp": "2026-03-02T12:00:00Z", "level": "CRITICAL", "seq": 41}
    lines = [*made(), {**line, "release": RELEASE, "data": {"message": "disk is gone"}}]
    decision = judged(lines)
    assert decision.verdict == FAIL
    assert decision.reasons == ("severe error: disk is gone",)
    few = changed(made(3), [2], ml_error="golden: differ by 0.2", ml_bull_prob=None)
    assert judged(few).verdict == FAIL


def test_too_few_bars_say_how_many_more() -> None:
    decision = judged(made(13))
    assert (decision.verdict, decision.more_bars) == (INCONCLUSIVE, 7)
    assert judged([]).verdict == INCONCLUSIVE
    assert judged([]).more_bars == 20
    # a bad rate of too few bars decides nothing either
    assert judged(made(13, ml_error="all: broken")).verdict == INCONCLUSIVE


def test_the_sequential_rule_waits_for_68_good_bars_and_fails_early() -> None:
    rule = replace(RULE, rule="sequential")
    assert judged(made(68), rule).verdict == PASS
    decision = judged(made(67), rule)
    assert (decision.verdict, decision.more_bars) == (INCONCLUSIVE, 1)
    assert judged(made(30), rule).more_bars == 38
    assert judged(made(12, ml_tft_prob=0.5), rule).verdict == FAIL


@pytest.mark.parametrize("missing", [[5], [0, 1], list(range(20, 30))])
def test_a_gap_in_seq_is_named(missing: list[int]) -> None:
    lines = [line for at, line in enumerate(made(60)) if at + 1 not in missing]
    decision = judged(lines[: len(lines) - 0])
    if missing == [0, 1]:
        assert "the window begins before the first line, whose seq is 2" in decision.reasons
        return
    assert decision.verdict == INCONCLUSIVE
    assert decision.reasons[0].startswith(f"gap: seq {missing[0]} to {missing[-1]} are missing")
    assert len(decision.reasons) == 2, "and the bars of these lines"


def test_lines_before_the_window_prove_its_beginning() -> None:
    early = list(signal_lines.lines(5, end=START - timedelta(hours=1), first_seq=100))
    decision = judged([*early, *made(first_seq=105)])
    assert (decision.verdict, rates(decision)["ml_coverage"]) == (PASS, (40, 40))
    without = judged(made(first_seq=105))
    assert without.reasons == ("the window begins before the first line, whose seq is 105",)


def test_a_gap_before_the_window_is_no_matter() -> None:
    early = list(signal_lines.lines(5, end=START - timedelta(hours=1), first_seq=100))
    assert judged([*early[:2], *early[3:], *made(first_seq=105)]).verdict == PASS


def test_a_repeat_is_named() -> None:
    lines = made()
    decision = judged([*lines[:20], lines[19], *lines[20:]])
    assert decision.verdict == INCONCLUSIVE
    assert decision.reasons[0].startswith("repeat: seq 20 comes after 20")


def test_only_bars_of_the_live_release_count() -> None:
    before = made(30, release=OTHER, ml_error="old: broken")
    decision = judged([*before, *made(25, first_seq=31)])
    assert (decision.verdict, rates(decision)["ml_coverage"]) == (PASS, (25, 25))
    after = judged([*made(25), *made(25, first_seq=26, release=OTHER)])
    assert after.reasons == (f"the newest line is of release {OTHER}",)


def test_another_release_in_between_would_hide_bars() -> None:
    lines = changed(made(), range(8), ml_error="broken")
    for row in range(4, 8):
        lines[row]["release"] = OTHER
    decision = judged(lines)
    assert decision.verdict == INCONCLUSIVE
    assert "stands between lines of the live" in decision.reasons[0]
    assert "no PASS before it has left the window, at 20" in decision.reasons[0]


def test_lines_without_seq_or_release_are_never_evidence_but_are_for_files() -> None:
    lines = made()
    for line in lines:
        del line["seq"], line["release"]
    assert judged(lines).verdict == INCONCLUSIVE
    decision = judged(lines, release=None, strict=False)
    assert decision.verdict == PASS
    counts = analysed(lines, release=None, strict=False).document()["counts"]
    assert counts["without seq or release"] == 40


def test_a_line_of_the_release_without_its_seq_is_a_bar_without_evidence() -> None:
    """32 of 40 are good whatever is done to the numbers of the others: 80 % is not more."""
    lines = changed(made(), range(8), ml_error="tft: broken")
    for line in lines[:8]:
        del line["seq"]
    decision = judged(lines)
    assert decision.verdict == FAIL
    assert set(rates(decision).values()) == {(32, 40)}
    document = analysed(lines).document()
    assert document["not_activated"][0]["count"] == document["counts"]["bars without seq"] == 8
    assert document["malformed"]["counted_as_bars"] == 0
    severe = {**lines[0], "level": "CRITICAL", "data": {"message": "disk is gone"}}
    assert "severe error: disk is gone" in judged([*lines[8:], severe]).reasons


@given(rows=st.sets(st.integers(0, 39)))
def test_taking_numbers_away_never_raises_a_rate(rows: set[int]) -> None:
    clean = rates(judged(changed(made(), range(5), ml_error="tft: broken")))
    lines = changed(made(), range(5), ml_error="tft: broken")
    for row in rows:
        del lines[row]["seq"]
    for name, (k, n) in rates(judged(lines)).items():
        assert k * clean[name][1] <= clean[name][0] * n


def test_stale_lines_and_lines_of_the_future() -> None:
    old = list(signal_lines.lines(40, end=NOW - timedelta(hours=4)))
    assert judged(old).reasons == ("stale: the newest bar was logged 4 h ago",)
    ahead = list(signal_lines.lines(40, end=NOW + timedelta(hours=4)))
    decision = judged(ahead)
    assert decision.verdict == FAIL, "they prove nothing and are bars"
    assert any("written in the future" in why for why in decision.reasons)


def test_each_malformed_line_is_a_bar_without_evidence() -> None:
    junk = [b"\x00\xff", b"{", b"[" * 5000, b'"x"', b"{}"]
    lines: list[Made | bytes] = [*made()]
    # what can't be read may have been the worst of bars, so it counts against every share
    decision = judged([*lines[:20], *junk, *lines[20:]])
    assert set(rates(decision).values()) == {(40, 45)}
    assert judged([*lines[:20], *junk, *junk, *lines[20:]]).verdict == FAIL
    malformed = analysed([*lines[:20], *junk, *lines[20:]]).document()["malformed"]
    assert malformed["count"] == malformed["counted_as_bars"] == 5
    assert malformed["quarantine"][0] == {
        "file": "trades_20260302.jsonl",
        "line": 21,
        "why": "not UTF-8",
    }


def test_junk_among_lines_that_are_no_evidence_is_only_counted() -> None:
    lines: list[Made | bytes] = [*made(10, release=OTHER), b"junk", *made(10, release=OTHER)]
    for at, line in enumerate(lines):
        if isinstance(line, dict):
            line["seq"] = at + 1
    analysis = analysed([*lines, *made(25, first_seq=22)])
    assert (analysis.malformed, analysis.junk) == (1, 0)
    assert (analysed([b"junk", b"junk"]).junk, analysed([*made(3), b"junk"]).junk) == (2, 1)


def test_a_bar_told_again_counts_once_while_all_is_well() -> None:
    again = made(20)
    for at, line in enumerate(again):
        line["seq"] = 41 + at
    assert rates(judged([*made(), *again]))["ml_coverage"] == (40, 40)
    bad = changed(again, range(20), ml_error="broken")
    assert rates(judged([*made(), *bad]))["ml_coverage"] == (40, 60)


def test_timeframes() -> None:
    assert [step_ms(tf) for tf in ("1h", "15m", "1d")] == [3_600_000, 900_000, 86_400_000]
    assert [step_ms(tf) for tf in ("", "h", "1w", "-1h", "²h", "1e9h")] == [0] * 6


@pytest.mark.parametrize("rule", ["point", "sequential"])
@pytest.mark.parametrize("min_bars", [0, pytest.param(1, marks=pytest.mark.full), 3])
def test_pass_is_only_where_every_share_was_tried_and_passed(
    rule: str, min_bars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "judge", lru_cache(None)(gate.judge))  # few differ
    thresholds = {"ml_coverage": 0.0, "stacking_activation": 0.4, "tft_normal": 0.5}
    asked = Rule(**thresholds, lstm_normal=1.0, min_bars=min_bars, rule=rule)
    lower = Rule(**thresholds, lstm_normal=0.1, min_bars=min_bars, rule=rule)
    pairs = [(k, n) for n in range(3) for k in range(n + 1)] + [(40, 40)]
    passed = 0
    for tally in itertools.product(pairs, repeat=4):
        for one in (asked, lower):
            decision = gate.decide(Findings(dict(zip(gate.TITLES, tally, strict=True))), one)
            good = all(criterion.outcome == PASS for criterion in decision.criteria)
            assert (decision.verdict == PASS) == (good and tally[0][1] >= min_bars)
            assert (decision.verdict == PASS) == (not decision.reasons)
            assert decision.verdict != PASS or all(n for _, n in tally)
            passed += decision.verdict == PASS
    assert passed


def test_a_share_that_nothing_was_tried_of_is_named() -> None:
    tally = {name: (40, 40) for name in gate.TITLES}
    decision = gate.decide(Findings({**tally, "tft_normal": (0, 0)}), RULE)
    assert (decision.verdict, decision.reasons) == (INCONCLUSIVE, ("TFT normal: nothing to judge",))
    assert decision.more_bars > 0
    nothing = dict.fromkeys(gate.TITLES, (0, 0))
    assert gate.decide(Findings(nothing), replace(RULE, min_bars=0)).verdict == INCONCLUSIVE


def spoil(raw: bytes, rng: random.Random) -> bytes:
    """One line damaged the ways disks, editors, writers and strangers damage lines."""
    at = rng.randrange(len(raw))
    return rng.choice(
        (
            lambda: raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :],
            lambda: raw[:at] + raw[at + 1 :],
            lambda: raw[:at] + rng.randbytes(3) + raw[at:],
            lambda: raw[:at],
            lambda: raw[at:],
            lambda: raw + raw,
            lambda: raw[:-1] + b',"seq":1}',
            lambda: raw[:-3] + b',"ml_error":null,"ml_bull_prob":0.5}}}',
            lambda: raw.replace(b'"ml_error"', b'"ml_errox"'),
            lambda: raw.replace(b"SIGNAL", b"SIGNAM"),
            lambda: raw.replace(b'"seq"', b'"seQ"'),
            lambda: raw.replace(b'"seq":', b'"seq":null,"was":'),
            lambda: raw.replace(b"2026-", b"2016-"),
            lambda: raw.replace(b'"bar_time":"2019-01-0', b'"bar_time":"2019-01-1'),
            lambda: raw.replace(b"0.", rng.choice((b"NaN", b"1e999", b"00.", b"-0.")), 2),
            lambda: raw.replace(b'"data":', b'"data":' + b'{"data":' * rng.randrange(1, 3000)),
            lambda: raw.replace(b":", rng.choice((b" :", b":[", b"::")), 3),
            lambda: raw[:at] + b"\n" + raw[at:],
            lambda: b"\xef\xbb\xbf" + raw,
            lambda: rng.randbytes(at),
        )
    )()


BAD = (
    {"ml_error": "tft: RuntimeError: broken"},
    {"ml_bull_prob": None, "ml_error": "features: KeyError: volume"},
    {"ml_stacking_prob": None, "ml_stacking_mode": "off"},
    {"ml_tft_prob": None},
    {"ml_lstm_prob": None},
)


@pytest.mark.parametrize("examples", [40, pytest.param(800, marks=pytest.mark.full)])
def test_hundreds_of_damaged_lines_neither_crash_nor_make_a_bad_service_pass(
    examples: int,
) -> None:
    spoilt = 0
    text = json.dumps(made(50))

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32), st.sampled_from(BAD), st.sampled_from((0.03, 0.3, 1.0)))
    def damaged(seed: int, bad: dict[str, Any], share: float) -> None:
        nonlocal spoilt
        rng = random.Random(seed)
        # 40 of 50 covered would be just too few. There are some to spare, since damage that leaves
        # a line readable may take its bar out of these, or the name of its ml_error.
        lines = changed(json.loads(text), rng.sample(range(50), 13), **bad)
        raws = []
        for line in lines:
            raw = signal_lines.encode(line).rstrip(b"\n")
            if rng.random() < share:
                raw = spoil(raw, rng)
                spoilt += 1
            raws += raw.split(b"\n")
        decision = judged([raw for raw in raws if raw.strip()])
        assert decision.verdict != PASS, raws

    damaged()
    assert spoilt >= examples * 12


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=60)), max_size=20))
def test_junk_never_raises_a_rate(junk: list[tuple[int, bytes]]) -> None:
    lines: list[Made | bytes] = [*changed(made(), range(5), ml_tft_prob=None)]
    clean = rates(judged(lines))
    for at, raw in junk:
        lines.insert(at, raw.replace(b"\n", b"?"))
    dirty = rates(judged([line for line in lines if not isinstance(line, bytes) or line.strip()]))
    for name, (k, n) in dirty.items():
        assert k * clean[name][1] <= clean[name][0] * n
