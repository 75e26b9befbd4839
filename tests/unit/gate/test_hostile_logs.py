"""Whatever a log holds, what is kept of it is bounded, and no flood of lines hides a bad bar."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from macd.host.judge.analyse import Analysis, Window
from macd.host.judge.parse import REFUSED, SEVERE, SIGNAL, WARN, Bad, Line
from tests.support.signal_lines import RELEASE

HOUR = 3_600_000
N = 6000
GOOD: dict[str, Any] = {"p": 0.5, "lgb": 0.5, "stacking": 0.5, "mode": "live"}


def signal(n: int, **over: Any) -> Line:
    """One whose models never say the same twice."""
    nets = {"tft": 0.2 + n % 97 / 200, "lstm": 0.3 + n % 89 / 200}
    fields: dict[str, Any] = {
        "kind": SIGNAL, "time": n, "seq": n + 1, "release": RELEASE, "symbol": "BTC", "tf": "1h",
        "bar": n * HOUR,
    }  # fmt: skip
    return Line(**{**fields, **GOOD, **nets, **over})


def text(n: int) -> str:
    return f"{n:0300}"


# Each a flood of lines of which no two are alike.
FLOODS: dict[str, Callable[[int], Line | Bad]] = {
    "bars": signal,
    "symbols": lambda n: signal(n, symbol=text(n)),
    "timeframes": lambda n: signal(n, tf=f"{n % 9999}{'mhd'[n // 9999]}", symbol=text(n)),
    "bars without a time": lambda n: signal(n, bar=None),
    "bad bars told again": lambda n: signal(n, bar=0, error=text(n)),
    "refused": lambda n: signal(n, kind=WARN, note=REFUSED[n % 2], symbol=text(n)),
    "releases": lambda n: signal(n, release=f"20260301T{n:06}Z-0011aabb"),
    "reasons": lambda n: signal(n, stacking=None, skipped=f"{text(n)} {'abcdef'[n % 6]}{n:x}"),
    "errors": lambda n: signal(n, kind=SEVERE, note=text(n)),
    "latencies": lambda n: signal(n, latency=float(n) ** 60),
    "numbers": lambda n: signal(n, seq=1 + (n * 7919) % (1 << 40)),
    "junk": lambda n: Bad("not JSON"),
}


def flood(make: Callable[[int], Line | Bad], n: int) -> Iterator[Line | Bad]:
    return (make(at) for at in range(n))


def analysed(lines: Iterator[Line | Bad], most: int) -> Analysis:
    analysis = Analysis(Window(0, 1 << 60, RELEASE), most)
    for number, line in enumerate(lines):
        analysis.add(line, "a", number)
    analysis.finish()
    return analysis


def peak(name: str, n: int) -> int:
    """Bytes at most."""
    tracemalloc.start()
    analysed(flood(FLOODS[name], n), 500)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def peaks() -> dict[str, list[int]]:
    """Of each flood: the peak of half its lines and of all."""
    return {name: [peak(name, n) for n in (N // 2, N)] for name in FLOODS}


@pytest.fixture(scope="module")
def measured() -> dict[str, list[int]]:
    """Measured in a process of its own: other threads of this one would count too."""
    code = f"import json; from {__name__} import peaks; print(json.dumps(peaks()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    return cast("dict[str, list[int]]", json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
def test_twice_the_lines_take_no_more_memory(measured: dict[str, list[int]], name: str) -> None:
    half, whole = measured[name]
    assert half > 0
    assert whole < half + 100_000, measured[name]  # three thousand lines more


def test_few_bars_are_told_apart_as_ever() -> None:
    lap = [signal(n) for n in range(300)]
    analysis = analysed(iter([*lap, *lap]), 500)
    assert analysis.tally()["lstm_normal"] == (300, 300)
    assert "bars beyond the limit" not in analysis.document()["counts"]


def test_more_good_bars_than_can_be_told_apart_raise_no_rate() -> None:
    lap = [signal(n) for n in range(900)]
    bad = signal(0, error="tft: broken", bar=None)
    analysis = analysed(iter([bad, *lap, *lap]), 500)
    assert analysis.tally()["ml_coverage"] == (499, 500)
    assert analysis.document()["counts"]["bars beyond the limit"] == 901 - 500 + 401


@pytest.mark.parametrize(
    "bad",
    [
        lambda n: signal(n, error="tft: broken"),
        lambda n: signal(n, kind=WARN, note="stale"),
        lambda n: signal(n, bar=7 * HOUR, tft=None),
    ],
    ids=["error", "refused", "repeated bars"],
)
def test_bad_bars_behind_a_flood_of_good_ones_count(bad: Callable[[int], Line]) -> None:
    made = [*flood(signal, 2000), *(bad(n) for n in range(2000, 2600))]
    for _, trials in analysed(iter(made), 500).tally().values():
        assert trials == 500 + 600
    for good, _ in analysed(iter(made), 500).tally().values():
        assert good == 500


def test_series_that_nobody_can_follow_leave_holes() -> None:
    analysis = analysed(flood(FLOODS["symbols"], 1500), 5000)
    assert analysis.whole.incomplete == 500


def test_once_there_are_too_many_symbols_every_refused_bar_is_one_of_ours() -> None:
    lines = [*flood(FLOODS["symbols"], 1500), *(signal(n, kind=WARN, note="bad_bar") for n in (1,))]
    assert analysed(iter(lines), 5000).document()["counts"]["refused bars"] == 1
    few = [signal(0), signal(1, kind=WARN, note="bad_bar", symbol="ETH")]
    assert "refused bars" not in analysed(iter(few), 5000).document()["counts"]


@pytest.mark.parametrize("name", ["tft", "lstm"])
def test_a_model_that_is_stuck_fails_however_many_bars_came_before(name: str) -> None:
    lines = [signal(n) for n in range(1000)]
    lines += [signal(n, **{name: 0.5}) for n in range(1000, 1600)]
    analysis = analysed(iter(lines), 500)
    tally = analysis.tally()
    assert tally.pop(f"{name}_normal") == (500, 1100)
    assert tally == dict.fromkeys(tally, (500, 500))
    assert analysis.document()["models"][name]["stuck"] == 600
