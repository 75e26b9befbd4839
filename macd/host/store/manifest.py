"""One strict reader of release manifests, the same here and on the host, so both mean one thing.

Pure: bytes in, values or ManifestError out. It does not check signatures, disks or clocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MAX_BYTES = 4 * 1024 * 1024
SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_RELEASE_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# No control characters, no leading dash or dot: nothing hidden, nothing taken for an option.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,127}\Z")
OWN = "source/"  # below it other people's names stand: see check_own_path
_LONGEST_PATH, _LONGEST_PART = 512, 255  # characters; bytes, which is what a file system takes
# What other systems forbid in a name, what a shell expands, and what looks like nothing at all.
_UNFIT = re.compile(
    r"[\\/<>:\"|?*`$\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    r"\U000e0100-\U000e01ef]"
)
# git reads its settings from the one, programs and libraries theirs from the other.
_TAKEN = {".", "..", ".git", ".env"}
# At the top of a release a host puts these itself.
_HOSTS = {"manifest.json", "manifest.json.sig", "runtime", "release.env"}
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class ManifestError(ValueError):
    """The bytes are not a manifest we accept; the message says what is wrong with them."""


@dataclass(frozen=True)
class File:
    """One file of a release: relative POSIX path, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a release says of itself. Times are UTC; `details` holds what no decision is made on."""

    app: str
    env: str
    serial: int
    created: datetime
    expires: datetime
    files: tuple[File, ...]
    lock: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def serves(self) -> tuple[str, ...]:
        """The symbols that its models know; see `symbols_of`."""
        return symbols_of(self.details)


def symbols_of(details: Mapping[str, Any]) -> tuple[str, ...]:
    """The symbols that a release's models know, from its details; () where they name none.

    First the one that was trained on. Then those that it was trained on as well, by name; a release
    of one symbol knows its panel's others.
    """
    panel, several = details.get("panel"), details.get("symbols")
    more = sorted(several) if isinstance(several, dict) else panel
    named = [details.get("symbol"), *(more if isinstance(more, list) else ())]
    return tuple(dict.fromkeys(symbol for symbol in named if isinstance(symbol, str)))


def several_of(details: Mapping[str, Any]) -> tuple[str, ...]:
    """The symbols of a release of several, from its details; () of one symbol's."""
    several = details.get("symbols")
    return tuple(map(str, several)) if isinstance(several, dict) else ()


def details_of(details: Mapping[str, Any], symbol: str) -> Mapping[str, Any]:
    """What a release of several symbols says of one of them; else all it says."""
    several = details.get("symbols")
    mine = several.get(symbol) if isinstance(several, dict) else None
    return {**details, **mine, "symbol": symbol} if isinstance(mine, dict) else details


def canonical(document: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, finite numbers only, one newline at the end.

    Raises:
        ManifestError: the document holds NaN, infinities or values JSON has no form for.
    """
    try:
        text = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError("no canonical JSON for this: %s" % error) from error


def render(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest: what is signed, hashed and sent.

    Raises:
        ManifestError: the values would not be accepted back.
    """
    raw = canonical(
        {
            "schema": SCHEMA,
            "app": manifest.app,
            "env": manifest.env,
            "serial": manifest.serial,
            "created": manifest.created.strftime(_TIME),
            "expires": manifest.expires.strftime(_TIME),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files],
            "lock": manifest.lock,
            "details": manifest.details,
        }
    )
    parse(raw)
    return raw


def release_id(raw: bytes) -> str:
    """`YYYYMMDDTHHMMSSZ-<8 hex of the manifest hash>` of these exact bytes."""
    created = parse(raw).created.strftime("%Y%m%dT%H%M%SZ")
    return "%s-%s" % (created, hashlib.sha256(raw).hexdigest()[:8])


def check_release_id(text: Any) -> str:
    """Return a well-formed release id unchanged.

    Raises:
        ManifestError: it is not one, and so must never become a path.
    """
    if not isinstance(text, str) or not _RELEASE_ID.match(text):
        raise ManifestError("not a release id: %.80r" % (text,))
    return text


def check_path(path: Any) -> str:
    """Return a relative POSIX path that stays inside its directory, unchanged.

    Raises:
        ManifestError: absolute, empty, with `..`, hidden, or with characters no file here needs.
    """
    if not isinstance(path, str) or len(path) > _LONGEST_PATH:
        raise ManifestError("not a usable path: %.80r" % (path,))
    if path.startswith(OWN):
        check_own_path(path[len(OWN) :])
    elif not all(_PART.match(part) for part in path.split("/")):
        raise ManifestError("unsafe path: %a" % path)
    return path


def travels(path: str) -> bool:
    """Whether a release can hold that path below its source; see check_own_path."""
    try:
        check_own_path(path)
    except ManifestError:
        return False
    return True


def check_own_path(path: Any) -> str:
    """Return a path inside an application of the team's own, unchanged.

    Letters of any script, spaces, leading dots and most signs are taken. No part may lead out,
    begin with a dash or a mark that joins what stands before it, begin or end with a space, hold
    what no terminal shows, or turn into another name when Unicode's forms are unified; none is
    `.git` or `.env`.

    Raises:
        ManifestError: it is not such a path.
    """
    if not isinstance(path, str) or len(path) > _LONGEST_PATH:
        raise ManifestError("not a usable path: %.80a" % (path,))
    if not all(map(_is_own_part, path.split("/"))):
        raise ManifestError("unsafe path: %a" % path)
    return path


def _is_own_part(part: str) -> bool:
    if not part or not part.isprintable() or part.startswith("-") or part != part.strip():
        return False
    unified = unicodedata.normalize("NFKC", part)  # what some systems make of a name
    if _UNFIT.search(part) or {"/", "\\"} & set(unified) or unified.casefold() in _TAKEN:
        return False
    if unicodedata.normalize("NFC", part) != part or unicodedata.category(part[0])[0] == "M":
        return False
    return len(part.encode("utf-8")) <= _LONGEST_PART


def folded(path: str) -> str:
    """The same text for two paths that are one where case and Unicode's forms don't count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def parse(raw: bytes) -> Manifest:
    """Read canonical manifest bytes.

    Raises:
        ManifestError: too large, not canonical, unknown or missing fields, unsafe paths,
            duplicates, impossible numbers or times.
    """
    document = _load(raw)
    fields = {"schema", "app", "env", "serial", "created", "expires", "files", "lock", "details"}
    if not isinstance(document, dict) or set(document) != fields:
        actual = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise ManifestError("fields are not %s: %.200s" % (sorted(fields), actual))
    if type(document["schema"]) is not int or document["schema"] != SCHEMA:
        raise ManifestError("schema %.80r; this code reads %d" % (document["schema"], SCHEMA))
    manifest = Manifest(
        app=_text(document, "app", _NAME),
        env=_text(document, "env", _NAME),
        serial=_count(document["serial"], "serial", least=1),
        created=_time(document, "created"),
        expires=_time(document, "expires"),
        files=_files(document["files"]),
        lock=_text(document, "lock", _SHA256),
        details=_details(document["details"]),
    )
    if manifest.expires <= manifest.created:
        raise ManifestError("expires before it was created")
    return manifest


def _load(raw: bytes) -> Any:
    if len(raw) > MAX_BYTES:
        raise ManifestError("%d bytes; at most %d" % (len(raw), MAX_BYTES))
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constant
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError("not JSON: %s" % error) from error
    if canonical(document) != raw:
        raise ManifestError("JSON, but not in canonical form")
    return document


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ManifestError("a key stands twice in one object")
    return fields


def _no_constant(name: str) -> Any:
    raise ManifestError("%s is not a number" % name)


def _text(document: dict[str, Any], key: str, shape: re.Pattern[str]) -> str:
    value = document[key]
    if not isinstance(value, str) or not shape.match(value):
        raise ManifestError("%s: %.80r" % (key, value))
    return value


def _count(value: Any, what: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**53:
        raise ManifestError("%s: %.80r" % (what, value))
    return value


def _time(document: dict[str, Any], key: str) -> datetime:
    try:
        moment = datetime.strptime(document[key], _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError) as error:
        raise ManifestError("%s: %s" % (key, error)) from error
    if moment.strftime(_TIME) != document[key]:
        raise ManifestError("%s: %.80r" % (key, document[key]))
    return moment


def _files(value: Any) -> tuple[File, ...]:
    if not isinstance(value, list) or not value:
        raise ManifestError("files: an empty release")
    files = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"path", "size", "sha256"}:
            raise ManifestError("files: not {path, size, sha256}: %.80r" % (entry,))
        path = check_path(entry["path"])
        if folded(path.split("/")[0]) in _HOSTS:
            raise ManifestError("files: %a is made by the host" % path)
        files.append(File(path, _count(entry["size"], path), _text(entry, "sha256", _SHA256)))
    paths = [f.path for f in files]
    if paths != sorted(paths):
        raise ManifestError("files: not sorted by path")
    _no_clashes(paths)
    return tuple(files)


def _no_clashes(paths: list[str]) -> None:
    # Two names that fold to one on a case-insensitive disk would overwrite each other there.
    names = [folded(path) for path in paths]
    if len(set(names)) != len(names):
        raise ManifestError("files: a path stands twice")
    directories = {"/".join(p.split("/")[:n]) for p in names for n in range(1, p.count("/") + 1)}
    clash = sorted(directories & set(names))
    if clash:
        raise ManifestError("files: %a is a file and a directory" % clash[0])


def _details(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError("details: not an object")
    if not _finite(value):
        raise ManifestError("details: a number that is not finite")
    return value


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(inner) for inner in value.values())
    return all(_finite(inner) for inner in value) if isinstance(value, list) else True
