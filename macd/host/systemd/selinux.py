"""Whether SELinux keeps systemd from starting a program: by the labels of files. Decided purely.

systemd runs services of its own in the domain of their program's label. A program with the label of
somebody's data is refused: status 203/EXEC, "Permission denied". The labels are those of Red Hat's
targeted policy (selinux(8), and "Using SELinux" of RHEL 9). It was never tried on a host that has
SELinux: the tests have recorded answers only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

_ENFORCE = "/sys/fs/selinux/enforce"
_DATA = frozenset(
    (
        *("user_home_t", "admin_home_t", "home_root_t", "user_home_dir_t", "data_home_t"),
        *("user_tmp_t", "tmp_t", "var_t", "var_lib_t", "default_t", "unlabeled_t", "mnt_t"),
    )
)
REMEDY = (
    "on the host, as root: ausearch -m avc -ts recent shows what is refused; programs below /opt or"
    " /usr/local/bin need no rule; else semanage fcontext -a -t bin_t 'DIRECTORY(/.*)?' and"
    " restorecon -R DIRECTORY"
)


def trouble(programs: Sequence[str]) -> str:
    """Why systemd may not start one of `programs` (links are followed) here; "" if nothing says so.

    A directory stands for the programs that will be written into it.
    """
    return refused(_read(_ENFORCE), {path: _label(path) for path in programs})


def refused(enforce: str, labels: Mapping[str, str]) -> str:
    """As `trouble`, from the content of /sys/fs/selinux/enforce and the labels by path.

    A label is USER:ROLE:TYPE:LEVEL, "" where a file has none.
    """
    if enforce.strip() != "1":
        return ""
    problems = []
    for path, label in labels.items():
        parts = label.rstrip("\0").split(":")
        if len(parts) > 2 and parts[2] in _DATA:
            problems.append(f"{path} has the label {parts[2]}")
    what = "SELinux lets systemd start no program with the label of data"
    return f"{what}: {', '.join(problems)}" if problems else ""


def enforces() -> bool:
    return _read(_ENFORCE).strip() == "1"


def _label(path: str) -> str:
    try:
        return os.getxattr(path, "security.selinux").decode("ascii", "replace")
    except (OSError, AttributeError):  # no such file, no label, not Linux
        return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""
