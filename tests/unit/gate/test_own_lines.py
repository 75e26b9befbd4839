"""Lines of an application of the team's own: what a map makes of them, and what counts as proof."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.gate import page
from macd.host.judge import gate, judging
from macd.host.judge import own as judge_own
from macd.host.judge.analyse import Window
from macd.host.judge.gate import FAIL, INCONCLUSIVE, PASS, Findings
from macd.host.judge.own import OwnAnalysis
from macd.host.judge.own_parse import Entry, moment, read
from macd.host.judge.parse import OTHER, SEVERE, SIGNAL, WARN, Bad
from macd.host.own import Rate, Signals
from macd.host.rpc.logs import LogFiles
from tests.support.gate_rule import RULE
from tests.support.their_app import Ports, app_section

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIVE = "20260301T000000Z-0123abcd"
MAP = app_section(Ports(8080, 8081))["signals"]["map"]
LGB = Rate("data.components.ml_lgb_prob", "coverage", "probability", 0.9, "warn")
SIGNALS = Signals("logs/live/trade_*.jsonl", "SIGNAL", MAP, {"lgb": LGB})


def line(at: datetime, symbol: str = "ETHUSDT", **change: Any) -> dict[str, Any]:
    wave = 0.5 + 0.001 * (at.hour + at.day)
    parts = dict.fromkeys(("bull", "stacking", "tft", "lstm", "lgb"), wave)
    components: dict[str, Any] = {f"ml_{name}_prob": p for name, p in parts.items()}
    components |= {"ml_error": None} | {k: v for k, v in change.items() if k.startswith("ml_")}
    document = {
        "timestamp": at.isoformat().replace("+00:00", "Z"),
        "level": "SIGNAL",
        "symbol": symbol,
        "bar_time": at.isoformat(),
        "data": {"components": components},
    }
    return document | {k: v for k, v in change.items() if not k.startswith("ml_")}


def hours(count: int, **change: Any) -> list[dict[str, Any]]:
    return [line(NOW - timedelta(hours=count - 1 - at), **change) for at in range(count)]


def epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def counted(
    documents: list[Any], signals: Signals = SIGNALS, since: datetime | None = None, **more: Any
) -> OwnAnalysis:
    start = 0 if since is None else round(since.timestamp() * 1000)
    without = tuple((epoch_ms(a), epoch_ms(b)) for a, b in more.get("without", ()))
    end, release = epoch_ms(NOW), more.get("release")
    window = Window(start, end, release, strict=False, without=without)
    made = OwnAnalysis(window, signals, "1h", more.get("most", 1000))
    for number, document in enumerate(documents, 1):
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        made.add(read(raw, signals), "f", number)
    made.finish()
    return made


def verdict(made: OwnAnalysis, signals: Signals = SIGNALS) -> gate.Decision:
    shares = judge_own.shares(signals, RULE)
    findings = Findings(made.tally(), causes=made.causes(), shares=shares, bars=made.bar_count)
    return gate.decide(findings, RULE)


@pytest.mark.parametrize(
    ("said", "epoch"),
    [
        ("2026-03-02T12:00:00Z", 1772452800000),
        ("2026-03-02T14:00:00+02:00", 1772452800000),
        ("2026-03-02 12:00:00,250", 1772452800250),  # as Python's logging has it
        ("2026-03-02 12:00:00 UTC", 1772452800000),
        (1772452800, 1772452800000),
        (1772452800.5, 1772452800500),
        (1772452800250, 1772452800250),
        (1772452800250000, 1772452800250),
        (1772452800250000000, 1772452800250),
        ("1772452800", 1772452800000),
        ("yesterday", None),
        ("", None),
        (None, None),
        (True, None),
        (float("nan"), None),
        (-5, None),
        ("9999999-01-01", None),
        pytest.param(10**400, None, id="huge"),
    ],
)
def test_a_time_in_any_usual_form(said: Any, epoch: int | None) -> None:
    assert moment(said) == epoch


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"timestamp": 1, "level": "signal"}, SIGNAL),
        ({"timestamp": 1, "level": "Error", "message": "broken"}, SEVERE),
        ({"timestamp": 1, "level": 50, "msg": "pino"}, SEVERE),
        ({"timestamp": 1, "levelname": "CRITICAL"}, SEVERE),
        ({"timestamp": 1, "severity": "warning"}, WARN),
        ({"timestamp": 1, "level": "TRADE"}, OTHER),
        ({"timestamp": 1}, OTHER),
        ({"time": "2026-03-02T12:00:00Z", "log": '{"timestamp": 1, "level": "SIGNAL"}\n'}, SIGNAL),
    ],
)
def test_a_line_by_its_level(document: dict[str, Any], kind: int) -> None:
    entry = read(json.dumps(document).encode(), SIGNALS)
    assert isinstance(entry, Entry)
    assert entry.kind == kind


def test_without_a_level_every_line_that_is_no_error_is_a_bar() -> None:
    signals = Signals("x", "", {"coverage": "p"})
    for raw, kind in ((b'{"ts": 1, "p": 0.5}', SIGNAL), (b'{"ts": 1, "level": "ERROR"}', SEVERE)):
        entry = read(raw, signals)
        assert isinstance(entry, Entry)
        assert entry.kind == kind


def test_dots_in_a_key_and_lists_are_found_too() -> None:
    signals = Signals("x", "", {"coverage": "a.b", "lstm": "p.1"})
    entry = read(b'{"ts": 1, "a.b": 0.4, "p": [0.1, 0.2]}', signals)
    assert isinstance(entry, Entry)
    assert entry.values == {"coverage": 0.4, "lstm": 0.2}


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["timestamp", "level", "data", "components", "ml_bull_prob", "log",
                             "ml_stacking_prob", "bar_time", "symbol", "ml_error", "ml_tft_prob"]),
            inner, max_size=6),
        max_leaves=12,
    ).map(lambda document: json.dumps(document).encode())
)  # fmt: skip
def test_no_line_raises_and_none_but_a_signal_counts(raw: bytes) -> None:
    made = counted([raw, line(NOW)])
    tally = made.tally()
    assert all(0 <= good <= trials for good, trials in tally.values())
    assert tally["ml_coverage"][1] <= 2
    json.dumps(made.document(), allow_nan=False)


def test_good_lines_pass() -> None:
    made = counted(hours(24))
    assert made.tally() == {
        name: (24, 24)
        for name in ("ml_coverage", "stacking_activation", "tft_normal", "lstm_normal", "lgb")
    }
    assert verdict(made).verdict == PASS
    assert verdict(counted(hours(19))).verdict == INCONCLUSIVE  # of at least 20


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"ml_bull_prob": None}, "ML coverage"),
        ({"ml_bull_prob": "0.5"}, "ML coverage"),
        ({"ml_bull_prob": 1.5}, "ML coverage"),
        ({"ml_error": "the model file is broken"}, "ML coverage"),
        ({"ml_stacking_prob": None}, "stacking activation"),
        ({"ml_stacking_prob": 1.0}, "stacking activation"),
        ({"ml_tft_prob": float("nan")}, "TFT normal"),
        ({"ml_lstm_prob": 0.51}, "LSTM normal"),  # stuck
    ],
)
def test_what_is_missing_fails_by_its_own_share(change: dict[str, Any], missed: str) -> None:
    decision = verdict(counted(hours(24, **change)))
    assert decision.verdict == FAIL
    failed = [row.title for row in decision.criteria if row.outcome == FAIL and row.trials]
    assert failed[0] == missed
    assert any(missed in reason for reason in decision.reasons)


def test_a_share_that_only_warns_blocks_nothing() -> None:
    decision = verdict(counted(hours(24, ml_lgb_prob=None)))
    assert decision.verdict == PASS
    assert [row.outcome for row in decision.criteria if row.name == "lgb"] == [FAIL]


def test_a_field_that_no_line_has_is_named() -> None:
    signals = Signals("x", "SIGNAL", {**MAP, "coverage": "data.ml_bull"}, {})
    decision = verdict(counted(hours(24), signals), signals)
    assert decision.verdict == FAIL
    assert "nothing in data.ml_bull of 24 lines" in decision.reasons


def test_a_line_that_cannot_be_read_counts_against_every_share() -> None:
    good = hours(24)
    made = counted([*good[:12], b"{torn", b"Traceback (most recent call last):", *good[12:]])
    assert made.tally()["ml_coverage"] == (24, 26)
    assert made.tally()["tft_normal"] == (24, 26)


def test_only_lines_since_the_release_went_live_count() -> None:
    bad = hours(48, ml_bull_prob=None)[:24]
    made = counted([*bad, b"{torn", *hours(24)], since=NOW - timedelta(hours=23))
    assert made.tally()["ml_coverage"] == (24, 25)  # the torn one may be of either
    assert made.document()["counts"]["lines before the window"] == 24


def test_lines_of_a_release_that_was_taken_back_count_for_nobody() -> None:
    tried = (NOW - timedelta(hours=9, minutes=5), NOW - timedelta(hours=5, minutes=55))
    lines: list[Any] = hours(30)
    lines[20:24] = [line(NOW - timedelta(hours=h), ml_bull_prob=None) for h in (9, 8, 7, 6)]
    lines[22:22] = [{**lines[22], "level": "ERROR", "message": "the candidate"}, b"{torn"]
    made = counted(lines, without=[tried])
    assert (made.elsewhere, made.bar_count, made.junk) == (5, 26, 0)
    assert verdict(made).verdict == PASS
    assert made.severe.document() == []
    assert made.whole.incomplete == 0, "bars of the trial are not missing"
    assert counted(lines).severe.document() != []


def test_a_release_that_is_mapped_has_to_be_the_live_one() -> None:
    signals = Signals("x", "SIGNAL", {**MAP, "release": "release"}, {})
    lines = [line(NOW - timedelta(hours=at), release=LIVE) for at in range(3)]
    other = [line(NOW - timedelta(hours=5), release="20260101T000000Z-0123abcd")]
    nameless = [line(NOW - timedelta(hours=6))]
    made = counted([*lines, *other, *nameless], signals, release=LIVE)
    assert made.tally()["ml_coverage"] == (3, 4)


def test_several_lines_about_a_bar_are_one_bar_as_good_as_the_worst() -> None:
    minutes = [
        {**line(NOW), "timestamp": (NOW + timedelta(seconds=n)).isoformat()} for n in range(60)
    ]
    made = counted(minutes)
    assert made.tally()["ml_coverage"] == (1, 1)
    assert made.tally()["lstm_normal"] == (1, 1)  # the same answer about the same bar is not stuck
    worse = counted([*minutes, line(NOW, ml_bull_prob=None)])
    assert worse.tally()["ml_coverage"] == (0, 1)
    both = counted([line(NOW, "A"), line(NOW, "B")])
    assert both.tally()["ml_coverage"] == (2, 2)


def test_missing_bars_are_holes_whatever_the_order() -> None:
    lines = hours(10)
    made = counted([*reversed(lines[:4]), *lines[6:]])
    assert made.whole.incomplete == 1
    assert counted(lines).whole.incomplete == 0


def test_lines_from_the_future_prove_nothing() -> None:
    made = counted([*hours(3), line(NOW + timedelta(hours=1))])
    assert made.future == 1
    assert made.tally()["ml_coverage"] == (3, 4)
    assert made.newest_signal is not None
    assert made.newest_signal.time == round(NOW.timestamp() * 1000)


def test_memory_is_bounded_and_nothing_is_forgiven_beyond_it() -> None:
    made = counted([*hours(5), *hours(8, ml_bull_prob=None)[:3]], most=5)
    assert made.tally()["ml_coverage"] == (5, 8)


@pytest.mark.parametrize(
    ("needs", "value", "good"),
    [
        ("number", 7.5, True),
        ("number", float("inf"), False),
        ("number", "7", False),
        ("probability", 1.0, True),
        ("probability", 1.1, False),
        ("value", "BUY", True),
        ("value", None, False),
    ],
)
def test_rates_of_the_team(needs: str, value: Any, good: bool) -> None:
    rate = Rate("x", "coverage", needs, 0.5, "block")
    signals = Signals("f", "SIGNAL", {"coverage": "p", "x": "deep.x"}, {"mine": rate})
    document = {"ts": 1772452800, "level": "SIGNAL", "p": 0.5, "deep": {"x": value}}
    assert counted([document], signals).tally()["mine"] == (int(good), 1)
    uncovered = {**document, "p": None}
    assert counted([uncovered], signals).tally()["mine"] == (0, 0)


def test_rates_in_a_circle_never_count() -> None:
    rates = {
        "a": Rate("p", "b", "number", 0.5, "block"),
        "b": Rate("p", "a", "number", 0.5, "block"),
    }
    signals = Signals("f", "", {}, rates)
    tally = counted([{"ts": 1, "p": 1}] * 3, signals).tally()
    assert tally["a"][0] == 0 or tally["b"][0] == 0


def test_nothing_that_blocks_is_no_pass() -> None:
    signals = Signals("f", "", {"time": "ts"}, {})
    decision = verdict(counted([{"ts": at} for at in range(30)], signals), signals)
    assert decision.verdict == INCONCLUSIVE
    assert any("no share blocks" in reason for reason in decision.reasons)


WATCH: dict[str, Any] = {
    "release": LIVE,
    "since": (NOW - timedelta(hours=26)).timestamp(),
    "until": (NOW + timedelta(hours=1)).timestamp(),
    "every_s": 7200.0,
    "rule": {k: v for k, v in RULE.__dict__.items() if k != "skill"} | {"rule": "sequential"},
    "own": {
        "files": SIGNALS.files, "level": "SIGNAL", "map": MAP, "rates": {"lgb": LGB.__dict__},
    },
    "details": {"tf": "1h"},
}  # fmt: skip


def logged(app: Path, lines: list[Any]) -> LogFiles:
    place = app / "logs/live"
    place.mkdir(parents=True, exist_ok=True)
    raws = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    (place / "trade_20260302.jsonl").write_bytes(b"\n".join(raws) + b"\n")
    return LogFiles(str(app), SIGNALS.files)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (hours(24), INCONCLUSIVE),  # sequential: too few for LSTM
        (hours(24, ml_bull_prob=None), FAIL),
        ([*hours(24), {"timestamp": NOW.isoformat(), "level": "FATAL", "message": "gone"}], FAIL),
        ([*hours(30)[:20], *hours(10, ml_bull_prob=None)], FAIL),
        ([], INCONCLUSIVE),
    ],
)
def test_the_guard_judges_by_the_same_rates(tmp_path: Path, lines: list[Any], said: str) -> None:
    files = logged(tmp_path, lines)
    judged = judging.judge(files, WATCH, NOW)
    assert judged.verdict == said, judged.reasons
    assert judged.document["drift"] is None
    if lines:
        assert "lgb" in judged.rates


def test_the_guard_leaves_out_what_another_release_wrote(tmp_path: Path) -> None:
    files = logged(tmp_path, [*hours(30)[:20], *hours(10, ml_bull_prob=None)])
    since = (NOW - timedelta(hours=9, minutes=1)).timestamp()
    assert judging.judge(files, WATCH, NOW).verdict == FAIL
    for until in (NOW.timestamp(), None):
        ran = [{"release": "B", "since": since, "until": until}]
        judged = judging.judge(files, {**WATCH, "others_ran": ran}, NOW)
        assert judged.verdict != FAIL
        assert judged.document["findings"]["counts"][judge_own.ELSEWHERE] == 10


def test_the_guard_reads_no_log_behind_a_link(tmp_path: Path) -> None:
    files = logged(tmp_path / "elsewhere", hours(24, ml_bull_prob=None))
    app = tmp_path / "app"
    (app / "logs").mkdir(parents=True)
    (app / "logs/live").symlink_to(tmp_path / "elsewhere/logs/live")
    judged = judging.judge(LogFiles(str(app), files.pattern), WATCH, NOW)
    assert (judged.verdict, judged.document["bars"]) == (INCONCLUSIVE, 0)
    assert judging.STALE in judged.reasons


def test_a_bad_line_of_any_kind_is_bad_not_an_error() -> None:
    raws = (
        b"\xff",
        b"[1]",
        b"{}",
        b'{"timestamp": "x"}',
        b"{" * 100_000,
        b'{"timestamp": 1' + b"0" * 500 + b"}",
    )
    assert all(isinstance(read(raw, SIGNALS), Bad) for raw in raws)


def test_the_page_of_such_a_report_says_what_was_not_judged() -> None:
    made = counted([*hours(24, ml_lgb_prob=None)])
    decision = verdict(made)
    document = {
        "kind": "gate-report", "host": "prod", "env": "prod", "release": LIVE, "bars": 24,
        "made": NOW.isoformat(), "expires": NOW.isoformat(), "window": {"from_ms": 0, "to_ms": 1},
        "rule": RULE.__dict__, **gate.document(decision), "meaning": "A PASS permits nothing.",
        "blockers": [], "manifest_sha256": "", "flags": {}, "notes": [], "replay": None,
        "drift": None, "logs": [], "findings": made.document(), "not_judged": "<golden>",
        "own": {"name": "theirs", "since": NOW.isoformat()},
    }  # fmt: skip
    html = page.page(document)
    assert "&lt;golden&gt;" in html
    assert "Fields that were not as needed" in html
    assert "warns only" in html
    # What there is none of is said in its place, and offered nowhere.
    assert 'id="skill"' in html
    assert 'href="#skill"' not in html
    assert 'href="#realised"' not in html
    # A report of an earlier version, about the built-in application, has none of it.
    for name in ("own", "not_judged"):
        del document[name]
    for row in document["criteria"]:
        del row["level"]
    earlier = page.page(document)
    assert "warns only" not in earlier
    assert 'href="#skill"' in earlier
    assert 'href="#realised"' in earlier
