"""The keys that sign releases and gate reports, and the file of who may sign."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from macd.errors import MacdError
from macd.host.durable import replace_file
from macd.inventory import Inventory

_SPACES = {"sign_key": "release-manifest@macd", "gate_key": "gate-report@macd"}


def missing(inventory: Inventory) -> list[Path]:
    """Keys that the inventory names and that are not there."""
    return [key for key in _named(inventory).values() if not key.exists()]


def make(inventory: Inventory) -> list[str]:
    """Make the missing keys, and enter all of them into allowed_signers; what was done.

    No file that is there is overwritten; allowed_signers gets the lines that it lacks.
    """
    done = []
    for key in missing(inventory):
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _generate(key, f"{key.name} for macd")
        done.append(f"made the key {key}")
    signers = inventory.release.allowed_signers
    if signers is None:
        return done
    before = signers.read_text(encoding="utf-8") if signers.exists() else ""
    lines = [line for line in _lines(inventory) if line.split()[-1] not in before.split()]
    if lines:
        ending = "" if not before or before.endswith("\n") else "\n"
        text = f"{before}{ending}" + "".join(f"{line}\n" for line in lines)
        replace_file(signers, text.encode(), parents=True)
        done.append(f"entered {len(lines)} keys into {signers}")
    return done


def _named(inventory: Inventory) -> dict[str, Path]:
    keys = {name: getattr(inventory.release, name) for name in _SPACES}
    return {name: key for name, key in keys.items() if key is not None}


def _lines(inventory: Inventory) -> list[str]:
    """One line for each key: the signer, what it may sign, its public half."""
    lines = []
    for name, key in _named(inventory).items():
        public = key.with_name(f"{key.name}.pub")
        if public.is_file():
            kind, blob = public.read_text(encoding="utf-8").split()[:2]
            who = inventory.release.identity
            lines.append(f'{who} namespaces="{_SPACES[name]}" {kind} {blob}')
    return lines


def _generate(key: Path, comment: str) -> None:
    """The private half comes last: with it, the pair counts as made."""
    with tempfile.TemporaryDirectory(dir=key.parent, prefix=f".{key.name}-") as directory:
        new = Path(directory) / "key"
        _keygen(new, key, comment)
        new.with_name("key.pub").rename(key.with_name(f"{key.name}.pub"))
        new.rename(key)


def _keygen(new: Path, key: Path, comment: str) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MacdError(f"the key {key} could not be made", why=str(error)) from error
    if done.returncode != 0:
        why = (done.stderr or done.stdout).strip()
        hint = "make it with ssh-keygen -t ed25519, then type invoke init again"
        raise MacdError(f"the key {key} could not be made", why=why, hint=hint)
