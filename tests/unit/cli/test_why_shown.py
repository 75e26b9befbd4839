"""`invoke why` tells what was measured, also where a figure has no interval or no value."""

from __future__ import annotations

from macd.cli import status
from macd.deploy import lineage


def test_heads_without_an_interval_or_a_value_are_told_as_the_card_tells_them() -> None:
    by_head = {
        "5h": {"val": {"value": 0.61, "low": 0.58, "high": 0.64}},
        "24h": {"val": {"value": None, "low": None, "high": None}},
        "12h": {"val": {"value": 0.55, "low": None, "high": None}},
        "48h": {},
    }
    [line] = status._as_lines("metrics", {"lgb": by_head})
    assert line.split("val AUC  ")[1] == "5h 0.610 [0.580, 0.640]  12h 0.550  24h not known"


def test_the_code_of_an_own_application_is_told_in_words() -> None:
    commit = "0123456789abcdef"
    code = {"version": "", "commit": commit, "dirty": False, "changed": []}
    assert status._as_lines("code", code) == ["commit 0123456789ab"]
    changed = {**code, "dirty": True, "changed": ["live.py", "web.py"]}
    first, *files = status._as_lines("code", changed)
    assert first == "commit 0123456789ab, and changes that are not committed"
    assert files == ["live.py", "web.py"]
    assert status._as_lines("code", {**code, "commit": None}) == ["of no commit"]
    assert "without a training" in status._as_lines("run", None, status._OWN_LACKING)[0]
    assert status._as_lines("run", None) == ["not recorded"]


def test_each_symbol_of_a_release_of_several_has_a_line() -> None:
    figures = {part: {"value": 0.6, "low": 0.55, "high": 0.65} for part in ("val", "test")}
    own = {
        "metrics": {"stacking": {"5h": figures}, "lgbm": {"5h": figures}},
        "best_head": {"stacking": "5h"},
        "criteria": [{"name": "n_oof", "ok": False}, {"name": "net_edge", "ok": True}],
        "audit": {"ok": False},
    }
    fields = lineage.of_symbol(own)
    assert (fields["decides"], fields["head"]) == ("stacking", "5h")
    [line] = status._as_lines("symbols", {"ETHUSD": fields})
    assert line == (
        "ETHUSD     Stacking 5h  val AUC 0.600 [0.550, 0.650]  test AUC 0.600 [0.550, 0.650]; "
        "criteria missed: n_oof; leak audit FAILED"
    )
    [line] = status._as_lines("symbols", {"LTCUSD": lineage.of_symbol({"audit": {"ok": True}})})
    assert line == "LTCUSD     no figures; criteria met"
