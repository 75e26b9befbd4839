"""Say who signed these bytes, by OpenSSH's own `ssh-keygen -Y verify`, before anything parses them.

Needs nothing but the standard library and ssh-keygen: the verifier never comes out of the bundle.
"""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from typing import Optional

RELEASE_NAMESPACE = "release-manifest@macd"
GATE_NAMESPACE = "gate-report@macd"
_TIMEOUT_S = 30


class SignatureError(ValueError):
    """Not signed by somebody we allow, for this purpose; the message says why."""


def _is_version_1(signature: bytes) -> bool:
    """The version's byte is signed by nobody, and ssh-keygen takes a lower one for 1."""
    head = b"".join(signature.splitlines()[1:])[:16]
    try:
        return base64.b64decode(head).startswith(b"SSHSIG\0\0\0\1")
    except ValueError:
        return False


def verify(
    signed: bytes,
    signature: bytes,
    *,
    allowed_signers: str,
    identity: str,
    namespace: str = RELEASE_NAMESPACE,
    revoked: Optional[str] = None,
) -> None:
    """Return if `signature` is `identity`'s over exactly `signed`, in `namespace`, now.

    Args:
        allowed_signers: path of an OpenSSH allowed_signers file (see ssh-keygen(1)).
        revoked: path of a key revocation list; None where there is none to ask.

    Raises:
        SignatureError: anything else, a missing ssh-keygen, allowed_signers or list included.
    """
    if not os.path.isfile(allowed_signers):
        raise SignatureError("no allowed_signers at %s" % allowed_signers)
    if revoked is not None and not os.path.isfile(revoked):
        raise SignatureError("no list of revoked keys at %s" % revoked)
    if not _is_version_1(signature):
        raise SignatureError("it is no SSH signature of version 1")
    with tempfile.NamedTemporaryFile(prefix="macd-sig-") as held:
        held.write(signature)
        held.flush()
        argv = ["ssh-keygen", "-Y", "verify", "-f", allowed_signers, "-I", identity]
        argv += ["-n", namespace, "-s", held.name]
        if revoked is not None:
            argv += ["-r", revoked]
        try:
            done = subprocess.run(
                argv, input=signed, capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError as error:
            raise SignatureError("ssh-keygen is not installed (package openssh-client)") from error
        except subprocess.TimeoutExpired as error:
            raise SignatureError("ssh-keygen gave no answer in %d s" % _TIMEOUT_S) from error
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
        raise SignatureError(said or "ssh-keygen refused it with %d" % done.returncode)
