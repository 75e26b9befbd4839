"""What was there before macd: kept below state/adopted, and how each piece of it comes back.

Files with their modes, owners, times, ACLs and labels, enable links, owners of data. It is for root
alone, since it holds secrets. When something is kept, taken over or given back, adopt.py decides.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

from macd.host import durable
from macd.host.failure import HostError
from macd.host.layout import ADOPTED, Layout, discard, load, save
from macd.host.systemd.supervisor import Supervisor

MANIFEST = "manifest.json"
OWNERS = "owners.jsonl"
Entry = dict[str, Any]
Change = dict[str, str]


@dataclass(frozen=True)
class Kept:
    """What was there before macd, and what the first deploy has to do about it.

    switched: the units that a deploy installs, the main one first. by_hand: those of them that
    people put there. entries: what lay at each path; of a path the last one counts. links: enable
    links, path -> target. current: what lay there, as `layout.live_release` reads it. aside: the
    drop-ins that would win over macd's units. later: directories whose mode and owner the first
    deploy sets, and what they were (mode, uid, gid) right before. give: directories whose files
    become the account's then. variables: what provision set in .env. ran: by-hand units that
    the first deploy stopped. taken: whether it came so far. undoing: an undo began.
    """

    at: float
    who: str
    scope: str
    account: str
    switched: Sequence[str]
    by_hand: Sequence[str] = ()
    entries: Sequence[Entry] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    current: Mapping[str, Any] = field(default_factory=dict)
    aside: Sequence[str] = ()
    later: Sequence[Entry] = ()
    give: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    ran: Sequence[str] = ()
    taken: bool = False
    undoing: bool = False

    def last(self) -> dict[str, Entry]:
        """The newest entry of each path."""
        return {entry["path"]: entry for entry in self.entries}


def read(layout: Layout) -> Kept | None:
    """None where macd keeps nothing: not provisioned, or by an earlier version."""
    document = load(layout.state(ADOPTED, MANIFEST), None)
    if document is None:
        return None
    names = {one.name for one in fields(Kept)}
    return Kept(**{name: value for name, value in document.items() if name in names})


def write(layout: Layout, kept: Kept) -> None:
    """Store it durably, for root (or the login) alone."""
    save(layout.state(ADOPTED, MANIFEST), asdict(kept), mode=0o600)


def keep(
    layout: Layout,
    supervisor: Supervisor,
    kept: Kept,
    paths: Sequence[str],
    anew: Sequence[str] = (),
) -> None:
    """Store what lies at `paths` now, then that it is kept. What was kept before stays.

    anew: those of `paths` at which people put something since.
    """
    directory = layout.state(ADOPTED, "files")
    durable.make_directories(directory)
    os.chmod(layout.state(ADOPTED), 0o700)
    known = kept.last()
    entries = [*kept.entries]
    for path in dict.fromkeys(paths):
        if path not in known or (path in anew and differs(layout, known[path])):
            entries.append(entry_of(layout, path, len(entries)))
    links = {**enable_links(supervisor, kept.switched), **kept.links}
    write(layout, replace(kept, entries=entries, links=links))


def entry_of(layout: Layout, path: str, number: int) -> Entry:
    """What lies at `path`; a file's content is copied to files/<number>."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"path": path, "kind": "absent"}
    who = {"path": path, "uid": status.st_uid, "gid": status.st_gid}
    if stat.S_ISLNK(status.st_mode):
        return {**who, "kind": "link", "target": os.readlink(path)}
    xattrs = {
        name: base64.b64encode(value).decode() for name, value in durable.xattrs_of(path).items()
    }
    who |= {"mode": stat.S_IMODE(status.st_mode), "xattrs": xattrs}
    if stat.S_ISDIR(status.st_mode):
        return {**who, "kind": "directory"}
    data = durable.regular(path)
    if data is None:
        raise HostError(
            f"{path} is no file",
            why="it is a pipe, a socket or the like",
            live="unchanged",
            hint=f"move it away (mv {path} {path}.by-hand), then provision again",
            kind="refused",
        )
    durable.replace_file(layout.state(ADOPTED, "files", str(number)), data, mode=0o600)
    hashed = {"copy": number, "sha256": hashlib.sha256(data).hexdigest()}
    return {**who, "kind": "file", "mtime_ns": status.st_mtime_ns, **hashed}


def content(layout: Layout, entry: Entry) -> bytes:
    """A copy, proved by its hash. Raises HostError: it was changed."""
    path = layout.state(ADOPTED, "files", str(entry["copy"]))
    data = durable.regular(path) or b""
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise HostError(f"{path} was changed", why=f"it is what was kept of {entry['path']}")
    return data


def enable_links(supervisor: Supervisor, units: Sequence[str]) -> dict[str, str]:
    """The links that have systemd start these units: path -> target."""
    links = {}
    for directory, directories, files in os.walk(supervisor.unit_directory):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            if directory == supervisor.unit_directory or not os.path.islink(path):
                continue
            if _is_of(path, os.readlink(path), units):
                links[path] = os.readlink(path)
    return links


def keeps(layout: Layout, supervisor: Supervisor, unit: str, text: str | None) -> bool:
    """Whether the original of a unit's file is kept, and this is its text."""
    kept = read(layout)
    entry = kept.last().get(os.path.join(supervisor.unit_directory, unit)) if kept else None
    if text is None or entry is None or entry["kind"] != "file":
        return False
    data = text.encode("utf-8", "surrogateescape")
    return bool(hashlib.sha256(data).hexdigest() == entry["sha256"])


@dataclass(frozen=True)
class Step:
    """One thing that comes back, and how."""

    what: str
    name: str
    how: str
    do: Callable[[], object]

    def shown(self) -> Change:
        return {"what": self.what, "name": self.name, "how": self.how}


def links_back(supervisor: Supervisor, kept: Kept, units: Sequence[str]) -> list[Step]:
    """What makes the enable links of these units what they were."""
    now = enable_links(supervisor, units)
    was = {path: target for path, target in kept.links.items() if _is_of(path, target, units)}
    steps = [
        Step("enable link", path, "removed", partial(discard, path))
        for path in now.keys() - was.keys()
    ]
    for path, target in was.items():
        if now.get(path) != target:
            steps.append(Step("enable link", path, "given back", partial(_link, path, target)))
    return steps


def _is_of(path: str, target: str, units: Sequence[str]) -> bool:
    return os.path.basename(path) in units or os.path.basename(target) in units


def _link(path: str, target: str) -> None:
    durable.make_directories(os.path.dirname(path))
    discard(path)
    os.symlink(target, path)
    durable.sync_directory(os.path.dirname(path))


def differs(layout: Layout, entry: Entry) -> bool:
    """Whether something else lies at an entry's path now; owners and modes aside."""
    path, kind = entry["path"], entry["kind"]
    if kind == "absent":
        return os.path.lexists(path)
    if kind == "link":
        return not os.path.islink(path) or os.readlink(path) != entry["target"]
    if kind == "directory":
        return not os.path.isdir(path)
    return os.path.islink(path) or durable.regular(path) != content(layout, entry)


def back(layout: Layout, entry: Entry) -> list[Step]:
    """What brings back what lay at an entry's path; [] where it lies there."""
    path, kind = entry["path"], entry["kind"]
    if not differs(layout, entry):
        return attributes(entry) if kind in ("file", "directory") else []
    if kind == "absent":
        return [Step("file", path, "removed", partial(discard, path))]
    if kind == "link":
        return [Step("file", path, "given back", partial(_link, path, entry["target"]))]
    if kind == "directory":
        return []  # somebody removed it; there is nothing of ours in it

    def back() -> None:
        data = content(layout, entry)
        durable.replace_file(path, data, mode=entry["mode"], parents=True)
        set_attributes(entry)

    return [Step("file", path, "given back", back)]


def attributes(entry: Entry) -> list[Step]:
    """What brings back mode, owner, time, ACL and labels; [] where they are as they were."""
    status = os.lstat(entry["path"])
    has = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    same_time = entry.get("mtime_ns") in (None, status.st_mtime_ns)
    xattrs = _xattrs(entry)
    same_xattrs = xattrs is None or xattrs == durable.xattrs_of(entry["path"])
    if has == (entry["mode"], entry["uid"], entry["gid"]) and same_time and same_xattrs:
        return []
    how = "mode, owner and time given back"
    return [Step(entry["kind"], entry["path"], how, partial(set_attributes, entry))]


def _xattrs(entry: Entry) -> dict[str, bytes] | None:
    """None where an earlier version kept the entry, without them."""
    kept = entry.get("xattrs")
    return None if kept is None else {k: base64.b64decode(value) for k, value in kept.items()}


def set_attributes(entry: Entry) -> None:
    """Mode, owner, ACL and labels and, of a file, when it was last written."""
    with contextlib.suppress(PermissionError):  # a login that may not give files away never did
        os.chown(entry["path"], entry["uid"], entry["gid"])
    if (xattrs := _xattrs(entry)) is not None:
        durable.set_xattrs(entry["path"], xattrs)
    os.chmod(entry["path"], entry["mode"])
    if "mtime_ns" in entry:
        os.utime(entry["path"], ns=(entry["mtime_ns"], entry["mtime_ns"]))


def set_directory(path: str, mode: int, uid: int | None, gid: int | None) -> None:
    """Mode and owner of a directory (None: as it is); what somebody put there instead stays."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in durable.NO_FILE:  # a link, say
            return
        raise
    try:
        if uid is not None and gid is not None:
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def is_roots(path: str) -> bool:
    """Whether it is a link to a directory of root's, say /var/log: nobody is given that."""
    return os.path.islink(path) and os.path.isdir(path) and os.stat(path).st_uid == 0


@dataclass(frozen=True)
class _Below:
    """Something below a directory, by a name in its open parent: no link leads elsewhere."""

    path: str
    parent: int
    name: str
    status: os.stat_result

    def give(self, uid: int, gid: int) -> None:
        """A file with a second name may be one of the system's: it stays as it is."""
        if stat.S_ISREG(self.status.st_mode) and self.status.st_nlink > 1:
            return
        if (self.status.st_uid, self.status.st_gid) != (uid, gid):
            with contextlib.suppress(FileNotFoundError):
                os.chown(self.name, uid, gid, dir_fd=self.parent, follow_symlinks=False)


def below(top: str) -> Iterator[_Below]:
    """Everything below a directory; links are not followed."""
    for directory, directories, files, parent in os.fwalk(top, follow_symlinks=False):
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
                yield _Below(os.path.join(directory, name), parent, name, status)


def ids(kept: Kept) -> tuple[int | None, int | None]:
    """The account's user and group; None where everything is the login's."""
    if kept.scope == "user" or not kept.account:
        return None, None
    account = pwd.getpwnam(kept.account)
    return account.pw_uid, account.pw_gid


def store_owners(layout: Layout, tops: Sequence[str], uid: int) -> None:
    """Store whose each thing in these directories is, but for what is `uid`'s."""
    lines = []
    for top in tops:
        status = os.stat(top)
        lines.append([top, "", status.st_uid, status.st_gid])
        lines += [
            [top, one.path, one.status.st_uid, one.status.st_gid]
            for one in below(top)
            if one.status.st_uid != uid
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    durable.replace_file(layout.state(ADOPTED, OWNERS), text.encode(), mode=0o600)


def owners_back(layout: Layout, uid: int) -> None:
    """Each file to whom it was; what the account made since goes to its directory's owner."""
    stored = durable.text(layout.state(ADOPTED, OWNERS))
    tops: dict[str, tuple[int, int]] = {}
    was: dict[str, tuple[int, int]] = {}
    for line in (stored or "").splitlines():
        top, path, owner, group = json.loads(line)
        if path:
            was[path] = (owner, group)
        else:
            tops[top] = (owner, group)
    for top, ids in tops.items():
        if not os.path.isdir(top):
            continue
        for one in below(top):
            if one.path in was:
                one.give(*was[one.path])
            elif one.status.st_uid == uid:
                one.give(*ids)
        os.chown(top, *ids)
