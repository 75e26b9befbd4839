"""A small real release on disk: files, manifest, signature by a key made for the test."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from macd.host.store.manifest import File, Manifest, render
from macd.release.signing import sign

CREATED = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
IDENTITY = "release@test"
CONTENT = {
    "app/macd.whl": b"wheel " * 50,
    "data/ml_models/lgbm_1h_5h.txt": b"tree\n" * 400,
    "data/ml_models/stacking_meta_1h.json": b'{"n_oof_samples": 12}\n',
}


@dataclass(frozen=True)
class Made:
    directory: Path
    manifest: Manifest
    raw: bytes
    signature: bytes
    key: Path
    allowed_signers: Path


def make_key(directory: Path, name: str = "key") -> Path:
    key = directory / name
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True
    )
    return key


def make_release(directory: Path, content: dict[str, bytes] | None = None) -> Made:
    release = directory / "release"
    files = []
    for path, data in sorted((content or CONTENT).items()):
        (release / path).parent.mkdir(parents=True, exist_ok=True)
        (release / path).write_bytes(data)
        files.append(File(path, len(data), hashlib.sha256(data).hexdigest()))
    manifest = Manifest(
        app="macd-analysis",
        env="prod",
        serial=7,
        created=CREATED,
        expires=CREATED + timedelta(days=30),
        files=tuple(files),
        lock="a" * 64,
        details={"note": "测试", "auc": 0.58},
    )
    raw = render(manifest)
    key = make_key(directory)
    signature = sign(raw, key=key)
    (release / "manifest.json").write_bytes(raw)
    (release / "manifest.json.sig").write_bytes(signature)
    public = key.with_suffix(".pub").read_text().strip()
    signers = directory / "allowed_signers"
    signers.write_text(f'{IDENTITY} namespaces="release-manifest@macd" {public}\n')
    return Made(release, manifest, raw, signature, key, signers)
