"""A requirements.txt of the team's own: which files it is, and what of it can't be locked.

pip itself reads and resolves it (wheelhouse.py). Here is said beforehand, by file and line, what no
host can install from wheels with hashes. Nothing is run and no network is used.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from macd.errors import UsageError
from macd.host.masking import without_login
from macd.host.untrusted import line as printable

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_COMMENT = re.compile(r"(^|\s+)#.*$")
# `-r file`, `-rfile`, `--requirement file`, `--requirement=file`.
_OPTION = re.compile(r"(--[a-z-]+|-[a-zA-Z])(?:\s*=\s*|\s+|(?<=^-[a-zA-Z])(?=\S)|$)(.*)")
_NAMED = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\s*(\[[^\]]*\])?\s*([<>=!~(;].*|--hash.*|@\s*(?P<url>\S+).*)?"
)
_ARCHIVE = re.compile(r"\.(whl|zip|tar\.gz|tgz|tar\.bz2|tar\.xz)$", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")  # pip fills it in
_SECRET = re.compile(r"://[^/\s]*:(?!\$\{)[^/\s@]+@")
_NESTED = {"-r", "--requirement", "-c", "--constraint"}
_SOURCES = {
    "-i": "PIP_INDEX_URL",
    "--index-url": "PIP_INDEX_URL",
    "--extra-index-url": "PIP_EXTRA_INDEX_URL",
    "-f": "PIP_FIND_LINKS",
    "--find-links": "PIP_FIND_LINKS",
}
_TAKEN = {"--no-index", "--pre", "--trusted-host", "--prefer-binary", "--require-hashes"}
_TAKEN |= {"--only-binary"}  # but for :none:, which would have pip run a source's setup.py
_LIKE = "as numpy>=1.26,<3"
_WHEEL = (
    "build a wheel of it (pip wheel --no-deps PATH -w wheels), and write its name and version "
    "here, and --find-links wheels"
)


@dataclass(frozen=True)
class Requirements:
    """A requirements file with all that it names. contents: path below the source -> bytes.

    sources: its lines about where packages come from, in order, as pip reads them; they may hold
    a password, so they are never shown. warnings: for people.
    """

    path: Path
    contents: Mapping[str, bytes] = field(repr=False)
    sources: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of all that decides what it means."""
        digest = hashlib.sha256()
        for name, content in sorted(self.contents.items()):
            digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def settings(self) -> dict[str, str]:
        """Variables that give pip the same sources without the file; they may hold a password."""
        made: dict[str, list[str]] = {}
        for source in self.sources:
            option, _, value = source.partition(" ")
            full = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), value)
            made.setdefault(_SOURCES[option], []).append(full)
        return {name: " ".join(values) for name, values in made.items()}


def read(root: Path, name: str) -> Requirements:
    """The requirements file `name` below `root`, and the files that it names.

    Raises UsageError with file and line: what is no package with a version, or leads elsewhere.
    """
    reader = _Reader(root.resolve())
    reader.take(name, "serve.requirements")
    return Requirements(root / name, reader.contents, tuple(reader.sources), tuple(reader.warnings))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[str, bytes] = {}
        self.sources: list[str] = []
        self.warnings: list[str] = []

    def take(self, name: str, named_by: str) -> None:
        if name in self.contents:
            return
        path = self.root / name
        try:
            if not path.resolve().is_relative_to(self.root):
                raise _refused(named_by, f"{name} is outside of the source", "copy it into it")
            raw = path.read_bytes()
        except OSError as error:
            why = error.strerror or str(error)
            raise _refused(named_by, f"{name}: {why}", f"make {name}, or name another") from error
        self.contents[name] = raw
        for number, text in _lines(_decoded(raw)):
            self._line(name, f"{name} line {number}", text)

    def _line(self, name: str, where: str, text: str) -> None:
        if not text.startswith("-"):
            _refuse_unnamed(where, text)
            return
        match = _OPTION.fullmatch(text)
        option, value = (match[1], match[2].strip()) if match else (text, "")
        if option in _NESTED:
            if _URL.match(value):
                raise _refused(where, f"{value} is not in the source", "copy the file into it")
            self.take(_beside(name, value), where)
        elif option in _SOURCES:
            self._source(name, where, option, value)
        elif option in ("-e", "--editable"):
            hint = f"a module of your own in the source needs no line; else {_WHEEL}"
            raise _refused(where, "an editable install is a directory, not a package", hint)
        elif option not in _TAKEN or ":none:" in value:
            why = f"{option} asks for more than wheels"
            raise _refused(where, why, "take it out; a release installs wheels alone")

    def _source(self, name: str, where: str, option: str, value: str) -> None:
        if _SECRET.search(value):
            self.warnings.append(
                f"{where} holds a password of a package index, and is released; write ${{NAME}} in "
                "its place, and set that variable here"
            )
        if option in ("-f", "--find-links") and not _URL.match(value):
            below = _beside(name, value)
            shelf = self.root / below
            if not shelf.resolve().is_relative_to(self.root):
                raise _refused(
                    where, f"{value} is outside of the source", "copy the wheels into it"
                )
            if not shelf.is_dir():
                raise _refused(where, f"{value} is no directory", "make it, or take the line out")
            for wheel in sorted(shelf.glob("*.whl")):
                self.contents[f"{below}/{wheel.name}"] = wheel.read_bytes()
            value = str(shelf)
        self.sources.append(f"{option} {value}")


def _refuse_unnamed(where: str, text: str) -> None:
    """Refuse what is no package of an index: a path, a repository, an archive of source."""
    match = _NAMED.fullmatch(text)
    url = match["url"] if match else text if _URL.match(text) else None
    if url is not None:
        address = url.partition("#")[0]
        if address.lower().startswith(("https://", "http://")) and address.endswith(".whl"):
            return
        if "+" in url.partition(":")[0]:
            raise _refused(where, f"{text} is a repository, not a wheel", _WHEEL)
        raise _refused(where, f"{text} is no wheel of an index", _WHEEL)
    first = re.split(r"[\s;\[]", text, maxsplit=1)[0]
    if match is None or _ARCHIVE.search(first):
        if first.startswith((".", "/", "~")) or "/" in first or _ARCHIVE.search(first):
            raise _refused(where, f"{text} is a file here, not a package of an index", _WHEEL)
        raise _refused(where, f"{text} is no package and version", f"write it {_LIKE}")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something; one that ends in \\ goes on."""
    partial, number = "", 0
    for here, raw in enumerate(text.splitlines(), start=1):
        number = number if partial else here
        if raw.rstrip().endswith("\\") and not raw.lstrip().startswith("#"):
            partial += raw.rstrip()[:-1] + " "
            continue
        said = _COMMENT.sub("", partial + raw).strip()
        partial = ""
        if said:
            yield number, said
    if said := _COMMENT.sub("", partial).strip():
        yield number, said


def _decoded(raw: bytes) -> str:
    """As pip does: by its mark (PowerShell writes UTF-16), else UTF-8, else Latin-1."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return raw.decode(encoding, "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _beside(name: str, value: str) -> str:
    """A path that a file names, relative to the source; `..` may stay and is refused later."""
    return str(PurePosixPath(name).parent / value)


def _refused(where: str, why: str, hint: str) -> UsageError:
    return UsageError(
        f"{printable(where)} can't be locked",
        why=without_login(printable(why)),
        live="no release was made",
        hint=hint,
    )
