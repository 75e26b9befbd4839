"""A team's own service, put on prod by hand under a real systemd: adopted, replaced, given back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass

import pytest
import yaml

from macd.inventory import Inventory, load
from tests.support import commands, small_releases, their_app
from tests.support.hosts.fleet import Hosts

pytestmark = pytest.mark.hosts

APP = "/opt/macd-analysis"
UNITS = ("macd-analysis.service", "macd-analysis-web.service")
PATIENCE_S = 240
# What an afternoon of scp left: a login of its own, a venv, a drop-in, root's file in the logs.
PUT = f"""
set -e
useradd --system --no-create-home --shell /usr/sbin/nologin trader
mkdir -p {APP}/logs/live {APP}/data/live {APP}/venv/bin
ln -s /usr/bin/python3 {APP}/venv/bin/python3
printf 'HEALTH_PORT=8080\\nWEB_PORT=8081\\nEXCHANGE_API_KEY=s3cret\\nBAR_SECONDS=1\\n' > {APP}/.env
chown -R trader:trader {APP}
chmod 640 {APP}/.env
chmod 750 {APP}
echo old > {APP}/logs/root.log
mkdir /var/shared
echo theirs > /var/shared/file
ln -s /var/shared {APP}/shared
cp {APP}/ops/*.service /etc/systemd/system/
chmod 600 /etc/systemd/system/macd-analysis.service
mkdir /etc/systemd/system/macd-analysis.service.d
cp {APP}/ops/override.conf /etc/systemd/system/macd-analysis.service.d/
systemctl daemon-reload
systemctl enable --now {" ".join(UNITS)}
"""
# Names, modes and owners of what is theirs, and of files also content and time.
THEIRS = f"""
cd /etc/systemd/system
for path in macd-analysis* macd-analysis*.d/* *.wants/macd-* {APP}/.env {APP}/data \\
        {APP}/data/live {APP}/logs {APP}/logs/root.log {APP}/current {APP}/service.json; do
    stat -c '%n %N %A %U %G' "$path" 2>/dev/null || echo "$path: none"
    [ ! -f "$path" ] || sha256sum "$path"
    [ ! -f "$path" ] || stat -c '%Y' "$path"
done
"""


@dataclass(frozen=True)
class Bench:
    hosts: Hosts
    inventory: Inventory

    def invoke(self, *words: str, code: int = 0) -> str:
        environment = {**os.environ, "MACD_ROOT": str(self.hosts.root)}
        words = (*words, "--inventory", "theirs")
        done = commands.run(self.hosts.root, *words, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def on_prod(self, *argv: str) -> str:
        return self.hosts.prod.exec(*argv).strip()

    def theirs(self) -> str:
        return self.on_prod("sh", "-c", THEIRS)

    def lives(self) -> list[str]:
        return [self.shown(unit, "InvocationID") for unit in UNITS]

    def shown(self, unit: str, name: str) -> str:
        return self.on_prod("systemctl", "show", "-p", name, "--value", unit)

    def running(self, unit: str) -> tuple[str, str]:
        """Whose process it is, and where it works."""
        pid = self.shown(unit, "MainPID")
        of_it = f"ps -o user= -p {pid}; readlink /proc/{pid}/cwd"
        user, _, cwd = self.on_prod("sh", "-c", f"{{ {of_it}; }} || true").partition("\n")
        return user, cwd


@pytest.fixture(scope="module")
def bench(hosts: Hosts) -> Bench:
    (hosts.root / "tasks.py").write_text(their_app.TASKS)
    their_app.repository(hosts.root / "their")
    base = yaml.safe_load((hosts.root / "inventory" / f"{hosts.inventory}.yml").read_text())
    ports = their_app.Ports(8080, 8081)
    document = {
        **base,
        "app": their_app.app_section(
            ports, serve__more=their_app.WEB, serve__writes=[*their_app.WRITES, "shared"]
        ),
        "train": {"symbol": "ETHUSDT", "tf": "1h", "require_gpu": False, "min_free_gb": 1},
        "soak": {"ready_s": 30, "soak_s": 1, "confirm_s": 120},
        "service": {"socket": False, "watchdog_s": 0},
        "release": {
            "sign_key": "../keys/release",
            "allowed_signers": "../keys/allowed_signers",
            "identity": "release@test",
        },
    }
    path = hosts.root / "inventory/theirs.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    inventory = load("theirs", root=hosts.root)
    small_releases.make_keys(inventory)
    made = Bench(hosts, inventory)
    copied = hosts.root / "copied"
    shutil.copytree(their_app.SOURCE, copied)
    shutil.copytree(their_app.MODELS, copied / "data", dirs_exist_ok=True)
    scp = ["scp", "-q", "-r", "-F", str(hosts.ssh_config), str(copied), f"prod:{APP}"]
    subprocess.run(scp, check=True)
    made.on_prod("sh", "-c", PUT)
    return made


def test_provision_lets_it_run_and_undo_gives_everything_back(bench: Bench) -> None:
    before, lives = bench.theirs(), bench.lives()
    top = bench.on_prod("stat", "-c", "%A %U %G", APP)
    told = bench.invoke("provision", "--dry-run")
    assert "macd-analysis.service runs as trader today; macd runs it as macd" in told
    assert "macd-analysis-web.service: ExecStart changes from" in told
    assert "override.conf would win over macd's unit (Environment, Nice)" in told
    assert "become macd's with the first deploy" in told
    assert f"{APP}/shared is a link to /var/shared, which is root's" in told
    assert "s3cret" not in told
    assert "nobody agreed to adopt" in bench.invoke("provision", "--yes", code=6)
    assert bench.theirs() == before
    bench.invoke("provision", "--yes", "--adopt")
    assert "  0 changes" in bench.invoke("provision", "--yes")
    assert bench.lives() == lives
    assert bench.on_prod("stat", "-c", "%a %U %G", f"{APP}/state/adopted") == "700 root root"
    # Theirs goes on writing at the top, and can't take away what root runs.
    assert bench.on_prod("stat", "-c", "%a %U %G", APP) == "1775 root trader"
    told = bench.invoke("provision", "--undo", "--yes")
    assert "macd-analysis-web.service as put there by hand goes on as pid" in told
    assert bench.theirs() == before
    assert bench.on_prod("stat", "-c", "%A %U %G", APP) == top
    assert bench.lives() == lives
    units = bench.on_prod("sh", "-c", "ls /etc/systemd/system | grep -v target | grep macd")
    assert units.split() == ["macd-analysis-web.service", *UNITS[:1], f"{UNITS[0]}.d"]


def test_a_first_deploy_that_fails_starts_both_again(bench: Bench) -> None:
    before, lives = bench.theirs(), bench.lives()
    bench.invoke("provision", "--yes", "--adopt")
    provisioned = bench.theirs()
    their_app.release(bench.inventory, 1, "web_exit")
    told = bench.invoke("deploy", "--yes", code=4)
    assert "macd-analysis.service as it was put there by hand runs again as pid" in told
    assert not set(lives) & set(bench.lives())
    assert [bench.running(unit) for unit in UNITS] == [("trader", APP)] * 2
    assert bench.theirs() == provisioned
    assert bench.on_prod("stat", "-c", "%U", f"{APP}/logs/root.log") == "root"
    assert before != provisioned  # .env and service.json are provision's


def test_a_power_cut_in_the_first_deploy_boots_what_was_there(bench: Bench) -> None:
    provisioned = bench.theirs()
    their_app.release(bench.inventory, 2, "never_ready")
    machine = bench.hosts.prod.machine
    words = ("deploy", "--yes", "--inventory", "theirs")
    environment = {**os.environ, "MACD_ROOT": str(bench.hosts.root)}
    with commands.start(bench.hosts.root, *words, env=environment) as typed:
        deadline = time.monotonic() + PATIENCE_S
        pending = f"{APP}/state/pending.json"
        while '"restarting"' not in bench.on_prod("sh", "-c", f"cat {pending} 2>/dev/null || true"):
            assert time.monotonic() < deadline and typed.poll() is None
            time.sleep(0.1)
        assert bench.theirs() != provisioned
        machine.power_cut()
        machine.start()
        machine.wait()
        typed.kill()
    deadline = time.monotonic() + PATIENCE_S  # a process that begins is still root's
    while [bench.running(unit) for unit in UNITS] != [("trader", APP)] * 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert bench.theirs() == provisioned
    assert "macd-analysis.service as put there by hand goes on" in bench.invoke("status", code=1)


def test_a_deploy_takes_over_and_undo_starts_the_old_place(bench: Bench) -> None:
    release = their_app.release(bench.inventory, 3)
    bench.invoke("deploy", "--yes")
    source = f"{APP}/releases/{release}/source"
    assert [bench.running(unit) for unit in UNITS] == [("macd", source)] * 2
    assert bench.on_prod("stat", "-c", "%a %U", APP) == "755 root"
    assert bench.on_prod("stat", "-c", "%U", f"{APP}/logs/root.log") == "macd"
    assert bench.on_prod("stat", "-c", "%U", "/var/shared/file") == "root"
    assert bench.on_prod("stat", "-c", "%a %U", f"{APP}/.env") == "640 root"
    assert "provision --undo gives back the service" in bench.invoke("rollback", "--yes", code=6)
    assert "  0 changes" in bench.invoke("provision", "--yes")
    lives = bench.lives()
    told = bench.invoke("provision", "--undo", "--yes")
    assert "now: macd-analysis.service as it was put there by hand runs again as pid" in told
    assert not set(lives) & set(bench.lives())
    assert [bench.running(unit) for unit in UNITS] == [("trader", APP)] * 2
    owners = bench.on_prod("sh", "-c", f"find {APP}/logs {APP}/data -user macd")
    assert owners == ""
    assert bench.on_prod("stat", "-c", "%U", f"{APP}/logs/root.log") == "root"
    assert bench.on_prod("stat", "-c", "%a %U", f"{APP}/.env") == "640 trader"
    assert bench.on_prod("stat", "-c", "%a", f"/etc/systemd/system/{UNITS[0]}") == "600"
    assert bench.on_prod("ls", f"/etc/systemd/system/{UNITS[0]}.d") == "override.conf"
    assert bench.on_prod("cat", f"{APP}/.env").endswith("BAR_SECONDS=1")


def test_a_process_without_a_unit_is_named_and_no_deploy_begins(bench: Bench) -> None:
    bench.on_prod("systemctl", "stop", UNITS[0])
    bench.on_prod("sh", "-c", f"cd {APP} && HEALTH_PORT=9090 setsid nohup venv/bin/python3 "
                  "live_runner.py --phase paper >/dev/null 2>&1 & echo")  # fmt: skip
    try:
        bench.invoke("provision", "--yes", "--adopt")
        told = bench.invoke("deploy", "--yes", code=6)
        assert "live_runner.py --phase paper runs there already: pid" in told
        assert "kept by nobody: it was started by hand" in told
    finally:
        bench.on_prod("pkill", "-f", "live_runner.py")
