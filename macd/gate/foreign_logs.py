"""Logs as other writers, rotations and containers leave them, made plain for the parser.

Compressed files, other encodings and the wrappers of container engines and of journald are unpacked
into a directory of copies. What was met is said. Files that are plain already are read where they
are.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from macd.host.judge import reading
from macd.host.judge.parse import LONGEST, Bad, moment, parse
from macd.host.judge.reading import Source

_MAGIC = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_NOT_UNPACKED = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
}
_OTHER = re.compile(r"[^.].*\.(jsonl|ndjson|json|log|txt|out)([.-][0-9]{1,8})?", re.IGNORECASE)
_CRI = re.compile(rb"\d{4}-\d\d-\d\dT\S+ (?:stdout|stderr) ([FP]) ?(.*)", re.DOTALL)
_LARGEST = 8 << 30  # unpacked; a small file can claim to be without end
_LOOKED_AT = 64
_PIECE = 1 << 20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_WORDS = {
    "packed": "compressed",
    "utf-16": "in UTF-16",
    "bom": "with a byte order mark",
    "docker": "with lines wrapped by Docker",
    "cri": "with lines wrapped by a Kubernetes node",
    "journal": "with lines exported from journald",
    "export": "with lines exported from journald",
    "array": "with all lines in one JSON list",
    "epoch": "with times counted from 1970",
    "case": "with levels that are not in capitals",
    "number": "with levels that are numbers",
    "prefix": "with a prefix before each line",
    "last": "whose last line has no end",
}


@dataclass
class Logs:
    """Files to read, oldest first, and what was met in them, in words."""

    sources: list[Source]
    notes: list[str] = field(default_factory=list)


def plain(place: Path, copies: Path) -> Logs:
    """The logs of a directory, or one file, as plain JSON lines; what isn't so is copied there.

    Files called as the service's own come alone where there are some. Nothing is said of a
    directory without logs: it has no sources.
    """
    files = _files(place)
    met: Counter[str] = Counter()
    dropped = 0
    notes: list[str] = []
    ready: list[tuple[Path, Path]] = []  # the file's own path, and the one to read
    for number, path in enumerate(files):
        try:
            kinds = _kinds(path)
            last = b"" if kinds else _unended(path)
            if _object(last) is not None:  # whole, but for the line end: nobody writes on here
                kinds = ["last"]
            elif last:
                notes.append(f"the last line of {path.name} is cut off: left out")
            if not kinds:
                ready.append((path, path))
                continue
            copy = copies / f"{number:05d}" / _unpacked_name(path)
            copy.parent.mkdir(parents=True)
            dropped += _rewrite(path, copy, kinds)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            notes.append(f"{path.name} can't be unpacked and is left out: {error}")
            continue
        met.update(kinds)
        ready.append((path, copy))
    for at, (path, read) in enumerate(ready):
        met.update(forms := _forms(read))
        if forms & {"epoch", "case"}:
            copy = copies / f"{at:05d}-spelt" / read.name
            copy.parent.mkdir(parents=True)
            _spell(read, copy)
            ready[at] = path, copy
    notes += [
        f"{count} file{'s' if count > 1 else ''} {_WORDS[kind]}" for kind, count in met.items()
    ]
    if dropped:
        notes.append(f"{dropped} lines between the signal lines are no JSON and are left out")
    ready.sort(key=lambda pair: _began(*pair))
    return Logs([Source(path, path.stat().st_size) for _, path in ready], notes)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        return []
    there = sorted(path for path in place.iterdir() if path.is_file())
    bare = {path: _unpacked_name(path) for path in there}
    own = [path for path in there if reading.NAME.fullmatch(bare[path])]
    return own or [path for path in there if _OTHER.fullmatch(bare[path])]


def _unpacked_name(path: Path) -> str:
    return re.sub(r"\.(gz|bz2|xz|zst|zip|7z|lz4)$", "", path.name)


def _began(own: Path, path: Path) -> tuple[str, int, str]:
    """By the days in the service's names; others by the time of the first line that has one."""
    if reading.NAME.fullmatch(_unpacked_name(own)):
        return re.sub(r"\D", "", own.name), 0, own.name
    with path.open("rb") as file:
        for raw in file.readlines(_PIECE):
            line = parse(raw)
            if not isinstance(line, Bad):
                return "", line.time, own.name
    return "", 0, own.name


def _kinds(path: Path) -> list[str]:
    """What has to be unpacked, outermost first; [] for plain lines."""
    kinds = []
    with _opened(path) as file:
        head = file.read(_PIECE)
    if _packer(path) is not None:
        kinds.append("packed")
    encoding = _encoding(head)
    if encoding != "utf-8":
        kinds.append("bom" if encoding == "utf-8-sig" else "utf-16")
        head = head.decode(encoding, "replace").encode()
    lines = [line for line in head.split(b"\n")[:_LOOKED_AT] if line.strip()]
    if head.lstrip().startswith(b"["):
        return [*kinds, "array"]
    wrapper = Counter(filter(None, map(_wrapper, lines))).most_common(1)
    enough = 8 if wrapper and wrapper[0][0] == "export" else 2  # of an entry's lines, most are not
    return [*kinds, *(kind for kind, count in wrapper if count * enough >= len(lines))]


def _unended(path: Path) -> bytes:
    """The last line, where it has no line end; of a very long one the end of it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST))
        return file.read().rpartition(b"\n")[2].strip()


def _forms(path: Path) -> set[str]:
    """How the first lines are written, where the service would write otherwise."""
    forms = set()
    with path.open("rb") as file:
        for document in filter(None, map(_object, file.readlines(_PIECE)[:_LOOKED_AT])):
            time, level = document.get("timestamp"), document.get("level")
            if type(time) in (int, float) or (isinstance(time, str) and time.isdigit()):
                forms.add("epoch")
            if isinstance(level, str) and level != level.upper():
                forms.add("case")
            if type(level) is int:
                forms.add("number")
    return forms


def _spell(path: Path, copy: Path) -> None:
    """Copy it with levels and times as the service writes them, as if no collector had been there.

    Only lines that are the service's own by all else: on a host those are held to its own spelling.
    """
    with path.open("rb") as file, copy.open("wb") as out:
        for line in _lines(file, "utf-8"):
            document = _object(line)
            if document and document.get("seq") and document.get("release"):
                out.write(json.dumps(_spelt(document)).encode() + b"\n")
            else:
                out.write(line.rstrip(b"\r\n") + b"\n")


def _spelt(document: dict[str, Any]) -> dict[str, Any]:
    if isinstance(level := document.get("level"), str):
        document["level"] = level.upper()
    for name in ("timestamp", "bar_time"):
        value = document.get(name)
        counted = type(value) in (int, float) or (isinstance(value, str) and value.isdigit())
        if counted and (epoch := moment(value)) is not None:
            document[name] = datetime.fromtimestamp(epoch / 1000, UTC).isoformat()
    return document


def _wrapper(line: bytes) -> str:
    if line.startswith((b"__CURSOR=", b"__REALTIME_TIMESTAMP=", b"MESSAGE=")):
        return "export"
    if _CRI.fullmatch(line.rstrip(b"\r")):
        return "cri"
    document = _object(line)
    if document is None:
        return "prefix" if _after_prefix(line) else ""
    if isinstance(document.get("log"), str) and "stream" in document:
        return "docker"
    return "journal" if "__REALTIME_TIMESTAMP" in document or "MESSAGE" in document else ""


def _rewrite(path: Path, copy: Path, kinds: list[str]) -> int:
    """Write the lines as they were before they were wrapped; how many were left out."""
    wrapper = kinds[-1] if kinds[-1] in ("docker", "cri", "journal", "export", "prefix") else ""
    dropped = 0
    with _opened(path) as file, copy.open("wb") as out:
        encoding = _encoding(file.read(_PIECE))
        file.seek(0)
        lines: Iterable[bytes] = _lines(file, encoding)
        if kinds[-1] == "array":
            lines = _elements(b"\n".join(lines))
        for line in _unwrapped(lines, wrapper) if wrapper else lines:
            if wrapper and line.strip() and _object(line) is None:
                dropped += 1
                continue
            out.write(line.rstrip(b"\r\n") + b"\n")
    return dropped


def _elements(text: bytes) -> Iterator[bytes]:
    try:
        rows = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    yield from (json.dumps(row).encode() for row in rows if isinstance(row, dict))


def _lines(file: IO[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest, size = "", 0
    while piece := file.read(_PIECE):
        size += len(piece)
        if size > _LARGEST:
            raise ValueError(f"more than {_LARGEST >> 30} GiB")
        *lines, rest = (rest + decoder.decode(piece)).split("\n")
        yield from (line.encode("utf-8", "replace") for line in lines)
        rest = rest[: LONGEST + 1]
    if rest := rest + decoder.decode(b"", final=True):
        yield rest.encode("utf-8", "replace")


def _unwrapped(lines: Iterable[bytes], wrapper: str) -> Iterator[bytes]:
    partial = b""  # a long line comes in parts
    for line in lines:
        if wrapper == "export" and not line.startswith(b"MESSAGE="):
            continue
        text, whole = _inner(line.rstrip(b"\r\n"), wrapper)
        partial = (partial + text)[: LONGEST + 1]
        if whole:
            yield partial
            partial = b""
    if partial:
        yield partial


def _inner(line: bytes, wrapper: str) -> tuple[bytes, bool]:
    """What a wrapped line holds, and whether it ends there."""
    if wrapper == "cri":
        match = _CRI.fullmatch(line)
        return (match[2], match[1] == b"F") if match else (line, True)
    if wrapper == "export":
        return line.removeprefix(b"MESSAGE="), True
    if wrapper == "prefix":
        return _after_prefix(line) or line, True
    document = _object(line) or {}
    text = document.get("log" if wrapper == "docker" else "MESSAGE")
    if isinstance(text, list):  # journald's form of bytes that are no text
        raw = bytes(n for n in text if isinstance(n, int) and 0 <= n < 256)
        text = raw.decode("utf-8", "replace")
    if not isinstance(text, str):
        return line, True
    return text.rstrip("\r\n").encode("utf-8", "replace"), wrapper != "docker" or text[-1:] == "\n"


def _after_prefix(line: bytes) -> bytes:
    """The JSON object at the end of a line, as syslog and journalctl print it; b"" without one."""
    at = line.find(b"{")
    text = line[at:].strip() if at > 0 else b""
    return text if _object(text) is not None else b""


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _encoding(head: bytes) -> str:
    if head.startswith(_UTF16):
        return "utf-16"
    if head.startswith(_BOM):
        return "utf-8-sig"
    if head[:1] == b"{" and head[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if head[:2] == b"\0{" else "utf-8"


def _packer(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(8)
    if other := next((n for magic, n in _NOT_UNPACKED.items() if head.startswith(magic)), ""):
        raise ValueError(f"packed by {other}: unpack it first")
    return next((opener for magic, opener in _MAGIC if head.startswith(magic)), None)


def _opened(path: Path) -> IO[bytes]:
    opener = _packer(path)
    made: IO[bytes] = opener(path, "rb") if opener else path.open("rb")
    return made
