"""An application of its own on prod, deployed by the host's operations over the real SSH."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.inventory import Inventory, load
from macd.ssh import archive
from macd.ssh.blobs import put
from macd.ssh.session import Session, open_session
from tests.support.hosts.fleet import Hosts
from tests.support.local_host import ACCEPTS, EMPTY_LOCK, SERVICE, Signed, signed_release
from tests.support.signed_files import IDENTITY, make_key

APP = "/opt/trial"
NAME = "trial"
ACCOUNT = "trial"
UNIT, SOCKET, BOOT = f"{NAME}.service", f"{NAME}.socket", f"{NAME}-recover.service"
ENDPOINT = f"unix:{APP}/state/run/h.sock"
PATIENCE_S = 300  # longer than any activation here
UNITS = {
    UNIT: f"""[Unit]
Requires={SOCKET}
After={SOCKET}
ConditionPathExists={APP}/current
StartLimitIntervalSec=60
StartLimitBurst=4
[Service]
Type=notify
User={ACCOUNT}
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
    BOOT: (Path(__file__).parents[3] / "templates" / "recover.unit.j2").read_text(),
}


@dataclass
class HostApp:
    """An application of its own on prod, deployed by the host's operations over the real SSH."""

    hosts: Hosts
    inventory: Inventory
    key: Path
    serial: int = 0

    def session(self) -> Session:
        return open_session(
            self.inventory.host("prod"),
            self.inventory,
        )

    def on_prod(self, *argv: str, check: bool = True) -> str:
        return self.hosts.prod.exec(*argv, check=check).strip()

    def release(
        self,
        variant: str = "good",
        *,
        extra: bytes = b"",
        details: Mapping[str, Any] | None = None,
    ) -> Signed:
        self.serial += 1
        files = {
            "app/serve.py": SERVICE.format(variant=variant, endpoint=ENDPOINT[5:]).encode(),
            "lock.json": EMPTY_LOCK,
            "data/ml_models/model.txt": f"model {self.serial}".encode() + extra,
        }
        return signed_release(self.key, self.serial, files, variant=variant, details=details)

    def begin(
        self,
        release: Signed | None,
        *,
        confirm_s: float = 120.0,
        soak_s: float = 0.2,
        health_s: float = 60.0,
    ) -> int:
        """A deploy (or, of none, a rollback) up to the point where the host carries on alone."""
        times = {"confirm_s": confirm_s, "soak_s": soak_s, "health_s": health_s}
        with self.session() as session:
            return self.begin_over(session, release, **times)

    def begin_over(
        self,
        session: Session,
        release: Signed | None,
        *,
        confirm_s: float,
        soak_s: float = 0.2,
        health_s: float = 60.0,
    ) -> int:
        doing = "deploy" if release else "rollback"
        session.call("lock", app=APP, who="tester", doing=doing)
        session.call("recover", app=APP)
        if release:
            put(session, APP, release.blobs())
            signed = {"manifest": release.raw, "signature": release.signature}
            as_run = {"scope": "system", "unit_text": UNITS[UNIT]}
            session.call("stage", app=APP, accepts=ACCEPTS, imports=[], **as_run, **signed)
        service = {"unit": UNIT, "units": [UNIT, SOCKET], "scope": "system"}
        begun = session.call(
            "activate",
            app=APP,
            kind=doing,
            to=release.id if release else None,
            token="t0ken",
            who="tester",
            service={**service, "endpoint": ENDPOINT, "check": []},
            times={"health_s": health_s, "soak_s": soak_s, "confirm_s": confirm_s},
            keep=2,
            after={},
            accepts=ACCEPTS,
        )
        return int(begun["number"])

    def until(self, number: int, state: str) -> None:
        with self.session() as session:
            deadline, seen = time.monotonic() + PATIENCE_S, 0
            while time.monotonic() < deadline:
                told = session.call("follow", app=APP, number=number, seen=seen, wait=0.5)
                if state in [event["state"] for event in told["events"]]:
                    return
                seen += len(told["events"])
        raise AssertionError(f"{state} was not reached: {told}")

    def end(self, number: int, *, confirm: bool = True) -> dict[str, Any]:
        """Follow to the end, confirm when it is time; the last event."""
        return self.story(number, confirm=confirm)[-1]

    def story(self, number: int, *, confirm: bool = True) -> list[dict[str, Any]]:
        """As `end`; every event."""
        with self.session() as session:
            deadline = time.monotonic() + PATIENCE_S
            events: list[dict[str, Any]] = []
            while time.monotonic() < deadline:
                told = session.call("follow", app=APP, number=number, seen=len(events), wait=0.5)
                events += told["events"]
                states = [event["state"] for event in events]
                if confirm and "awaiting confirmation" in states and not told["over"]:
                    with self.session() as fresh:
                        fresh.call("confirm", app=APP, number=number, token="t0ken")
                if told["over"]:
                    return events
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


@contextmanager
def host_app_on(hosts: Hosts, keys: Path) -> Iterator[HostApp]:
    """Provisioned, with a first release live; taken out of use at the end."""
    key = make_key(keys)
    made = HostApp(hosts, load(hosts.inventory, root=hosts.root), key)
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
            account=ACCOUNT,
            directories=[
                {"path": p, "mode": m, "owner": ACCOUNT if p == "data/live" else ""}
                for p, m in [("", 0o755), *directories]
            ],
            files=[
                {"path": "bin/macd-host.pyz", "data": archive.build(), "mode": 0o644},
                {
                    "path": "state/accepts.json",
                    "data": json.dumps(ACCEPTS).encode(),
                    "mode": 0o644,
                },
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
