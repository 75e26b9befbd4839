"""Sign manifests and gate reports with an OpenSSH key: a file, one in an agent, or a FIDO key."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host.store.signature import RELEASE_NAMESPACE

_TIMEOUT_S = 120  # a FIDO key waits for a touch


def sign(payload: bytes, *, key: Path, namespace: str = RELEASE_NAMESPACE) -> bytes:
    """The armoured SSH signature of `payload` (`ssh-keygen -Y sign`).

    Args:
        key: private key file, or a public key whose private half an ssh-agent or FIDO key holds.

    Raises:
        UsageError: no such key, or no ssh-keygen.
        MacdError: the key did not sign (passphrase, no touch, agent without it).
    """
    if not key.is_file():
        raise UsageError(
            f"there is no signing key at {key}",
            hint=f'ssh-keygen -t ed25519 -N "" -f {key}  (or name another as release.sign_key)',
        )
    with tempfile.TemporaryDirectory(prefix="macd-sign-") as directory:
        document = Path(directory, "payload")
        document.write_bytes(payload)
        argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace, str(document)]
        somebody = sys.stdin is not None and sys.stdin.isatty()
        try:
            done = subprocess.run(
                argv,
                stdout=subprocess.DEVNULL,
                # "Confirm user presence for key" must be seen by who is to touch it
                stderr=None if somebody else subprocess.PIPE,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise UsageError(
                "ssh-keygen is not installed", hint="apt-get install openssh-client"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise MacdError(
                f"the key {key} did not sign within {_TIMEOUT_S} s",
                why="a passphrase prompt or a FIDO touch that nobody answered",
                hint=f"ssh-add {key}, then again",
            ) from error
        if done.returncode != 0:
            raise MacdError(
                f"the key {key} did not sign",
                why=(done.stderr or b"what ssh-keygen says above")
                .decode("utf-8", "replace")
                .strip(),
                hint="check its passphrase and permissions, or ssh-add it",
            )
        return document.with_name("payload.sig").read_bytes()
