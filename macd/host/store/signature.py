"""Who signed these bytes, and whose signature counts on this host.

OpenSSH's own `ssh-keygen -Y verify` verifies, before anything parses the bytes. The verifier never
comes out of a release. Whose signature counts is the host's policy, written by provision. A client
names what it expects, but the policy decides: another inventory, or a release for another
application or environment, can't get in by its own claim.
"""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, load

POLICY = "accepts.json"
REVOKED = "revoked.krl"
_NAMES = ("app", "env", "identity")
RELEASE_NAMESPACE = "release-manifest@macd"
GATE_NAMESPACE = "gate-report@macd"
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----\n", b"\n-----END SSH SIGNATURE-----\n"
_TIMEOUT_S = 30
_LIST = b"SSHKRL\n\0"  # the begin of a binary list; others are plain public keys


class SignatureError(ValueError):
    """Not signed by somebody we allow, for this purpose; the message says why."""


class RevokedError(SignatureError):
    """Correctly signed, but with a revoked key."""


def _is_plain(signature: bytes) -> bool:
    """Whether it is exactly an SSH signature of version 1, without a free bit.

    ssh-keygen accepts lower versions, trailing bytes and unused base64 bits. Those could be changed
    unseen.
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
    revoked: str | None = None,
) -> None:
    """Return if `signature` is `identity`'s over exactly `signed`, in `namespace`, now.

    Args:
        allowed_signers: path of an OpenSSH allowed_signers file (see ssh-keygen(1)).
        revoked: path of a key revocation list; None: there is none.

    Raises:
        SignatureError: anything else, a missing ssh-keygen, allowed_signers or list included.
    """
    if not os.path.isfile(allowed_signers):
        raise SignatureError("no allowed_signers at %s" % allowed_signers)
    if revoked is not None and not os.path.isfile(revoked):
        raise SignatureError("no list of revoked keys at %s" % revoked)
    if not _is_plain(signature):
        raise SignatureError("it is no SSH signature of version 1, or holds something else too")
    with tempfile.NamedTemporaryFile(prefix="macd-sig-") as held:
        held.write(signature)
        held.flush()
        words = ["-Y", "verify", "-f", allowed_signers, "-I", identity]
        words += ["-n", namespace, "-s", held.name]
        done = _keygen(words + (["-r", revoked] if revoked is not None else []), signed)
        if done.returncode == 0:
            return
        # ssh-keygen does not say that the list was the reason.
        if revoked is not None and _keygen(words, signed).returncode == 0:
            raise _revoked(revoked, signature)
    said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
    raise SignatureError(said or "ssh-keygen refused it with %d" % done.returncode)


def _revoked(revoked: str, signature: bytes) -> SignatureError:
    """Why the list refuses: it names the key, or it can't be read, which refuses everybody."""
    with open(revoked, "rb") as file:
        is_plain = file.read(len(_LIST)) != _LIST
    if is_plain or _lists(revoked, _key_of(signature)):
        return RevokedError("the key that signed it is revoked: %s names it" % revoked)
    return SignatureError("%s is no list of revoked keys that ssh-keygen can read" % revoked)


def _key_of(signature: bytes) -> bytes:
    """The public key in a signature that `_is_plain`, as a line of a .pub file."""
    payload = base64.b64decode(signature[len(_BEGIN) : -len(_END)].replace(b"\n", b""))
    key = _string(payload[len(b"SSHSIG") + 4 :])
    return _string(key) + b" " + base64.b64encode(key) + b"\n"


def _string(data: bytes) -> bytes:
    """A string of the SSH protocol at the beginning of `data` (RFC 4251, section 5)."""
    return data[4 : 4 + int.from_bytes(data[:4], "big")]


def _lists(revoked: str, key: bytes) -> bool:
    with tempfile.NamedTemporaryFile(prefix="macd-key-", suffix=".pub") as held:
        held.write(key)
        held.flush()
        return _keygen(["-Q", "-f", revoked, held.name], b"").returncode == 1


def _keygen(words: list[str], given: bytes) -> subprocess.CompletedProcess[bytes]:
    argv = ["ssh-keygen", *words]
    try:
        return subprocess.run(
            argv, input=given, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise SignatureError("ssh-keygen is not installed (package openssh-client)") from error
    except subprocess.TimeoutExpired as error:
        raise SignatureError("ssh-keygen gave no answer in %d s" % _TIMEOUT_S) from error


def accepts(layout: Layout) -> dict[str, Any]:
    """app, env, identity, and the SHA-256 of the list of revoked keys ("": there is none).

    Raises:
        HostError ("refused"): this host has no policy.
    """
    policy = load(layout.state(POLICY), {})
    if not isinstance(policy, dict) or not all(policy.get(name) for name in _NAMES):
        raise HostError(
            "this host has no policy: it does not know which releases it takes",
            why=f"{layout.state(POLICY)} is missing or incomplete",
            hint="invoke provision",
            live="unchanged",
            kind="refused",
        )
    return policy


def check_claim(layout: Layout, claimed: dict[str, str]) -> None:
    """Raises HostError ("refused"): the inventory takes this host for another one."""
    own = accepts(layout)
    differing = [name for name in _NAMES if claimed[name] != own[name]]
    if differing:
        name = differing[0]
        raise HostError(
            "this host is not what the inventory says",
            why=f"its {name} is {own[name]}, the inventory says {claimed[name]}",
            hint="check --inventory and --env; invoke provision makes it what the inventory says",
            live="unchanged",
            kind="refused",
        )


def check_signer(layout: Layout, claimed: str) -> str:
    """Whose signature counts here: the same identity for a gate report as for a release.

    The namespaces of allowed_signers say which key it must be.

    Raises:
        HostError ("refused"): the client names another signer, or this host has no policy.
    """
    own = str(accepts(layout)["identity"])
    if claimed != own:
        raise HostError(
            "this host does not take gate reports of that signer",
            why=f"it takes those of {own}, the inventory says {claimed!r:.200}",
            hint="check release.identity and --inventory; invoke provision makes the host take it",
            live="flags as before",
            kind="refused",
        )
    return own


def revocations(layout: Layout) -> str | None:
    """The path of the list of revoked keys; None where provision wrote none.

    Raises:
        SignatureError: it is not the provisioned one, so no signature can count.
    """
    path = layout.state(REVOKED)
    wanted = str(accepts(layout).get("revoked", ""))
    if not wanted and not os.path.lexists(path):
        return None
    try:
        actual = durable.sha256_of(path)
    except OSError as error:
        raise SignatureError(
            f"the list of revoked keys can't be read ({error.strerror}: {path}); invoke provision"
        ) from error
    if actual != wanted:
        raise SignatureError(f"{path} is not as provisioned; invoke provision")
    return path
