"""What stays on the host after a deploy, and how the rest is removed: never half of a thing.

A damaged release does not stop the removal of others. What can't be read stays, and
`releases.damaged` names it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time

from macd.host import durable
from macd.host.deploy import ledger
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, load
from macd.host.store import releases

_LEFTOVERS = (".stage-", ".trash-", ".building-")
_TRASH = ".trash-"
_PARTIAL_S = 86400.0  # for so long an interrupted upload may be continued


def to_keep(layout: Layout, keep: int) -> set[str]:
    """The live release, its rollback target, `keep` more good ones, and failed ones to study.

    A failed release, or one that was rolled back from, never takes the place of a good one.
    """
    here = set(releases.on_host(layout))
    history = ledger.history(layout)
    bad = [entry["release"] for entry in ledger.bad_releases(layout)]
    live = live_release(layout)
    good: list[str] = []
    dropped: list[str] = []
    for entry in reversed(history):
        kind = dropped if entry.get("abandoned") or entry["release"] in bad else good
        if entry["release"] not in good + dropped:
            kind.append(entry["release"])
    target = releases.rollback_target(history, live, bad)
    spare = [release for release in good if release in here and release not in (live, target)][
        : max(keep, 0)
    ]
    failed = [release for release in bad if release in here][-1:]
    left = [release for release in dropped if release in here][:1]
    return here & {*spare, *failed, *left, *(release for release in (target, live) if release)}


def retire(layout: Layout, keep: set[str]) -> list[str]:
    """Remove releases, runtimes, snapshots and blobs that `keep` does not need; returns the ids.

    What can't be removed now stays for the next time. The caller prevents staging meanwhile.
    """
    removed = []
    live = live_release(layout)
    for identifier in releases.on_host(layout):
        if identifier not in keep and identifier != live:
            with contextlib.suppress(OSError):
                releases.remove(layout, identifier)
                removed.append(identifier)
    here = releases.on_host(layout)
    _drop_runtimes(layout, {_lock_of(layout, identifier) for identifier in here})
    for directory in (layout.releases, layout.runtimes):
        for name in os.listdir(directory):
            if name.startswith(_LEFTOVERS):
                _discard_tree(os.path.join(directory, name))
    committed = {entry["release"] for entry in ledger.history(layout)}
    for name in os.listdir(layout.state("snapshots")):
        release = name[: -len(".json")]
        if name.endswith(".json") and release in committed and release not in here:
            with contextlib.suppress(OSError):
                os.unlink(layout.state("snapshots", name))
    _drop_blobs(
        layout, {sha256 for identifier in here for sha256 in _wheels_of(layout, identifier)}
    )
    return removed


def _drop_runtimes(layout: Layout, needed: set[str]) -> None:
    """Renamed first: half a runtime under its name would be taken for a whole one."""
    for name in os.listdir(layout.runtimes):
        if name not in needed and not name.startswith("."):
            with contextlib.suppress(OSError):
                durable.set_aside(os.path.join(layout.runtimes, name), _TRASH)


def _lock_of(layout: Layout, identifier: str) -> str:
    """The runtime that a release needs; by its link where the manifest can't be read."""
    try:
        return releases.read_manifest(layout, identifier).lock
    except HostError:
        link = os.path.join(layout.release(identifier), releases.RUNTIME_LINK)
        return os.path.basename(os.readlink(link)) if os.path.islink(link) else ""


def _wheels_of(layout: Layout, identifier: str) -> list[str]:
    """Hashes of its wheels; none where the lock is damaged: such a release must be sent again."""
    try:
        lock = load(os.path.join(layout.release(identifier), "lock.json"), {"wheels": []})
        return [str(wheel["sha256"]) for wheel in lock["wheels"]]
    except (HostError, OSError, KeyError, TypeError):
        return []


def _discard_tree(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(path)


def _drop_blobs(layout: Layout, needed: set[str]) -> None:
    top = os.path.join(layout.app, "blobs")
    for directory, _, names in os.walk(os.path.join(top, "sha256")):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if name not in needed and os.lstat(path).st_nlink == 1:
                    os.unlink(path)
    for directory, _, names in os.walk(os.path.join(top, ".partial")):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(path).st_mtime > _PARTIAL_S:
                    os.unlink(path)


def tidy(layout: Layout, keep: int, also: str) -> None:
    """Remove what nothing needs; `also` stays for now.

    Errors are ignored: a damaged release or a failing disk must not keep an activation pending.
    """
    with contextlib.suppress(OSError, HostError, ValueError, KeyError):
        retire(layout, to_keep(layout, keep) | {also})
