"""Which wheels fit a host, and that a lock once resolved needs no network."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.release.lock import Lock, Wheel
from macd.release.wheelhouse import (
    Target,
    Wheelhouse,
    common,
    pip_tags,
    proved_with,
    requirements,
)

DEBIAN = Target("3.11", "x86_64", "glibc", "2.36")


def test_tags_go_down_from_the_hosts_own_c_library() -> None:
    tags = pip_tags(DEBIAN)
    assert tags[0] == "manylinux_2_36_x86_64"
    assert tags.index("manylinux_2_28_x86_64") < tags.index("manylinux_2_17_x86_64")
    assert tags[tags.index("manylinux_2_17_x86_64") + 1] == "manylinux2014_x86_64"
    assert tags[-1] == "linux_x86_64"
    old = pip_tags(Target("3.11", "aarch64", "glibc", "2.17"))
    assert "manylinux_2_28_aarch64" not in old
    assert old[:2] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert pip_tags(Target("3.12", "x86_64", "musl", "1.2"))[0] == "musllinux_1_2_x86_64"


@pytest.mark.parametrize(
    ("python", "platform", "fits"),
    [
        ("3.11", "linux-x86_64-glibc-2.36", True),
        ("3.11", "linux-x86_64-glibc-2.17", True),
        ("3.11", "linux-x86_64-glibc-2.41", False),
        ("3.12", "linux-x86_64-glibc-2.36", False),
        ("3.11", "linux-aarch64-glibc-2.36", False),
        ("3.11", "linux-x86_64-musl-1.2", False),
    ],
)
def test_a_lock_runs_where_python_machine_and_library_allow(
    python: str, platform: str, fits: bool
) -> None:
    assert DEBIAN.runs(Lock(python, platform, ())) is fits


def test_one_lock_fits_hosts_that_differ_only_in_the_c_librarys_age() -> None:
    older = Target("3.11", "x86_64", "glibc", "2.9")
    assert common({"a": DEBIAN, "b": older}) == older
    with pytest.raises(UsageError, match="can't fit all hosts"):
        common({"a": DEBIAN, "b": Target("3.12", "x86_64", "glibc", "2.36")})
    with pytest.raises(UsageError, match=r"Python 3\.9 can't run"):
        common({"a": Target("3.9", "x86_64", "glibc", "2.36")})


def test_the_service_needs_no_torch() -> None:
    names = {line.split(">")[0].lower() for line in requirements()}
    assert {"numpy", "polars", "lightgbm", "onnxruntime", "prometheus-client"} <= names
    assert not {"torch", "macd", "macd[market]", "fabric"} & names


def test_where_the_lock_is_for_another_machine_the_pins_count(tmp_path: Path) -> None:
    wheels = (
        Wheel("pip", "25.3", "p.whl", 1, "a" * 64),
        Wheel("ta-lib", "0.6", "t.whl", 1, "b" * 64),
    )
    pins = tmp_path / "constraints.txt"
    pins.write_text("# made\nTA_Lib==0.8.2\nnumpy==2.0\n")
    here = Target.here()
    assert proved_with(Lock(here.python, here.platform, wheels), pins) == {"ta-lib": "0.6"}
    elsewhere = Lock("3.99", here.platform, wheels)
    assert proved_with(elsewhere, pins) == {"ta-lib": "0.8.2"}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds wheels in a directory only; returns it. One pure package lies there, and pip."""
    import zipfile  # noqa: PLC0415

    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, version in (("Tiny_Thing", "1.5"), ("pip", "25.3")):
        stem = f"{name.lower()}-{version}"
        with zipfile.ZipFile(shelf / f"{stem}-py3-none-any.whl", "w") as archive:
            archive.writestr(
                f"{stem}.dist-info/METADATA",
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            )
            wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(f"{stem}.dist-info/WHEEL", wheel)
            archive.writestr(f"{stem}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_a_lock_is_resolved_once_and_then_needs_nothing(offline: Path, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "house")
    pins = tmp_path / "constraints.txt"
    pins.write_text("tiny-thing==1.5\n")
    lock, wheels = house.resolve(["tiny-thing>=1"], DEBIAN, pins)
    assert [(w.name, w.version) for w in lock.wheels] == [("pip", "25.3"), ("tiny-thing", "1.5")]
    assert lock.platform == "linux-x86_64-glibc-2.36"
    assert all(path.is_file() for path in wheels)
    for path in offline.iterdir():
        path.unlink()
    again, _ = house.resolve(["tiny-thing>=1"], DEBIAN, pins)
    assert again.raw == lock.raw
    wheels[0].write_bytes(b"damaged")
    with pytest.raises(MacdError, match="can't be had"):
        house.resolve(["tiny-thing>=1"], DEBIAN, pins)


def test_another_question_is_another_lock(offline: Path, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "house")
    pins = tmp_path / "constraints.txt"
    pins.write_text("tiny-thing==1.5\n")
    house.resolve(["tiny-thing"], DEBIAN, pins)
    pins.write_text("tiny-thing==1.6\n")
    with pytest.raises(MacdError) as caught:
        house.resolve(["tiny-thing"], DEBIAN, pins)
    assert "1.6" in caught.value.why
    kept = [path for path in (tmp_path / "house").iterdir() if not path.name.startswith(".")]
    assert len(kept) == 1
    assert [path for path in (tmp_path / "house").iterdir() if path not in kept] == []
    assert stat.S_ISDIR(os.stat(kept[0]).st_mode)  # noqa: PTH116


def test_a_package_without_a_wheel_that_fits_is_named(offline: Path, tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("")
    with pytest.raises(MacdError) as caught:
        Wheelhouse(tmp_path / "house").resolve(["no-such-thing"], DEBIAN, pins)
    assert "no-such-thing" in caught.value.why
    assert "linux-x86_64-glibc-2.36" in caught.value.what
