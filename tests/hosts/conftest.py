"""Boot the test hosts once a session, or say in one line why they are not booted here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.support.hosts import rootfs
from tests.support.hosts.fleet import Hosts, booted


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.get_closest_marker("hosts")]
    if mine:
        # The first one's time includes building the root, where it isn't cached yet.
        mine[0].add_marker(pytest.mark.timeout(1200))
    # In CI nothing is skipped: the fixture fails there, with the same reason.
    if (why := rootfs.why_not()) and not in_ci():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=f"real systemd hosts: {why}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any("hosts" in report.keywords for report in skipped) and rootfs.why_not():
        terminalreporter.write_line(f"real systemd hosts were NOT tested: {rootfs.why_not()}")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """jump, h800 (behind jump only) and prod (port 22222): Debian, systemd, sshd."""
    if why := rootfs.why_not():
        pytest.fail(f"these tests always run in CI, but {why}", pytrace=False)
    with booted(rootfs.cache_directory(), tmp_path_factory.mktemp("systemd") / "project") as made:
        yield made


# What a file of tests may have left on prod: applications, their units and accounts.
_BLANK = """
cd /etc/systemd/system
for unit in macd-* trial*; do
    [ -e "$unit" ] || continue
    systemctl disable --now "$unit" >/dev/null 2>&1
    rm -rf "$unit"
done
systemctl daemon-reload
systemctl reset-failed
umount -q /opt/* 2>/dev/null
rm -rf /opt/* /opt/.[!.]* /var/shared
for user in macd trial trader; do userdel --force "$user" 2>/dev/null; done
true
"""
# On h800, where trainings ran as this user: what failed there makes no later file's host degraded.
_FORGET = """
systemctl reset-failed
runuser -u quant -- env XDG_RUNTIME_DIR=/run/user/$(id -u quant) systemctl --user reset-failed
true
"""


@pytest.fixture(scope="module", autouse=True)
def blank_prod(hosts: Hosts) -> None:
    """Each file finds prod as it was when new, whichever files its worker ran before, and here no
    release that those made.
    """
    hosts.prod.exec("sh", "-c", _BLANK)
    if hosts.h800.machine.running():
        hosts.h800.exec("sh", "-c", _FORGET)
    shutil.rmtree(hosts.root / "releases", ignore_errors=True)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")
