"""What a rollback restores beside the release, and which changes by people it would replace.

Unit files and service.json are restored as they were with the release. Of .env only the keys that
the tool sets are restored. Everything else in it is the team's (a rotated key, for instance) and
stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macd.host import envfile, own
from macd.host.deploy.ledger import Snapshot
from macd.host.failure import HostError
from macd.host.flag.flag_file import KEYS, off
from macd.host.layout import Layout
from macd.host.store import releases, snapshots
from macd.host.store.snapshots import FLAGS, SETTINGS
from macd.host.systemd.supervisor import Supervisor

History = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Rollback:
    """The texts to restore, and what differs from now: names of files, and keys of .env.

    edited: those of `files` whose text the tool did not write; it is stored beside the file.
    keys: never names stacking's, which always goes to shadow. Only `after` holds values.
    decided: whether stacking decided when the release was last live, as far as .env said it.
    """

    after: Snapshot
    files: list[str]
    edited: list[str]
    keys: list[str]
    decided: bool = False


def to_release(
    layout: Layout, now: Snapshot, to: str, live: str | None, history: History, flags: list[str]
) -> Rollback:
    """What is restored with `to`. Raises HostError when it was never live here.

    Args:
        now: of every unit that may be switched.
        flags: the keys of .env that the tool sets, for releases that recorded none.
    """
    then = snapshots.of(layout, to)
    try:
        shadow = off(own.parse(then.get(SETTINGS)).flag)
    except own.UNREADABLE as error:
        raise HostError(f"what went with {to} can't be read", kind="refused") from error
    names = sorted(
        {*_flags_of(history, to, flags), *_flags_of(history, live, flags)}.difference(KEYS, shadow)
    )
    # Units that the release of now has and that one had not.
    settings = snapshots.mended(layout, now, live).get(SETTINGS)
    gone: Snapshot = dict.fromkeys(own.understood(settings).units)
    # A directory is left as it is: no key is put back into it.
    keys = {} if os.path.isdir(layout.env) else _keys(now.get(FLAGS), then.get(FLAGS), names)
    after = {**gone, **then, FLAGS: _env(now.get(FLAGS), then.get(FLAGS), {**keys, **shadow})}
    files = snapshots.changed_files(now, after)
    by_hand = snapshots.edited(now, written(layout, live, history))
    was = snapshots.flag_values(then.get(FLAGS), shadow)
    decided = any(was[key] not in (None, value) for key, value in shadow.items() if value)
    edited = [name for name in files if name in by_hand]
    return Rollback(after, files, edited, sorted(keys), decided)


def previews(
    layout: Layout,
    supervisor: Supervisor,
    units: Sequence[str],
    live: str | None,
    history: History,
    flags: list[str],
) -> dict[str, dict[str, Any]]:
    """What each possible rollback would restore, by release. No values."""
    here = releases.on_host(layout)
    now = snapshots.take(layout, supervisor, list(units))
    changes = {}
    for release in dict.fromkeys(str(entry["release"]) for entry in history):
        if release == live or release not in here:
            continue
        with contextlib.suppress(HostError):  # an impossible rollback says so when it is asked for
            change = to_release(layout, now, release, live, history, flags)
            names = {"files": change.files, "edited": change.edited, "keys": change.keys}
            changes[release] = {**names, "decided": change.decided}
    return changes


def written(layout: Layout, live: str | None, history: History) -> dict[str, str | None]:
    """Hashes of the texts that the tool wrote when `live` went live; empty when unknown.

    Before anything was live, of those that provision wrote.
    """
    if live is None:
        return snapshots.provisioned(layout)
    for entry in reversed(history):
        if entry["release"] == live and isinstance(entry.get("written"), dict):
            return dict(entry["written"])
    with contextlib.suppress(HostError):  # an older version recorded none
        return snapshots.hashes(snapshots.of(layout, live))
    return {}


def _flags_of(history: History, release: str | None, flags: list[str]) -> list[str]:
    for entry in reversed(history):
        if entry["release"] == release and isinstance(entry.get("flags"), list):
            return [str(key) for key in entry["flags"]]
    return flags


def _keys(now: str | None, then: str | None, names: list[str]) -> dict[str, str | None]:
    """The tool's keys that `then` has with another value, and that value (None: it had none)."""
    differing = snapshots.differing(now, then, names)
    return {key: value for key, value in differing.items() if _is_plain(key, value)}


def _is_plain(key: str, value: str | None) -> bool:
    """Whether the tool may have written this value; another one was written by a person."""
    try:
        envfile.with_values("", {} if value is None else {key: value})
    except envfile.EnvFileError:
        return False
    return True


def _env(now: str | None, then: str | None, keys: Mapping[str, str | None]) -> str | None:
    """The flags file of now, with `keys`: the tool's as they were, and stacking in shadow."""
    if now is None and then is None:
        return None
    return envfile.rewritten_text(now or "", keys)
