"""The table of features: complete, finite, free of levels, and equal to what its names promise."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macd.app.market.bars import COLUMNS, read_bars
from macd.app.market.features import (
    FEATURE_VERSION,
    WARMUP,
    compute,
    feature_names,
    schema_hash,
    subset,
)
from macd.errors import MacdError, UsageError

SAMPLE = Path("data/sample/BTCUSD_1h_2017-2019.parquet")
PRICES = ("open", "high", "low", "close")


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return read_bars(SAMPLE)[4_000:6_500]


@pytest.fixture(scope="module")
def table(bars: pl.DataFrame) -> pl.DataFrame:
    return compute(bars)


def synthetic(n: int, **columns: object) -> pl.DataFrame:
    """Hourly bars of a market that stands still at 100 and trades 10, unless columns say else."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    values = dict.fromkeys(PRICES, 100.0) | {"volume": 10.0} | columns
    frame = pl.DataFrame(
        {"timestamp": pl.Series([start + timedelta(hours=i) for i in range(n)])}
        | {name: np.broadcast_to(np.asarray(v, dtype=float), n) for name, v in values.items()}
    )
    return frame.with_columns(pl.col("timestamp").dt.cast_time_unit("ms")).select(COLUMNS)


def matrix(table: pl.DataFrame) -> np.ndarray:
    return table.drop("timestamp").to_numpy()


def test_one_row_per_bar_and_columns_as_named(bars: pl.DataFrame, table: pl.DataFrame):
    assert tuple(table.columns) == ("timestamp", *feature_names())
    assert table["timestamp"].equals(bars["timestamp"])
    assert set(table.dtypes[1:]) == {pl.Float64}
    assert 75 <= len(feature_names()) <= 90


def test_nan_in_the_warm_up_only_and_never_infinite(table: pl.DataFrame):
    values = matrix(table)
    assert np.isnan(values[: WARMUP - 1]).all()
    assert np.isfinite(values[WARMUP - 1 :]).all()


def test_every_feature_varies_on_real_bars(table: pl.DataFrame):
    spread = matrix(table)[WARMUP:].std(axis=0)
    assert (spread > 1e-4).all(), [
        n for n, s in zip(feature_names(), spread, strict=True) if s == 0
    ]


@pytest.mark.parametrize(("price", "volume"), [(1e3, 1.0), (1.0, 1e3), (1e-6, 1e6)])
def test_no_feature_carries_the_level_of_prices_or_volumes(bars, table, price, volume):
    scaled = bars.with_columns(pl.col(PRICES) * price, pl.col("volume") * volume)
    np.testing.assert_allclose(matrix(compute(scaled)), matrix(table), rtol=1e-9, atol=1e-9)


def test_the_level_test_would_see_a_level(bars: pl.DataFrame, table: pl.DataFrame):
    drifted = bars.with_columns(pl.col("volume") * np.linspace(1.0, 1.001, len(bars)))
    assert np.nanmax(np.abs(matrix(compute(drifted)) - matrix(table))) > 1e-7


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"volume": 0.0},
        {"volume": np.r_[np.full(560, 1e9), np.zeros(340)]},
        {"high": 101.0, "low": 99.0},
        {"high": 101.0, "low": 99.0, "volume": 0.0},
        dict.fromkeys(PRICES, np.r_[np.full(600, 1e6), np.full(300, 1e-6)]),
        dict.fromkeys(PRICES, 1e-9 * 1.001 ** np.arange(900)),
        dict.fromkeys(PRICES, 100 * 0.99 ** np.arange(900)),
        dict.fromkeys(PRICES, 100 + 50 * (np.arange(900) % 2)),
        dict.fromkeys(PRICES, np.where(np.arange(900) == 700, 5e4, 100.0)),
        {"volume": np.where(np.arange(900) == 700, 1e15, 0.0)},
    ],
    ids=[
        "standing still",
        "nothing traded",
        "trade stops",
        "range without change",
        "range, nothing traded",
        "collapse, then still",
        "steady climb of a tiny price",
        "steady fall",
        "up and down",
        "one spike",
        "one trade",
    ],
)
def test_degenerate_bars_give_finite_features(columns):
    values = matrix(compute(synthetic(900, **columns)))[WARMUP - 1 :]
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 1e6


def test_a_market_standing_still_has_neutral_features():
    table = compute(synthetic(900))
    clock = [n for n in feature_names() if n.startswith(("hour", "half_day", "week"))]
    ones = [n for n in feature_names() if n.startswith("span_")]
    last = table.drop("timestamp", *clock, *ones).row(-1)
    assert last == (0.0,) * len(last)
    assert table.select(ones).row(-1) == (1.0,) * len(ones)


def test_after_trade_stops_nothing_of_the_old_volume_is_left():
    volume = np.r_[np.random.default_rng(1).lognormal(20, 2, 700), np.zeros(200)]
    table = compute(synthetic(900, volume=volume, high=101.0, low=99.0))
    for name in ("volume_z_24", "volume_z_168", "volume_6_72", "obv_24", "cmf_48"):
        assert table[name][-1] == 0.0


@pytest.mark.parametrize("n", [0, 1, 2, 5, 20, 30, 47, 100, WARMUP - 1])
def test_too_few_bars_give_rows_without_values(bars: pl.DataFrame, n: int):
    table = compute(bars[:n])
    assert table.shape == (n, 1 + len(feature_names()))
    assert np.isnan(matrix(table)).all()


def test_the_first_complete_row_is_at_warmup(bars: pl.DataFrame):
    assert np.isfinite(matrix(compute(bars[:WARMUP]))[-1]).all()


@pytest.mark.parametrize("tf", ["15m", "30m", "1h", "4h", "1d"])
def test_other_timeframes_have_the_same_features(bars: pl.DataFrame, tf: str):
    step = {"15m": 15, "30m": 30, "1h": 60, "4h": 240, "1d": 1440}[tf]
    times = pl.Series(
        [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=step * i) for i in range(600)]
    )
    frame = bars[:600].with_columns(times.dt.cast_time_unit("ms").alias("timestamp"))
    table = compute(frame, tf=tf)
    assert tuple(table.columns[1:]) == feature_names()
    assert np.isfinite(matrix(table)[WARMUP - 1 :]).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [("close", None), ("close", float("nan")), ("open", 0.0), ("low", -1.0), ("volume", -1.0)],
)
def test_unusable_bars_are_refused_with_their_row(bars: pl.DataFrame, column, value):
    row = pl.int_range(pl.len()) == 777
    broken = bars.with_columns(pl.when(row).then(value).otherwise(pl.col(column)).alias(column))
    with pytest.raises(MacdError, match=r"row 777"):
        compute(broken)
    with pytest.raises(MacdError, match="OTHER"):
        compute(bars, {"OTHER": broken})


def test_bars_out_of_order_are_refused(bars: pl.DataFrame):
    for broken in (bars.reverse(), pl.concat([bars[:600], bars[599:]])):
        with pytest.raises(MacdError, match="timestamps"):
            compute(broken)


def test_a_gap_neither_stops_nor_shifts_the_features(bars: pl.DataFrame):
    gapped = pl.concat([bars[:1_000], bars[1_030:]])
    table = compute(gapped)
    assert np.isfinite(matrix(table)[WARMUP - 1 :]).all()
    both = table.join(compute(bars), on="timestamp", suffix="_whole")[-1_000:]
    for name in feature_names():  # long after the gap everything is as if it had never been
        np.testing.assert_allclose(both[name], both[f"{name}_whole"], rtol=0, atol=1e-9)


def test_the_schema_hash_changes_with_names_order_and_version():
    names = feature_names()
    assert schema_hash(names) == schema_hash(list(names))
    text = json.dumps([FEATURE_VERSION, *names], separators=(",", ":"))
    assert schema_hash(names) == hashlib.sha256(text.encode()).hexdigest()
    others = {schema_hash(names[::-1]), schema_hash(names[1:]), schema_hash(feature_names(["X"]))}
    assert len(others | {schema_hash(names)}) == 4


def test_sets_keep_the_order_and_leave_other_assets_out():
    every = feature_names(["ABC"])
    assert subset(every, "all") == every
    assert subset(every, "own") == feature_names()
    path = subset(every, "path")
    assert len(path) == 44  # as docs/LOG.md counted it
    assert path == tuple(name for name in every if name in path)
    assert not {"macd", "rsi_14", "body", "span_0"} & set(path)
    with pytest.raises(UsageError, match="'few' is no set"):
        subset(every, "few")


def test_docs_list_exactly_the_features():
    text = Path("docs/features.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = [name.strip("`") for cell in rows for name in cell.split()]
    own = [name for name in listed if not name.startswith("x_")]
    assert own == list(feature_names())
    cross = [name.replace("<symbol>", "abc") for name in listed if name.startswith("x_")]
    assert (*own, *cross) == feature_names(["ABC"])
    assert f"WARMUP is {WARMUP} bars" in text
