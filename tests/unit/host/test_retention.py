"""What stays on a host and what goes; one damaged thing keeps nothing else from going."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from macd.host.deploy import ledger
from macd.host.failure import HostError
from macd.host.flag import guard_config
from macd.host.layout import Layout, point_current_at, point_previous_at
from macd.host.rpc import blobs
from macd.host.store import releases, retention, snapshots
from macd.host.store.manifest import File, Manifest, release_id, render

IDS: dict[int, str] = {}


def install(layout: Layout, serial: int) -> str:
    """A release as `stage` leaves it, with a runtime and a wheel of its own."""
    wheel = hashlib.sha256(f"wheel {serial}".encode()).hexdigest()
    lock = json.dumps({"wheels": [{"name": "tiny", "sha256": wheel}]}).encode()
    files = {"lock.json": lock, "model.txt": f"model {serial}".encode()}
    manifest = Manifest(
        app="a", env="prod", serial=serial,
        created=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=serial),
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        files=tuple(
            File(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
        lock=hashlib.sha256(lock).hexdigest(),
        details={},
    )  # fmt: skip
    raw = render(manifest)
    for data in files.values():
        shelve(layout, hashlib.sha256(data).hexdigest(), data)
    shelve(layout, wheel, f"wheel {serial}".encode())
    Path(layout.runtime(manifest.lock), "bin").mkdir(parents=True)
    releases.stage(layout, release_id(raw), raw, b"signature")
    snapshots.keep(layout, release_id(raw), {})
    return release_id(raw)


def shelve(layout: Layout, sha256: str, data: bytes) -> None:
    path = Path(blobs.path_of(layout.app, sha256))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Releases 1 to 5 were live, 5 is."""
    made = Layout(str(tmp_path))
    made.make()
    for serial in range(1, 6):
        IDS[serial] = install(made, serial)
    entries = [{"number": n, "release": IDS[n], "serial": n} for n in range(1, 6)]
    ledger.save_history(made, entries)
    point_current_at(made, IDS[5])
    return made


def names(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def manifest_of(layout: Layout, serial: int) -> Path:
    return Path(layout.release(IDS[serial]), "manifest.json")


def garbled(layout: Layout, serial: int) -> None:
    manifest_of(layout, serial).write_bytes(b"\0\0\0")


def emptied(layout: Layout, serial: int) -> None:
    manifest_of(layout, serial).write_bytes(b"")


def gone(layout: Layout, serial: int) -> None:
    manifest_of(layout, serial).unlink()


def a_directory(layout: Layout, serial: int) -> None:
    gone(layout, serial)
    manifest_of(layout, serial).mkdir()


def a_plain_file(layout: Layout, serial: int) -> None:
    shutil.rmtree(layout.release(IDS[serial]))
    Path(layout.release(IDS[serial])).write_text("somebody's")


@pytest.mark.parametrize("damage", [garbled, emptied, gone, a_directory, a_plain_file])
def test_one_damaged_manifest_stays_is_named_and_the_others_go(
    layout: Layout, damage: Callable[[Layout, int], None]
) -> None:
    runtime = releases.read_manifest(layout, IDS[4]).lock
    old = [releases.read_manifest(layout, IDS[n]).lock for n in (1, 2)]
    damage(layout, 4)
    retention.tidy(layout, keep=1, also=IDS[5])
    assert releases.on_host(layout) == [IDS[3], IDS[4], IDS[5]]
    assert [one for one in old if one in names(layout.runtimes)] == []
    assert (runtime in names(layout.runtimes)) is (damage is not a_plain_file)  # by its link
    assert sorted(names(layout.state("snapshots"))) == [f"{IDS[n]}.json" for n in (3, 4, 5)]
    shelved = {path.name for path in Path(layout.app, "blobs/sha256").glob("*/*")}
    assert hashlib.sha256(b"wheel 1").hexdigest() not in shelved
    assert {hashlib.sha256(f"wheel {n}".encode()).hexdigest() for n in (3, 5)} <= shelved
    named = releases.damaged(layout)
    assert list(named) == [IDS[4]]
    assert IDS[4] in named[IDS[4]]


@pytest.mark.parametrize("lock", [b"{", b"[]", b'{"wheels": [1]}', b'{"other": 1}'])
def test_a_damaged_lock_stops_nothing(layout: Layout, lock: bytes) -> None:
    path = Path(layout.release(IDS[4]), "lock.json")
    path.unlink()
    path.write_bytes(lock)
    retention.tidy(layout, keep=1, also=IDS[5])
    assert releases.on_host(layout) == [IDS[3], IDS[4], IDS[5]]
    shelved = {path.name for path in Path(layout.app, "blobs/sha256").glob("*/*")}
    assert hashlib.sha256(b"wheel 1").hexdigest() not in shelved


def test_what_can_not_be_removed_stops_nothing(layout: Layout) -> None:
    """Things of another kind than their name says, in each place that is cleared."""
    Path(layout.runtimes, "f" * 64).write_text("no directory")
    Path(layout.releases, ".trash-x").write_text("no directory")
    Path(layout.state("snapshots", f"{IDS[1]}.json")).unlink()
    Path(layout.state("snapshots", f"{IDS[1]}.json")).mkdir()
    retention.tidy(layout, keep=0, also=IDS[5])
    assert releases.on_host(layout) == [IDS[4], IDS[5]]
    assert not Path(layout.releases, ".trash-x").exists()
    assert not Path(layout.state("snapshots", f"{IDS[2]}.json")).exists()


def test_a_damaged_release_is_laid_out_anew_when_it_is_deployed_again(layout: Layout) -> None:
    raw = manifest_of(layout, 4).read_bytes()
    garbled(layout, 4)
    releases.stage(layout, IDS[4], raw, b"signature")
    assert releases.read_manifest(layout, IDS[4]).serial == 4
    assert releases.damaged(layout) == {}


def test_the_live_one_is_never_taken_away_however_damaged(layout: Layout) -> None:
    raw = manifest_of(layout, 5).read_bytes()
    garbled(layout, 5)
    with pytest.raises(HostError, match="was changed on the host"):
        releases.stage(layout, IDS[5], raw, b"signature")
    retention.tidy(layout, keep=0, also=IDS[5])
    assert releases.on_host(layout) == [IDS[4], IDS[5]]
    assert list(releases.damaged(layout)) == [IDS[5]]


def test_a_damaged_report_of_the_guard_hides_no_other(layout: Layout) -> None:
    for name, text in (("guard-1.json", '{"a": 1}'), ("guard-2.json", "{"), ("guard-3.json", "[]")):
        Path(layout.state("gate", name)).write_text(text)
    reports = guard_config.guard_status(layout.app)["reports"]
    assert reports == [{"name": "guard-1.json", "report": {"a": 1}}]


@pytest.mark.parametrize(
    ("abandoned", "bad", "target"), [((), (), 4), ((4,), (), 3), ((4,), (3,), 2)]
)
def test_the_release_that_the_service_is_compared_with_stays(
    layout: Layout, abandoned: tuple[int, ...], bad: tuple[int, ...], target: int
) -> None:
    """It is the rollback target, however few are kept and whatever was rolled back from."""
    entries = ledger.history(layout)
    for entry in entries:
        entry["abandoned"] = entry["serial"] in abandoned
    ledger.save_history(layout, entries)
    for serial in bad:
        ledger.mark_bad(layout, IDS[serial], "it failed", serial)
    retention.tidy(layout, keep=0, also=IDS[5])
    named = releases.rollback_target(ledger.history(layout), IDS[5], [IDS[n] for n in bad])
    assert named == IDS[target]
    point_previous_at(layout, named)
    assert (Path(layout.previous) / "manifest.json").is_file()
    point_previous_at(layout, None)
    assert not Path(layout.previous).is_symlink()
