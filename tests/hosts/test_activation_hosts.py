"""On a real systemd: killed runner, reboot and power cut in mid-trial, crash loop, full disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from macd.ssh.failures import RemoteError
from tests.support.hosts.fleet import Hosts
from tests.support.hosts.host_app import APP, BOOT, NAME, SOCKET, UNIT, HostApp, host_app_on

pytestmark = pytest.mark.hosts


@pytest.fixture(scope="module")
def trial(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostApp]:
    with host_app_on(hosts, tmp_path_factory.mktemp("key")) as made:
        yield made


def test_nobody_confirms(trial: HostApp) -> None:
    before = trial.live
    last = trial.end(trial.begin(trial.release(), confirm_s=0.5), confirm=False)
    assert last["state"] == "reverted"
    assert "nobody confirmed" in last["reason"]
    assert trial.live == before
    trial.settled()


def test_the_session_that_began_cannot_confirm(trial: HostApp) -> None:
    before = trial.live
    with trial.session() as session:
        number = trial.begin_over(session, trial.release(), confirm_s=15.0)
        with pytest.raises(RemoteError, match="can't confirm it"):
            session.call("confirm", app=APP, number=number, token="t0ken")
    assert trial.end(number, confirm=False)["state"] == "reverted"
    assert trial.live == before


@pytest.mark.parametrize("state", ["restarting", "awaiting confirmation"])
def test_a_killed_runner_is_started_again_and_reverts(trial: HostApp, state: str) -> None:
    before = trial.live
    number = trial.begin(trial.release())
    trial.until(number, state)
    runner = f"macd-activation-{number}-{NAME}.service"
    trial.on_prod("systemctl", "kill", "-s", "SIGKILL", runner)
    last = trial.end(number, confirm=False)
    assert last["state"] == "reverted"
    assert "interrupted" in last["reason"]
    assert trial.live == before
    trial.settled()


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_the_boot_unit_reverts_before_the_service_starts(trial: HostApp, how: str) -> None:
    before = trial.live
    number = trial.begin(trial.release(), confirm_s=120.0)
    trial.until(number, "awaiting confirmation")
    assert trial.live != before
    machine = trial.hosts.prod.machine
    if how == "reboot":
        machine.reboot()
    else:
        machine.power_cut()
        machine.start()
        machine.wait()
    told = trial.on_prod("journalctl", "-b", "-u", BOOT, "-o", "cat")
    assert "macd-host: reverted" in told
    assert trial.live == before
    trial.settled()
    started = ("systemctl", "show", "-p", "NRestarts", "--value", UNIT)
    assert trial.on_prod(*started) == "0"  # the trial's code was not even begun
    assert trial.deploy(trial.release()) == "committed"
    trial.settled()


def test_a_crash_loop_does_not_block_the_way_back(trial: HostApp) -> None:
    """The live release crashes until systemd gives up; rollback and deploy get through."""
    good = trial.live
    assert trial.deploy(trial.release()) == "committed"
    broken = trial.live
    # Another file in its place: the releases' like files are one, and the way back stays whole.
    broken_file = f"cd {APP}/current/app; echo 'raise SystemExit(1)' > new; mv new serve.py"
    trial.on_prod("sh", "-c", broken_file)
    trial.on_prod("systemctl", "restart", UNIT, check=False)
    give_up = (
        "for i in $(seq 1000); do systemctl is-failed -q $0 && exit 0; sleep 0.1; done; exit 1"
    )
    trial.on_prod("sh", "-c", give_up, UNIT)
    assert trial.on_prod("systemctl", "restart", UNIT, check=False) == ""
    assert trial.on_prod("systemctl", "is-failed", UNIT, check=False) == "failed"
    last = trial.end(trial.begin(None))
    assert (last["state"], trial.live) == ("committed", good)
    trial.settled()
    assert trial.deploy(trial.release()) == "committed"
    assert broken != trial.live
    trial.settled()


def test_a_full_disk_is_told_and_nothing_is_lost(trial: HostApp) -> None:
    before = trial.live
    machine = trial.hosts.prod.machine
    trial.on_prod("systemctl", "stop", SOCKET, UNIT)
    machine.limit_disk("/opt/small", 40)
    trial.on_prod("sh", "-c", f"cp -a {APP}/. /opt/small/")
    trial.on_prod("mount", "--bind", "/opt/small", APP)
    try:
        trial.on_prod("systemctl", "start", SOCKET)
        assert trial.answers() == before
        machine.fill_disk(APP, 2048)
        with pytest.raises(RemoteError, match="not enough room"):
            trial.begin(trial.release(extra=b"x" * 4_000_000))
        assert trial.live == before
        assert trial.answers() == before
        trial.on_prod("rm", f"{APP}/.filler")
        assert trial.deploy(trial.release()) == "committed"
        newest = trial.live
        machine.fill_disk(APP, 110)
        last = trial.end(trial.begin(None))
        assert last["state"] == "reverted"
        assert "no room for a revert" in last["reason"]
        assert trial.answers() == trial.live == newest
        trial.on_prod("rm", f"{APP}/.filler")
        assert trial.end(trial.begin(None))["state"] == "committed"
        assert trial.answers() == trial.live == before
    finally:
        trial.on_prod("systemctl", "stop", SOCKET, UNIT)
        trial.on_prod("umount", "--lazy", APP)
        trial.on_prod("systemctl", "start", SOCKET)
