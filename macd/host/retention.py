"""What stays on the host after a deploy, and how the rest goes: never half of a thing in view."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import List, Set

from macd.host import durable, ledger, releases
from macd.host.failure import HostError
from macd.host.layout import Layout, live_release, load

_LEFTOVERS = (".stage-", ".trash-", ".building-")
_TRASH = ".trash-"
_PARTIAL_KEPT_S = 86400.0  # an upload that was cut may be taken up again for so long


def worth_keeping(layout: Layout, keep: int) -> "Set[str]":
    """The live release, its way back, `keep` good ones more, and one that failed, to be studied.

    A failed release, or one that was rolled back from, never takes the place of a good one.
    """
    here = set(releases.on_host(layout))
    history = ledger.history(layout)
    bad = [entry["release"] for entry in ledger.bad_releases(layout)]
    live = live_release(layout)
    good: List[str] = []
    dropped: List[str] = []
    for entry in reversed(history):
        shelf = dropped if entry.get("abandoned") or entry["release"] in bad else good
        if entry["release"] not in good + dropped:
            shelf.append(entry["release"])
    target = releases.rollback_target(history, live, bad)
    kept = [one for one in good if one in here and one not in (live, target)][: max(keep, 0)]
    failed = [one for one in bad if one in here][-1:]
    left = [one for one in dropped if one in here][:1]
    return here & {*kept, *failed, *left, *(one for one in (target, live) if one)}


def retire(layout: Layout, keep: Set[str]) -> List[str]:
    """Remove releases, runtimes, snapshots and blobs that nothing of `keep` needs; the ids.

    The caller sees to it that nobody stages a release meanwhile.
    """
    removed = []
    for identifier in releases.on_host(layout):
        if identifier not in keep and identifier != live_release(layout):
            releases.remove(layout, identifier)
            removed.append(identifier)
    here = releases.on_host(layout)
    _drop_runtimes(layout, {releases.read_manifest(layout, one).lock for one in here})
    for directory in (layout.releases, layout.runtimes):
        for name in os.listdir(directory):
            if name.startswith(_LEFTOVERS):
                shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    committed = {entry["release"] for entry in ledger.history(layout)}
    for name in os.listdir(layout.state("snapshots")):
        release = name[: -len(".json")]
        if name.endswith(".json") and release in committed and release not in here:
            os.unlink(layout.state("snapshots", name))
    _drop_blobs(layout, _wheels_of(layout, here))
    return removed


def _drop_runtimes(layout: Layout, needed: Set[str]) -> None:
    """Out of sight by a rename first: half a runtime under its name would be taken for whole."""
    for name in os.listdir(layout.runtimes):
        if name not in needed and not name.startswith("."):
            durable.set_aside(os.path.join(layout.runtimes, name), _TRASH)


def _wheels_of(layout: Layout, here: List[str]) -> Set[str]:
    needed: Set[str] = set()
    for identifier in here:
        lock = load(os.path.join(layout.release(identifier), "lock.json"), {"wheels": []})
        needed |= {wheel["sha256"] for wheel in lock["wheels"]}
    return needed


def _drop_blobs(layout: Layout, needed: Set[str]) -> None:
    top = os.path.join(layout.app, "blobs")
    for directory, _, names in os.walk(os.path.join(top, "sha256")):
        for name in names:
            path = os.path.join(directory, name)
            if name not in needed and os.lstat(path).st_nlink == 1:
                os.unlink(path)
    for directory, _, names in os.walk(os.path.join(top, ".partial")):
        for name in names:
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.lstat(path).st_mtime > _PARTIAL_KEPT_S:
                    os.unlink(path)


def tidy(layout: Layout, keep: int, also: str) -> None:
    """Retire what nothing needs; `also` stays for now. What can't be removed waits for next time.

    A damaged release or a failing disk must never keep an activation from being ended.
    """
    with contextlib.suppress(OSError, HostError, ValueError, KeyError):
        retire(layout, worth_keeping(layout, keep) | {also})
