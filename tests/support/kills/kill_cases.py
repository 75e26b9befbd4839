"""What must hold after a kill, whichever end died and whatever the host is: asked over SSH."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from macd.deploy import state
from macd.host.store import manifest
from macd.inventory import Inventory
from macd.ssh.session import Session, open_session

CLIENT = Path(__file__).with_name("client_with_fuse.py")
ASK = (
    "import socket,sys;s=socket.socket(1);s.settimeout(20);s.connect(sys.argv[1]);"
    "s.send(b'GET /healthz HTTP/1.0\\r\\n\\r\\n');d=b''\n"
    "while (p:=s.recv(65536)): d+=p\n"
    "print(d.partition(b'\\r\\n\\r\\n')[2].decode())"
)


class Bench(Protocol):
    """A project with one provisioned host called prod."""

    @property
    def root(self) -> Path: ...
    @property
    def inventory(self) -> Inventory: ...
    @property
    def live(self) -> str | None: ...


def typed(
    bench: Bench, program: Path, env: dict[str, str], words: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """invoke as `program` runs it, in the project of `bench`."""
    told = {"MACD_ROOT": str(bench.root), "MACD_INVENTORY": bench.inventory.name, **env}
    return subprocess.run(
        [sys.executable, str(program), *words],
        cwd=bench.root,
        env={**os.environ, **told},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@contextlib.contextmanager
def short_wait(bench: Bench, at: int | str) -> Iterator[None]:
    """Where `at` is the beginning nobody will confirm, so the host need not wait long for it."""
    path = bench.root / "inventory" / f"{bench.inventory.name}.yml"
    text = path.read_text()
    if at == "activate":
        path.write_text(re.sub(r"confirm_s: \d+", "confirm_s: 2", text))
    try:
        yield
    finally:
        path.write_text(text)


def client_killed_at(bench: Bench, at: int | str, *words: str) -> list[str] | None:
    """Type it and have it killed after that call; the calls, or None when it ended before.

    at: the number of the call, or the name of the first of its kind.
    """
    done = typed(bench, CLIENT, {"KILLED_AT": str(at)}, words)
    if done.returncode == -9:
        calls = [line for line in done.stderr.splitlines() if line[:1].isdigit()]
        assert str(at) in calls[-1].split(), done.stderr
        return calls
    assert done.returncode == 0, done.stdout + done.stderr
    return None


def settled(bench: Bench) -> tuple[str, str]:
    """Wait until the host has ended its newest activation by itself; its release, how it ended.

    Only looks: a repair asked for from here would prove nothing.
    """
    host = bench.inventory.host("prod")
    with open_session(host, bench.inventory) as session:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            told = session.call("follow", app=host.app_dir)
            if not told["over"]:  # until there is more: to ask at once again would fill a core
                at = {"number": told["number"], "seen": len(told["events"])}
                session.call("follow", app=host.app_dir, **at, wait=1.0)
                continue
            found = state.observed(state.ask(session, host, bench.inventory))
            if found.pending is None and found.lock is None:
                assert session.call("lock", app=host.app_dir, who="test", doing="test")["held"]
                check_serving(bench, session, found)
                if not told["number"]:
                    return "", ""
                return str(told["events"][0]["release"]), str(told["events"][-1]["state"])
            time.sleep(0.3)
    raise AssertionError(f"not settled: {told}")


def check_serving(bench: Bench, session: Session, found: state.HostState) -> None:
    """The release that `current` names is whole, and it is what answers."""
    app, live = bench.inventory.host("prod").app_dir, bench.live
    if live is None:
        assert not found.process["pid"]
        return
    folder = f"{app}/releases/{live}"
    files = manifest.parse(session.read(f"{folder}/manifest.json")).files
    paths = [file.path for file in files]
    told = session.run(["sha256sum", "--", *paths], cwd=folder, limit=1 << 22)
    hashes = [line.split()[0] for line in told.stdout.decode().splitlines()]
    assert hashes == [file.sha256 for file in files], told
    assert session.run(["test", "-x", "runtime/bin/python"], cwd=folder).exit == 0
    # One of a team's own has no endpoint of ours: the host asks the kernel, and its own probe.
    answer = found.health if bench.inventory.app else answer_of(session, found.endpoint)
    assert answer is not None
    assert (answer["release"], answer["status"]) == (live, "ok")


def answer_of(session: Session, endpoint: str) -> dict[str, Any] | None:
    """What the service answers on the host itself; None if there is none."""
    told = session.run(["python3", "-c", ASK, endpoint.removeprefix("unix:")])
    if told.exit:
        return None
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


@dataclass
class KillCases:
    """What every trial showed."""

    calls: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def check(self, bench: Bench, call: str, old: str | None, new: str) -> None:
        """After one kill: old or new, whole, serving, the lock free, the matter ended."""
        self.calls.append(call)
        release, how = settled(bench)
        assert how in ("committed", "reverted") or not release, call
        assert bench.live == (new if (release, how) == (new, "committed") else old), call
        self.ends.append("new" if bench.live == new else "old")

    def tell(self, name: str, least: int) -> None:
        print(f"{name}: {len(self.ends)}/{len(self.calls)} kills, the host whole each time:")
        for call, end in zip(self.calls, self.ends, strict=True):
            print(f"  {call:40} {end} serves")
        assert len(self.ends) >= least
