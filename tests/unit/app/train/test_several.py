"""Several symbols in one training: which are trained, on which bars, and what stops all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.train import dataset, pipeline
from macd.app.train.events import human_line
from macd.app.train.settings import Settings, settings_from
from macd.errors import MacdError, UsageError
from macd.run_directory import FILES, part_of, symbols_of
from tests.support import small_panel

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SYMBOLS = (small_panel.MAIN, *small_panel.OTHERS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    small_panel.write(tmp_path / "bars")
    return tmp_path / "bars"


def settings(data: Path, **changes: Any) -> Settings:
    out = data.parent / "out"
    return settings_from({"data": str(data), "out": str(out), "symbols": [*SYMBOLS], **changes})


def test_each_symbol_has_settings_of_its_own(data: Path) -> None:
    asked = settings(data, cross=["BBBUSD"], panel=[*SYMBOLS])
    first, second, _ = asked.each
    assert (asked.symbol, first.symbol, second.symbol) == ("AAAUSD", "AAAUSD", "BBBUSD")
    assert (first.cross, second.cross) == (("BBBUSD",), ())
    assert second.panel_others == ("AAAUSD", "CCCUSD")
    assert second.out == FILES.of_symbol(asked.out, "BBBUSD")
    assert first.cache_dir == second.cache_dir == asked.cache_dir
    assert asked.assets == SYMBOLS
    assert settings_from(asked.as_json()).each == asked.each
    assert "symbols" not in second.as_json()


def test_each_asset_is_checked_once_and_beside_its_own_features(data: Path) -> None:
    """BBBUSD begins later: a finding for a symbol whose features need it, and for no other."""
    frames = {name: read_bars(data / f"{name}_1h.parquet") for name in SYMBOLS}
    limits = {"overlap_warn": 0.9, "overlap_error": 0.0}
    asked = settings(data, cross=["BBBUSD"], limits=limits)
    by_symbol = dataset.findings(asked, frames, NOW)
    checks = {name: [(f.symbol, f.check) for f in mine] for name, mine in by_symbol.items()}
    assert ("BBBUSD", "overlap") in checks["AAAUSD"]
    assert ("BBBUSD", "overlap") in checks["CCCUSD"]
    assert not any(check == "overlap" for _, check in checks["BBBUSD"])
    assert ("BBBUSD", "missing") in checks["BBBUSD"] or ("BBBUSD", "gap") in checks["BBBUSD"]


def test_the_problems_of_all_symbols_are_told_before_any_fit(data: Path) -> None:
    for name in ("BBBUSD", "CCCUSD"):
        path = data / f"{name}_1h.parquet"
        write_bars(read_bars(path)[:300], path)
    with pytest.raises(UsageError) as caught:
        pipeline.run(settings(data, device="cpu"), clock=NOW.timestamp, environment={}, echo=False)
    assert caught.value.what == "2 of 3 symbols can't be trained on these bars"
    assert "BBBUSD: 300 bars of BBBUSD are too few" in caught.value.why
    assert "CCCUSD: 300 bars of CCCUSD are too few" in caught.value.why
    assert "leave out BBBUSD, CCCUSD" in caught.value.hint


def test_all_files_that_are_missing_are_named(data: Path) -> None:
    for name in ("AAAUSD", "CCCUSD"):
        (data / f"{name}_1h.parquet").unlink()
    with pytest.raises(MacdError) as caught:
        dataset.verify(settings(data), NOW)
    assert "AAAUSD_1h.parquet, and 1 more" in caught.value.what
    assert caught.value.why == "AAAUSD_1h.parquet does not exist\nCCCUSD_1h.parquet does not exist"


def test_errors_in_the_bars_of_several_are_told_at_once(data: Path) -> None:
    for name in ("AAAUSD", "CCCUSD"):
        path = data / f"{name}_1h.parquet"
        bars = read_bars(path)
        write_bars(bars.filter((bars["timestamp"] < bars["timestamp"][900])
                               | (bars["timestamp"] > bars["timestamp"][1100])), path)  # fmt: skip
    with pytest.raises(MacdError) as caught:
        dataset.verify(settings(data), NOW)
    assert "AAAUSD" in caught.value.why
    assert "CCCUSD" in caught.value.why


def test_a_line_says_whose_it_is() -> None:
    fit = {"event": "fit_done", "model": "lgbm", "fold": 1, "seconds": 2.0}
    assert human_line({**fit, "symbol": "ETHUSD"}) == "  ETHUSD  LGBM     fold 1  2.0 s"
    assert human_line(fit) == "  LGBM     fold 1  2.0 s"


def test_names_of_parts_stay_inside_the_run(tmp_path: Path) -> None:
    assert symbols_of({"symbols": ["ETHUSD", "BTC.D"]}) == ("ETHUSD", "BTC.D")
    for named in (["../x"], ["."], [1, None], "ETHUSD", [], None):
        assert symbols_of({"symbols": named}) == (), named
    (tmp_path / FILES.settings).write_text('{"symbols": ["ETHUSD", "LTCUSD"]}')
    assert part_of(tmp_path, "LTCUSD") == tmp_path / "symbols/LTCUSD"
    assert part_of(tmp_path, "BTCUSD") is None
    (tmp_path / FILES.settings).write_text('{"symbol": "ETHUSD"}')
    assert part_of(tmp_path, "ETHUSD") == tmp_path
