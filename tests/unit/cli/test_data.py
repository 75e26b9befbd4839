"""`invoke data.*` as users type it: what it says, what it writes, and the exit codes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from invoke import Collection, Program

from macd.app.market import bars
from macd.cli import data

CASES = Path(__file__).parents[2] / "cases" / "bars"
CDD = CASES / "dialects" / "cryptodatadownload_am_BTCUSD.csv"
INVENTORY = """
hosts:
  jump: {role: jump, ssh: somewhere}
train: {symbol: BTCUSD, data_dir: ../data/sample}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").touch()
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "lab.yml").write_text(INVENTORY)
    shutil.copytree(Path(__file__).parents[3] / "data" / "sample", tmp_path / "data" / "sample")
    return tmp_path


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Typed = Callable[..., Done]


@pytest.fixture
def invoke(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """Invoke's own program, argument parsing and all, without a new Python for each command."""
    verbs = Collection(
        data=Collection("data", data.import_, data.resample, data.fetch, data.verify)
    )
    monkeypatch.chdir(project)
    monkeypatch.delenv("MACD_ROOT", raising=False)
    monkeypatch.delenv("MACD_INVENTORY", raising=False)

    def typed(*argv: str) -> Done:
        code = 0
        try:
            Program(namespace=verbs).run(["invoke", *argv])
        except SystemExit as exit:
            code = int(exit.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return typed


def test_the_sample_is_verified_by_default(project: Path, invoke: Typed) -> None:
    done = invoke("data.verify")
    assert done.returncode == 0, done.stderr
    assert "BTCUSD 1h in data/sample: 20,111 bars, 2017-07-01 11:00 .. 2019-10-17" in done.stdout
    assert "✓ no errors, 3 warnings" in done.stdout
    document = json.loads(invoke("data.verify", "--json").stdout)
    sample = bars.read_bars(project / "data/sample/BTCUSD_1h_2017-2019.parquet")
    assert document["symbols"] == {"BTCUSD": {"bars": 20111, "digest": bars.digest(sample)}}
    assert [finding["row"] for finding in document["findings"]] == [5154, 9709, 9710]


def test_import_then_verify(project: Path, invoke: Typed) -> None:
    dry = invoke("data.import", str(CDD), "--dry-run")
    assert "would be in data/bars/BTCUSD_1h.parquet: 30 bars (30 new" in dry.stdout
    assert not (project / "data" / "bars").exists()
    done = invoke("data.import", str(CDD))
    assert done.returncode == 0, done.stderr
    assert "volume=Volume BTC" in done.stdout
    assert "! the file is newest first: turned round" in done.stdout
    assert "! the times name no zone and are taken as UTC" in done.stdout
    path = project / "data" / "bars" / "BTCUSD_1h.parquet"
    first = path.read_bytes()
    again = invoke("data.import", str(CDD))
    assert "(0 new, 30 there already, 0 replaced)" in again.stdout
    assert path.read_bytes() == first
    suggested = done.stdout.split("next: invoke ")[1].split()
    assert invoke(*suggested).returncode == 0


def test_errors_are_named_with_a_remedy_and_exit_1(project: Path, invoke: Typed) -> None:
    directory = project / "mine"
    directory.mkdir()
    frame = pl.read_csv(CASES / "defects" / "duplicate_same.csv", comment_prefix="#")
    stamp = pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    path = directory / "BTCUSD_1h.parquet"
    frame.with_columns(stamp).write_parquet(path)
    before = path.read_bytes()
    done = invoke("data.verify", "--data", "mine")
    assert done.returncode == 1
    assert "✗ error duplicate    row 6, 2024-01-03 05:00: the same bar again" in done.stdout
    assert "duplicate: invoke data.import THAT-FILE --overwrite" in done.stdout
    assert path.read_bytes() == before
    document = json.loads(invoke("data.verify", "--data", "mine", "--json").stdout)
    assert (document["errors"], document["warnings"]) == (1, 0)
    # The remedy, as printed.
    repair = ["data.import", "mine/BTCUSD_1h.parquet", "--overwrite", "--data", "mine"]
    done = invoke(*repair)
    assert "1 rows repeat a bar exactly" in done.stdout
    assert invoke("data.verify", "--data", "mine").returncode == 0


def test_conflicts_are_refused_with_6_unless_replaced(project: Path, invoke: Typed) -> None:
    invoke("data.import", str(CDD))
    other = project / "other_BTCUSD.csv"
    other.write_text(CDD.read_text().replace("8171.50", "8171.40"))
    done = invoke("data.import", str(other))
    assert done.returncode == 6
    assert "1 bars are there already with other values" in done.stderr
    assert "2019-10-16 04:00: open 8171.5 -> 8171.4" in done.stderr
    done = invoke("data.import", str(other), "--replace")
    assert "(0 new, 29 there already, 1 replaced)" in done.stdout


def recent(project: Path, until: datetime) -> Path:
    path = project / "BTCUSD_1h.csv"
    hour = until.replace(minute=0, second=0, microsecond=0)
    rows = [f"{hour - timedelta(hours=i):%Y-%m-%d %H:%M},9,10,8,9.{i:02},1" for i in range(30)]
    path.write_text("\n".join(["time,open,high,low,close,volume", *rows]) + "\n")
    return path


def test_a_bar_still_open_is_left_out_and_the_future_is_refused(
    project: Path, invoke: Typed
) -> None:
    now = datetime.now(UTC)
    done = invoke("data.import", str(recent(project, now)))
    assert done.returncode == 0, done.stderr
    assert "is not closed yet: left out" in done.stdout
    assert "29 new" in done.stdout
    later = recent(project, now + timedelta(hours=8))
    done = invoke("data.import", str(later))
    assert done.returncode == 2
    assert "bars are in the future" in done.stderr
    done = invoke("data.import", str(later), "--timezone", "+08:00")
    assert done.returncode == 0, done.stderr
    assert "(0 new, 29 there already, 0 replaced)" in done.stdout


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["data.import", "none.csv"], "none.csv can't be read"),
        (["data.import", str(CDD), "--dates", "ydm"], "--dates 'ydm' is not known"),
        (["data.import", str(CDD), "--since", "monday"], "--since 'monday' is not a time"),
        (["data.import", str(CDD), "--until", "2000-01-01"], "no bar is between"),
        (["data.import", str(CDD), "--tf", "4h"], "these are not 4h bars"),
        (["data.verify", "--limits", "spikes=3"], "limit 'spikes=3' is not understood"),
        (["data.verify", "--symbol", "XRPUSD"], "no bars at"),
        (["data.verify", "--data", "data"], "no 1h bars in data"),
        (["data.fetch", "--since", "2024-01-01"], "which market?"),
        (["data.fetch", "--symbol", "BTC/USDT", "--dry-run"], "from when on?"),
        (["data.fetch", "--symbol", "BTC/USDT", "--exchange", "binans"], "no exchange"),
    ],
)
def test_what_can_not_be_done_says_why_and_what_to_type(
    invoke: Typed, argv: list[str], what: str
) -> None:
    done = invoke(*argv)
    assert what in done.stderr
    assert "  do: " in done.stderr
    assert done.returncode == (1 if "no bars" in what or "in data" in what else 2)
    assert "Traceback" not in done.stderr


def test_errors_for_machines(project: Path, invoke: Typed) -> None:
    done = invoke("data.import", str(CDD), "--tf", "4h", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (2, 2)
    assert "these are not 4h bars" in document["error"]["what"]
    assert "--tf 1h" in document["error"]["hint"]


def test_fetch_says_what_it_would_ask_for(project: Path, invoke: Typed) -> None:
    invoke("data.import", str(CDD))
    done = invoke(
        "data.fetch", "--symbol", "BTC/USD", "--dry-run", "--since", "2019-10-16",
        "--until", "2019-10-18",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2019-10-16 00:00 .. 2019-10-16 03:00 UTC" in done.stdout
    assert "2019-10-17 10:00 .. 2019-10-18 00:00 UTC" in done.stdout


MARKETS = CASES / "markets"


def test_a_real_market_is_accepted_in_the_inventory_and_on_the_line(
    project: Path, invoke: Typed
) -> None:
    rows = pl.read_csv(MARKETS / "ATOMUSDT_1h.csv").with_columns(volume=pl.lit(1000.0))
    rows.write_csv(project / "ATOMUSDT_1h.csv")  # no volume that would tell of a crash
    invoke("data.import", str(project / "ATOMUSDT_1h.csv"), "--data", "mine")
    asked = ("data.verify", "--data", "mine", "--symbol", "ATOMUSDT")
    refused = invoke(*asked)
    assert refused.returncode == 1
    assert "data.fetch" not in refused.stdout
    (typed,) = re.findall(r'--accept "(.*)"', refused.stdout)
    done = invoke(*asked, "--accept", typed)
    assert done.returncode == 0, done.stdout
    assert "· accepted spike" in done.stdout
    assert "(accepted: WHY)" in done.stdout
    assert "1 accepted" in done.stdout.splitlines()[-1]
    document = json.loads(invoke(*asked, "--accept", typed, "--json").stdout)
    assert (document["errors"], document["accepted"]) == (0, 1)
    # The other two remedies, as printed.
    for line in re.findall(r"train: \{(.*)\}$", refused.stdout, re.MULTILINE):
        text = INVENTORY.replace("data_dir", f"{line}, data_dir")
        (project / "inventory" / "lab.yml").write_text(text)
        assert invoke(*asked).returncode == 0, line
    other = "check=gap,symbol=ATOMUSDT,from=2025-10-01,to=2025-10-02,reason=x"
    (project / "inventory" / "lab.yml").write_text(INVENTORY)
    absent = invoke(*asked, "--accept", typed, "--accept", other)
    assert "! accepted, and not found in these bars: check=gap,symbol=ATOMUSDT" in absent.stdout
    wrong = invoke(*asked, "--accept", "check=nan,symbol=ATOMUSDT,reason=x")
    assert wrong.returncode == 2
    assert "can't be accepted" in wrong.stderr


def test_a_new_denomination_is_an_error_and_both_remedies_work(
    project: Path, invoke: Typed
) -> None:
    original = str(MARKETS / "BTTCUSDT_1h.csv")
    invoke("data.import", original, "--data", "mine")
    asked = ("data.verify", "--data", "mine", "--symbol", "BTTCUSDT")
    refused = invoke(*asked)
    assert refused.returncode == 1
    assert "✗ error denomination" in refused.stdout
    commands = re.findall(r"invoke (data\.import ORIGINAL-FILE .*)", refused.stdout)
    newer, older, join = (line.replace("ORIGINAL-FILE", original).split() for line in commands)
    assert invoke(*older).returncode == 0
    assert invoke(*join).returncode == 0
    assert invoke(*asked).returncode == 0
    whole = pl.read_parquet(project / "mine" / "BTTCUSDT_1h.parquet")
    truth = pl.read_csv(original)
    assert whole.height == truth.height
    assert whole["close"].max() / whole["close"].min() < 1.5
    assert whole["volume"][0] == pytest.approx(truth["volume"][0] / 1000)
    assert invoke(*newer).returncode == 0
    assert invoke(*asked).returncode == 0
    assert 0 < pl.read_parquet(project / "mine" / "BTTCUSDT_1h.parquet").height < truth.height
    assert invoke("data.import", original, "--factor", "0").returncode == 2


def test_a_file_s_own_names_move_no_cursor(project: Path, invoke: Typed) -> None:
    text = CDD.read_text().replace("Open", "Open\x1b[", 1).replace("open", "open\x1b[", 1)
    assert "\x1b" in text
    (project / "in_BTCUSD.csv").write_text(text)
    done = invoke("data.import", str(project / "in_BTCUSD.csv"), "--data", "there")
    assert done.returncode == 0, done.stderr
    assert "read as:" in done.stdout
    assert "\x1b" not in done.stdout


def test_minutes_become_hours_at_import_and_afterwards(project: Path, invoke: Typed) -> None:
    rows = [
        f"{1704067200 + 60 * i},{100 + i % 7},{110 + i % 7},{90 + i % 7},{100 + (i + 1) % 7},2"
        for i in range(125)
    ]
    (project / "BTCUSD_1m.csv").write_text("time,open,high,low,close,volume\n" + "\n".join(rows))
    asked = ("data.import", str(project / "BTCUSD_1m.csv"), "--data", "there")
    wrong = invoke(*asked, "--tf", "1h")
    assert wrong.returncode == 2
    assert "--resample 1h" in wrong.stderr
    at_once = invoke(*asked, "--resample", "1h")
    assert at_once.returncode == 0, at_once.stderr
    assert "1m bars at the ends that fill no whole 1h: 5 left out" in at_once.stdout
    whole = pl.read_parquet(project / "there" / "BTCUSD_1h.parquet")
    assert whole["volume"].to_list() == [120.0, 120.0]
    assert invoke(*asked).returncode == 0
    later = invoke("data.resample", "--symbol", "BTCUSD", "--tf", "1h", "--data", "there", "--json")
    assert later.returncode == 0, later.stderr
    document = json.loads(later.stdout)
    assert (document["same"], document["added"], document["of"]) == (
        2,
        0,
        "there/BTCUSD_1m.parquet",
    )
    none = invoke("data.resample", "--symbol", "ETHUSD", "--tf", "1h", "--data", "there")
    assert none.returncode == 2
    assert "nothing of it" in none.stderr


def test_currencies_pass_by_their_own_hours(project: Path, invoke: Typed) -> None:
    invoke("data.import", str(MARKETS / "EURUSD_1h.csv"), "--data", "mine")
    asked = ("data.verify", "--data", "mine", "--symbol", "EURUSD")
    refused = invoke(*asked)
    assert refused.returncode == 1
    lines = re.findall(r"(.*): invoke (data\.verify .* --market fx)", refused.stdout)
    rests = "a market that rests then"
    assert [why for why, _ in lines] == [f"  gap: {rests}", f"  missing: {rests}"], "each once"
    ((_, suggested),) = {("", command) for _, command in lines}
    assert invoke(*suggested.split()).returncode == 0
    text = INVENTORY.replace("data_dir", "market: fx, data_dir")
    (project / "inventory" / "lab.yml").write_text(text)
    assert invoke(*asked).returncode == 0
    assert invoke(*asked, "--market", "bonds").returncode == 2
