"""Containers that let systemd make no namespaces: said before anything is sent, and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.host.systemd.namespaces import REMEDY
from tests.hosts.test_confined_hosts import told_by
from tests.hosts.test_deploy_hosts import APP, MORE, UNIT, Bench, bench
from tests.hosts.test_flag_hosts import (
    GUARD,
    NEWEST,
    flags,
    flip,
    gate,
    session_of,
    settled,
    trial,
    until_failed,
    written,
)
from tests.hosts.test_host_troubles_hosts import refused
from tests.support import small_releases
from tests.support.hosts import rootfs
from tests.support.hosts.fleet import Hosts, booted
from tests.support.hosts.host_app import HostApp

__all__ = ["bench", "gate", "trial"]
pytestmark = pytest.mark.hosts

# What a container's manager forbids, and what its systemd then makes of a unit that wants it.
FORBIDDEN = {"chroot": "226/NAMESPACE", "unshare": "217/USER"}
ITS_OWN_SSHD = "systemctl stop ssh; mkdir -p /run/sshd; /usr/sbin/sshd -o UsePAM=no"
DIRECTLY = """
from macd.host.failure import HostError
try:
    walls.run(["/bin/true"], timeout=20)
except HostError as error:
    print(json.dumps([error.kind, error.why, error.hint]))
"""


@pytest.fixture(scope="module", params=FORBIDDEN)
def hosts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    """prod alone, which may not do what is forbidden."""
    root = tmp_path_factory.mktemp("container") / "project"
    forbidden = f"--system-call-filter=~{request.param}"
    with booted(rootfs.cache_directory(), root, names=["prod"], options=[forbidden]) as made:
        # sshd needs chroot; one that is started from outside has it, what PID 1 starts has not.
        made.prod.exec("sh", "-c", ITS_OWN_SSHD)
        yield made


def test_it_is_refused_and_the_remedy_works(bench: Bench, request: pytest.FixtureRequest) -> None:
    status = FORBIDDEN[request.node.callspec.params["hosts"]]
    said = f"systemd can start no such process here (status {status})"
    shown = bench.invoke("provision", "--yes").stdout
    assert f"✗ the service can't be protected as its unit says: {said}" in shown
    assert f"do: {REMEDY}" in shown
    release = small_releases.make(bench.inventory, 601, package="1.0")
    refused(bench, said, REMEDY)
    assert said in bench.json("status", code=1)["hosts"][0]["no_namespaces"]
    # What is started there all the same says it too: a diagnosis, a rollback.
    kind, why, hint = told_by(bench, DIRECTLY)
    assert (kind, hint) == ("refused", REMEDY)
    assert status.partition("/")[2] in why
    assert bench.on_prod("systemctl", "list-units", "--failed", "--quiet", "macd-names*") == ""

    text = (bench.inventory.root / "inventory" / "deploying.yml").read_text()
    contained = MORE.replace("service: {", "service: {hardening: container, ")
    (bench.inventory.root / "inventory" / "deploying.yml").write_text(text.replace(MORE, contained))
    shown = bench.invoke("provision", "--yes").stdout
    assert "note: service.hardening: container: its units have no namespaces" in shown
    assert "can't be protected" not in shown
    assert "service.hardening: container: " in bench.invoke("plan").stdout
    assert bench.json("deploy", "--yes")["outcomes"][0]["result"] == "committed"
    assert bench.live == release
    assert "sandbox   service.hardening: container: " in bench.invoke("status").stdout
    # What needs no namespaces is as everywhere.
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    status = bench.on_prod("cat", f"/proc/{pid}/status").splitlines()
    of_it = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert of_it["Uid"].split()[0] == bench.on_prod("id", "-u", "macd") != "0"
    assert (of_it["NoNewPrivs"], of_it["CapBnd"], of_it["Seccomp"]) == ("1", "0" * 16, "2")
    # The look for alarms runs too, and what the runtime's packages installed is root's again.
    bench.on_prod("systemctl", "start", "macd-analysis-alerts.service")
    assert "alerts    none; the last look" in bench.invoke("status").stdout
    assert bench.on_prod("find", f"{APP}/runtimes", "!", "-user", "root") == ""


def test_the_guard_watches_there_and_takes_stacking_back(trial: HostApp, gate: Path) -> None:
    assert flip(trial, gate, "1", every_s=3000.0, hardening="container")["outcome"] == "set"
    settled(trial)
    assert flags(trial) == ("1", "1")
    with session_of(trial) as session:
        data = written(trial, 90, ml_error="tft: broken")
        session.write(NEWEST, data)
    trial.on_prod("systemctl", "start", GUARD)
    until_failed(trial)
    assert flags(trial) == ("0", "0")
