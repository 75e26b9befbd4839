"""Which wheels fit a host, and that a lock once resolved needs no network."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.release import requirements as files
from macd.release.lock import Lock, Wheel
from macd.release.wheelhouse import (
    Target,
    Wheelhouse,
    common,
    pip_tags,
    proved_with,
    requirements,
)
from tests.support import wheels as tiny
from tests.support.wheels import put

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


def test_on_a_machine_that_is_no_linux_no_lock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.delattr("os.confstr")
    here = Target.here()
    assert not here.runs(Lock(here.python, f"linux-{here.machine}-glibc-2.17", ()))


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
    shelf = tmp_path / "shelf"
    for name, version in (("Tiny_Thing", "1.5"), ("pip", "25.3")):
        put(shelf, name, version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_package_without_a_wheel_that_fits_is_named(offline: Path, tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("")
    with pytest.raises(MacdError) as caught:
        Wheelhouse(tmp_path / "house").resolve(["no-such-thing"], DEBIAN, pins)
    assert "no-such-thing" in caught.value.why
    assert "linux-x86_64-glibc-2.36" in caught.value.what


# A requirements.txt of the team's own.


def _asked(top: Path, text: str, **others: str) -> files.Requirements:
    for name, content in {"requirements": text, **others}.items():
        (top / f"{name}.txt").write_text(content)
    return files.read(top, "requirements.txt")


def _locked(top: Path, text: str, target: Target = DEBIAN, **others: str) -> list[str]:
    lock, paths = Wheelhouse(top / "house").resolve_file(_asked(top, text, **others), target)
    assert [path.name for path in paths] == [wheel.file for wheel in lock.wheels]
    return [f"{wheel.name}=={wheel.version}" for wheel in lock.wheels if wheel.name != "pip"]


@pytest.mark.slow
def test_ranges_constraints_and_files_in_files(offline: Path, tmp_path: Path) -> None:
    for version in ("1.0", "1.4", "2.0"):
        put(offline, "numbers", version)
    put(offline, "frames", "3.1", needs=("numbers>=1.1", 'speed; extra == "fast"'))
    put(offline, "speed", "0.1")
    text = "-r base.txt\n-c pins.txt\nframes[fast]>=3,<4  # as the docs say\n"
    pins = "numbers==1.4\n"
    made = _locked(tmp_path, text, base="tiny-thing\n", pins=pins)
    assert made == ["frames==3.1", "numbers==1.4", "speed==0.1", "tiny-thing==1.5"]


@pytest.mark.slow
def test_markers_are_those_of_the_host(offline: Path, tmp_path: Path) -> None:
    old, new, arm = "python_version < '3.9'", "python_version >= '3.9'", "platform_machine"
    put(offline, "for-old", "1.0")
    put(offline, "for-new", "1.0")
    put(offline, "for-arm", "1.0")
    put(offline, "frames", "1", needs=(f"for-old; {old}", f"for-new; {new}"))
    text = f"frames\nfor-arm; {arm} == 'aarch64'\n"
    assert _locked(tmp_path, text) == ["for-new==1.0", "frames==1"]
    other = Target("3.8", "aarch64", "glibc", "2.31")
    assert _locked(tmp_path, text, other) == ["for-arm==1.0", "for-old==1.0", "frames==1"]


@pytest.mark.slow
def test_hashes_in_the_file_are_required(offline: Path, tmp_path: Path) -> None:
    wheel = put(offline, "numbers", "1.0")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert _locked(tmp_path, f"numbers==1.0 --hash=sha256:{digest}\n") == ["numbers==1.0"]
    with pytest.raises(MacdError) as caught:
        _locked(tmp_path, f"numbers==1.0 --hash=sha256:{'0' * 64}\n")
    assert "DO NOT MATCH THE HASHES" in caught.value.why
    assert "requirements.txt" in caught.value.hint
    assert "numbers==1.0 from" in caught.value.why  # pip names it below its error
    assert f"Expected sha256 {'0' * 64}" in caught.value.why
    put(offline, "others", "1.0")
    with pytest.raises(MacdError) as caught:
        _locked(tmp_path, f"numbers==1.0 --hash=sha256:{digest}\nothers\n")
    assert "These do not:\nothers from" in caught.value.why


@pytest.mark.slow
def test_wheels_of_a_directory_in_the_source(offline: Path, tmp_path: Path) -> None:
    put(tmp_path / "wheels", "ours", "7", modules={"ours.py": "X = 1\n"})
    assert _locked(tmp_path, "--find-links wheels\nours\n") == ["ours==7"]
    for path in (*offline.iterdir(), *(tmp_path / "wheels").iterdir()):
        path.rename(path.with_suffix(".gone"))
    with pytest.raises(MacdError):  # its wheel is gone, so it is another question
        _locked(tmp_path, "--find-links wheels\nours\n")


@pytest.mark.slow
def test_asked_again_nothing_is_needed(offline: Path, tmp_path: Path) -> None:
    first = _locked(tmp_path, "tiny-thing>1\n")
    for path in offline.iterdir():
        path.unlink()
    assert _locked(tmp_path, "tiny-thing>1\n") == first


@pytest.mark.slow
def test_a_pip_of_theirs_is_not_installed(offline: Path, tmp_path: Path) -> None:
    put(offline, "pip", "20.0")
    asked = _asked(tmp_path, "pip<21\ntiny-thing\n")
    lock, _ = Wheelhouse(tmp_path / "house").resolve_file(asked, DEBIAN)
    assert [(w.name, w.version) for w in lock.wheels] == [("pip", "25.3"), ("tiny-thing", "1.5")]


@pytest.mark.slow
def test_a_package_that_is_there_as_source_only_is_named(offline: Path, tmp_path: Path) -> None:
    with tarfile.open(offline / "oldschool-1.0.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("oldschool-1.0/setup.py"))
    put(offline, "frames", "1", needs=("oldschool",))
    with pytest.raises(MacdError) as caught:
        _locked(tmp_path, "frames\n")
    assert caught.value.what == "oldschool has no wheel for Python 3.11 on manylinux_2_36_x86_64"
    assert "only its source" in caught.value.why
    assert "frames" in caught.value.why
    assert "pip wheel --no-deps oldschool" in caught.value.hint


@pytest.mark.slow
def test_wheels_for_others_and_versions_that_are_not_there(offline: Path, tmp_path: Path) -> None:
    put(offline, "native", "1.0", tag="cp39-cp39-win_amd64")
    with pytest.raises(MacdError, match="native has no wheel for Python") as caught:
        _locked(tmp_path, "native\n")
    assert "neither a wheel nor a source" in caught.value.why
    with pytest.raises(MacdError, match="in that version") as caught:
        _locked(tmp_path, "tiny-thing>=9\n")
    assert "tiny-thing 1.5; asked for is tiny-thing>=9" in caught.value.why


@pytest.mark.slow
def test_two_that_want_different_things(offline: Path, tmp_path: Path) -> None:
    put(offline, "numbers", "1.0")
    put(offline, "numbers", "2.0")
    put(offline, "one", "1", needs=("numbers<2",))
    put(offline, "other", "1", needs=("numbers>=2",))
    with pytest.raises(MacdError) as caught:
        _locked(tmp_path, "one\nother\n")
    assert "one 1 depends on numbers<2" in caught.value.why


@pytest.mark.slow
def test_a_password_of_an_index_is_never_shown(offline: Path, tmp_path: Path) -> None:
    text = "--index-url http://jun:hunter2@127.0.0.1:9/simple\n--no-index\nnone-such\n"
    with pytest.raises(MacdError) as caught:
        _locked(tmp_path, text)
    assert "hunter2" not in str(caught.value)
    lock, _ = Wheelhouse(tmp_path / "house").resolve_file(
        _asked(tmp_path, text.replace("none-such", "tiny-thing")), DEBIAN
    )
    assert b"hunter2" not in lock.raw


@pytest.mark.slow
def test_a_real_requirements_file_from_the_real_index(tmp_path: Path) -> None:
    text = "--extra-index-url https://pypi.org/simple\nflask>=3,<4\npython-dotenv>=1.0,<2\n"
    house = Wheelhouse(tiny.wheelhouse())
    try:
        lock, _ = house.resolve_file(_asked(tmp_path, text), DEBIAN)
    except MacdError as error:
        tiny.none_to_be_had(str(error))
    assert {"flask", "werkzeug", "jinja2", "python-dotenv", "pip"} <= {w.name for w in lock.wheels}
    assert any(wheel.file.startswith("markupsafe") for wheel in lock.wheels)
    assert "manylinux" in next(w.file for w in lock.wheels if w.name == "markupsafe")
