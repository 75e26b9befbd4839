"""Whatever is changed, wherever it lies: it is refused, and nothing of the host was changed.

Each file of a release, altered, gone, or with another one beside it: where it is offered, among the
blobs on the host, in the release that was unpacked, in one to go back to, and in the bundle.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.host.rpc import blobs
from macd.host.store.manifest import parse
from macd.release.bundle import BundleError, pack, unpack
from tests.support.kills.traced_host import TracedHost, traced_host

FILES = ("app/serve.py", "data/ml_models/model.txt", "data/ml_models/shared.txt", "lock.json")
NEW = ("app/serve.py", "data/ml_models/model.txt")  # the others are in earlier releases too
SIGNED = ("manifest.json", "manifest.json.sig")
DAMAGES = ("first byte", "a byte", "last byte", "longer", "gone", "a link", "beside it")


@pytest.fixture(scope="module")
def made() -> Iterator[TracedHost]:
    with traced_host({1: "good", 2: "good", 3: "good"}) as one:
        assert [one.deploy(1), one.deploy(2)] == ["committed"] * 2
        assert {file.path for file in parse(one.releases[3].raw).files} == set(FILES)
        one.save("two")
        number = one.send(3)["said"]
        one.step("confirm", number=int(number))
        one.save("sent")
        yield one


@pytest.fixture
def host(made: TracedHost) -> TracedHost:
    made.restore("two")
    return made


def damage(file: Path, how: str) -> None:
    """Do it to a copy in the file's place: what it is linked to stays as it was."""
    data = bytearray(file.read_bytes())
    offset = {"first byte": 0, "a byte": 7, "last byte": -1}.get(how)
    if how == "beside it":
        (file.parent / "extra.py").write_text("import os")
        return
    file.unlink()
    if how == "a link":
        file.symlink_to("/etc/passwd")
    elif how != "gone":
        if offset is None:
            data += b"!"
        else:
            data[offset] ^= 0x20
        file.write_bytes(data)


def test_what_a_client_has_of_a_release(host: TracedHost) -> None:
    """Also in transit: the host takes bytes by their hash, whoever sends them."""
    folder = host.top / "offers/3/files"
    for path in FILES:
        for how in DAMAGES[:5]:
            host.restore("two")
            whole, before = (folder / path).read_bytes(), state_of(host)
            damage(folder / path, how)
            told = host.send(3)
            (folder / path).write_bytes(whole)
            if path in NEW:
                assert "failed" in told, (path, how)
                assert state_of(host) == before, (path, how)
            elif how != "longer":  # the host has that one, and asks nobody for it
                assert "said" in told, (path, how)
    assert host.deploy(3) == "committed"


@pytest.mark.parametrize("path", FILES)
def test_blobs_on_the_host(host: TracedHost, path: str) -> None:
    """A blob that is not what its name says is dropped; the next deploy sends it anew."""
    [sha256] = [f.sha256 for f in parse(host.releases[3].raw).files if f.path == path]
    blob = Path(blobs.path_of(str(host.app), sha256))
    for how in ("first byte", "a byte", "last byte"):
        host.restore("two")
        if not blob.exists():
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(host.releases[3].files[path])
        before = state_of(host)
        damage(blob, how)
        assert "failed" in host.send(3), how
        assert state_of(host) == before
        assert not blob.exists()
        assert host.deploy(3) == "committed"
        host.check_settled()


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("path", (*FILES, *SIGNED))
def test_a_release_to_go_back_to(host: TracedHost, path: str, how: str) -> None:
    old = host.app / "releases" / host.releases[1].id
    damage(old / path, how)
    asked = host.step("rollback", keep=2)
    if path == "manifest.json.sig" and how != "beside it":
        # It was checked when the release came; what counts now is the manifest's own hash.
        assert "said" in asked
        return
    assert "can't come back" in asked["failed"]
    if how == "beside it":
        assert f"extra: {Path(path).with_name('extra.py')}" in asked["failed"]
    elif how == "gone" and path in FILES:
        assert f"missing: {path}" in asked["failed"]
    elif path in FILES:
        assert f"changed: {path}" in asked["failed"]
    assert host.live == 2
    assert json.loads(host.step("look")["said"])["live"] == host.releases[2].id


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("path", FILES)
def test_a_release_that_lies_ready_is_made_anew(host: TracedHost, path: str, how: str) -> None:
    """Sent before, damaged since: what goes live is what was signed."""
    host.send(3)
    host.step("recover")
    left = host.app / "releases" / host.releases[3].id
    if left.exists():
        damage(left / path, how)
    assert host.deploy(3) == "committed"
    host.check_settled()
    assert not list(left.rglob("extra.py"))


EVERY = [
    pytest.param(41, id="spread"),
    pytest.param(1, id="all", marks=[pytest.mark.full, pytest.mark.timeout(900)]),
]


@pytest.mark.parametrize("step", EVERY)
@pytest.mark.parametrize("name", SIGNED)
def test_no_byte_of_manifest_or_signature_can_change(
    host: TracedHost, name: str, step: int
) -> None:
    """By whole sends; tests/unit/release/test_signing.py verifies every byte each time."""
    offered = host.top / "offers/3" / name
    whole, before = offered.read_bytes(), state_of(host)
    try:
        for offset in range(0, len(whole), step):
            offered.write_bytes(whole)
            damaged = bytearray(whole)
            damaged[offset] ^= 0x20
            offered.write_bytes(damaged)
            assert "failed" in host.send(3), offset
            assert state_of(host) == before
    finally:
        offered.write_bytes(whole)
    assert host.deploy(3) == "committed"


@pytest.mark.parametrize("path", (*FILES, *SIGNED))
def test_the_bundle(host: TracedHost, path: str, tmp_path: Path) -> None:
    release = tmp_path / "release"
    manifest = parse(host.releases[3].raw)
    whole = {**host.releases[3].files, SIGNED[0]: b"{}", SIGNED[1]: b"signature"}
    for how in ("first byte", "a byte", "last byte", "longer"):
        if path in SIGNED:
            break  # unpack takes the files only; read_head and the signature are above
        for name, data in whole.items():
            (release / name).parent.mkdir(parents=True, exist_ok=True)
            (release / name).write_bytes(data)
        damage(release / path, how)
        packed = io.BytesIO()
        pack(release, manifest, packed)
        with pytest.raises(BundleError):
            unpack(packed, manifest, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def state_of(host: TracedHost) -> tuple[list[str], int | None, int]:
    """What stands as releases, what is live, and which serial was seen."""
    return (
        sorted(os.listdir(host.app / "releases")),  # noqa: PTH208
        host.live,
        host.state("serial.json")["serial"],
    )
