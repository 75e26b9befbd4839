"""Each reason not to start is named, with what to do; what is fine does not stand in the way."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.app.train.settings import Settings, settings_from
from macd.inventory import TrainSettings, project_root
from macd.jobs.preflight import PACKAGES, Check, check_data, check_host
from macd.ssh.facts import Clock, Disk, Facts, Gpu, OperatingSystem, Python, Systemd, User
from macd.ssh.session import Finished

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings()
GOOD = {"python": [3, 11, 2], "packages": {"torch": "2.6"}, "errors": {}, "cuda": ["H800"]}
DISK = Disk("/work", True, True, 10**12, 10**11, 10**6, 1)
FACTS = Facts(
    hostname="h800",
    user=User("quant", 1000, 1000, "/home/quant", "/bin/bash"),
    os=OperatingSystem("Linux", "6", "x86_64", "debian", "12", "Debian", {}, "b", 1.0),
    python=Python("/usr/bin/python3", "3.11.2", "cpython", "", "linux-x86_64", True),
    cpus=8,
    load=(0.0, 0.0, 0.0),
    memory={"total": 1, "available": 1},
    disks=(DISK,),
    systemd=Systemd(None, False, "", "", ""),
    gpus=(Gpu("NVIDIA H800", "u", 1, 1, "550"),),
    tools={},
    time=0.0,
    clock=Clock(0.1, 0.2),
)
TRAIN = TrainSettings(data_dir=Path("/data"), min_free_gb=20, require_gpu=True)


def probe(answer: Any = None, **changes: Any) -> Finished:
    text = f"chatter\n{json.dumps({**GOOD, **(answer or {})})}\n".encode()
    return replace(Finished(0, text, b"", 0, False, 1.0), **changes)


def judged(
    facts: Facts = FACTS, answer: Finished | None = None, newest: Any = None, **changes: Any
) -> dict[str, Check]:
    train = TRAIN.model_copy(update=changes)
    return {c.name: c for c in check_host(facts, answer or probe(), newest, train)}


def test_a_good_host_has_nothing_against_it() -> None:
    assert {check.level for check in judged().values()} == {"ok"}
    assert judged()["gpu"].detail == "H800"


@pytest.mark.parametrize(
    ("name", "level", "word", "case"),
    [
        ("free", "error", "train.attach", {"newest": {"state": "RUNNING", "run": "r"}}),
        ("disk", "error", "20 GB", {"facts": replace(FACTS, disks=(replace(DISK, free=10**9),))}),
        (
            "disk",
            "error",
            "chown",
            {"facts": replace(FACTS, disks=(replace(DISK, writable=False),))},
        ),
        ("clock", "warn", "set-ntp", {"facts": replace(FACTS, clock=Clock(-90.0, 0.1))}),
        ("python", "error", "Killed", {"answer": probe(stdout=b"", stderr=b"Killed", exit=-9)}),
        ("python", "error", "in time", {"answer": probe(stdout=b"", timed_out=True)}),
        (
            "packages",
            "error",
            "pip install TA-Lib",
            {"answer": probe({"errors": {"TA-Lib": "no"}})},
        ),
        ("gpu", "error", "torch can't use it", {"answer": probe({"cuda": []})}),
        (
            "gpu",
            "error",
            "require_gpu: false",
            {"answer": probe({"cuda": []}), "facts": replace(FACTS, gpus=())},
        ),
    ],
)
def test_a_reason_not_to_start_is_told(
    name: str, level: str, word: str, case: dict[str, Any]
) -> None:
    check = judged(**case)[name]
    assert check.level == level
    assert word in check.detail + check.hint


def test_the_packages_are_those_the_train_extra_asks_for() -> None:
    """Asking for more refuses good hosts; asking for less lets a run fail later."""
    document = tomllib.loads((project_root() / "pyproject.toml").read_text())
    extras = document["project"]["optional-dependencies"]
    named = {re.split("[><=]", one)[0] for one in [*extras["market"], *extras["train"]]}
    assert set(PACKAGES.values()) == named - {"macd[market]"}


def test_without_a_required_gpu_the_cpu_will_do() -> None:
    facts = replace(FACTS, gpus=())
    assert judged(facts, probe({"cuda": []}), require_gpu=False)["gpu"].level == "ok"


def test_a_far_clock_behind_a_slow_link_is_not_accused() -> None:
    assert judged(replace(FACTS, clock=Clock(6.0, 4.0)))["clock"].level == "ok"


def test_a_finished_run_is_not_in_the_way() -> None:
    assert judged(newest={"state": "DONE", "run": "r"})["free"].level == "ok"


def test_bars_are_checked_before_they_travel(tmp_path: Path) -> None:
    bars = read_bars(project_root() / "data/sample/BTCUSD_1h_2017-2019.parquet")[:300]
    write_bars(bars, tmp_path / "good.parquet")
    [fine] = check_data({"BTCUSD": tmp_path / "good.parquet"}, SETTINGS, NOW)
    assert (fine.level, "300 bars" in fine.detail) == ("ok", True)
    broken = bars.with_columns(high=pl.col("low") - 1)
    broken.write_parquet(tmp_path / "bad.parquet")
    [bad] = check_data({"BTCUSD": tmp_path / "bad.parquet"}, SETTINGS, NOW)
    assert bad.level == "error"
    assert "invoke data.verify" in bad.hint
    bars[:100].vstack(bars[140:]).write_parquet(tmp_path / "hole.parquet")
    hole = {"BTCUSD": tmp_path / "hole.parquet"}
    assert check_data(hole, SETTINGS, NOW)[0].level == "error"
    let = {"limits": {"gap_error": 40, "missing_error": 0.2}}
    assert check_data(hole, settings_from(let), NOW)[0].level == "ok"
    whole = [f"check={check},symbol=BTCUSD,reason=it stood still" for check in ("gap", "missing")]
    [accepted] = check_data(hole, settings_from({"accept": whole}), NOW)
    assert (accepted.level, accepted.detail.split(", ")[-1]) == ("ok", "2 accepted")
