"""Provision, plan, deploy, rollback on the embedded lab: as typed, interrupted, cut off, raced."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room
from macd.journal import Journal
from macd.lab import Fault, LabState
from tests.support import commands
from tests.support.lab_project import Project, project


@pytest.fixture(scope="module")
def bench(lab: LabState, tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = project(lab, tmp_path_factory.mktemp("deploy") / "p", "deploy-test")
    made.release(1)
    assert "not provisioned" in made.invoke("deploy", "--yes", code=6)
    announced = made.json("provision", "--dry-run")["hosts"][0]["changes"]
    assert not made.app.exists()
    told = made.invoke("provision", "--yes")
    assert f"  {len(announced)} changes\n" in told
    assert all(f"  ✓ {one['how']}: {one['what']} {one['name']}\n" in told for one in announced)
    assert told.count("no bars to replay") == 1  # this project has none: said, and not refused
    assert "BTCUSD_1h.parquet" in told
    made.invoke("deploy", "--yes")
    return made


def test_a_second_provision_and_a_second_deploy_change_nothing(bench: Project) -> None:
    assert "  0 changes" in bench.invoke("provision", "--yes")
    before = bench.json("status")["hosts"][0]["process"]
    assert "nothing to do" in bench.invoke("deploy")  # no question where there is nothing to ask
    assert bench.json("deploy", "--yes")["outcomes"][0]["sent"] == 0
    assert bench.json("status")["hosts"][0]["process"] == before
    assert not bench.json("plan")["changes"]
    dry = bench.json("deploy", "--dry-run")
    assert (dry["dry_run"], dry["changes"], dry["hosts"][0]["changes"]) == (True, False, False)


@pytest.mark.parametrize("verb", ["plan", "status", "deploy --dry-run"])
def test_what_looks_at_a_host_loads_no_library_for_tables(bench: Project, verb: str) -> None:
    """polars would be loaded between the host's answer and what follows from it: 0.15 s."""
    noted = {"MACD_ROOT": str(bench.root), "PYTHONPROFILEIMPORTTIME": "1"}
    done = commands.run(bench.root, *verb.split(), env={**os.environ, **noted})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "macd.deploy.state" in loaded
    assert loaded.isdisjoint({"polars", "numpy"})


def test_without_a_yes_nothing_happens(bench: Project) -> None:
    before = bench.live
    bench.release(2)
    assert "nothing was changed" in bench.invoke("deploy", code=1)
    assert "would" not in bench.invoke("deploy", "--dry-run")
    dry = bench.json("deploy", "--dry-run")
    assert (dry["dry_run"], dry["changes"], dry["hosts"][0]["changes"]) == (True, True, True)
    assert bench.live == before


def test_a_restart_changes_the_process_and_nothing_else(bench: Project) -> None:
    before = bench.json("status")["hosts"][0]
    live = str(bench.live)
    told = bench.json("deploy", "--yes", "--restart", "--release", live)["outcomes"][0]
    assert (told["result"], told["sent"], told["live"]) == ("committed", 0, live)
    after = bench.json("status")["hosts"][0]
    assert after["process"]["pid"] != before["process"]["pid"]
    assert after["rollback"] == before["rollback"]


def test_deploy_and_rollback_and_the_record_of_it(bench: Project) -> None:
    first = bench.live
    second = bench.release(3)
    env = bench.app / ".env"
    text = env.read_text().replace("ML_ENABLE_STACKING=0", "ML_ENABLE_STACKING=1")
    env.write_text(text + "ML_STACKING_MIN_SAMPLES=321\n")
    told = bench.invoke("deploy", "--yes")
    assert "stacking goes back to shadow" in told
    assert f"✓ prod: {second} is live" in told
    assert bench.json("status")["hosts"][0]["flags"]["ML_ENABLE_STACKING"] == "0"
    assert f"back to {first}" in bench.invoke("rollback", "--dry-run")
    # Machines get JSON and nothing else, also where the answer is no.
    assert bench.json("rollback", code=1)["result"] == "not agreed"
    aside = bench.root / "releases-elsewhere"
    (bench.root / "releases").rename(aside)  # the way back needs nothing from this machine
    try:
        told = bench.invoke("rollback", "--yes")
    finally:
        aside.rename(bench.root / "releases")
    assert "it came back in shadow (ML_ENABLE_STACKING=0)" in told
    assert "invoke shadow-gate, then invoke enable-stacking" in told
    assert bench.live == first
    way_back = bench.json("status")["hosts"][0]["rollback"]
    assert f"invoke rollback --to {second}" in way_back["why"]
    flags = bench.json("status")["hosts"][0]["flags"]
    # All comes back as it was but live stacking, which nobody would watch.
    assert (flags["ML_ENABLE_STACKING"], flags["ML_STACKING_MIN_SAMPLES"]) == ("0", "321")
    assert bench.json("why")["hosts"][0]["how"] == "rollback"
    kinds = [r.kind for r in Journal(bench.inventory.state_dir / "journal.jsonl").records()]
    assert kinds[-4:] == ["deploy.began", "deploy.ended", "rollback.began", "rollback.ended"]
    bench.invoke("rollback", "--yes", "--to", second)
    assert bench.live == second
    assert f"nothing to do, {second} is live" in bench.invoke("rollback", "--yes", "--to", second)
    assert "never committed" in bench.invoke(
        "rollback", "--yes", "--to", "20260301T000200Z-00000000", code=6
    )


def test_a_bad_release_ends_with_4_and_the_old_one_serves(bench: Project) -> None:
    before = bench.live
    bad = bench.release(4, "exits")
    told = bench.invoke("deploy", "--yes", code=4)
    assert f"the deploy of {bad} was reverted" in told
    assert f"now: {before} is live" in told
    assert bench.json("status")["well"]


def test_interrupted_or_cut_while_sending_nothing_was_switched(
    bench: Project, clean_links: LabState
) -> None:
    before = bench.live
    size = 16 << 20  # far more than the line, its window and the pipes behind it can hold unread
    release = bench.release(5, extra=random.Random(5).randbytes(size))
    lab_room.set_fault(bench.lab.root, "prod", Fault(mbit=4))
    code, said = bench.interrupt_at(r"^  back ", "deploy", "--yes")
    assert code == 130
    assert "interrupted before anything was switched" in said
    assert bench.live == before
    lab_room.set_fault(bench.lab.root, "prod", Fault())
    assert "deploy" not in (bench.json("status")["hosts"][0]["lock"] or "")

    cut = Fault(cut_after=8_000_000, cut_direction="up", cut_on="next")
    lab_room.set_fault(bench.lab.root, "prod", cut)
    told = bench.invoke("deploy", "--yes", code=5)
    assert "nothing was switched" in told
    assert bench.live == before
    again = bench.json("deploy", "--yes")["outcomes"][0]
    assert bench.live == release
    assert again["sent"] < size  # what had come was not sent again


@contextlib.contextmanager
def times(bench: Project, **seconds: int) -> Iterator[None]:
    """What the inventory says of a deploy's times, for a while."""
    inventory = bench.root / "inventory" / "lab.yml"
    before = text = inventory.read_text()
    for name, number in seconds.items():
        text, changed = re.subn(rf"\b{name}: \d+", f"{name}: {number}", text)
        assert changed == 1, name
    inventory.write_text(text)
    try:
        yield
    finally:
        inventory.write_text(before)


def test_interrupted_after_the_switch_attach_confirms_it(bench: Project) -> None:
    release = bench.release(6)
    with times(bench, soak_s=5, confirm_s=90):
        code, said = bench.interrupt_at("✓ switched", "deploy", "--yes")
    assert code == 5, said
    assert "invoke deploy --attach" in said
    for _ in range(2):
        told = bench.invoke("deploy", "--attach")
        assert f"✓ prod: {release} is live" in told
    records = Journal(bench.inventory.state_dir / "journal.jsonl").records()
    ends = [r.fields for r in records if r.kind == "deploy.ended"][-2:]
    assert [one.get("result") for one in ends] == ["left to the host", "committed"]
    assert bench.live == release


def test_of_two_at_once_one_wins_and_the_other_says_who(bench: Project) -> None:
    release = bench.release(9)
    both = [bench.start("deploy", "--yes") for _ in range(2)]
    ends = []
    for typed in both:
        with typed:
            out, err = typed.communicate(timeout=180)
            ends.append((typed.returncode, out + err))
    ends.sort()
    assert ends[0][0] == 0
    # the loser either met the lock, or the activation, or came when all was done
    if ends[1][0]:
        assert ends[1][0] == 6
        assert "held the lock for" in ends[1][1] or "under way" in ends[1][1]
    assert bench.live == release


def test_a_cut_after_the_switch_and_an_outage_as_long_as_the_soak(
    bench: Project, clean_links: LabState
) -> None:
    """The soak is longer than the confirmation may take.

    The operator tries for as long as the host waits, and that begins when the soak has ended.
    """
    release = bench.release(10)
    with times(bench, soak_s=16, confirm_s=15), bench.start("deploy", "--yes") as typed:
        assert typed.stdout is not None
        for line in typed.stdout:
            if "restarting" in line:
                break
        lab_room.set_fault(bench.lab.root, "prod", Fault(cut_after=0, cut_on="present"))
        lab_room.set_fault(bench.lab.root, "prod", Fault())
        unsaid = {"LOST CONTACT", "soaking"}
        for line in typed.stdout:
            unsaid = {word for word in unsaid if word not in line}
            if not unsaid:
                break
        assert not unsaid
        lab_room.set_fault(bench.lab.root, "prod", Fault(stall=True))
        log = max((bench.app / "state/activations").glob("*.jsonl"), key=lambda p: int(p.stem))
        while '"awaiting confirmation"' not in log.read_text():
            assert typed.poll() is None
            time.sleep(0.05)
        lab_room.set_fault(bench.lab.root, "prod", Fault())
        out, err = typed.communicate(timeout=180)
    assert typed.returncode == 0, out + err
    assert bench.live == release


def test_what_rotted_is_sent_again_and_a_rollback_loses_nothing(bench: Project) -> None:
    """A rollback names what people changed on the host since, and keeps it."""
    first, second = bench.live, bench.release(11, extra=bytes(range(256)) * 1000)
    deployed_over_what_rotted(bench, second)
    env, settings = bench.app / ".env", bench.app / "service.json"
    units = bench.lab.hosts["prod"].home / ".config/systemd/user"
    unit = units / "deploy-test.service"
    before = env.read_text()
    flags = before + "EXCHANGE_KEY=r0tated\nEXTRA_TOKEN=s3cret # 'odd\n"
    env.write_text(flags)
    settings.write_text('{"by": "hand"}\n')
    edited = unit.read_text() + "# API_TOKEN=s3cret\n"
    unit.write_text(edited)
    (units / "deploy-test.service.d").mkdir()
    dropin = units / "deploy-test.service.d" / "override.conf"
    dropin.write_text("[Service]\nEnvironment=EXTRA=s3cret\n")
    changed = ["deploy-test.service", "service.json"]
    dry = bench.json("rollback", "--dry-run")
    assert dry["to"] == {"prod": first}
    assert dry["changes"]["prod"] == {
        "files": changed, "edited": changed, "keys": [], "dropins": [str(dropin)],
    }  # fmt: skip
    asked = bench.invoke("rollback", code=1)  # the question names them, and a no changes nothing
    assert f"puts back as they were with {first}: {', '.join(changed)}" in asked
    assert "deploy-test.service was changed on the host since the last deploy" in asked
    assert f"leaves alone: everything else in .env, {dropin}" in asked
    assert (bench.live, env.read_text(), unit.read_text()) == (second, flags, edited)
    said = bench.json("rollback", "--yes")
    told = said["outcomes"][0]
    assert (told["live"], told["files"], told["keys"]) == (first, changed, [])
    assert "s3cret" not in asked + str(said)
    assert env.read_text() == flags
    kept = {Path(path).name.partition(".before-rollback-")[0]: Path(path) for path in told["kept"]}
    assert sorted(kept) == changed
    assert kept["deploy-test.service"].read_text() == edited
    assert kept["service.json"].read_text() == '{"by": "hand"}\n'
    assert "# API_TOKEN" not in unit.read_text()
    assert "EXTRA=s3cret" in dropin.read_text()
    dropin.unlink()
    dropin.parent.rmdir()
    env.write_text(before)  # a deploy wants to understand every line


def deployed_over_what_rotted(bench: Project, release: str) -> None:
    """A power cut leaves zeros in a blob that was on its way: its rest alone would never fit."""
    manifest = json.loads((bench.root / "releases" / release / "manifest.json").read_text())
    stored = bench.app / "blobs"
    digests = {file["sha256"]: file["size"] for file in manifest["files"]}
    [(digest, size)] = [
        (digest, size)
        for digest, size in digests.items()
        if size > 100_000 and not (stored / "sha256" / digest[:2] / digest).exists()
    ]
    (stored / ".partial").mkdir(exist_ok=True)
    rotten = stored / ".partial" / f"{digest}.0123456789ab"
    rotten.write_bytes(bytes(size // 2))
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert (told["result"], told["live"]) == ("committed", release)
    assert told["sent"] >= size, "the second attempt sent it whole"
    assert list(rotten.parent.iterdir()) == []
    assert bench.json("status")["well"]


def test_a_damaged_release_is_named_by_status_and_by_the_next_deploy(bench: Project) -> None:
    releases = bench.app / "releases"
    kept = sorted(path.name for path in releases.iterdir() if path.name != bench.live)[-1]
    manifest = releases / kept / "manifest.json"
    whole = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(whole[:-9])  # the blob it is linked to stays as it is
    try:
        assert f"drift     releases/{kept} is damaged" in bench.invoke("status")
        bench.release(13)
        told = bench.invoke("deploy", "--yes")
        assert f"note   releases/{kept} on the host is damaged, nothing can go back to it" in told
    finally:
        manifest.write_bytes(whole)


def test_the_runtime_comes_with_the_release_and_goes_back_with_it(bench: Project) -> None:
    version = "import tiny; print(tiny.__version__)"
    old = bench.release(20, package="1.0")
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert "build runtime" in told["plan"]["steps"]
    assert bench.runtime_says(version) == "1.0"
    same_lock = bench.release(21, package="1.0")
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert "build runtime" not in told["plan"]["steps"]
    assert (told["live"], told["plan"]["blobs"]) == (same_lock, 1)
    bench.release(22, package="2.0")
    told = bench.json("deploy", "--yes")["outcomes"][0]
    assert told["sent"] < 4000  # pip was there
    assert bench.runtime_says(version) == "2.0"
    bench.invoke("rollback", "--yes", "--to", old)
    assert bench.runtime_says(version) == "1.0"


def test_a_lost_wheel_is_told_before_anything_is_switched(bench: Project) -> None:
    before = bench.live
    bench.release(23, package="3.0")
    for wheel in (bench.root / "releases" / "wheels").glob("*/tiny-3.0-*.whl"):
        wheel.unlink()
    told = bench.invoke("deploy", "--yes", code=6)
    assert "neither the host nor this machine has: tiny-3.0" in told
    assert bench.live == before
    bench.release(24)
    bench.invoke("deploy", "--yes")


def test_a_changed_unit_is_drift_and_deploy_puts_it_right(bench: Project) -> None:
    unit = bench.lab.hosts["prod"].home / ".config/systemd/user/deploy-test.service"
    unit.write_text(unit.read_text() + "# by hand\n# API_TOKEN=s3cret\n")
    shown = bench.invoke("plan")
    assert "-# by hand" in shown
    assert "-# API_TOKEN=••••" in shown
    looks = bench.invoke("provision", "--dry-run") + bench.invoke("status", "--json")
    assert "s3cret" not in shown + looks
    assert "drift  deploy-test.service was changed" in shown
    bench.invoke("deploy", "--yes")
    assert "# by hand" not in unit.read_text()
    assert "drift     none" in bench.invoke("status")


def test_provision_says_that_a_restart_is_due_for_what_it_rewrote(bench: Project) -> None:
    settings = bench.app / "service.json"
    settings.write_text(settings.read_text().replace("{", '{\n "ours": 1,', 1))
    due = f"invoke deploy --restart --release {bench.live}"
    assert due in bench.invoke("provision", "--dry-run")
    told = bench.invoke("provision", "--yes")
    assert "service.json: the running service still has the old one" in told
    assert due in told
    assert "restart" not in bench.invoke("provision", "--yes")


def test_a_host_that_is_not_there(bench: Project, clean_links: LabState) -> None:
    lab_room.set_fault(bench.lab.root, "prod", Fault(stall=True))
    with bench.start("status") as typed:
        try:
            _, err = typed.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            typed.kill()
            raise
    assert typed.returncode in (1, 5)
    assert "✗" in err


def test_the_hosts_own_journal_is_read_and_checked(bench: Project) -> None:
    told = bench.json("history", "--env", "prod", "--limit", "0")["hosts"][0]
    assert told["host"] == "prod"
    assert [r["seq"] for r in told["records"]] == list(range(1, len(told["records"]) + 1))
    assert "committed" in {record["kind"] for record in told["records"]}
    path = bench.app / "state/journal.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"kind":"committed"', '"kind":"reverted"', 1))
    assert "changed after it was written" in bench.invoke("history", "--env", "prod", code=1)
    path.write_text(whole)


def test_a_revert_to_what_does_not_start_is_no_4_and_a_restart_brings_it_back(
    bench: Project,
) -> None:
    before = str(bench.live)
    serve = bench.app / "current" / "app" / "serve.py"
    whole = serve.read_bytes()
    serve.unlink()  # the blob it is linked to stays as it is
    serve.write_text("raise SystemExit('its disk is gone')")
    bench.release(50, "exits")
    told = bench.invoke("deploy", "--yes", code=1)
    assert f"NOTHING SERVES WELL: {before} is back, but does not serve well" in told
    assert "invoke rollback --to ID" in told
    status = bench.json("status", code=1)["hosts"][0]
    assert (status["well"], status["last"]["well"]) == (False, False)
    same = ("deploy", "--release", before)
    assert "does not serve well" in bench.invoke(*same, code=1)
    told = bench.invoke(*same, "--yes", code=1)
    assert f"do: invoke deploy --restart --release {before}" in told
    serve.unlink()
    serve.write_bytes(whole)
    bench.invoke(*same, "--yes", "--restart")  # though a newer serial was seen here
    assert bench.json("status")["well"]
