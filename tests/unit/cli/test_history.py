"""`invoke history` shows the journal, and ends with 1 at the record that can't be trusted."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from invoke import Context

from macd.cli import history as history_verb
from macd.journal import Journal
from tests.support import commands

TASKS = """
from invoke import Collection
from macd.cli import history
namespace = Collection(history.history)
"""
INVENTORY = "hosts:\n  jump: {role: jump, ssh: somewhere}\n"
NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "lab.yml").write_text(INVENTORY)
    return Journal(tmp_path / ".macd" / "lab" / "journal.jsonl")


def history(journal: Journal, *argv: str) -> subprocess.CompletedProcess[str]:
    return commands.run(journal.path.parents[2], "history", *argv)


def filled(journal: Journal) -> bytes:
    journal.append("release", {"id": "A"}, now=NOW)
    journal.append("deploy", {"env": "prod", "evil": "\x1b[31mred"}, now=NOW)
    journal.append("deploy.reverted", {"hosts": ["prod", "größer"]}, now=NOW)
    return journal.path.read_bytes()


def test_an_empty_journal_is_said_to_be_empty(journal: Journal) -> None:
    done = history(journal)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing has been recorded yet" in done.stdout
    assert json.loads(history(journal, "--json").stdout)["records"] == []


def test_a_kind_that_was_never_recorded_is_told_with_those_that_were(journal: Journal) -> None:
    filled(journal)
    assert "no record of kind gate; there are: deploy, deploy.reverted, release" in (
        history(journal, "--kind", "gate").stdout
    )


def test_newest_last_and_escapes_do_not_reach_the_terminal(journal: Journal) -> None:
    filled(journal)
    done = history(journal, "--full")
    assert done.returncode == 0
    assert done.stdout == (
        "    1  2025-03-01 12:00:00Z  release\n"
        "       id: A\n"
        "    2  2025-03-01 12:00:00Z  deploy\n"
        "       env: prod\n"
        '       evil: "\\u001b[31mred"\n'
        "    3  2025-03-01 12:00:00Z  deploy.reverted\n"
        '       hosts: ["prod", "größer"]\n'
    )


def test_one_line_a_record_says_what_it_is_about_and_how_it_ended(journal: Journal) -> None:
    filled(journal)
    ended = {"wave": 1, "who": "ann@desk", "release": "R2", "host": "prod", "reason": "it hangs"}
    journal.append("deploy.ended", {**ended, "result": "reverted", "serving": ""}, now=NOW)
    assert history(journal).stdout == (
        "    1  2025-03-01 12:00:00Z  release         id: A\n"
        '    2  2025-03-01 12:00:00Z  deploy          env: prod  evil: "\\u001b[31mred"\n'
        '    3  2025-03-01 12:00:00Z  deploy.reverted hosts: ["prod", "größer"]\n'
        "    4  2025-03-01 12:00:00Z  deploy.ended    "
        "prod  R2  reverted  reason: it hangs  by ann@desk\n"
        "  every field: invoke history --full\n"
    )


def test_an_application_without_weights_is_shown_none(journal: Journal) -> None:
    fields = {"env": "prod", "host": "prod", "value": "1", "weight": 100, "result": "set"}
    journal.append("flag.enable", {**fields, "weighed": False}, now=NOW)
    assert "prod  set\n" in history(journal).stdout
    journal.append("flag.enable", fields, now=NOW)
    assert "prod  set  weight: 100\n" in history(journal).stdout


def test_limit_and_kind_choose_and_say_that_there_is_more(journal: Journal) -> None:
    filled(journal)
    output = history(journal, "--limit", "1").stdout
    assert output.startswith("    3  ")
    assert "1 of 3 records" in output
    chosen = json.loads(history(journal, "--kind", "deploy", "--limit", "0", "--json").stdout)
    assert [record["seq"] for record in chosen["records"]] == [2, 3]
    assert chosen["records"][0]["time"] == "2025-03-01T12:00:00Z"
    assert history(journal, "--limit=-1").returncode == 2


def test_tampering_ends_with_1_and_names_the_record(journal: Journal) -> None:
    journal.path.parent.mkdir(parents=True, exist_ok=True)
    data = filled(journal).replace(b'"prod","evil"', b'"test","evil"').replace(b'"A"', b'"B"')
    journal.path.write_bytes(data)
    done = history(journal)
    assert done.returncode == 1
    assert "damaged at record 1" in done.stderr
    document = json.loads(history(journal, "--json").stdout)
    assert (document["exit_code"], "record 1" in document["error"]["what"]) == (1, True)
    repair = history(journal, "--repair-torn", "--yes")
    assert repair.returncode == 1
    assert "damaged at record 1" in repair.stderr
    assert journal.path.read_bytes() == data


def test_a_torn_journal_is_shown_asked_about_and_repaired(journal: Journal) -> None:
    data = filled(journal)[:-10]
    journal.path.write_bytes(data)
    done = history(journal)
    assert done.returncode == 1
    assert "    2  2025" in done.stdout  # what can be trusted is shown
    assert "torn at record 3" in done.stderr
    assert "invoke history --repair-torn" in done.stderr
    for argv in (["--dry-run", "--yes"], []):  # neither a dry run nor silence is a yes
        asked = history(journal, "--repair-torn", *argv)
        assert "deploy.reverted" in asked.stdout
        assert asked.returncode == (0 if argv else 1)
        assert journal.path.read_bytes() == data
    repaired = history(journal, "--repair-torn", "--yes", "--json")
    document = json.loads(repaired.stdout)
    assert document["torn_at"] == 3
    assert Path(document["moved_to"]).read_bytes() == data[data[:-1].rfind(b"\n") + 1 :]
    assert history(journal).returncode == 0
    assert "nothing to repair" in history(journal, "--repair-torn").stdout


def test_the_hint_for_more_asks_the_same_hosts_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], journal: Journal
) -> None:
    filled(journal)
    host = SimpleNamespace(name="prod")
    monkeypatch.setattr("macd.deploy.fleet.hosts_of", lambda *_: [host])
    monkeypatch.setattr(history_verb, "_fetched", lambda *_: journal.records())
    history_verb.history(Context(), env="prod", inventory="lab", limit=1)
    assert "more: invoke history --limit 0 --env prod --inventory lab" in capsys.readouterr().out


def test_the_evidence_of_a_hosts_own_record_is_named_by_the_journal_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], journal: Journal
) -> None:
    sha256, own = "ab" * 32, Journal(journal.path.with_name("own.jsonl"))
    own.append("committed", {"activation": 1, "release": "R1"}, now=NOW)
    enabled = {"wanted": "1", "weight": 25, "release": "R1", "report": sha256}
    own.append("flag.set", enabled, now=NOW.replace(hour=14))
    monkeypatch.setattr("macd.deploy.fleet.hosts_of", lambda *_: [SimpleNamespace(name="prod")])
    monkeypatch.setattr(history_verb, "_fetched", lambda *_: own.records())
    monkeypatch.chdir(journal.path.parents[2])
    history_verb.history(Context(), at="2025-03-02", env="prod")
    assert f"evidence: a gate report that no journal here names; its SHA-256 is {sha256}\n" in (
        capsys.readouterr().out
    )
    # What else this machine recorded of the host counts for nothing beside the host's own word.
    off = {"host": "prod", "value": "0", "weight": 0, "result": "set", "report": ""}
    journal.append("flag.disable", off, now=NOW.replace(hour=15))
    made = {"host": "prod", "verdict": "PASS", "report": "gate/prod/x/report.json"}
    judged = {**made, "report_sha256": sha256}
    journal.append("gate.judged", judged, now=NOW.replace(hour=13))
    history_verb.history(Context(), at="2025-03-02", env="prod")
    assert "evidence: gate/prod/x/report.json (PASS)\n" in capsys.readouterr().out


def test_what_was_live_then_and_two_machines_as_one_history(journal: Journal) -> None:
    there = Journal(journal.path.with_name("bens.jsonl"))
    ended = {"env": "prod", "host": "prod", "result": "committed"}
    journal.append("deploy.ended", {**ended, "release": "R1", "live": "R1", "number": 1}, now=NOW)
    later = NOW.replace(hour=14)
    there.append("deploy.ended", {**ended, "release": "R2", "live": "R2", "number": 2}, now=later)
    both = ("--merge", str(there.path))

    done = history(journal, "--at", "2025-03-01 13:00", *both)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prod: R1, since 2025-03-01 12:00:00 UTC, deploy\n" in done.stdout
    assert "stacking: in shadow since 2025-03-01 12:00:00 UTC" in done.stdout
    document = json.loads(
        history(journal, "--at", "2025-03-01T23:00+08:00", *both, "--json").stdout
    )
    assert [host["release"] for host in document["hosts"]] == ["R2"]  # 15:00 UTC

    done = history(journal, *both)
    assert [line.split()[-2] for line in done.stdout.splitlines()] == ["R1", "R2"]
    there.append("deploy.ended", {**ended, "release": "R3", "live": "R3", "number": 1}, now=later)
    done = history(journal, *both)
    assert done.returncode == 1
    assert "✗ the journals contradict each other: activation 1 on prod" in done.stdout

    # A copy that was cut off counts up to there, and what is not in it is said.
    there.append("deploy.ended", {**ended, "release": "R9", "live": "R9", "number": 9}, now=later)
    there.path.write_bytes(there.path.read_bytes()[:-7])
    done = history(journal, "--at", "2025-03-01T23:00+08:00", *both)
    assert done.returncode == 1
    assert f"{there.path} is torn at record 3" in done.stdout
    assert "R9" not in done.stdout
    document = json.loads(history(journal, *both, "--json").stdout)
    assert document["missing"] == []
    copy = journal.path.with_name("copy.jsonl")
    copy.write_bytes(journal.path.read_bytes()[:-7])
    torn = history(journal, "--merge", str(copy), "--json")
    assert json.loads(torn.stdout)["contradictions"] == []
    assert torn.returncode == 1, "what it held from there on counts for nothing"
    journal.append("deploy.ended", {**ended, "release": "R5", "live": "R5", "number": 5}, now=later)
    done = history(journal, "--at", "2025-03-02")
    assert done.returncode == 0, "a gap is no contradiction"
    assert "! prod: nothing tells of activation 2, 3, 4: it was done from another" in done.stdout
    assert history(journal, "--at", "tomorrow").returncode == 2
    assert history(journal, "--merge", "/nowhere").returncode == 2
    refused = history(journal, *both, "--repair-torn", "--yes")
    assert (refused.returncode, "one journal" in refused.stderr) == (2, True)
