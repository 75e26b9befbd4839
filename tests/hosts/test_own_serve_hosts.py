"""A team's own application on a real systemd: confined, proved, and gone back with all units."""

from __future__ import annotations

import pytest
import yaml

from macd.inventory import load
from tests.hosts.test_deploy_hosts import MORE, TASKS, Bench
from tests.support import small_releases, their_app
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts

APP = "/opt/trial-own"
UNIT, WEB = "trial-own.service", "trial-own-web.service"
NOTIFIES = """
import os, socket, sys, time
print("one moment", flush=True)
said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
target = os.environ["NOTIFY_SOCKET"]
said.connect("\\0" + target[1:] if target.startswith("@") else target)
said.send(b"READY=1")
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def bench(hosts: Hosts) -> Bench:
    (hosts.root / "tasks.py").write_text(TASKS)
    base = yaml.safe_load((hosts.root / "inventory" / f"{hosts.inventory}.yml").read_text())
    document = {**base, **yaml.safe_load(MORE)}
    document["hosts"]["prod"] |= {"app_dir": APP, "unit": "trial-own"}
    more = {
        "web": {"command": "python3 web.py", "ready": {"log": "listening on"}},
        "third": {"command": "python3 third.py", "ready": "notify"},
    }
    document["app"] = their_app.app_section(their_app.Ports(18080, 18081), serve__more=more)
    document["service"] = {"socket": False}
    document["soak"]["ready_s"] = 20
    (hosts.root / "inventory" / "deploying.yml").write_text(yaml.safe_dump(document))
    inventory = load("deploying", root=hosts.root)
    small_releases.make_keys(inventory)
    return Bench(hosts, inventory)


def release(
    bench: Bench, serial: int, fault: str = "", more: dict[str, bytes] | None = None
) -> str:
    files = {"source/third.py": NOTIFIES.encode(), **(more or {})}
    return their_app.release(bench.inventory, serial, fault, more=files)


def live(bench: Bench) -> str:
    return bench.on_prod("readlink", f"{APP}/current").removeprefix("releases/")


def test_it_is_confined_and_proved(bench: Bench) -> None:
    first = release(bench, 1)
    bench.invoke("provision", "--yes")
    bench.invoke("deploy", "--yes", "--release", first)
    assert live(bench) == first
    said = bench.invoke("status").stdout
    assert said.count("✓ from this release, and ready") == 3, said
    assert "drift     none" in said
    show = ("systemctl", "show", "-p", "User", "--value", UNIT)
    assert bench.on_prod(*show) == "macd"
    assert bench.on_prod("stat", "-c", "%U", f"{APP}/logs/live") == "macd"
    source = f"{APP}/releases/{first}/source"
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    namespaced = ("nsenter", "-t", pid, "-m", "sh", "-c")
    assert "Read-only" in bench.on_prod(*namespaced, f"touch {source}/x 2>&1; true")
    bench.on_prod(*namespaced, f"touch {source}/logs/x && rm {source}/logs/x")


@pytest.mark.parametrize(
    ("serial", "fault", "why"),
    [
        (2, "fork", "it did not stay up"),
        (3, "web_exit", f"{WEB}: it does not start"),
        (4, "unhealthy", "its own check failed here"),
    ],
)
def test_a_bad_release_goes_back(bench: Bench, serial: int, fault: str, why: str) -> None:
    before = live(bench)
    done = bench.invoke("deploy", "--yes", "--release", release(bench, serial, fault), code=4)
    assert why in done.stdout + done.stderr
    assert live(bench) == before
    assert bench.invoke("status").stdout.count("✓ from this release, and ready") == 3


def test_a_check_that_writes_is_told_why_it_may_not(bench: Bench) -> None:
    check = b"open('logs/checked', 'w').write('x')\n"
    bad = release(bench, 5, more={"source/check_ml_health.py": check})
    done = bench.invoke("deploy", "--yes", "--release", bad, code=4)
    assert "it may write nothing but /tmp: what it would write is live" in done.stdout + done.stderr


def test_back_to_the_one_before(bench: Bench) -> None:
    first = live(bench)
    bench.invoke("deploy", "--yes", "--release", release(bench, 6))
    bench.invoke("rollback", "--yes")
    assert live(bench) == first
    assert bench.invoke("status").stdout.count("✓ from this release, and ready") == 3
