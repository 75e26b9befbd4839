"""What a host should look like is rendered from templates that systemd accepts, and is stable."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_args

import pytest

from macd.deploy.desired import Desired, addresses, allowed_signers, render
from macd.deploy.state import HostState
from macd.errors import UsageError
from macd.host import own
from macd.host.alerts.webhook import FORMATS
from macd.host.systemd import namespaces
from macd.host.systemd.supervisor import is_template
from macd.inventory import Inventory, load, project_root, revoked
from macd.inventory.models import SIGNED_FORMATS, AlertSettings, ServiceSettings
from macd.ssh import archive

APP = "/opt/macd-analysis"


def inventory(tmp_path: Path, more: str = "") -> Inventory:
    (tmp_path / "tasks.py").touch()
    (tmp_path / "inventory").mkdir()
    shutil.copytree(project_root() / "templates", tmp_path / "templates")
    host = f"{{role: serve, env: prod, ssh: prod, app_dir: {APP}}}"
    (tmp_path / "inventory" / "one.yml").write_text(f"hosts:\n  prod: {host}\n{more}")
    return load("one", root=tmp_path)


def rendered(known: Inventory, *, app: str = APP, scope: str = "system") -> Desired:
    endpoint = known.service.health
    endpoint = f"unix:{app}/state/run/health.sock" if endpoint == "unix" else endpoint
    host_state = HostState(
        app=app,
        exists=True,
        python={"executable": "/usr/bin/python3", "version": "3.11"},
        endpoint=endpoint,
    )
    return render(known.host("prod").model_copy(update={"scope": scope}), known, host_state)


def lines(text: str | None) -> list[str]:
    return (text or "").splitlines()


def test_by_default_it_is_hardened_and_socket_activated(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path))
    unit = lines(wanted.units["macd-analysis.service"])
    for line in ("User=macd", "ProtectSystem=strict", f"ReadWritePaths={APP}/data/live"):
        assert line in unit
    assert "Requires=macd-analysis.socket" in unit
    socket = lines(wanted.units["macd-analysis.socket"])
    assert f"ListenStream={APP}/state/run/health.sock" in socket
    assert "SocketGroup=macd" in socket
    assert set(wanted.switched) == {
        "macd-analysis.service",
        "macd-analysis.socket",
        "service.json",
    }


def test_in_a_container_no_unit_asks_for_namespaces(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path, "service: {hardening: container}\n"))
    assert not any(namespaces.wants(text) for text in wanted.units.values() if text)
    unit = lines(wanted.units["macd-analysis.service"])
    for line in ("User=macd", "NoNewPrivileges=yes", "SystemCallFilter=@system-service"):
        assert line in unit
    assert "service.hardening: container" in wanted.unconfined


def test_without_a_socket_it_may_make_its_own(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path, "service: {socket: false}\n"))
    assert wanted.units["macd-analysis.socket"] is None
    unit = lines(wanted.units["macd-analysis.service"])
    assert f"ReadWritePaths={APP}/data/live {APP}/state/run" in unit
    assert not any("macd-analysis.socket" in line for line in unit)


def test_a_user_unit_asks_for_no_account(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path), app="/home/quant/macd", scope="user")
    assert wanted.account == ""
    unit = lines(wanted.units["macd-analysis.service"])
    assert not any(line.startswith(("User=", "ProtectSystem=")) for line in unit)
    assert "WantedBy=default.target" in unit


def test_below_a_home_the_home_stays_readable(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    there = lines(rendered(known, app="/home/quant/macd").units["macd-analysis.service"])
    elsewhere = lines(rendered(known).units["macd-analysis.service"])
    assert "ProtectHome=read-only" in there
    assert "ProtectHome=yes" in elsewhere


def test_settings_carry_what_the_service_needs(tmp_path: Path) -> None:
    known = inventory(tmp_path, "service: {feed: {kind: replay}, health: '127.0.0.1:8123'}\n")
    wanted = rendered(known)
    settings = json.loads(wanted.service_settings)
    assert settings["endpoint"] == "127.0.0.1:8123"
    assert settings["feed"]["kind"] == "replay"
    assert "ListenStream=127.0.0.1:8123" in lines(wanted.units["macd-analysis.socket"])


def test_flags_of_the_inventory_come_on_top_of_shadow(tmp_path: Path) -> None:
    known = inventory(tmp_path, "service: {env: {ML_STACKING_MIN_SAMPLES: '50'}}\n")
    assert rendered(known).flags == {"ML_ENABLE_STACKING": "0", "ML_STACKING_MIN_SAMPLES": "50"}


@pytest.mark.parametrize("key", ["ML_ENABLE_STACKING", "LD_PRELOAD", "PYTHONPATH", "PATH", "lower"])
def test_flags_that_are_not_for_an_inventory(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="problem"):
        inventory(tmp_path, f"service: {{env: {{{key}: '1'}}}}\n")


@pytest.mark.parametrize("scope", ["system", "user"])
@pytest.mark.parametrize("socket", ["true", "false"])
def test_systemd_understands_every_line(tmp_path: Path, scope: str, socket: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    known = inventory(tmp_path, f"service: {{socket: {socket}}}\n")
    wanted = rendered(known, scope=scope)
    paths = []
    for name, text in wanted.units.items():
        if text is not None:
            paths.append(tmp_path / name)
            # only the program named must exist for systemd-analyze
            paths[-1].write_text(text.replace(f"{APP}/current/runtime/bin/python", sys.executable))
    argv = ["systemd-analyze", "verify", *(["--user"] if scope == "user" else []), *map(str, paths)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "macd-analysis" in line]
    assert ours == []


def test_the_look_for_alarms_has_its_terms_and_the_guards_sandbox(tmp_path: Path) -> None:
    more = "alerts: {every_minutes: 2, disk_free: 0.1, expires_days: 3.5}\n"
    wanted = rendered(inventory(tmp_path, more))
    unit = lines(wanted.units["macd-analysis-alerts.service"])
    (runs,) = [line for line in unit if line.startswith("ExecStart=")]
    assert runs == (
        f"ExecStart=/usr/bin/python3 -I -S {APP}/bin/macd-host.pyz alerts --app {APP} "
        "unit=macd-analysis scope=system every_s=120 silent_bars=2 disk_free=0.1 expires_days=3.5 "
        "clock_s=30"
    )
    assert {f"ReadWritePaths={APP}", "MemoryMax=384M", "ProtectSystem=strict"} <= set(unit)
    timer = lines(wanted.units["macd-analysis-alerts.timer"])
    assert "OnUnitActiveSec=120" in timer and "WantedBy=timers.target" in timer
    assert not [name for name in wanted.switched if "alerts" in name]  # no release brings it


def test_without_looks_there_are_no_units(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path, "alerts: {every_minutes: 0}\n"))
    assert wanted.units["macd-analysis-alerts.service"] is None
    assert wanted.units["macd-analysis-alerts.timer"] is None


def test_templates_of_an_earlier_version_are_completed(tmp_path: Path) -> None:
    known = inventory(tmp_path)
    for path in (tmp_path / "templates").glob("alerts.*"):
        path.unlink()
    assert rendered(known).units["macd-analysis-alerts.timer"] is not None


@pytest.mark.parametrize(
    ("more", "document"),
    [
        ("", {}),
        ("guard: {notify_url: 'https://a/b'}\n", {"url": "https://a/b"}),
        ("alerts: {notify_url: 'https://a/b'}\n", {"url": "https://a/b"}),
        (
            "alerts: {notify_url: 'https://a/b', format: wecom, heartbeat_url: 'https://c/d'}\n",
            {"url": "https://a/b", "format": "wecom", "heartbeat_url": "https://c/d"},
        ),
        (
            "alerts: {notify_url: 'https://a/b', format: feishu, notify_secret: 'S+/='}\n",
            {"url": "https://a/b", "format": "feishu", "secret": "S+/="},
        ),
    ],
)
def test_where_the_host_sends(tmp_path: Path, more: str, document: dict[str, str]) -> None:
    assert json.loads(addresses(inventory(tmp_path, more))) == document


def test_two_names_of_one_webhook_are_refused(tmp_path: Path) -> None:
    both = "guard: {notify_url: 'https://a/b'}\nalerts: {notify_url: 'https://a/c'}\n"
    with pytest.raises(UsageError) as error:
        inventory(tmp_path, both)
    assert "its old name" in str(error.value) and "https://" not in str(error.value)


def test_a_secret_for_what_has_no_signatures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        inventory(tmp_path, "alerts: {notify_url: 'https://a/b', notify_secret: hunter2}\n")
    assert "feishu and dingtalk only" in str(error.value) and "hunter2" not in str(error.value)


def test_the_formats_of_the_inventory_are_those_of_the_host() -> None:
    assert set(get_args(AlertSettings.model_fields["format"].annotation)) == set(FORMATS)
    signed = {name for name, chosen in FORMATS.items() if chosen is not None and chosen.sign}
    assert set(SIGNED_FORMATS) == signed


def test_no_allowed_signers_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody may sign"):
        allowed_signers(inventory(tmp_path))


def test_the_program_for_hosts_is_the_same_bytes_and_runs(tmp_path: Path) -> None:
    built = archive.build()
    archive.build.cache_clear()
    assert built == archive.build()
    names = zipfile.ZipFile(io.BytesIO(built)).namelist()
    assert names == sorted(names)
    assert {"macd/heads.py", "macd/host/jobs/operations.py", "macd/host/flag/guard.py"} <= set(
        names
    )
    program = tmp_path / "macd-host.pyz"
    program.write_bytes(built)
    (tmp_path / "app" / "state").mkdir(parents=True)
    argv = [sys.executable, "-I", str(program), "recover", "--app", str(tmp_path / "app")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "macd-host: nothing\n")


def test_a_named_list_of_revoked_keys_that_is_not_here_is_no_empty_list(tmp_path: Path) -> None:
    known = inventory(tmp_path, "release: {revoked: ../keys/revoked.krl}\n")
    with pytest.raises(UsageError, match="the list of revoked keys can't be read"):
        revoked(known)
    assert rendered(known).revoked is None  # a look compares nothing
    (tmp_path / "keys").mkdir(exist_ok=True)
    (tmp_path / "keys" / "revoked.krl").write_bytes(b"krl")
    assert revoked(known) == tmp_path / "keys" / "revoked.krl"
    sha256 = hashlib.sha256(b"krl").hexdigest()
    assert json.loads(rendered(known).identity)["revoked"] == sha256


MANY = "train: {symbols: [BTCUSDT, ETHUSDT]}\n"
INSTANCES = ["macd-analysis@BTCUSDT.service", "macd-analysis@ETHUSDT.service"]


def test_instances_share_a_text_and_take_the_place_of_the_one_process(tmp_path: Path) -> None:
    wanted = rendered(inventory(tmp_path, MANY + "service: {instances: true}\n"))
    text = wanted.units[INSTANCES[0]]
    assert is_template(text) and wanted.units[INSTANCES[1]] == text == wanted.unit_text
    assert f"ReadWritePaths={APP}/data/live {APP}/state/run" in lines(text)
    assert any(line.endswith(f"--root {APP} --symbol %i") for line in lines(text))
    gone = {name for name, there in wanted.units.items() if there is None}
    assert gone == {"macd-analysis.service", "macd-analysis.socket"}
    assert set(wanted.switched) == {*INSTANCES, *gone, "service.json"}
    service = own.parse(wanted.service_settings)
    assert list(service.units) == INSTANCES
    assert service.instances[INSTANCES[1]].endpoint == f"unix:{APP}/state/run/health-ETHUSDT.sock"


def test_instances_that_are_not_wanted_any_more_go(tmp_path: Path) -> None:
    known = inventory(tmp_path, MANY + "service: {instances: true}\n")
    live = rendered(known).service_settings
    host_state = HostState(
        app=APP,
        exists=True,
        python={"executable": "/usr/bin/python3", "version": "3.11"},
        endpoint=f"unix:{APP}/state/run/health.sock",
        service_settings=live,
    )
    for service, left in (
        ({"instances": True, "socket": False, "symbols": ("BTCUSDT",)}, INSTANCES[1:]),
        ({"symbols": ("BTCUSDT", "ETHUSDT")}, INSTANCES),
    ):
        other = known.model_copy(update={"service": ServiceSettings.model_validate(service)})
        wanted = render(other.host("prod"), other, host_state)
        assert [name for name in INSTANCES if wanted.units[name] is None] == left


def test_what_instances_can_not_be_made_of_is_refused(tmp_path: Path) -> None:
    known = inventory(tmp_path, MANY + "service: {instances: true}\n")
    with pytest.raises(UsageError) as caught:
        rendered(known, app="/" + "long" * 25)
    assert "the socket of BTCUSDT on prod has too long a path" in caught.value.what
    template = tmp_path / "templates/service.unit.j2"
    template.write_text("# Written by macd from templates/service.unit.j2; by hand\n[Unit]\n")
    with pytest.raises(UsageError) as caught:
        rendered(known)
    assert "makes no unit that instances can share" in caught.value.what


@pytest.mark.parametrize(
    ("more", "rests"),
    [
        ("train: {market: fx}\nservice: {feed: {kind: directory}}\n", "fx"),
        ("train: {market: XHKG}\nservice: {feed: {kind: ccxt, exchange: kraken}}\n", "XHKG"),
        ("service: {feed: {kind: directory}}\n", ""),
    ],
)
def test_a_plan_knows_that_the_market_rests(tmp_path: Path, more: str, rests: str) -> None:
    market = rendered(inventory(tmp_path, more)).market
    assert market is not None
    assert market.rests == rests
