"""Only the allowed key, for this purpose, over exactly these bytes, and still valid."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.host.store.signature import GATE_NAMESPACE, RevokedError, SignatureError, verify
from macd.release.signing import sign
from tests.support.signed_files import IDENTITY, Made, make_key, make_release


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("signed"))


def _verify(made: Made, **changes: object) -> None:
    values: dict[str, object] = {
        "signed": made.raw,
        "signature": made.signature,
        "allowed_signers": str(made.allowed_signers),
        "identity": IDENTITY,
    }
    values.update(changes)
    verify(values.pop("signed"), values.pop("signature"), **values)  # type: ignore[arg-type]


def test_the_real_one_passes(made: Made) -> None:
    _verify(made)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.full)])
def test_every_changed_byte_of_the_manifest_is_refused(made: Made, step: int) -> None:
    for position in range(0, len(made.raw), step):
        changed = bytearray(made.raw)
        changed[position] ^= 0x01
        with pytest.raises(SignatureError):
            _verify(made, signed=bytes(changed))


def test_every_changed_byte_of_the_signature_is_refused(made: Made) -> None:
    """Its frame, its line ends and its version (that nobody signs) too."""
    for position in range(len(made.signature)):
        changed = bytearray(made.signature)
        changed[position] ^= 0x01
        with pytest.raises(SignatureError):
            _verify(made, signature=bytes(changed))


def test_nothing_stands_around_a_signature(made: Made) -> None:
    for changed in (b"x\n" + made.signature, made.signature + b"x", made.signature.rstrip()):
        with pytest.raises(SignatureError):
            _verify(made, signature=changed)


def test_other_keys_names_and_purposes_are_refused(made: Made, tmp_path: Path) -> None:
    stranger = make_key(tmp_path, "stranger")
    public = made.key.with_suffix(".pub").read_text().strip()
    expired = tmp_path / "expired"
    expired.write_text(f'{IDENTITY} valid-before="20200101" {public}\n')
    bad = [
        {"signature": sign(made.raw, key=stranger)},
        {"signature": sign(made.raw, key=made.key, namespace=GATE_NAMESPACE)},
        {"signature": sign(made.raw, key=made.key, namespace="file")},
        {"signature": b""},
        {"signature": b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n"},
        {"signed": made.raw + b"\n"},
        {"identity": "somebody@else"},
        {"namespace": GATE_NAMESPACE},
        {"allowed_signers": str(expired)},
        {"allowed_signers": str(tmp_path / "missing")},
    ]
    for changes in bad:
        with pytest.raises(SignatureError):
            _verify(made, **changes)


def test_a_revoked_key_is_refused(made: Made, tmp_path: Path) -> None:
    krl = tmp_path / "revoked.krl"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", krl, f"{made.key}.pub"], check=True)
    public = made.key.with_suffix(".pub")
    for listed in (krl, public):  # a plain list of public keys is one too
        with pytest.raises(RevokedError, match=f"is revoked: {listed} names it"):
            _verify(made, revoked=str(listed))
        with pytest.raises(SignatureError) as also_forged:
            _verify(made, signed=made.raw + b"\n", revoked=str(listed))
        assert not isinstance(also_forged.value, RevokedError)
    krl.write_bytes(krl.read_bytes()[:30])
    with pytest.raises(SignatureError, match="is no list of revoked keys that ssh-keygen can read"):
        _verify(made, revoked=str(krl))
    with pytest.raises(SignatureError, match="no list of revoked keys at"):
        _verify(made, revoked=str(tmp_path / "none.krl"))


def test_a_missing_or_locked_key_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no signing key"):
        sign(b"x", key=tmp_path / "nothing")
    locked = tmp_path / "locked"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", locked], check=True
    )
    with pytest.raises(MacdError, match="did not sign"):
        sign(b"x", key=locked)


def test_the_keys_own_prompt_is_seen_by_who_is_to_answer_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin/ssh-keygen"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Confirm user presence for key ED25519-SK' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "key").touch()
    for at_a_terminal in (True, False):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda answer=at_a_terminal: answer)
        with pytest.raises(MacdError) as caught:
            sign(b"x", key=tmp_path / "key")
        shown = "Confirm user presence" in capfd.readouterr().err
        assert shown is at_a_terminal
        assert ("Confirm user presence" in caught.value.why) is not at_a_terminal


def test_a_key_that_only_an_agent_holds_signs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public half is named; the private one is in a real ssh-agent and nowhere on the disk."""
    with tempfile.TemporaryDirectory(prefix="macd-a-") as short:  # a socket's path is limited
        where = Path(short, "s")
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL)
        try:
            while not where.exists():
                assert agent.poll() is None
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(where))
            public = Path(shutil.copy(made.key.with_suffix(".pub"), tmp_path / "held.pub"))
            with pytest.raises(MacdError, match="did not sign"):
                sign(made.raw, key=public)
            subprocess.run(["ssh-add", "-q", made.key], check=True)
            _verify(made, signature=sign(made.raw, key=public))
        finally:
            agent.terminate()
            agent.wait()
