"""A manifest is accepted in one form only, and its id follows from its bytes."""

from __future__ import annotations

import json
import os
import posixpath
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.store.manifest import (
    File,
    Manifest,
    ManifestError,
    canonical,
    check_path,
    check_release_id,
    parse,
    release_id,
    render,
)

CREATED = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


def _manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "app": "macd-analysis",
        "env": "prod",
        "serial": 3,
        "created": CREATED,
        "expires": CREATED + timedelta(days=30),
        "files": (File("a/b.json", 2, "0" * 64), File("c.txt", 0, "1" * 64)),
        "lock": "f" * 64,
        "details": {"auc": 0.58},
    }
    return Manifest(**{**values, **changes})


def _document(**changes: Any) -> bytes:
    return canonical({**json.loads(render(_manifest())), **changes})


def test_round_trip_and_id() -> None:
    raw = render(_manifest())
    assert parse(raw) == _manifest()
    assert release_id(raw).startswith("20260301T120005Z-")
    assert release_id(raw) != release_id(render(_manifest(serial=4)))
    assert check_release_id(release_id(raw)) == release_id(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"serial": 0},
        {"serial": True},
        {"serial": 1.0},
        {"serial": 2**60},
        {"schema": 2},
        {"schema": True},
        {"app": "../app"},
        {"env": ""},
        {"lock": "F" * 64},
        {"created": "2026-03-01T12:00:05+00:00"},
        {"created": "2026-3-1T12:00:05Z"},
        {"expires": "2026-03-01T12:00:05Z"},
        {"files": []},
        {"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a/../../b", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": "a", "size": 1, "sha256": "0" * 63}]},
        {"files": [{"path": "a", "size": 1, "sha256": "0" * 64, "mode": 511}]},
        {"files": [{"path": p, "size": 1, "sha256": "0" * 64} for p in ("b", "a")]},
        {"files": [{"path": p, "size": 1, "sha256": "0" * 64} for p in ("a", "a")]},
        {"files": [{"path": p, "size": 1, "sha256": "0" * 64} for p in ("A", "a")]},
        {"files": [{"path": p, "size": 1, "sha256": "0" * 64} for p in ("a", "a/b")]},
        {"details": []},
        {"extra": 1},
    ],
)
def test_what_is_not_exactly_a_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        parse(_document(**changes))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]\n",
        b"\xff\xfe",
        b"{}",
        b'{"a":1,"a":1}\n',
        b'{"a":NaN}\n',
        b'{"a":1e999}\n',
        b"[" * 100_000,
        b" " * (5 * 1024 * 1024),
    ],
)
def test_bytes_that_are_no_manifest(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(raw)


def test_any_other_spelling_of_the_same_json_is_refused() -> None:
    raw = render(_manifest())
    for other in (raw + b" ", raw[:-1], json.dumps(json.loads(raw)).encode() + b"\n"):
        with pytest.raises(ManifestError, match="canonical"):
            parse(other)


@given(st.text(max_size=40))
def test_no_path_leaves_its_directory(path: str) -> None:
    try:
        checked = check_path(path)
    except ManifestError:
        return
    assert checked == path
    assert not path.startswith(("/", ".", "-"))
    assert ".." not in path.split("/")
    assert path.isprintable()


_NASTY = st.sampled_from(
    [
        "..", ".", "", "/", "\\", "-", " ", ".git", ".GIT", ".env", "\x1b[2J", "\n", "\u202e",
        "\u200b", "．．", "…", "‥", "∕", "／", "＼", "．git", "é", "e\u0301", "\u0301", "\ufe0f",
        "ﬁ", "\u03a9", "\u2126",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(_NASTY, st.text(max_size=8)), max_size=8).map("".join))
def test_no_path_of_an_own_application_leaves_it_or_deceives(path: str) -> None:
    try:
        checked = check_path(f"source/{path}")
    except ManifestError as error:
        assert str(error).isprintable()
        return
    assert checked == f"source/{path}"
    assert posixpath.normpath(f"/r/source/{path}") == f"/r/source/{path}"
    assert path.isprintable()
    assert "\\" not in path
    assert unicodedata.normalize("NFC", path) == path
    unified = unicodedata.normalize("NFKC", path)
    assert unified.count("/") == path.count("/")
    for part in (*path.split("/"), *unified.split("/")):
        assert part.casefold() not in (".", "..", ".git", ".env")
    assert not any(part.startswith(("-", " ")) or part.endswith(" ") for part in path.split("/"))
    assert all(len(os.fsencode(part)) <= 255 for part in path.split("/"))


@pytest.mark.parametrize(
    "path",
    [
        ".streamlit/config.toml",
        "data/ml_models/模型说明：第二版（旧）.md",
        "notebooks/second try (1).ipynb",
        "Größe/naïve.py",
        "lib/[slug]/__init__.py",
        "it's & that, 50%.txt",
        ".gitignore",
        ".env.example",
        "한국어.txt",
        "a" * 255,
    ],
)
def test_names_as_other_teams_have_them(path: str) -> None:
    assert check_path(f"source/{path}") == f"source/{path}"
    render(_manifest(files=(File(f"source/{path}", 1, "0" * 64),)))


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "a//b", "a/", "../x", "a/../b", ".", "-rf", "a/-x", "a\\b",
        "a\x1b[31m", "a\nb", "a\tb", "\u202egnp.exe", "a\u200bb", "a\u00a0b", "a\u3164",
        "\u0301a", "cafe\u0301", " a", "a ", "a/ /b", "．．/x", "‥", "a／b", "a＼b", ".git/config",
        "x/.GIT", "．git", ".env", "web/.Env", "C:x", "$(id)", "`id`", "a*", "a?", "a|b", "a<b",
        'a"b', "é" * 128, "x/" * 260 + "x", "\udce9",
    ],
)  # fmt: skip
def test_names_that_never_travel(path: str) -> None:
    with pytest.raises(ManifestError):
        check_path(f"source/{path}")


@pytest.mark.parametrize(
    "path", [".streamlit/config.toml", "a b", "模型", "data/.hidden", "source"]
)
def test_other_names_than_ascii_stand_below_source_alone(path: str) -> None:
    if path == "source":
        assert check_path(path) == path
        return
    with pytest.raises(ManifestError, match="unsafe path"):
        check_path(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [("A", "a"), ("ﬁ", "fi"), ("straße", "STRASSE"), ("Ａ", "a"), ("K", "\u212a"), ("x", "X/y")],
)
def test_two_names_that_a_disk_may_take_for_one(one: str, other: str) -> None:
    files = tuple(File(f"source/{name}", 1, "0" * 64) for name in sorted((one, other)))
    with pytest.raises(ManifestError):
        render(_manifest(files=files))


@pytest.mark.parametrize("path", ["runtime", "runtime/x", "release.env", "Manifest.json"])
def test_what_the_host_makes_is_no_file_of_a_release(path: str) -> None:
    with pytest.raises(ManifestError, match="made by the host"):
        render(_manifest(files=(File(path, 1, "0" * 64),)))


@pytest.mark.parametrize("text", ["", "20260301T120005Z-000000", "../20260301T120005Z-0000000a", 5])
def test_release_ids_never_become_other_paths(text: Any) -> None:
    with pytest.raises(ManifestError):
        check_release_id(text)
