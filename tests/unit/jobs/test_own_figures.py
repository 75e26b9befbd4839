"""Metrics by pointer and expression, criteria, what counts as written, environments."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macd.host.jobs import artefacts, environments, figures

# The document and pointers of RFC 6901, section 5.
RFC: dict[str, Any] = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6,
    " ": 7, "m~n": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1), ("/c%d", 2),
        ("/e^f", 3), ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8),
    ],
)  # fmt: skip
def test_pointers_of_the_rfc(pointer: str, value: Any) -> None:
    assert figures.pointed(RFC, pointer) == value


@pytest.mark.parametrize(
    "pointer",
    ["/none", "/foo/2", "/foo/-", "/foo/00", "/foo/-1", "/foo/0/x", "/m~2n", "/a~", "/foo/²"],
)
def test_pointers_to_nothing(pointer: str) -> None:
    with pytest.raises(LookupError, match=r"pointer|has no"):
        figures.pointed(RFC, pointer)


@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.text(), inner, min_size=1)))
def test_every_name_can_be_pointed_at(document: Any) -> None:
    pointer, here = "", document
    while isinstance(here, dict):
        name, here = next(iter(here.items()))
        pointer += "/" + name.replace("~", "~0").replace("/", "~1")
    assert figures.pointed(document, pointer) == here


@pytest.mark.parametrize(
    ("where", "text", "value", "why"),
    [
        ("/auc", '{"auc": 0.61}', 0.61, ""),
        ("/auc", '{"auc": 1}', 1.0, ""),
        ("/auc", '{"auc": NaN}', None, "not finite"),
        ("/auc", '{"auc": -Infinity}', None, "not finite"),
        ("/auc", '{"auc": 1' + "0" * 400 + "}", None, "not finite"),
        ("/auc", '{"auc": true}', None, "no number"),
        ("/auc", '{"auc": "0.61"}', None, "no number"),
        ("/auc", '{"auc": null}', None, "no number"),
        ("/auc", "{torn", None, "no JSON"),
        ("/auc", "[" * 100_000, None, "no JSON"),
        ("/auc", "{}", None, "has no /auc"),
        ("auc=([0-9.]+)", "auc=0.5\nauc=0.61\n", 0.61, ""),
        ("^auc (.*)$", "x\nauc 1e-3\n", 0.001, ""),
        ("auc=(.*)", "auc=nan", None, "not finite"),
        ("auc=(.*)", "auc=much", None, "no number"),
        ("auc=(.*)", "loss=1", None, "matches"),
        ("auc(=.)?", "auc", None, "no number"),
    ],
)
def test_a_figure_or_why_there_is_none(
    where: str, text: str, value: float | None, why: str
) -> None:
    number, said = figures.extract(where, text)
    assert number == value
    assert why in said
    assert bool(said) == (value is None)


@pytest.mark.parametrize(
    ("bound", "value", "ok", "threshold", "title"),
    [
        ({"min": 0.5}, 0.5, True, 0.5, "x >= 0.5"),
        ({"min": 0.5}, 0.49, False, 0.5, "x >= 0.5"),
        ({"max": 1e4}, 1e5, False, 1e4, "x <= 10,000"),
        ({"min": 0, "max": 1}, 2, False, 1, "x >= 0 and <= 1"),
        ({"min": 0, "max": 1}, -1, False, 0, "x >= 0 and <= 1"),
        ({"min": 0}, None, False, 0, "x >= 0"),
        ({"max": 0}, None, False, 0, "x <= 0"),
    ],
)
def test_criteria(
    bound: dict[str, Any], value: float | None, ok: bool, threshold: float, title: str
) -> None:
    asked = {"x": {"min": None, "max": None, "level": "warn", **bound}}
    [finding] = figures.judged(asked, {"x": (value, "" if value is not None else "gone")})
    assert (finding["ok"], finding["threshold"], finding["title"]) == (ok, threshold, title)
    assert (finding["level"], finding["value"]) == ("warn", value)
    assert finding["note"] == ("gone" if value is None else "")
    line = figures.lines({}, [finding])[-1]
    assert line.startswith("✓" if ok else "⚠")


FILES = ("models/a.pt", "models/b.pt", "c.txt")


def rewrite(path: Path) -> None:
    path.write_text(path.read_text())  # the same bytes, at another time


def append(path: Path) -> None:
    path.write_text(path.read_text() + "more")


def replace(path: Path) -> None:
    beside = path.with_name("beside")
    shutil.copyfile(path, beside)
    beside.rename(path)


WRITES = {"rewrite": rewrite, "append": append, "touch": Path.touch, "replace": replace}
LEAVES = {"read": Path.read_bytes, "chmod": lambda path: path.chmod(0o600)}
CHANGES = (*WRITES, *LEAVES, "move", "link")


@given(st.lists(st.tuples(st.sampled_from(FILES), st.sampled_from(CHANGES)), max_size=6))
def test_only_what_was_written_is_new(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str]]
) -> None:
    top = tmp_path_factory.mktemp("tree", numbered=True)
    original, tree = top / "original", top / "tree"
    (original / "models").mkdir(parents=True)
    for name in FILES:
        (original / name).write_text(f"content of {name}")
    copied = artefacts.copy(str(original), str(tree), [], now=time.time())
    files = {tree / name: {"new": False} for name in FILES}  # links share what is said of them
    for number, (name, change) in enumerate(changes):
        path, other = tree / name, tree / f"models/{number}.pt"
        if path not in files:
            continue
        if change == "move":
            files[path.rename(other)] = files.pop(path)
        elif change == "link":
            os.link(path, other)
            files[other] = files[path]
        else:
            (WRITES | LEAVES)[change](path)
            if change == "replace":
                files[path] = {}
            files[path]["new"] = files[path].get("new", True) or change in WRITES
    matches = artefacts.matches(str(tree), "**", copied)
    assert matches.written.keys() == {
        str(path.relative_to(tree)) for path, about in files.items() if about["new"]
    }
    assert set(matches.old) == {
        str(path.relative_to(tree)) for path, about in files.items() if not about["new"]
    }
    for name in FILES:
        assert (original / name).read_text() == f"content of {name}", "what was sent is unchanged"
    shutil.rmtree(top)


def test_a_link_inside_the_tree_is_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "m1.pt").write_text("x")
    (tmp_path / "latest.pt").symlink_to("m1.pt")
    (tmp_path / "gone.pt").symlink_to("m2.pt")
    matches = artefacts.matches(str(tmp_path), "*.pt", {})
    assert set(matches.written) == {"m1.pt", "latest.pt"}
    size, sha256 = artefacts.keep(matches.written["latest.pt"], str(tmp_path / "kept/latest.pt"))
    assert (size, sha256) == (1, hashlib.sha256(b"x").hexdigest())
    assert not (tmp_path / "kept/latest.pt").is_symlink()


def test_content_changed_behind_the_clocks_back_is_new(tmp_path: Path) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original/a").write_text("one")
    tree = tmp_path / "tree"
    copied = artefacts.copy(str(tmp_path / "original"), str(tree), ["a"], now=1e9)
    assert os.access(tree / "a", os.X_OK)
    status = (tree / "a").stat()
    (tree / "a").write_text("two")
    os.utime(tree / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert artefacts.is_new(str(tree / "a"), copied)


def test_requirements_follow_what_they_include() -> None:
    files = {
        "env/gpu.txt": b"-r ../base.txt\n-c pins.txt\n--requirement=more.txt\n-r gpu.txt\n",
        "base.txt": b"numpy  # -e not\n",
        "env/pins.txt": b"numpy==2.0\n",
        "env/more.txt": b"-r https://example.com/x.txt\n-r ../../out.txt\n",
    }
    requirements = environments.requirements(files.get, "env/gpu.txt")
    assert requirements == files
    digest = environments.digest_of(requirements)
    assert digest == environments.digest_of(dict(reversed(requirements.items())))
    assert digest != environments.digest_of({**requirements, "env/pins.txt": b"numpy==2.1\n"})
    assert not environments.local_lines(requirements)
    assert not environments.requirements(files.get, "none.txt")


@pytest.mark.parametrize(
    "text",
    [
        "-e .",
        "--editable ./pkg",
        ".",
        "./pkg",
        "..",
        ".[gpu]",
        "/opt/x.whl",
        "file:x",
        "a @ file:///x",
    ],
)
def test_paths_in_requirements_are_named(text: str) -> None:
    assert environments.local_lines({"r.txt": f"numpy\n{text}\n".encode()}) == [f"r.txt: {text}"]


@pytest.mark.parametrize(
    "text", ["numpy", "a.b==1", "--extra-index-url https://x/", "x @ https://y/z"]
)
def test_packages_of_an_index_are_no_paths(text: str) -> None:
    assert not environments.local_lines({"r.txt": text.encode()})


@pytest.mark.slow
def test_an_environment_is_built_once_and_half_of_one_never_used(tmp_path: Path) -> None:
    """Really built, from a wheel in the tree; what it runs is recorded."""
    tree, work = tmp_path / "tree", tmp_path / "work"
    (tree / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(tree / "wheels/theirs-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("theirs.py", "def main(): print('theirs')\n")
        about = "theirs-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\ntheirs = theirs:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    (tree / "gpu.txt").write_text("--no-index\n--find-links wheels\ntheirs\n")
    ran: list[list[str]] = []

    def run(argv: list[str]) -> None:
        ran.append(argv)
        if len(ran) == 1:
            raise KeyboardInterrupt
        subprocess.run(argv, cwd=tree, check=True, capture_output=True)

    def ensure() -> environments.Environment:
        return environments.ensure(str(work), str(tree), "gpu.txt", run)

    with pytest.raises(KeyboardInterrupt):
        ensure()
    made = ensure()
    assert made.built
    assert len(ran) == 3
    program = Path(made.python).parent / "theirs"
    assert subprocess.run([program], check=True, capture_output=True).stdout == b"theirs\n"
    assert not ensure().built
    assert len(ran) == 3
    complete = work / "environments" / made.digest / environments.COMPLETE
    assert json.loads(complete.read_text())["python"] == platform.python_version()
    complete.unlink()  # as a power cut leaves it
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        ensure()
    assert not (work / "environments" / made.digest).exists()
