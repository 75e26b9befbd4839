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
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----\n", b"\n-----END SSH SIGNATURE-----\n"
_TIMEOUT_S = 30


class SignatureError(ValueError):
    """Not signed by somebody we allow, for this purpose; the message says why."""


def _is_plain(signature: bytes) -> bool:
    """Exactly an SSH signature of version 1, each of its bits in its one place.

    ssh-keygen takes a lower version for 1, and leaves unread what follows and what base64 leaves
    over; what nobody signed could be changed there unseen.
    """
    if not (signature.startswith(_BEGIN) and signature.endswith(_END)):
        return False
    body = signature[len(_BEGIN) : -len(_END)].replace(b"\n", b"")
    try:
        payload = base64.b64decode(body, validate=True)
    except ValueError:
        return False
    return payload.startswith(b"SSHSIG\0\0\0\1") and base64.b64encode(payload) == body


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
    if not _is_plain(signature):
        raise SignatureError("it is no SSH signature of version 1, or something stands around it")
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
