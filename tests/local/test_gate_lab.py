"""The gate on the embedded lab, as typed: logs written on prod, judged here, signed, refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd.errors import RefusedError
from macd.gate import evidence, report
from macd.host.flag.evidence import blockers
from macd.journal import Journal
from macd.lab import LabState
from macd.ssh.session import open_session
from tests.support import signal_lines
from tests.support.lab_project import Project, project

TASKS = """
from invoke import Collection
from macd.cli import deploy, doctor, gate, logs, provision, status, usage
usage.install()
namespace = Collection(deploy.deploy, provision.provision, gate.shadow_gate, logs.logs)
namespace.add_task(doctor.doctor)
namespace.add_task(status.why)
"""


SHARE = {"mean": 0.009, "spread": 0.0075}
DETAILS = {
    "symbol": "BTCUSD",
    "drift": {
        "block": 168,
        "assets": {"BTCUSD": {"count": 98, "features": 82, "outside": SHARE, "worst": SHARE}},
    },
}


@pytest.fixture(scope="module")
def deployed(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose release is live, with an empty log; tests fill it."""
    made = project(lab, tmp_path_factory.mktemp("gate"), "gate-lab")
    (made.root / "tasks.py").write_text(TASKS)
    made.invoke("provision", "--yes")
    made.release(1, details=DETAILS)
    made.invoke("deploy", "--yes")
    return made


@pytest.fixture
def ready(deployed: Project) -> Project:
    shutil.rmtree(deployed.app / "data/live", ignore_errors=True)
    shutil.rmtree(deployed.inventory.state_dir / "logs", ignore_errors=True)
    return deployed


def now() -> datetime:
    return datetime.now(UTC)


def fill(place: Project, n: int = 30, **more: Any) -> None:
    more.setdefault("release", place.live)
    more.setdefault("end", now())
    signal_lines.write(place.app / "data/live", signal_lines.lines(n, **more))


def test_good_logs_pass_and_the_signed_report_stands(ready: Project) -> None:
    fill(ready)
    told = ready.json("shadow-gate")
    assert told["verdict"] == "PASS"
    assert told["opens_nothing"] == []
    assert told["bars"] == 30
    host = ready.inventory.host("prod")
    read = report.read(report.newest(ready.inventory, "prod"), ready.inventory)
    assert read.document["release"] == ready.live
    sha = read.document["manifest_sha256"]
    assert len(sha) == 64
    live = {"release": ready.live, "manifest_sha256": sha, "env": "prod"}
    assert blockers(read.document, **live, note=None, now=now()) == []
    with open_session(host, ready.inventory) as session:
        assert evidence.same_on_host(session, host.app_dir, read.document["logs"]) == []
        log = next((ready.app / "data/live").glob("trades_*.jsonl"))
        content = log.read_bytes()
        log.write_bytes(content.replace(b'"HOLD"', b'"SELL"', 1))
        (why,) = evidence.same_on_host(session, host.app_dir, read.document["logs"])
        assert "other content" in why
    record = Journal(ready.inventory.state_dir / "journal.jsonl").records()[-1]
    assert record.kind == "gate.judged"
    path = ready.inventory.state_dir / str(record.fields["report"])
    assert record.fields["report_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_damaged_journal_here_hides_no_verdict_and_no_host(ready: Project) -> None:
    fill(ready)
    journal = ready.inventory.state_dir / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole.replace(b'"prod"', b'"pr0d"', 1))
    try:
        told = ready.json("shadow-gate")
        assert told["verdict"] == "PASS"
        assert "not recorded in the journal: the journal is damaged" in told["warnings"][0]
        said = ready.invoke("why", code=1)
        assert f"live          {ready.live}" in said
        assert "✗ the journal is damaged at record 1" in said
        told = ready.json("why", code=1)
        assert told["hosts"][0]["live"] == ready.live
        assert told["error"]["what"] == "the journal is damaged at record 1"
    finally:
        journal.write_bytes(whole)


def test_drift_is_told_by_all_who_look_and_fails_nothing(ready: Project) -> None:
    """The bars lie in files of eight days; the gate's own window holds two of them."""
    every = timedelta(hours=1)
    fill(ready, 168, every=every, ml_features_outside=9, ml_feature_worst="rsi_14")
    told = ready.json("shadow-gate", "--min-bars", "20")
    assert told["verdict"] == "PASS"
    assert (told["bars"], told["drift"]["bars"]) == (48, 168)
    assert (told["drift"]["outcome"], told["drift"]["feature"]) == ("drift", "rsi_14")
    assert any(note.startswith("drift: 11.0 % of") for note in told["notes"])
    assert "<h3>Drift</h3>" in Path(told["page"]).read_text()
    doctor = ready.json("doctor", code=1)
    (found,) = [one for one in doctor["hosts"][0]["findings"] if one["name"] == "features"]
    assert found["ok"] is False
    assert "rsi_14" in found["evidence"]


def test_an_edited_or_forged_report_is_not_read(ready: Project) -> None:
    fill(ready, ml_error="tft: broken")
    assert ready.json("shadow-gate", code=1)["verdict"] == "FAIL"
    path = report.newest(ready.inventory, "prod")
    path.write_bytes(path.read_bytes().replace(b'"FAIL"', b'"PASS"'))
    with pytest.raises(RefusedError, match="can't be trusted"):
        report.read(path, ready.inventory)
    path.with_name(report.SIGNATURE).unlink()
    with pytest.raises(RefusedError, match="can't be trusted"):
        report.read(path, ready.inventory)


def test_inconclusive_says_what_is_missing(ready: Project) -> None:
    close = timedelta(milliseconds=1)  # what is appended goes behind what is there at midnight too
    fill(ready, 12, every=close)
    told = ready.invoke("shadow-gate", code=3)
    assert "INCONCLUSIVE" in told
    assert "8 more bars" in told
    fill(ready, 20, first_seq=15, every=close)
    told = ready.invoke("shadow-gate", code=3)
    assert "gap: seq 13 to 14 are missing" in told
    typed = ready.start("logs", "--lines", "1")
    out, err = typed.communicate(timeout=180)
    assert (len(out.splitlines()), err.splitlines()) == (
        1,
        ["note: gap: seq 13 to 14 are missing"],
    )
    told = ready.invoke("shadow-gate", "--rule", "sequential", "--min-bars", "5", code=3)
    assert "days hold" not in told  # these bars came faster than the clock: waiting helps
    assert "can't enable stacking: min_bars laxer than in inventory lab" in told


def test_skill_is_judged_on_all_bars_of_the_release_by_logs_that_are_named(ready: Project) -> None:
    made = signal_lines.skilled(330, end=now(), release=ready.live)
    signal_lines.write(ready.app / "data/live", made)
    told = ready.json("shadow-gate", code=1)
    assert told["verdict"] == "FAIL"
    assert "stacking is proved worse than the mean of the models" in told["reasons"][0]
    assert told["bars"] < 60
    assert told["skill"]["against"]["mean"]["n"] == 325
    assert len(told["logs"]) == len(list((ready.app / "data/live").glob("trades_*.jsonl"))) > 10
    laxer = ready.json("shadow-gate", "--skill", "off")
    assert laxer["verdict"] == "PASS"
    assert any("skill laxer than" in why for why in laxer["blockers"])
    made = signal_lines.skilled(330, end=now(), release=ready.live, worse=False)
    shutil.rmtree(ready.app / "data/live")
    shutil.rmtree(ready.inventory.state_dir / "logs")
    signal_lines.write(ready.app / "data/live", made)
    better = ready.json("shadow-gate", "--skill", "better")
    assert (better["verdict"], better["blockers"]) == ("PASS", [])


def test_lines_of_another_release_prove_nothing(ready: Project) -> None:
    fill(ready, release="20250101T000000Z-deadbeef")
    told = ready.json("shadow-gate", code=3)
    assert told["bars"] == 0
    assert any("20250101T000000Z-deadbeef" in why for why in told["reasons"])


def test_stale_logs_prove_nothing(ready: Project) -> None:
    fill(ready, end=now() - timedelta(hours=9))
    told = ready.json("shadow-gate", code=3)
    assert any("stale" in why for why in told["reasons"])


def test_a_log_changed_on_the_host_is_named(ready: Project) -> None:
    fill(ready)
    ready.json("shadow-gate")
    log = next((ready.app / "data/live").glob("trades_*.jsonl"))
    content = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(content[1:]))
    told = ready.json("shadow-gate", code=3)
    assert any("not the file that was fetched before" in why for why in told["reasons"])


def test_a_log_deleted_on_the_host_is_named(ready: Project) -> None:
    yesterday = now() - timedelta(days=1)
    fill(ready, end=yesterday)
    fill(ready, first_seq=31)
    assert ready.json("shadow-gate")["verdict"] == "PASS"
    lost = ready.app / f"data/live/trades_{yesterday:%Y%m%d}.jsonl"
    lost.unlink()
    told = ready.json("shadow-gate", code=3)
    assert f"{lost.name} is not on the host any more" in told["reasons"]
    assert f"{lost.name} was fetched before and is not on the host any more" in told["notes"]


def test_a_service_that_only_complains_proves_nothing(ready: Project) -> None:
    fill(ready, end=now() - timedelta(hours=9))
    tail = (
        signal_lines.warning(
            "feed", None, at=now() - timedelta(minutes=5 * (99 - i)), seq=31 + i, release=ready.live
        )
        for i in range(100)
    )
    signal_lines.write(ready.app / "data/live", tail)
    told = ready.json("shadow-gate", code=3)
    assert told["reasons"] == ["stale: the newest bar was logged 9 h ago"]


def test_a_laxer_rule_and_local_files_open_nothing(ready: Project, tmp_path: Path) -> None:
    fill(ready, 10)
    told = ready.json("shadow-gate", "--min-bars", "5")
    assert told["verdict"] == "PASS"
    assert told["opens_nothing"] == ["min_bars laxer than in inventory lab"]
    fill(ready, 20, first_seq=11)
    told = ready.json("shadow-gate", "--days", "1")
    assert (told["verdict"], told["opens_nothing"]) == (
        "PASS",
        ["days laxer than in inventory lab"],
    )
    typed = ("shadow-gate", "--logs", str(ready.app / "data/live"), "--min-bars", "5")
    assert "can't enable stacking: local files were analysed" in ready.invoke(*typed)
    told = ready.json(*typed)
    assert told["verdict"] == "PASS"
    assert any("local files" in why for why in told["opens_nothing"])
    assert not Path(told["path"]).with_name(report.SIGNATURE).exists()
    assert json.loads(Path(told["path"]).read_bytes())["source"] == "files"


def test_wrong_words_on_the_command_line(ready: Project, tmp_path: Path) -> None:
    for words in (("--rule", "maybe"), ("--days", "-1"), ("--days", "nan"), ("--min-bars", "-3")):
        ready.invoke("shadow-gate", *words, code=2)
    ready.invoke("shadow-gate", "--logs", str(tmp_path), code=2)


def test_logs_are_shown_searched_and_followed(ready: Project) -> None:
    fill(ready, 30)
    shown = ready.invoke("logs", "--lines", "3").splitlines()
    assert [json.loads(line)["seq"] for line in shown] == [28, 29, 30]
    found = ready.json("logs", "--grep", '"seq":7,')
    assert [json.loads(line)["seq"] for line in found["lines"]] == [7]
    ready.invoke("logs", "--grep", "(", code=2)
    with ready.start("logs", "--follow", "--grep", "ml_", "--lines", "1") as typed:
        assert typed.stdout is not None
        assert json.loads(typed.stdout.readline())["seq"] == 30
        fill(ready, 2, first_seq=31)
        assert [json.loads(typed.stdout.readline())["seq"] for _ in range(2)] == [31, 32]
        typed.send_signal(signal.SIGINT)
        typed.communicate(timeout=180)
