"""Accept signed releases, store them whole, and check them to the last byte."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import Layout, discard, live_release, load, save
from macd.host.own import SOURCE
from macd.host.rpc import blobs
from macd.host.store import signature
from macd.host.store.manifest import (
    Manifest,
    ManifestError,
    check_path,
    check_release_id,
    parse,
    release_id,
)

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
RUNTIME_LINK = "runtime"
ENVIRONMENT = "release.env"  # of an own application: what its process has, and proves itself by
_OURS = {MANIFEST, SIGNATURE}
_STAGE, _TRASH = ".stage-", ".trash-"


def _refused(what: str, why: str, hint: str) -> HostError:
    return HostError(what, why=why, hint=hint, kind="refused", live="unchanged")


def accept(
    layout: Layout, raw: bytes, signed: bytes, claimed: dict[str, str], *, now: float
) -> tuple[str, Manifest]:
    """Verify, then parse, then judge a manifest; returns its release id and its values.

    Args:
        claimed: app, env and identity of this host, as the client's inventory has them.

    Raises:
        HostError ("refused"): not signed by an allowed key, not for here, expired, or replayed;
            or the inventory takes this host for another one.
    """
    signature.check_claim(layout, claimed)
    try:
        signature.verify(
            raw,
            signed,
            allowed_signers=layout.state("allowed_signers"),
            identity=claimed["identity"],
            revoked=signature.revocations(layout),
        )
        manifest = parse(raw)
    except signature.SignatureError as error:
        hint = "sign with the key provisioned here, or provision the new key"
        if isinstance(error, signature.RevokedError):
            hint = "invoke release makes one again, signed with a key that is not revoked"
        raise _refused("the release's signature was refused", str(error), hint) from error
    except ManifestError as error:
        raise _refused("the manifest was refused", str(error), "invoke release") from error
    for field in ("app", "env"):
        actual = getattr(manifest, field)
        if actual != claimed[field]:
            why = f"it was made for {field} {actual}, this host is {claimed[field]}"
            raise _refused("the release is not for this host", why, "invoke release for this env")
    if now > manifest.expires.timestamp():
        why = f"it expired {manifest.expires:%Y-%m-%d %H:%M} UTC"
        raise _refused("the release has expired", why, "invoke release makes a new one")
    identifier = release_id(raw)
    highest = load(layout.state("serial.json"), {"serial": 0, "release": ""})
    replayed = manifest.serial < highest["serial"] or (
        manifest.serial == highest["serial"] and identifier != highest["release"]
    )
    if replayed and identifier != live_release(layout):  # the live release may be restarted
        why = f"its serial {manifest.serial} is not above {highest['serial']}, seen here before"
        hint = "older releases come back by invoke rollback only"
        raise _refused("an older release was offered as a new one", why, hint)
    return identifier, manifest


def remember_serial(layout: Layout, identifier: str, serial: int) -> None:
    """Never accept a lower serial again. Durable before the release can become live."""
    highest = load(layout.state("serial.json"), {"serial": 0, "release": ""})
    if serial > highest["serial"]:
        save(layout.state("serial.json"), {"serial": serial, "release": identifier})


def stage(layout: Layout, identifier: str, raw: bytes, signed: bytes) -> None:
    """Build releases/<id> from the blobs that arrived; whole and durable, or not there.

    Raises:
        HostError: a blob is missing or damaged (it is removed, to be sent again).
    """
    target = layout.release(identifier)
    manifest = parse(raw)
    _refuse_unwritable(layout, manifest)
    if os.path.isdir(target):
        try:
            changed = damage(layout, identifier)
        except HostError as error:
            changed = str(error)
        if not changed:
            return
        if live_release(layout) == identifier:
            raise HostError(
                f"the live release {identifier} was changed on the host",
                why=changed,
                hint="deploy a new release, or roll back",
                kind="refused",
            )
        remove(layout, identifier)
    building = os.path.join(layout.releases, _STAGE + identifier)
    shutil.rmtree(building, ignore_errors=True)
    try:
        _build(layout, building, manifest, raw, signed)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    os.rename(building, target)
    durable.sync_directory(layout.releases)


def _refuse_unwritable(layout: Layout, manifest: Manifest) -> None:
    """Raises HostError ("refused"): a directory that an own application writes is not there."""
    lacking = [path for path in writes_of(manifest) if not os.path.isdir(f"{layout.app}/{path}")]
    if lacking:
        why = f"it writes {', '.join(lacking)}, which {layout.app} does not have"
        raise _refused("the release has nowhere to write", why, "invoke provision makes it")


def _build(layout: Layout, building: str, manifest: Manifest, raw: bytes, signed: bytes) -> None:
    os.mkdir(building)
    directories = {building}
    for file in manifest.files:
        path = os.path.join(building, file.path)
        directories |= _make_parents(building, file.path)
        link_blob(layout, file.sha256, path, file.path)
    links, files = _made_here(os.path.basename(building).removeprefix(_STAGE), manifest)
    for link, leads_to in links.items():
        directories |= _make_parents(building, link)
        os.symlink(leads_to, os.path.join(building, link))
    for name, data in files.items():
        durable.replace_file(os.path.join(building, name), data)
    durable.replace_file(os.path.join(building, SIGNATURE), signed)
    durable.replace_file(os.path.join(building, MANIFEST), raw)
    for directory in sorted(directories, key=len, reverse=True):
        durable.sync_directory(directory)


def own_of(manifest: Manifest) -> dict[str, Any] | None:
    """What a release of an application of the team's own says of it; None for the built-in one."""
    own = manifest.details.get("own")
    return own if isinstance(own, dict) else None


def writes_of(manifest: Manifest) -> tuple[str, ...]:
    """The directories below the application's that a release's own code may write.

    Raises:
        HostError ("refused"): they lead out of it, hold one another, or are among its files.
    """
    listed = (own_of(manifest) or {}).get("writes", [])
    try:
        places = [check_path(f"{SOURCE}/{path}") for path in listed]
        for place in places:
            others = [*(other for other in places if other != place), *_paths(manifest)]
            if any(
                f"{a}/".startswith(f"{b}/") for o in others for a, b in ((o, place), (place, o))
            ):
                raise ManifestError("writes: %r is among the release's files" % place)
    except (ManifestError, TypeError) as error:
        raise _refused("the manifest was refused", str(error), "invoke release") from error
    return tuple(map(str, listed))


def _paths(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


def _made_here(identifier: str, manifest: Manifest) -> tuple[dict[str, str], dict[str, bytes]]:
    """What the host adds to a release: links and their targets; to an own one also files."""
    links = {RUNTIME_LINK: os.path.join("..", "..", "runtimes", manifest.lock)}
    if own_of(manifest) is None:
        return links, {}
    for path in writes_of(manifest):
        up = [".."] * (3 + path.count("/"))  # releases/<id>/source, and the directories in path
        links[f"{SOURCE}/{path}"] = os.path.join(*up, path)
    return links, {ENVIRONMENT: f"MACD_RELEASE={identifier}\n".encode()}


def _make_parents(top: str, relative: str) -> set[str]:
    made = set()
    directory = os.path.dirname(os.path.join(top, relative))
    while directory != top:
        made.add(directory)
        directory = os.path.dirname(directory)
    os.makedirs(os.path.dirname(os.path.join(top, relative)), exist_ok=True)
    return made


def link_blob(layout: Layout, sha256: str, path: str, name: str) -> None:
    """Link the blob of the file `name` to `path`, after its bytes were hashed again.

    Raises:
        HostError: it is missing or damaged (it is removed, to be sent again).
    """
    blob = blobs.path_of(layout.app, sha256)
    if not os.path.exists(blob):
        raise HostError(f"{name} is not on the host", hint="deploy again; it is sent then")
    if durable.sha256_of(blob) != sha256:
        raise damaged_blob(layout, sha256, name)
    durable.link_or_copy(blob, path)


def damaged_blob(layout: Layout, sha256: str, name: str) -> HostError:
    """Remove a blob that does not have its hash; returns what to raise."""
    discard(blobs.path_of(layout.app, sha256))
    return HostError(
        f"{name} was damaged on the host's disk",
        why=f"the blob's content no longer has its hash {sha256}; the blob was removed",
        live="unchanged",
        hint="deploy again; the blob is sent anew",
    )


def read_manifest(layout: Layout, identifier: str) -> Manifest:
    """The manifest of a release on this host.

    Raises:
        HostError: there is none, or it is not the one the id names.
    """
    try:
        raw = Path(layout.release(identifier), MANIFEST).read_bytes()
        if release_id(raw) != identifier:
            raise ManifestError("its hash is not the one in the release's name")
        return parse(raw)
    except FileNotFoundError as error:
        raise HostError(f"release {identifier} is not on this host") from error
    except ManifestError as error:
        raise HostError(f"the manifest of {identifier} was changed", why=str(error)) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise HostError(f"the manifest of {identifier} can't be read", why=why) from error


def damaged(layout: Layout) -> dict[str, str]:
    """The releases here whose manifest can't be read any more, and why."""
    problems = {}
    for identifier in on_host(layout):
        try:
            read_manifest(layout, identifier)
        except HostError as error:
            problems[identifier] = f"{error}: {error.why}" if error.why else str(error)
    return problems


def manifest_sha256(layout: Layout, identifier: str) -> str:
    """The SHA-256 of a release's manifest as it is on the disk."""
    return durable.sha256_of(os.path.join(layout.release(identifier), MANIFEST))


def differences(layout: Layout, identifier: str) -> dict[str, list[str]]:
    """How a release on disk differs from its manifest: extra, missing and changed paths."""
    top = layout.release(identifier)
    manifest = read_manifest(layout, identifier)
    present = _plain_files(top)
    declared = {file.path: file for file in manifest.files}
    links, files = _made_here(identifier, manifest)
    ours = {**links, **files}
    changed = [
        path
        for path, file in declared.items()
        if path in present and not _is_intact(os.path.join(top, path), file.size, file.sha256)
    ]
    paths = {path: os.path.join(top, path) for path in ours if path in present}
    changed += [p for p in links if p in paths and _target(paths[p]) != links[p]]
    changed += [p for p in files if p in paths and durable.regular(paths[p]) != files[p]]
    return {
        "extra": sorted(present - set(declared) - _OURS - set(ours)),
        "missing": sorted({*declared, *ours} - present),
        "changed": sorted(changed),
    }


def _target(path: str) -> str:
    return os.readlink(path) if os.path.islink(path) else ""


def damage(layout: Layout, identifier: str) -> str:
    """`differences` in words; "" where there are none."""
    parts = differences(layout, identifier)
    return "; ".join(f"{kind}: {', '.join(paths)}" for kind, paths in parts.items() if paths)


def _plain_files(top: str) -> set[str]:
    """Everything but directories; a link to one counts too."""
    paths = set()
    for directory, inner, names in os.walk(top):
        linked = [name for name in inner if os.path.islink(os.path.join(directory, name))]
        for name in [*names, *linked]:
            paths.add(os.path.relpath(os.path.join(directory, name), top))
    return paths


def _is_intact(path: str, size: int, sha256: str) -> bool:
    status = os.lstat(path)
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == size
        and durable.sha256_of(path) == sha256
    )


def on_host(layout: Layout) -> list[str]:
    """Ids of the releases on this host, oldest first."""
    ids = []
    for name in os.listdir(layout.releases) if os.path.isdir(layout.releases) else []:
        with contextlib.suppress(ManifestError):
            ids.append(check_release_id(name))
    return sorted(ids)


def remove(layout: Layout, identifier: str) -> None:
    """Remove a release; it is renamed first, so that no half of it can be chosen."""
    if live_release(layout) == identifier:
        raise HostError(f"{identifier} is live and is not removed", kind="refused")
    durable.set_aside(layout.release(identifier), _TRASH)


def rollback_target(
    history: list[dict[str, Any]], live: str | None, bad: Iterable[str] = ()
) -> str | None:
    """The last good release that this host committed before the live one, never by name or time.

    Releases that were rolled back from (abandoned) or that are `bad` don't count.

    Args:
        history: the entries of committed.json, oldest first.
    """
    for entry in reversed(history):
        release = str(entry["release"])
        if release != live and not entry.get("abandoned") and release not in bad:
            return release
    return None
