"""Is a release or bundle still exactly what was signed? What is not, is named in three lists."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from macd.errors import RefusedError, UsageError
from macd.host.durable import sha256_of
from macd.host.store import signature
from macd.host.store.manifest import File, Manifest, ManifestError, parse, release_id
from macd.release.bundle import (
    MANIFEST,
    SIGNATURE,
    BundleError,
    bundle_name,
    check_nothing_else,
    read_head,
    unpack,
)


@dataclass(frozen=True)
class Signers:
    """Whose signature counts. revoked: an OpenSSH key revocation list, or None."""

    allowed: Path
    identity: str
    revoked: Path | None = None

    def verify(
        self, signed: bytes, by: bytes, namespace: str = signature.RELEASE_NAMESPACE
    ) -> None:
        """Return if the signature `by` is theirs over exactly `signed`. Raises SignatureError."""
        signature.verify(
            signed,
            by,
            allowed_signers=str(self.allowed),
            identity=self.identity,
            namespace=namespace,
            revoked=str(self.revoked) if self.revoked else None,
        )


@dataclass(frozen=True)
class Report:
    """How a release differs from its manifest; paths, sorted. No difference: all empty."""

    id: str
    files: int
    extra: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.extra or self.missing or self.changed)


def directory(place: Path, signers: Signers) -> Report:
    """Check releases/<id>: signature, manifest, every file, and the bundle beside them.

    Raises:
        RefusedError: its signature is missing or not one of ours, or the manifest isn't one.
    """
    head = [place / MANIFEST, place / SIGNATURE]
    absent = [path.name for path in head if not path.is_file()]
    if absent:
        raise _refused(place.name, f"{' and '.join(absent)} missing")
    raw, manifest = _signed(place.name, head[0].read_bytes(), head[1].read_bytes(), signers)
    identifier = release_id(raw)
    if place.name != identifier:
        raise _refused(place.name, f"its manifest is that of {identifier}")
    archive = bundle_name(manifest)
    present = {
        str(p.relative_to(place)) for p in place.rglob("*") if not p.is_dir() or p.is_symlink()
    }
    declared = {file.path: file for file in manifest.files}
    changed = [path for path in declared if path in present and not _intact(place, declared[path])]
    missing = sorted(set(declared) - present)
    if archive not in present:
        missing.append(archive)
    elif not _same_bundle(place / archive, raw, head[1].read_bytes(), manifest):
        changed.append(archive)
    extra = present - set(declared) - {MANIFEST, SIGNATURE, archive}
    return Report(
        identifier, len(declared), tuple(sorted(extra)), tuple(missing), tuple(sorted(changed))
    )


def bundle(path: Path, signers: Signers) -> Report:
    """Check a bundle file: signature before anything is parsed, then every file in it.

    Raises:
        RefusedError: signature or manifest are not good.
        BundleError: a file in it is not what the manifest says; nothing was kept.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no release and no file {path}", hint="invoke release.list shows the releases"
        )
    with path.open("rb") as archive, tempfile.TemporaryDirectory(prefix="macd-verify-") as where:
        raw, signed = read_head(archive)
        raw, manifest = _signed(path.name, raw, signed, signers)
        _check(archive, raw, signed, manifest, Path(where))
    return Report(release_id(raw), len(manifest.files))


def _signed(name: str, raw: bytes, signed: bytes, signers: Signers) -> tuple[bytes, Manifest]:
    try:
        signers.verify(raw, signed)
        return raw, parse(raw)
    except signature.RevokedError as error:
        raise _refused(name, str(error), "is revoked") from error
    except (signature.SignatureError, ManifestError) as error:
        raise _refused(name, str(error)) from error


def _same_bundle(path: Path, raw: bytes, signed: bytes, manifest: Manifest) -> bool:
    """Whether it is the bundle of this very release, signature and all, and nothing besides."""
    try:
        with path.open("rb") as archive, tempfile.TemporaryDirectory(prefix="macd-") as where:
            _check(archive, raw, signed, manifest, Path(where))
    except BundleError:
        return False
    return True


def _check(archive: IO[bytes], raw: bytes, signed: bytes, manifest: Manifest, where: Path) -> None:
    unpack(archive, manifest, where)
    (where / MANIFEST).write_bytes(raw)
    (where / SIGNATURE).write_bytes(signed)
    check_nothing_else(archive, where, manifest)


def _intact(place: Path, file: File) -> bool:
    target = place / file.path
    if target.is_symlink() or not target.is_file() or target.stat().st_size != file.size:
        return False
    return sha256_of(target) == file.sha256


def _refused(
    name: str, why: str, what: str = "is not signed by a key that is allowed to"
) -> RefusedError:
    return RefusedError(
        f"{name} {what}",
        why=why,
        live="nothing was changed",
        hint="don't deploy it; invoke release makes one, signed with release.sign_key",
    )
