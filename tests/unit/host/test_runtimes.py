"""What is run or installed from the blob store was hashed just before; nothing of a killed build
is used again."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest

from macd.host import blobs, runtimes
from macd.host.confined import Confinement
from macd.host.failure import HostError
from macd.host.layout import Layout


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
    with pytest.raises(HostError, match=f"the wheel {altered}-1.whl ") as told:
        runtimes.install(Layout(str(app)), raw, [])
    assert "deploy again" in told.value.hint
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
    monkeypatch.setattr(Confinement, "end_forgotten", lambda _: ended.append(left.exists()))
    assert runtimes.install(layout, raw, [])["built"]
    assert ended == [True]  # while it could still write there
    assert [path.name for path in (tmp_path / "runtimes").iterdir()] == [lock]
    assert not (tmp_path / "runtimes" / lock / "sitecustomize.py").exists()
