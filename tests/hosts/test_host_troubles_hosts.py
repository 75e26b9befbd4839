"""What a host lacks for a release is told before a byte is sent, and the remedy named works."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from macd.sizes import size
from tests.hosts.test_deploy_hosts import APP, UNIT, Bench, bench
from tests.support import small_releases

__all__ = ["bench"]
pytestmark = pytest.mark.hosts

# 14 MB that a wheel stores as they are; Python compiles them to as much again.
LARGE = f"x = '{'a' * 14_000_000}'\n"
LIBGOMP = "/usr/lib/x86_64-linux-gnu/libgomp.so.1"


@pytest.fixture
def prod(bench: Bench) -> Iterator[Bench]:
    """Nothing provisioned before, nothing mounted afterwards; other files deploy their newest."""
    bench.on_prod("mkdir", "-p", APP)
    store = bench.inventory.root / "releases"
    before = set(store.iterdir()) if store.exists() else set()
    yield bench
    for made in set(store.glob("2*-*")) - before:
        shutil.rmtree(made)
    bench.on_prod("sh", "-c", f"systemctl disable --now {UNIT} macd-analysis.socket || true")
    bench.on_prod("sh", "-c", f"umount --lazy {APP} || true; rm -rf {APP}")


def provision(bench: Bench) -> None:
    """Nothing writes there by itself afterwards: what is free is counted."""
    bench.invoke("provision", "--yes")
    bench.on_prod("systemctl", "stop", "macd-analysis-alerts.timer")


def mount(bench: Bench, options: str) -> None:
    bench.on_prod("mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", APP)


def refused(bench: Bench, what: str, remedy: str) -> None:
    """plan and deploy tell it; nothing was sent."""
    shown = bench.invoke("plan").stdout
    assert "would be refused: " in shown and what in shown, shown
    said = bench.invoke("deploy", "--yes", code=6).stderr
    assert what in said, said
    assert f"do: {remedy}" in said
    assert "Python" not in said and "Traceback" not in said
    assert bench.on_prod("find", f"{APP}/blobs", "-size", "+0", "-type", "f") == ""
    assert bench.on_prod("ls", f"{APP}/runtimes", f"{APP}/releases").split() == [
        f"{APP}/releases:",
        f"{APP}/runtimes:",
    ]


def committed(bench: Bench, release: str) -> None:
    """Once the remedy was taken."""
    bench.invoke("deploy", "--yes")
    assert bench.live == release


def test_a_disk_that_would_hold_the_wheels_but_not_the_runtime(prod: Bench) -> None:
    mount(prod, "size=60m")
    provision(prod)
    release = small_releases.make(prod.inventory, 501, package="1.0", module=LARGE)
    free = int(prod.on_prod("stat", "-f", "-c", "%a", APP)) * 4096
    plan = prod.json("plan")["hosts"][0]
    assert plan["send_bytes"] + (16 << 20) < free
    (problem,) = plan["problems"]
    assert f"{size(free)} are free at {APP}" in problem["what"]
    assert "for the unpacked runtime" in problem["what"]
    refused(prod, problem["what"], "make room there: ")
    prod.on_prod("mount", "-o", "remount,size=300m", APP)
    committed(prod, release)
    # What was said to be needed was true: not less than it took, not twice as much.
    took = int(prod.on_prod("du", "-s", "-B1", f"{APP}/runtimes").split()[0])
    said = float(problem["what"].split(" MB for the unpacked runtime")[0].rpartition(" ")[2])
    assert took <= said * 1e6 < 2 * took


def test_a_disk_without_inodes(prod: Bench) -> None:
    mount(prod, "size=300m,nr_inodes=130")
    provision(prod)
    release = small_releases.make(prod.inventory, 502, package="1.0")
    (problem,) = prod.json("plan")["hosts"][0]["problems"]
    free = prod.on_prod("stat", "-f", "-c", "%d", APP)
    assert problem["what"].startswith(f"{free} inodes are free at {APP}, ")
    refused(prod, f"inodes are free at {APP}, ", "remove files there (df -i)")
    prod.on_prod("mount", "-o", "remount,nr_inodes=5000", APP)
    committed(prod, release)


def test_a_file_system_on_which_nothing_may_run(prod: Bench) -> None:
    mount(prod, "size=300m,noexec")
    prod.invoke("provision", "--yes")
    release = small_releases.make(prod.inventory, 503, package="1.0")
    remedy = f"mount -o remount,exec {APP}"
    refused(prod, f"{APP} is mounted noexec (at {APP})", f"{remedy} on the host")
    prod.on_prod(*remedy.split())
    committed(prod, release)


def test_a_library_that_lightgbm_needs(prod: Bench) -> None:
    prod.invoke("provision", "--yes")
    release = small_releases.make(prod.inventory, 504, package="1.0", name="lightgbm")
    prod.on_prod("mv", LIBGOMP, f"{LIBGOMP}.away")
    try:
        assert "note: the host has no libgomp" in prod.invoke("provision", "--yes").stdout
        what = "the host has no libgomp (LightGBM)"
        refused(prod, what, "apt-get install libgomp1 on the host")
    finally:
        prod.on_prod("mv", f"{LIBGOMP}.away", LIBGOMP)
    committed(prod, release)
