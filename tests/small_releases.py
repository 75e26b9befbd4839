"""Small signed releases in a project's releases/, whose service is real HTTP in pure stdlib."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from macd.host.manifest import File, Manifest, release_id, render
from macd.inventory import Inventory
from macd.release.signing import sign
from tests.deployment import EMPTY_LOCK, SERVICE
from tests.unit.release.releases import make_key

_SETTINGS = "json.load(open(root + '/service.json'))['endpoint'].removeprefix('unix:')"


def make_keys(inventory: Inventory) -> None:
    """The signing key and the allowed_signers file that the inventory names, if missing."""
    key, signers = inventory.release.sign_key, inventory.release.allowed_signers
    assert key is not None
    assert signers is not None
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        make_key(key.parent, key.name)
    if signers.exists():
        return
    public = key.with_suffix(".pub").read_text().strip()
    who = inventory.release.identity
    signers.write_text(f'{who} namespaces="release-manifest@macd" {public}\n')


def make(inventory: Inventory, serial: int, variant: str = "good", *, extra: bytes = b"") -> str:
    """Put a signed release into releases/; returns its id. Variants: see tests/deployment.py."""
    code = SERVICE.format(variant=variant, endpoint="ENDPOINT").replace("'ENDPOINT'", _SETTINGS)
    files = {
        "app/serve.py": code.encode(),
        "lock.json": EMPTY_LOCK,
        "data/ml_models/model.txt": f"model {serial}".encode() * 40 + extra,
        "data/ml_models/shared.txt": b"the same in every release\n" * 100,
    }
    created = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=serial)
    manifest = Manifest(
        app="macd-analysis",
        env="prod",
        serial=serial,
        created=created,
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        files=tuple(
            File(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
        lock=hashlib.sha256(EMPTY_LOCK).hexdigest(),
        details={"variant": variant, "run": f"run-{serial}", "data_digest": "d" * 64},
    )
    raw = render(manifest)
    key = inventory.release.sign_key
    assert key is not None
    directory = inventory.root / "releases" / release_id(raw)
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    (directory / "manifest.json").write_bytes(raw)
    (directory / "manifest.json.sig").write_bytes(sign(raw, key=key))
    return directory.name
