"""Which files of an application of one's own are released: what git tracks, or what globs name.

A file that must not travel is left out and named: secrets, links, what the host keeps itself. What
would be released as something else than it seems to be (a pointer in place of a model) is refused.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from macd.errors import MacdError, UsageError
from macd.host.store.manifest import folded, travels
from macd.host.untrusted import line
from macd.inventory.own_app import OwnApp

_GIT_S = 60
_SHOWN = 10
_NEVER = {".git", "__pycache__"}  # directories that no glob means
_LFS = b"version https://git-lfs.github.com/spec/"
_KEY = re.compile(rb"\s*-----BEGIN [A-Z ]*PRIVATE KEY-----")
_HEAD = 256
_SECRET = re.compile(
    r"\.env(\.(?!example$|sample$|template$|dist$).*)?|\.netrc|\.pypirc|\.pgpass|\.git-credentials"
    r"|id_(rsa|dsa|ecdsa|ed25519)|.*\.(p12|pfx|jks|keystore)|credentials(\.json)?"
    r"|client_secret.*\.json|service[-_]account.*\.json|secrets\.(ya?ml|json|toml|ini)",
    re.IGNORECASE,
)
_MODULE = "160000"  # a mode in git's index
_WHY_ENV = "it may hold secrets; they belong into .env on the host, which the units read"
_WHY_WRITES = "below serve.writes: the host keeps that directory across releases"
_WHY_LINK = "a symbolic link; a release holds plain files, so put the file itself there"
_WHY_MODULE = "a git submodule that is not checked out: git submodule update --init"
_WHY_NAME = "such a name can't travel; rename it"
_WHY_GONE = "git tracks it, but it is not there"
_WHY_OTHER = "git doesn't track it; git add it, or name it in app.files or app.models"
_WHY_NONE = "no file here matches; the training may bring it"


@dataclass(frozen=True)
class Source:
    """What a release takes from an application's directory, as it is now.

    files: POSIX path below the source -> the file here. commit: "" outside of git. dirty: a file
    differs from that commit; changed: which ones. skipped: (path, why) of what was left out.
    models: files that app.models names and no commit holds.
    """

    files: Mapping[str, Path]
    commit: str
    dirty: bool
    changed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    models: tuple[str, ...] = ()


def read(app: OwnApp) -> Source:
    """The files of `app` that are released, sorted by path. None is opened but for its first bytes.

    Files that only `models` names don't make the source dirty: no commit is expected to hold them.

    Raises:
        UsageError: no such directory; nothing says what is released; a glob without a file; two
            names that are one where case doesn't count; a file that is a Git LFS pointer.
        MacdError: git fails, or a file vanished.
    """
    root = app.source
    if not root.is_dir():
        raise UsageError(
            f"there is no application at {root}",
            why="app.source names that directory",
            hint="clone it there, or change app.source",
        )
    git = _Git.of(root)
    skipped: dict[str, str] = {}
    named = _globbed(root, app.files, "app.files") if app.files else None
    if named is None:
        if git is None:
            raise UsageError(
                f"nothing says which files of {root} are released",
                why="no git repository holds it, and app.files is empty",
                hint="git init && git add what belongs to it; or name it in app.files",
            )
        named = {name: root / name for name in git.plain(skipped)}
        for name in git.others:
            skipped[name] = _WHY_ENV if _SECRET.fullmatch(Path(name).name) else _WHY_OTHER
    changed = set(git.changed) if git else set()
    if git and app.files:
        changed = (changed & named.keys()) | (named.keys() - git.tracked.keys())
    models: set[str] = set()
    for pattern in app.models:
        matched = _globbed(root, (pattern,), "app.models", may_lack=app.train is not None)
        if not matched:
            skipped[pattern] = _WHY_NONE
        named |= matched
        models |= matched.keys() - (git.tracked.keys() if git else set())
    files = dict(sorted(_kept(root, named, app.serve.writes, skipped)))
    _refuse_nothing(root, files, skipped)
    _refuse_clashes(files)
    _refuse_pointers(files)
    writes = tuple(f"{path}/" for path in app.serve.writes)
    for name in [name for name, why in skipped.items() if why == _WHY_OTHER]:
        # git names a directory, with a slash, where it tracks nothing in it.
        if name.startswith(writes) or any(known.startswith(name) for known in (*files, *writes)):
            del skipped[name]
    changed = {name for name in changed if skipped.get(name, _WHY_GONE) == _WHY_GONE}
    return Source(
        files=files,
        commit=git.commit if git else "",
        dirty=bool(changed),
        changed=tuple(sorted(map(line, changed))),
        skipped=tuple(sorted((line(name), why) for name, why in skipped.items())),
        models=tuple(name for name in files if name in models),
    )


def vanished(name: str, error: OSError) -> MacdError:
    """The error for a file of the source that could not be read any more."""
    return MacdError(
        f"{line(name)} of the source could not be read",
        why=f"{error.strerror or error}: it changed while the release was made",
        live="no release was made",
        hint="let nothing write into the source meanwhile, then again",
    )


def _kept(
    root: Path, named: Mapping[str, Path], writes: Iterable[str], skipped: dict[str, str]
) -> Iterator[tuple[str, Path]]:
    """The files that travel; the reason why another doesn't goes into `skipped`."""
    kept_there = tuple(f"{path}/" for path in writes)
    for name, path in named.items():
        if _linked(root, name):
            skipped[name] = _WHY_LINK
        elif not path.is_file():
            skipped[name] = _WHY_GONE
        elif f"{name}/".startswith(kept_there):
            skipped[name] = _WHY_WRITES
        elif _is_secret(name, path):
            skipped[name] = _WHY_ENV
        elif not travels(name):
            skipped[name] = _WHY_NAME
        else:
            yield name, path


def _linked(root: Path, name: str) -> bool:
    """Whether the file, or a directory on the way to it, is a link: it may lead elsewhere."""
    path = root
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            return True
    return False


def _is_secret(name: str, path: Path) -> bool:
    if _SECRET.fullmatch(path.name) or ".ssh" in name.split("/"):
        return True
    return _KEY.match(_head(name, path)) is not None


def _head(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise vanished(name, error) from error


def _refuse_nothing(root: Path, files: Mapping[str, Path], skipped: Mapping[str, str]) -> None:
    if not files:
        left_out = [f"{name}: {why}" for name, why in sorted(skipped.items())]
        raise UsageError(
            f"no file of {root} is released",
            why=_listed(left_out) or "git tracks none there",
            live="nothing was made",
            hint="git add what belongs to it; or name it in app.files",
        )


def _refuse_pointers(files: Mapping[str, Path]) -> None:
    pointers = [name for name, path in files.items() if _head(name, path).startswith(_LFS)]
    if pointers:
        count = "1 file" if len(pointers) == 1 else f"{len(pointers)} files"
        raise UsageError(
            f"of {count} of the source only a Git LFS pointer is here, not the content",
            why=_listed(pointers),
            live="nothing was made",
            hint="git lfs pull in the source, then again; or name in app.files what is needed",
        )


def _refuse_clashes(files: Mapping[str, Path]) -> None:
    by_fold: dict[str, str] = {}
    for name in files:
        other = by_fold.setdefault(folded(name), name)
        if other != name:
            raise UsageError(
                "two files of the source have one name where case doesn't count",
                why=f"{other} and {name}",
                live="nothing was made",
                hint="rename one of them",
            )


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "\n".join([*map(line, names[:_SHOWN]), *more])


def _globbed(
    root: Path, patterns: Iterable[str], key: str, *, may_lack: bool = False
) -> dict[str, Path]:
    """The files below `root` that the globs name; a directory stands for all that it holds."""
    matched: dict[str, Path] = {}
    for pattern in patterns:
        asked = pattern.split("/")
        # What begins with plain names is looked for there alone; a file may be named like a glob.
        plain = len(asked) if os.path.lexists(root / pattern) else _plain_parts(asked)
        start = root.joinpath(*asked[:plain])
        files = {
            name: path
            for name, path in _all_files(root, start)
            if _matches(name.split("/")[plain:], asked[plain:])
            or (path == start and path.is_symlink())  # not followed, so it is named
        }
        if not files and not may_lack:
            raise UsageError(
                f"no file in {root} matches {pattern}",
                why=f"{key} names it",
                live="nothing was made",
                hint=f"make it, or change {key}",
            )
        matched |= files
    return matched


def matching(root: Path, pattern: str) -> bool:
    """Whether a file below `root` is what the glob names; a directory stands for what it holds."""
    return bool(_globbed(root, (pattern,), "", may_lack=True))


def matches(name: str, pattern: str) -> bool:
    """Whether the glob names that path, or a directory that it lies in."""
    return _matches(name.split("/"), pattern.split("/"))


def _plain_parts(asked: list[str]) -> int:
    globs = (number for number, part in enumerate(asked) if set("*?[") & set(part))
    return next(globs, len(asked))


def _matches(parts: list[str], asked: list[str]) -> bool:
    """Whether the path, or a directory that it lies in, is what the glob's parts ask for."""
    if not asked:
        return True
    if asked[0] == "**":
        return any(_matches(parts[n:], asked[1:]) for n in range(len(parts) + (asked[1:] == [])))
    return bool(parts) and fnmatchcase(parts[0], asked[0]) and _matches(parts[1:], asked[1:])


def _all_files(root: Path, start: Path) -> Iterator[tuple[str, Path]]:
    """Every file at or below `start`, and links, which are not followed; by path below `root`.

    Nothing of git, no bytecode, and no virtual environment, which is of this machine.
    """
    above = start.relative_to(root)
    inside = (root / parent for parent in (above, *above.parents) if parent != Path())
    if _NEVER & set(above.parts) or any(map(_is_environment, inside)):
        return
    if start.is_symlink() or start.is_file():
        yield above.as_posix(), start
        return
    for directory, below, names in os.walk(start):
        here = Path(directory)
        names += [name for name in below if (here / name).is_symlink()]
        below[:] = [
            name
            for name in below
            if name not in _NEVER and not _is_environment(here / name) and name not in names
        ]
        for name in names:
            yield (here / name).relative_to(root).as_posix(), here / name


def _is_environment(directory: Path) -> bool:
    return (directory / "pyvenv.cfg").is_file()


@dataclass(frozen=True)
class _Git:
    """What git says of the directory: all paths relative to it. tracked: path -> mode."""

    commit: str
    tracked: Mapping[str, str]
    changed: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> _Git | None:
        """None where no repository holds the directory, or git is not installed."""
        if _git(root, "rev-parse", "--is-inside-work-tree", missing="not a git repository") is None:
            return None
        tracked = {}
        for entry in _names(_git(root, "ls-files", "--stage", "-z")):
            about, _, name = entry.partition("\t")
            mode, _, stage = about.split(" ")
            if stage != "0":
                raise UsageError(
                    f"{line(name)} of the source has a merge conflict",
                    live="nothing was made",
                    hint="resolve it and commit",
                )
            tracked[name] = mode
        head = _git(root, "rev-parse", "--verify", "HEAD", missing="Needed a single revision")
        changed = list(tracked)
        if head is not None:
            differs = ("diff", "--name-only", "--no-ext-diff", "--no-renames", "--relative", "-z")
            changed = _names(_git(root, *differs, "HEAD", "--", "."))
        whole = ("--directory", "--no-empty-directory")
        others = _names(_git(root, "ls-files", "--others", "--exclude-standard", *whole, "-z"))
        for name in [name for name, mode in tracked.items() if mode == _MODULE]:
            module = cls.of(root / name) if (root / name / ".git").exists() else None
            if module is None:
                continue
            del tracked[name]
            tracked |= {f"{name}/{inner}": mode for inner, mode in module.tracked.items()}
            changed += [f"{name}/{inner}" for inner in module.changed]
            others += [f"{name}/{inner}" for inner in module.others]
        return cls((head or b"").decode().strip(), tracked, tuple(changed), tuple(others))

    def plain(self, skipped: dict[str, str]) -> Iterator[str]:
        """Tracked files, those of submodules too; one not checked out goes into `skipped`."""
        for name, mode in self.tracked.items():
            if mode == _MODULE:
                skipped[name] = _WHY_MODULE
            elif not _NEVER & set(name.split("/")):
                yield name


def _names(said: bytes | None) -> list[str]:
    return [os.fsdecode(name) for name in (said or b"").split(b"\0") if name]


def _git(root: Path, *words: str, missing: str = "") -> bytes | None:
    """What git prints; None where it fails saying `missing`, or there is none."""
    # Of a hook's variables none: they name another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=root,
            env=environment,
            capture_output=True,
            timeout=_GIT_S,
            check=False,
        )
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _git_failed(root, str(error)) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode("utf-8", "replace").strip()
    if missing and missing in said:
        return None
    raise _git_failed(root, said)


def _git_failed(root: Path, why: str) -> MacdError:
    return MacdError(
        f"git can't say what belongs to {root}",
        why=line(why),
        live="nothing was made",
        hint="git status there shows more; or name the files in app.files",
    )
