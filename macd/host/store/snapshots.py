"""What goes live together with a release: flags, settings and units, stored and restored as text.

People edit the same files. So only those keys of the flags file are written that differ between the
two sides of a change. A text that the tool did not write is stored beside the file first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

from macd.host import durable, envfile, own
from macd.host.deploy.ledger import Snapshot
from macd.host.failure import HostError
from macd.host.flag.flag_file import KEYS
from macd.host.layout import Layout, load, save
from macd.host.systemd.supervisor import Supervisor

FLAGS, SETTINGS = ".env", "service.json"
_PROVISIONED = "provisioned.json"


def take(layout: Layout, supervisor: Supervisor, units: list[str]) -> Snapshot:
    """What goes with the live release now; None: there is no such file.

    units: that may be switched, with those of an own application that is live.
    """
    names = dict.fromkeys(units)
    with contextlib.suppress(*own.UNREADABLE):
        names |= dict.fromkeys(own.read(layout).units)
    texts: Snapshot = {unit: supervisor.unit_text(unit) for unit in names}
    return {
        **texts,
        FLAGS: durable.text(layout.env),
        SETTINGS: durable.text(layout.service_settings),
    }


def mended(layout: Layout, texts: Snapshot, release: str | None) -> Snapshot:
    """The same, with the settings that went live with a release where people broke them.

    Where nobody knows these, with none.
    """
    settings: str | None = None
    try:
        own.parse(texts.get(SETTINGS))
        return texts
    except own.UNREADABLE:
        with contextlib.suppress(LookupError):
            settings = own.went_live(layout, release)
    return {**texts, SETTINGS: settings}


class Switch:
    """Switches from one snapshot to another, repeatably; what others wrote meanwhile is not lost.

    Args:
        mark: a text that exists nowhere else is stored beside its file as `FILE.before-MARK`.
        edited: names whose text in `before` is such a text.
        keys: of the flags file, those that may be written.
    """

    def __init__(
        self,
        layout: Layout,
        supervisor: Supervisor,
        *,
        before: Snapshot,
        after: Snapshot,
        mark: str,
        edited: Sequence[str] = (),
        keys: Sequence[str] = (),
    ) -> None:
        self._layout = layout
        self._supervisor = supervisor
        self._before = before
        self._after = after
        self._mark = mark
        self._edited = edited
        self._keys = [*KEYS, *(key for key in keys if key not in KEYS)]
        self.kept: list[str] = []  # paths

    def carry_out(self, *, reload: bool = False, must_keep: bool = True) -> None:
        """Write what differs; systemd reloads units that changed (reload: in any case).

        must_keep: False where a revert matters more than storing a text that has no room.
        """
        with contextlib.suppress(*(() if must_keep else (OSError,))):
            self._set_texts_aside()
        self._write_flags(must_keep)
        self._write_settings()
        self._write_units(reload)

    def _now(self, name: str) -> str | None:
        if name == SETTINGS:
            return durable.text(self._layout.service_settings)
        return self._supervisor.unit_text(name)

    def _set_texts_aside(self) -> None:
        for name, text in self._after.items():
            now = None if name == FLAGS else self._now(name)
            if now in (None, text) or (name not in self._edited and now == self._before.get(name)):
                continue
            self._set_aside(name, (now or "").encode("utf-8", "surrogateescape"))

    def _set_aside(self, name: str, data: bytes) -> None:
        path = _path(self._layout, self._supervisor, name)
        aside = aside_of(path, self._mark)
        durable.replace_file(aside, data, mode=0o600 if name == FLAGS else _mode(path))
        self.kept.append(aside)

    def _write_flags(self, must_keep: bool) -> None:
        path = self._layout.env
        if FLAGS not in self._after or os.path.isdir(path):  # systemd reads no directory
            return
        now, after = durable.regular(path), _encoded(self._after[FLAGS])
        as_expected = now == _encoded(self._before.get(FLAGS))
        if now == after:
            return
        changes = differing(self._before.get(FLAGS), self._after[FLAGS], self._keys)
        if not as_expected or FLAGS in self._edited:
            with contextlib.suppress(*(() if must_keep else (OSError,))):
                self._set_flags_aside(now, changes)
        if not as_expected:  # somebody wrote in it since
            after = _rewritten(now or b"", changes)
        if after is None:
            os.unlink(path)
            durable.sync_directory(self._layout.app)
        elif after != now:
            durable.replace_file(path, after, mode=_mode(path), keep_owner=True)

    def _set_flags_aside(self, now: bytes | None, changes: Mapping[str, str | None]) -> None:
        """Store only the values that are replaced: a copy of the rest would spread secrets."""
        has = flag_values((now or b"").decode("utf-8", "surrogateescape"), changes)
        expected = flag_values(self._before.get(FLAGS), changes)
        gone = {
            key: value
            for key, value in has.items()
            if key not in KEYS
            and value not in (None, changes[key])
            and (FLAGS in self._edited or value != expected[key])
        }
        if gone:
            self._set_aside(FLAGS, _rewritten(b"", gone))

    def _write_settings(self) -> None:
        path = self._layout.service_settings
        if SETTINGS not in self._after or durable.text(path) == self._after[SETTINGS]:
            return
        content = _encoded(self._after[SETTINGS])
        if content is None:
            os.unlink(path)
            durable.sync_directory(self._layout.app)
        else:
            durable.replace_file(path, content, mode=_mode(path))

    def _write_units(self, reload: bool) -> None:
        units = {n: text for n, text in self._after.items() if n not in (FLAGS, SETTINGS)}
        there = {name for name in units if self._supervisor.unit_text(name) is not None}
        for name, text in units.items():
            if text is None and name in there:
                self._supervisor.disable(name)
        added = [name for name, text in units.items() if text is not None and name not in there]
        self._supervisor.install(units, reload=reload)
        for name in added:
            with contextlib.suppress(HostError):  # a unit without [Install] is started by another
                self._supervisor.enable(name)

    def forget(self, edited: Sequence[str], mark: str) -> None:
        """Remove what was stored by `mark` and is in its own place again."""
        for name in edited:
            path = _path(self._layout, self._supervisor, name)
            if _is_there(durable.regular(aside_of(path, mark)), durable.regular(path), name):
                with contextlib.suppress(OSError):
                    os.unlink(aside_of(path, mark))


def aside_of(path: str, mark: str) -> str:
    """Where a replaced text is stored: beside its file, under a name that systemd ignores."""
    return f"{path}.before-{mark}"


def flag_values(text: str | None, keys: Iterable[str]) -> dict[str, str | None]:
    """What a flags file sets each key to, whatever else it holds; None: it does not set it."""
    data = _encoded(text) or b""
    by_key = {key: envfile.values_of(data, key) for key in keys}
    return {key: values[-1] if values else None for key, values in by_key.items()}


def differing(before: str | None, after: str | None, keys: Iterable[str]) -> dict[str, str | None]:
    """The keys that two flags files set differently, with the values of `after`."""
    old, new = flag_values(before, keys), flag_values(after, keys)
    return {key: new[key] for key in old if old[key] != new[key]}


def changed_files(before: Snapshot, after: Snapshot) -> list[str]:
    """The names of the files that are switched, without the flags file."""
    return sorted(n for n, text in after.items() if n != FLAGS and text != before.get(n))


def changed_keys(before: Snapshot, after: Snapshot, keys: Iterable[str]) -> list[str]:
    """The keys of the flags file that are switched, without stacking's."""
    changed = differing(before.get(FLAGS), after.get(FLAGS, before.get(FLAGS)), keys)
    return sorted(key for key in changed if key not in KEYS)


def hashes(texts: Snapshot) -> dict[str, str | None]:
    """The SHA-256 of each text that the tool wrote; the flags file is not the tool's alone."""
    return {name: _sha256(text) for name, text in texts.items() if name != FLAGS}


def edited(now: Snapshot, written: Mapping[str, str | None]) -> list[str]:
    """Names of the texts that the tool did not write."""
    return sorted(
        name
        for name, sha256 in hashes(now).items()
        if sha256 is not None and written.get(name) != sha256
    )


def sockets(texts: Snapshot) -> list[str]:
    """The socket units that are there in this snapshot."""
    return [name for name, text in texts.items() if name.endswith(".socket") and text is not None]


def keep(layout: Layout, release: str, texts: Snapshot) -> None:
    """Store durably what went with a release; it holds flags, so nobody else may read it."""
    save(layout.state("snapshots", f"{release}.json"), texts, mode=0o600)


def keep_provisioned(layout: Layout, texts: Snapshot) -> None:
    """Store which texts provision wrote, for the deploy that nothing was live before."""
    save(layout.state(_PROVISIONED), hashes(texts))


def provisioned(layout: Layout) -> dict[str, str | None]:
    """The hashes of the texts that provision wrote; empty on a host of an earlier version."""
    return dict(load(layout.state(_PROVISIONED), {}))


def of(layout: Layout, release: str) -> Snapshot:
    """What went with a release when it was last live. Raises HostError when it never was."""
    snapshot = load(layout.state("snapshots", f"{release}.json"), None)
    if snapshot is None:
        raise HostError(f"{release} was never live here", kind="refused")
    if not isinstance(snapshot, dict):
        raise HostError(f"what went with {release} can't be read", kind="refused")
    return dict(snapshot)


def _rewritten(data: bytes, changes: Mapping[str, str | None]) -> bytes:
    for key, value in changes.items():
        with contextlib.suppress(
            envfile.EnvFileError
        ):  # no file can have this value, so none had it
            data = envfile.rewritten(data, {key: value})
    return data


def _is_there(kept: bytes | None, now: bytes | None, name: str) -> bool:
    if name != FLAGS or kept is None:
        return kept is not None and kept == now
    lines = (line.partition(b"=")[0].decode() for line in kept.splitlines())
    keys = list(lines)
    texts = [(data or b"").decode("utf-8", "surrogateescape") for data in (kept, now)]
    return flag_values(texts[0], keys) == flag_values(texts[1], keys)


def _sha256(text: str | None) -> str | None:
    data = _encoded(text)
    return None if data is None else hashlib.sha256(data).hexdigest()


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def _path(layout: Layout, supervisor: Supervisor, name: str) -> str:
    if name == FLAGS:
        return layout.env
    if name == SETTINGS:
        return layout.service_settings
    return os.path.join(supervisor.unit_directory, name)


def _mode(path: str) -> int:
    return durable.mode_of(path, 0o600 if path.endswith(FLAGS) else 0o644)
