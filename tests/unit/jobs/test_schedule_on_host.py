"""What a host's timers run, with real processes and a real receiver of messages."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macd
from macd.host import durable
from macd.host.failure import HostError
from macd.host.jobs import operations, schedule, scheduled
from tests.support.receiver import Receiver, receiving
from tests.unit.jobs.test_jobs_on_host import eventually, land

# The training leaves what it read, so that a test sees which bars it got; the other program
# answers as the application's own do: one JSON document in, one out.
TRAINS = """
import json, os, sys, time
run, tree = sys.argv[1:]
while os.path.exists(os.path.join(run, "..", "..", "wait")):
    time.sleep(0.02)
bars = open(os.path.join(tree, "data/BTC_1h.parquet")).read()
if bars == "broken":
    sys.exit("no such market\\n\\x1b[31mred")
result = {"state": "done", "files": [], "criteria": {"auc": True, "gap": False}, "bars": bars}
open(os.path.join(run, "result.json"), "w").write(json.dumps(result))
"""
ANSWERS = """
import json, os, sys
question = json.load(sys.stdin)["question"]
if sys.argv[1] == "fetch":
    with open(os.path.join(question["directory"], "BTC_1h.parquet"), "a") as file:
        file.write("+")
    print(json.dumps({"bars": {}}))
elif sys.argv[1] == "refuses":
    print(json.dumps({"error": {"what": "it can't be reached", "why": "HTTP 451"}}))
elif sys.argv[1] == "check":
    bars = open(os.path.join(question["data"], "BTC_1h.parquet")).read()
    print(json.dumps({"items": [{"name": "runs", "ok": True, "detail": bars}]}))
else:
    names = sorted(os.listdir(question["champion"]))
    print(json.dumps({"verdict": {"text": f"is better than {names}"}}))
"""


class Host:
    """A work directory with a schedule, as `invoke train.schedule` leaves it."""

    def __init__(self, work: Path, receiver: Receiver) -> None:
        self.work, self.receiver = work, receiver
        self.synced = work.parent / "synced"
        self.synced.mkdir()
        self.bring("v1")
        top = Path(macd.__file__).parent
        code = {
            "macd/__init__.py": b"",
            "trains.py": TRAINS.encode(),
            "answers.py": ANSWERS.encode(),
        }
        code |= {
            f"macd/{path.relative_to(top)}": path.read_bytes()
            for path in sorted((top / "host").rglob("*.py"))
        }
        self.files = {path: land(work, data) for path, data in code.items()}
        self.files["data/BTC_1h.parquet"] = land(work, b"v0")
        self.tree = self._tree(self.files)
        champion = self._tree({"metrics.json": land(work, b"{}")})
        self.champion = {"run": "20250101T000000Z-live", "release": "r1", "env": "prod"}
        self.champion["tree"] = champion
        self.put()

    def _tree(self, files: dict[str, str]) -> str:
        listed = sorted(files.items())
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        operations.job_tree(str(self.work), digest, listed)
        return digest

    def put(self, **changes: Any) -> dict[str, Any]:
        plan = {
            "on": "Sun 03:00",
            "inventory": "lab",
            "installed": "2026-01-01T00:00:00+00:00",
            "title": "BTC 1h",
            "own": False,
            "python": sys.executable,
            "argv": [sys.executable, "trains.py", "{run}", "{tree}"],
            "env": {"PYTHONPATH": "{tree}"},
            "about": {"symbol": "BTC"},
            "request": {"request.json": "{}\n"},
            "tree": self.tree,
            "files": self.files,
            "bars": {"data/BTC_1h.parquet": "BTC_1h.parquet"},
            "source": {"kind": "directory", "directory": str(self.synced)},
            "min_free": 0,
            "keep": 2,
            "champion": self.champion,
            "check": "answers check",
            "compare": "answers compare",
            "next": {
                "DONE": ["invoke release --run {run}"],
                "": ["invoke train.fetch --run {run}"],
            },
        }
        url = f"http://127.0.0.1:{self.receiver.server_port}/hook"
        return schedule.job_schedule_set(str(self.work), plan | changes, {"url": url})

    def bring(self, bars: str) -> None:
        (self.synced / "BTC_1h.parquet").write_text(bars)

    def start(self) -> None:
        scheduled.start(str(self.work))

    def report(self) -> list[str]:
        """The messages that arrived with this look."""
        before = len(self.receiver.got)
        scheduled.report(str(self.work))
        return [document["text"] for _, _, document in self.receiver.got[before:]]

    def runs(self) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = schedule.job_schedule(str(self.work))["runs"]
        return runs

    def trained(self) -> dict[str, Any]:
        """Begin a run, wait for its end; its status."""
        self.start()
        run = self.runs()[-1]["run"]

        def over() -> dict[str, Any] | None:
            status = operations.job_status(str(self.work), run)
            return status if status["state"] != "RUNNING" else None

        status: dict[str, Any] = eventually(over)
        return status


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with receiving() as receiver:
        yield Host(tmp_path / "work", receiver)


def test_a_run_on_new_bars_is_judged_compared_and_reported_once(host: Host) -> None:
    status = host.trained()
    assert status["state"] == "DONE"
    assert status["result"]["bars"] == "v1"
    assert status["spec"]["about"] == {"symbol": "BTC", "scheduled": "Sun 03:00"}
    (text,) = host.report()
    run = status["run"]
    assert f"BTC 1h: run {run} is DONE" in text
    assert "nothing blocks; warned of gap" in text
    assert "models: 1 checks passed" in text
    live = "beside 20250101T000000Z-live (release r1, live in prod)"
    assert f"{live}: is better than ['metrics.json']" in text
    assert text.endswith(f"invoke release --run {run}")
    assert host.report() == []
    # Its bars are brought home with it: nobody else has them.
    records = operations.job_files(str(host.work), run)["records"]
    assert "bars/BTC_1h.parquet" in [name for name, _, _ in records]


def test_without_new_bars_nothing_is_trained_and_a_person_hears_of_it(host: Host) -> None:
    host.trained()
    host.start()  # nobody looked at the end of the first meanwhile
    done, text = host.report()
    assert "is DONE" in done
    assert "did not begin: there are no new bars" in text
    assert len(host.runs()) == 1
    host.bring("v0")  # what the schedule was given counts before any run of its own
    host.put()
    (host.work / "schedule" / "state.json").unlink()
    host.start()
    assert "no new bars" in host.report()[0]
    assert host.runs() == []


def test_a_failed_run_is_reported_and_its_bars_count_as_new_the_next_time(host: Host) -> None:
    host.bring("broken")
    assert host.trained()["state"] == "FAILED"
    (text,) = host.report()
    run = host.runs()[0]["run"]
    assert f"run {run} FAILED" in text
    assert "its log ends: red" in text
    assert text.endswith(f"invoke train.fetch --run {run}")
    assert host.trained()["state"] == "FAILED"


def test_a_run_in_progress_is_left_alone(host: Host) -> None:
    (host.work / "wait").touch()
    host.start()
    assert host.report() == []
    host.start()
    (text,) = host.report()
    assert f"did not begin: run {host.runs()[0]['run']} is in progress" in text
    assert len(host.runs()) == 1
    (host.work / "wait").unlink()
    eventually(lambda: operations.job_status(str(host.work))["state"] == "DONE")
    assert "is DONE" in host.report()[0]


def test_what_can_not_be_had_is_reported(host: Host) -> None:
    (host.synced / "BTC_1h.parquet").unlink()
    host.start()
    assert "lacks BTC_1h.parquet" in host.report()[0]
    source = {"kind": "exchange", "program": "answers refuses", "question": {}}
    host.put(source=source)
    host.start()
    (text,) = host.report()
    assert "the bars could not be fetched" in text
    assert "it can't be reached: HTTP 451" in text
    host.put(source=source, min_free=1 << 60)
    host.start()
    assert "GB wanted" in host.report()[0]
    assert host.runs() == []


def test_bars_that_are_fetched_begin_with_those_that_were_sent(host: Host) -> None:
    host.put(source={"kind": "exchange", "program": "answers fetch", "question": {}})
    assert host.trained()["result"]["bars"] == "v0+"
    host.report()
    assert host.trained()["result"]["bars"] == "v0++"
    newer = {**host.files, "data/BTC_1h.parquet": land(host.work, b"v9")}
    source = {"kind": "exchange", "program": "answers fetch", "question": {}}
    host.put(files=newer, source=source)  # sent again, with newer bars
    assert host.trained()["result"]["bars"] == "v9+"


def test_old_runs_go_with_their_trees_and_bars_but_none_of_a_person_and_not_the_live_one(
    host: Host,
) -> None:
    script = [sys.executable, "trains.py", "{run}", "{tree}"]
    by_hand = "20240101T000000Z-hand"
    operations.job_start(str(host.work), by_hand, script, {}, host.tree, {}, {})
    eventually(lambda: operations.job_status(str(host.work), by_hand)["state"] == "DONE")
    for n in range(4):
        host.bring(f"v{n + 1}")
        host.trained()
        host.report()
        if n == 0:
            live = host.runs()[0]["run"]
            host.put(champion={**host.champion, "run": live})
    kept = [run["run"] for run in host.runs()]
    assert len(kept) == 3 and kept[0] == live
    # by name: those of one second in any order
    assert operations.job_list(str(host.work))["runs"] == sorted([by_hand, *kept])
    trees = {path.name for path in (host.work / "trees").iterdir()}
    assert trees == {host.tree, host.champion["tree"], *(run["tree"] for run in host.runs())}
    stored = {path.name for path in (host.work / "blobs" / "sha256").rglob("*") if path.is_file()}
    for n, there in enumerate([True, True, False, True, True]):  # v0 is the schedule's own
        assert (hashlib.sha256(f"v{n}".encode()).hexdigest() in stored) == there


def test_killed_between_storing_and_beginning_a_run_is_reported_as_not_begun(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(operations, "job_start", killed)
        host.start()
    (text,) = host.report()
    assert "was not begun" in text
    assert host.trained()["state"] == "DONE"


def test_killed_while_bars_are_fetched_is_reported(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(scheduled, "_bars", killed)
        host.start()
    (text,) = host.report()
    assert "did not begin: what began it at 20" in text
    assert host.report() == []
    assert host.trained()["state"] == "DONE"
    assert len(host.report()) == 1


def test_where_nothing_can_be_stored_the_start_says_so_and_a_look_does_not(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scheduled, "_save", full)
    assert scheduled.main("start", str(host.work)) == 1
    (text,) = [document["text"] for _, _, document in host.receiver.got]
    assert "can't go on: No space left on device" in text


def test_while_a_run_is_being_begun_nothing_is_changed(host: Host) -> None:
    with durable.one_at_a_time(scheduled.Place(str(host.work)).lock):
        with pytest.raises(HostError, match="is being begun"):
            host.put()
        with pytest.raises(HostError, match="is being begun"):
            schedule.job_schedule_remove(str(host.work))
        assert scheduled.main("report", str(host.work)) == 0
    assert schedule.job_schedule(str(host.work))["plan"]


def test_what_could_not_be_sent_is_sent_with_the_next_look(host: Host) -> None:
    host.trained()
    host.receiver.code = 503
    scheduled.report(str(host.work))
    assert schedule.job_schedule(str(host.work))["unsent"] == 1
    host.receiver.code = 200
    assert "is DONE" in host.report()[0]
    answer = schedule.job_schedule(str(host.work))
    assert answer["unsent"] == 0
    assert [message["sent"] for message in answer["messages"]] == ["sent"]


def test_metrics_of_an_own_application_stand_side_by_side(host: Host) -> None:
    champion = {"run": "20250101T000000Z-live", "release": "r1", "env": "prod"}
    host.put(own=True, champion={**champion, "metrics": {"auc": 0.61}}, check="", compare="")
    host.trained()
    (text,) = host.report()
    assert "live in prod): auc 0.61 -> not measured" in text


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"criteria": {"a": True, "b": True}}, "all 2 met"),
        ({"criteria": {"a": False, "b": True}}, "nothing blocks; warned of a"),
        ({"criteria": {"a": False}, "blocked_by": ["a"]}, "misses a, which block a release"),
        ({"criteria": {"ETH": {"a": True}, "BTC": {"a": False}}}, "warned of BTC a"),
        ({}, "none"),
    ],
)
def test_a_run_is_judged_by_its_own_criteria(result: dict[str, Any], said: str) -> None:
    assert scheduled._judged(result).endswith(said)


def test_removed_is_gone_and_runs_stay(host: Host) -> None:
    run = host.trained()["run"]
    assert schedule.job_schedule_remove(str(host.work)) == {"removed": True}
    assert schedule.job_schedule_remove(str(host.work)) == {"removed": False}
    assert schedule.job_schedule(str(host.work)) == {}
    assert operations.job_list(str(host.work))["runs"] == [run]
    with pytest.raises(HostError, match="nothing is scheduled"):
        host.start()


def test_units_and_cron_lines_hold_any_path_and_value() -> None:
    plan: dict[str, Any] = {"on": "Sun 03:30", "tree": "t", "python": "/opt/py %v/bin/python3"}
    plan["carried"] = {"PATH": '/a b:/c"d%'}
    work = "/srv/w%"
    units = schedule.units_of(work, plan)
    timer, service, *_ = schedule.unit_names(work)
    assert "OnCalendar=Sun 03:30\nPersistent=true\n" in (units[timer] or "")
    text = units[service] or ""
    assert 'Environment="PATH=/a b:/c\\"d%%"\n' in text
    command = '"/opt/py %%v/bin/python3" -m macd.host.jobs.scheduled start /srv/w%%'
    assert f"ExecStart={command}\n" in text
    begins, looks = schedule.cron_lines(work, plan)
    assert begins.startswith("30 3 * * 0 cd /srv/w\\%/trees/t && PATH='/a b")
    assert looks.startswith("*/5 * * * * ")
    assert schedule.cron_lines(work, {**plan, "on": "*-*-01"})[0].startswith("MINUTE HOUR * * DAY ")
