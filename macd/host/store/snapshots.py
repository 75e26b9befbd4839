"""What goes live together with a release: flags, settings and units, kept and put back as text.

People edit the same files. So of the flags file only the keys that differ between the two sides of
a change are ever written, and a text that the tool did not write is kept beside before it goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence

from macd.host import durable, envfile
from macd.host.deploy.ledger import Snapshot
from macd.host.failure import HostError
from macd.host.flag.flag_file import FLAG
from macd.host.layout import Layout, load, save
from macd.host.systemd.supervisor import Supervisor

FLAGS, SETTINGS = ".env", "service.json"


def take(layout: Layout, supervisor: Supervisor, units: list[str]) -> Snapshot:
    """What goes with the live release now; None: there is no such file."""
    taken: Snapshot = {unit: supervisor.unit_text(unit) for unit in units}
    taken[FLAGS] = _text(layout.env)
    taken[SETTINGS] = _text(layout.service_settings)
    return taken


class Switch:
    """From one snapshot to another, as often as it takes; what others wrote meanwhile is not lost.

    Args:
        mark: what a text that nobody else has is called by: `FILE.before-MARK`, beside the file.
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
        self._keys = [FLAG, *(key for key in keys if key != FLAG)]
        self.kept: list[str] = []  # paths

    def carry_out(self, *, reload: bool = False, must_keep: bool = True) -> None:
        """Write what differs; systemd is told of units that changed (`reload`: in any case).

        `must_keep` False: going back matters more than keeping a text that has no room.
        """
        with contextlib.suppress(*(() if must_keep else (OSError,))):
            self._keep_texts()
        self._put_flags(must_keep)
        self._put_settings()
        self._put_units(reload)

    def _now(self, name: str) -> str | None:
        if name == SETTINGS:
            return _text(self._layout.service_settings)
        return self._supervisor.unit_text(name)

    def _keep_texts(self) -> None:
        for name, text in self._after.items():
            now = None if name == FLAGS else self._now(name)
            if now in (None, text) or (name not in self._edited and now == self._before.get(name)):
                continue
            self._keep(name, (now or "").encode("utf-8", "surrogateescape"))

    def _keep(self, name: str, data: bytes) -> None:
        path = _path(self._layout, self._supervisor, name)
        aside = aside_of(path, self._mark)
        durable.replace_file(aside, data, mode=0o600 if name == FLAGS else _mode(path))
        self.kept.append(aside)

    def _put_flags(self, must_keep: bool) -> None:
        path = self._layout.env
        if FLAGS not in self._after or os.path.isdir(path):  # systemd takes nothing from it
            return
        now, after = durable.regular(path), _encoded(self._after[FLAGS])
        as_expected = now == _encoded(self._before.get(FLAGS))
        if now == after:
            return
        changes = differing(self._before.get(FLAGS), self._after[FLAGS], self._keys)
        if not as_expected or FLAGS in self._edited:
            with contextlib.suppress(*(() if must_keep else (OSError,))):
                self._keep_flags(now, changes)
        if not as_expected:  # somebody has written in it since
            after = _rewritten(now or b"", changes)
        if after is None:
            os.unlink(path)
            durable.sync_directory(self._layout.app)
        elif after != now:
            durable.replace_file(path, after, mode=_mode(path))

    def _keep_flags(self, now: bytes | None, changes: Mapping[str, str | None]) -> None:
        """Of the flags file only the values that go: a copy of the rest would spread secrets."""
        has = flag_values((now or b"").decode("utf-8", "surrogateescape"), changes)
        known = flag_values(self._before.get(FLAGS), changes)
        gone = {
            key: value
            for key, value in has.items()
            if key != FLAG
            and value not in (None, changes[key])
            and (FLAGS in self._edited or value != known[key])
        }
        if gone:
            self._keep(FLAGS, _rewritten(b"", gone))

    def _put_settings(self) -> None:
        path = self._layout.service_settings
        if SETTINGS not in self._after or _text(path) == self._after[SETTINGS]:
            return
        content = _encoded(self._after[SETTINGS])
        if content is None:
            os.unlink(path)
            durable.sync_directory(self._layout.app)
        else:
            durable.replace_file(path, content, mode=_mode(path))

    def _put_units(self, reload: bool) -> None:
        units = {n: text for n, text in self._after.items() if n not in (FLAGS, SETTINGS)}
        there = {name for name in units if self._supervisor.unit_text(name) is not None}
        for name, text in units.items():
            if text is None and name in there:
                self._supervisor.disable(name)
        added = [name for name, text in units.items() if text is not None and name not in there]
        self._supervisor.install(units, reload=reload)
        for name in added:
            with contextlib.suppress(HostError):  # one without [Install] starts by another's leave
                self._supervisor.enable(name)

    def forget(self, edited: Sequence[str], mark: str) -> None:
        """Remove what was kept by `mark` and stands in its own place again."""
        for name in edited:
            path = _path(self._layout, self._supervisor, name)
            if _is_there(durable.regular(aside_of(path, mark)), durable.regular(path), name):
                with contextlib.suppress(OSError):
                    os.unlink(aside_of(path, mark))


def aside_of(path: str, mark: str) -> str:
    """Where a text that a change replaces is kept: beside it, and no unit or settings file."""
    return f"{path}.before-{mark}"


def flag_values(text: str | None, keys: Iterable[str]) -> dict[str, str | None]:
    """What a flags file sets each key to, whatever else it holds; None: it does not set it."""
    data = _encoded(text) or b""
    found = {key: envfile.values_of(data, key) for key in keys}
    return {key: values[-1] if values else None for key, values in found.items()}


def differing(before: str | None, after: str | None, keys: Iterable[str]) -> dict[str, str | None]:
    """Those of the keys that two flags files set otherwise, with what `after` has for them."""
    old, new = flag_values(before, keys), flag_values(after, keys)
    return {key: new[key] for key in old if old[key] != new[key]}


def changed_files(before: Snapshot, after: Snapshot) -> list[str]:
    """The names of what is switched, but for the flags file."""
    return sorted(n for n, text in after.items() if n != FLAGS and text != before.get(n))


def changed_keys(before: Snapshot, after: Snapshot, keys: Iterable[str]) -> list[str]:
    """The keys of the flags file that are switched, but for stacking's."""
    changed = differing(before.get(FLAGS), after.get(FLAGS, before.get(FLAGS)), keys)
    return sorted(key for key in changed if key != FLAG)


def hashes(texts: Snapshot) -> dict[str, str | None]:
    """Of what the tool wrote; not of the flags file, which is not the tool's alone."""
    return {name: _sha256(text) for name, text in texts.items() if name != FLAGS}


def edited(now: Snapshot, written: Mapping[str, str | None]) -> list[str]:
    """Names of the texts that stand there and that the tool did not write."""
    return sorted(
        name
        for name, sha256 in hashes(now).items()
        if sha256 is not None and written.get(name) != sha256
    )


def sockets(texts: Snapshot) -> list[str]:
    """The socket units that are there in this snapshot."""
    return [name for name, text in texts.items() if name.endswith(".socket") and text is not None]


def keep(layout: Layout, release: str, texts: Snapshot) -> None:
    """Remember durably what went with a release; it holds flags, so nobody else may read it."""
    save(layout.state("snapshots", f"{release}.json"), texts, mode=0o600)


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
        with contextlib.suppress(envfile.EnvFileError):  # no file can say it, so nobody had it
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


def _text(path: str) -> str | None:
    data = durable.regular(path)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _path(layout: Layout, supervisor: Supervisor, name: str) -> str:
    if name == FLAGS:
        return layout.env
    if name == SETTINGS:
        return layout.service_settings
    return os.path.join(supervisor.unit_directory, name)


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o777
    except OSError as error:
        if error.errno not in durable.NO_FILE:
            raise
        return 0o600 if path.endswith(FLAGS) else 0o644
