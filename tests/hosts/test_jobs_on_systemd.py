"""Jobs on real systemd: runs that outlive logins, hosts that reboot or lose power."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from macd.app.market.bars import read_bars, write_bars
from macd.errors import MacdError
from macd.inventory import Inventory, load, project_root
from macd.inventory.own_app import OwnApp
from macd.jobs import own, transfer
from macd.jobs.follow import LocalRuns, follow
from macd.jobs.transfer import collect
from macd.ssh.contact import Contact
from tests.support.hosts.fleet import Hosts
from tests.support.job_fakes import SAMPLE, Witness, begin, contact_to
from tests.support.openssh import eventually

pytestmark = pytest.mark.hosts

soon = functools.partial(eventually, within=300, every=0.3)  # a look starts a process

TALKS = """
emit(0)
go()
emit(1)
done(model=b'weights')
"""


@pytest.fixture
def inventory(hosts: Hosts, tmp_path: Path) -> Inventory:
    """The test hosts' inventory, with bars, and a work directory of the test's own on h800."""
    write_bars(read_bars(project_root() / SAMPLE)[:300], tmp_path / "BTCUSD_1h.parquet")
    book = load(hosts.inventory, root=hosts.root)
    train = book.train.model_copy(update={"data_dir": tmp_path})
    h800 = book.host("h800").model_copy(update={"work_dir": f"~/{tmp_path.name}"})
    return book.model_copy(update={"train": train, "hosts": {**book.hosts, "h800": h800}})


@pytest.fixture
def contact(inventory: Inventory, witness: Witness) -> Iterator[Contact]:
    with contact_to(inventory, witness, patience=300) as made:
        yield made


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def local(tmp_path: Path) -> LocalRuns:
    return LocalRuns(tmp_path / "runs")


def status(contact: Contact, run: str) -> dict[str, object]:
    work = contact.host.work_dir
    told: dict[str, object] = contact.use(
        lambda session: session.call("job_status", work=work, run=run)
    )
    return told


def let_go(hosts: Hosts, inventory: Inventory, run: str) -> None:
    work = inventory.host("h800").work_dir
    assert hosts.h800.ssh(f"touch {work}/runs/{run}/go").returncode == 0


def linger(hosts: Hosts, word: str) -> None:
    """Let the training user's manager outlive its sessions, or not."""
    assert hosts.h800.ssh(f"loginctl {word}-linger quant", user="root").returncode == 0
    marks = ["quant"] if word == "enable" else []
    soon(lambda: hosts.h800.exec("ls", "/var/lib/systemd/linger").split() == marks)


def logged_out(hosts: Hosts) -> bool:
    """Nobody is logged in; a session that only has detached processes left is closing."""
    lines = hosts.h800.exec("loginctl", "list-sessions", "--no-legend").splitlines()
    shown = [
        hosts.h800.exec("loginctl", "show-session", line.split()[0], "-p", "State", check=False)
        for line in lines
        if "quant" in line
    ]
    return all("closing" in state for state in shown)


@pytest.mark.parametrize(("word", "expected"), [("enable", "user unit"), ("disable", "setsid")])
def test_a_run_outlives_the_last_login(
    hosts: Hosts, inventory: Inventory, local: LocalRuns, witness: Witness, word: str, expected: str
) -> None:
    """With lingering in a unit of the user's manager; where that is refused, in its own session."""
    linger(hosts, word)
    with contact_to(inventory, witness) as contact:
        run = begin(contact, TALKS)
        assert status(contact, run)["detached"] == expected
    soon(lambda: logged_out(hosts))
    with contact_to(inventory, witness) as contact:
        assert status(contact, run)["state"] == "RUNNING"
        units = hosts.h800.ssh("systemctl --user list-units --plain 'macd-job-*'").stdout
        assert (run.lower() in units) == (expected == "user unit")
        let_go(hosts, inventory, run)
        assert follow(contact, run, local, witness)["state"] == "DONE"
        assert (collect(contact, run, local).folder / "data/model").read_bytes() == b"weights"


def test_a_host_that_would_kill_the_run_at_logout_is_refused_beforehand(
    hosts: Hosts, contact: Contact, inventory: Inventory
) -> None:
    linger(hosts, "disable")
    conf = "/run/systemd/logind.conf.d/kill.conf"
    setting = "[Login]\\nKillUserProcesses=yes\\n"
    hosts.h800.exec("sh", "-c", f"mkdir -p ${{0%/*}}; printf '{setting}' > $0", conf)
    hosts.h800.exec("systemctl", "restart", "systemd-logind")
    try:
        with pytest.raises(MacdError, match="kill the run") as caught:
            begin(contact, TALKS)
        assert "enable-linger quant" in caught.value.hint
    finally:
        hosts.h800.exec("rm", conf)
        hosts.h800.exec("systemctl", "restart", "systemd-logind")
    linger(hosts, "enable")
    assert status(contact, begin(contact, "done()"))["detached"] == "user unit"


def test_the_jump_host_reboots_in_mid_run(
    hosts: Hosts, inventory: Inventory, contact: Contact, local: LocalRuns, witness: Witness
) -> None:
    run = begin(contact, TALKS)
    ended: list[str] = []
    viewer = threading.Thread(
        target=lambda: ended.append(follow(contact, run, local, witness)["state"])
    )
    viewer.start()
    soon(lambda: witness.seen == [0])
    hosts.jump.machine.reboot()
    let_go(hosts, inventory, run)
    viewer.join(300)
    assert ended == ["DONE"]
    assert witness.seen == [0, 1]
    assert (witness.contact[0], witness.contact[-1]) == ("lost", "back")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("reboot", "shutdown"), ("power cut", "lost power")],
)
def test_a_host_that_goes_down_fails_its_run(
    hosts: Hosts,
    inventory: Inventory,
    contact: Contact,
    local: LocalRuns,
    witness: Witness,
    ending: str,
    reason: str,
) -> None:
    linger(hosts, "enable")
    run = begin(contact, TALKS)
    if ending == "reboot":
        before = hosts.h800.machine.boot_id()
        hosts.h800.ssh("systemctl reboot", user="root")
        hosts.h800.machine.wait(before)
    else:
        hosts.h800.machine.power_cut()
        hosts.h800.machine.start()
        hosts.h800.machine.wait()
    told = follow(contact, run, local, witness)
    assert told["state"] == "FAILED"
    assert reason in told["reason"]
    assert "lost" in witness.contact
    again = begin(contact, "done()", seed=8)  # and the host trains again
    assert follow(contact, again, local, Witness())["state"] == "DONE"


FORKS = """
import os, subprocess, sys, time
child = ["-c", "import os, time; print(os.getpid(), file=open('pid', 'w')); time.sleep(600)"]
subprocess.Popen([sys.executable, *child], start_new_session=True)
while not os.path.exists("go"):
    time.sleep(0.05)
open("models/m.json", "w").write('{"auc": 0.61}')
"""
KILLS = """
import json, os, sys
os.kill(json.load(open(os.path.expanduser(sys.argv[1])))["runner"]["pid"], 9)
"""


@pytest.mark.parametrize(
    ("word", "ending"), [("enable", "kill"), ("disable", "kill"), ("enable", "go")]
)
def test_an_own_application_and_what_it_started_end_with_the_run(
    hosts: Hosts,
    inventory: Inventory,
    contact: Contact,
    local: LocalRuns,
    witness: Witness,
    tmp_path: Path,
    word: str,
    ending: str,
) -> None:
    """In a unit and in a session of its own; a child that left the session ends as well."""
    linger(hosts, word)
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "go.py").write_text(FORKS)
    app = OwnApp.model_validate(
        {
            "name": "theirs",
            "source": source,
            "files": ["*.py"],
            "train": {
                "stages": {"go": "python3 go.py"},
                "artefacts": ["models/*"],
                "metrics": {"auc": "models/m.json#/auc"},
            },
            "serve": {"command": "python3 go.py"},
        }
    )
    request = own.make(inventory, app, python="python3", symbol="", stage="", now=datetime.now(UTC))
    transfer.send(contact, request)
    transfer.start(contact, request)
    there = f"{inventory.host('h800').work_dir}/runs/{request.run}"
    soon(lambda: hosts.h800.ssh(f"test -s {there}/source/pid").returncode == 0)
    pid = hosts.h800.ssh(f"cat {there}/source/pid").stdout.strip()
    if ending == "kill":
        hosts.h800.ssh(f"python3 -c '{KILLS}' {there}/process.json")
    else:
        hosts.h800.ssh(f"touch {there}/source/go")
    quiet = SimpleNamespace(past=lambda events: None, news=lambda events, status: None)
    ended = follow(contact, request.run, local, quiet)
    assert ended["state"] == ("FAILED" if ending == "kill" else "DONE"), ended
    assert ("runner was killed" in str(ended["reason"])) == (ending == "kill")
    soon(lambda: hosts.h800.ssh(f"test -d /proc/{pid}").returncode != 0)
    if ending == "go":
        folder = collect(contact, request.run, local).folder
        assert (folder / "artefacts/models/m.json").exists()
