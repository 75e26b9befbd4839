"""Each defect by a crafted file that states, in its own comments, every finding it must give."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.app.market import bars, checks
from macd.errors import UsageError

CASES = Path(__file__).parents[3] / "cases" / "bars" / "defects"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def table(path: Path) -> pl.DataFrame:
    text = pl.read_csv(path, comment_prefix="#", infer_schema=False)
    return text.select(
        pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms", time_zone="UTC"),
        *(pl.col(name).cast(pl.Float64) for name in bars.COLUMNS[1:]),
    )


def summary(finding: checks.Finding) -> str:
    time = f" {finding.time:%Y-%m-%dT%H:%M}" if finding.time else ""
    return f"{finding.level} {finding.check} row {finding.row}{time}"


@pytest.mark.parametrize("path", sorted(CASES.glob("*.csv")), ids=lambda path: path.stem)
def test_the_file_gives_exactly_the_findings_it_states(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    said = re.search(r"# tf: (\w+), now: (\S+)", text)
    assert said
    table(path).write_parquet(tmp_path / "x.parquet")
    rows = bars.read_rows(tmp_path / "x.parquet")
    findings = checks.check_bars(rows, tf=said[1], now=datetime.fromisoformat(said[2]))
    assert sorted(map(summary, findings)) == sorted(re.findall(r"# expect: (.*)", text))


def test_every_defect_of_the_contract_has_a_file() -> None:
    named = set(re.findall(r"# expect: \w+ (\S+)", "".join(p.read_text() for p in CASES.iterdir())))
    assert named == {
        "denomination", "duplicate", "empty", "frozen", "future", "gap", "high-below", "jump",
        "local-time", "low-above", "misaligned", "missing", "nan", "negative-volume",
        "non-positive", "spike", "unfinished", "unsorted", "zero-volume",
    }  # fmt: skip


def test_the_sample_has_no_errors_and_its_warnings_are_real() -> None:
    """Hours without a trade, which the publisher filled with the last price."""
    path = Path(__file__).parents[4] / "data/sample/BTCUSD_1h_2017-2019.parquet"
    findings = checks.check_bars(bars.read_rows(path), tf="1h", now=NOW)
    assert [summary(finding) for finding in findings] == [
        "warn zero-volume row 5154 2018-02-01T05:00",
        "warn frozen row 9709 2018-08-10T00:00",
        "warn zero-volume row 9710 2018-08-10T01:00",
    ]


def market(n: int, seed: int = 0, *, of: np.ndarray | None = None) -> pl.DataFrame:
    """Bars of a random market; `of` gives returns it shares with another one."""
    own = np.random.default_rng(seed).normal(0, 0.005, n)
    close = 100 * np.exp(np.cumsum(own if of is None else of + own / 3))
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "timestamp": [start + timedelta(hours=i) for i in range(n)],
            "open": np.roll(close, 1),
            "high": np.maximum(close, np.roll(close, 1)) * 1.001,
            "low": np.minimum(close, np.roll(close, 1)) * 0.999,
            "close": close,
            "volume": np.full(n, 7.0),
        }
    ).pipe(bars.canonical)


@given(order=st.permutations(range(12)), again=st.lists(st.integers(0, 11), max_size=5))
def test_any_shuffle_and_any_repeat_is_found(order: list[int], again: list[int]) -> None:
    rows = market(12)[[*order, *again]]
    findings = checks.check_bars(rows, tf="1h", now=NOW)
    stamps = rows["timestamp"].to_list()
    falling = [i for i in range(1, len(stamps)) if stamps[i] < stamps[i - 1]]
    assert bool([f for f in findings if f.check == "unsorted"]) == bool(falling)
    assert {f.row for f in findings if f.check == "duplicate"} == set(range(12, len(stamps)))
    assert {f.check for f in findings} <= {"unsorted", "duplicate"}


@given(row=st.integers(1, 58), length=st.integers(1, 58))
def test_any_hole_is_found_with_its_size(row: int, length: int) -> None:
    rows = market(60)
    left = pl.concat([rows[:row], rows[min(row + length, 59) :]])
    findings = [f for f in checks.check_bars(left, tf="1h", now=NOW) if f.check == "gap"]
    lost = 60 - left.height
    assert [f.row for f in findings] == ([row] if lost else [])
    assert all(f.detail.startswith(f"{lost} bar") for f in findings)


def test_overlap_too_short_between_assets() -> None:
    eth, btc = market(3000), market(3000, 1)
    assert checks.check_together({"ETH": eth, "BTC": btc}, main="ETH", tf="1h") == []
    for part, level in ((btc[300:], "warn"), (btc[1800:], "error"), (btc[:900], "error")):
        (finding,) = checks.check_together({"ETH": eth, "BTC": part}, main="ETH", tf="1h")
        assert (finding.check, finding.level, finding.symbol) == ("overlap", level, "BTC")
        assert f"{part.height:,} of ETH's 3,000 bars" in finding.detail


def test_an_asset_in_local_time_is_found_by_its_neighbour() -> None:
    eth = market(3000)
    shared = np.diff(np.log(eth["close"].to_numpy()), prepend=np.log(100))
    sol = market(3000, 1, of=shared)
    assert checks.check_together({"ETH": eth, "SOL": sol}, main="ETH", tf="1h") == []
    late = sol.with_columns(pl.col("timestamp") + pl.duration(hours=8))
    (finding,) = checks.check_together({"ETH": eth, "SOL": late}, main="ETH", tf="1h")
    assert finding.check == "shifted"
    assert "SOL moves as ETH does 8 h later" in finding.detail


@pytest.mark.parametrize("switch", checks._SWITCHES, ids=lambda switch: switch.zone)
def test_the_days_clocks_switch_are_those_of_the_time_zone_database(
    switch: checks._Switch,
) -> None:
    zone = ZoneInfo(switch.zone)
    day, last = date(2008, 6, 1), date(2035, 6, 1)  # the rules of today are that old everywhere
    springs, autumns = set(), set()
    while day < last:
        noons = [datetime(d.year, d.month, d.day, 12, tzinfo=zone) for d in (day - ONE, day)]
        change = noons[1].utcoffset() - noons[0].utcoffset()  # type: ignore[operator]
        if change:
            (springs if change > timedelta(0) else autumns).add(day)
        day += ONE
    assert checks._sundays(switch.spring, date(2008, 6, 1), last) == springs
    assert checks._sundays(switch.autumn, date(2008, 6, 1), last) == autumns


ONE = timedelta(days=1)


def test_limits_can_be_changed_and_say_what_there_is() -> None:
    rows = table(CASES / "zero_volume.csv")
    strict = checks.Limits().changed("zero_volume_warn=2, zero_volume_error=4")
    findings = checks.check_bars(rows, tf="1h", now=NOW, limits=strict)
    assert [(f.level, f.row) for f in findings] == [("warn", 4), ("error", 20)]
    for wrong in ("spikes=3", "spike_z=far", "spike_z"):
        with pytest.raises(UsageError) as caught:
            checks.Limits().changed(wrong)
        assert "frozen_warn=6" in caught.value.why
