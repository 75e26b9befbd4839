"""What went wrong over there, as errors a caller can tell apart and a person can act on."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from typing import Any

from macd.errors import MacdError, RefusedError
from macd.ssh.archive import OLDEST_PYTHON, TOO_OLD

_NO_SUDO = re.compile(rb"sudo: (?:command )?not found", re.IGNORECASE)
_COMMAND = re.compile(rb"'(/[^\s']+) -EsSBc [^']*'")  # our command as sudo quotes it
_A_TERMINAL = re.compile(rb"\b(pty|tty|terminal)\b", re.IGNORECASE)
_SUDO_WOULD = (b"macd-agent:", b"Traceback", b"command not found")  # it is about Python then


class RemoteError(MacdError):
    """An operation failed on a host. `kind` is the host's exception type or HostError's kind."""

    def __init__(self, host: str, op: str, error: Mapping[str, Any]) -> None:
        what = error.get("what") or f"{op}: {_worded(error)}"  # the host's own words need no op
        path = str(error.get("path") or "")
        super().__init__(
            f"{host}: {what}" + (f": {path}" if path else ""),
            why=str(error.get("why") or ""),
            hint=str(error.get("hint") or _remedy(host, error)),
            live=str(error.get("live") or ""),
        )
        self.host = host
        self.op = op
        self.kind = str(error.get("kind") or error.get("type") or "")
        self.errno = error.get("errno")
        self.path = path
        if error.get("traceback"):  # shown where ours is: with --debug only
            self.add_note(f"on {host}: {error['traceback']}")


def _remedy(host: str, error: Mapping[str, Any]) -> str:
    if error.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        return f"make room on {host}; df -h and df -i show whether bytes or inodes are used up"
    if error.get("type") != "PermissionError":
        return ""
    return (
        f"let the login write there, or correct its directory, user: or become: of {host} in the"
        " inventory; then: invoke provision, or invoke facts for a training host"
    )


def _worded(error: Mapping[str, Any]) -> str:
    """The system's words for an OSError; another exception's need its type to make sense."""
    message = str(error.get("message") or "")
    return message if error.get("errno") else f"{error.get('type', 'error')}: {message}"


class RemoteFileNotFoundError(RemoteError):
    """No such file or directory on the host (or no such program)."""


class RemotePermissionError(RemoteError):
    """The user macd logs in as may not do that."""


class RemoteDiskFullError(RemoteError):
    """The host has no room (or no quota) left."""


class RemoteMismatchError(RemoteError):
    """What arrived isn't what was declared; the host has thrown it away."""


class RemoteRefusedError(RemoteError, RefusedError):
    """The host did nothing, on purpose (exit 6)."""

    def __init__(self, host: str, op: str, error: Mapping[str, Any]) -> None:
        super().__init__(host, op, error)
        self.exit_code = RefusedError("").exit_code


class UnfitPythonError(MacdError):
    """The host has no Python where the inventory says, or one that is too old for macd."""


_BY_ERRNO: dict[int, type[RemoteError]] = {
    errno.ENOENT: RemoteFileNotFoundError,
    errno.EACCES: RemotePermissionError,
    errno.EPERM: RemotePermissionError,
    errno.EROFS: RemotePermissionError,
    errno.ENOSPC: RemoteDiskFullError,
    errno.EDQUOT: RemoteDiskFullError,
}
_BY_KIND: dict[str, type[RemoteError]] = {
    "disk full": RemoteDiskFullError,
    "mismatch": RemoteMismatchError,
    "refused": RemoteRefusedError,
}


def from_host(host: str, op: str, error: Mapping[str, Any]) -> RemoteError:
    """The typed error for an agent's error message."""
    number = error.get("errno")
    made = _BY_KIND.get(str(error.get("kind"))) or (
        _BY_ERRNO.get(number) if isinstance(number, int) else None
    )
    return (made or RemoteError)(host, op, error)


def not_started(
    host: str,
    python: str,
    *,
    noise: bytes,
    stderr: bytes,
    status: int | None,
    cause: str,
    sudo_login: str = "",
    answers: Callable[[], bool] = lambda: True,
) -> MacdError:
    """Why there is no agent, read from what the host printed instead of speaking.

    sudo_login: the account that was to start it by sudo, "" where no sudo was asked. answers:
    whether the host runs what it is told to; only asked where nothing else is known.
    """
    too_old = noise.partition(TOO_OLD.encode())[2].split()
    if too_old:
        return UnfitPythonError(
            f"{host}: {python} is Python {_shown(too_old[0])}; macd needs {OLDEST_PYTHON} or newer",
            why="what macd runs on a host, training and the service all need it",
            hint=_other_python(host),
            live="nothing was done there",
        )
    if sudo_login and (refusal := _by_sudo(host, python, sudo_login, stderr, status)):
        return refusal
    if status == 127 or b"not found" in stderr or b"No such file" in stderr:
        return UnfitPythonError(
            f"{host}: there is no {python}", why=_shown(stderr), hint=_other_python(host)
        )
    printed = [
        f"{name} begins: {_shown(text)}"
        for name, text in (("stdout", noise), ("stderr", stderr))
        if text and not (name == "stderr" and text in noise)  # a terminal joins the two
    ]
    ended = f"the login shell ended with status {status}" if status is not None else cause
    if _A_TERMINAL.search(noise + stderr):
        return MacdError(
            f"{host}: the agent did not start, and what was printed speaks of a terminal",
            why="\n".join([ended, *printed]),
            hint=terminal_hint(host),
        )
    if status is not None and not answers():
        return MacdError(
            f"{host} runs something else than what it is told to",
            why="\n".join(["`echo` is not run there either", ended, *printed]),
            hint="a forced command is in the way (ForceCommand in sshd_config, command= in "
            "authorized_keys), or the account has no shell (nologin): use an account or a key "
            f"without, by user: or identity: of {host} in the inventory",
        )
    return MacdError(
        f"{host}: the agent did not start",
        why="\n".join([ended, *printed]),
        hint=f"ssh to {host} and run `{python} -c 'print(1)'`; a login shell must stay silent and"
        " leave stdin alone when it isn't interactive",
    )


def terminal_hint(host: str) -> str:
    """What to try where a host runs no plain command."""
    return (
        f"set terminal: exec of {host} in the inventory, for a host that runs commands only in a"
        " terminal; where that does not help, terminal: shell, for one with a login shell only"
    )


def _other_python(host: str) -> str:
    return (
        f"set the key `python` of host {host} in the inventory to one that is {OLDEST_PYTHON} or"
        f" newer, such as python3.11; then: invoke facts --host {host}\n"
        "if it has none, install it. Ubuntu 22.04: apt-get install python3.11 python3.11-venv\n"
        "RHEL 9, Amazon Linux 2023: dnf install python3.11\n"
        "Debian 11 has no package: build it from python.org's sources, make altinstall"
    )


def _by_sudo(
    host: str, python: str, login: str, stderr: bytes, status: int | None
) -> MacdError | None:
    """What sudo said, None where it was not sudo that failed. Its words may be in any language."""
    if _NO_SUDO.search(stderr) or (status == 127 and b"sudo" in stderr):
        return MacdError(
            f"{host}: there is no sudo",
            why=_shown(stderr),
            hint=f"apt-get install sudo there, or log in as root and drop become: of {host} in the"
            " inventory",
        )
    named = _COMMAND.search(stderr)
    said = _COMMAND.sub(rb"'\1 ...'", stderr)
    from_sudo = status == 1 and (named is not None or b"sudo" in said)
    if not from_sudo or any(mark in said for mark in _SUDO_WOULD):
        return None
    path = named[1].decode("utf-8", "replace") if named else _path_of(python, login)
    hint = (
        "add these as the last lines of sudoers there (visudo -f /etc/sudoers.d/zz-macd):\n"
        f"{login} ALL=(root) NOPASSWD: {path}\nDefaults:{login} !requiretty"
    )
    if b"tty" in said:
        hint += f"\nor, without the second line, set terminal: exec of {host} in the inventory"
    if not named and "/" not in python:
        hint += f"\nif `command -v {python}` there shows another path than {path}: that one"
    return MacdError(
        f"{host}: sudo -n may not start {python}",
        why=_shown(said),
        hint=hint,
    )


def _path_of(python: str, login: str) -> str:
    """Where `python` of the inventory is, most likely: sudoers takes absolute paths only."""
    if python.startswith("~/"):
        return f"/home/{login}/{python[2:]}"
    return python if "/" in python else f"/usr/bin/{python}"


def _shown(text: bytes, limit: int = 300) -> str:
    """The beginning of foreign output, harmless to a terminal."""
    decoded = text[: limit * 4].decode("utf-8", "replace").strip()[:limit]
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in decoded
    )
