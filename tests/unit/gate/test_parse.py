"""One line at a time: what is read, what is refused and why, and that nothing raises."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.judge.parse import LONGEST, OTHER, SEVERE, SIGNAL, WARN, Bad, Line, clean, parse
from tests.support import signal_lines

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def good(**components: Any) -> dict[str, Any]:
    return next(signal_lines.lines(1, end=NOW, **components))


def read(document: Any) -> Line:
    made = parse(json.dumps(document).encode())
    assert isinstance(made, Line), made
    return made


def refused(raw: bytes | dict[str, Any]) -> str:
    made = parse(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    assert isinstance(made, Bad), made
    return made.why


def test_a_signal_line() -> None:
    document = good()
    line = read(document)
    parts = document["data"]["components"]
    assert (line.kind, line.seq, line.release) == (SIGNAL, 1, signal_lines.RELEASE)
    assert (line.symbol, line.tf, line.mode, line.error) == ("BTCUSD", "1h", "shadow", "")
    assert line.time == 1772452800000
    assert line.bar == 1546304400000
    assert (line.p, line.tft) == (parts["ml_bull_prob"], parts["ml_tft_prob"])
    assert line.heads is not None
    assert line.heads[3:6] == tuple(parts["ml_heads"]["lstm"].values())


@pytest.mark.parametrize(
    ("position", "held"),
    [
        ({"side": "long", "size": 1.0, "bars_left": 5}, 1.0),
        ({"side": "short", "size": 0.25, "bars_left": 5}, -0.25),
        ({"side": "flat", "size": 0.0, "bars_left": 0}, 0.0),
        ({"side": "long", "size": 1}, 1.0),
        ({"side": "up", "size": 1.0}, None),
        ({"side": ["long"], "size": 1.0}, None),
        ({"side": "long", "size": 1.5}, None),
        ({"side": "long", "size": float("nan")}, None),
        ({"side": "long", "size": "1"}, None),
        ({"side": "long"}, None),
        ("long", None),
        (None, None),
    ],
)
def test_the_position_and_what_is_none(position: Any, held: float | None) -> None:
    document = good()
    document["data"]["position"] = position
    assert read(document).held == held


@pytest.mark.parametrize("where", ["top", "data"])
def test_earlier_layouts(where: str) -> None:
    parts = good()["data"]["components"]
    stamp = {"timestamp": "2025-11-02 08:00:00"}
    flat = {"action_taken": "BUY", **parts}
    line = read({**stamp, **flat} if where == "top" else {**stamp, "data": flat})
    assert (line.kind, line.seq, line.release, line.p) == (
        SIGNAL,
        None,
        None,
        parts["ml_bull_prob"],
    )
    assert line.time == 1762070400000, "a time without a zone is UTC"


@pytest.mark.parametrize("inner", ["components", "data"])
def test_each_field_is_read_where_it_stands(inner: str) -> None:
    """Some at the top level, the rest further in; the innermost counts where both say something."""
    parts = good()["data"]["components"]
    top = {name: parts.pop(name) for name in ("ml_bull_prob", "ml_tft_prob", "ml_heads")}
    data = {"action_taken": "BUY", **({"components": parts} if inner == "components" else parts)}
    line = read({"timestamp": "2025-11-02 08:00:00", **top, "data": data})
    assert (line.kind, line.p, line.tft) == (SIGNAL, top["ml_bull_prob"], top["ml_tft_prob"])
    assert (line.lstm, line.mode) == (parts["ml_lstm_prob"], "shadow")
    assert line.heads is not None
    assert read({**good(ml_tft_prob=0.75), "ml_tft_prob": 0.25}).tft == 0.75
    assert read({**good(ml_tft_prob=None), "ml_tft_prob": 0.25}).tft is None


def test_an_error_in_any_place_is_an_error_and_none_told_stays_none_told() -> None:
    assert read({**good(), "ml_error": "tft: broken"}).error == "tft: broken"
    assert read({**good(ml_error="lstm: broken"), "ml_error": None}).error == "lstm: broken"
    assert read({**good(), "ml_error": True}).error == "(bool)"
    line = good()
    del line["data"]["components"]["ml_error"]
    assert read({**line, "close": 4.0}).lacks_ml_error
    assert not read({**line, "ml_error": None}).lacks_ml_error


def test_numbers_as_times_and_small_levels_are_only_earlier_versions() -> None:
    line = good()
    for field in ("seq", "release"):
        earlier = {name: value for name, value in line.items() if name != field}
        for stamp in (1772452800, 1772452800.0, 1772452800000, 1772452800 * 10**9):
            made = read({**earlier, "level": "signal", "timestamp": stamp, "bar_time": stamp})
            assert (made.kind, made.time, made.bar) == (SIGNAL, 1772452800000, 1772452800000)
        for stamp in (True, math.nan, math.inf, -5, 1e23):
            assert "timestamp" in refused({**earlier, "timestamp": stamp})
    # what may be evidence is held to what the service writes
    assert refused({**line, "level": "signal"}) == "no level that is known"
    assert refused({**line, "timestamp": 1772452800}) == "timestamp is not text"
    assert refused({**line, "bar_time": 1772452800}) == "bar_time is not text"


def test_tokens_that_python_writes_are_read() -> None:
    raw = json.dumps(good(ml_tft_prob=math.nan, ml_lstm_prob=math.inf, ml_lgb_prob=1)).encode()
    assert b"NaN" in raw
    line = parse(raw)
    assert isinstance(line, Line)
    assert line.tft is not None
    assert math.isnan(line.tft)
    assert (line.lstm, line.lgb) == (math.inf, 1.0)


def test_other_levels() -> None:
    line = {"timestamp": "2026-03-02T12:00:00Z", "seq": 4, "release": signal_lines.RELEASE}
    assert read({**line, "level": "WARN", "data": {"event": "gap"}}).note == "gap"
    assert read({**line, "level": "WARN", "data": {"event": "gap"}}).kind == WARN
    assert read({**line, "level": "CRITICAL", "data": {"message": "out of\x1b[2J"}}).kind == SEVERE
    assert read({**line, "level": "INFO"}).kind == OTHER
    assert refused({**line, "level": "SIGNAM"}) == "no level that is known"


def test_what_is_refused_says_why() -> None:
    line = json.dumps(good()).encode()
    assert refused(line[:200]) == "not JSON"
    assert refused(line.replace(b'"seq"', b'"tf": "1h", "seq"')) == "a key stands there twice"
    assert refused(line.replace(b'"ml_error": null', b'"ml_error": null, "ml_error": null'))
    assert refused(b"[" * 100_000) == "nested too deep"
    assert refused(b'{"a":' * 100_000) == "nested too deep"
    assert refused(line.replace(b"BTCUSD", b"BTC\xff")) == "not UTF-8"
    assert refused(b" " * (LONGEST + 1)) == "longer than 1 MiB"
    assert refused(b"9" * 10_000) == "not JSON"
    assert refused(b"[1]") == "not an object"
    assert refused(b"{}") == "no level that is known"
    for field, value, why in (
        ("seq", "4", "seq is not a positive whole number"),
        ("seq", True, "seq is not a positive whole number"),
        ("seq", 0, "seq is not a positive whole number"),
        ("seq", 10**20, "seq is not a positive whole number"),
        ("timestamp", 5, "timestamp is not text"),
        ("timestamp", "yesterday", "timestamp is not a time"),
        ("timestamp", "1815-12-10T00:00:00Z", "timestamp is out of range"),
        ("timestamp", None, "no timestamp"),
        ("data", [], "data is not an object"),
        ("release", True, "release is not text"),
        ("symbol", 5, "symbol is not text"),
    ):
        assert refused({**good(), field: value}) == why
    for component, value in (("ml_bull_prob", "0.5"), ("ml_tft_prob", True), ("close", [])):
        assert refused(good(**{component: value})) == f"{component} is not a number"
    assert refused(good(ml_heads=[1])) == "ml_heads is not an object"
    assert refused(good(ml_heads={"tft": [1]})) == "ml_heads is not by family and head"


@pytest.mark.parametrize("nothing", [None, "", False])
def test_nothing_in_ml_error_is_no_error(nothing: Any) -> None:
    line = read(good(ml_error=nothing))
    assert (line.error, line.lacks_ml_error) == ("", False)


def test_anything_else_in_ml_error_is_an_error() -> None:
    for value, error in (({"tft": 1}, "(dict)"), (0, "(int)"), (True, "(bool)"), ([], "(list)")):
        assert read(good(ml_error=value)).error == error


def test_a_line_without_ml_error_says_so() -> None:
    line = good()
    del line["data"]["components"]["ml_error"]
    assert (read(line).error, read(line).lacks_ml_error) == ("", True)


@pytest.mark.parametrize("name", ["v1.4.2", "../..", signal_lines.RELEASE[:-1]])
def test_a_release_in_another_style_is_read_and_marked(name: str) -> None:
    line = read({**good(), "release": name})
    assert (line.release, line.foreign) == (name, True)
    assert read({**good(), "release": name, "level": "signal"}).kind == SIGNAL
    assert not read(good()).foreign


@pytest.mark.parametrize(("number", "name"), [(142, "142"), (1.4, "1.4")])
def test_a_release_that_is_a_number_is_one_in_another_style(number: float, name: str) -> None:
    line = read({**good(), "release": number})
    assert (line.release, line.foreign) == (name, True)


@pytest.mark.parametrize(
    ("level", "kind"), [(10, OTHER), (30, OTHER), (40, WARN), (50, SEVERE), (60, SEVERE)]
)
def test_levels_of_another_writer_may_be_numbers(level: int, kind: int) -> None:
    line = {"timestamp": 1772452800, "level": level, "msg": "words"}
    assert read(line).kind == kind
    assert read({**good(), "release": "v1", "level": level}).kind == SIGNAL, "it has a probability"
    assert refused({**good(), "level": level}) == "no level that is known", "ours are words"


@pytest.mark.parametrize(
    ("level", "kind"), [("INFO", SIGNAL), ("debug", SIGNAL), ("WARN", WARN), ("ERROR", SEVERE)]
)
def test_a_line_of_another_writer_with_a_probability_is_a_bar(level: str, kind: int) -> None:
    assert read({**good(), "release": "v1", "level": level}).kind == kind
    assert read({**good(), "level": "INFO"}).kind == OTHER, "ours says SIGNAL"


@pytest.mark.parametrize("nothing", ["None", "null"])
def test_a_nothing_that_another_writer_made_text_is_no_error(nothing: str) -> None:
    line = good(ml_error=nothing)
    assert read({**line, "release": "v1"}).error == ""
    assert read(line).error == nothing, "ours writes null"


def test_foreign_words_move_no_cursor() -> None:
    assert clean("a\x1b[2J\nb\u202e" + "c" * 999) == "a�[2J�b�" + "c" * 292


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary() | documents.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise(raw: bytes) -> None:
    assert isinstance(parse(raw), Line | Bad)


@given(st.sampled_from(sorted(good()) + sorted(good()["data"]["components"])), documents)
def test_no_value_raises(name: str, value: Any) -> None:
    line = good()
    if name in line:
        line[name] = value
    else:
        line["data"]["components"][name] = value
    assert isinstance(parse(json.dumps(line).encode()), Line | Bad)
