"""Build the Debian root the test hosts boot from, once, and keep it outside the repository.

The cache key is a digest of the recipe below, so a changed recipe builds a new root and an old
checkout still finds its own. A build happens in a directory that is renamed when complete: a
killed build is never booted. One build at a time, guarded by a lock that dies with its holders.

`python -m tests.support.hosts.rootfs` builds it where hosts can be booted, for the tests to come.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "dbus",
    "dbus-user-session",  # systemctl --user of a lingering user
    "iproute2",
    "libgomp1",  # LightGBM
    "libpam-systemd",
    "openssh-client",  # ssh-keygen -Y verify on the host
    "openssh-server",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",  # what deploys are compared with
    "strace",  # kill and fault tests of the activation
    "sudo",
    "systemd",
    "systemd-sysv",
)
FILES = {
    "etc/ssh/sshd_config.d/10-macd-test.conf": """\
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u .ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 200
MaxSessions 50
""",
    "etc/sudoers.d/deploy": "deploy ALL=(ALL) NOPASSWD: ALL\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/systemd/journald.conf.d/10-macd-test.conf": "[Journal]\nSystemMaxUse=50M\n",
}
COMMANDS = (
    "useradd --create-home --shell /bin/bash jumper",
    "useradd --create-home --shell /bin/bash quant",
    "useradd --create-home --shell /bin/bash deploy",
    "chmod 0440 /etc/sudoers.d/deploy",
    "rm -f /etc/ssh/ssh_host_*",
    # Names and contents that two hosts must not share are made at boot or by the fixture.
    "truncate -s 0 /etc/machine-id && rm -f /var/lib/dbus/machine-id /etc/hostname",
    "systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer "
    "e2scrub_all.timer e2scrub_reap.service console-getty.service getty.target "
    "systemd-networkd.service systemd-resolved.service dev-hugepages.mount "
    "sys-fs-fuse-connections.mount tmp.mount",
    "rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /usr/share/doc /usr/share/man "
    "/usr/share/locale",
)
# setpriv: die with pytest. unshare: one SIGKILL ends every process, and nothing stays mounted.
LEASH = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
KEEP_UNUSED_S = 14 * 24 * 3600
TOOLS = ("systemd-nspawn", "debootstrap", "ip", "nsenter", "unshare", "setpriv", "ssh")
CAP_SYS_ADMIN = 21


def why_not() -> str:
    """Return why hosts can't be booted here, or nothing."""
    if sys.platform != "linux" or not Path("/etc/debian_version").exists():
        return "they need Debian or Ubuntu"
    if os.geteuid() != 0:
        return "they need root"
    if not _may_mount():
        return "this root may not mount (an unprivileged container)"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} missing; tests/system-packages.sh installs them"
    return ""


def _may_mount() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> CAP_SYS_ADMIN & 1)


def cache_directory() -> Path:
    """Where roots and the state of running hosts live; never inside a checkout."""
    return Path(os.environ.get("MACD_TEST_HOSTS_CACHE", "/var/cache/macd-test-hosts"))


def recipe_digest() -> str:
    """Sixteen hex characters naming the root that this checkout boots."""
    recipe = json.dumps([SUITE, PACKAGES, FILES, COMMANDS], sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def ensure(cache: Path) -> Path:
    """Return the finished root for this recipe, building it (about a minute) if it is not there.

    Raises RuntimeError with the end of the build's log when it cannot be built.
    """
    root = cache / "roots" / recipe_digest()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "build.lock") as lock:
        if not root.exists():
            _build(root, lock)
        os.utime(root)
        _forget_unused(root)
    return root


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _build(root: Path, lock: int) -> None:
    root.parent.mkdir(exist_ok=True)
    for leftover in root.parent.glob(".building-*"):
        shutil.rmtree(leftover)
    stage = Path(tempfile.mkdtemp(prefix=".building-", dir=root.parent))
    stage.chmod(0o755)
    mirror = os.environ.get("MACD_TEST_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    wanted = ["--variant=minbase", "--include=" + ",".join(PACKAGES)]
    _logged(["debootstrap", *wanted, SUITE, str(stage), mirror], lock)
    for name, text in FILES.items():
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for command in COMMANDS:
        _logged(["chroot", str(stage), "/bin/sh", "-ec", command], lock)
    stage.rename(root)


def _logged(argv: list[str], lock: int) -> None:
    # The build inherits the lock and its leash: it ends with pytest, with all it has mounted.
    done = subprocess.run(
        [*LEASH, *argv],
        check=False,
        pass_fds=[lock],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        # A build that is cut off is never booted: dpkg need not wait for the disk after each file.
        | {"DPKG_FORCE": "unsafe-io"}
        | {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")},
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed while building a test host:\n{done.stdout[-2000:]}")


def _forget_unused(current: Path) -> None:
    for other in current.parent.iterdir():
        if other != current and time.time() - other.stat().st_mtime > KEEP_UNUSED_S:
            shutil.rmtree(other)


if __name__ == "__main__":
    if not why_not():
        ensure(cache_directory())
