"""An instance for each symbol on a real systemd: one that dies holds up no other."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from macd.inventory import load
from tests.hosts.test_deploy_hosts import MORE, TASKS, Bench
from tests.support import small_releases
from tests.support.hosts.fleet import Hosts
from tests.support.several_symbols import details_of

pytestmark = pytest.mark.hosts

NAME, APP = "trial-each", "/opt/trial-each"
SYMBOLS = ("BTCUSDT", "ETHUSDT")
BTC, ETH = (f"{NAME}@{symbol}.service" for symbol in SYMBOLS)
ETH_GIVES_UP = "import sys\nif 'ETHUSDT' in sys.argv:\n    sys.exit('no bars of ETHUSDT')\n"


@pytest.fixture(scope="module")
def bench(hosts: Hosts) -> Bench:
    (hosts.root / "tasks.py").write_text(TASKS)
    base = yaml.safe_load((hosts.root / "inventory" / f"{hosts.inventory}.yml").read_text())
    document = {**base, **yaml.safe_load(MORE)}
    document["hosts"]["prod"] |= {"app_dir": APP, "unit": NAME}
    document["train"] = {**document.get("train", {}), "symbols": list(SYMBOLS)}
    document["service"] |= {"instances": True, "memory_max": "300M"}
    (hosts.root / "inventory" / "deploying.yml").write_text(yaml.safe_dump(document))
    inventory = load("deploying", root=hosts.root)
    small_releases.make_keys(inventory)
    return Bench(hosts, inventory)


def serve(bench: Bench, **service: Any) -> None:
    """Change the inventory's service."""
    path = bench.hosts.root / "inventory" / "deploying.yml"
    document = yaml.safe_load(path.read_text())
    document["service"] = {k: v for k, v in {**document["service"], **service}.items() if v}
    path.write_text(yaml.safe_dump(document))


def release(bench: Bench, serial: int, first: str = "") -> str:
    return small_releases.make(bench.inventory, serial, first=first, details=details_of(SYMBOLS))


def shown(bench: Bench, unit: str, *names: str) -> list[str]:
    said = bench.on_prod("systemctl", "show", unit, *(f"-p{name}" for name in names))
    values = dict(line.partition("=")[::2] for line in said.splitlines())
    return [values[name] for name in names]


def there(bench: Bench) -> list[str]:
    """Unit files and links of what serves."""
    found = bench.on_prod("sh", "-c", "cd /etc/systemd/system; find . -name 'trial-each*' | sort")
    names = [name.removeprefix("./") for name in found.split()]
    return [name for name in names if "-recover" not in name and "-alerts" not in name]


TEMPLATE = f"{NAME}@.service"
LINKS = [f"multi-user.target.wants/{unit}" for unit in (BTC, ETH)]


def test_one_that_is_killed_holds_up_no_other(bench: Bench) -> None:
    first = release(bench, 1)
    bench.invoke("provision", "--yes")
    bench.invoke("deploy", "--yes", "--release", first)
    assert there(bench) == [*LINKS, TEMPLATE]
    groups = {shown(bench, unit, "ControlGroup")[0] for unit in (BTC, ETH)}
    assert len(groups) == 2
    assert shown(bench, ETH, "MemoryMax", "User") == [str(300 << 20), "macd"]

    before = {unit: shown(bench, unit, "MainPID", "InvocationID") for unit in (BTC, ETH)}
    bench.on_prod("systemctl", "stop", ETH)
    said = bench.invoke("status", code=1).stdout
    assert f"✗ {ETH} is inactive" in said and "✓ BTCUSDT" in said and "✗ ETHUSDT" in said
    bench.on_prod("systemctl", "start", ETH)
    assert "✓ ETHUSDT" in bench.invoke("status").stdout
    bench.on_prod("systemctl", "kill", "-s", "KILL", ETH)
    wait = f"until systemctl show {ETH} -p NRestarts | grep -qx NRestarts=1; do sleep 0.2; done"
    bench.on_prod("sh", "-c", f"{wait}; until systemctl is-active -q {ETH}; do sleep 0.2; done")
    assert shown(bench, BTC, "MainPID", "InvocationID") == before[BTC]
    assert shown(bench, ETH, "MainPID", "InvocationID") != before[ETH]
    assert "drift     none" in bench.invoke("status").stdout


def test_one_that_fails_its_deploy_takes_all_back(bench: Bench) -> None:
    done = bench.invoke("deploy", "--yes", "--release", release(bench, 2, ETH_GIVES_UP), code=4)
    assert f"{ETH}: it does not start" in done.stdout + done.stderr
    assert bench.invoke("status").stdout.count("✓ ") >= 3
    assert there(bench) == [*LINKS, TEMPLATE]


def test_a_symbol_goes_and_comes_back_with_its_instance(bench: Bench) -> None:
    serve(bench, symbols=["BTCUSDT"])
    assert "0 changes" in bench.invoke("provision", "--yes").stdout  # it stops nothing that serves
    bench.invoke("deploy", "--yes", "--release", release(bench, 3))
    assert there(bench) == [LINKS[0], TEMPLATE]
    assert shown(bench, ETH, "ActiveState", "UnitFileState") == ["inactive", "disabled"]
    bench.invoke("rollback", "--yes")
    assert there(bench) == [*LINKS, TEMPLATE]
    assert shown(bench, ETH, "ActiveState") == ["active"]


def test_to_one_process_and_back(bench: Bench) -> None:
    serve(bench, symbols=None, instances=None)
    bench.invoke("deploy", "--yes", "--release", release(bench, 4))
    assert {name.rpartition("/")[2] for name in there(bench)} == {
        f"{NAME}.service",
        f"{NAME}.socket",
    }
    assert shown(bench, BTC, "ActiveState") == ["inactive"]
    done = bench.invoke("rollback", "--yes")
    assert there(bench) == [*LINKS, TEMPLATE], done.stdout
    states = [shown(bench, unit, "ActiveState")[0] for unit in (BTC, ETH, f"{NAME}.service")]
    assert states == ["active", "active", "inactive"]
    # Going forward again, a release that fails takes back what it replaced.
    bad = release(bench, 5, "import sys\nif '--check' not in sys.argv:\n    sys.exit('no')\n")
    bench.invoke("deploy", "--yes", "--release", bad, code=4)
    assert there(bench) == [*LINKS, TEMPLATE]
    assert "✓ ETHUSDT" in bench.invoke("status").stdout

    bench.invoke("provision", "--undo", "--yes")
    assert there(bench) == []
    assert shown(bench, ETH, "ActiveState") == ["inactive"]
