"""A pretended host on which any step of a deploy can be killed at any system call, or made to fail.

`systemctl` here is a small shell script: it records which release, unit text and flags a restart
took, so a test can tell whether they belong together. Health is answered for what it recorded; an
application of one's own has two units, and real processes that the kernel is asked about.
strace does the killing (and the failing disk); the state of the host is put back by a copy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macd.host import own
from macd.host.own import Flag, Probe, Service
from macd.journal import Journal
from tests.support.kills.fakes import HANDED_OVER, SYSTEMCTL, health, packages
from tests.support.kills.steps import FLAGS, SOCKET, UNIT, WEB
from tests.support.kills.strace import Tracing
from tests.support.local_host import ACCEPTS, EMPTY_LOCK, Signed, signed_release
from tests.support.signed_files import IDENTITY, make_key

CHANGES = (
    "rename renameat renameat2 unlink unlinkat rmdir symlink symlinkat link linkat mkdir mkdirat "
    "write pwrite64 ftruncate fchmod chmod fchown fchownat fallocate fsync fdatasync openat"
)


OWN = Service(
    "macd-analysis",
    {UNIT: Probe(running=0.02), WEB: Probe(notify=True)},
    ("data/live",),
    Flag(FLAGS[0], "1", "0", "env"),
)


@dataclass
class TracedHost:
    """One pretended host; `top` holds its home, its application, and what it was before.

    own: the application of a team's own that is on it; None for the built-in one.
    """

    top: Path
    steps: subprocess.Popen[str]
    key: Path
    own: Service | None = None
    generation: int = 0
    releases: dict[int, Signed] = field(default_factory=dict)
    flags: dict[int, str] = field(default_factory=dict)  # .env of releases, where it is known

    def rival(self) -> TracedHost:
        """The same host, asked by another client; to be ended by `over`."""
        return dataclasses.replace(self, steps=started(self.top, own=bool(self.own)))

    @property
    def units(self) -> list[str]:
        return list(self.own.units) if self.own else [UNIT]

    @property
    def app(self) -> Path:
        return self.top / "app"

    # -- steps

    def step(
        self, name: str, *, trace: tuple[str, ...] = (), ended_at: str = "", **arguments: Any
    ) -> dict[str, Any]:
        """Run one step, killed or hindered as `trace` (strace's expressions) says.

        `ended_at`: killed by systemd's side instead, e.g. "2 after": when its second change of
        systemd had taken effect.
        """
        pid = self.begin(name, held=bool(trace), ended_at=ended_at, **arguments)
        tracing = Tracing(pid, self.top / "trace", *trace) if trace else None
        if tracing:
            os.kill(pid, signal.SIGCONT)
        answer = self.ended()
        if tracing:
            tracing.communicate()
        return answer

    def begin(self, name: str, *, held: bool = False, ended_at: str = "", **arguments: Any) -> int:
        """Start one step, `held` until somebody continues it; its process."""
        (self.top / "asked").write_text("0\n")
        request = {
            "step": name,
            "held": held,
            "ended_at": ended_at,
            "generation": self.generation,
            "arguments": {"app": str(self.app), **arguments},
        }
        assert self.steps.stdin is not None
        self.steps.stdin.write(json.dumps(request) + "\n")
        self.steps.stdin.flush()
        return int(self.ended()["pid"])

    @property
    def asked(self) -> int:
        """How often the last step had systemd change something."""
        return int((self.top / "asked").read_text())

    @property
    def injected(self) -> list[str]:
        """The calls of the last traced step that were refused instead of done."""
        return [n for n in (self.top / "trace").read_text().splitlines() if "(INJECTED)" in n]

    def ended(self) -> dict[str, Any]:
        """The next word of the steps' process: what was begun has ended, and how."""
        assert self.steps.stdout is not None
        line = self.steps.stdout.readline()
        if not line:
            raise RuntimeError("the steps' process ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, serial: int, *, keep: int = 0, trace: tuple[str, ...] = ()) -> dict[str, Any]:
        return self.step("send", trace=trace, keep=keep, **self.offered(serial))

    def offered(self, serial: int) -> dict[str, Any]:
        """What a client sends of a release."""
        folder = self.top / "offers" / str(serial)
        texts = {unit: unit_of(serial, unit) for unit in self.units}
        if self.own:
            texts["service.json"] = json.dumps({own.KEY: self.own.document()}) + "\n"
        return {"release": str(folder), "units": texts}

    def deploy(self, serial: int, *, keep: int = 0) -> str:
        """The whole way, undisturbed; how it ended."""
        sent = self.send(serial, keep=keep)
        if "failed" in sent:
            return str(sent["failed"])
        self.step("confirm", number=int(sent["said"]))
        ran = self.step("run")
        return str(ran.get("said") or ran)

    def system_calls(self, name: str, **arguments: Any) -> list[tuple[str, int, str]]:
        """The calls of a step that change the disk below the host: name, which one, what of."""
        answer = self.step(name, trace=(f"trace={_traced()}",), **arguments)
        assert "failed" not in answer, answer
        counts: dict[str, int] = {}
        found = []
        for line in (self.top / "trace").read_text().splitlines():
            match = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
            if not match:
                continue
            call, rest = match.groups()
            counts[call] = counts.get(call, 0) + 1
            reads = call == "openat" and not re.search(r"O_(CREAT|WRONLY|RDWR|TRUNC)", rest)
            if str(self.top) in rest and not reads:
                found.append((call, counts[call], rest))
        return found

    # -- what it was

    def save(self, name: str) -> None:
        self._copy(self.top, self.top / "saved" / name)

    def restore(self, name: str) -> None:
        self.generation += 1
        (self.top / "generation").write_text(str(self.generation))
        self._systemctl("stop", *self.units)
        for part in ("app", "home", "sd"):
            shutil.rmtree(self.top / part)
        self._copy(self.top / "saved" / name, self.top)
        self._systemctl("again")

    def _systemctl(self, *words: str) -> None:
        """Of an application with real processes: they can't be saved, only ended and begun."""
        if not self.own:
            return
        more = {"GENERATION": str(self.generation), "ENDED_AT": ""}
        argv = [str(self.top / "bin/systemctl"), "--user", *words]
        subprocess.run(argv, env={**_environment(self.top, own=True), **more}, check=True)

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        parts = [str(source / part) for part in ("app", "home", "sd")]
        subprocess.run(["cp", "-a", *parts, str(target)], check=True)

    # -- what it is

    @property
    def live(self) -> int | None:
        """Serial of the release `current` names."""
        link = self.app / "current"
        if not link.is_symlink():
            assert not os.path.lexists(link)
            return None
        name = str(link.readlink()).removeprefix("releases/")
        return next(serial for serial, one in self.releases.items() if one.id == name)

    def state(self, name: str, default: Any = None) -> Any:
        path = self.app / "state" / name
        return json.loads(path.read_text()) if path.exists() else default

    def check_whole(self) -> None:
        """`current` names a release that is whole, with its runtime."""
        if self.live is None:
            return
        release = self.releases[self.live]
        folder = self.app / "releases" / release.id
        for path, data in release.files.items():
            assert (folder / path).read_bytes() == data, path
        assert (folder / "manifest.json").read_bytes() == release.raw
        assert (folder / "runtime" / "bin" / "python").exists()

    def check_settled(self, *, serving: bool = True) -> None:
        """Nothing is under way, and release, unit, flags, history and journal say the same."""
        self.check_whole()
        assert self.state("pending.json") is None
        assert self.state("confirmed.json") is None
        history = self.state("committed.json", [])
        committed = [entry["release"] for entry in history]
        live = None if self.live is None else self.releases[self.live].id
        assert (committed[-1] if committed else None) == live
        assert len({entry["number"] for entry in history}) == len(history)
        bad = [entry["release"] for entry in self.state("bad.json", [])]
        assert not set(bad) & set(committed)
        records = Journal(self.app / "state" / "journal.jsonl").records()
        assert {r.fields["release"] for r in records if r.kind == "committed"} == set(committed)
        if self.live is None or not serving:
            return
        flags = (self.app / ".env").read_text()
        for name in self.units:
            self._check_serves(name, flags)
        assert flags.startswith("ML_ENABLE_STACKING=0\n")  # nobody would watch it
        if self.live in self.flags:
            assert flags == self.flags[self.live]

    def _check_serves(self, name: str, flags: str) -> None:
        """A unit's newest process was started with what is live, and from it."""
        assert self.live is not None
        live = self.releases[self.live].id
        running, _ = (self.top / f"sd/{name}.running").read_text().split()
        assert running == live
        unit = (self.top / "home/.config/systemd/user" / name).read_text()
        assert unit == unit_of(self.live, name) == (self.top / f"sd/{name}.unit").read_text()
        assert flags == (self.top / f"sd/{name}.env").read_text()
        if self.own:
            shown = (self.top / f"sd/{name}.show").read_text()
            pid = int(shown.partition("MainPID=")[2].split()[0])
            assert Path(f"/proc/{pid}/cwd").samefile(self.app / "releases" / live / "source")

    def check_tidy(self) -> None:
        """No temporary, half-built or half-removed thing is left in view or out of it."""
        left = [p for p in self.app.rglob("*") if p.name.startswith((".stage-", ".trash-", ".cur"))]
        assert not left
        assert not (self.app / "state" / "room-to-go-back").exists()


def unit_of(serial: int, unit: str = UNIT) -> str:
    return f"[Service]\nExecStart=/serve {serial}{'' if unit == UNIT else ' ' + unit}\n"


def _traced() -> str:
    return ",".join(f"?{name}" for name in CHANGES.split())


def _environment(top: Path, *, own: bool) -> dict[str, str]:
    home = {"HOME": str(top / "home"), "TOP": str(top)}
    return {"PATH": f"{top}/bin:/usr/bin:/bin", "OWN": "1" if own else "", **home}


def started(top: Path, *, own: bool = False) -> subprocess.Popen[str]:
    """A process that runs steps, in the environment of the pretended host."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.kills.steps"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**_environment(top, own=own), "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def over(steps: subprocess.Popen[str]) -> None:
    assert steps.stdin is not None
    steps.stdin.close()
    steps.wait(20)


@contextmanager
def traced_host(serials: dict[int, str], own: Service | None = None) -> Iterator[TracedHost]:
    """A host, and signed releases {serial: variant} to offer it ("bad" ones answer wrongly; of an
    application of one's own the second unit does not start)."""
    memory = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(prefix="macd-k-", dir=memory if memory.is_dir() else None))
    try:
        for part in ("home/.config/systemd/user", "bin", "sd", "app/state", "app/data/live"):
            (top / part).mkdir(parents=True)
        for name, text in (("systemctl", SYSTEMCTL), ("handed-over", HANDED_OVER)):
            (top / "bin" / name).write_text(text)
            (top / "bin" / name).chmod(0o755)
        (top / "generation").write_text("0")
        (top / "sd/count").write_text("0\n")
        for unit in own.units if own else [UNIT]:
            shown = "LoadState=loaded\nActiveState=inactive\nMainPID=0\n"
            (top / f"sd/{unit}.show").write_text(shown)
        key = make_key(top)
        public = key.with_suffix(".pub").read_text().strip()
        signers = f'{IDENTITY} namespaces="release-manifest@macd" {public}\n'
        (top / "app/state/allowed_signers").write_text(signers)
        (top / "app/state/accepts.json").write_text(json.dumps(ACCEPTS))
        made = TracedHost(top, started(top, own=bool(own)), key, own)
        for serial, variant in serials.items():
            made.releases[serial] = _offer(made, serial, variant)
        with health(top):
            made.step("build_runtime", lock=EMPTY_LOCK.decode())
            yield made
        over(made.steps)
        made._systemctl("stop", *made.units)
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _offer(made: TracedHost, serial: int, variant: str) -> Signed:
    lock, wheels = packages() if variant == "packages" else (EMPTY_LOCK, {})
    top, details = "", {}
    if made.own:
        top, named = "source/", {"name": made.own.name, "writes": list(made.own.writes)}
        details = {"own": {**named, "check": "/bin/true", "units": ["web"]}}
    files = {
        f"{top}app/serve.py": f"# {serial} {variant}\n".encode(),
        "lock.json": lock,
        f"{top}data/ml_models/model.txt": f"model {serial}\n".encode() * 9,
        f"{top}data/ml_models/shared.txt": b"the same in every release\n",
    }
    if made.own and variant == "bad":
        files[f"source/no-{WEB}"] = b"it does not start\n"
    release = signed_release(made.key, serial, files, variant=variant, details=details)
    folder = made.top / "offers" / str(serial)
    for path, data in {**files, **wheels}.items():
        (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / path).write_bytes(data)
    (folder / "manifest.json").write_bytes(release.raw)
    (folder / "manifest.json.sig").write_bytes(release.signature)
    (folder / "accepts").write_text(json.dumps(ACCEPTS))
    return release


__all__ = ["CHANGES", "SOCKET", "UNIT", "TracedHost", "traced_host"]
