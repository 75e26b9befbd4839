"""What is run or installed from the blob store was hashed just before; nothing of a killed build
is used again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.rpc import blobs
from macd.host.store import runtimes
from macd.host.systemd.sandbox import DIRECT, Sandbox


def landed(app: Path, data: bytes) -> tuple[str, Path]:
    """Its hash, and where it stands in the blob store."""
    sha256 = hashlib.sha256(data).hexdigest()
    blob = Path(blobs.path_of(str(app), sha256))
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return sha256, blob


def pip_that_says(marker: Path) -> bytes:
    """A wheel in pip's place: run as pip is, it leaves a mark."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("pip/__main__.py", f"open({str(marker)!r}, 'w').close()\n")
    return content.getvalue()


@pytest.mark.parametrize("altered", ["pip", "tiny", None])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_wheel_is_hashed_before_it_is_run_or_installed(
    tmp_path: Path, altered: str | None, how: str
) -> None:
    app, marker = tmp_path / "app", tmp_path / "pip-was-run"
    wheels, stand = [], {}
    for name, data in {"tiny": b"a wheel", "pip": pip_that_says(marker)}.items():
        sha256, stand[name] = landed(app, data)
        wheels.append({"name": name, "version": "1", "file": f"{name}-1.whl", "sha256": sha256})
    raw = json.dumps({"wheels": wheels}).encode()
    if altered is None:
        assert runtimes.install(Layout(str(app)), raw, [])["built"]
        assert marker.exists()
        return
    if how == "gone":
        stand[altered].unlink()
    else:
        data = stand[altered].read_bytes()
        stand[altered].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(HostError, match=f"the wheel {altered}-1.whl ") as caught:
        runtimes.install(Layout(str(app)), raw, [])
    assert "deploy again" in caught.value.hint
    assert not marker.exists()
    assert list((app / "runtimes").iterdir()) == []
    assert not stand[altered].exists()  # so that it is sent again


def test_what_a_killed_build_left_is_ended_then_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    raw = b'{"wheels":[]}'
    lock = hashlib.sha256(raw).hexdigest()
    left = tmp_path / "runtimes" / f".building-{lock}"
    left.mkdir(parents=True)
    (left / "sitecustomize.py").write_text("raise SystemExit('not of this build')\n")
    ended: list[bool] = []
    monkeypatch.setattr(Sandbox, "end_leftovers", lambda _: ended.append(left.exists()))
    assert runtimes.install(layout, raw, [])["built"]
    assert ended == [True]  # while it could still write there
    assert [path.name for path in (tmp_path / "runtimes").iterdir()] == [lock]
    assert not (tmp_path / "runtimes" / lock / "sitecustomize.py").exists()


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A runtime as an install leaves it: this Python, and the package tiny with its RECORD."""
    packages = tmp_path / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    (packages / "Tiny_x-1.0.dist-info").mkdir(parents=True)
    (packages / "tiny.py").write_text("x = 1\n")
    (packages / "Tiny_x-1.0.dist-info" / "RECORD").write_text(
        '"tiny.py",sha256=AAAA,6\n../../../bin/tiny,sha256=AAAA,2\n'
        "__pycache__/tiny.pyc,,\nplain.txt,,\nTiny_x-1.0.dist-info/RECORD,,\n"
    )
    (packages / "plain.txt").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tiny").write_text("#!")
    (tmp_path / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    return tmp_path


LIB = "lib/python*/site-packages"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("true", ""),
        (f"rm {LIB}/tiny.py", "its runtime lacks 1 files as installed (tiny.py)"),
        (f"echo >> {LIB}/tiny.py", "its runtime lacks 1 files as installed (tiny.py)"),
        (f"ln -sf /bin/sh {LIB}/tiny.py", "its runtime lacks 1 files as installed (tiny.py)"),
        (f"rm {LIB}/plain.txt", "its runtime lacks 1 files as installed (plain.txt)"),
        ("rm bin/tiny", "its runtime lacks 1 files as installed (../../../bin/tiny)"),
        (f"rm -r {LIB}/*", "its runtime lacks 1 packages (tiny-x)"),
        (f"cd {LIB}/Tiny*; rm RECORD; mkfifo RECORD", "1 packages (tiny-x)"),
        (f"echo tiny.py,, > {LIB}/*/RECORD", ""),
        (f"echo tiny.py > {LIB}/*/RECORD", "its runtime lacks 1 packages (tiny-x)"),
        ("mv lib/python* lib/python3.1", "its packages were installed for another one"),
        ("rm bin/python", "its runtime has no Python"),
        ("ln -sf /bin/false bin/python", "its Python does not run"),
        ("rm -r $PWD", "its runtime is gone"),
    ],
)
def test_a_runtime_that_is_not_whole_any_more_is_told(
    built: Path, damage: str, problem: str
) -> None:
    subprocess.run(["/bin/bash", "-ec", damage], cwd=built, check=True)
    wheels = [{"name": "tiny-x"}, {"name": "pip"}]
    wrong = runtimes.wrong_with(str(built), wheels, DIRECT)
    assert problem in wrong
    assert bool(wrong) == bool(problem)


class Alone(Sandbox):
    """One in which no two processes can work together."""

    def run(self, argv: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if argv[argv.index("-j") + 1] != "1":
            return subprocess.CompletedProcess(argv, 1, "", "PermissionError: no semaphores")
        return super().run(argv, **how)


@pytest.mark.parametrize("sandbox", [DIRECT, Alone("user", None)])
def test_packages_are_compiled_though_one_file_is_no_python(built: Path, sandbox: Sandbox) -> None:
    (packages,) = built.glob(LIB)
    (packages / "template.py").write_text("{{ not yet }} python\n")
    runtimes._compile(str(built), sandbox)
    assert [path.name.partition(".")[0] for path in packages.glob("__pycache__/*.pyc")] == ["tiny"]


def test_a_disk_that_fills_up_while_compiling_is_named(built: Path) -> None:
    class Full(Sandbox):
        def run(self, argv: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(argv, 1, "", "OSError: No space left on device")

    with pytest.raises(HostError, match="the host's disk is full"):
        runtimes._compile(str(built), Full("user", None))
