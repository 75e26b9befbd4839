"""What the inventory says of the service's feed arrives in a form that the service reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from macd.app.predict.policy import Policy, Thresholds
from macd.app.service.settings import Feed, Settings
from macd.deploy import desired
from macd.deploy.drift import differing
from macd.deploy.state import HostState
from macd.errors import UsageError
from macd.inventory import load
from tests.support.training_run import SAMPLE
from tests.unit.deploy.test_desired import inventory, rendered
from tests.unit.deploy.test_diffs import BASE


def read_there(tmp_path: Path, more: str) -> Settings:
    app = tmp_path / "app"
    app.mkdir(parents=True)
    wanted = rendered(inventory(tmp_path, more), app=str(app))
    (app / "service.json").write_text(wanted.service_settings)
    return Settings.read(app)


def test_each_key_of_the_feed_reaches_the_service(tmp_path: Path) -> None:
    feed = (
        "{kind: ccxt, exchange: kraken, api_url: 'http://127.0.0.1:1/x', speed: 7, start: 0.25,"
        " loop: false, stale_bars: 3}"
    )
    read = read_there(tmp_path, f"service: {{feed: {feed}}}\ntrain: {{symbol: ETHUSDT, tf: 4h}}\n")
    assert read.feed == Feed("ccxt", "", 7.0, 0.25, False, "kraken", "http://127.0.0.1:1/x", 3.0)
    assert (read.symbol, read.tf, read.step) == ("ETHUSDT", "4h", 4 * 3_600_000)
    assert read.endpoint == f"unix:{tmp_path}/app/state/run/health.sock"


def test_each_key_of_the_policy_reaches_the_service(tmp_path: Path) -> None:
    policy = (
        "{kind: threshold, thresholds: {5h: {long: 0.7, short: 0.2}, all: {long: 0.55}},"
        " long_only: true, size: 0.5, hold: signal, fee_bps: 4, slippage_bps: 1}"
    )
    read = read_there(tmp_path, f"service: {{feed: {{kind: replay}}, policy: {policy}}}\n")
    thresholds = {"5h": Thresholds(0.7, 0.2), "all": Thresholds(0.55, 0.40)}
    assert read.policy == Policy("threshold", thresholds, True, 0.5, "signal", 4, 1)
    assert read_there(tmp_path / "usual", "").policy.at("5h") == Policy().at("5h")


def test_the_limit_of_the_models_age_reaches_the_service(tmp_path: Path) -> None:
    assert read_there(tmp_path, "service: {max_age_days: 45}\n").max_age_days == 45
    assert read_there(tmp_path / "usual", "").max_age_days == 0
    assert "max_age_days" not in (tmp_path / "usual/app/service.json").read_text()


@pytest.mark.parametrize(
    ("feed", "place"),
    [
        ("{kind: replay}", "app/data/replay"),
        ("{kind: directory}", "app/data/feed"),
        ("{kind: directory, directory: /srv/bars}", "/srv/bars"),
    ],
)
def test_where_the_files_of_bars_lie(tmp_path: Path, feed: str, place: str) -> None:
    read = read_there(tmp_path, f"service: {{feed: {feed}}}\n")
    assert read.feed_directory == tmp_path / place


def with_bars(tmp_path: Path, kind: str = "replay", cross: str = "") -> dict[str, bytes]:
    more = f"service: {{feed: {{kind: {kind}}}}}\n"
    train = f"train: {{symbol: BTCUSD, cross: [{cross}], data_dir: ../bars}}\n"
    known = inventory(tmp_path, more + train)
    return desired.replay_files(known)


def test_bars_to_replay_go_with_the_settings(tmp_path: Path) -> None:
    (tmp_path / "bars").mkdir()
    for name in ("BTCUSD_1h_2017-2019.parquet", "ETHUSD_1h.parquet"):
        (tmp_path / "bars" / name).symlink_to(SAMPLE)
    sent = with_bars(tmp_path, cross="ETHUSD")
    assert sent == {
        "data/replay/BTCUSD_1h.parquet": SAMPLE.read_bytes(),
        "data/replay/ETHUSD_1h.parquet": SAMPLE.read_bytes(),
    }


PANEL = "train: {symbol: BTCUSD, cross: [SOLUSD], panel: [ETHUSD], data_dir: ../bars}\n"


def test_another_asset_of_the_panel_is_watched_without_cross_symbols(tmp_path: Path) -> None:
    (tmp_path / "bars").mkdir()
    for name in ("BTCUSD_1h.parquet", "ETHUSD_1h.parquet", "SOLUSD_1h.parquet"):
        (tmp_path / "bars" / name).symlink_to(SAMPLE)
    known = inventory(tmp_path, "service: {symbol: ETHUSD, feed: {kind: replay}}\n" + PANEL)
    assert desired.watched(known) == ["ETHUSD"]
    assert list(desired.replay_files(known)) == ["data/replay/ETHUSD_1h.parquet"]


@pytest.mark.parametrize("service", ["{}", "{symbol: BTCUSD}"])
def test_the_trained_asset_is_watched_with_its_cross_symbols(tmp_path: Path, service: str) -> None:
    known = inventory(tmp_path, f"service: {service}\n" + PANEL)
    assert desired.watched(known) == ["BTCUSD", "SOLUSD"]


@pytest.mark.parametrize(
    ("service", "symbols", "cross"),
    [
        ("{}", ("BTCUSD", "ETHUSD", "LTCUSD"), ("BTCUSD", "SOLUSD")),
        ("{symbols: [LTCUSD, BTCUSD]}", ("LTCUSD", "BTCUSD"), ("BTCUSD", "SOLUSD")),
        ("{symbols: [LTCUSD]}", (), ("BTCUSD", "SOLUSD")),
        ("{symbol: ETHUSD}", (), ("BTCUSD", "SOLUSD")),
        ("{symbols: [XRPUSD, ADAUSD]}", ("XRPUSD", "ADAUSD"), ()),
    ],
)
def test_several_symbols_and_what_their_features_need(
    tmp_path: Path, service: str, symbols: tuple[str, ...], cross: tuple[str, ...]
) -> None:
    train = "train: {symbols: [BTCUSD, ETHUSD, LTCUSD], cross: [BTCUSD, SOLUSD]}\n"
    read = read_there(tmp_path, f"service: {service}\n{train}")
    assert (read.symbols, read.cross) == (symbols, cross)


def test_bars_of_every_symbol_go_with_a_replay(tmp_path: Path) -> None:
    train = "train: {symbols: [BTCUSD, ETHUSD], cross: [BTCUSD, SOLUSD]}\n"
    known = inventory(tmp_path, "service: {feed: {kind: replay}}\n" + train)
    assert sorted(desired.replayed(known)) == [
        f"data/replay/{name}USD_1h.parquet" for name in ("BTC", "ETH", "SOL")
    ]


@pytest.mark.parametrize("kind", ["ccxt", "directory"])
def test_other_feeds_need_no_bars_from_here(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bars").mkdir()
    (tmp_path / "bars/BTCUSD_1h.parquet").symlink_to(SAMPLE)
    assert with_bars(tmp_path, kind) == {}


def test_without_bars_here_none_are_sent(tmp_path: Path) -> None:
    assert with_bars(tmp_path) == {}


def test_too_many_bars_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bars").mkdir()
    with (tmp_path / "bars/BTCUSD_1h.parquet").open("wb") as file:
        file.truncate((4 << 20) + 1)
    with pytest.raises(UsageError, match="too large"):
        with_bars(tmp_path)


def test_the_lab_replays_what_its_models_did_not_learn_from() -> None:
    lab = load("lab", root=Path(__file__).parents[3])
    assert lab.service.feed.kind == "replay"
    assert lab.service.feed.start >= 0.85  # the training keeps the last 15 % as its holdout
    assert set(desired.replay_files(lab)) == {"data/replay/BTCUSD_1h.parquet"}


def test_a_policy_that_changes_alone_is_shown_and_goes_live_by_a_restart(tmp_path: Path) -> None:
    here = inventory(tmp_path, "service: {policy: {kind: threshold, fee_bps: 4}}\n")
    wanted = rendered(here, app=str(tmp_path))
    (tmp_path / "before").mkdir()
    before = rendered(inventory(tmp_path / "before", ""), app=str(tmp_path)).service_settings
    facts = {**BASE["facts"], "service_settings": before}
    (diff,) = (d for d in differing(HostState(**facts), wanted, new=False) if "json" in d.name)
    assert (diff.name, diff.by) == ("service.json", "deploy")
    changed = [line for line in diff.text.splitlines()[2:] if line[0] in "+-"]
    assert changed == [
        '-  "fee_bps": 10.0,', '+  "fee_bps": 4.0,',
        '-  "kind": "tilt",', '+  "kind": "threshold",',
    ]  # fmt: skip
