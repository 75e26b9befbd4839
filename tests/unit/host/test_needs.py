"""A runtime that the host lacks something for: each cause is told with its own remedy."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from macd.deploy.candidate import Part, ReleaseCandidate, unpacked
from macd.host.failure import HostError
from macd.host.layout import Layout
from macd.host.store import runtimes
from tests.support.small_releases import compiled_pip
from tests.unit.host.test_runtimes import landed

pytestmark = pytest.mark.slow
Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A small file system of its own with these options."""
    app = tmp_path / "app"

    def make(options: str) -> Path:
        app.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(app)]
        if os.geteuid() or subprocess.run(argv, check=False, capture_output=True).returncode:
            pytest.skip("no root that may mount")
        return app

    yield make
    if app.is_mount():
        subprocess.run(["umount", "--lazy", str(app)], check=True)


def wheel(members: dict[str, bytes]) -> bytes:
    info = "tiny-1.0.dist-info"
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in {**members, f"{info}/RECORD": record.encode()}.items():
            made.writestr(name, data)
    return content.getvalue()


def build(app: Path, members: dict[str, bytes]) -> str:
    """Build a runtime of the package tiny, with a real pip."""
    pip = compiled_pip()
    wheels = []
    for name, file, data in (
        ("pip", pip.name, pip.read_bytes()),
        ("tiny", "tiny-1.0-py3-none-any.whl", wheel(members)),
    ):
        sha256, _ = landed(app, data)
        version = file.split("-")[1]
        wheels.append({"name": name, "version": version, "file": file, "sha256": sha256})
    raw = json.dumps({"wheels": wheels}).encode()
    return str(runtimes.install(Layout(str(app)), raw, ["tiny"])["lock"])


def refused(app: Path, members: dict[str, bytes]) -> HostError:
    with pytest.raises(HostError) as caught:
        build(app, members)
    assert caught.value.kind == "refused"
    assert "Python" not in caught.value.hint
    assert list((app / "runtimes").iterdir()) == []
    return caught.value


def extension() -> bytes:
    """Some library that this Python can load."""
    folder = next(path for path in sys.path if path.endswith("lib-dynload"))
    return min(Path(folder).glob("*.so"), key=lambda path: path.stat().st_size).read_bytes()


def test_a_disk_that_fills_up(mount: Mount) -> None:
    error = refused(mount("size=18m"), {"tiny.py": b"", "large": bytes(20_000_000)})
    assert error.what == "installing the wheels failed: the host's disk is full"
    assert "No space left" in error.why and "df -i" in error.hint


def test_inodes_that_run_out(mount: Mount) -> None:
    many = {f"tiny_{number}.txt": b"x" for number in range(100)}
    error = refused(mount("size=90m,nr_inodes=90"), {"tiny.py": b"", **many})
    assert error.what == "installing the wheels failed: the host's disk is full"


def test_blobs_on_a_file_system_of_their_own(mount: Mount, tmp_path: Path) -> None:
    app = tmp_path / "elsewhere"
    app.mkdir()
    assert runtimes.room(str(app))["blobs_free"] == -1
    (app / "blobs").symlink_to(mount("size=4m"))
    assert 0 < runtimes.room(str(app))["blobs_free"] <= 4 << 20


def test_a_file_system_mounted_noexec(mount: Mount) -> None:
    app = mount("size=90m,noexec")
    error = refused(app, {"tiny.abi3.so": extension()})
    assert error.what == f"importing the packages failed: {app} is mounted noexec"
    assert f"mount -o remount,exec {app} on the host" in error.hint
    assert runtimes.room(str(app / "not" / "there"))["noexec"] == str(app)
    subprocess.run(["mount", "-o", "remount,exec", str(app)], check=True)
    assert runtimes.room(str(app))["noexec"] == ""
    with pytest.raises(HostError) as other:  # loaded now, and found to be something else
        build(app, {"tiny.abi3.so": extension()})
    assert "does not define module export function" in other.value.why


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    code = b"import ctypes\nctypes.CDLL('libnot-here.so.7')\n"
    error = refused(tmp_path, {"tiny.py": code})
    assert (
        error.what == "importing the packages failed: the host lacks the library libnot-here.so.7"
    )
    assert "apt-file search libnot-here.so.7 on the host" in error.hint


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        (
            "OSError: libgomp.so.1: cannot open shared object file: No such file or directory",
            "the host lacks the library libgomp.so.1",
            "apt-get install libgomp1 on the host",
        ),
        (
            "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found "
            "(required by /opt/x.so)",
            "the host's C library has no GLIBC_2.38",
            "invoke release",
        ),
        ("OSError: [Errno 122] Disk quota exceeded", "the host's disk is full", "df -h"),
    ],
)
def test_what_a_failed_program_says_is_understood(said: str, what: str, hint: str) -> None:
    error = runtimes._host_failure("importing", f"Traceback ...\n{said}\n", "/")
    assert error is not None
    assert error.what == f"importing failed: {what}"
    assert hint in error.hint and said in error.why and error.kind == "refused"


@pytest.mark.parametrize(
    "said",
    [
        "ModuleNotFoundError: No module named 'tiny'",
        "ImportError: libstdc++.so.6: version `GLIBCXX_3.4.30' not found",
        "ImportError: x.so: failed to map segment from shared object",  # memory: it runs code
    ],
)
def test_another_cause_is_not_guessed(said: str) -> None:
    assert runtimes._host_failure("importing", said, "/") is None


def test_what_a_runtime_takes_is_known_before_it_is_built(tmp_path: Path) -> None:
    """Against what pip really makes of the same wheel."""
    members = {f"tiny/m{n}.py": b"x = 'some text of a module'\n" * 400 for n in range(40)}
    members |= {"tiny/__init__.py": b"", "tiny/data/weights": bytes(3_000_000)}
    path = tmp_path / "tiny.whl"
    path.write_bytes(wheel(members))
    part = Part(path.name, path.stat().st_size, "", 0, path)
    offer = ReleaseCandidate("", "", "", 1, 0.0, "", "", (), installs=(part,))
    footprint = unpacked(offer)
    runtime = tmp_path / "app" / "runtimes" / build(tmp_path / "app", members)
    made = [runtime, *runtime.rglob("*")]
    assert len(made) <= footprint.files <= len(made) + 30
    took = sum(path.lstat().st_blocks * 512 for path in made)
    assert took <= footprint.size < took * 1.6


def test_a_wheel_that_is_not_here_counts_as_it_is_packed() -> None:
    offer = ReleaseCandidate("", "", "", 1, 0.0, "", "", (), installs=(Part("x.whl", 9000, "", 0),))
    assert (
        unpacked(offer).size - unpacked(ReleaseCandidate("", "", "", 1, 0.0, "", "", ())).size
        >= 9000
    )


def test_a_missing_venv_is_named_with_the_package_of_this_very_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Ubuntu 22.04's python3-venv, python3.11 has nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [missing] = [one for one in runtimes.missing_programs() if one["name"] == "python3 -m venv"]
    assert missing["package"] == f"python3.{sys.version_info.minor}-venv"
    assert missing["needed"]
