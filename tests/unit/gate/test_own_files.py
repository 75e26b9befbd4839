"""`shadow-gate --logs` about lines of an application of the team's own."""

from __future__ import annotations

import gzip
import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from macd.cli.gate import _whose, report_lines
from macd.errors import RefusedError, UsageError
from macd.gate import flag, own, page, report
from macd.gate.own import meaning
from macd.host.flag.flag_file import LIVE, SHADOW
from macd.host.judge.gate import Decision
from macd.host.own import Flag
from macd.inventory import Inventory, load
from tests.unit.gate.test_own_lines import SIGNALS, counted, hours

EXAMPLE = Path(__file__).parents[3] / "inventory" / "own-app.example.yml"
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def inventory(root: Path, **change: Any) -> Inventory:
    document = yaml.safe_load(EXAMPLE.read_text())
    for path, value in change.items():
        section, _, key = path.partition("__")
        document.setdefault(section, {})[key] = value
    (root / "inventory").mkdir()
    (root / "inventory/ours.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    return load("ours", root=root)


def test_a_folder_of_lines_is_judged_and_allows_nothing(tmp_path: Path) -> None:
    ours = inventory(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    lines = [json.dumps(line) for line in hours(30, ml_lgb_prob=None)]
    (logs / "trade_1.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:20]).encode() + b"\n"))
    (logs / "trade_2.jsonl").write_text("\n".join(lines[20:]) + "\n{torn\n")
    judged = report.of_files(ours, logs, report.rule_of(ours), None, NOW + timedelta(days=9))
    assert judged.decision.verdict == "PASS", judged.decision.reasons
    document = judged.document
    assert document["bars"] == 31
    assert document["rule"]["skill"] == "off"
    assert "local files were analysed" in document["blockers"][0]
    assert document["own"]["signals"]["level"] == "SIGNAL"
    shown = "\n".join(report_lines(document))
    for said in (
        "lgb_normal",
        "(warns only)",
        "not judged: golden predictions",
        "1 file comp",
    ):
        assert said in shown
    assert "realised AUC" not in shown
    assert "Not judged: golden predictions" in page.page(document)


def test_without_signals_there_is_nothing_to_judge(tmp_path: Path) -> None:
    ours = inventory(tmp_path, app__signals=None)
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="nothing to judge"):
        report.of_files(ours, tmp_path, report.rule_of(ours), None, NOW)


@pytest.mark.parametrize(
    ("change", "wanted", "weight", "said"),
    [
        ({"app__flag": None}, LIVE, None, "has no flag"),
        ({"app__flag": None}, SHADOW, None, "has no flag"),
        ({}, LIVE, 25, "knows no weights"),
        ({"guard__steps": [25, 100]}, LIVE, None, "knows no weights"),
    ],
)
def test_what_it_does_not_have_is_refused_before_any_host_is_asked(
    tmp_path: Path, change: dict[str, Any], wanted: str, weight: int | None, said: str
) -> None:
    ours = inventory(tmp_path, **change)
    with pytest.raises(RefusedError, match=said):
        flag.prepare(ours.hosts["prod"], ours, wanted, weight)


def test_a_pass_says_what_it_permits() -> None:
    flag, passed = Flag("USE", "on", "off", "env"), Decision("PASS", ())
    words = meaning(flag, passed, SIGNALS)
    assert words.startswith("A PASS permits to set USE=on for this release on this host")
    assert "golden predictions, skill" in words
    assert "would permit" in meaning(flag, Decision("FAIL", ()), SIGNALS)
    assert "permits nothing here" in meaning(None, passed, SIGNALS)


def test_skill_is_judged_where_the_map_says_enough(tmp_path: Path) -> None:
    fields = yaml.safe_load(EXAMPLE.read_text())["app"]["signals"]["map"]
    more = {"mean": "mean", "close": "close", "horizon": "horizon"}
    signals = {"files": "logs/*.jsonl", "map": {**fields, **more}}
    ours = inventory(tmp_path, app__signals=signals)
    rule = report.rule_of(ours)
    assert rule.skill == "worse"
    chance = random.Random(5)
    rows, price = [], 100.0
    for number, line in enumerate(hours(1500)):
        up = math.sin(number / 3) > 0
        price *= 1.01 if up else 0.99
        # The mean knows the next bars, stacking says the opposite.
        ahead = math.sin((number + 3) / 3) > 0
        p = (0.8 if ahead else 0.2) + chance.uniform(-0.05, 0.05)
        line["data"]["components"]["ml_stacking_prob"] = 1 - p
        rows.append({**line, "mean": p, "close": price, "horizon": 5})
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = report.of_files(ours, logs, rule, None, NOW)
    assert judged.decision.verdict == "FAIL"
    assert "stacking is proved worse than the mean" in judged.decision.reasons[-1]
    assert "skill" not in judged.document["not_judged"]
    assert "worse than the mean" in "\n".join(report_lines(judged.document))
    html = page.page(judged.document)
    assert "Not judged" not in html
    assert 'href="#skill"' in html


def test_a_note_says_what_was_left_out_and_why() -> None:
    made = counted(hours(30), without=[(NOW - timedelta(hours=2), NOW)])
    ran = [{"release": "B", "since": NOW.timestamp() - 7200, "until": NOW.timestamp()}]
    [note] = own._left_out(made, ran, 0.0)
    assert note == (
        "3 lines left out, written while another release was tried: "
        "B from 2026-03-02 10:00:00Z to 2026-03-02 12:00:00Z"
    )
    assert own._left_out(counted(hours(30)), ran, 0.0) == []


def test_where_nothing_is_live_the_bars_are_of_no_release() -> None:
    assert (
        _whose({"own": {"name": "a"}, "host": "a", "release": None})
        == "of no release, for none is live"
    )
    assert _whose({"own": {"name": "a"}, "host": "a", "release": "A"}) == "of this release"
