"""An own application's training on its host, with real processes: what counts, what fails, how."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.host.failure import HostError
from macd.host.jobs import operations, stages
from macd.jobs.request import sources
from tests.support.job_fakes import soon
from tests.unit.jobs.test_jobs_on_host import alive, land, process

RUN = "20260101T000000Z-abc"
WRITES = "import pathlib; pathlib.Path('models/m.json').write_text('{\"auc\": 0.61}')"
HOST_HALF = {
    path: blob.source
    for path, blob in sources(("__init__.py", "heads.py", "host")).items()
    if isinstance(blob.source, bytes)
}


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "work"
    yield made
    for run in operations.job_list(str(made))["runs"]:
        operations.job_cancel(str(made), run)
        soon(lambda run=run: operations.job_status(str(made), run)["state"] != "RUNNING")


def begin(work: Path, *scripts: str, run: str = RUN, **change: Any) -> None:
    """Start a run whose stages s1, s2, ... are these Python scripts."""
    files = {"old.json": b'{"auc": 0.9}', "models/.keep": b"", **change.pop("source", {})}
    files |= {f"s{number}.py": text.encode() for number, text in enumerate(scripts, start=1)}
    tree = [(f"source/{path}", land(work, data)) for path, data in files.items()]
    tree += [(path, land(work, data)) for path, data in HOST_HALF.items()]
    digest = hashlib.sha256(json.dumps(sorted(tree)).encode()).hexdigest()
    operations.job_tree(str(work), digest, tree)
    python = change.pop("python", sys.executable)
    request = {
        **{"name": "theirs", "symbol": "ETHUSDT", "tf": "1h", "complete": True, "setup": None},
        "stages": [[f"s{n}", f"python3 s{n}.py ETHUSDT 1h"] for n in range(1, len(scripts) + 1)],
        "artefacts": ["models/*"],
        "metrics": {"auc": "models/m.json#/auc"},
        "criteria": {"auc": {"min": 0.57, "max": None, "level": "block"}},
        **{"env": {}, "executable": [], "code": {"commit": "c", "dirty": False, "changed": []}},
        **change,
    }
    argv = [python, "-m", "macd.host.jobs.stages", "{run}"]
    env = {"PYTHONPATH": "{tree}"}
    text = json.dumps(request)
    operations.job_start(str(work), run, argv, env, digest, {}, {"request.json": text})


def ended(work: Path, state: str) -> dict[str, Any]:
    soon(lambda: operations.job_status(str(work), RUN)["state"] != "RUNNING")
    status = operations.job_status(str(work), RUN, log_tail=4096)
    assert status["state"] == state, status
    return status


def document(work: Path, name: str) -> Any:
    return json.loads((work / "runs" / RUN / name).read_text())


def events(work: Path) -> list[dict[str, Any]]:
    lines = (work / "runs" / RUN / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_stages_write_is_what_the_run_brings(work: Path) -> None:
    reads = "import sys; print('on', *sys.argv[1:]); assert open('old.json').read()"
    begin(work, reads, WRITES)
    result = ended(work, "DONE")["result"]
    assert result["complete"]
    assert result["stages"] == ["s1", "s2"]
    assert result["blocked_by"] == []
    paths = [entry["path"] for entry in result["files"]]
    assert paths == ["artefacts/models/m.json", "settings.json", "metrics.json", "criteria.json"]
    kept = work / "runs" / RUN / "artefacts/models/m.json"
    assert result["files"][0]["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert document(work, "metrics.json") == {"own": {"auc": 0.61}}
    [finding] = document(work, "criteria.json")
    assert (finding["title"], finding["ok"], finding["value"]) == ("auc >= 0.57", True, 0.61)
    assert document(work, "settings.json")["own"] is True
    assert "env" not in document(work, "settings.json")
    records = {name for name, _, _ in operations.job_files(str(work), RUN)["records"]}
    assert {"logs/s1.log", "logs/s2.log", "events.jsonl"} <= records
    reports = [(e["event"], e.get("text") or e.get("stage")) for e in events(work)]
    assert ("stage_started", "s1") in reports
    assert ("line", "on ETHUSDT 1h") in reports
    assert reports[-1][0] == "run_done"
    assert not (work / "runs" / RUN / "source").exists()


def test_a_stage_that_exits_1_ends_the_run_and_its_last_lines_are_there(work: Path) -> None:
    begin(work, "import sys; print('loading'); sys.exit('no klines for ETHUSDT')", WRITES)
    status = ended(work, "FAILED")
    assert status["reason"] == "stage s1 failed: exit code 1"
    assert status["result"]["stage"] == "s1"
    assert status["log_end"].splitlines()[-2:] == ["loading", "no klines for ETHUSDT"]
    assert not (work / "runs" / RUN / "logs/s2.log").exists()
    assert (work / "runs" / RUN / "source/s1.py").exists(), "to look at"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('forgot to save')", "no file matches models/*.json"),
        ("open('models/m.json', 'w')", "models/m.json holds nothing"),
        ("import os; os.rename('old.json', 'models/old.json')", "came with the source"),
        ("import os; os.link('old.json', 'models/old.json')", "came with the source"),
        ("import os; os.symlink('../old.json', 'models/old.json')", "came with the source"),
    ],
)
def test_a_stage_that_exits_0_without_its_files_has_failed(
    work: Path, script: str, why: str
) -> None:
    begin(work, script, artefacts=["models/*.json"])
    status = ended(work, "FAILED")
    assert "left no artefact models/*.json" in status["reason"]
    assert why in status["result"]["why"]
    assert status["result"]["stage"] == "train.artefacts"
    if "print" in script:
        assert "s1: forgot to save" in status["log_end"]


def test_no_stage_is_blamed_for_an_artefact_that_none_left(work: Path) -> None:
    begin(work, "print('saved elsewhere')", "print('all well')", artefacts=["models/s2.json"])
    status = ended(work, "FAILED")
    assert status["result"]["stage"] == "train.artefacts"
    assert "s1: saved elsewhere\ns2: all well\n" in status["log_end"]
    assert "s2" not in status["result"]["hint"].replace(str(work), "")


def test_a_model_from_git_is_no_result_until_it_is_written_again(work: Path) -> None:
    old = {"models/m.json": b'{"auc": 0.99}'}
    begin(work, "print('did nothing')", source=old)
    assert "models/m.json came with the source" in ended(work, "FAILED")["result"]["why"]


def test_the_same_bytes_written_again_count(work: Path) -> None:
    old = {"models/m.json": b'{"auc": 0.61}', "models/other.json": b"{}"}
    begin(work, WRITES, source=old)
    files = ended(work, "DONE")["result"]["files"]
    assert [e["path"] for e in files if "models" in e["path"]] == ["artefacts/models/m.json"]


def test_a_stage_may_say_anything_in_any_language(work: Path) -> None:
    says = "import sys; sys.stdout.buffer.write('模型\\x1b[31m'.encode() + bytes([255, 10]))"
    begin(work, f"{says}; sys.exit(1)")
    assert "模型\ufffd" in ended(work, "FAILED")["log_end"]
    [line] = [event["text"] for event in events(work) if event["event"] == "line"]
    assert line == "模型\ufffd"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import os; os.symlink('/etc/hostname', 'models/m')", "outside of the source"),
        ("import os; os.rmdir('out'); os.symlink('/etc', 'out')", "outside of the source"),
        ("open('models/a\\nb', 'w').write('x')", "a name that can't be released"),
    ],
)
def test_what_leads_out_or_has_no_sane_name_is_refused(work: Path, script: str, why: str) -> None:
    begin(work, script, artefacts=["out/hostname" if "'out'" in script else "models/*"])
    assert why in ended(work, "FAILED")["reason"]


def test_a_metric_that_is_no_number_blocks_and_says_why(work: Path) -> None:
    begin(
        work,
        "print('auc=0.5'); print('auc=0.6'); open('models/m.json', 'w').write('{\"auc\": NaN}')",
        metrics={
            "auc": "models/m.json#/auc",
            "stale": "old.json#/auc",
            "printed": "logs/s1.log#auc=([0-9.]+)",
        },
    )
    result = ended(work, "DONE")["result"]
    assert result["metrics"] == {"auc": None, "stale": None, "printed": 0.6}
    assert result["blocked_by"] == ["auc"]
    assert "not finite" in document(work, "criteria.json")[0]["note"]
    said = "\n".join(e["note"] for e in events(work) if e["event"] == "summary")
    assert "stale: not measured, old.json is not of this run" in said
    assert "✗ auc >= 0.57: not measured  (blocks a release)" in said


def test_one_stage_alone_may_leave_less_and_is_not_complete(work: Path) -> None:
    begin(work, WRITES, artefacts=["models/*", "tables/*"], complete=False)
    result = ended(work, "DONE")["result"]
    assert not result["complete"]
    notes = [event["note"] for event in events(work) if event["event"] == "note"]
    assert notes == ["artefacts tables/*: no file matches tables/*"]


CHILD = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(600)"


def grandchild(work: Path) -> int:
    path = work / "runs" / RUN / "source/pid"
    soon(lambda: path.exists() and path.read_text())
    return int(path.read_text())


FORKS = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', "
    f"{CHILD.format('pid')!r}], start_new_session=True)"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and prctl are Linux's")
@pytest.mark.parametrize("who", ["cancel", "runner", "stages"])
def test_grandchildren_end_with_the_run(work: Path, who: str) -> None:
    begin(work, f"{FORKS}.wait()")
    pid, pids = grandchild(work), process(work, run=RUN)
    if who == "cancel":
        operations.job_cancel(str(work), RUN)
        assert ended(work, "CANCELLED")["result"]["state"] == "cancelled"
    elif who == "runner":
        os.kill(pids["runner"]["pid"], signal.SIGKILL)
        assert "runner was killed" in ended(work, "FAILED")["reason"]
    else:
        os.kill(pids["child"]["pid"], signal.SIGTERM)
        ended(work, "FAILED")
    soon(lambda: not alive(pid))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and prctl are Linux's")
def test_what_a_stage_leaves_running_ends_before_files_are_taken(work: Path) -> None:
    wait = "import time, os\nwhile not os.path.exists('pid'): time.sleep(0.02)"
    begin(work, f"{FORKS}\n{wait}", f"{WRITES}; open('models/pid', 'w').write(open('pid').read())")
    ended(work, "DONE")
    pid = int((work / "runs" / RUN / "artefacts/models/pid").read_text())
    assert not alive(pid)
    assert any("left behind" in event.get("note", "") for event in events(work))


def test_variables_and_programs_of_a_stage(work: Path) -> None:
    script = b"#!/bin/sh\nprintf '%s' \"$SEED $MACD_RUN ${PYTHONPATH:-none}\" > models/m\n"
    begin(
        work,
        source={"run.sh": script},
        executable=["run.sh"],
        stages=[["go", "./run.sh"]],
        env={"SEED": "7"},
        metrics={},
        criteria={},
    )
    ended(work, "DONE")
    assert (work / "runs" / RUN / "artefacts/models/m").read_text() == f"7 {RUN} none"


@pytest.mark.parametrize(
    ("command", "reason"),
    [("no-such-program -x", "no program no-such-program"), ("./s1.py", "can't be started")],
)
def test_a_command_that_is_none_is_named(work: Path, command: str, reason: str) -> None:
    begin(work, WRITES, stages=[["go", command]])
    assert reason in ended(work, "FAILED")["reason"]


@pytest.mark.slow
def test_packages_that_cannot_be_installed(work: Path) -> None:
    lines = b"--no-index\nno-such-package-of-theirs==1.0\n"
    begin(work, WRITES, source={"gpu.txt": lines}, setup="gpu.txt")
    status = ended(work, "FAILED")
    assert status["reason"] == "the packages of gpu.txt can't be installed on this host"
    assert "no-such-package-of-theirs" in status["log_end"]
    assert "pip" in status["result"]["hint"]
    assert [path.name for path in (work / "environments").iterdir()] == [".lock"]


def test_no_room_for_a_copy_leaves_no_half_of_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(work, "import sys; sys.exit(1)")
    ended(work, "FAILED")
    directory = work / "runs" / RUN
    calls: list[str] = []

    def full(source: str, target: str) -> None:
        if calls:
            raise OSError(28, "No space left on device", target)
        calls.append(Path(target).write_text("half") and target)

    monkeypatch.setattr("macd.host.jobs.artefacts.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left") as caught:
        stages.Stages(str(directory), now=lambda: 1e9, end_left=lambda: 0).go()
    assert calls
    assert not (directory / "source").exists()
    error = stages._of_system(caught.value)
    assert "No space left on device" in error.what
    assert "df -h" in error.hint


def test_a_run_that_ends_anywhere_is_whole_or_not_done(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at each of its events in turn, as a kill would end it."""
    begin(work, "import sys; sys.exit(1)")
    ended(work, "FAILED")
    directory = work / "runs" / RUN
    source = Path(json.loads((directory / "spec.json").read_text())["cwd"]) / "source/s1.py"
    source.chmod(0o644)
    source.write_text(WRITES)
    emit, states = stages.Stages._event, []
    for last in range(20):
        (directory / "result.json").unlink(missing_ok=True)
        shutil.rmtree(directory / "artefacts", ignore_errors=True)
        emitted: list[str] = []

        def counted(
            self: stages.Stages,
            event: str,
            emitted: list[str] = emitted,
            last: int = last,
            **f: Any,
        ) -> None:
            if len(emitted) == last:
                raise KeyboardInterrupt
            emitted.append(event)
            emit(self, event, **f)

        monkeypatch.setattr(stages.Stages, "_event", counted)
        try:
            stages.Stages(str(directory), now=time.time, end_left=lambda: 0).go()
            break
        except KeyboardInterrupt:
            states.append((directory / "result.json").exists())
            run = stages.Stages(str(directory), now=time.time, end_left=lambda: 0)
            monkeypatch.setattr(stages.Stages, "_event", emit)
            assert run.ended(HostError("stopped"), "cancelled") == (0 if states[-1] else 1)
            result = json.loads((directory / "result.json").read_text())
            assert result["state"] == ("done" if states[-1] else "cancelled")
    assert states == sorted(states), "once it is done it stays so"
    assert states.count(True) == 1, "only the last event comes after the result"
    assert len(states) >= 6
    for entry in json.loads((directory / "result.json").read_text())["files"]:
        data = (directory / entry["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]


def test_a_wrapper_that_the_host_names_as_its_python_runs_the_stages(
    work: Path, tmp_path: Path
) -> None:
    """It sets what its Python needs; macd's own path is not among what a stage gets."""
    wrapper = tmp_path / "training-python"
    exports = 'export PYTHONPATH="$PYTHONPATH:/srv/theirs"'
    wrapper.write_text(f'#!/bin/sh\n{exports}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    begin(work, f"import os; print(os.environ['PYTHONPATH']); {WRITES}", python=str(wrapper))
    ended(work, "DONE")
    log = (work / "runs" / RUN / "logs/s1.log").read_text()
    assert log == ":/srv/theirs\n"
