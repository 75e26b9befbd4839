"""Following, losing contact, cancelling and collecting, over real SSH through the jump host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd import lab as lab_room
from macd.errors import ContactLostError, MacdError
from macd.inventory import Inventory
from macd.jobs.follow import LocalRuns, follow
from macd.jobs.transfer import collect
from macd.lab import Fault, LabState
from macd.ssh.contact import Contact
from tests.support import commands
from tests.support.job_fakes import (
    Witness,
    begin,
    contact_to,
    inventory_of,
    invoke,
    lay_out,
    soon,
)

COUNT = 30
TALKS = f"""
for n in range({COUNT}):
    emit(n)
    if n == 9: go()
"""


@pytest.fixture
def project(clean_links: LabState, tmp_path: Path) -> Path:
    return lay_out(clean_links, tmp_path / "project")


@pytest.fixture
def inventory(clean_links: LabState, project: Path, tmp_path: Path) -> Inventory:
    """h800 works in a directory of the test's own; what was synced once needn't be again."""
    home = clean_links.hosts["h800"].home
    (home / "job-blobs").mkdir(exist_ok=True)
    work = f"jobs-{tmp_path.name}"
    (home / work).mkdir()
    (home / work / "blobs").symlink_to(home / "job-blobs")
    return inventory_of(project, work)


@pytest.fixture
def local(project: Path) -> LocalRuns:
    return LocalRuns(project / "runs")


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def contact(inventory: Inventory, witness: Witness) -> Iterator[Contact]:
    with contact_to(inventory, witness) as made:
        yield made


def there(lab: LabState, inventory: Inventory, run: str) -> Path:
    """The run's directory on the lab's h800, seen from outside."""
    work = inventory.host("h800").work_dir.removeprefix("~/")
    return lab.hosts["h800"].home / work / "runs" / run


class Following:
    """A viewer in a thread of its own."""

    def __init__(self, contact: Contact, run: str, local: LocalRuns, witness: Witness) -> None:
        self.state = ""
        self.error: MacdError | None = None
        self._arguments = contact, run, local, witness
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.state = follow(*self._arguments)["state"]
        except MacdError as error:
            self.error = error

    def wait(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.state


def test_a_killed_jump_host_is_news_and_not_the_runs_end(
    clean_links: LabState,
    inventory: Inventory,
    contact: Contact,
    local: LocalRuns,
    witness: Witness,
) -> None:
    run = begin(contact, TALKS + "done(model=b'weights')")
    following = Following(contact, run, local, witness)
    soon(lambda: len(witness.seen) == 10)
    lab_room.kill_host(clean_links.root, "jump")
    soon(lambda: "lost" in witness.contact)
    (there(clean_links, inventory, run) / "go").touch()  # it goes on while nobody can look
    soon((there(clean_links, inventory, run) / "result.json").exists)
    lab_room.revive_host(clean_links.root, "jump")
    assert following.wait() == "DONE"
    assert witness.contact[-1] == "back"
    assert witness.seen == list(range(COUNT))
    got = collect(contact, run, local)
    assert (got.folder / "data/model").read_bytes() == b"weights"


def test_patience_ends_with_5_and_the_run_goes_on(
    clean_links: LabState, inventory: Inventory, local: LocalRuns, witness: Witness
) -> None:
    with contact_to(inventory, witness, patience=1.5) as contact:
        run = begin(contact, TALKS + "done()")
        following = Following(contact, run, local, witness)
        soon(lambda: len(witness.seen) == 10)
        lab_room.kill_host(clean_links.root, "jump")
        following.wait()
    error = following.error
    assert isinstance(error, ContactLostError)
    assert error.exit_code == 5
    assert f"train.attach --run {run}" in error.hint
    assert "goes on" in error.live
    lab_room.revive_host(clean_links.root, "jump")
    (there(clean_links, inventory, run) / "go").touch()
    later = Witness()
    with contact_to(inventory, later) as contact:
        assert follow(contact, run, local, later)["state"] == "DONE"
    assert later.known == list(range(10)), "what this machine knew is not fetched again"
    assert later.seen == list(range(10, COUNT))


def test_another_machine_begins_at_the_beginning_and_two_may_look_on(
    clean_links: LabState,
    inventory: Inventory,
    contact: Contact,
    local: LocalRuns,
    witness: Witness,
    tmp_path: Path,
) -> None:
    run = begin(contact, TALKS + "done(model=bytes(100_000))")
    other, elsewhere = Witness(), LocalRuns(tmp_path / "elsewhere" / "runs")
    same = Witness()
    first = Following(contact, run, local, witness)
    soon(lambda: len(witness.seen) == 10)
    with contact_to(inventory, other) as second, contact_to(inventory, same) as third:
        looking = [
            Following(second, run, elsewhere, other),
            Following(third, run, local, same),  # the same machine, the same files
        ]
        soon(lambda: len(other.seen) == 10 and len(same.known) == 10)
        (there(clean_links, inventory, run) / "go").touch()
        assert {one.wait() for one in (first, *looking)} == {"DONE"}
        assert witness.seen == other.seen == list(range(COUNT))
        assert same.known + same.seen == list(range(COUNT))
        at_once = []
        collecting = [
            threading.Thread(target=lambda c=c, p=p: at_once.append(collect(c, run, p)))
            for c, p in ((contact, local), (second, elsewhere), (third, local))
        ]
        for thread in collecting:
            thread.start()
        for thread in collecting:
            thread.join(60)
    assert sorted(bool(got.received) for got in at_once) == [False, True, True]
    for runs in (local, elsewhere):
        assert (runs.collected(run) / "data/model").stat().st_size == 100_000
        assert [path.name for path in runs.runs.iterdir() if path.is_dir()] == [run]


def test_collecting_goes_on_after_a_cut_and_twice_is_once(
    clean_links: LabState, contact: Contact, local: LocalRuns, witness: Witness
) -> None:
    run = begin(contact, "done(big=os.urandom(4_000_000), small=b'x', empty=b'')")
    assert follow(contact, run, local, witness)["state"] == "DONE"
    cut = Fault(cut_after=1_500_000, cut_direction="down", cut_on="present")
    lab_room.set_fault(clean_links.root, "h800", cut)
    got = collect(contact, run, local)
    assert "lost" in witness.contact
    assert got.received < 4_000_000 * 1.5, "what had come was not thrown away"
    assert (got.folder / "data/big").stat().st_size == 4_000_000
    assert (got.folder / "data/empty").stat().st_size == 0
    again = collect(contact, run, local)
    assert (again.received, again.folder) == (0, got.folder)
    (got.folder / "data/big").write_bytes(b"damaged")
    assert collect(contact, run, local).received > 4_000_000
    assert (got.folder / "data/big").stat().st_size == 4_000_000


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"path": "../../evil", "size": 1, "sha256": "0" * 64}, "unsafe path"),
        ({"path": "/tmp/evil", "size": 1, "sha256": "0" * 64}, "unsafe path"),
        ({"path": "data/model", "size": -1, "sha256": "0" * 64}, "its size"),
        ({"path": "data/model", "size": 1 << 50, "sha256": "0" * 64}, "GiB"),
        ({"path": "data/model", "size": 7, "sha256": "0" * 64}, "SHA-256"),
        ({"path": "data/model", "size": 3, "sha256": "0" * 64}, "SHA-256"),
        ({"path": "data", "size": 7, "sha256": "0" * 64}, "can't also be a directory"),
        ({"path": "data/model"}, "None"),
    ],
)
def test_a_host_that_lies_about_its_files_is_refused(
    clean_links: LabState,
    inventory: Inventory,
    contact: Contact,
    local: LocalRuns,
    witness: Witness,
    entry: dict[str, object],
    why: str,
) -> None:
    forged = json.dumps({"state": "done", "files": [entry, *CLASH[entry.get("path") == "data"]]})
    run = begin(contact, f"done(model=b'weights'); open('result.json', 'w').write({forged!r})")
    assert follow(contact, run, local, witness)["state"] == "DONE"
    before = set(local.runs.parent.rglob("*"))
    with pytest.raises(MacdError) as caught:
        collect(contact, run, local)
    assert why in str(caught.value)
    assert not local.collected(run).exists()
    new = {path for path in local.runs.parent.rglob("*") if path.is_file()} - before
    inside = (local.partial(run), local.runs / f".{run}.lock")
    assert all(path.is_relative_to(inside[0]) or path == inside[1] for path in new)


CLASH = {True: [{"path": "data/model", "size": 7, "sha256": "1" * 64}], False: []}


@pytest.mark.parametrize(
    ("script", "reason", "remedy"),
    [
        ("emit(0)", "left no finished result", ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9", "memory ran out"),
        (
            "sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB')",
            "exit code 1",
            "smaller batch",
        ),
        ("sys.exit(\"No module named 'talib'\")", "exit code 1", "pip install talib"),
        ("raise OSError(28, 'No space left on device')", "exit code 1", "make room"),
    ],
)
def test_a_run_that_failed_says_why_and_what_helps(
    project: Path, inventory: Inventory, contact: Contact, script: str, reason: str, remedy: str
) -> None:
    run = begin(contact, script)
    seen = invoke(project, "train.attach", "--run", run)
    assert seen.returncode == 1
    assert "FAILED" in seen.stderr
    assert reason in seen.stderr
    assert remedy in seen.stderr
    assert (project / "runs" / f"{run}.failed" / "log").exists()
    assert not (project / "runs" / run).exists()


def test_states_are_told_by_exit_codes(
    clean_links: LabState, project: Path, inventory: Inventory, contact: Contact
) -> None:
    none = invoke(project, "train.status")
    assert none.returncode == 1
    assert "no training run" in none.stderr
    run = begin(contact, TALKS)
    going = invoke(project, "train.status", "--json")
    assert going.returncode == 3
    assert json.loads(going.stdout)["state"] == "RUNNING"
    refused = invoke(project, "train.cancel")  # the one in progress is meant
    assert refused.returncode == 1  # nobody there to say yes
    assert invoke(project, "train.status").returncode == 3
    lab_room.kill_host(clean_links.root, "jump")
    lost = invoke(project, "train.status", "--run", run)
    assert lost.returncode == 5
    assert "LOST CONTACT" in lost.stderr
    lab_room.revive_host(clean_links.root, "jump")
    stopped = invoke(project, "train.cancel", "--run", run, "--yes")
    assert (stopped.returncode, stopped.stdout.split()[0]) == (0, "CANCELLED")
    over = invoke(project, "train.status")
    assert over.returncode == 1
    assert "CANCELLED" in over.stdout
    nothing = invoke(project, "train.cancel")
    assert (nothing.returncode, nothing.stdout.split()[0]) == (0, "nothing")


def test_a_viewer_that_is_killed_leaves_the_run_alone(
    clean_links: LabState, project: Path, inventory: Inventory, contact: Contact
) -> None:
    run = begin(contact, TALKS + "done()")
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for number, sign in ((signal.SIGKILL, "[starting]"), (signal.SIGINT, "resuming after")):
        with commands.start(
            project,
            *("train.attach", "--run", run),
            env=unbuffered,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as viewer:
            assert viewer.stdout is not None
            assert any(sign in line for line in iter(viewer.stdout.readline, ""))
            viewer.send_signal(number)
            _, err = viewer.communicate(timeout=180)
    assert viewer.returncode == 130
    assert f"run {run} goes on" in err
    assert f"train.attach --run {run}" in err
    assert invoke(project, "train.status").returncode == 3
    (there(clean_links, inventory, run) / "go").touch()
    assert invoke(project, "train.attach").returncode == 0
    assert (project / "runs" / run / "result.json").exists()
