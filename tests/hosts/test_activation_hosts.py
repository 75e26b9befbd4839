"""On a real systemd: killed runner, reboot and power cut in mid-trial, crash loop, full disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from macd.deploy import archive
from macd.inventory import Inventory, load
from macd.remote.blobs import put
from macd.remote.failures import RemoteError
from macd.remote.session import Session, open_session
from tests.deployment import ACCEPTS, EMPTY_LOCK, SERVICE, Signed, signed_release
from tests.hosts.fleet import Hosts
from tests.unit.release.releases import IDENTITY, make_key

pytestmark = pytest.mark.hosts

APP = "/opt/trial"
NAME = "trial"
UNIT, SOCKET, BOOT = f"{NAME}.service", f"{NAME}.socket", f"{NAME}-recover.service"
ENDPOINT = f"unix:{APP}/state/run/h.sock"
UNITS = {
    UNIT: f"""[Unit]
Requires={SOCKET}
After={SOCKET}
ConditionPathExists={APP}/current
StartLimitIntervalSec=60
StartLimitBurst=4
[Service]
Type=notify
ExecStart={APP}/current/runtime/bin/python -I {APP}/current/app/serve.py --root {APP}
EnvironmentFile=-{APP}/.env
Restart=on-failure
RestartSec=0.1
TimeoutStopSec=3
[Install]
WantedBy=multi-user.target
""",
    SOCKET: f"""[Unit]
ConditionPathExists={APP}/current
[Socket]
ListenStream={APP}/state/run/h.sock
[Install]
WantedBy=sockets.target
""",
    BOOT: (Path(__file__).parents[2] / "templates" / "recover.unit.j2").read_text(),
}


@dataclass
class Trial:
    """An application of its own on prod, deployed by the host's operations over the real SSH."""

    hosts: Hosts
    inventory: Inventory
    key: Path
    serial: int = 0

    def session(self) -> Session:
        return open_session(
            self.inventory.host("prod"), self.inventory, modules=("deploying", "provisioning")
        )

    def on_prod(self, *argv: str, check: bool = True) -> str:
        return self.hosts.prod.exec(*argv, check=check).strip()

    def release(self, variant: str = "good", *, extra: bytes = b"") -> Signed:
        self.serial += 1
        files = {
            "app/serve.py": SERVICE.format(variant=variant, endpoint=ENDPOINT[5:]).encode(),
            "lock.json": EMPTY_LOCK,
            "data/ml_models/model.txt": f"model {self.serial}".encode() + extra,
        }
        return signed_release(self.key, self.serial, files, variant=variant)

    def begin(self, release: Signed | None, *, confirm_s: float = 20.0) -> int:
        """A deploy (or, of none, a rollback) up to the point where the host carries on alone."""
        with self.session() as session:
            return self.begin_over(session, release, confirm_s=confirm_s)

    def begin_over(self, session: Session, release: Signed | None, *, confirm_s: float) -> int:
        doing = "deploy" if release else "rollback"
        session.call("lock", app=APP, who="tester", doing=doing)
        session.call("recover", app=APP)
        if release:
            put(session, APP, release.blobs())
            signed = {"manifest": release.raw, "signature": release.signature}
            session.call("stage", app=APP, accepts=ACCEPTS, imports=[], **signed)
        service = {"unit": UNIT, "units": [UNIT, SOCKET], "scope": "system"}
        begun = session.call(
            "activate",
            app=APP,
            kind=doing,
            to=release.id if release else None,
            token="t0ken",
            who="tester",
            service={**service, "endpoint": ENDPOINT, "check": []},
            times={"health_s": 8.0, "soak_s": 0.2, "confirm_s": confirm_s},
            keep=2,
            after={},
            accepts=ACCEPTS,
        )
        return int(begun["number"])

    def until(self, number: int, state: str) -> None:
        with self.session() as session:
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                told = session.call("follow", app=APP, number=number, wait=0.5)
                if state in [event["state"] for event in told["events"]]:
                    return
        raise AssertionError(f"{state} was not reached: {told}")

    def end(self, number: int, *, confirm: bool = True) -> dict[str, Any]:
        """Follow to the end, confirm when it is time; the last event."""
        with self.session() as session:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                told = session.call("follow", app=APP, number=number, wait=0.5)
                states = [event["state"] for event in told["events"]]
                if confirm and "soaking" in states:
                    session.call("confirm", app=APP, number=number, token="t0ken")
                if told["over"]:
                    last: dict[str, Any] = told["events"][-1]
                    return last
        raise AssertionError(f"{number} did not end: {told}")

    def deploy(self, release: Signed) -> str:
        return str(self.end(self.begin(release))["state"])

    @property
    def live(self) -> str:
        return self.on_prod("readlink", f"{APP}/current").removeprefix("releases/")

    def answers(self) -> str:
        """Which release answers, asked as a client would."""
        program = (
            "import socket,sys,json;s=socket.socket(1);s.settimeout(20);s.connect(sys.argv[1]);"
            "s.send(b'GET /healthz HTTP/1.0\\r\\n\\r\\n');d=b''\n"
            "while (p:=s.recv(65536)): d+=p\n"
            "print(d.partition(b'\\r\\n\\r\\n')[2].decode())"
        )
        told = self.on_prod("python3", "-c", program, ENDPOINT[5:])
        return str(json.loads(told)["release"])

    def settled(self) -> None:
        assert self.on_prod("ls", f"{APP}/state").split().count("pending.json") == 0
        assert self.answers() == self.live
        committed = json.loads(self.on_prod("cat", f"{APP}/state/committed.json"))
        assert committed[-1]["release"] == self.live


@pytest.fixture(scope="module")
def trial(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    key = make_key(tmp_path_factory.mktemp("key"))
    made = Trial(hosts, load(hosts.inventory, root=hosts.root), key)
    public = key.with_suffix(".pub").read_text().strip()
    boot = UNITS[BOOT].replace("{{ app }}", APP).replace("{{ unit }}", NAME)
    boot = boot.replace("{{ python }}", "/usr/bin/python3").split("WantedBy")[0]
    units = {**UNITS, BOOT: boot + "WantedBy=multi-user.target\n"}
    with made.session() as session:
        directories = [("state", 0o755), ("bin", 0o755), ("releases", 0o755), ("runtimes", 0o755)]
        directories += [("data", 0o755), ("data/live", 0o755), ("state/run", 0o755)]
        session.call(
            "provision",
            app=APP,
            scope="system",
            account="",
            directories=[
                {"path": p, "mode": m, "owner": ""} for p, m in [("", 0o755), *directories]
            ],
            files=[
                {"path": "bin/macd-host.pyz", "data": archive.build(), "mode": 0o644},
                {
                    "path": "state/allowed_signers",
                    "data": f'{IDENTITY} namespaces="release-manifest@macd" {public}\n'.encode(),
                    "mode": 0o644,
                },
            ],
            flags={"ML_ENABLE_STACKING": "0"},
            units=units,
            enable=[UNIT, SOCKET, BOOT],
            who="tester",
        )
    assert made.deploy(made.release()) == "committed"
    yield made
    made.on_prod("systemctl", "disable", "--now", SOCKET, UNIT, BOOT, check=False)


def test_nobody_confirms(trial: Trial) -> None:
    before = trial.live
    last = trial.end(trial.begin(trial.release(), confirm_s=0.5), confirm=False)
    assert last["state"] == "reverted"
    assert "nobody confirmed" in last["reason"]
    assert trial.live == before
    trial.settled()


def test_the_session_that_began_cannot_confirm(trial: Trial) -> None:
    before = trial.live
    with trial.session() as session:
        number = trial.begin_over(session, trial.release(), confirm_s=1.0)
        with pytest.raises(RemoteError, match="can't confirm it"):
            session.call("confirm", app=APP, number=number, token="t0ken")
    assert trial.end(number, confirm=False)["state"] == "reverted"
    assert trial.live == before


@pytest.mark.parametrize("state", ["restarting", "awaiting confirmation"])
def test_a_killed_runner_is_started_again_and_reverts(trial: Trial, state: str) -> None:
    before = trial.live
    number = trial.begin(trial.release())
    trial.until(number, state)
    runner = f"macd-activation-{number}-{NAME}.service"
    trial.on_prod("systemctl", "kill", "-s", "SIGKILL", runner)
    last = trial.end(number, confirm=False)
    assert last["state"] == "reverted"
    assert "interrupted" in last["reason"]
    assert trial.live == before
    trial.settled()


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_the_boot_unit_reverts_before_the_service_starts(trial: Trial, how: str) -> None:
    before = trial.live
    number = trial.begin(trial.release(), confirm_s=120.0)
    trial.until(number, "awaiting confirmation")
    assert trial.live != before
    machine = trial.hosts.prod.machine
    if how == "reboot":
        machine.reboot()
    else:
        machine.power_cut()
        machine.start()
        machine.wait()
    told = trial.on_prod("journalctl", "-b", "-u", BOOT, "-o", "cat")
    assert "macd-host: reverted" in told
    assert trial.live == before
    trial.settled()
    started = ("systemctl", "show", "-p", "NRestarts", "--value", UNIT)
    assert trial.on_prod(*started) == "0"  # the trial's code was not even begun
    assert trial.deploy(trial.release()) == "committed"
    trial.settled()


def test_a_crash_loop_does_not_block_the_way_back(trial: Trial) -> None:
    """The live release crashes until systemd gives up; rollback and deploy get through."""
    good = trial.live
    assert trial.deploy(trial.release()) == "committed"
    broken = trial.live
    # Another file in its place: the releases' like files are one, and the way back stays whole.
    broken_file = f"cd {APP}/current/app; echo 'raise SystemExit(1)' > new; mv new serve.py"
    trial.on_prod("sh", "-c", broken_file)
    trial.on_prod("systemctl", "restart", UNIT, check=False)
    give_up = "for i in $(seq 100); do systemctl is-failed -q $0 && exit 0; sleep 0.1; done; exit 1"
    trial.on_prod("sh", "-c", give_up, UNIT)
    assert trial.on_prod("systemctl", "restart", UNIT, check=False) == ""
    assert trial.on_prod("systemctl", "is-failed", UNIT, check=False) == "failed"
    last = trial.end(trial.begin(None))
    assert (last["state"], trial.live) == ("committed", good)
    trial.settled()
    assert trial.deploy(trial.release()) == "committed"
    assert broken != trial.live
    trial.settled()


def test_a_full_disk_is_told_and_nothing_is_lost(trial: Trial) -> None:
    before = trial.live
    machine = trial.hosts.prod.machine
    trial.on_prod("systemctl", "stop", SOCKET, UNIT)
    machine.limit_disk("/opt/small", 40)
    trial.on_prod("sh", "-c", f"cp -a {APP}/. /opt/small/")
    trial.on_prod("mount", "--bind", "/opt/small", APP)
    try:
        trial.on_prod("systemctl", "start", SOCKET)
        assert trial.answers() == before
        machine.fill_disk(APP, 2048)
        with pytest.raises(RemoteError, match="not enough room"):
            trial.begin(trial.release(extra=b"x" * 4_000_000))
        assert trial.live == before
        assert trial.answers() == before
        trial.on_prod("rm", f"{APP}/.filler")
        assert trial.deploy(trial.release()) == "committed"
        newest = trial.live
        machine.fill_disk(APP, 110)
        last = trial.end(trial.begin(None))
        assert last["state"] == "reverted"
        assert "no room to go back" in last["reason"]
        assert trial.answers() == trial.live == newest
        trial.on_prod("rm", f"{APP}/.filler")
        assert trial.end(trial.begin(None))["state"] == "committed"
        assert trial.answers() == trial.live == before
    finally:
        trial.on_prod("systemctl", "stop", SOCKET, UNIT)
        trial.on_prod("umount", "--lazy", APP)
        trial.on_prod("systemctl", "start", SOCKET)
