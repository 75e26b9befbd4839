"""Collect the keys to log in with, best guess first: every wrong one costs a round trip.

Keys come from files and from the ssh-agent; passwords are never used. Nothing is sent here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramiko import Message, PKey
from paramiko.agent import AgentSSH
from paramiko.pkey import PublicBlob
from paramiko.ssh_exception import SSHException

from macd.ssh.sshconfig import Hop

_AGENT_S = 30  # a hardware key may wait for a touch
_DEFAULT_NAMES = frozenset(
    f"id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")
)


@dataclass(frozen=True)
class Candidate:
    """A key to try, and how to call it in a message."""

    key: PKey
    label: str


@dataclass(frozen=True)
class Credentials:
    """Keys in the order to try them, and for each that can't be tried, why."""

    candidates: tuple[Candidate, ...]
    unusable: tuple[str, ...]


class _Agent(AgentSSH):
    """An ssh-agent at any socket; paramiko's own Agent knows only SSH_AUTH_SOCK."""

    def __init__(self, path: str) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_AGENT_S)
            connection.connect(path)
            ask: Any = self._connect  # type: ignore[attr-defined]
            ask(connection)  # paramiko has no public way to an agent elsewhere
        except BaseException:
            connection.close()
            raise


def collect(hop: Hop) -> Credentials:
    """Keys for one hop: the configured ones, by the agent where it holds them; then the agent's."""
    held, unusable = _agent_keys(hop)
    candidates: list[Candidate] = []
    for path in dict.fromkeys(hop.identities):
        key = _identity(path, held)
        if isinstance(key, Candidate):
            candidates.append(key)
        elif key:
            unusable.append(key)
    if not hop.identities_only:
        tried = {candidate.key.asbytes() for candidate in candidates}
        candidates += [
            Candidate(
                key, f"{getattr(key, 'comment', '') or 'a key'} ({key.get_name()}, from the agent)"
            )
            for blob, key in held.items()
            if blob not in tried
        ]
    _certify(candidates, hop, unusable)
    return Credentials(tuple(candidates), tuple(unusable))


def _agent_keys(hop: Hop) -> tuple[dict[bytes, PKey], list[str]]:
    if not hop.agent:
        return {}, []
    try:
        return {key.asbytes(): key for key in _Agent(hop.agent).get_keys()}, []
    except (OSError, SSHException) as error:
        return {}, [f"the ssh-agent at {hop.agent}: {error}"]


def _identity(path: Path, held: dict[bytes, PKey]) -> Candidate | str:
    """The key of an identity file, or why it can't be used ("" where it just isn't there)."""
    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    with contextlib.suppress(OSError, ValueError, IndexError, SSHException):
        blob = PublicBlob.from_string(public.read_text()).key_blob
        if blob in held:
            return Candidate(held[blob], f"{path} (from the agent)")
    if not path.is_file():
        return "" if path.name in _DEFAULT_NAMES else f"{path}: there is no such file"
    key = _private_key(path)
    if isinstance(key, str):
        return key
    if key.asbytes() in held:
        return Candidate(held[key.asbytes()], f"{path} (from the agent)")
    return Candidate(key, str(path))


def _private_key(path: Path) -> PKey | str:
    if path.suffix == ".pub":
        return f"{path}: its private key is not in the agent"
    status = path.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        return f"{path}: others may read it, so it is not used; chmod 600 {path}"
    try:
        key: PKey = PKey.from_path(path)
        return key
    except (TypeError, SSHException, ValueError, OSError) as error:
        # A missing passphrase arrives as TypeError from cryptography, else as SSHException.
        if "password" in str(error).lower() or "encrypted" in str(error).lower():
            return f"{path}: needs its passphrase; ssh-add {path}"
        return f"{path}: {error or type(error).__name__}"


def _certify(candidates: list[Candidate], hop: Hop, unusable: list[str]) -> None:
    for certificate in hop.certificates:
        try:
            blob = PublicBlob.from_file(str(certificate)).key_blob
            fitting = [c for c in candidates if _certifies(blob, c.key)]
        except (OSError, ValueError, SSHException) as error:
            unusable.append(f"{certificate}: {error}")
            continue
        if not fitting:
            unusable.append(f"{certificate}: the key it certifies is not among the keys to try")
        for candidate in fitting:
            candidate.key.load_certificate(str(certificate))


def _certifies(certificate: bytes, key: PKey) -> bool:
    """After its type and nonce a certificate holds the public key (PROTOCOL.certkeys)."""
    whole, own = Message(certificate), Message(key.asbytes())
    whole.get_string(), whole.get_string(), own.get_string()
    return whole.get_remainder().startswith(own.get_remainder())
