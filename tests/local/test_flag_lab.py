"""Flag and doctor on the embedded lab, as typed: refused, set, taken back, diagnosed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from macd import lab as lab_room
from macd.app.market.bars import read_bars, write_bars
from macd.errors import RefusedError
from macd.gate import flag, report
from macd.inventory import project_root
from macd.jobs import follow
from macd.journal import Journal
from macd.lab import Fault, LabState
from macd.sizes import size
from tests.support import job_fakes, signal_lines, small_releases
from tests.support.lab_project import Project, project
from tests.support.local_host import SERVICE

TASKS = """
from invoke import Collection
from macd.cli import deploy, doctor, flag, gate, monitor, provision, status, usage
usage.install()
namespace = Collection(
    deploy.deploy, provision.provision, gate.shadow_gate, status.status,
    flag.enable_stacking, flag.disable_stacking, doctor.doctor,
    monitor.monitor,
)
"""

DISK_MB = 400
# Of an operator whose clock is a minute and a half fast.
FAST_CLOCK = "import time; true = time.time; time.time = lambda: true() + 90\n"


@pytest.fixture(scope="module")
def deployed(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Its service needs a package; where root may mount, its disk is a small one of its own."""
    made = project(lab, tmp_path_factory.mktemp("flag"), "flag-lab")
    (made.root / "tasks.py").write_text(TASKS)
    with small_disk(made.app):
        made.invoke("provision", "--yes")
        endpoint = "json.load(open(root + '/service.json'))['endpoint'].removeprefix('unix:')"
        code = SERVICE.format(variant="good", endpoint="ENDPOINT").replace("'ENDPOINT'", endpoint)
        serve = {"app/serve.py": f"import tiny\n{code}".encode()}
        small_releases.make(made.inventory, 1, package="1.0", more=serve)
        made.invoke("deploy", "--yes")
        yield made


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", str(path)]
    mounted = not subprocess.run(mount, check=False, capture_output=True).returncode
    try:
        yield
    finally:
        if mounted:  # its service still runs there
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(place: Project, n: int = 30, **more: Any) -> None:
    shutil.rmtree(place.app / "data/live", ignore_errors=True)
    shutil.rmtree(place.inventory.state_dir / "logs", ignore_errors=True)
    made = signal_lines.lines(n, release=place.live, end=datetime.now(UTC), **more)
    signal_lines.write(place.app / "data/live", made)


def begun(place: Project) -> dict[str, Any]:
    """What the host has on record of an enabling while it is under way."""
    service = json.loads((place.app / "state/guard.json").read_text())["service"]
    return {
        **{"wanted": "1", "was": "0", "release": place.live, "who": "tester", "state": "begun"},
        **{"started": time.time(), "health_s": 20.0, **service},
    }


def flag_of(place: Project) -> str:
    (one,) = place.json("status")["hosts"]
    return str(one["flags"]["ML_ENABLE_STACKING"])


def test_from_refusal_to_live_and_back(deployed: Project) -> None:
    told = deployed.invoke("enable-stacking", "--yes", code=6)
    assert "there is no gate report" in told
    fill(deployed)
    deployed.json("shadow-gate")
    fill(deployed, ml_error="tft: broken")
    deployed.json("shadow-gate", code=1)
    assert "its verdict is FAIL" in deployed.invoke("enable-stacking", "--yes", code=6)
    # A colleague's clone found the FAIL: here the newest report is the PASS before it.
    shutil.rmtree(report.newest(deployed.inventory, "prod").parent)
    fill(deployed)
    told = deployed.invoke("enable-stacking", "--dry-run", code=6)
    assert "a newer report about this host" in told
    deployed.json("shadow-gate")
    told = deployed.invoke("enable-stacking", code=1)  # no terminal, no --yes
    assert "would" not in told
    assert "nothing was changed" in told
    assert flag_of(deployed) == "0"

    told = deployed.json("enable-stacking", "--yes")
    assert (told["result"], told["value"], told["wrong"]) == ("set", "1", "")
    assert flag_of(deployed) == "1"
    pid = told["pid"]
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"ML_ENABLE_STACKING=1" in environ
    assert "already" in deployed.invoke("enable-stacking", "--yes")
    seen = deployed.json("monitor")
    assert (seen["state"], seen["flag"], seen["loop"]) == ("watching", "1", True)
    order = seen["order"]
    assert order["until"] - order["since"] == pytest.approx(24 * 3600)
    assert order["next"] - order["since"] == pytest.approx(2 * 3600)

    kept = deployed.app / "state/guard.json"
    kept.write_text(json.dumps({**order, "since": order["since"] - 60}))
    os.kill(json.loads((deployed.app / "state/guard.lock").read_text())["pid"], signal.SIGKILL)
    told = deployed.invoke("monitor", code=1)
    assert "the guard is dead" in told
    again = deployed.json("enable-stacking", "--yes")  # unwatched is not "already"
    assert (again["result"], again["pid"]) == ("set", pid)
    assert deployed.json("monitor")["dead"] is False

    # An agent that was killed after the restart: the flag is there, and still on record as begun.
    (deployed.app / "state/pending-flag.json").write_text(json.dumps(begun(deployed)))
    assert deployed.json("enable-stacking", "--dry-run")["result"] == "already"  # only a look
    told = deployed.invoke("enable-stacking", code=1)
    assert "nothing was changed" in told
    again = deployed.json("enable-stacking", "--yes")
    assert (again["result"], again["value"]) == ("set", "1")
    assert again["pid"] != pid
    assert not (deployed.app / "state/pending-flag.json").exists()
    assert flag_of(deployed) == "1"

    told = deployed.invoke("disable-stacking", "--yes")
    assert "in shadow" in told
    assert flag_of(deployed) == "0"
    journal = Journal(deployed.inventory.state_dir / "journal.jsonl").records()
    kinds = [one.kind for one in journal]
    assert kinds[-2:] == ["flag.enable", "flag.disable"]


def test_the_monitor_catches_up_with_what_the_guard_did(
    deployed: Project, clean_links: LabState
) -> None:
    path = deployed.root / "inventory" / "lab.yml"
    text = path.read_text()
    path.write_text(text + "guard:\n  every_hours: 0.0003\n  for_hours: 1\n")
    fill(deployed)
    deployed.json("shadow-gate")
    deployed.json("enable-stacking", "--yes")
    monitor = deployed.start("monitor")  # follows until the guard has ended it
    assert monitor.stdout is not None and monitor.stderr is not None
    shown = [monitor.stdout.readline() for _ in range(3)]  # host, watch, and the guard's first look
    assert "watching" in shown[1]
    assert "INCONCLUSIVE" in shown[2]
    # A cut between two looks; one that also hits the next try.
    lab_room.set_fault(clean_links.root, "prod", Fault(cut_after=0, cut_on="present"))
    lab_room.set_fault(clean_links.root, "prod", Fault(cut_after=2000, cut_on="next"))
    cuts = [monitor.stderr.readline() for _ in range(2)]
    assert all("trying again" in line for line in cuts), cuts
    lines = signal_lines.lines(
        90,
        release=deployed.live,
        end=datetime.now(UTC),
        every=timedelta(milliseconds=1),
        first_seq=31,
        ml_error="lstm: broken",
    )
    signal_lines.write(deployed.app / "data/live", lines)
    out, err = monitor.communicate(timeout=180)
    path.write_text(text)
    assert monitor.returncode == 4, out + err
    assert "FAIL" in out
    assert "the guard disabled stacking" in out
    told = "".join(shown) + out
    assert told.count("watch  ") == 1  # what was shown before the cut is not shown again
    looks = [line for line in told.splitlines() if line.startswith("  20")]
    assert looks == sorted(looks)
    assert deployed.json("monitor", code=4)["flag"] == "0"
    journal = Journal(deployed.inventory.state_dir / "journal.jsonl").records()
    ends = [one.fields for one in journal if one.kind == "guard.ended"]
    assert [one["result"] for one in ends] == ["failed"]


def test_a_weight_and_steps_as_typed(deployed: Project) -> None:
    path = deployed.root / "inventory" / "lab.yml"
    text = path.read_text()
    path.write_text(text + "guard:\n  steps: [25, 50, 100]\n")
    fill(deployed)
    deployed.json("shadow-gate")
    for words in ("0", "101", "half", "-5"):
        said = deployed.invoke("enable-stacking", f"--weight={words}", "--yes", code=2)
        assert "a whole number from 1 to 100" in said
    assert flag_of(deployed) == "0"

    told = deployed.json("enable-stacking", "--dry-run")
    assert (told["result"], told["weight"], told["steps"]) == ("would", 25, [50, 100])
    told = deployed.json("enable-stacking", "--dry-run", "--weight", "40")
    assert (told["result"], told["weight"], told["steps"]) == ("would", 40, [])
    said = deployed.invoke("enable-stacking", "--yes")
    assert "stacking decides with 25 %; process" in said
    assert "the guard raises it to 50 %, then 100 %, each after a watch without FAIL" in said
    assert "stacking decides with 25 % already" in deployed.invoke("enable-stacking", "--yes")
    assert "decides with 25 %; next 50 %, then 100 %" in deployed.invoke("status")
    (host,) = deployed.json("status")["hosts"]
    assert host["health"]["stacking_weight"] == 25
    assert host["flags"]["ML_STACKING_WEIGHT"] == "25"
    assert [line for line in host["drift"] if "WEIGHT" in line or "stacking" in line] == []
    said = deployed.invoke("monitor", "--once")
    assert "stacking decides with 25 %, live is" in said
    assert "steps  next 50 %, then 100 %" in said

    told = deployed.json("enable-stacking", "--yes", "--weight", "50")
    assert (told["result"], told["weight"], told["steps"]) == ("set", 50, [])
    assert told["report"]  # more needs evidence
    shutil.rmtree(deployed.inventory.state_dir / "gate" / "prod")  # also those of other tests
    told = deployed.json("enable-stacking", "--yes", "--weight", "10")
    assert (told["result"], told["weight"], told["report"]) == ("set", 10, "")  # less needs none
    deployed.invoke("enable-stacking", "--yes", "--weight", "11", code=6)
    # Without a weight it is not lowered, and the steps begin at the next one above.
    assert deployed.invoke("enable-stacking", "--yes", code=6)
    assert deployed.json("disable-stacking", "--yes")["weight"] == 0
    assert "WEIGHT" not in (deployed.app / ".env").read_text()
    path.write_text(text)
    journal = Journal(deployed.inventory.state_dir / "journal.jsonl").records()
    weights = [one.fields["weight"] for one in journal if one.kind.startswith("flag.")][-4:]
    assert weights == [25, 50, 10, 0]


def test_changed_evidence_does_not_open(deployed: Project) -> None:
    fill(deployed)
    deployed.json("shadow-gate")
    log = next((deployed.app / "data/live").glob("trades_*.jsonl"))
    log.write_bytes(log.read_bytes().replace(b'"HOLD"', b'"SELL"', 1))
    assert "not what was analysed" in deployed.invoke("enable-stacking", "--yes", code=6)
    path = report.newest(deployed.inventory, "prod")
    path.write_bytes(path.read_bytes().replace(b'"bars":30', b'"bars":31'))
    assert "can't be trusted" in deployed.invoke("enable-stacking", "--yes", code=6)
    assert flag_of(deployed) == "0"


def diagnosed(place: Project, code: int) -> dict[str, str]:
    """The problems' evidence by name."""
    (one,) = place.json("doctor", code=code)["hosts"]
    return {f["name"]: f["evidence"] for f in one["findings"] if f["ok"] is False}


def test_the_doctor_finds_what_was_done_to_the_host(deployed: Project) -> None:
    fill(deployed)
    assert diagnosed(deployed, 0) == {}
    env, release = deployed.app / ".env", deployed.app / "current"
    model = release / "data/ml_models/model.txt"
    unit = deployed.lab.hosts["prod"].home / ".config/systemd/user/flag-lab.service"
    kept = {path: path.read_bytes() for path in (env, model, unit)}
    mode = model.stat().st_mode
    env.write_bytes(kept[env].replace(b"STACKING=0", b"STACKING=1"))
    model.chmod(0o644)
    model.unlink()  # it is a link to a blob
    model.write_bytes(b"answers a constant")
    unit.write_bytes(kept[unit] + b"# by hand\n")
    fill(deployed, ml_tft_prob=0.0)
    argv = [str(release / "runtime/bin/python"), "-I", "-c", "import time; time.sleep(60)"]
    by_hand = [*argv, "-m", "macd.app.service", f"--root={deployed.app}/"]
    with (
        subprocess.Popen([*argv, "serve.py", "--root", str(deployed.app)]) as stray,
        subprocess.Popen(by_hand) as second,
        subprocess.Popen(
            [*argv, "-m", "macd.app.service", "--root", "."], cwd=deployed.app
        ) as third,
        subprocess.Popen([*argv, "serve.py", "--root", "/another"]) as stranger,
    ):
        found = diagnosed(deployed, 1)
        for process in (stray, second, third, stranger):
            process.kill()
    for path, content in kept.items():
        path.write_bytes(content)
    model.chmod(mode)
    assert set(found) == {
        "processes", "release", "flag", "TFT output", "units",
    }  # fmt: skip
    pids = sorted(process.pid for process in (stray, second, third))
    assert found["processes"].endswith(" run " + " ".join(map(str, pids)))
    assert "model.txt" in found["release"]
    assert "every one of them 0" in found["TFT output"]
    fill(deployed)
    told = deployed.invoke("doctor")
    assert "no problems found" in told
    assert "training on h800" in told


def problems(place: Project) -> dict[str, tuple[str, str]]:
    """Evidence and remedy of each there is, by name."""
    (one,) = place.json("doctor", code=1)["hosts"]
    found = [finding for finding in one["findings"] if finding["ok"] is False]
    return {finding["name"]: (finding["evidence"], finding["remedy"]) for finding in found}


def test_the_doctor_finds_what_the_host_lacks(
    deployed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(deployed)
    (package,) = (deployed.app / "current/runtime/lib").glob("python*/site-packages/tiny.py")
    shutil.move(package, tmp_path)
    try:
        found = problems(deployed)
    finally:
        shutil.move(tmp_path / package.name, package)
    assert found.keys() == {"dependencies", "release"}
    assert found["dependencies"] == (
        "ModuleNotFoundError: No module named 'tiny'",
        "invoke release makes the lock again, invoke deploy builds its runtime",
    )
    assert found["release"][0].endswith("its runtime lacks 1 files as installed (tiny.py)")
    assert "invoke deploy --restart --release" in found["release"][1]

    (tmp_path / "sitecustomize.py").write_text(FAST_CLOCK)
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        ((name, (evidence, remedy)),) = problems(deployed).items()
    assert name == "clock"
    offset, error = (float(word) for word in evidence.split() if word[-1].isdigit())
    assert abs(offset + 90) <= error + 0.2
    assert "timedatectl set-ntp true" in remedy

    if not deployed.app.is_mount():
        pytest.skip("no root that may mount: the disk is nobody's to fill")
    ballast = deployed.app / "data/live/ballast"
    ballast.write_bytes(bytes(150 << 20))
    try:
        ((name, (evidence, remedy)),) = problems(deployed).items()
    finally:
        ballast.unlink()
    assert name == "disk"
    assert float(evidence.split()[0]) < 300
    assert evidence.endswith(f" MB of {size(DISK_MB << 20)} free")
    assert f"{deployed.app}/data/live" in remedy
    assert diagnosed(deployed, 0) == {}


@pytest.mark.parametrize(
    ("name", "evidence", "components"),
    [
        ("ML coverage", "0 of 30 bars", {"ml_error": "lstm: no such file"}),
        (
            "stacking samples",
            "30 bars: n_oof_samples 1200 is below",
            {
                "ml_stacking_prob": None,
                "ml_stacking_mode": "off",
                "ml_stacking_skipped_reason": (
                    "n_oof_samples 1200 is below ML_STACKING_MIN_SAMPLES 5000"
                ),
            },
        ),
    ],
)
def test_the_doctor_reads_what_the_lines_on_the_host_say(
    deployed: Project, name: str, evidence: str, components: dict[str, Any]
) -> None:
    fill(deployed, **components)
    found = diagnosed(deployed, 1)
    assert list(found) == [name]
    assert evidence in found[name]


def test_the_doctor_names_a_training_that_ran_out_of_memory(deployed: Project) -> None:
    fill(deployed)
    sample = deployed.root / job_fakes.SAMPLE
    sample.parent.mkdir(parents=True, exist_ok=True)
    bars = read_bars(project_root() / job_fakes.SAMPLE)[:400]
    write_bars(bars, sample.with_name("BTCUSD_1h.parquet"))
    path = deployed.root / "inventory" / "lab.yml"
    text = path.read_text()
    (deployed.lab.hosts["h800"].home / "doctor-jobs").mkdir()
    known = job_fakes.inventory_of(deployed.root, "doctor-jobs")
    with job_fakes.contact_to(known, job_fakes.Witness()) as contact:
        why = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
        run = job_fakes.begin(contact, f"sys.exit({why!r})")
        job_fakes.soon(lambda: follow.status_of(contact, run)["state"] == "FAILED")
    (one,) = deployed.json("doctor", code=1)["hosts"]
    path.write_text(text)
    (found,) = [finding for finding in one["findings"] if finding["ok"] is False]
    assert found["name"] == "training on h800"
    assert run in found["evidence"]
    assert "CUDA out of memory" in found["evidence"]
    assert "smaller batch" in found["remedy"]


def test_a_deploy_between_the_look_and_the_flip_is_refused(
    deployed: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(deployed)
    deployed.json("shadow-gate")
    inventory, before = deployed.inventory, deployed.live
    asked = flag._evidence

    def deploys_then(*known: Any) -> Any:
        found = asked(*known)  # good for what was live when the client looked
        deployed.release(2)
        deployed.invoke("deploy", "--yes")
        return found

    monkeypatch.setattr(flag, "_evidence", deploys_then)
    with (
        flag.prepare(inventory.host("prod"), inventory, "1") as flip,
        pytest.raises(RefusedError) as refused,
    ):
        flip.carry_out("tester")
    assert deployed.live != before
    assert f"it is about release {before}, live is {deployed.live}" in refused.value.why
    assert flag_of(deployed) == "0"
