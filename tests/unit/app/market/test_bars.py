"""The canonical form: what is written is read back, and a digest means the bars themselves."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from macd.app.market import bars
from macd.errors import MacdError, UsageError

START = datetime(2024, 1, 1, tzinfo=UTC)


def make(n: int = 30) -> pl.DataFrame:
    rows = [
        (START + timedelta(hours=i), 100.0 + i, 102.0 + i, 99.0 + i, 101.0 + i, 5.0 + i)
        for i in range(n)
    ]
    return pl.DataFrame(rows, schema=bars.SCHEMA, orient="row")


def test_what_is_written_is_read_back_with_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "X_1h.parquet"
    df = make()
    bars.write_bars(df, path)
    again = bars.read_bars(path)
    assert again.equals(df)
    assert again.schema == bars.SCHEMA
    assert bars.digest(again) == bars.digest(df)
    assert [p.name for p in path.parent.iterdir()] == ["X_1h.parquet"]


def test_same_bars_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        bars.write_bars(make(), tmp_path / name, metadata={"symbol": "X", "tf": "1h"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pl.read_parquet_metadata(tmp_path / "a")["symbol"] == "X"


def test_digest_ignores_encoding_but_not_values(tmp_path: Path) -> None:
    df = make()
    other = df.select(
        "close", "volume", "open", "high", "low", pl.col("timestamp").dt.cast_time_unit("ns")
    )
    other.write_parquet(tmp_path / "ns", compression="snappy")
    assert bars.digest(bars.read_bars(tmp_path / "ns")) == bars.digest(df)
    for name in bars.COLUMNS[1:]:
        changed = df.with_columns(
            pl.when(pl.col(name).is_first_distinct() & (pl.col(name) == df[name][3]))
            .then(pl.col(name) + 1e-9)
            .otherwise(pl.col(name))
            .alias(name)
        )
        assert bars.digest(changed) != bars.digest(df), name
    assert bars.digest(df.head(29)) != bars.digest(df)
    assert bars.digest(df.reverse()) != bars.digest(df)


def test_digest_is_stable_across_versions() -> None:
    """A digest is stored in runs and releases: the layout may never change."""
    ms = [int(START.timestamp() * 1000) + i * 3_600_000 for i in range(3)]
    first = (100.0, 102.0, 99.0, 101.0, 5.0)
    layout = b"macd-bars-1\n" + struct.pack("<Q3q", 3, *ms)
    for value in first:
        layout += struct.pack("<3d", value, value + 1, value + 2)
    assert bars.digest(make(3)) == hashlib.sha256(layout).hexdigest()
    assert bars.digest(make(3)).startswith("d7a6b24ff237ae90")


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 1, 1]])
def test_unordered_or_repeated_rows_are_refused(tmp_path: Path, order: list[int]) -> None:
    bad = make(3)[order]
    with pytest.raises(MacdError, match="not in order"):
        bars.write_bars(bad, tmp_path / "x")
    bad.write_parquet(tmp_path / "y")
    with pytest.raises(MacdError) as caught:
        bars.read_bars(tmp_path / "y")
    assert "data.verify" in caught.value.hint
    assert bars.read_rows(tmp_path / "y").height == 3


def test_a_write_takes_the_place_of_the_file_and_never_writes_into_it(tmp_path: Path) -> None:
    path, reader = tmp_path / "X_1h.parquet", tmp_path / "held open by a reader"
    bars.write_bars(make(5), path)
    reader.hardlink_to(path)
    bars.write_bars(make(9), path)
    assert bars.read_bars(reader).height == 5
    assert bars.read_bars(path).height == 9


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "X_1h.parquet"
    bars.write_bars(make(5), path)
    before = path.read_bytes()
    with pytest.raises(MacdError):
        bars.write_bars(make(5).reverse(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [("ETHUSDT", "ETH/USDT"), ("BTCUSD", "BTC/USD"), ("USDT", "BASE/QUOTE"), ("X", "BASE/QUOTE")],
)
def test_bars_that_are_not_there_name_their_own_market(symbol: str, pair: str) -> None:
    error = bars.no_bars(Path(f"/there/{symbol}_4h.parquet"))
    assert f"data.import FILE --symbol {symbol} --tf 4h" in error.hint
    assert f"data.fetch --symbol {pair} --tf 4h" in error.hint


def test_not_bars(tmp_path: Path) -> None:
    with pytest.raises(MacdError, match="no bars at"):
        bars.read_bars(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"not parquet at all")
    with pytest.raises(MacdError, match="can't be read"):
        bars.read_bars(tmp_path / "junk")
    cases = {
        "no column": make().drop("low"),
        "time zone": make().with_columns(pl.col("timestamp").dt.replace_time_zone(None)),
        "not numbers": make().with_columns(pl.col("open").cast(pl.String)),
        "finer than": make().with_columns(
            pl.col("timestamp").dt.cast_time_unit("us") + pl.duration(microseconds=1)
        ),
    }
    for why, frame in cases.items():
        with pytest.raises(MacdError) as caught:
            bars.canonical(frame)
        assert why in caught.value.why


def test_paths(tmp_path: Path) -> None:
    assert bars.bars_path(tmp_path, "eth/usdt", "1h") == tmp_path / "ETHUSDT_1h.parquet"
    sample = tmp_path / "BTCUSD_1h_2017-2019.parquet"
    sample.touch()
    assert bars.bars_path(tmp_path, "BTCUSD", "1h") == sample
    assert bars.bars_path(tmp_path, "BTC", "1h") == tmp_path / "BTC_1h.parquet"
    (tmp_path / "BTCUSD_1h_2020.parquet").touch()
    with pytest.raises(UsageError, match="several"):
        bars.bars_path(tmp_path, "BTCUSD", "1h")
    (tmp_path / "BTCUSD_1h.parquet").touch()
    assert bars.bars_path(tmp_path, "BTCUSD", "1h") == tmp_path / "BTCUSD_1h.parquet"


@pytest.mark.parametrize("symbol", ["", "..", "../x", "A*", "BTC\n"])
def test_a_symbol_can_not_leave_the_directory(tmp_path: Path, symbol: str) -> None:
    with pytest.raises(UsageError):
        path = bars.bars_path(tmp_path, symbol, "1h")
        assert path.parent == tmp_path and "*" not in path.name
        raise UsageError("contained")


def test_timeframes() -> None:
    assert bars.step_ms("1h") == 3_600_000
    assert bars.step_ms("15m") == 900_000
    assert bars.step_ms("1d") == 86_400_000
    for bad in ("1M", "h", "0h", "1 h", "60"):
        with pytest.raises(UsageError):
            bars.step_ms(bad)


@pytest.mark.parametrize(
    ("metadata", "known"),
    [
        ({}, {}),
        ({"source": "import eth.csv"}, {}),
        ({"source": "import eth.csv", "exchange": "kraken"}, {"exchange": "kraken"}),
        (
            {"source": "fetch binance ETH/USDT"},
            {"exchange": "binance", "market": "ETH/USDT", "type": "spot"},
        ),
        (
            {"source": "fetch bybit ETH/USDT:USDT"},
            {"exchange": "bybit", "market": "ETH/USDT:USDT", "type": "swap"},
        ),
        (
            {"source": "fetch okx ETH/USD:ETH-261225"},
            {"exchange": "okx", "market": "ETH/USD:ETH-261225", "type": "future"},
        ),
        (
            {"source": "fetch okx ETH/USD:ETH-261225-2000-C"},
            {"exchange": "okx", "market": "ETH/USD:ETH-261225-2000-C", "type": "option"},
        ),
    ],
)
def test_a_file_says_where_its_bars_came_from(
    tmp_path: Path, metadata: dict[str, str], known: dict[str, str]
) -> None:
    path = tmp_path / "ETHUSDT_1h.parquet"
    bars.write_bars(make(), path, metadata=metadata)
    source = {"source": metadata["source"]} if metadata else {}
    assert bars.origin(path) == {**source, **known}


def test_what_is_no_file_of_bars_says_nothing_of_where_it_came_from(tmp_path: Path) -> None:
    assert bars.origin(tmp_path / "none.parquet") == {}
    (tmp_path / "odd.parquet").write_bytes(b"no parquet")
    assert bars.origin(tmp_path / "odd.parquet") == {}
