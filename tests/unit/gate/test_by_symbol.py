"""A log of several symbols: each is judged by its own bars, and one verdict stands over all."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.cli.gate import report_lines, symbol_lines
from macd.errors import UsageError
from macd.gate import page
from macd.gate.report import of_files
from macd.host.flag import guard
from macd.host.judge import by_symbol, gate, judging, skill
from macd.host.judge.analyse import Window
from macd.host.judge.by_symbol import BySymbol
from macd.host.judge.parse import parse
from macd.inventory import load
from tests.support import signal_lines
from tests.support.gate_rule import RULE
from tests.unit.gate.test_judging import NOW, ORDER, judged

NAMES = ("BTCUSD", "ETHUSD", "LTCUSD")


def log(
    n: int, symbols: Sequence[str] = NAMES, without: Sequence[str] = (), **of: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A line a bar and symbol; `of` has what is put over the lines of a symbol."""
    each = [
        signal_lines.lines(n, end=NOW, every=timedelta(hours=1), seed=at, **of.get(name, {}))
        for at, name in enumerate(symbols)
    ]
    seq = itertools.count(1)
    for lines in zip(*each, strict=True):
        for name, line in zip(symbols, lines, strict=True):
            if name not in without:
                yield {**line, "symbol": name, "seq": next(seq)}


def report(tmp_path: Path, made: Iterator[dict[str, Any]], **rule: Any) -> dict[str, Any]:
    signal_lines.write(tmp_path, made)
    inventory = load("lab")
    wanted = gate.Rule(**{**RULE.__dict__, **rule})
    document = of_files(inventory, tmp_path, wanted, None, NOW).document
    return dict(json.loads(json.dumps(document)))


def test_pass_takes_a_pass_of_each(tmp_path: Path) -> None:
    document = report(tmp_path, log(25))
    assert document["verdict"] == "PASS"
    assert [(r["symbol"], r["verdict"], r["bars"]) for r in document["symbols"]] == [
        (name, "PASS", 25) for name in NAMES
    ]
    assert document["bars"] == 75
    assert document["findings"]["seq"]["breaks"] == []


def test_one_that_fails_is_named_first_and_fails_all(tmp_path: Path) -> None:
    document = report(tmp_path, log(25, LTCUSD={"ml_error": "tft: gone", "ml_tft_prob": None}))
    assert document["verdict"] == "FAIL"
    rows = document["symbols"]
    assert [(r["symbol"], r["verdict"]) for r in rows] == [
        ("LTCUSD", "FAIL"), ("BTCUSD", "PASS"), ("ETHUSD", "PASS"),
    ]  # fmt: skip
    assert any(why.startswith("LTCUSD: ML coverage 0.0 %") for why in document["reasons"])
    assert rows[0]["errors"][0]["count"] == 25


def test_a_stuck_model_of_one_symbol_does_not_hide_among_the_others(tmp_path: Path) -> None:
    names = [f"S{n}USD" for n in range(10)]
    document = report(tmp_path, log(25, names, S3USD={"ml_tft_prob": 0.5}))
    whole = {row["name"]: row["outcome"] for row in document["criteria"]}
    assert set(whole.values()) == {"PASS"}
    assert document["verdict"] == "FAIL"
    assert [r["symbol"] for r in document["symbols"] if r["verdict"] == "FAIL"] == ["S3USD"]
    (why,) = document["reasons"]
    assert why.startswith("S3USD: TFT normal 0.0 %")


def test_few_bars_of_one_symbol_are_no_evidence_about_it(tmp_path: Path) -> None:
    made = [line for at, line in enumerate(log(25)) if line["symbol"] != "ETHUSD" or at > 60]
    document = report(tmp_path, iter(made))
    assert document["verdict"] == "INCONCLUSIVE"
    first = document["symbols"][0]
    assert (first["symbol"], first["verdict"], first["bars"]) == ("ETHUSD", "INCONCLUSIVE", 5)
    assert document["more_bars"] == 15


def test_all_share_the_alpha(tmp_path: Path) -> None:
    read = BySymbol(Window(0, 1 << 60, None, strict=False), NAMES)
    alphas: list[float] = []

    def decide(part: Any, alpha: float) -> gate.Decision:
        alphas.append(alpha)
        return gate.Decision(gate.PASS, ())

    assert by_symbol.judge(read, decide, 0.05)[0].verdict == gate.PASS
    assert alphas == [pytest.approx(0.05 / 4)] * 4
    alone = BySymbol(Window(0, 1 << 60, None), NAMES[:1])
    alphas.clear()
    assert by_symbol.judge(alone, decide, 0.05)[1] == []
    assert alphas == [0.05]


def test_output_stays_short_and_one_symbol_can_be_looked_at(tmp_path: Path) -> None:
    names = [f"S{n:02}USD" for n in range(40)]
    document = report(tmp_path, log(22, names, S07USD={"ml_error": "lstm: it hangs"}))
    lines = report_lines(document)
    at = next(n for n, line in enumerate(lines) if "40 symbols: 39 PASS, 1 FAIL" in line)
    assert "S07USD" in lines[at + 1]
    assert lines[at + 9] == "      and 32 more"
    shown = symbol_lines(document, "S07USD")
    assert shown[0] == "✗ FAIL  S07USD, one of 40 symbols; over all: FAIL"
    assert any("lstm: it hangs" in line for line in shown)
    with pytest.raises(UsageError, match="--symbol NONE: not judged"):
        symbol_lines(document, "NONE")
    html = page.page(document)
    assert html.count("<td>S07USD") + html.count("S07USD</t") >= 1
    assert 'id="symbols"' in html


def test_the_guard_judges_each_symbol_and_the_report_names_it(tmp_path: Path) -> None:
    bad = {"ml_error": "tft: gone", "ml_tft_prob": None, "ml_bull_prob": None}
    signal_lines.write(tmp_path, log(25, [f"S{n}USD" for n in range(12)], S5USD=bad))
    names = [f"S{n}USD" for n in range(12)]
    decision, document = judging.evaluate(tmp_path, {**ORDER, "symbols": names}, NOW)
    assert decision.verdict == gate.FAIL
    assert any("S5USD: ML coverage" in why for why in decision.reasons)
    assert document["symbols"][0]["symbol"] == "S5USD"
    whole, _ = judging.evaluate(tmp_path, ORDER, NOW)  # as one symbol it would have gone on
    assert whole.verdict != gate.FAIL


def test_forty_symbols_fit_into_the_guards_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"S{n:02}USD" for n in range(40)]
    signal_lines.write(tmp_path, log(30, names))
    monkeypatch.setitem(ORDER, "symbols", names)
    verdict, _, rates, document = json.loads(judged(tmp_path))
    assert verdict in (gate.PASS, gate.INCONCLUSIVE)
    assert rates["ml_coverage"][1] == 40 * 27
    assert len(document["symbols"]) == 40


@pytest.mark.parametrize(
    ("symbols", "why"),
    [
        ({"BTCUSD": (30, False), "ETHUSD": (30, False)}, ""),
        (
            {"BTCUSD": (30, False), "ETHUSD": (4, False)},
            "4 of at least 20 bars of ETHUSD were",
        ),
        ({"BTCUSD": (30, True), "ETHUSD": (30, False)}, "BTCUSD is stale: no new bar is logged"),
    ],
)
def test_no_weight_is_raised_without_bars_of_every_symbol(
    symbols: dict[str, tuple[int, bool]], why: str
) -> None:
    rates = {name: [60, 60] for name in gate.TITLES}
    judged = judging.Judgement(gate.INCONCLUSIVE, (), rates, {}, symbols)
    assert guard._lacks({"rule": {"min_bars": 20}}, judged).removesuffix(" judged") == why


def test_drift_is_of_each_symbols_own_training() -> None:
    blocks = {"features": 40, "count": 20}
    usual = {"mean": 0.02, "spread": 0.001}
    expected = {"block": 168, "assets": {"ETHUSD": {**blocks, "outside": usual, "worst": usual}}}
    details = {"symbol": "BTCUSD", "symbols": {"BTCUSD": {}, "ETHUSD": {"drift": expected}}}
    window = Window(0, 1 << 60, None, strict=False)
    read = BySymbol(window, NAMES[:2])
    for line in log(10, NAMES[:2], ETHUSD={"ml_features_outside": 40, "ml_feature_worst": "x"}):
        read.add(parse(signal_lines.encode(line)), "x", 1)
    read.finish()
    decided = by_symbol.judge(read, lambda part, alpha: gate.Decision(gate.PASS, ()), 0.05)[1]
    parts = by_symbol.with_drift(decided, details)
    assert [(part.symbol, part.drift and part.drift.outcome) for part in parts] == [
        ("BTCUSD", None), ("ETHUSD", "drift"),
    ]  # fmt: skip
    worst = by_symbol.worst_drift(parts)
    assert worst is not None
    assert worst.text.startswith("ETHUSD: ")


def test_stakes_of_several_symbols_are_spread_over_them() -> None:
    """With bets on all symbols at a time, the first by name must not take all there is to stake."""

    def bars(symbols: Sequence[str]) -> list[skill.Scored]:
        made = []
        for at in range(400):
            close = 100 + math.sin(at * 0.7) * 3
            rises = math.sin((at + 5) * 0.7) > math.sin(at * 0.7)
            for name in symbols:
                made.append(
                    skill.Scored(name, "1h", at * 3_600_000, 3_600_000, close, "5h",
                                 0.4 if rises else 0.6, 0.6 if rises else 0.4)
                )  # fmt: skip
        return made

    one, many = (skill.judged(bars(names), skill.WORSE, 0.05) for names in (NAMES[:1], NAMES))
    assert one["against"]["mean"]["outcome"] == many["against"]["mean"]["outcome"] == skill.WORSE


@pytest.mark.parametrize(
    ("settings", "symbols"),
    [
        ('{"symbol": "A", "symbols": ["A", "B"]}', ("A", "B")),
        ('{"symbol": "A"}', ()),
        ("[]", ()),
        (None, ()),
    ],
)
def test_which_symbols_a_service_has(settings: str | None, symbols: tuple[str, ...]) -> None:
    assert by_symbol.served(settings) == symbols
