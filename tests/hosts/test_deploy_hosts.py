"""Provision, deploy and rollback as typed, against a real systemd, by root and by a sudo user."""

from __future__ import annotations

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from macd.inventory import Inventory, load
from macd.journal import Journal
from tests.support import commands, small_releases
from tests.support.hosts.fleet import Hosts
from tests.support.sweeps import sweep

pytestmark = pytest.mark.hosts

APP = "/opt/macd-analysis"
UNIT = "macd-analysis.service"
TASKS = """
from invoke import Collection
from macd.cli import deploy, doctor, flag, history, monitor, provision, status, usage
usage.install()
namespace = Collection(
    deploy.plan, deploy.deploy, deploy.rollback, provision.provision,
    status.status, status.why, history.history,
    doctor.doctor, monitor.monitor, flag.disable_stacking,
)
"""
MORE = """
soak: {ready_s: 30, soak_s: 1, confirm_s: 120}
release:
  keep: 3
  sign_key: ../keys/release
  allowed_signers: ../keys/allowed_signers
  identity: release@test
service: {feed: {kind: replay}, watchdog_s: 0}
"""


@dataclass(frozen=True)
class Bench:
    hosts: Hosts
    inventory: Inventory

    def invoke(
        self, *words: str, code: int = 0, inventory: str = "deploying"
    ) -> subprocess.CompletedProcess[str]:
        done = self.typed(*words, inventory=inventory)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def typed(self, *words: str, inventory: str = "deploying") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MACD_ROOT": str(self.hosts.root)}
        return commands.run(self.hosts.root, *words, "--inventory", inventory, env=environment)

    def json(self, *words: str, code: int = 0, inventory: str = "deploying") -> Any:
        done = self.invoke(*words, "--json", code=code, inventory=inventory)
        return json.loads(done.stdout)

    def on_prod(self, *argv: str) -> str:
        return self.hosts.prod.exec(*argv).strip()

    @property
    def live(self) -> str:
        return self.on_prod("readlink", f"{APP}/current").removeprefix("releases/")

    @property
    def life(self) -> str:
        return self.on_prod("systemctl", "show", "-p", "InvocationID", "--value", UNIT)


@pytest.fixture(scope="module")
def bench(hosts: Hosts) -> Bench:
    """An inventory that can deploy, beside the one the fleet wrote."""
    (hosts.root / "tasks.py").write_text(TASKS)
    base = (hosts.root / "inventory" / f"{hosts.inventory}.yml").read_text()
    (hosts.root / "inventory" / "deploying.yml").write_text(base + MORE)
    (hosts.root / "inventory" / "slow.yml").write_text(
        base + MORE.replace("soak_s: 1", "soak_s: 8")
    )
    as_deployer = base.replace("ssh: prod,", "ssh: prod, user: deploy, become: sudo,")
    assert as_deployer != base
    (hosts.root / "inventory" / "sudo.yml").write_text(as_deployer + MORE)
    inventory = load("deploying", root=hosts.root)
    small_releases.make_keys(inventory)
    return Bench(hosts, inventory)


def test_the_whole_way(bench: Bench) -> None:
    refused = bench.invoke("plan", code=2)
    assert "there is no release of" in refused.stderr
    first = small_releases.make(bench.inventory, 1)
    assert "not provisioned" in bench.invoke("plan").stdout
    assert "not provisioned" in bench.invoke("deploy", "--yes", code=6).stderr
    assert bench.on_prod("ls", "/opt") == ""

    # a sudo user provisions; root then finds nothing to change
    dry = bench.json("provision", "--dry-run", inventory="sudo")["hosts"][0]["changes"]
    assert dry[0] == {"what": "account", "name": "macd", "how": "created", "diff": ""}
    assert bench.on_prod("ls", "/opt") == ""
    assert bench.json("provision", "--yes", inventory="sudo")["hosts"][0]["changes"] == dry
    assert "  0 changes" in bench.invoke("provision", "--yes").stdout
    stat = ("stat", "-c", "%U:%G %a", f"{APP}/data/live", f"{APP}/.env", f"{APP}/state/snapshots")
    assert bench.on_prod(*stat).splitlines() == ["macd:macd 750", "root:root 600", "root:root 700"]

    told = bench.json("deploy", "--yes")
    assert told["outcomes"][0]["result"] == "committed"
    assert bench.live == first
    assert bench.on_prod("systemctl", "show", "-p", "User", "--value", UNIT) == "macd"

    life = bench.life
    again = bench.json("deploy", "--yes")
    assert (again["outcomes"][0]["result"], again["outcomes"][0]["sent"]) == ("nothing", 0)
    assert bench.life == life
    bench.invoke("deploy", "--yes", "--restart")
    assert bench.life != life

    second = small_releases.make(bench.inventory, 2)
    plan = bench.json("plan")
    assert plan["changes"]
    assert plan["hosts"][0]["rollback"]["ready"]
    bench.invoke("deploy", "--yes", inventory="sudo")
    assert bench.live == second
    assert bench.json("status")["well"]
    bench.invoke("rollback", "--yes")
    assert bench.live == first
    why = bench.json("why")["hosts"][0]
    assert (why["live"], why["run"], why["how"]) == (first, "run-1", "rollback")


def test_the_running_service_is_locked_in(bench: Bench) -> None:
    told = bench.on_prod("systemd-analyze", "security", "--no-pager", UNIT)
    exposure = float(told.splitlines()[-1].split(":")[1].split()[0])
    print(f"systemd-analyze security: exposure {exposure}")
    assert exposure <= 1.5
    assert bench.json("status")["well"]
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    inside = (
        "nsenter",
        "--target",
        pid,
        "--mount",
        "--",
        "setpriv",
        "--reuid=macd",
        "--regid=macd",
    )
    writable = (*inside, "--clear-groups", "sh", "-c", f"for d in {APP} {APP}/state {APP}/data/live"
                " /etc /var/lib; do test -w $d && echo $d; done; true")  # fmt: skip
    assert bench.on_prod(*writable) == f"{APP}/data/live"


VARIANTS = ["exits", "hangs", "wrong golden", "never ready", "check fails"]


@pytest.mark.parametrize("variant", sweep(VARIANTS, "exits", "wrong golden"))
def test_a_bad_release_is_reverted_with_exit_4(bench: Bench, variant: str) -> None:
    before = bench.live
    bad = small_releases.make(bench.inventory, 10 + VARIANTS.index(variant), variant)
    ended = bench.invoke("deploy", "--yes", "--release", bad, code=4)
    assert f"now: {before} is live" in ended.stdout
    told = "its last words: this release gives up" in ended.stdout
    assert told == (variant == "exits"), ended.stdout
    assert bench.live == before
    assert bench.json("status")["well"]
    assert bench.json("status")["hosts"][0]["rollback"]["release"] != bad


def test_an_older_signed_release_is_refused(bench: Bench) -> None:
    """Newer ones came, though none of them stayed."""
    before, life = bench.live, bench.life
    there = bench.on_prod("ls", f"{APP}/releases").split()
    for replayed in (small_releases.make(bench.inventory, 3), *there):
        if replayed != before and replayed != max(there):
            told = bench.invoke("deploy", "--yes", "--release", replayed, code=6).stderr
            assert "older release" in told
    assert (bench.live, bench.life) == (before, life)


def test_a_current_that_is_a_real_directory_is_left_alone(bench: Bench) -> None:
    release = small_releases.make(bench.inventory, 20)
    there = f"cd {APP} && mv current kept && mkdir current && echo precious > current/by-hand"
    bench.on_prod("sh", "-c", there)
    try:
        for words in (("deploy", "--yes", "--release", release), ("rollback", "--yes")):
            assert "is not a symbolic link" in bench.invoke(*words, code=6).stderr
        assert bench.on_prod("cat", f"{APP}/current/by-hand") == "precious"
    finally:
        bench.on_prod("sh", "-c", f"cd {APP} && rm -r current && mv kept current")
    assert bench.json("status")["well"]


def test_of_two_deploys_at_once_one_wins_and_the_other_is_told(bench: Bench) -> None:
    names = [small_releases.make(bench.inventory, serial) for serial in (21, 22)]
    with ThreadPoolExecutor() as pool:
        # A slow one: the other comes while it is at work, however busy this machine is.
        words = [("deploy", "--yes", "--release", name) for name in names]
        typed = [pool.submit(bench.typed, *each, inventory="slow") for each in words]
        ended = {name: one.result() for name, one in zip(names, typed, strict=True)}
    assert sorted(one.returncode for one in ended.values()) == [0, 6], ended
    [winner] = [name for name, one in ended.items() if one.returncode == 0]
    [loser] = set(names) - {winner}
    assert "has held the lock for" in ended[loser].stderr
    assert bench.live == winner
    assert bench.json("status")["well"]


def test_drift_is_seen_and_provision_mends_it(bench: Bench) -> None:
    bench.on_prod("sh", "-c", f"echo '# by hand' >> /etc/systemd/system/{UNIT}")
    bench.on_prod("sh", "-c", f"echo API_TOKEN=s3cret >> {APP}/.env")
    beside = f"/run/systemd/system/{UNIT}.d"
    text = "[Service]\\nEnvironment=TOKEN=s3cret\\n"
    bench.on_prod("sh", "-c", f"mkdir {beside} && printf '{text}' > {beside}/x.conf")
    shown = bench.invoke("plan").stdout
    assert f"drift  {beside}/x.conf overrides {UNIT}, sets Environment\n" in shown
    assert f"drift  systemd has not read {UNIT} as it stands on the disk" in shown
    assert f"systemd has not read {UNIT.replace('.service', '.socket')}" not in shown
    bench.on_prod("rm", "-r", beside)
    assert f"drift  {UNIT} was changed" in shown
    assert "-# by hand" in shown
    assert "API_TOKEN" in shown
    assert "s3cret" not in shown + bench.invoke("provision", "--dry-run").stdout
    assert bench.json("provision", "--yes")["hosts"][0]["changes"]
    assert "0 changes" in bench.invoke("provision", "--yes").stdout
    left = bench.json("plan")["hosts"][0]["drift"]
    assert [told for told in left if UNIT in told] == []
    assert "API_TOKEN=s3cret" in bench.on_prod("cat", f"{APP}/.env")


def test_a_rollback_loses_nothing_that_people_changed_since(bench: Bench) -> None:
    """A rotated key, a new token, a raised limit and a drop-in, as a team does it."""
    first, second = bench.live, small_releases.make(bench.inventory, 30)
    bench.on_prod("sh", "-c", f"echo 'EXCHANGE_KEY=old' >> {APP}/.env")
    bench.invoke("deploy", "--yes")
    assert bench.live == second
    bench.on_prod(
        "sh", "-c", f"sed -i s/=old/=r0tated/ {APP}/.env; echo EXTRA_TOKEN=x >> {APP}/.env"
    )
    env = bench.on_prod("cat", f"{APP}/.env")
    unit = f"/etc/systemd/system/{UNIT}"
    bench.on_prod("sed", "-i", "s/^MemoryMax=.*/MemoryMax=900M/", unit)
    edited = bench.on_prod("cat", unit)
    assert "MemoryMax=900M" in edited
    dropin = f"{unit}.d/override.conf"
    text = "[Service]\\nEnvironment=EXTRA_SETTING=kept\\n"
    bench.on_prod("sh", "-c", f"mkdir {unit}.d && printf '{text}' > {dropin}")
    bench.on_prod("systemctl", "daemon-reload")  # systemctl edit does the same, on a terminal
    dry = bench.invoke("rollback", "--dry-run").stdout
    assert f"puts back as they were with {first}: {UNIT}\n" in dry
    assert f"{UNIT} was changed on the host since the last deploy" in dry
    assert f"leaves alone: everything else in .env, {dropin}" in dry
    told = bench.json("rollback", "--yes")["outcomes"][0]
    assert (told["live"], told["files"], told["keys"]) == (first, [UNIT], [])
    assert "r0tated" not in dry + json.dumps(told)
    assert bench.on_prod("cat", f"{APP}/.env") == env
    [kept] = told["kept"]
    assert kept.startswith(f"{unit}.before-rollback-")
    assert bench.on_prod("cat", kept) == edited
    assert "MemoryMax=900M" not in bench.on_prod("cat", unit)
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    running = bench.on_prod("cat", f"/proc/{pid}/environ")
    for setting in ("EXCHANGE_KEY=r0tated", "EXTRA_TOKEN=x", "EXTRA_SETTING=kept"):
        assert setting in running
    bench.on_prod("rm", "-r", f"{unit}.d", kept)
    bench.on_prod("systemctl", "daemon-reload")
    assert bench.json("status")["well"]


def test_root_is_not_given_releases_by_a_users_own_services(bench: Bench) -> None:
    """ssh_config says that the login is root, which no inventory can know."""
    text = (bench.hosts.root / "inventory" / "deploying.yml").read_text()
    as_root = text.replace("ssh: prod,", "ssh: prod, scope: user,").replace(APP, "/opt/as-root")
    (bench.hosts.root / "inventory" / "as-root.yml").write_text(as_root)
    refused = bench.invoke("provision", "--yes", code=6, inventory="as-root").stderr
    assert "releases are not run as root here" in refused
    assert bench.on_prod("ls", "/opt") == "macd-analysis"
    named = as_root.replace("ssh: prod,", "ssh: prod, user: root,")
    (bench.hosts.root / "inventory" / "as-root.yml").write_text(named)
    assert "hosts.prod.scope" in bench.invoke("plan", code=2, inventory="as-root").stderr


LOOKS = {"status": 0, "plan": 0, "doctor": 1, "monitor": 1}


def test_a_flag_set_by_hand_is_seen_by_every_look(bench: Bench) -> None:
    bench.on_prod("sh", "-c", f"echo ML_ENABLE_STACKING=1 >> {APP}/.env")
    for verb, code in LOOKS.items():
        told = bench.invoke(verb, code=code).stdout
        assert ".env says ML_ENABLE_STACKING=1 (twice), the process 0" in told, verb
        assert "no gate report and no guard" in told, verb
        assert "as it should be" not in told
    bench.on_prod("systemctl", "restart", UNIT)
    for verb, code in LOOKS.items():
        told = bench.invoke(verb, code=code).stdout
        assert "stacking decides without evidence: no gate report and no guard" in told, verb
        assert "as it should be" not in told
    kept = bench.invoke("deploy", "--restart", "--yes", "--release", bench.live).stdout
    assert "stacking will decide, without evidence" in kept
    bench.invoke("disable-stacking", "--yes")
    flags = bench.on_prod("grep", "ML_ENABLE_STACKING", f"{APP}/.env").splitlines()
    assert flags == ["ML_ENABLE_STACKING=0", "ML_ENABLE_STACKING=0"]
    pid = bench.on_prod("systemctl", "show", "-p", "MainPID", "--value", UNIT)
    assert "ML_ENABLE_STACKING=0" in bench.on_prod("cat", f"/proc/{pid}/environ").split("\0")
    records = Journal(bench.hosts.root / ".macd" / "deploying" / "journal.jsonl").records()
    assert records[-1].kind == "flag.disable"
    assert "stacking" not in " ".join(bench.json("plan")["hosts"][0]["drift"])
    bench.invoke("monitor")


def test_what_sets_the_flag_beside_env_is_named_and_no_restart_is_wasted(bench: Bench) -> None:
    beside = f"/etc/systemd/system/{UNIT}.d"
    bench.on_prod("mkdir", beside)
    bench.on_prod("sh", "-c", "echo ML_ENABLE_STACKING=1 > /etc/extra.env")
    text = "[Service]\\nEnvironmentFile=/etc/extra.env\\nEnvironment=ML_ENABLE_STACKING=1\\n"
    bench.on_prod("sh", "-c", f"printf '{text}' > {beside}/x.conf")
    bench.on_prod("systemctl", "daemon-reload")
    bench.on_prod("systemctl", "restart", UNIT)
    for verb, code in LOOKS.items():
        told = bench.invoke(verb, code=code).stdout
        assert "/etc/extra.env sets ML_ENABLE_STACKING=1; only .env may" in told, verb
        assert f"Environment= of {UNIT} sets ML_ENABLE_STACKING=1; only .env may" in told, verb
    life = bench.life
    refused = bench.invoke("disable-stacking", "--yes", code=1).stderr
    assert "/etc/extra.env sets ML_ENABLE_STACKING=1 and wins over .env" in refused
    assert bench.life == life
    bench.on_prod("rm", "-r", beside, "/etc/extra.env")
    bench.on_prod("systemctl", "daemon-reload")
    bench.invoke("disable-stacking", "--yes")
    bench.invoke("monitor")


def test_no_look_prints_what_stands_in_the_flags_file(bench: Bench) -> None:
    line = "DB_URL=postgres://u:hunter2!w@h/db?sslmode=require&x=1"
    bench.on_prod(
        "sh", "-c", f"echo '{line}' >> {APP}/.env; printf 'export P=hunter2\\r\\n' >> {APP}/.env"
    )
    for words in (("plan",), ("status", "--json"), ("provision", "--yes"), ("plan", "--json")):
        done = bench.invoke(*words)
        assert "hunter2" not in done.stdout + done.stderr, words
    assert ".env holds DB_URL, which the inventory does not know" in bench.invoke("plan").stdout
    assert line in bench.on_prod("cat", f"{APP}/.env")
    bench.on_prod("sh", "-c", f"printf 'X=hunter2\\000\\n' >> {APP}/.env")
    for words, code in ((("plan",), 0), (("status", "--json"), 0), (("provision", "--yes"), 6)):
        done = bench.invoke(*words, code=code)
        assert "holds a NUL byte" in done.stdout + done.stderr, words
        assert "hunter2" not in done.stdout + done.stderr, words
    bench.on_prod("sh", "-c", f"echo ML_ENABLE_STACKING=0 > {APP}/.env")


def test_it_comes_back_after_a_reboot(bench: Bench) -> None:
    before = bench.live
    bench.hosts.prod.machine.reboot()
    status = bench.json("status")
    assert status["hosts"][0]["live"] == before
    assert status["well"]
