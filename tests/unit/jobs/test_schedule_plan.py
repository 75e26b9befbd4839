"""What is put on a host that trains by itself, and what is shown of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from macd.cli.schedule import lines
from macd.errors import UsageError
from macd.inventory import Inventory
from macd.inventory.models import FeedSettings
from macd.jobs import record, schedule
from macd.jobs import request as requests
from macd.jobs.schedule import Champion
from macd.journal import Journal
from tests.unit.jobs import test_jobs_request, test_own_request
from tests.unit.jobs.test_jobs_request import NOW

inventory = test_jobs_request.inventory
source = test_own_request.source
NOBODY = Champion(why="nothing is live")


def changed(inventory: Inventory, feed: FeedSettings | None = None, **train: Any) -> Inventory:
    service = inventory.service.model_copy(update={"feed": feed or inventory.service.feed})
    settings = inventory.train.model_copy(update={"schedule": "Sun 03:00", **train})
    return inventory.model_copy(update={"service": service, "train": settings})


def planned(inventory: Inventory) -> dict[str, Any]:
    raw = requests.settings_of(inventory, {})
    bars = requests.data_files(raw, inventory.train.data_dir)
    request = requests.make(raw, bars, python="python3", env={"A": "b"}, now=NOW)
    return schedule.plan_of(inventory, inventory.host("h800"), request, NOBODY, NOW)


def test_new_bars_come_from_the_exchange_of_the_service_or_a_directory(
    inventory: Inventory,
) -> None:
    feed = FeedSettings(kind="ccxt", exchange="kraken", api_url="https://proxy.example.com")
    plan = planned(changed(inventory, feed))
    assert plan["source"]["question"] == {
        "exchange": "kraken",
        "api_url": "https://proxy.example.com",
        "tf": "1h",
        "symbols": ["BTCUSD"],
    }
    assert plan["bars"] == {"data/BTCUSD_1h.parquet": "BTCUSD_1h.parquet"}
    assert plan["files"]["data/BTCUSD_1h.parquet"]
    assert plan["env"]["A"] == "b"
    directory = planned(changed(inventory, feed, schedule_bars="~/synced"))["source"]
    assert directory == {"kind": "directory", "directory": "~/synced"}
    with pytest.raises(UsageError, match="where do new bars come from") as caught:
        planned(changed(inventory, FeedSettings(kind="replay")))
    assert "train.schedule_bars" in caught.value.hint


@pytest.mark.parametrize("directory", ["", "~/synced"])
def test_stages_of_an_own_application_bring_their_bars_unless_a_directory_does(
    source: Path, directory: str
) -> None:
    inventory = test_own_request.inventory(source)
    request = test_own_request.request(inventory)
    inventory = changed(inventory, schedule_bars=directory or None)
    plan = schedule.plan_of(inventory, inventory.host("h800"), request, NOBODY, NOW)
    name = "data/klines/ETHUSDT_1h.csv"
    assert plan["bars"] == ({f"source/{name}": name} if directory else {})
    assert plan["source"]["kind"] == ("directory" if directory else "none")
    assert plan["check"] == plan["compare"] == ""


def test_of_the_live_run_only_figures_and_tables_are_sent(tmp_path: Path) -> None:
    kept = {"metrics.json", "data/ml_models/lgbm_1h_meta.json", "data/gpu_results/oof_1h.parquet"}
    left = {"data/ml_models/lgbm_1h_5h.txt", "data/ml_models/lstm_1h.pt", "log", "report.html"}
    left |= {"bars/BTCUSD_1h.parquet", "artefacts/m.json"}
    for name in kept | left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert schedule.compared(tmp_path).files.keys() == kept


def test_what_trains_by_itself_is_known_here(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for host, on in (("h800", "Sun 03:00"), ("h801", "Mon 03:00"), ("h800", "Tue 03:00")):
        journal.append(record.SCHEDULED, {"host": host, "on": on}, now=now)
    journal.append(record.UNSCHEDULED, {"host": "h801"}, now=now)
    assert record.scheduled(journal) == {"h800": "Tue 03:00"}


def test_a_timer_that_does_not_run_and_another_live_run_are_named(inventory: Inventory) -> None:
    plan = planned(changed(inventory, schedule_bars="~/synced"))
    answer = {
        "plan": plan,
        "timer": {"unit": "macd-train-x.timer", "runs": False, "next": "", "last": ""},
        "cron": [],
        "runs": [{"run": "r1", "ended": ""}],
        "messages": [{"at": "2026-01-01T00:00:00+00:00", "text": "one\ntwo"}],
        "unsent": 2,
        "notifies": True,
    }
    said = "\n".join(lines("h800", answer, "r9"))
    assert "✗ macd-train-x.timer does not run; do: invoke train.schedule" in said
    assert "beside   nothing: nothing is live" in said
    assert "! run r9 is live now" in said
    assert "2 wait to be sent" in said
    assert "r1 in progress, or not checked yet" in said
    assert list(lines("h800", {}, "")) == ["nothing is scheduled on h800"]
    answer |= {"timer": None, "cron": ["0 3 * * 0 x"], "notifies": False}
    said = "\n".join(lines("h800", answer, ""))
    assert "crontab -e, and add\n           0 3 * * 0 x\n" in said
    assert "to nobody: set alerts.notify_url" in said


def test_several_symbols_are_trained_on_new_bars_of_each(inventory: Inventory) -> None:
    feed = FeedSettings(kind="ccxt")
    other = inventory.train.data_dir / "ETHUSD_1h.parquet"
    other.write_bytes(b"bars of ether")
    symbols = ("BTCUSD", "ETHUSD")
    plan = planned(changed(inventory, feed, symbols=symbols, symbol="BTCUSD"))
    assert plan["source"]["question"]["symbols"] == list(symbols)
    assert sorted(plan["bars"].values()) == ["BTCUSD_1h.parquet", "ETHUSD_1h.parquet"]
